"""Single images decoded in guarded processes, as they arrive at a server."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import ImageError, ImageLimitError
from hashlight.engine.errors import DeadlineExceededError
from hashlight.pipelines.corpora.images import MAX_ENCODED_BYTES
from hashlight.pipelines.decoding.pool import Decoder, fill
from hashlight.pipelines.decoding.worker import GOOD, DecodeLimits

# 64 megapixels with transparency need over 1.1 GiB and 2.8 s of processor time (one core of a 2-core AMD EPYC).
UPLOAD_LIMITS = DecodeLimits(seconds=10.0, memory_bytes=2 << 30)


class UploadDecoder:
    """Decodes each image in a guarded process that decodes nothing else meanwhile. Thread-safe.

    A process is started when all others are at work, so that an image that takes long delays no other.

    Parameters
    ----------
    preprocessing : Preprocessing
    processes : int
        Maximum number; images beyond wait for one.
    limits : DecodeLimits
        Its `pixels` is unused: each image comes with its own limit.
    """

    def __init__(self, preprocessing: Preprocessing, *, processes: int, limits: DecodeLimits = UPLOAD_LIMITS) -> None:
        self._preprocessing = preprocessing
        self._limits = limits
        self._free: queue.LifoQueue[Decoder] = queue.LifoQueue()
        self._started: list[Decoder] = []
        self._may_start = threading.Semaphore(processes)
        self.close = weakref.finalize(self, _close, self._started)

    def decode(self, data: bytes, *, max_pixels: int, timeout_s: float) -> NDArray[np.uint8]:
        """Return an image's pixels (size, size, channels) at the size of the model's input.

        Raises
        ------
        ImageError
            If it cannot be decoded, or exceeds a limit; its process has then ended, and another takes its place.
        DeadlineExceededError
            If all processes are at work for `timeout_s` seconds.
        """
        if len(data) > MAX_ENCODED_BYTES:
            raise ImageLimitError(f"too many bytes: {len(data):,}, at most {MAX_ENCODED_BYTES:,}")
        until_s = time.monotonic() + timeout_s
        decoder = self._take(timeout_s)
        record = decoder.slots[0]
        try:
            fill(record, [data], max_pixels=max_pixels, wall_s=max(0.001, until_s - time.monotonic()))
            decoder.forget(0)
            decoder.send(0)
            decoder.wait(0)
        except BaseException:  # It does not come to an end any more, but another may.
            self._started.remove(decoder)
            decoder.close()
            self._may_start.release()
            raise
        found, words = int(record["status"][0]), record["reasons"][0].decode(errors="replace")
        pixels: NDArray[np.uint8] = record["pixels"][0].copy()
        self._free.put(decoder)
        if found != GOOD:
            raise ImageError(words)
        return pixels

    def _take(self, timeout_s: float) -> Decoder:
        """Return a process that is at no work."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            if self._may_start.acquire(blocking=False):
                return self._start()
        try:
            return self._free.get(timeout=timeout_s)
        except queue.Empty:
            raise DeadlineExceededError(
                f"all decoding processes were at work for {timeout_s:g} s: allow more time, or try again"
            ) from None

    def _start(self) -> Decoder:
        try:
            decoder = Decoder(self._preprocessing, batch_size=1, thumbnail=0, limits=self._limits, deaths_of_an_image=1)
        except BaseException:  # No process, but the next image may have one.
            self._may_start.release()
            raise
        self._started.append(decoder)
        return decoder


def _close(started: Iterable[Decoder]) -> None:
    for decoder in started:
        decoder.close()
