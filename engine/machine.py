"""What the operating system lets this process use, the limits of its container included.

Limits are those of the process's control groups, of either version, and of all above them. Functions take the root of
the file system, under which `proc` and `sys` are read; what cannot be read there is no limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/")
_UNLIMITED = 1 << 60  # version 1 has no word for it, but a number of bytes that no machine has


class Memory(NamedTuple):
    """Memory of this process and of all others that share it, in bytes.

    Attributes
    ----------
    total : int
    available : int
        What is free, or would be if less of files was cached.
    is_limited : bool
        Whether `total` is a limit of the container, and not what the machine has.
    """

    total: int
    available: int
    is_limited: bool


def cpu_limit(root: Path = _ROOT) -> float | None:
    """Return how many cores' worth of time this process may use, or None if there is no limit."""
    limits = []
    for folder in _groups(root, "cpu"):
        words = _words(folder / "cpu.max")
        if not words:
            words = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def memory(root: Path = _ROOT) -> Memory | None:
    """Return what memory there is, or None where the operating system does not say."""
    about = _table(root / "proc/meminfo")
    if not {"MemTotal:", "MemAvailable:"} <= about.keys():
        return None
    found = Memory(1024 * about["MemTotal:"], 1024 * about["MemAvailable:"], False)
    for folder in _groups(root, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        if limit is None or limit >= _UNLIMITED:
            continue
        stat = _table(folder / "memory.stat")
        left = max(0, limit - used + stat.get("inactive_file", stat.get("total_inactive_file", 0)))
        found = Memory(min(found.total, limit), min(found.available, left), found.is_limited or limit < found.total)
    return found


def threads_left(root: Path = _ROOT) -> int | None:
    """Return how many more threads and processes this one's container may start, or None if there is no limit."""
    left = []
    for folder in _groups(root, "pids"):
        limit, used = _number(folder / "pids.max"), _number(folder / "pids.current")
        if limit is not None and used is not None:
            left.append(max(0, limit - used))
    return min(left, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups, from its own to the topmost, that may exist."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0":
                mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
            elif controller in controllers.split(","):
                mounts = [f"sys/fs/cgroup/{controllers}", f"sys/fs/cgroup/{controller}"]
            else:
                continue
            # A container may see its own group as the topmost, and still be told its path outside.
            own = Path(path.strip().lstrip("/"))
            for mount in mounts:
                yield from (root / mount / one for one in (own, *own.parents))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if len(words) == 1 and words[0].isdecimal() else None


def _table(path: Path) -> dict[str, int]:
    """Read lines of a name, a number and perhaps a unit."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}
