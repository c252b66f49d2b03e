"""Decoding beside the model: images go to other processes and come back as pixels, in order, a batch at a time.

A `Decoder` owns one decoding process (`pipelines.decoding.worker`) and memory shared with it, cut into slots of a batch
each. While the model runs on one slot the process decodes the next, and a third is being filled. When a worker dies,
what it was decoding is known; that image is tried once more by a fresh worker, and if it kills that one too, it is
rejected. Every answer carries the generation of its worker, so that one from before a death is not taken for another.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.pipelines.corpora.images import MAX_ENCODED_BYTES
from hashlight.pipelines.decoding.worker import (
    ANSWER,
    DIED,
    DONE,
    GOOD,
    REJECTED,
    REQUEST,
    WAITING,
    WALL_FACTOR,
    DecodeLimits,
    DecodeTask,
)
from hashlight.pipelines.jobs.errors import PipelineError

SLOTS = 3
# A batch of large files is cut here, so that a slot's touched memory stays small.
_BATCH_BYTES = 16 << 20
_DEATHS_OF_AN_IMAGE = 2
# Without one slot done between them.
_MOST_RESTARTS = 10
_MOST_SLOT_BYTES = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """Some images of a stream, in order. The arrays are valid until the next batch is asked for.

    Attributes
    ----------
    first : int
        Position in the stream of the first image.
    good : ndarray of int64, shape (G,)
        Positions in the stream of those that were decoded.
    pixels : ndarray of uint8, shape (G, size, size, channels)
    thumbnails : list of bytes
        JPEG, one for each decoded image; empty if none were asked for.
    reasons : dict of int to str
        Why the others were not, by their positions.
    read_s, decode_s : float
        Seconds spent on the batch.
    """

    first: int
    good: np.ndarray
    pixels: np.ndarray
    thumbnails: list[bytes]
    reasons: dict[int, str]
    read_s: float
    decode_s: float


class Decoder:
    """One decoding process and its slots. One thread may fill and send while another waits for what was sent."""

    def __init__(self, preprocessing: Preprocessing, *, batch_size: int, thumbnail: int, limits: DecodeLimits) -> None:
        self._task = DecodeTask(
            preprocessing=preprocessing.to_dict(),
            batch_size=batch_size,
            slots=SLOTS,
            encoded_bytes=MAX_ENCODED_BYTES,
            thumbnail=thumbnail,
            limit_seconds=limits.seconds,
            limit_memory_bytes=limits.memory_bytes,
        )
        layout = self._task.slot_type()
        if layout.itemsize > _MOST_SLOT_BYTES:
            raise ValueError(f"`batch_size` {batch_size} needs {layout.itemsize:,} bytes a batch: choose a smaller one")
        self._memory = os.memfd_create("hashlight-decode")
        os.ftruncate(self._memory, layout.itemsize * SLOTS)
        self.slots = self._task.map(self._memory)
        self._lock = threading.Lock()
        self._sent: deque[int] = deque()
        self._generation = self._restarts = 0
        self._deaths: Counter[tuple[int, int]] = Counter()
        self._start()

    def send(self, slot: int) -> None:
        """Have a filled slot decoded."""
        with self._lock:
            self._sent.append(slot)
            self._request(slot)

    def wait(self, slot: int) -> None:
        """Return when a slot that was sent, the first of those not waited for, is decoded."""
        while self._is_under_way(slot):
            message = os.read(self._answers, ANSWER.size)
            with self._lock:
                self._take(message)

    def _is_under_way(self, slot: int) -> bool:
        with self._lock:
            return slot in self._sent

    def close(self) -> None:
        """End the process."""
        self._stop()
        os.close(self._memory)

    def _take(self, message: bytes) -> None:
        if not message:
            self._restart()
            return
        kind, number, first, second = ANSWER.unpack(message)
        if kind == DONE and first == self._generation:
            self._sent.remove(number)
            self._restarts = 0
        elif kind == DIED:
            if number > 0:
                raise PipelineError(f"a decoding process failed with exit code {number}: see the standard error")
            if number == -signal.SIGKILL:
                # The kernel, short of memory, or a person: the image that was at hand has no part in it.
                self._count_restart()
            else:
                self._blame(first, second, number)
            self._send_again()

    def _restart(self) -> None:
        """Start another watcher in the place of one that was killed, and its worker with it."""
        self._count_restart()
        self._stop()
        self._start()
        self.slots["current"] = -1
        self._send_again()

    def _count_restart(self) -> None:
        self._restarts += 1
        if self._restarts > _MOST_RESTARTS:
            raise PipelineError(
                f"the decoding process was killed {self._restarts} times in a row: is the machine out of memory? Try "
                "fewer --actors, or a smaller --decode-memory"
            )

    def _send_again(self) -> None:
        """Ask for all that the dead worker did not answer."""
        self._generation += 1
        for slot in self._sent:
            self._request(slot)

    def _blame(self, slot: int, row: int, status: int) -> None:
        """Count a death for the image that the worker was at (-1: it was at none); reject it at its last."""
        if slot < 0:
            return
        self._deaths[slot, row] += 1
        if self._deaths[slot, row] == _DEATHS_OF_AN_IMAGE:
            self.slots[slot]["reasons"][row] = _name_death(status, self._task.limit_seconds).encode()
            self.slots[slot]["status"][row] = REJECTED

    def forget(self, slot: int) -> None:
        """Make a slot ready to be filled anew."""
        with self._lock:
            for key in [key for key in self._deaths if key[0] == slot]:
                del self._deaths[key]

    def _request(self, slot: int) -> None:
        # If the watcher is gone, `wait` finds out and asks again.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._requests, REQUEST.pack(slot, self._generation))

    def _start(self) -> None:
        to_read, self._requests = os.pipe()
        self._answers, to_write = os.pipe()
        arguments = [*map(str, (to_read, to_write, self._memory)), json.dumps(asdict(self._task))]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hashlight.pipelines.decoding.worker", *arguments],
            pass_fds=(to_read, to_write, self._memory),
            stdin=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)

    def _stop(self) -> None:
        os.close(self._requests)
        os.close(self._answers)
        self._process.kill()
        self._process.wait()


class DecodePool:
    """Several decoders, among which the batches of a stream take turns."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        processes: int = 1,
        batch_size: int = 256,
        thumbnail: int = 0,
        limits: DecodeLimits | None = None,
    ) -> None:
        limits = limits or DecodeLimits()
        self._decoders = [
            Decoder(preprocessing, batch_size=batch_size, thumbnail=thumbnail, limits=limits) for _ in range(processes)
        ]
        self._batch_size = batch_size
        self._keeps_thumbnails = thumbnail > 0
        self._is_busy = False

    def __enter__(self) -> DecodePool:
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """End its processes."""
        self.close()

    def close(self) -> None:
        """End all processes."""
        for decoder in self._decoders:
            decoder.close()

    def decode(self, images: Iterable[bytes | OSError]) -> Iterator[DecodedBatch]:
        """Decode a stream of encoded images; what could not be read is rejected for that reason.

        One stream at a time, to be consumed to its end: what was left in slots would come out as images of the next.

        Raises
        ------
        PipelineError
            If the stream before was not consumed to its end, or a decoding process cannot be kept alive.
        """
        if self._is_busy:
            raise PipelineError(
                "the images before were not decoded to their end, so that these processes are of no use"
            )
        self._is_busy = True
        free: queue.Queue[tuple[Decoder, int]] = queue.Queue()
        for slot in range(SLOTS):
            for decoder in self._decoders:
                free.put((decoder, slot))
        sent: queue.Queue[_Sent | BaseException | None] = queue.Queue()
        reader = threading.Thread(target=self._read, args=(iter(images), free, sent), name="read", daemon=True)
        reader.start()
        while (item := sent.get()) is not None:
            if isinstance(item, BaseException):
                self._is_busy = False  # it came after all that was sent
                raise item
            item.decoder.wait(item.slot)
            yield self._decoded(item)
            free.put((item.decoder, item.slot))
        reader.join()
        self._is_busy = False

    def _read(self, images: Iterator[bytes | OSError], free: Any, sent: Any) -> None:
        """Fill slots from the stream and send them, until it ends."""
        try:
            first, held = 0, None
            while True:
                start = time.perf_counter()
                decoder, slot = free.get()
                waited = time.perf_counter() - start
                batch, held = self._next_batch(images, held)
                if not batch:
                    break
                decoder.forget(slot)
                unreadable = _fill(decoder.slots[slot], batch)
                decoder.send(slot)
                read_s = time.perf_counter() - start - waited
                sent.put(_Sent(decoder, slot, first, len(batch), unreadable, read_s))
                first += len(batch)
            sent.put(None)
        except BaseException as error:  # Raised again where the batches are consumed.
            sent.put(error)

    def _next_batch(
        self, images: Iterator[bytes | OSError], held: bytes | OSError | None
    ) -> tuple[list[bytes | OSError], bytes | OSError | None]:
        """Take images for one slot; returns them, and the first that did not fit."""
        batch: list[bytes | OSError] = []
        total = 0
        while len(batch) < self._batch_size:
            data = next(images, None) if held is None else held
            held = None
            if data is None:
                break
            if isinstance(data, bytes) and len(data) > MAX_ENCODED_BYTES:
                data = OSError(f"too many bytes: {len(data):,}, at most {MAX_ENCODED_BYTES:,}")
            size = 0 if isinstance(data, OSError) else len(data)
            if batch and total + size > _BATCH_BYTES:
                return batch, data
            batch.append(data)
            total += size
        return batch, None

    def _decoded(self, item: _Sent) -> DecodedBatch:
        record = item.decoder.slots[item.slot]
        status = record["status"][: item.count]
        rows = np.flatnonzero(status == GOOD)
        reasons = {
            item.first + row: item.unreadable.get(row) or record["reasons"][row].decode(errors="replace")
            for row in np.flatnonzero(status == REJECTED).tolist()
        }
        pixels = record["pixels"][: item.count]
        sizes = record["thumbnail_sizes"]
        return DecodedBatch(
            first=item.first,
            good=rows + item.first,
            pixels=pixels if len(rows) == item.count else pixels[rows],
            thumbnails=[record["thumbnails"][row, : sizes[row]].tobytes() for row in rows]
            if self._keeps_thumbnails
            else [],
            reasons=reasons,
            read_s=item.read_s,
            decode_s=float(record["seconds"]),
        )


@dataclass(frozen=True, slots=True)
class _Sent:
    """A slot under way, where it stands in the stream, and which of its images could not be read."""

    decoder: Decoder
    slot: int
    first: int
    count: int
    unreadable: dict[int, str]
    read_s: float


def _fill(record: Any, batch: list[bytes | OSError]) -> dict[int, str]:
    """Put encoded images into a slot; return why those that could not be read could not."""
    encoded, offsets = record["encoded"], record["offsets"]
    unreadable = {row: f"unreadable: {data}" for row, data in enumerate(batch) if isinstance(data, OSError)}
    sizes = [0 if isinstance(data, OSError) else len(data) for data in batch]
    offsets[: len(batch) + 1] = np.cumsum([0, *sizes])
    whole = b"".join(data for data in batch if isinstance(data, bytes))
    encoded[: len(whole)] = np.frombuffer(whole, np.uint8)
    record["status"][: len(batch)] = WAITING
    record["status"][list(unreadable)] = REJECTED
    record["current"], record["count"], record["seconds"] = -1, len(batch), 0.0
    return unreadable


def _name_death(status: int, limit_s: float) -> str:
    number = signal.Signals(-status)
    if number == signal.SIGPROF:
        return f"takes more than {limit_s:g} s of processor time to decode"
    if number == signal.SIGALRM:
        return f"takes more than {limit_s * WALL_FACTOR:g} s to decode"
    return f"ends the decoding process ({number.name})"
