"""Iterative quantisation: rotated principal components.

Gong & Lazebnik, "Iterative quantization: a procrustean approach to learning binary codes", CVPR 2011. Shapes: N images,
D feature dimensions, B bits.
"""

from __future__ import annotations

from typing import Self

from hashlight.encoders.fits.components import leading_components, principal_components, quantising_rotation
from hashlight.encoders.fits.hashers import Features, LinearHasher, check_components, check_features
from hashlight.encoders.fits.streaming import Moments, Sample, Stream

# Rows that the rotation is fitted to, of a stream.
ROTATION_ROWS = 32_768


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

    @classmethod
    def fit_stream(cls, features: Stream, bits: int, seed: int = 0, iterations: int = 50) -> Self:
        """Fit to features that need not fit in memory, in one pass.

        The components are those of all rows, and the rotation is fitted to `ROTATION_ROWS` of them, drawn at random:
        with no more rows than that, the result is that of `fit`.

        Parameters
        ----------
        features : Stream
        bits, seed, iterations
            As in `fit`; the seed also draws the rows.

        Raises
        ------
        ValueError
            If there are more bits than feature dimensions, or no rows.
        """
        check_components(bits, features.dims, "ITQ")
        moments, sample = Moments(features.dims), Sample(ROTATION_ROWS, features.dims, seed)
        for feature_RD in features:
            moments.add(feature_RD)
            sample.add(feature_RD)
        mean_D = moments.mean
        component_DB = leading_components(moments.covariance, bits)
        rotation_BB = quantising_rotation((sample.rows - mean_D) @ component_DB, seed, iterations)
        return cls(component_DB @ rotation_BB, mean_D)
