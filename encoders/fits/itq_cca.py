"""Iterative quantisation of the directions that predict the labels.

Gong, Lazebnik, Gordo & Perronnin, TPAMI 2013, section 5. Shapes: N images, D feature dimensions, C classes, B bits.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from hashlight.encoders.fits.components import quantising_rotation
from hashlight.encoders.fits.hashers import (
    Classes,
    Features,
    FloatArray,
    LinearHasher,
    check_classes,
    check_components,
    check_features,
)

# Ridge, relative to the mean diagonal of the covariance; it bounds directions without variance.
_CCA_RIDGE = 1e-4


class ITQCCA(LinearHasher):
    """The directions that best predict the labels, rotated to minimise the quantisation error of taking signs.

    Gong, Lazebnik, Gordo & Perronnin, "Iterative quantization: a procrustean approach to learning binary codes for
    large-scale image retrieval", TPAMI 2013, section 5: canonical correlation analysis between features and labels
    instead of principal components, with each direction scaled by its correlation. There are only as many directions
    with a correlation above 0 as labels; the rotation spreads them over all bits.
    """

    @classmethod
    def fit(cls, features: Features, bits: int, seed: int = 0, iterations: int = 50, *, class_NC: Classes) -> Self:
        """Fit the directions and the rotation.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        bits : int
            At most D.
        seed, iterations : int
            As in `ITQ.fit`.
        class_NC : ndarray or scipy.sparse array of 0 and 1, shape (N, C)
            Which classes each image has.

        Raises
        ------
        ValueError
            If there are more bits than feature dimensions, or the classes do not fit the features.
        """
        feature_ND = check_features(features)
        check_components(bits, feature_ND.shape[1], "ITQ-CCA")
        mean_D = feature_ND.mean(axis=0)
        component_DB = _canonical_components(feature_ND - mean_D, check_classes(class_NC, len(feature_ND)), bits)
        rotation_BB = quantising_rotation((feature_ND - mean_D) @ component_DB, seed, iterations)
        return cls(component_DB @ rotation_BB, mean_D)


def _canonical_components(centred_ND: FloatArray, class_NC: sparse.csr_array, bits: int) -> FloatArray:
    """Return the `bits` directions of largest correlation with the labels, (D, B), scaled by that correlation.

    They are the eigenvectors of a matrix between feature dimensions, so that nothing dense grows with images times
    classes or with the square of the classes.
    """
    half_DD = _inverse_root(centred_ND)
    # The features are centred, so the classes need not be.
    between_CD = class_NC.T @ centred_ND / len(centred_ND) @ half_DD
    square_D, left_DD = np.linalg.eigh(between_CD.T @ _solve_covariance(class_NC, between_CD))
    first_B = np.argsort(-square_D)[:bits]
    scale_B = np.sqrt(np.maximum(square_D[first_B], 0.0))
    return np.asarray(half_DD @ left_DD[:, first_B] * scale_B, np.float64)


def _solve_covariance(class_NC: sparse.csr_array, right_CD: FloatArray) -> FloatArray:
    """Multiply by the inverse of the labels' covariance, with a small ridge.

    That is a sparse matrix less the square of the means, which is inverted by the formula of Sherman and Morrison.
    """
    num_images, num_classes = class_NC.shape
    mean_C = class_NC.sum(axis=0) / num_images
    moment_CC = class_NC.T @ class_NC / num_images
    ridge = _ridge((moment_CC.diagonal() - mean_C**2).sum() / num_classes)
    factors = splu(sparse.csc_array(moment_CC + ridge * sparse.eye_array(num_classes)))
    solved_CD, solved_C = factors.solve(right_CD), factors.solve(mean_C)
    return np.asarray(solved_CD + np.outer(solved_C, mean_C @ solved_CD) / (1 - mean_C @ solved_C), np.float64)


def _inverse_root(centred_ND: FloatArray) -> FloatArray:
    """Return the inverse square root of a covariance, with a small ridge."""
    covariance_DD = centred_ND.T @ centred_ND / len(centred_ND)
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    ridge = _ridge(float(np.trace(covariance_DD)) / len(covariance_DD))
    return np.asarray(vectors_DD / np.sqrt(np.maximum(values_D, 0.0) + ridge) @ vectors_DD.T, np.float64)


def _ridge(mean: float) -> float:
    return _CCA_RIDGE * max(float(mean), float(np.finfo(np.float64).tiny))
