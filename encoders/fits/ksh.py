"""Supervised hashing with kernels.

Liu, Wang, Ji, Jiang & Chang, "Supervised hashing with kernels", CVPR 2012.

Shapes: N images, D feature dimensions, C classes, B bits, M anchors, L images that pairs are taken from.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from hashlight.encoders.fits.anchors import draw_anchors, prepare, solve, threads_for, with_ridge
from hashlight.encoders.fits.hashers import Classes, Features, FloatArray, KernelHasher, gaussian_kernel

_KSH_STEPS = 200

KSH_ANCHORS = 300
KSH_LABELLED = 1000


class KSH(KernelHasher):
    """Kernel hash functions, each fitted to the similarities that the earlier ones left unexplained.

    Liu, Wang, Ji, Jiang & Chang, "Supervised hashing with kernels", CVPR 2012: code inner products divided by
    B approximate the similarities of labelled pairs; each bit starts at the spectral relaxation and is then optimised
    through smooth sigmoids.
    """

    @classmethod
    def fit(
        cls,
        features: Features,
        bits: int,
        seed: int = 0,
        *,
        class_NC: Classes,
        anchors: int = KSH_ANCHORS,
        labelled: int = KSH_LABELLED,
    ) -> Self:
        """Fit one bit after another.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        bits : int
        seed : int
            Seed for drawing the anchors and the labelled images.
        class_NC : ndarray or scipy.sparse array of 0 and 1, shape (N, C)
            Images that share a class are similar.
        anchors, labelled : int
            Maximum numbers; at most the number of images. Time grows with the square of `labelled`.

        Raises
        ------
        ValueError
            If the classes do not fit the features.
        """
        feature_ND, label_NC, rng = prepare(features, bits, seed, class_NC)
        anchor_MD, scale = draw_anchors(feature_ND, anchors, rng)
        row_L = rng.permutation(len(feature_ND))[:labelled]
        kernel_LM = gaussian_kernel(feature_ND[row_L], anchor_MD, scale)
        mean_M = kernel_LM.mean(axis=0)
        label_LC = label_NC[row_L]
        similar_LL = np.where((label_LC @ label_LC.T).toarray() > 0, 1.0, -1.0)
        with threads_for(similar_LL.size):
            weight_MB = _fit_bits(kernel_LM - mean_M, similar_LL, bits)
        return cls(weight_MB, -mean_M @ weight_MB, anchor_MD, scale)


def _fit_bits(kernel_LM: FloatArray, similar_LL: FloatArray, bits: int) -> FloatArray:
    """Greedily fit one direction after another to the residual similarities, (M, B)."""
    covariance_MM = with_ridge(kernel_LM.T @ kernel_LM)
    root_MM = np.asarray(np.linalg.cholesky(covariance_MM), np.float64)
    residual_LL = bits * similar_LL
    weight_MB = np.zeros((kernel_LM.shape[1], bits))
    for bit in range(bits):
        start_M = _spectral_direction(kernel_LM, residual_LL, root_MM)
        weight_MB[:, bit] = _best_direction(kernel_LM, residual_LL, start_M)
        sign_L = np.where(kernel_LM @ weight_MB[:, bit] > 0, 1.0, -1.0)
        residual_LL = residual_LL - np.outer(sign_L, sign_L)
    return weight_MB


def _spectral_direction(kernel_LM: FloatArray, residual_LL: FloatArray, root_MM: FloatArray) -> FloatArray:
    """Maximise a' K' R K a over |K a|^2 = L."""
    half_LM = solve(root_MM, kernel_LM.T).T
    _, vectors_MM = np.linalg.eigh(half_LM.T @ residual_LL @ half_LM)
    direction_M = solve(root_MM.T, vectors_MM[:, -1])
    length = float(np.linalg.norm(kernel_LM @ direction_M))
    return np.asarray(direction_M * np.sqrt(len(kernel_LM)) / max(length, np.finfo(np.float64).tiny))


def _best_direction(kernel_LM: FloatArray, residual_LL: FloatArray, start_M: FloatArray) -> FloatArray:
    """Maximise sum R_ij s(k_i a) s(k_j a), s = tanh(. / 2); return the start or the end, whichever has better signs.

    Nesterov's method, as in the paper, with an adaptive step.
    """
    here_M, before_M = start_M, start_M
    step = 1.0 / len(kernel_LM)
    value = _smooth_fit(kernel_LM, residual_LL, here_M)[0]
    for number in range(_KSH_STEPS):
        ahead_M = here_M + number / (number + 3) * (here_M - before_M)
        ahead_value, slope_M = _smooth_fit(kernel_LM, residual_LL, ahead_M)
        tried_M = ahead_M + step * slope_M
        tried = _smooth_fit(kernel_LM, residual_LL, tried_M)[0]
        while tried < ahead_value and step > 1e-12:
            step /= 2
            tried_M = ahead_M + step * slope_M
            tried = _smooth_fit(kernel_LM, residual_LL, tried_M)[0]
        if abs(tried - value) < 1e-6 * abs(value):
            break
        here_M, before_M, value, step = tried_M, here_M, tried, step * 1.2
    return max((start_M, here_M), key=lambda weight_M: _sign_fit(kernel_LM, residual_LL, weight_M))


def _smooth_fit(kernel_LM: FloatArray, residual_LL: FloatArray, weight_M: FloatArray) -> tuple[float, FloatArray]:
    soft_L = np.tanh(kernel_LM @ weight_M / 2)
    pulled_L = residual_LL @ soft_L
    return float(soft_L @ pulled_L), kernel_LM.T @ (pulled_L * (1 - soft_L**2))


def _sign_fit(kernel_LM: FloatArray, residual_LL: FloatArray, weight_M: FloatArray) -> float:
    sign_L = np.where(kernel_LM @ weight_M > 0, 1.0, -1.0)
    return float(sign_L @ residual_LL @ sign_L)
