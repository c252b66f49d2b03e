"""Decoding in parallel with the model: images go to other processes and return as pixels, in order, batch by batch.

A `Decoder` owns one decoding process (`pipelines.decoding.worker`) and memory shared with it, divided into slots of one
batch each. While the model runs on one slot, the process decodes the next and a third is being filled. When a worker
dies, the image it was decoding is known; a fresh worker tries it once more, and if that one dies too, the image is
rejected. A worker that is killed from outside may be the victim of another process, so its image is tried five times,
with pauses between them. Every answer carries the generation of its worker, so that an answer from before a death is
not mistaken for a later one.
"""

from __future__ import annotations

import contextlib
import functools
import io
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
from PIL import Image

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.engine.places.failures import TooManyBytesError
from hashlight.pipelines.corpora import reasons
from hashlight.pipelines.corpora.kinds.images import MAX_ENCODED_BYTES
from hashlight.pipelines.corpora.reasons import Reason, reason_of
from hashlight.pipelines.decoding.worker import (
    ANSWER,
    DIED,
    DONE,
    GOOD,
    KILLED,
    LATE,
    LIMITED,
    REJECTED,
    REQUEST,
    WAITING,
    DecodeLimits,
    DecodeTask,
    take_blame,
)
from hashlight.pipelines.jobs.errors import PipelineError

SLOTS = 3
# Batches of large files are cut at this size, to limit the memory that a slot touches.
_BATCH_BYTES = 16 << 20
# Of resized images.
_BATCH_PIXEL_BYTES = 4 << 20
_DEATHS_OF_AN_IMAGE = 2
# Kills while the same image is at hand, with pauses that double in between: 0.75 s for other processes to make room.
_KILLS_OF_AN_IMAGE = 5
_FIRST_PAUSE_S = 0.05
# After so many kills in a row without an image decoded in between, an image that is known to be good is tried: the
# images may be at fault, however many they are, or the machine.
_MAX_KILLS = 10
_KNOWN_GOOD_SIDE = 2000
_MAX_SLOT_BYTES = (1 << 31) - 1
_KINDS = {REJECTED: reasons.FORMAT, LIMITED: reasons.LIMIT, KILLED: reasons.KILLED, LATE: reasons.LIMIT}


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """Consecutive images of a stream. The arrays are valid until the next batch is requested.

    Attributes
    ----------
    first : int
        Position in the stream of the first image.
    good : ndarray of int64, shape (G,)
        Positions in the stream of the decoded images.
    pixels : ndarray of uint8, shape (G, size, size, channels)
    thumbnails : list of bytes
        JPEG, one for each decoded image; empty if not requested.
    reasons : dict of int to Reason
        Position -> reason, for the other images.
    read_s, decode_s : float
        Seconds spent on the batch.
    """

    first: int
    good: np.ndarray
    pixels: np.ndarray
    thumbnails: list[bytes]
    reasons: dict[int, Reason]
    read_s: float
    decode_s: float


class Decoder:
    """One decoding process and its slots. One thread may fill and send while another waits for results."""

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        thumbnail: int,
        limits: DecodeLimits,
        deaths_of_an_image: int = _DEATHS_OF_AN_IMAGE,
    ) -> None:
        self._task = DecodeTask(
            preprocessing=preprocessing.to_dict(),
            batch_size=batch_size,
            # One for the image that is known to be good.
            slots=SLOTS + 1,
            encoded_bytes=MAX_ENCODED_BYTES,
            thumbnail=thumbnail,
            limit_seconds=limits.seconds,
            limit_memory_bytes=limits.memory_bytes,
        )
        layout = self._task.slot_type()
        if layout.itemsize > _MAX_SLOT_BYTES:
            raise ValueError(f"`batch_size` {batch_size} needs {layout.itemsize:,} bytes: choose a smaller one")
        self._memory = os.memfd_create("hashlight-decode")
        os.ftruncate(self._memory, layout.itemsize * self._task.slots)
        self.slots = self._task.map(self._memory)
        self.slots["current"] = -1
        self._lock = threading.Lock()
        self._sent: deque[int] = deque()
        self._generation = 0
        self._deaths_of_an_image = deaths_of_an_image
        self._deaths: Counter[tuple[int, int]] = Counter()
        self._kills: Counter[tuple[int, int]] = Counter()
        self._kills_in_a_row, self._decoded_before = 0, -1
        # Since a kill slots are sent one by one, so that the image at hand at the next kill is the same.
        self._one_by_one = False
        self._closed = False
        self._start()

    def send(self, slot: int) -> None:
        """Send a filled slot for decoding."""
        with self._lock:
            self._sent.append(slot)
            if not self._one_by_one or len(self._sent) == 1:
                self._request(slot)

    def wait(self, slot: int) -> None:
        """Wait until the oldest sent slot is decoded."""
        while self._is_under_way(slot):
            message = os.read(self._answers, ANSWER.size)
            with self._lock:
                pause_s = self._take(message)
            if pause_s is not None:
                time.sleep(pause_s)
                with self._lock:
                    self._send_again()

    def _is_under_way(self, slot: int) -> bool:
        with self._lock:
            return slot in self._sent

    def close(self) -> None:
        """End the process; a thread that waits for it is told."""
        with self._lock:
            self._closed = True
        self._stop()
        os.close(self._memory)

    def _take(self, message: bytes) -> float | None:
        """Take in an answer; if it is a death, return how long to wait before the worker's work is sent again."""
        if not message:
            return self._restart()
        kind, number, first, second = ANSWER.unpack(message)
        if kind == DONE and first == self._generation:
            self._sent.remove(number)
            self._kills_in_a_row = 0
            if self._one_by_one and self._sent:
                self._request(self._sent[0])
        elif kind == DIED:
            if number > 0:
                raise PipelineError(f"a decoding process failed with exit code {number}: see the standard error")
            if number == -signal.SIGKILL:
                return self._count_kill(first, second)
            self._blame(first, second, number)
            return 0.0
        return None

    def _restart(self) -> float:
        """Start a watcher, with its worker, to replace one that was killed."""
        if self._closed:
            raise PipelineError("the decoding process was ended while it was at work")
        at = take_blame(self.slots)
        pause_s = self._count_kill(*at)
        self._stop()
        self._start()
        return pause_s

    def _count_kill(self, slot: int, row: int) -> float:
        """Count a kill from outside, by the kernel, short of memory, or by a person; return how long to wait.

        One that was at hand at several kills in a row is rejected: it may need more memory than there is.
        """
        self._one_by_one = True
        decoded = sum(_num_decoded(self.slots[sent]) for sent in self._sent)
        self._kills_in_a_row = self._kills_in_a_row + 1 if decoded == self._decoded_before else 1
        self._decoded_before = decoded
        # Requests from before a kill may come before that image.
        if slot == SLOTS or self._kills_in_a_row > 2 * _MAX_KILLS:
            raise PipelineError(
                f"the decoding process was killed {self._kills_in_a_row} times in a row: is the machine out of memory? "
                "Try fewer --actors, or a smaller --decode-memory"
            )
        if self._kills_in_a_row >= _MAX_KILLS and SLOTS not in self._sent:
            self._try_known_good()
        self._kills[slot, row] += 1
        count = self._kills[slot, row]
        if slot >= 0 and count == _KILLS_OF_AN_IMAGE:
            words = f"was at hand each time when the decoding process was killed, {count} times"
            self._reject(slot, row, KILLED, f"{words}: is the memory enough for it?")
            return 0.0
        return _FIRST_PAUSE_S * float(1 << min(count - 1, 3))

    def _try_known_good(self) -> None:
        """Put an image that can be decoded before all others; once it is, kills are counted anew."""
        for counts in (self._deaths, self._kills):
            counts.pop((SLOTS, 0), None)
        fill(
            self.slots[SLOTS],
            [_known_good()],
            max_pixels=_KNOWN_GOOD_SIDE**2,
            wall_s=DecodeLimits(seconds=self._task.limit_seconds).wall_seconds,
        )
        self._sent.appendleft(SLOTS)

    def _send_again(self) -> None:
        """Send again everything that the dead worker did not answer."""
        self._generation += 1
        for slot in list(self._sent)[: 1 if self._one_by_one else None]:
            self._request(slot)

    def _blame(self, slot: int, row: int, status: int) -> None:
        """Count a death for the image being decoded (-1: none); reject the image if it was its last try."""
        if slot < 0:
            return
        self._deaths[slot, row] += 1
        if self._deaths[slot, row] == self._deaths_of_an_image:
            wall_s = float(self.slots[slot]["wall_seconds"])
            self._reject(slot, row, *_name_death(status, self._task.limit_seconds, wall_s))

    def _reject(self, slot: int, row: int, status: int, words: str) -> None:
        self.slots[slot]["reasons"][row] = words.encode()
        self.slots[slot]["status"][row] = status

    def forget(self, slot: int) -> None:
        """Prepare a slot to be filled again."""
        with self._lock:
            for counts in (self._deaths, self._kills):
                for key in [key for key in counts if key[0] == slot]:
                    del counts[key]

    def _request(self, slot: int) -> None:
        # If the watcher is gone, `wait` notices and sends again.
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


@functools.cache
def _known_good() -> bytes:
    """Return a photograph's worth of pixels, as a JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (_KNOWN_GOOD_SIDE, _KNOWN_GOOD_SIDE), (90, 120, 150)).save(buffer, "JPEG")
    return buffer.getvalue()


def images_of_a_batch(preprocessing: Preprocessing, asked: int = 256) -> int:
    """Return how many images a processor decodes at a time: as many as are asked for, and fewer of large ones.

    One batch is worked on while the next is decoded, so that a few hundred images should be several.
    """
    return min(asked, max(1, _BATCH_PIXEL_BYTES // (preprocessing.size**2 * preprocessing.channels)))


class DecodePool:
    """Several decoders that take the batches of a stream in turn."""

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
        self._limits = limits
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
        """Decode a stream of encoded images; those that could not be read are rejected with that reason.

        Consume one stream to its end before the next: images left in slots would appear in the next stream.

        Raises
        ------
        PipelineError
            If the previous stream was not consumed to its end, or a decoding process keeps dying.
        """
        if self._is_busy:
            raise PipelineError("the previous stream was not consumed to its end: use a new pool of decoding processes")
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
                self._is_busy = False  # it comes after everything that was sent
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
                unreadable = fill(
                    decoder.slots[slot], batch, max_pixels=self._limits.pixels, wall_s=self._limits.wall_seconds
                )
                decoder.send(slot)
                read_s = time.perf_counter() - start - waited
                sent.put(_Sent(decoder, slot, first, len(batch), unreadable, read_s))
                first += len(batch)
            sent.put(None)
        except BaseException as error:  # Raised again by the consumer of the batches.
            sent.put(error)

    def _next_batch(
        self, images: Iterator[bytes | OSError], held: bytes | OSError | None
    ) -> tuple[list[bytes | OSError], bytes | OSError | None]:
        """Take images for one slot; returns them and the first one that did not fit."""
        batch: list[bytes | OSError] = []
        total = 0
        while len(batch) < self._batch_size:
            data = next(images, None) if held is None else held
            held = None
            if data is None:
                break
            if isinstance(data, bytes) and len(data) > MAX_ENCODED_BYTES:
                data = TooManyBytesError(f"too many bytes: {len(data):,}, at most {MAX_ENCODED_BYTES:,}")
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
        rejected = {
            item.first + row: item.unreadable.get(row)
            or Reason(_KINDS[status[row]], record["reasons"][row].decode(errors="replace"))
            for row in np.flatnonzero(status > GOOD).tolist()
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
            reasons=rejected,
            read_s=item.read_s,
            decode_s=float(record["seconds"]),
        )


@dataclass(frozen=True, slots=True)
class _Sent:
    """A slot in progress: its position in the stream, and which of its images could not be read."""

    decoder: Decoder
    slot: int
    first: int
    count: int
    unreadable: dict[int, Reason]
    read_s: float


def _num_decoded(record: Any) -> int:
    """Return how many images of a slot a worker has come to an end with, whatever that was."""
    return int(np.isin(record["status"][: int(record["count"])], (GOOD, REJECTED, LIMITED, LATE)).sum())


def fill(record: Any, batch: list[bytes | OSError], *, max_pixels: int, wall_s: float) -> dict[int, Reason]:
    """Put encoded images into a slot; return the reasons for those that could not be read.

    Parameters
    ----------
    record : a slot of `Decoder.slots`
    batch : list of bytes, or of the error that came in their place
    max_pixels : int
        Of one image.
    wall_s : float
        Seconds that one image may take.
    """
    encoded, offsets = record["encoded"], record["offsets"]
    unreadable = {row: reason_of(data) for row, data in enumerate(batch) if isinstance(data, OSError)}
    sizes = [0 if isinstance(data, OSError) else len(data) for data in batch]
    offsets[: len(batch) + 1] = np.cumsum([0, *sizes])
    whole = b"".join(data for data in batch if isinstance(data, bytes))
    encoded[: len(whole)] = np.frombuffer(whole, np.uint8)
    record["status"][: len(batch)] = WAITING
    record["status"][list(unreadable)] = REJECTED
    record["current"], record["count"], record["seconds"] = -1, len(batch), 0.0
    record["max_pixels"], record["wall_seconds"] = max_pixels, wall_s
    return unreadable


def _name_death(status: int, limit_s: float, wall_s: float) -> tuple[int, str]:
    """Return the status of an image at which a worker died in this way, and the reason."""
    number = signal.Signals(-status)
    if number == signal.SIGPROF:
        return LIMITED, f"takes more than {limit_s:g} s of processor time to decode"
    if number == signal.SIGALRM:
        return LATE, f"takes more than {wall_s:.3g} s to decode"
    return KILLED, f"ends the decoding process ({number.name})"
