"""Shared by SDH and KSH: a Gaussian kernel to anchors, and solving linear equations on it.

Shapes: N images, D feature dimensions, C classes, M anchors.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

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
