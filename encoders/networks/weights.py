"""Files of weights: read, taken out of what training programs wrap around them, and loaded."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbone import first_words

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# Where checkpoints keep the state dict, and what wrappers of a network put before its names.
_HOLDERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "model.", "_orig_mod.")


def is_file_of_weights(weights: str | None) -> bool:
    """Whether `weights` is a file, not a name that a backbone knows."""
    return weights is not None and weights.endswith(FILE_SUFFIXES)


def load_weights(network: nn.Module, path: Path, name: str, *, without: Collection[str] = ()) -> None:
    """Load a file of weights into a network.

    Parameters
    ----------
    network : nn.Module
    path : Path
        A safetensors file or torch's: a state dict, or a checkpoint that holds one as `state_dict`, `model` or
        `model_state_dict`, with or without `module.` or `model.` before all names.
    name : str
        Of the network, for messages.
    without : collection of str
        Paths of modules that the network lacks, whose weights in the file are left out.

    Raises
    ------
    EncoderError
        If the file cannot be read, or does not fit.
    """
    expected = network.state_dict()
    state = _without_prefix(_state_of(_read(path), path), expected)
    state = {key: value for key, value in state.items() if not any(_is_within(key, module) for module in without)}
    try:
        network.load_state_dict(state)
    except RuntimeError as exc:
        raise EncoderError(
            f"the weights in {path} do not fit {name}: {first_words(exc)}; pass the file that was saved from this model"
        ) from exc


def _is_within(key: str, module: str) -> bool:
    return key.startswith(f"{module}.")


def _read(path: Path) -> Any:
    if not path.is_file():
        raise EncoderError(f"`weights` must be an existing file, {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as exc:
        raise EncoderError(f"{path} is not a readable file of weights: {first_words(exc)}") from exc


def _state_of(found: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in what a file holds."""
    state = found
    while isinstance(state, dict) and not _is_state(state):
        holder = next((name for name in _HOLDERS if isinstance(state.get(name), dict)), None)
        if holder is None:
            break
        state = state[holder]
    if not _is_state(state):
        names = f" with {', '.join(map(str, list(found)[:5]))}" if isinstance(found, dict) else ""
        raise EncoderError(
            f"{path} must hold a state dict (names to tensors), by itself or as {', '.join(_HOLDERS)}, got "
            f"{type(found).__name__}{names}"
        )
    return dict(state)


def _is_state(found: object) -> bool:
    return isinstance(found, dict) and bool(found) and all(isinstance(value, torch.Tensor) for value in found.values())


def _without_prefix(state: dict[str, torch.Tensor], expected: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Take off what a wrapper put before all names, unless the network's own begin so."""
    while prefix := next((name for name in _PREFIXES if all(key.startswith(name) for key in state)), ""):
        if not state or any(key.startswith(prefix) for key in expected):
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
