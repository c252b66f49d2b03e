"""A model in ONNX Runtime, on processors; torch is neither needed nor loaded.

An image's outputs must depend on neither the other images nor the number of threads. One image a call, on one thread,
gives that whatever the library does, and networks of depthwise convolutions are fastest so: their numbers stay in the
cache. Small networks are faster with several images a call, which share the cost of the call. A larger batch is used
only if it gives the same bits as one image a call on this machine (the libraries have kernels of their own for one
row, which may add in another order), and if it is faster.
"""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from hashlight.encoders.errors import EncoderError
from hashlight.encoders.runtimes.protocol import FEATURES, IMAGES, PIXELS, Outputs, PixelsOf, Z, padded
from hashlight.encoders.runtimes.threads import run_batches, usable_threads

_LARGER_BATCHES = (8, 32)
# If one image takes longer, what a call costs is nothing beside it.
_MAX_SHARED_S = 2e-3
# A larger batch must gain this much: a measurement is not exact.
_MIN_GAIN = 1.1
_TRIALS = 3


class OnnxRuntime:
    """Runs an exported model.

    Parameters
    ----------
    network : bytes
        The file that `encoders.runtimes.exporting` makes.
    size, channels, bits : int
        What its input and output must be.

    Raises
    ------
    EncoderError
        If it is not a readable network, or one of other shapes.
    """

    def __init__(self, network: bytes, *, size: int, channels: int, bits: int):
        self._network = network
        self._image_shape = (size, size, channels)
        self._bits = bits
        self._sessions = {1: _session(network, 1)}
        self._feature_dim = self._check(self._sessions[1])
        self._choosing = threading.Lock()

    @property
    def feature_dim(self) -> int:
        """Number of features."""
        return self._feature_dim

    @property
    def batch_size(self) -> int:
        """How many images one call computes, chosen by a measurement when it is first asked for."""
        with self._choosing:
            return self._chosen

    @property
    def images_at_once(self) -> int:
        """How many images are computed at a time, by all threads."""
        return self.batch_size * usable_threads()

    def run(self, num_images: int, pixels_of: PixelsOf) -> Outputs:
        """Return the outputs for N images; see `Runtime`."""
        outputs = Outputs.empty(num_images, self.feature_dim, self._bits)
        size = self.batch_size

        def run(index: int) -> None:
            rows = slice(index * size, min((index + 1) * size, num_images))
            for column, part in zip(outputs, self._call(padded(pixels_of(rows), size)), strict=True):
                column[rows] = part[: rows.stop - rows.start]

        run_batches(run, -(-num_images // size), usable_threads())
        return outputs

    def _call(self, pixels_RHWC: NDArray[np.uint8]) -> Outputs:
        """Return the outputs for as many images as a session was made for."""
        found = self._sessions[len(pixels_RHWC)].run([FEATURES, Z], {PIXELS: pixels_RHWC})
        return Outputs(*found)

    @functools.cached_property
    def _chosen(self) -> int:
        size = max(_LARGER_BATCHES)
        pixels_NHWC = np.random.default_rng(0).integers(256, size=(size, *self._image_shape), dtype=np.uint8)
        best, best_s = 1, self._seconds(pixels_NHWC[:1])
        if best_s > _MAX_SHARED_S:
            return best
        alone = [np.concatenate(part) for part in zip(*(self._call(row[None]) for row in pixels_NHWC), strict=True)]
        for size in _LARGER_BATCHES:
            try:
                self._sessions[size] = _session(self._network, size)
                together = self._call(pixels_NHWC[:size])
            except Exception:  # as of a network that was made for one image a call
                break
            same = all(one[:size].tobytes() == many.tobytes() for one, many in zip(alone, together, strict=True))
            image_s = self._seconds(pixels_NHWC[:size]) / size
            if same and image_s * _MIN_GAIN < best_s:
                best, best_s = size, image_s
        self._sessions = {best: self._sessions[best]}
        return best

    def _seconds(self, pixels_RHWC: NDArray[np.uint8]) -> float:
        """Return the least time that a call took; the first allocates."""
        self._call(pixels_RHWC)
        times_s = []
        for _ in range(_TRIALS):
            start = time.perf_counter()
            self._call(pixels_RHWC)
            times_s.append(time.perf_counter() - start)
        return min(times_s)

    def _check(self, session: Any) -> int:
        """Return the number of features; EncoderError if the network is not one that takes these images."""
        given = [(value.name, value.type) for value in (*session.get_inputs(), *session.get_outputs())]
        expected = [(PIXELS, "tensor(uint8)"), (FEATURES, "tensor(float)"), (Z, "tensor(float)")]
        if given != expected:
            raise EncoderError(f"the exported network has {given}, expected {expected}")
        try:
            features, z = session.run([FEATURES, Z], {PIXELS: np.zeros((1, *self._image_shape), np.uint8)})
        except Exception as error:
            raise EncoderError(f"the exported network does not run: {_words(error)}") from error
        if features.ndim != 2 or len(features) != 1 or z.shape != (1, self._bits):
            raise EncoderError(
                f"the exported network gives shapes {features.shape} and {z.shape}, expected (1, D) and "
                f"(1, {self._bits})"
            )
        return int(features.shape[1])


def _session(network: bytes, batch_size: int) -> Any:
    options = ort.SessionOptions()
    # A call computes on the thread that makes it.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.add_free_dimension_override_by_name(IMAGES, batch_size)
    # Its warnings are about the graph, of which nobody who encodes can change anything.
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # The library has a dozen of its own, all of `Exception`.
        raise EncoderError(f"the exported network is not readable: {_words(error)}") from error


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
