"""Supervised hashing through a Gaussian kernel to anchors.

Shapes: N images, D feature dimensions, C classes, B bits, M anchors, L images that pairs are taken from.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.fits.hashers import (
    Features,
    FloatArray,
    KernelHasher,
    check_bits,
    check_classes,
    check_features,
    gaussian_kernel,
    squared_distances,
)

# Relative to the mean diagonal of the kernel's covariance.
_RIDGE = 1e-6
_KSH_STEPS = 200

SDH_ANCHORS = 1000
KSH_ANCHORS = 300
KSH_LABELLED = 1000


class SDH(KernelHasher):
    """Codes from which a linear classifier predicts the labels, learned bit by bit without relaxation.

    Shen, Shen, Liu & Shen, "Supervised discrete hashing", CVPR 2015: minimise
    |Y - B W|^2 + lambda |W|^2 + nu |B - F(X)|^2 over codes B, classifier W and kernel map F in turn, the codes by
    discrete cyclic coordinate descent.
    """

    @classmethod
    def fit(
        cls,
        features: Features,
        bits: int,
        seed: int = 0,
        *,
        class_NC: NDArray[Any],
        anchors: int = SDH_ANCHORS,
        iterations: int = 5,
        ridge: float = 1.0,
        fidelity: float = 1e-5,
    ) -> Self:
        """Fit codes, classifier and map.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        bits : int
        seed : int
            Of the anchors and of the initial codes.
        class_NC : ndarray of 0 and 1, shape (N, C)
        anchors : int
            Maximum number; at most the number of images.
        iterations : int
        ridge, fidelity : float
            The paper's lambda and nu.

        Raises
        ------
        ValueError
            If the classes do not fit the features.
        """
        feature_ND, label_NC, rng = _prepare(features, bits, seed, class_NC)
        anchor_MD, scale = _draw_anchors(feature_ND, anchors, rng)
        kernel_NM = gaussian_kernel(feature_ND, anchor_MD, scale)
        solve_MM = _ridge(kernel_NM.T @ kernel_NM)
        code_NB = np.where(rng.standard_normal((len(feature_ND), bits)) > 0, 1.0, -1.0)
        for _ in range(iterations):
            classifier_BC = _solve(code_NB.T @ code_NB + ridge * np.eye(bits), code_NB.T @ label_NC)
            map_MB = _solve(solve_MM, kernel_NM.T @ code_NB)
            aim_NB = label_NC @ classifier_BC.T + fidelity * kernel_NM @ map_MB
            code_NB = _descend_cyclically(code_NB, aim_NB, classifier_BC)
        map_MB = _solve(solve_MM, kernel_NM.T @ code_NB)
        return cls(map_MB, np.zeros(bits), anchor_MD, scale)


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
        class_NC: NDArray[Any],
        anchors: int = KSH_ANCHORS,
        labelled: int = KSH_LABELLED,
    ) -> Self:
        """Fit one bit after another.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        bits : int
        seed : int
            Of the anchors and of the labelled images.
        class_NC : ndarray of 0 and 1, shape (N, C)
            Images that share a class are similar.
        anchors, labelled : int
            Maximum numbers; at most the number of images. Time grows with the square of `labelled`.

        Raises
        ------
        ValueError
            If the classes do not fit the features.
        """
        feature_ND, label_NC, rng = _prepare(features, bits, seed, class_NC)
        anchor_MD, scale = _draw_anchors(feature_ND, anchors, rng)
        row_L = rng.permutation(len(feature_ND))[:labelled]
        kernel_LM = gaussian_kernel(feature_ND[row_L], anchor_MD, scale)
        mean_M = kernel_LM.mean(axis=0)
        similar_LL = np.where(label_NC[row_L] @ label_NC[row_L].T > 0, 1.0, -1.0)
        weight_MB = _fit_bits(kernel_LM - mean_M, similar_LL, bits)
        return cls(weight_MB, -mean_M @ weight_MB, anchor_MD, scale)


def _prepare(
    features: Features, bits: int, seed: int, class_NC: NDArray[Any]
) -> tuple[FloatArray, FloatArray, np.random.Generator]:
    check_bits(bits)
    feature_ND = check_features(features)
    return feature_ND, check_classes(class_NC, len(feature_ND)), np.random.default_rng(seed)


def _draw_anchors(feature_ND: FloatArray, anchors: int, rng: np.random.Generator) -> tuple[FloatArray, float]:
    """Draw images as anchors. The kernel's scale is 1 / (2 sigma^2), with sigma^2 the mean squared distance to them."""
    anchor_MD = feature_ND[np.sort(rng.permutation(len(feature_ND))[:anchors])]
    mean = float(squared_distances(feature_ND[:: max(1, len(feature_ND) // 1000)], anchor_MD).mean())
    return anchor_MD, 1.0 / (2.0 * max(mean, float(np.finfo(np.float32).tiny)))


def _solve(matrix_MM: FloatArray, right_MB: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.solve(matrix_MM, right_MB), np.float64)


def _ridge(matrix_MM: FloatArray) -> FloatArray:
    return matrix_MM + _RIDGE * float(np.trace(matrix_MM)) / len(matrix_MM) * np.eye(len(matrix_MM))


def _descend_cyclically(
    code_NB: FloatArray, aim_NB: FloatArray, classifier_BC: FloatArray, cycles: int = 10
) -> FloatArray:
    """Set one bit of all codes at a time to its best value given the others, until none changes."""
    code_NB = code_NB.copy()
    overlap_BB = classifier_BC @ classifier_BC.T
    np.fill_diagonal(overlap_BB, 0.0)
    for _ in range(cycles):
        before_NB = code_NB.copy()
        for bit in range(code_NB.shape[1]):
            code_NB[:, bit] = np.where(aim_NB[:, bit] - code_NB @ overlap_BB[:, bit] > 0, 1.0, -1.0)
        if (code_NB == before_NB).all():
            break
    return code_NB


def _fit_bits(kernel_LM: FloatArray, similar_LL: FloatArray, bits: int) -> FloatArray:
    """Greedily fit one direction after another to the residual similarities, (M, B)."""
    covariance_MM = _ridge(kernel_LM.T @ kernel_LM)
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
    half_LM = _solve(root_MM, kernel_LM.T).T
    _, vectors_MM = np.linalg.eigh(half_LM.T @ residual_LL @ half_LM)
    direction_M = _solve(root_MM.T, vectors_MM[:, -1])
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
