"""The stages of a backbone, from the image to the features: what is frozen, and what learns more slowly.

A stage is a convolution or dense layer with its normalisation, or a block, of whatever kind the network consists of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_JOINING = (_NormBase, nn.GroupNorm, nn.LayerNorm)


class Stage(NamedTuple):
    """Neighbouring modules of a backbone, and their weights."""

    modules: list[nn.Module]
    weights: list[nn.Parameter]


def stages_of(network: nn.Module) -> list[Stage]:
    """Return the stages of a network, the first ones first.

    A weight that belongs to no module of its own, such as the position embedding of a transformer, is in the first
    stage.
    """
    stages: list[Stage] = []
    for module in _pieces(network):
        weights = list(module.parameters())
        if not stages or (weights and not isinstance(module, _JOINING)):
            stages.append(Stage([], []))
        stages[-1].modules.append(module)
        stages[-1].weights.extend(weights)
    known = {id(weight) for stage in stages for weight in stage.weights}
    loose = [weight for weight in network.parameters() if id(weight) not in known]
    if loose:
        stages[0].weights[:0] = loose
    return stages


def _pieces(module: nn.Module) -> Iterator[nn.Module]:
    """Walk the modules of a network, those of sequences and lists one by one."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from _pieces(child)
        else:
            yield child
