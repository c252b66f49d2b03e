"""The disks that hold collections, caches and temporary files: room, and how fast they are read at random."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import platformdirs

from hashlight.engine.cache import size
from hashlight.engine.kernels.compiling import cache_folder as kernels_folder
from hashlight.engine.places.uris import is_local
from hashlight.pipelines.doctor.findings import GIB, Asked, Finding, gib

LEAST_ROOM, GOOD_ROOM = GIB, 10 * GIB
GOOD_READS = 2_000  # a second; a disk that turns has a hundred for each head, an SSD tens of thousands
_BLOCK = 4_096
_TRIAL_BYTES = 64 * 2**20
_TRIAL_S = 1.0
_AT_ONCE = 8


class Speed(NamedTuple):
    """How fast a file was read at random.

    Attributes
    ----------
    reads_s : float
        Reads of 4 KiB a second, eight at a time.
    is_direct : bool
        Whether every read went to the disk; else the system may have had some in memory.
    """

    reads_s: float
    is_direct: bool


def disks(asked: Asked) -> Iterator[Finding]:
    """Tell how much room there is where Hashlight writes, and how fast the collection's disk is read."""
    folders = {"temporary files": Path(tempfile.gettempdir()), "caches": Path(platformdirs.user_cache_dir("hashlight"))}
    if asked.collection is not None and is_local(asked.collection):
        folders["the collection"] = Path(asked.collection)
    seen: dict[int, list[str]] = {}
    places: dict[int, Path] = {}
    for what, folder in folders.items():
        place = _nearest(folder)
        seen.setdefault(place.stat().st_dev, []).append(what)
        places.setdefault(place.stat().st_dev, place)
    for device, whats in seen.items():
        usage, inodes = shutil.disk_usage(places[device]), os.statvfs(places[device])
        left = inodes.f_favail / inodes.f_files if inodes.f_files else 1.0
        yield room_of(" and ".join(whats), usage.free, usage.total, left)
    yield speed_of_folder(folders.get("the collection", folders["caches"]))


def room_of(what: str, free: int, total: int, free_inodes: float = 1.0) -> Finding:
    """Judge the room on a disk, in bytes, and the share of its inodes that is free."""
    found = f"{gib(free)} of {gib(total)} are free for {what}"
    numbers = {"what": what, "free": free, "total": total, "free_inodes": free_inodes}
    if free_inodes < 0.01:
        found += f", but only {free_inodes:.1%} of the inodes"
        advice = "remove files that are not needed: with no inode left, none can be made"
        return Finding(check="disk", state="problem", found=found, advice=advice, numbers=numbers)
    if free < LEAST_ROOM:
        advice = "remove what is not needed (`hashlight prune` removes old versions), or use a larger disk"
        return Finding(check="disk", state="problem", found=found, advice=advice, numbers=numbers)
    if free < GOOD_ROOM and free < 0.1 * total:
        advice = "make room: a version that is built or compacted needs as much again as it has"
        return Finding(check="disk", state="warning", found=found, advice=advice, numbers=numbers)
    return Finding(check="disk", state="ok", found=found, numbers=numbers)


def speed_of_folder(folder: Path) -> Finding:
    """Measure how fast files of a folder are read at random: its largest one, or one made for the purpose."""
    with contextlib.ExitStack() as stack:
        try:
            path = _largest(folder) or stack.enter_context(_trial(_nearest(folder)))
            return speed_of(measure(path), folder)
        except OSError as error:
            found = f"{folder} cannot be measured: {error.strerror or error}"
            advice = "make it readable, and writable, for this user, or name a collection on that disk"
            return Finding(check="disk", state="warning", found=found, advice=advice)


def speed_of(speed: Speed, folder: Path) -> Finding:
    """Judge how fast a folder's disk is read at random."""
    how = "" if speed.is_direct else ", of which the system had some in memory"
    found = f"{speed.reads_s:,.0f} random reads a second in {folder}{how}"
    numbers = speed._asdict()
    if speed.reads_s >= GOOD_READS:
        return Finding(check="disk", state="ok", found=found, numbers=numbers)
    advice = (
        "the disk is slow, as one that turns or is across a network: put collections on a local SSD, or give the "
        "machine memory for all of them"
    )
    return Finding(check="disk", state="warning", found=found, advice=advice, numbers=numbers)


def measure(path: Path, seconds: float = _TRIAL_S) -> Speed:
    """Read blocks of a file at random for a while, past the system's cache where that can be.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    descriptor, is_direct = _open(path)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        blocks = max(1, os.fstat(descriptor).st_size // _BLOCK)
        begun_s = time.perf_counter()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            counts = list(pool.map(lambda seed: _read(descriptor, blocks, seed, begun_s + seconds), range(_AT_ONCE)))
        return Speed(sum(counts) / (time.perf_counter() - begun_s), is_direct)
    finally:
        os.close(descriptor)


def _open(path: Path) -> tuple[int, bool]:
    """Open a file past the system's cache if that is possible; return its descriptor, and whether it was."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            with contextlib.closing(mmap.mmap(-1, _BLOCK)) as block:
                os.preadv(descriptor, [block], 0)
            return descriptor, True
        except OSError:
            os.close(descriptor)
    return os.open(path, os.O_RDONLY), False


def _read(descriptor: int, blocks: int, seed: int, until_s: float) -> int:
    """Read blocks at random until a time, one at least; return how many."""
    rng, count = random.Random(seed), 0
    with contextlib.closing(mmap.mmap(-1, _BLOCK)) as block:  # aligned, as direct reads demand
        while not count or time.perf_counter() < until_s:
            os.preadv(descriptor, [block], _BLOCK * rng.randrange(blocks))
            count += 1
    return count


def _largest(folder: Path) -> Path | None:
    """Return the largest file below a folder if it is large enough to be measured."""
    files = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    sizes = [(path.stat().st_size, path) for path in files if path.is_file()]
    num_bytes, path = max(sizes, default=(0, folder))
    return path if num_bytes >= _TRIAL_BYTES else None


@contextlib.contextmanager
def _trial(folder: Path) -> Iterator[Path]:
    """Yield a file that is on the disk, and is removed at the end."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".hashlight-doctor-") as file:
        block = os.urandom(2**20)
        for _ in range(_TRIAL_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


def cache(asked: Asked) -> Iterator[Finding]:
    """Tell whether compiled kernels and copies of collections can be kept, and how much of those there is."""
    yield from folders_of([Path(platformdirs.user_cache_dir("hashlight")), kernels_folder().parent])
    yield from kept()


def folders_of(folders: Sequence[Path]) -> Iterator[Finding]:
    """Judge whether folders of caches can be written."""
    for folder in dict.fromkeys(folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            found = f"{folder} cannot be written: {error.strerror or error}"
            advice = (
                "make it writable, or name another (XDG_CACHE_HOME, and NUMBA_CACHE_DIR for compiled kernels): every "
                "process compiles for twenty seconds, and collections in buckets cannot be opened"
            )
            yield Finding(check="cache", state="problem", found=found, advice=advice)
        else:
            yield Finding(check="cache", state="ok", found=f"{folder} can be written")


def kept() -> Iterator[Finding]:
    """Judge what is kept of collections in buckets, and how much may be, if there is a place for it."""
    try:
        size.cache_folder().mkdir(parents=True, exist_ok=True)
        held = size.count_held()
        limit = size.max_bytes(held)
    except ValueError as error:
        advice = f"correct {size.VARIABLE}, such as 200GB, or leave it out"
        yield Finding(check="cache", state="problem", found=str(error), advice=advice)
        return
    except OSError:
        return
    numbers = {"held": held, "limit": limit}
    found = f"{gib(held)} of collections in buckets are kept, of at most {gib(limit)}"
    if limit < max(held, LEAST_ROOM):
        advice = f"allow more ({size.VARIABLE}) or make room on its disk: what is fetched pushes out what is needed"
        yield Finding(check="cache", state="warning", found=found, advice=advice, numbers=numbers)
        return
    yield Finding(check="cache", state="ok", found=found, numbers=numbers)
