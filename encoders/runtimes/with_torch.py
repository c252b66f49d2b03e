"""A model in torch, with numbers that depend on neither the rest of the batch nor the number of threads.

Floating point sums depend on their order, and libraries choose the order by shape and thread count. Measured with
torch 2.13 (oneDNN convolutions, MKL products) on a 2-core Xeon with AVX-512, images shuffled through the batch:

- at one fixed batch shape and one thread, an image's outputs are bitwise the same at every position and with any
  neighbours (small-cnn, resnet18, mobilenet_v3_small, efficientnet_b0, vit_b_16);
- with two threads instead of one, the last digits of every image's outputs change in small-cnn, mobilenet_v3_small
  and efficientnet_b0, because products are split differently.

So the model always runs at one fixed shape, padded, on one thread; several cores run several batches in parallel.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.networks.backbones import rebuild_backbone
from hashlight.encoders.networks.heads import build_head
from hashlight.encoders.networks.model import HashModel
from hashlight.encoders.runtimes.protocol import Outputs, PixelsOf, padded
from hashlight.encoders.runtimes.threads import run_batches

# torch's thread count (for MKL) is global to the process, so only one caller at a time may change it.
_one_thread_lock = threading.Lock()

# On a GPU, larger batches gain nothing and take memory that other processes may need.
_GPU_BATCH = 256


class TorchRuntime:
    """Runs a model on a processor or a GPU.

    Parameters
    ----------
    model : HashModel
        The runtime takes ownership and puts it in evaluation mode.
    preprocessing : Preprocessing
    batch_size : int
        On a processor.
    device : str
    """

    def __init__(self, model: HashModel, preprocessing: Preprocessing, batch_size: int, device: str = "cpu"):
        self._device = torch.device(device)
        model = model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.model: HashModel = model.to(self._device)
        self._preprocessing = preprocessing
        self._batch_size = batch_size if self._device.type == "cpu" else _GPU_BATCH

    @property
    def feature_dim(self) -> int:
        """Number of features."""
        return self.model.feature_dim

    @property
    def batch_size(self) -> int:
        """How many images one call computes."""
        return self._batch_size

    @property
    def images_at_once(self) -> int:
        """How many images are computed at a time, by all threads."""
        return self._batch_size * (torch.get_num_threads() if self._device.type == "cpu" else 1)

    def run(self, num_images: int, pixels_of: PixelsOf) -> Outputs:
        """Return the outputs for N images; see `Runtime`."""
        if self._device.type == "cpu":
            return self._run_on_processor(num_images, pixels_of)
        return self._run_on_gpu(num_images, pixels_of)

    def run_texts(self, texts: Sequence[str]) -> Outputs:
        """Return the outputs for N texts, each computed by itself, so that it depends on no other."""
        outputs = Outputs.empty(len(texts), self.feature_dim, self.model.bits)
        text_tower = self.model.text
        assert text_tower is not None, "the encoder has checked that there is one"
        with _one_thread_each(), torch.inference_mode():
            for row, text in enumerate(texts):
                feature_ND = text_tower([text])
                outputs.features[row], outputs.z[row] = (
                    feature_ND[0].numpy(),
                    self.model.hash_layer(feature_ND)[0].numpy(),
                )
        return outputs

    def _run_on_processor(self, num_images: int, pixels_of: PixelsOf) -> Outputs:
        outputs = Outputs.empty(num_images, self.feature_dim, self.model.bits)
        size = self._batch_size

        def run(index: int) -> None:
            rows = slice(index * size, min((index + 1) * size, num_images))
            pixels_NHWC = torch.from_numpy(padded(pixels_of(rows), size))
            for column, part in zip(outputs, self._forward(pixels_NHWC), strict=True):
                column[rows] = part[: rows.stop - rows.start].numpy()

        with _one_thread_each() as num_threads:
            # OpenMP's thread count is a setting of each thread.
            run_batches(run, -(-num_images // size), num_threads, prepare=lambda: torch.set_num_threads(1))
        return outputs

    def _run_on_gpu(self, num_images: int, pixels_of: PixelsOf) -> Outputs:
        """Fill one of two buffers while the GPU copies from the other and computes."""
        outputs = Outputs.empty(num_images, self.feature_dim, self.model.bits)
        rule, size = self._preprocessing, self._batch_size
        shape = (size, rule.size, rule.size, rule.channels)
        buffers = [torch.zeros(shape, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        copied = [torch.cuda.Event() for _ in buffers]  # type: ignore[no-untyped-call]
        parts: list[tuple[slice, tuple[torch.Tensor, torch.Tensor]]] = []
        with torch.cuda.device(self._device):
            for index in range(-(-num_images // size)):
                rows = slice(index * size, min((index + 1) * size, num_images))
                buffer, event = buffers[index % 2], copied[index % 2]
                event.synchronize()
                buffer[: rows.stop - rows.start] = torch.from_numpy(pixels_of(rows))
                buffer[rows.stop - rows.start :] = 0
                pixels_NHWC = buffer.to(self._device, non_blocking=True)
                event.record()
                parts.append((rows, self._forward(pixels_NHWC)))
            for rows, part in parts:
                for column, value in zip(outputs, part, strict=True):
                    column[rows] = value[: rows.stop - rows.start].cpu().numpy()
        return outputs

    def _forward(self, pixels_NHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            batch_NCHW = self._preprocessing.normalise(pixels_NHWC)
            feature_ND, z_NB = self.model(batch_NCHW.contiguous(memory_format=torch.channels_last))
        return feature_ND, z_NB


def build_model(
    backbone_name: str, architecture: Mapping[str, Any], head_kind: str, bits: int, anchors: int, weights: bytes
) -> HashModel:
    """Build a model and load its weights, which are a safetensors file."""
    # The random initial weights are discarded at once, and must not advance the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        backbone = rebuild_backbone(backbone_name, architecture)
        head = build_head(head_kind, backbone.feature_dim, bits, anchors)
        model = HashModel(backbone, bits, head)
    # Copies into the model's own memory: matrix products depend on the alignment of their operands, which a mapped
    # or sliced buffer does not guarantee.
    model.load_state_dict(load_tensors(weights))
    return model


def weights_of(module: torch.nn.Module) -> bytes:
    """Return the weights of a module as a safetensors file."""
    return save_tensors({name: value.contiguous().cpu() for name, value in module.state_dict().items()})


@contextlib.contextmanager
def _one_thread_each() -> Iterator[int]:
    """Run each torch operation on one thread; yields how many operations may run in parallel."""
    with _one_thread_lock:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield num_threads
        finally:
            torch.set_num_threads(num_threads)
