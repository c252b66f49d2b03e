"""Iterative quantisation of the directions that predict the labels.

Gong, Lazebnik, Gordo & Perronnin, TPAMI 2013, section 5. Shapes: N images, D feature dimensions, C classes, B bits.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.fits.components import quantising_rotation
from hashlight.encoders.fits.hashers import (
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
    def fit(cls, features: Features, bits: int, seed: int = 0, iterations: int = 50, *, class_NC: NDArray[Any]) -> Self:
        """Fit the directions and the rotation.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        bits : int
            At most D.
        seed, iterations : int
            As in `ITQ.fit`.
        class_NC : ndarray of 0 and 1, shape (N, C)
            Which classes each image has.

        Raises
        ------
        ValueError
            If there are more bits than feature dimensions, or the classes do not fit the features.
        """
        feature_ND = check_features(features)
        check_components(bits, feature_ND.shape[1], "ITQ-CCA")
        mean_D = feature_ND.mean(axis=0)
        centred_NC = check_classes(class_NC, len(feature_ND))
        centred_NC = centred_NC - centred_NC.mean(axis=0)
        component_DB = _canonical_components(feature_ND - mean_D, centred_NC, bits)
        rotation_BB = quantising_rotation((feature_ND - mean_D) @ component_DB, seed, iterations)
        return cls(component_DB @ rotation_BB, mean_D)


def _canonical_components(centred_ND: FloatArray, centred_NC: FloatArray, bits: int) -> FloatArray:
    """Return the `bits` directions of largest correlation with the labels, (D, B), scaled by that correlation."""
    half_DD = _inverse_root(centred_ND)
    between_DC = centred_ND.T @ centred_NC / len(centred_ND)
    left_DD, correlation, _ = np.linalg.svd(half_DD @ between_DC @ _inverse_root(centred_NC))
    scale_D = np.zeros(len(left_DD))
    scale_D[: len(correlation)] = correlation
    return np.asarray(half_DD @ left_DD[:, :bits] * scale_D[:bits], np.float64)


def _inverse_root(centred_ND: FloatArray) -> FloatArray:
    """Return the inverse square root of a covariance, with a small ridge."""
    covariance_DD = centred_ND.T @ centred_ND / len(centred_ND)
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    ridge = _CCA_RIDGE * max(float(np.trace(covariance_DD)) / len(covariance_DD), np.finfo(np.float64).tiny)
    return np.asarray(vectors_DD / np.sqrt(np.maximum(values_D, 0.0) + ridge) @ vectors_DD.T, np.float64)
