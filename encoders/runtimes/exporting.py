"""From a model in torch to a network that ONNX Runtime runs, compared with it.

The network takes prepared pixels, (N, size, size, channels) uint8, and normalises them itself. Rounding differs from
torch's, so a bit whose output is next to zero may differ: such bits are counted on sample images.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.model import HashModel
from hashlight.encoders.networks.sources.from_onnx import OnnxNetwork
from hashlight.encoders.runtimes.joining import joined
from hashlight.encoders.runtimes.protocol import FEATURES, IMAGES, PIXELS, Runtime, Z

# The first opset in which everything that torchvision's classifiers use is one operator.
_OPSET = 17
# An output may differ by this share of the outputs' root mean square.
_MAX_ROUNDING = 1e-3


class Comparison(NamedTuple):
    """The bits of sample images in two runtimes.

    Attributes
    ----------
    images, bits : int
        How many were compared; of the bits, over all images.
    near_zero : int
        Bits that differ, all of which have an output next to zero.
    """

    images: int
    bits: int
    near_zero: int


class _Prepare(nn.Module):
    """The normalisation, as one multiplication and one addition."""

    scale: torch.Tensor
    shift: torch.Tensor
    order: torch.Tensor

    def __init__(self, preprocessing: Preprocessing):
        super().__init__()
        mean_C, std_C = (torch.tensor(part, dtype=torch.float64) for part in (preprocessing.mean, preprocessing.std))
        self.register_buffer("scale", (preprocessing.white / (255 * std_C)).float().view(-1, 1, 1))
        self.register_buffer("shift", (-mean_C / std_C).float().view(-1, 1, 1))
        self.register_buffer("order", torch.arange(preprocessing.channels).flip(0))
        self.is_turned = preprocessing.order == "bgr"

    def forward(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        """Return the network's input (N, C, H, W)."""
        if self.is_turned:
            pixels_NHWC = pixels_NHWC.index_select(-1, self.order)
        return pixels_NHWC.permute(0, 3, 1, 2).float() * self.scale + self.shift


class _PrepareChannelsLast(_Prepare):
    """The same for a network that takes (N, H, W, C)."""

    def forward(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        """Return the network's input (N, H, W, C)."""
        return super().forward(pixels_NHWC).permute(0, 2, 3, 1)


class _FromPixels(nn.Module):
    """A model with the normalisation before it."""

    def __init__(self, model: HashModel, preprocessing: Preprocessing):
        super().__init__()
        self.prepare = _Prepare(preprocessing)
        self.model = model

    def forward(self, pixels_NHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features and z."""
        feature_ND, z_NB = self.model(self.prepare(pixels_NHWC))
        return feature_ND, z_NB


def export(model: HashModel, preprocessing: Preprocessing) -> bytes:
    """Return the network as an ONNX file.

    Parameters
    ----------
    model : HashModel
        On a processor, in evaluation mode.
    preprocessing : Preprocessing

    Raises
    ------
    EncoderError
        If it has an operation that ONNX lacks.
    """
    rule, backbone = preprocessing, model.backbone
    example_NHWC = torch.zeros((2, rule.size, rule.size, rule.channels), dtype=torch.uint8)
    try:
        if not isinstance(backbone, OnnxNetwork):
            return _written(_FromPixels(model, rule), example_NHWC, [PIXELS], [FEATURES, Z])
        prepare = _PrepareChannelsLast(rule) if backbone.channels_last else _Prepare(rule)
        examples = example_NHWC, torch.zeros(2, model.feature_dim)
        return joined(backbone, prepare, model.hash_layer, examples, _written, _OPSET)
    except Exception as error:  # torch raises errors of many kinds for networks that it cannot trace.
        words = " ".join(str(error).split())[:300]
        raise EncoderError(f"the network cannot be exported to ONNX ({type(error).__name__}: {words})") from error


def _written(module: nn.Module, example: torch.Tensor, inputs: list[str], outputs: list[str]) -> bytes:
    """Return a module as an ONNX file whose first axes are free."""
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(), _plain_attention():
        # Tracing warns of sizes that it takes for constants, which those of the images are.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            file,  # type: ignore[arg-type]  # as of the exporter that is not the default
            dynamo=False,
            opset_version=_OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: {0: IMAGES} for name in (*inputs, *outputs)},
        )
    return file.getvalue()


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Compute attention by its parts: the one operator that torch has for all of it is not known to ONNX."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


def compare(exported: Runtime, original: Runtime, pixels_NHWC: NDArray[np.uint8]) -> Comparison:
    """Compare the bits of sample images.

    Raises
    ------
    EncoderError
        If an output differs by more than rounding.
    """
    num_images = len(pixels_NHWC)
    z_NB, expected_NB = (runtime.run(num_images, pixels_NHWC.__getitem__).z for runtime in (exported, original))
    bound = _MAX_ROUNDING * float(np.sqrt(np.mean(np.square(expected_NB, dtype=np.float64))))
    if wrong := int((~(np.abs(z_NB - expected_NB) <= bound)).sum()):
        raise EncoderError(
            f"the exported network computes something else: {wrong} of {z_NB.size} outputs for {num_images} images "
            f"differ by more than {bound:.2g}"
        )
    return Comparison(num_images, z_NB.size, int(((z_NB > 0) != (expected_NB > 0)).sum()))
