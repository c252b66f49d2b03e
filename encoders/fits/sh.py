"""Spectral hashing.

Weiss, Torralba & Fergus, "Spectral hashing", NIPS 2008. Shapes: N images, D feature dimensions, B bits, P components.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.fits.components import principal_components
from hashlight.encoders.fits.hashers import Features, FloatArray, SpectralHasher, check_bits, check_features


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
        low_P, length_P = projected_NP.min(axis=0), np.ptp(projected_NP, axis=0)
        if length_P.max() <= 1e-12 * max(1.0, float(np.abs(projected_NP).max())):
            raise ValueError(f"`features` must vary for SH to find {bits} bits, got {len(feature_ND)} equal rows")
        component_B, mode_B = _smoothest_modes(length_P, bits)
        frequency_B = mode_B * np.pi / length_P[component_B]
        return cls(component_DP[:, component_B] * frequency_B, -low_P[component_B] * frequency_B)


def _smoothest_modes(length_P: FloatArray, bits: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the component and the mode (1, 2, ...) of the `bits` smallest mode / length."""
    mode_PB = np.arange(1, bits + 1) / np.maximum(length_P, np.finfo(np.float64).tiny)[:, None]
    chosen_B = np.argsort(mode_PB, axis=None, kind="stable")[:bits]
    component_B, mode_B = np.unravel_index(chosen_B, mode_PB.shape)
    return component_B, mode_B + 1
