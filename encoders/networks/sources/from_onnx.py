"""Networks as ONNX files: "onnx:FILE", or "onnx:FILE#TENSOR" for features before the last layer.

The file becomes part of the encoder's weights. Such a network is not trained further; a hash layer is trained on, or
fitted to, its features.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbone import Backbone, first_words, probe

logger = logging.getLogger(__name__)

# Of several outputs, the one that is one row for each image, by the names that exporters give it.
_FEATURE_NAMES = ("image_embeds", "pooler_output", "embeddings", "embedding", "features")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class OnnxNetwork(nn.Module):
    """Runs an ONNX file in ONNX Runtime, on processors.

    Parameters
    ----------
    network : bytes
    input_name, output_name : str
    channels_last : bool
        Whether the input is (N, H, W, C).
    one_by_one : bool
        Whether the file takes one image a call.
    """

    network: torch.Tensor

    def __init__(self, network: bytes, *, input_name: str, output_name: str, channels_last: bool, one_by_one: bool):
        super().__init__()
        self.input_name, self.output_name = input_name, output_name
        self.channels_last, self.one_by_one = channels_last, one_by_one
        self.register_buffer("network", torch.from_numpy(np.frombuffer(network, np.uint8).copy()))
        self._session: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the session, which is of its process."""
        return self.__dict__ | {"_session": None}

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return features (N, D)."""
        image = image_NCHW.detach().float().cpu()
        image = image.permute(0, 2, 3, 1) if self.channels_last else image
        given = np.ascontiguousarray(image.numpy())
        parts = [given[row : row + 1] for row in range(len(given))] if self.one_by_one else [given]
        found = [self._running().run([self.output_name], {self.input_name: part})[0] for part in parts]
        feature_ND = torch.from_numpy(np.concatenate(found).astype(np.float32, copy=False)).flatten(1)
        return feature_ND.to(image_NCHW.device)

    def content(self) -> bytes:
        """Return the file."""
        return self.network.cpu().numpy().tobytes()

    def _running(self) -> Any:
        if self._session is None:
            options = ort.SessionOptions()
            # A call computes on the thread that makes it, whatever their number.
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.use_deterministic_compute = True
            options.log_severity_level = 3
            self._session = ort.InferenceSession(self.content(), options, providers=["CPUExecutionProvider"])
        return self._session


def build(what: str, weights: str | None) -> Backbone:
    """Read the file, and the preprocessing beside it; see `Source`."""
    location, _, tensor = what.partition("#")
    path = Path(location)
    if weights is not None:
        raise EncoderError(f"`weights` must be None for onnx:{what}, got {weights!r}: the file has its weights")
    model = _read(path)
    input_name, shape = _input_of(model, path)
    channels_last = shape[3] in (1, 3) and shape[1] not in (1, 3)
    _, height, width, channels = shape if channels_last else (shape[0], shape[2], shape[3], shape[1])
    output_name = _output_of(model, path, tensor)
    rule = _preprocessing(path, height, width, channels)
    network = OnnxNetwork(
        _cut_at(model, output_name, path),
        input_name=input_name,
        output_name=output_name,
        channels_last=channels_last,
        one_by_one=shape[0] == 1,
    )
    name = f"onnx:{path.name}" + (f"#{tensor}" if tensor else "")
    feature_dim = probe(network, rule, name)
    architecture = {
        "bytes": len(network.network),
        "input": input_name,
        "output": output_name,
        "channels_last": channels_last,
        "one_by_one": network.one_by_one,
        "feature_dim": feature_dim,
        "preprocessing": rule.to_dict(),
    }
    return Backbone(
        network=network,
        feature_dim=feature_dim,
        preprocessing=rule,
        name=name,
        pretrained=True,
        architecture=architecture,
    )


def rebuild(what: str, architecture: Mapping[str, Any]) -> Backbone:
    """Return the network before its file is loaded into it; see `Source`."""
    network = OnnxNetwork(
        bytes(architecture["bytes"]),
        input_name=architecture["input"],
        output_name=architecture["output"],
        channels_last=architecture["channels_last"],
        one_by_one=architecture["one_by_one"],
    )
    return Backbone(
        network=network,
        feature_dim=architecture["feature_dim"],
        preprocessing=Preprocessing.from_dict(architecture["preprocessing"]),
        name=f"onnx:{what}",
        pretrained=True,
        architecture=architecture,
    )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise EncoderError(f"there is no ONNX file at {path}")
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's errors and onnx's have no common class.
        raise EncoderError(f"{path} is not a readable ONNX file: {first_words(error)}") from error


def _input_of(model: Any, path: Path) -> tuple[str, list[int | None]]:
    """Return the name of the only input and its shape of four, None where it is free."""
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in given]
    shapes = [_shape_of(value) for value in inputs]
    is_float = [value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in inputs]
    if len(inputs) != 1 or len(shapes[0]) != 4 or not is_float[0] or shapes[0][0] not in (None, 1):
        said = ", ".join(f"{value.name} {shape}" for value, shape in zip(inputs, shapes, strict=True))
        raise EncoderError(
            f"{path} must take one batch of images of float32, (N, C, H, W) or (N, H, W, C), with N free or 1, got "
            f"{said}"
        )
    return inputs[0].name, shapes[0]


def _shape_of(value: Any) -> list[int | None]:
    return [axis.dim_value or None for axis in value.type.tensor_type.shape.dim]


def _output_of(model: Any, path: Path, tensor: str) -> str:
    """Return the name of the features."""
    outputs = {value.name: _shape_of(value) for value in model.graph.output}
    if tensor:
        known = {name for node in model.graph.node for name in node.output}
        if tensor not in known:
            raise EncoderError(f"{path} has no tensor {tensor!r}; its last: {', '.join(_last_tensors(model))}")
        return tensor
    rows = [name for name, shape in outputs.items() if len(shape) == 2 or (len(shape) == 4 and shape[2:] == [1, 1])]
    chosen = [name for name in _FEATURE_NAMES if name in rows] or rows or list(outputs)
    if len(chosen) > 1 and chosen[0] not in _FEATURE_NAMES:
        raise EncoderError(f"{path} has the outputs {', '.join(outputs)}: choose one by onnx:{path}#NAME")
    return chosen[0]


def _last_tensors(model: Any) -> list[str]:
    return [name for node in list(model.graph.node)[-8:] for name in node.output if name]


def _cut_at(model: Any, output_name: str, path: Path) -> bytes:
    """Return the file with the features as its only output, and without what comes after them."""
    needed, nodes = {output_name}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input, *(_names_within(attribute) for attribute in node.attribute))
            nodes.append(node)
    shapes = {value.name: value for value in (*model.graph.output, *model.graph.value_info)}
    output = shapes.get(output_name) or onnx.helper.make_tensor_value_info(output_name, onnx.TensorProto.FLOAT, None)
    weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    for field, values in (("node", nodes[::-1]), ("initializer", weights), ("output", [output])):
        kept.graph.ClearField(field)
        getattr(kept.graph, field).extend(values)
    kept.graph.ClearField("value_info")
    try:
        return bytes(kept.SerializeToString())
    except Exception as error:  # protobuf's, of which none has more than 2 GiB.
        raise EncoderError(f"{path} is too large for one file: {first_words(error)}") from error


def _names_within(attribute: Any) -> set[str]:
    """Return the names that the graphs in a node's attribute, such as the branches of an If, use."""
    graphs = [attribute.g, *attribute.graphs]
    return {name for graph in graphs for node in graph.node for name in node.input} | {
        name for graph in graphs for node in graph.node for within in node.attribute for name in _names_within(within)
    }


def _preprocessing(path: Path, height: int | None, width: int | None, channels: int | None) -> Preprocessing:
    """Return what the file beside the network says, or ImageNet's, for the size of its input."""
    beside = path.with_suffix(".json")
    if beside.is_file():
        try:
            return Preprocessing.from_dict(json.loads(beside.read_bytes()))
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise EncoderError(f"{beside} is not a preprocessing: {first_words(error)}") from error
    if height is None or height != width or channels not in (1, 3):
        raise EncoderError(
            f"{path} does not say the size of its images ({height} x {width}, {channels} channels): write it to "
            f'{beside}, as {{"size": 224, "channels": 3, "mean": [...], "std": [...]}}'
        )
    logger.warning(
        "%s does not say how its images are prepared: taking ImageNet's mean and deviation, and the centre, unless %s "
        "says otherwise",
        path,
        beside.name,
    )
    mean, std = (_IMAGENET_MEAN, _IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
    return Preprocessing(
        size=height, channels=channels, mean=mean, std=std, fit="crop", resize=round(height * 8 / 7), draft=2
    )
