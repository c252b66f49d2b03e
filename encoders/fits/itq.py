"""Iterative quantisation: rotated principal components.

Gong & Lazebnik, "Iterative quantization: a procrustean approach to learning binary codes", CVPR 2011. Shapes: N images,
D feature dimensions, B bits.
"""

from __future__ import annotations

from typing import Self

from hashlight.encoders.fits.components import principal_components, quantising_rotation
from hashlight.encoders.fits.hashers import Features, LinearHasher, check_components, check_features


class ITQ(LinearHasher):
    """Principal components, rotated to minimise the quantisation error of taking signs.

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
            Seed of the initial rotation.
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
        component_DB = principal_components(feature_ND - mean_D, bits)
        rotation_BB = quantising_rotation((feature_ND - mean_D) @ component_DB, seed, iterations)
        return cls(component_DB @ rotation_BB, mean_D)
