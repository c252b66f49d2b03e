"""Shared by ITQ, ITQ-CCA and spectral hashing: principal components, and the rotation that quantises best.

Shapes: N images, D feature dimensions, B bits.
"""

from __future__ import annotations

import numpy as np

from hashlight.encoders.fits.hashers import FloatArray


def principal_components(centred_ND: FloatArray, bits: int) -> FloatArray:
    """Return the `bits` directions of largest variance, (D, B)."""
    return leading_components(centred_ND.T @ centred_ND / len(centred_ND), bits)


def leading_components(covariance_DD: FloatArray, bits: int) -> FloatArray:
    """Return the `bits` directions of largest variance, (D, B), of rows that have this covariance."""
    _, vectors_DD = np.linalg.eigh(covariance_DD)
    return np.ascontiguousarray(vectors_DD[:, ::-1][:, :bits])


def quantising_rotation(projected_NB: FloatArray, seed: int, iterations: int) -> FloatArray:
    """Alternate between taking signs and finding the rotation that best fits them (Procrustes)."""
    bits = projected_NB.shape[1]
    rotation_BB = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))[0]
    for _ in range(iterations):
        sign_NB = np.where(projected_NB @ rotation_BB > 0, 1.0, -1.0)
        left_BB, _, right_BB = np.linalg.svd(projected_NB.T @ sign_NB)
        rotation_BB = left_BB @ right_BB
    return rotation_BB
