"""Hashers: fitted hash functions of precomputed features, in plain numpy.

A hasher replaces the hash layer on the backbone that made the features; `encoders.networks.heads` converts it to one.
Shapes: N images, D feature dimensions, B bits, M anchors.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.packing import CodeArray, pack_bits

if TYPE_CHECKING:
    from scipy import sparse

# Kinds of hash layers; see `encoders.networks.heads`.
LINEAR = "linear"
KERNEL = "kernel"
SPECTRAL = "spectral"
# Of copy codes: what enters is compared with its own median, so that nothing is learned.
MEDIAN = "median"
HEADS = (LINEAR, KERNEL, SPECTRAL, MEDIAN)

FloatArray = NDArray[np.float64]
Features = NDArray[np.floating[Any]]
# Which classes each image has: 0 and 1, shape (N, C).
Classes: TypeAlias = "NDArray[Any] | sparse.sparray"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Hasher(abc.ABC):
    """Bit i of an image is 1 if component i of its projection is above 0.

    Attributes
    ----------
    weight : ndarray of float64
        One column for each bit.
    """

    weight: FloatArray

    @property
    def bits(self) -> int:
        """Number of bits in a code."""
        return int(self.weight.shape[1])

    @property
    @abc.abstractmethod
    def dims(self) -> int:
        """Number of feature dimensions D."""

    def project(self, features: Features) -> FloatArray:
        """Return the real numbers (N, B) whose signs are the bits.

        Raises
        ------
        ValueError
            If the features do not have as many dimensions as those that the hasher was fitted on.
        """
        return self._project(check_features(features, self.dims))

    def encode(self, features: Features) -> CodeArray:
        """Return the codes (N, ceil(B / 64)) uint64 of features (N, D); see `project`."""
        return pack_bits(self.project(features) > 0)

    @abc.abstractmethod
    def _project(self, feature_ND: FloatArray) -> FloatArray: ...


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LinearHasher(Hasher):
    """Projection `(feature - mean) @ weight`.

    Attributes
    ----------
    weight : ndarray of float64, shape (D, B)
    mean : ndarray of float64, shape (D,)
    """

    mean: FloatArray

    @property
    def dims(self) -> int:
        """Number of feature dimensions."""
        return len(self.mean)

    def _project(self, feature_ND: FloatArray) -> FloatArray:
        return (feature_ND - self.mean) @ self.weight


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SpectralHasher(Hasher):
    """Projection `cos(feature @ weight + bias)`.

    Attributes
    ----------
    weight : ndarray of float64, shape (D, B)
    bias : ndarray of float64, shape (B,)
    """

    bias: FloatArray

    @property
    def dims(self) -> int:
        """Number of feature dimensions."""
        return int(self.weight.shape[0])

    def _project(self, feature_ND: FloatArray) -> FloatArray:
        return np.asarray(np.cos(feature_ND @ self.weight + self.bias), np.float64)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class KernelHasher(Hasher):
    """Projection `kernel @ weight + bias`, with kernel exp(-scale |feature - anchor|^2).

    Attributes
    ----------
    weight : ndarray of float64, shape (M, B)
    bias : ndarray of float64, shape (B,)
    anchors : ndarray of float64, shape (M, D)
    scale : float
    """

    bias: FloatArray
    anchors: FloatArray
    scale: float

    @property
    def dims(self) -> int:
        """Number of feature dimensions."""
        return int(self.anchors.shape[1])

    def _project(self, feature_ND: FloatArray) -> FloatArray:
        return gaussian_kernel(feature_ND, self.anchors, self.scale) @ self.weight + self.bias


def squared_distances(left_ND: FloatArray, right_MD: FloatArray) -> FloatArray:
    """Return squared Euclidean distances (N, M)."""
    squares = (left_ND**2).sum(axis=1)[:, None] + (right_MD**2).sum(axis=1)
    return np.asarray(np.maximum(squares - 2 * left_ND @ right_MD.T, 0.0), np.float64)


def gaussian_kernel(left_ND: FloatArray, right_MD: FloatArray, scale: float) -> FloatArray:
    """Return exp(-scale d^2) for every pair, (N, M)."""
    return np.asarray(np.exp(-scale * squared_distances(left_ND, right_MD)), np.float64)


def check_features(features: Features, dims: int | None = None) -> FloatArray:
    """Return features as float64, or raise ValueError if they cannot be hashed."""
    if features.ndim != 2 or (not len(features) if dims is None else features.shape[1] != dims):
        raise ValueError(
            f"`features` must have shape (N, {dims or 'D'}), one row per image, got {features.shape}: "
            "use the features of one backbone throughout, and at least one row to fit"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"`features` must be finite, got {int((~np.isfinite(features)).sum())} values that are not")
    return features.astype(np.float64)


def check_classes(class_NC: Classes, num_images: int) -> sparse.csr_array:
    """Return the classes of each image as sparse float64, or raise ValueError if they do not fit the features."""
    # Not there where embeddings are only encoded.
    from scipy import sparse

    values = class_NC.data if sparse.issparse(class_NC) else class_NC
    if class_NC.ndim != 2 or class_NC.shape[0] != num_images or not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"`class_NC` must be 0 or 1 in {num_images} rows, one per feature row, got {class_NC.dtype} of shape "
            f"{class_NC.shape}"
        )
    return sparse.csr_array(class_NC, dtype=np.float64)


def check_bits(bits: int) -> None:
    """Raise ValueError for a number of bits that collections cannot store."""
    if not 1 <= bits <= 1024:
        raise ValueError(f"`bits` must be 1 to 1024, got {bits}")


def check_components(bits: int, dims: int, method: str) -> None:
    """Raise ValueError if there are more bits than feature dimensions."""
    check_bits(bits)
    if bits > dims:
        raise ValueError(
            f"`bits` must be at most {dims} for {method} on {dims}-dimensional features, got {bits}: each bit needs a "
            "component of its own; use fewer bits, wider features, or LSH"
        )
