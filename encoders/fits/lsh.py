"""Random hyperplanes.

Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002.

Shapes: N images, D feature dimensions, B bits.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from hashlight.encoders.fits.hashers import Features, FloatArray, LinearHasher, check_bits, check_features
from hashlight.encoders.fits.streaming import Mean, Stream


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
        return cls._drawn(check_features(features).mean(axis=0), bits, seed)

    @classmethod
    def fit_stream(cls, features: Stream, bits: int, seed: int = 0) -> Self:
        """Draw `bits` directions, with the mean of one pass over the features; see `fit`."""
        check_bits(bits)
        moments = Mean(features.dims)
        for feature_RD in features:
            moments.add(feature_RD)
        return cls._drawn(moments.mean, bits, seed)

    @classmethod
    def _drawn(cls, mean_D: FloatArray, bits: int, seed: int) -> Self:
        check_bits(bits)
        return cls(np.random.default_rng(seed).standard_normal((len(mean_D), bits)), mean_D)
