"""Random hyperplanes.

Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002.

Shapes: N images, D feature dimensions, B bits.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from hashlight.encoders.fits.hashers import Features, LinearHasher, check_bits, check_features


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
