"""Spectral hashing.

Weiss, Torralba & Fergus, "Spectral hashing", NIPS 2008. Shapes: N images, D feature dimensions, B bits, P components.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.fits.components import leading_components, principal_components
from hashlight.encoders.fits.hashers import Features, FloatArray, SpectralHasher, check_bits, check_features
from hashlight.encoders.fits.streaming import Moments, Stream


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
        component_DP = principal_components(feature_ND - feature_ND.mean(axis=0), min(bits, feature_ND.shape[1]))
        projected_NP = feature_ND @ component_DP
        low_P, high_P = projected_NP.min(axis=0), projected_NP.max(axis=0)
        return cls._on_box(component_DP, low_P, high_P, bits, len(feature_ND))

    @classmethod
    def fit_stream(cls, features: Stream, bits: int, seed: int = 0) -> Self:
        """Choose the eigenfunctions in two passes over features that need not fit in memory; see `fit`."""
        check_bits(bits)
        moments = Moments(features.dims)
        for feature_RD in features:
            moments.add(feature_RD)
        component_DP = leading_components(moments.covariance, min(bits, features.dims))
        low_P = np.full(component_DP.shape[1], np.inf)
        high_P = -low_P
        for feature_RD in features:
            projected_RP = feature_RD.astype(np.float64) @ component_DP
            low_P = np.minimum(low_P, projected_RP.min(axis=0))
            high_P = np.maximum(high_P, projected_RP.max(axis=0))
        return cls._on_box(component_DP, low_P, high_P, bits, moments.rows)

    @classmethod
    def _on_box(cls, component_DP: FloatArray, low_P: FloatArray, high_P: FloatArray, bits: int, rows: int) -> Self:
        """Choose the eigenfunctions on the box that the projections on the components lie in."""
        length_P = high_P - low_P
        if length_P.max() <= 1e-12 * max(1.0, float(np.abs([low_P, high_P]).max())):
            raise ValueError(f"`features` must vary for SH to find {bits} bits, got {rows} equal rows")
        component_B, mode_B = _smoothest_modes(length_P, bits)
        frequency_B = mode_B * np.pi / length_P[component_B]
        return cls(component_DP[:, component_B] * frequency_B, -low_P[component_B] * frequency_B)


def _smoothest_modes(length_P: FloatArray, bits: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the component and the mode (1, 2, ...) of the `bits` smallest mode / length."""
    mode_PB = np.arange(1, bits + 1) / np.maximum(length_P, np.finfo(np.float64).tiny)[:, None]
    chosen_B = np.argsort(mode_PB, axis=None, kind="stable")[:bits]
    component_B, mode_B = np.unravel_index(chosen_B, mode_PB.shape)
    return component_B, mode_B + 1
