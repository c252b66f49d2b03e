"""Linear and spectral hashing of precomputed features: the classical baselines for learned codes.

Shapes: N images, D feature dimensions, C classes, B bits.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.fits.hashers import (
    Features,
    FloatArray,
    LinearHasher,
    SpectralHasher,
    check_bits,
    check_classes,
    check_components,
    check_features,
)

# Relative to the covariances' mean diagonal; bounds directions that have no variance.
_CCA_RIDGE = 1e-4


class LSH(LinearHasher):
    """Random hyperplanes through the mean of the features.

    Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002. Features after a
    rectifier are never negative, so hyperplanes through zero would leave most bits constant; hence the mean.
    """

    @classmethod
    def fit(cls, features: Features, bits: int, seed: int = 0) -> Self:
        """Draw `bits` directions.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        bits : int
        seed : int
        """
        feature_ND = check_features(features)
        check_bits(bits)
        rng = np.random.default_rng(seed)
        return cls(rng.standard_normal((feature_ND.shape[1], bits)), feature_ND.mean(axis=0))


class ITQ(LinearHasher):
    """Principal components, rotated to minimise the loss of taking signs.

    Gong & Lazebnik, "Iterative quantization: a procrustean approach to learning binary codes", CVPR 2011.
    """

    @classmethod
    def fit(cls, features: Features, bits: int, seed: int = 0, iterations: int = 50) -> Self:
        """Fit the rotation.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        bits : int
            At most D: each bit needs a principal component.
        seed : int
            Of the initial rotation.
        iterations : int
            50 in the paper.

        Raises
        ------
        ValueError
            If there are more bits than feature dimensions.
        """
        feature_ND = check_features(features)
        check_components(bits, feature_ND.shape[1], "ITQ")
        mean_D = feature_ND.mean(axis=0)
        component_DB = _principal_components(feature_ND - mean_D, bits)
        rotation_BB = _quantising_rotation((feature_ND - mean_D) @ component_DB, seed, iterations)
        return cls(component_DB @ rotation_BB, mean_D)


class ITQCCA(LinearHasher):
    """The directions that best predict the labels, rotated to minimise the loss of taking signs.

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
        rotation_BB = _quantising_rotation((feature_ND - mean_D) @ component_DB, seed, iterations)
        return cls(component_DB @ rotation_BB, mean_D)


class SH(SpectralHasher):
    """Signs of the smoothest eigenfunctions on a box along the principal components.

    Weiss, Torralba & Fergus, "Spectral hashing", NIPS 2008. On an interval of length l the k-th eigenfunction is
    sin(pi / 2 + k pi x / l) = cos(k pi x / l), with an eigenvalue that grows with k / l: the bits are those of the
    smallest eigenvalues over all components.
    """

    @classmethod
    def fit(cls, features: Features, bits: int, seed: int = 0) -> Self:
        """Choose the eigenfunctions.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        bits : int
        seed : int
            Unused; the fit is not random.

        Raises
        ------
        ValueError
            If the features do not vary, so no component has an eigenfunction.
        """
        feature_ND = check_features(features)
        check_bits(bits)
        component_DP = _principal_components(feature_ND - feature_ND.mean(axis=0), min(bits, feature_ND.shape[1]))
        projected_NP = feature_ND @ component_DP
        low_P, length_P = projected_NP.min(axis=0), np.ptp(projected_NP, axis=0)
        if length_P.max() <= 1e-12 * max(1.0, float(np.abs(projected_NP).max())):
            raise ValueError(f"`features` must vary for SH to find {bits} bits, got {len(feature_ND)} equal rows")
        component_B, mode_B = _smoothest_modes(length_P, bits)
        frequency_B = mode_B * np.pi / length_P[component_B]
        return cls(component_DP[:, component_B] * frequency_B, -low_P[component_B] * frequency_B)


def _principal_components(centred_ND: FloatArray, bits: int) -> FloatArray:
    """Return the `bits` directions of largest variance, (D, B)."""
    _, vectors_DD = np.linalg.eigh(centred_ND.T @ centred_ND / len(centred_ND))
    return np.ascontiguousarray(vectors_DD[:, ::-1][:, :bits])


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


def _quantising_rotation(projected_NB: FloatArray, seed: int, iterations: int) -> FloatArray:
    """Alternate between taking signs and finding the rotation that best fits them (Procrustes)."""
    bits = projected_NB.shape[1]
    rotation_BB = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))[0]
    for _ in range(iterations):
        sign_NB = np.where(projected_NB @ rotation_BB > 0, 1.0, -1.0)
        left_BB, _, right_BB = np.linalg.svd(projected_NB.T @ sign_NB)
        rotation_BB = left_BB @ right_BB
    return rotation_BB


def _smoothest_modes(length_P: FloatArray, bits: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the component and the mode (1, 2, ...) of the `bits` smallest mode / length."""
    mode_PB = np.arange(1, bits + 1) / np.maximum(length_P, np.finfo(np.float64).tiny)[:, None]
    chosen_B = np.argsort(mode_PB, axis=None, kind="stable")[:bits]
    component_B, mode_B = np.unravel_index(chosen_B, mode_PB.shape)
    return component_B, mode_B + 1
