"""Continuation: how beta in tanh(beta z) rises until relaxed codes equal their signs. Pure functions of progress.

HashNet (Cao et al., ICCV 2017, arXiv 1702.00758), section 3.2: train with a smooth activation, then sharpen it in
stages, each starting from the weights of the previous one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float, float], float]

NUM_STAGES = 10
_RELEASED_ITERATIONS = 10_000
_RELEASED_REFRESH = 200
_RELEASED_GROWTH = 0.005


def stages(progress: float, final_beta: float) -> float:
    """Ten stages of equal length with beta rising from 1 to `final_beta` by equal ratios: the paper's algorithm 1.

    The paper does not fix the sequence. tanh(beta z) is already steep at a beta of 4, so equal steps would spend all
    stages but the first where gradients have nearly vanished; with equal ratios, half of the stages are below sqrt(30).

    Parameters
    ----------
    progress : float
        Fraction of the training that is done, 0 to 1.
    final_beta : float
        Beta of the last stage.
    """
    stage = min(int(_checked(progress) * NUM_STAGES), NUM_STAGES - 1)
    return float(final_beta ** (stage / (NUM_STAGES - 1)))


def released(progress: float, final_beta: float) -> float:
    """Square-root rise in 50 small steps: the curve of the authors' code, scaled to end at `final_beta`.

    Their code uses beta = sqrt(1 + 0.005 i), updated every 200 of 10,000 iterations, which is this function with a
    `final_beta` of 7.07, `FINAL_BETAS["released"]`.
    """
    last = _RELEASED_ITERATIONS - _RELEASED_REFRESH
    iteration = min(int(_checked(progress) * _RELEASED_ITERATIONS) // _RELEASED_REFRESH * _RELEASED_REFRESH, last)
    return math.sqrt(1.0 + (final_beta**2 - 1.0) * iteration / last)


def constant(progress: float, final_beta: float) -> float:
    """`final_beta` from the first step: no continuation."""
    _checked(progress)
    return final_beta


SCHEDULES: dict[str, Schedule] = {"stages": stages, "released": released, "constant": constant}

# Default final betas: sqrt(1 + 0.005 * 9,800) = 7.07 in the authors' code; for the others, the value at which 99 % of
# |tanh(beta z)| were above 0.99 on Fashion-MNIST.
FINAL_BETAS = {
    "stages": 30.0,
    "released": math.sqrt(1.0 + _RELEASED_GROWTH * (_RELEASED_ITERATIONS - _RELEASED_REFRESH)),
    "constant": 30.0,
}


def _checked(progress: float) -> float:
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"`progress` must be 0 to 1, got {progress}")
    return progress
