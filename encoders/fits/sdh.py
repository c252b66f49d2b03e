"""Supervised discrete hashing.

Shen, Shen, Liu & Shen, "Supervised discrete hashing", CVPR 2015.

Shapes: N images, D feature dimensions, C classes, B bits, M anchors.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from hashlight.encoders.fits.anchors import draw_anchors, prepare, solve, threads_for, with_ridge
from hashlight.encoders.fits.hashers import Classes, Features, FloatArray, KernelHasher, gaussian_kernel

SDH_ANCHORS = 1000


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
        class_NC: Classes,
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
            Seed for drawing the anchors and the initial codes.
        class_NC : ndarray or scipy.sparse array of 0 and 1, shape (N, C)
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
        feature_ND, label_NC, rng = prepare(features, bits, seed, class_NC)
        anchor_MD, scale = draw_anchors(feature_ND, anchors, rng)
        kernel_NM = gaussian_kernel(feature_ND, anchor_MD, scale)
        solve_MM = with_ridge(kernel_NM.T @ kernel_NM)
        code_NB = np.where(rng.standard_normal((len(feature_ND), bits)) > 0, 1.0, -1.0)
        for _ in range(iterations):
            classifier_BC = solve(code_NB.T @ code_NB + ridge * np.eye(bits), (label_NC.T @ code_NB).T)
            map_MB = solve(solve_MM, kernel_NM.T @ code_NB)
            aim_NB = label_NC @ classifier_BC.T + fidelity * kernel_NM @ map_MB
            with threads_for(code_NB.size):
                code_NB = _descend_cyclically(code_NB, aim_NB, classifier_BC)
        map_MB = solve(solve_MM, kernel_NM.T @ code_NB)
        return cls(map_MB, np.zeros(bits), anchor_MD, scale)


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
