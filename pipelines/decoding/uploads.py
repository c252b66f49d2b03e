"""Single images decoded in guarded processes, as they arrive at a server."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import ImageError, ImageLimitError
from hashlight.engine.errors import DeadlineExceededError
from hashlight.pipelines.corpora.kinds.images import MAX_ENCODED_BYTES
from hashlight.pipelines.decoding.pool import Decoder, fill
from hashlight.pipelines.decoding.worker import GOOD, LATE, DecodeLimits

# 64 megapixels with transparency need over 1.1 GiB and 2.8 s of processor time (one core of a 2-core AMD EPYC).
UPLOAD_LIMITS = DecodeLimits(seconds=10.0, memory_bytes=2 << 30)


class UploadDecoder:
    """Decodes each image in a guarded process that decodes nothing else meanwhile. Thread-safe.

    One process is started at once. Another is started when all others are at work, so that an image that takes long
    delays no other; until it is there, an image takes whichever is free first.

    Parameters
    ----------
    preprocessing : Preprocessing
    processes : int
        Maximum number; images beyond wait for one.
    limits : DecodeLimits
        Its `pixels` is unused: each image comes with its own limit.

    Raises
    ------
    OSError
        If no process can be started.
    """

    def __init__(self, preprocessing: Preprocessing, *, processes: int, limits: DecodeLimits = UPLOAD_LIMITS) -> None:
        self._preprocessing = preprocessing
        self._limits = limits
        self._processes = _Processes(processes)
        self.close = weakref.finalize(self, self._processes.close)
        self._processes.start(self._make)

    def decode(self, data: bytes, *, max_pixels: int, timeout_s: float) -> NDArray[np.uint8]:
        """Return an image's pixels (size, size, channels) at the size of the model's input.

        Raises
        ------
        ImageError
            If it cannot be decoded, or exceeds a limit; its process has then ended, and another takes its place.
        DeadlineExceededError
            If it is not decoded within `timeout_s` seconds, or all processes are at work for so long.
        """
        if len(data) > MAX_ENCODED_BYTES:
            raise ImageLimitError(f"too many bytes: {len(data):,}, at most {MAX_ENCODED_BYTES:,}")
        until_s = time.monotonic() + timeout_s
        decoder = self._take(timeout_s)
        record = decoder.slots[0]
        try:
            _decode(decoder, [data], max_pixels=max_pixels, wall_s=max(0.001, until_s - time.monotonic()))
        except BaseException:  # It does not come to an end any more, but another may.
            self._processes.remove(decoder)
            raise
        found, words = int(record["status"][0]), record["reasons"][0].decode(errors="replace")
        pixels: NDArray[np.uint8] = record["pixels"][0].copy()
        self._processes.free.put(decoder)
        if found == LATE:
            raise DeadlineExceededError(f"the image was not decoded within {timeout_s:g} s: allow more time")
        if found != GOOD:
            raise ImageError(words)
        return pixels

    def _take(self, timeout_s: float) -> Decoder:
        """Return a process that is at no work."""
        try:
            found = self._processes.take(self._make, timeout_s)
        except queue.Empty:
            raise DeadlineExceededError(
                f"all decoding processes were at work for {timeout_s:g} s: allow more time, or try again"
            ) from None
        if isinstance(found, BaseException):
            raise found
        return found

    def _make(self) -> Decoder:
        return Decoder(self._preprocessing, batch_size=1, thumbnail=0, limits=self._limits, deaths_of_an_image=1)


class _Processes:
    """The decoding processes of one server, the free ones among them, and those that are being started.

    Parameters
    ----------
    most : int
        Maximum number.
    """

    def __init__(self, most: int) -> None:
        # An error stands for a process that did not start: whoever waits for one is told.
        self.free: queue.LifoQueue[Decoder | BaseException] = queue.LifoQueue()
        self.started: list[Decoder] = []
        self._starting: list[threading.Thread] = []
        self._waiting = 0
        self._may_start = threading.Semaphore(most)
        self._lock = threading.Lock()

    def take(self, make: Callable[[], Decoder], timeout_s: float) -> Decoder | BaseException:
        """Return a free one, or an error; if more wait than are being started, start another.

        Raises
        ------
        queue.Empty
            If there is none within `timeout_s` seconds.
        """
        with contextlib.suppress(queue.Empty):
            return self.free.get_nowait()
        with self._lock:
            self._waiting += 1
            too_few = self._waiting > sum(thread.is_alive() for thread in self._starting)
        try:
            if too_few:
                self.start(make)
            return self.free.get(timeout=timeout_s)
        finally:
            with self._lock:
                self._waiting -= 1

    def start(self, make: Callable[[], Decoder]) -> None:
        """Make one, if there may be one more, without waiting for it to be ready."""
        if not self._may_start.acquire(blocking=False):
            return
        try:
            decoder = make()
        except BaseException:  # No process, but the next image may have one.
            self._may_start.release()
            raise
        thread = threading.Thread(target=self._make_ready, args=(decoder,), name="hashlight-start", daemon=True)
        with self._lock:
            self.started.append(decoder)
            self._starting = [one for one in self._starting if one.is_alive()] + [thread]
            thread.start()

    def remove(self, decoder: Decoder) -> None:
        """End one, so that another may be started."""
        with self._lock:
            if decoder in self.started:
                self.started.remove(decoder)
                decoder.close()
        self._may_start.release()

    def close(self) -> None:
        """End all."""
        for thread in self._starting:
            thread.join()
        with self._lock:
            for decoder in self.started:
                decoder.close()
            self.started.clear()

    def _make_ready(self, decoder: Decoder) -> None:
        """Wait until a process has imported everything."""
        try:
            _decode(decoder, [], max_pixels=1, wall_s=1.0)
        except BaseException as error:
            self.remove(decoder)
            self.free.put(error)
        else:
            self.free.put(decoder)


def _decode(decoder: Decoder, images: list[bytes | OSError], *, max_pixels: int, wall_s: float) -> None:
    fill(decoder.slots[0], images, max_pixels=max_pixels, wall_s=wall_s)
    decoder.forget(0)
    decoder.send(0)
    decoder.wait(0)
