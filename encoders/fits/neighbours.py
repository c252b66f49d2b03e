"""A linear layer whose codes keep the neighbours that the features have: learned without labels, started from ITQ.

Shapes: N images, D feature dimensions, P principal components, B bits, J neighbours, R rows of a batch.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.fits.components import leading_components, quantising_rotation
from hashlight.encoders.fits.hashers import Features, FloatArray, LinearHasher, check_components, check_features
from hashlight.encoders.fits.streaming import ArrayStream, Moments, Sample, Stream

# Images whose neighbours are learned, drawn at random: all pairs of them are compared.
LEARNED_ROWS = 20_000
NEIGHBOURS = 10

_COMPONENTS = 256
_STEPS = 120
_BATCH_ROWS = 500
_RATE = 0.03
_TEMPERATURE = 0.07
_FIRST_DECAY, _SECOND_DECAY, _EPSILON = 0.9, 0.999, 1e-8  # Adam's
_COMPARED_ROWS = 1024  # at a time

_Single = NDArray[np.float32]


class Neighbours(LinearHasher):
    """A linear layer trained so that the nearest features have the nearest codes.

    With h = tanh(W'y + c) for the principal components y of the features, the loss is the cross-entropy between the
    `NEIGHBOURS` nearest other images by cosine of the features, equally likely, and the softmax of the inner products
    <h_i, h_j> / (0.07 B) over all other images (a contrastive loss, as InfoNCE, with neighbours in the place of
    augmented views). W begins as ITQ's, with projections of deviation 1.
    """

    @classmethod
    def fit(cls, features: Features, bits: int, seed: int = 0, iterations: int = 50) -> Self:
        """Fit the layer; see `fit_stream`."""
        return cls.fit_stream(ArrayStream(check_features(features)), bits, seed, iterations)

    @classmethod
    def fit_stream(cls, features: Stream, bits: int, seed: int = 0, iterations: int = 50) -> Self:
        """Fit to features that need not fit in memory, in one pass.

        The components are those of all rows. The layer is trained on `LEARNED_ROWS` of them, or on all if there are
        fewer: below some 2,000, ITQ is better.

        Parameters
        ----------
        features : Stream
        bits : int
            At most D: each bit starts from a principal component.
        seed : int
            Seed of the rows that are drawn, of the initial rotation, and of the batches.
        iterations : int
            Of the initial rotation, as in `ITQ.fit`.

        Raises
        ------
        ValueError
            If there are more bits than feature dimensions, or fewer than two rows.
        """
        check_components(bits, features.dims, "neighbours")
        moments, sample = Moments(features.dims), Sample(LEARNED_ROWS, features.dims, seed)
        for feature_RD in features:
            moments.add(feature_RD)
            sample.add(feature_RD)
        component_DP = leading_components(moments.covariance, max(bits, min(_COMPONENTS, features.dims)))
        return cls._trained(sample.rows, moments.mean, component_DP, bits, seed, iterations)

    @classmethod
    def _trained(
        cls, row_ND: FloatArray, mean_D: FloatArray, component_DP: FloatArray, bits: int, seed: int, iterations: int
    ) -> Self:
        """Return the layer that was trained on some rows."""
        if len(row_ND) < 2:
            raise ValueError(f"`features` must have at least 2 rows for neighbours, got {len(row_ND)}: use LSH")
        y_NP = (row_ND - mean_D) @ component_DP
        scale = max(float(np.sqrt((y_NP**2).sum(axis=1).mean())), float(np.finfo(np.float32).tiny))
        y_NP /= scale
        rotation_BB = quantising_rotation(y_NP[:, :bits], seed, iterations)
        deviation_B = (y_NP[:, :bits] @ rotation_BB).std(axis=0)
        start_PB = np.zeros((component_DP.shape[1], bits))
        start_PB[:bits] = rotation_BB / np.where(deviation_B > 1e-6 * deviation_B.max(), deviation_B, 1.0)
        nearest_NJ = nearest_by_cosine(row_ND.astype(np.float32), min(NEIGHBOURS, len(row_ND) - 1))
        layer = _train(y_NP.astype(np.float32), nearest_NJ, start_PB.astype(np.float32), seed)
        weight_DB = component_DP @ layer.weight / scale
        # The projection is (feature - mean) @ weight: the mean takes the bias in.
        return cls(weight_DB, mean_D - np.linalg.lstsq(weight_DB.T, layer.bias.astype(np.float64), rcond=None)[0])


class _Layer(NamedTuple):
    """The weight (P, B) and the bias (B,) of a layer, or their gradients."""

    weight: _Single
    bias: _Single


def nearest_by_cosine(row_ND: _Single, count: int) -> NDArray[np.intp]:
    """Return the rows (N, J) of largest cosine with each row, itself left out, exactly, in no order."""
    length_N = np.linalg.norm(row_ND, axis=1, keepdims=True)
    unit_ND = row_ND / np.maximum(length_N, np.finfo(np.float32).tiny)
    nearest_NJ = np.empty((len(row_ND), count), np.intp)
    for start in range(0, len(row_ND), _COMPARED_ROWS):
        stop = min(start + _COMPARED_ROWS, len(row_ND))
        cosine_RN = unit_ND[start:stop] @ unit_ND.T
        cosine_RN[np.arange(stop - start), np.arange(start, stop)] = -np.inf
        nearest_NJ[start:stop] = np.argpartition(cosine_RN, -count, axis=1)[:, -count:]
    return nearest_NJ


def _train(y_NP: _Single, nearest_NJ: NDArray[np.intp], start_PB: _Single, seed: int) -> _Layer:
    """Train by Adam (Kingma & Ba, ICLR 2015), with a rate that falls to 0 along half a cosine."""
    rng = np.random.default_rng((seed, 1))
    layer = _Layer(start_PB, np.zeros(start_PB.shape[1], np.float32))
    moments = [(np.zeros_like(part), np.zeros_like(part)) for part in layer]
    for step in range(1, _STEPS + 1):
        batch_R = rng.permutation(len(y_NP))[:_BATCH_ROWS]
        gradient = _gradient(layer, y_NP, nearest_NJ, batch_R)
        rate = _RATE * (1 + np.cos(np.pi * (step - 1) / _STEPS)) / 2
        for part, slope, (first, second) in zip(layer, gradient, moments, strict=True):
            first += (1 - _FIRST_DECAY) * (slope - first)
            second += (1 - _SECOND_DECAY) * (slope**2 - second)
            size = np.sqrt(second / (1 - _SECOND_DECAY**step)) + _EPSILON
            part -= np.float32(rate / (1 - _FIRST_DECAY**step)) * first / size
    return layer


def _gradient(layer: _Layer, y_NP: _Single, nearest_NJ: NDArray[np.intp], batch_R: NDArray[np.intp]) -> _Layer:
    """Return the gradient of the mean loss of a batch, compared with all rows."""
    h_NB = np.tanh(y_NP @ layer.weight + layer.bias)
    sharpness = np.float32(1 / (_TEMPERATURE * h_NB.shape[1]))
    logit_RN = h_NB[batch_R] @ h_NB.T * sharpness
    place_R = np.arange(len(batch_R))
    logit_RN[place_R, batch_R] = -np.inf
    logit_RN -= logit_RN.max(axis=1, keepdims=True)
    # The gradient by the logits: what the softmax gives, less what it should give.
    excess_RN = np.exp(logit_RN, out=logit_RN)
    excess_RN /= excess_RN.sum(axis=1, keepdims=True)
    excess_RN[place_R[:, None], nearest_NJ[batch_R]] -= np.float32(1 / nearest_NJ.shape[1])
    excess_RN *= sharpness / np.float32(len(batch_R))
    slope_NB = excess_RN.T @ h_NB[batch_R]
    slope_NB[batch_R] += excess_RN @ h_NB
    slope_NB *= 1 - h_NB**2
    return _Layer(y_NP.T @ slope_NB, slope_NB.sum(axis=0))
