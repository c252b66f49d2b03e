"""The process that decodes images, so that an image that crashes the decoder harms no other.

Run as `python -m hashlight.pipelines.decoding.worker`, it forks a worker and watches it. The worker decodes images
in memory that it shares with its owner (`pipelines.decoding.pool`), under limits that the kernel enforces: processor
time and wall time for each image (a timer whose signal ends the process), memory (an allocation that fails). When it
dies, the watcher reports it and forks another, which takes milliseconds because everything is imported already. When
the owner is gone, both exit.

Messages are a few bytes, which the kernel writes atomically: a request names a slot of the shared memory, an answer the
finished slot, or how the worker died.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import io
import json
import math
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hashlight.encoders.data.formats import open_file
from hashlight.encoders.data.images import MAX_PIXELS, decode_image
from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import ImageError, ImageLimitError
from hashlight.pipelines.jobs import chaos

# The last four are rejects: for the format, by a limit, because the worker died, or because the wall time was over.
WAITING, GOOD, REJECTED, LIMITED, KILLED, LATE = range(6)
REASON_BYTES = 200
# (slot, generation): see `pipelines.decoding.pool`.
REQUEST = struct.Struct("<qq")
# (DONE, slot, generation, -1), or (DIED, how, slot, row): the exit status, and the image it was at, or -1.
ANSWER = struct.Struct("<cqqq")
DONE, DIED = b"+", b"!"

_THUMBNAIL_QUALITY = 80
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeLimits:
    """Limits for one image.

    Attributes
    ----------
    seconds : float
        Processor time.
    memory_bytes : int
        In addition to what the process uses at the start.
    pixels : int
        Width times height, read from the header before anything is decoded.
    """

    seconds: float = 20.0
    memory_bytes: int = 2 << 30
    pixels: int = MAX_PIXELS

    @property
    def wall_seconds(self) -> float:
        """Wall time: many times the processor time, because a stalled machine must not get an image rejected."""
        return 30 * self.seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeTask:
    """A worker's settings: preprocessing, batches, limits.

    Attributes
    ----------
    preprocessing : dict
        From `Preprocessing.to_dict`.
    batch_size, slots : int
        Number of images in a slot, and of slots in the shared memory.
    encoded_bytes : int
        Space for the encoded images of a slot.
    thumbnail : int
        Longest side of the thumbnails, 0 for none.
    """

    preprocessing: dict[str, Any]
    batch_size: int
    slots: int
    encoded_bytes: int
    thumbnail: int
    limit_seconds: float
    limit_memory_bytes: int

    @property
    def thumbnail_bytes(self) -> int:
        """Space for one thumbnail: a JPEG is smaller than its pixels, apart from its header."""
        return 3 * self.thumbnail**2 + 2048 if self.thumbnail else 0

    def slot_type(self) -> np.dtype[np.void]:
        """Return the layout of one slot."""
        size, count = self.preprocessing["size"], self.batch_size
        return np.dtype(
            [
                ("current", "<i8"),
                ("count", "<i8"),
                ("max_pixels", "<i8"),
                ("wall_seconds", "<f8"),
                ("seconds", "<f8"),
                ("offsets", "<i8", (count + 1,)),
                ("status", "u1", (count,)),
                ("reasons", f"S{REASON_BYTES}", (count,)),
                ("thumbnail_sizes", "<i8", (count,)),
                ("pixels", "u1", (count, size, size, self.preprocessing["channels"])),
                ("thumbnails", "u1", (count, self.thumbnail_bytes)),
                ("encoded", "u1", (self.encoded_bytes,)),
            ]
        )

    def map(self, memory: int) -> Any:
        """Map the slots of a memory file as an array of `slots` records."""
        layout = self.slot_type()
        return np.frombuffer(mmap.mmap(memory, layout.itemsize * self.slots), layout)


def main() -> None:
    """Watch a worker and fork another when it dies; exits with the owner."""
    requests, answers, memory = (int(number) for number in sys.argv[1:4])
    task = DecodeTask(**json.loads(sys.argv[4]))
    slots = task.map(memory)
    Image.init()
    while True:
        worker = os.fork()
        if worker == 0:
            os._exit(_run_until_closed(requests, answers, slots, task))
        status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        if status == 0:
            return
        try:
            os.write(answers, ANSWER.pack(DIED, status, *take_blame(slots)))
        except BrokenPipeError:
            return


def take_blame(slots: Any) -> tuple[int, int]:
    """Return and clear the slot and row of the image that a dead worker was decoding."""
    for slot, row in enumerate(slots["current"].tolist()):
        if row >= 0:
            slots[slot]["current"] = -1
            return slot, row
    return -1, -1


def _run_until_closed(requests: int, answers: int, slots: Any, task: DecodeTask) -> int:
    """Work until the owner is gone; return the worker's exit code."""
    log = os.dup(2)
    try:
        _run(requests, answers, slots, task)
    except BrokenPipeError:
        return 0
    except BaseException:
        # The child of a fork must not unwind into its parent's stack.
        os.write(log, traceback.format_exc().encode())
        return 1
    return 0


def _run(requests: int, answers: int, slots: Any, task: DecodeTask) -> None:
    _limit(task)
    # Imported objects live as long as the process, so the garbage collector can ignore them.
    gc.freeze()
    gc.set_threshold(20_000)
    rule = Preprocessing.from_dict(task.preprocessing)
    while message := os.read(requests, REQUEST.size):
        slot, generation = REQUEST.unpack(message)
        start = time.perf_counter()
        _decode_slot(slots[slot : slot + 1], rule, task)
        slots[slot]["seconds"] += time.perf_counter() - start
        os.write(answers, ANSWER.pack(DONE, slot, generation, -1))


def _limit(task: DecodeTask) -> None:
    # The worker must not outlive its watcher, because nobody else knows about it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + task.limit_memory_bytes,) * 2)
    # If the machine runs out of memory, this process should be killed first; some containers forbid the setting.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    # Messages of C libraries about damaged files are dropped; the reasons of rejects have what is useful.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    # The limit on pixels is the caller's; Pillow's own would refuse some formats below it.
    Image.MAX_IMAGE_PIXELS = None


def _decode_slot(one: Any, rule: Preprocessing, task: DecodeTask) -> None:
    """Decode the images waiting in a slot, given as a one-element array; slow field lookups are hoisted."""
    current, status, pixels, reasons = one["current"], one["status"][0], one["pixels"][0], one["reasons"][0]
    count, max_pixels = int(one["count"][0]), int(one["max_pixels"][0])
    wall_seconds = float(one["wall_seconds"][0])
    offsets, encoded = one["offsets"][0, : count + 1].tolist(), memoryview(one["encoded"][0])
    watched = chaos.watches("decode")
    for row in np.flatnonzero(status[:count] == WAITING).tolist():
        current[0] = row
        data = bytes(encoded[offsets[row] : offsets[row + 1]])
        signal.setitimer(signal.ITIMER_PROF, task.limit_seconds)
        signal.setitimer(signal.ITIMER_REAL, wall_seconds)
        if watched:
            chaos.step("decode", hashlib.blake2b(data, digest_size=8).hexdigest())
        try:
            image = rule.decode(data, max_pixels=max_pixels)
            pixels[row] = rule.pixels(image)
            if task.thumbnail:
                _keep_thumbnail(_for_thumbnail(image, data, rule, task, max_pixels), one[0], row, task.thumbnail)
            status[row] = GOOD
        except (ImageError, MemoryError) as error:
            status[row], reason = _reject(error, task)
            reasons[row] = reason.encode()[:REASON_BYTES]
    current[0] = -1
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _for_thumbnail(
    image: Image.Image, data: bytes, rule: Preprocessing, task: DecodeTask, max_pixels: int
) -> Image.Image:
    """Return the image, decoded once more if it was decoded at a size that is less than a thumbnail's."""
    side = task.thumbnail
    if not rule.draft or max(image.size) >= side or max(image.size) == max(open_file(data).size):
        return image
    return decode_image(data, max_pixels=max_pixels, enough=lambda width, height: _within(width, height, side))


def _within(width: int, height: int, side: int) -> tuple[int, int]:
    scale = side / max(width, height)
    return max(1, math.ceil(width * scale)), max(1, math.ceil(height * scale))


def _keep_thumbnail(image: Image.Image, slot: Any, row: int, side: int) -> None:
    encoded = _thumbnail(image, side)
    slot["thumbnail_sizes"][row] = len(encoded)
    slot["thumbnails"][row, : len(encoded)] = np.frombuffer(encoded, np.uint8)


def _reject(error: ImageError | MemoryError, task: DecodeTask) -> tuple[int, str]:
    """Return the status of an image that cannot be decoded, and the reason."""
    if isinstance(error, ImageError) and not isinstance(error.__cause__, MemoryError):
        return LIMITED if isinstance(error, ImageLimitError) else REJECTED, error.reason
    return LIMITED, f"needs more than {task.limit_memory_bytes >> 20} MiB to decode"


def _thumbnail(image: Image.Image, side: int) -> bytes:
    small = image.convert("L" if image.mode == "L" else "RGB")
    small.thumbnail((side, side))
    small.info.clear()  # Pillow would copy comments and profiles into the thumbnail
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_THUMBNAIL_QUALITY)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
