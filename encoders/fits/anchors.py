"""Shared by SDH and KSH: a Gaussian kernel to anchors, solving linear equations on it, and the threads of small ones.

Shapes: N images, D feature dimensions, C classes, M anchors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from hashlight.encoders.fits.hashers import (
    Classes,
    Features,
    FloatArray,
    check_bits,
    check_classes,
    check_features,
    squared_distances,
)

# Relative to the mean diagonal of the kernel's covariance.
_RIDGE = 1e-6
# Numbers of a matrix of which one thread computes the product with a vector about as fast as several.
_SMALL = 1 << 18


def prepare(
    features: Features, bits: int, seed: int, class_NC: Classes
) -> tuple[FloatArray, sparse.csr_array, np.random.Generator]:
    """Return checked features and classes as float64, the classes sparse, and the random generator of a fit."""
    check_bits(bits)
    feature_ND = check_features(features)
    return feature_ND, check_classes(class_NC, len(feature_ND)), np.random.default_rng(seed)


def draw_anchors(feature_ND: FloatArray, anchors: int, rng: np.random.Generator) -> tuple[FloatArray, float]:
    """Draw images as anchors. The kernel's scale is 1 / (2 sigma^2), with sigma^2 the mean squared distance to them."""
    anchor_MD = feature_ND[np.sort(rng.permutation(len(feature_ND))[:anchors])]
    mean = float(squared_distances(feature_ND[:: max(1, len(feature_ND) // 1000)], anchor_MD).mean())
    return anchor_MD, 1.0 / (2.0 * max(mean, float(np.finfo(np.float32).tiny)))


def solve(matrix_MM: FloatArray, right_MB: FloatArray) -> FloatArray:
    """Solve a system of equations."""
    return np.asarray(np.linalg.solve(matrix_MM, right_MB), np.float64)


def with_ridge(matrix_MM: FloatArray) -> FloatArray:
    """Return the matrix with a small ridge on its diagonal, so that it can be solved."""
    return matrix_MM + _RIDGE * float(np.trace(matrix_MM)) / len(matrix_MM) * np.eye(len(matrix_MM))


@contextlib.contextmanager
def threads_for(num_values: int) -> Iterator[None]:
    """Compute on one thread in this context if the matrices have few numbers.

    Threads gain nothing there, and where other programs run too they wait for each other at every one of tens of
    thousands of products, each time until the scheduler has run those others.
    """
    with threadpool_limits(1 if num_values <= _SMALL else None, user_api="blas"):
        yield
