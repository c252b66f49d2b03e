"""The export of a model whose backbone is an ONNX file: the file between what torch exports before and after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from onnx import compose, version_converter
from torch import nn

from hashlight.encoders.networks.sources.from_onnx import OnnxNetwork
from hashlight.encoders.runtimes.protocol import FEATURES, PIXELS, Z

_IMAGE, _FEATURE = "image", "feature"
_LATEST_IR = 10


class _Flat(nn.Module):
    """Features of any shape to (N, D), with the hash layer's outputs."""

    def __init__(self, hash_layer: nn.Module):
        super().__init__()
        self.hash_layer = hash_layer

    def forward(self, feature: Any) -> tuple[Any, Any]:
        """Return features and z."""
        feature_ND = feature.flatten(1)
        # A copy: an output may not be an input.
        return feature_ND * 1.0, self.hash_layer(feature_ND)


def joined(
    network: OnnxNetwork,
    prepare: nn.Module,
    hash_layer: nn.Module,
    examples: tuple[Any, Any],
    write: Callable[[nn.Module, Any, list[str], list[str]], bytes],
    opset: int,
) -> bytes:
    """Return one ONNX file of preparation, network and hash layer.

    Parameters
    ----------
    network : OnnxNetwork
    prepare, hash_layer : nn.Module
    examples : pair of Tensor
        An input of each.
    write : callable
        Exports a module by torch, given an input and the names of inputs and outputs.
    opset : int
        Of what `write` exports.

    Raises
    ------
    Exception
        Of any kind, if the file cannot be brought to the opset.
    """
    middle = version_converter.convert_version(onnx.load_from_string(network.content()), opset)
    parts = [
        onnx.load_from_string(write(prepare, examples[0], [PIXELS], [_IMAGE])),
        compose.add_prefix(middle, "network/"),
        onnx.load_from_string(write(_Flat(hash_layer), examples[1], [_FEATURE], [FEATURES, Z])),
    ]
    for part, prefix in ((parts[0], "before/"), (parts[2], "after/")):
        part.CopyFrom(compose.add_prefix(part, prefix, rename_inputs=False, rename_outputs=False))
    for part in parts:
        part.ir_version = _LATEST_IR
    image = [(_IMAGE, f"network/{network.input_name}")]
    feature = [(f"network/{network.output_name}", _FEATURE)]
    whole = compose.merge_models(compose.merge_models(parts[0], parts[1], io_map=image), parts[2], io_map=feature)
    return bytes(whole.SerializeToString())
