"""Hashing of ready features by a linear map: the classical methods that a learned code must beat.

Each is a mean and a matrix, so that it can stand in the place of a hash layer on the backbone that made the
features. Shapes: N images, D feature dimensions, B bits.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from encoders.packing import CodeArray, pack_bits

FloatArray = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LinearHasher:
    """Bit i of an image is whether `(feature - mean) @ weight[:, i]` is above 0.

    Attributes
    ----------
    mean : ndarray of float64, shape (D,)
    weight : ndarray of float64, shape (D, B)
    """

    mean: FloatArray
    weight: FloatArray

    @property
    def bits(self) -> int:
        """Number of bits of a code."""
        return int(self.weight.shape[1])

    def project(self, features: NDArray[np.floating[Any]]) -> FloatArray:
        """Return the real numbers (N, B) whose signs are the bits."""
        feature_ND = _check_features(features, self.weight.shape[0])
        return (feature_ND - self.mean) @ self.weight

    def encode(self, features: NDArray[np.floating[Any]]) -> CodeArray:
        """Return the codes (N, ceil(B / 64)) uint64 of features (N, D).

        Raises
        ------
        ValueError
            If the features have another number of dimensions than those it was fitted on.
        """
        return pack_bits(self.project(features) > 0)


class LSH(LinearHasher):
    """Random hyperplanes through the mean of the features.

    Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002. Features behind a rectifier
    are all positive, so hyperplanes through zero would leave most bits constant; hence the mean.
    """

    @classmethod
    def fit(cls, features: NDArray[np.floating[Any]], bits: int, seed: int = 0) -> Self:
        """Draw `bits` directions.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        bits : int
        seed : int
        """
        feature_ND = _check_features(features)
        _check_bits(bits)
        rng = np.random.default_rng(seed)
        return cls(feature_ND.mean(axis=0), rng.standard_normal((feature_ND.shape[1], bits)))


class ITQ(LinearHasher):
    """Principal components, turned until their signs lose least.

    Gong & Lazebnik, "Iterative quantization: a procrustean approach to learning binary codes", CVPR 2011.
    """

    @classmethod
    def fit(cls, features: NDArray[np.floating[Any]], bits: int, seed: int = 0, iterations: int = 50) -> Self:
        """Fit the rotation.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        bits : int
            At most D: each bit needs a principal component.
        seed : int
            Of the rotation that the iterations start from.
        iterations : int
            50 in the paper.

        Raises
        ------
        ValueError
            If there are more bits than feature dimensions.
        """
        feature_ND = _check_features(features)
        _check_bits(bits)
        dims = feature_ND.shape[1]
        if bits > dims:
            raise ValueError(
                f"`bits` must be at most {dims} for ITQ on {dims}-dimensional features, got {bits}: each bit needs a "
                "principal component; use fewer bits, wider features, or LSH"
            )
        mean_D = feature_ND.mean(axis=0)
        component_DB = _principal_components(feature_ND - mean_D, bits)
        rotation_BB = _quantising_rotation((feature_ND - mean_D) @ component_DB, seed, iterations)
        return cls(mean_D, component_DB @ rotation_BB)


def _principal_components(centred_ND: FloatArray, bits: int) -> FloatArray:
    """Return the `bits` directions of largest variance, (D, B)."""
    _, vectors_DD = np.linalg.eigh(centred_ND.T @ centred_ND / len(centred_ND))
    return np.ascontiguousarray(vectors_DD[:, ::-1][:, :bits])


def _quantising_rotation(projected_NB: FloatArray, seed: int, iterations: int) -> FloatArray:
    """Alternate between the signs and the rotation that brings the projections nearest to them (Procrustes)."""
    bits = projected_NB.shape[1]
    rotation_BB = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))[0]
    for _ in range(iterations):
        sign_NB = np.where(projected_NB @ rotation_BB > 0, 1.0, -1.0)
        left_BB, _, right_BB = np.linalg.svd(projected_NB.T @ sign_NB)
        rotation_BB = left_BB @ right_BB
    return rotation_BB


def _check_features(features: NDArray[np.floating[Any]], dims: int | None = None) -> FloatArray:
    if features.ndim != 2 or (not len(features) if dims is None else features.shape[1] != dims):
        raise ValueError(
            f"`features` must have shape (N, {dims or 'D'}), one row an image, got {features.shape}: "
            "use the features of one backbone throughout, and at least one row to fit"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"`features` must be finite, got {int((~np.isfinite(features)).sum())} values that are not")
    return features.astype(np.float64)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 1024:
        raise ValueError(f"`bits` must be 1 to 1024, got {bits}")
