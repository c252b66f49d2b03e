"""The processor, memory, and the limits that the operating system sets."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator, Mapping

from hashlight.engine import machine
from hashlight.pipelines.doctor.findings import GIB, Asked, Finding, gib

# A gateway holds a thousand connections, and a shard opens a dozen files.
LEAST_FILES, GOOD_FILES = 1_200, 4_096
LEAST_MEMORY, GOOD_MEMORY = GIB // 2, 2 * GIB
_GOOD_THREADS = 512


def processor(asked: Asked) -> Iterator[Finding]:
    """Tell what kernels can use of the processor, and how many cores there are."""
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

    yield features_of(platform.machine(), get_host_cpu_name(), dict(get_host_cpu_features()))
    installed = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else installed
    yield cores_of(installed, allowed, machine.cpu_limit())


def features_of(architecture: str, name: str, features: Mapping[str, bool]) -> Finding:
    """Judge the instructions of a processor, by the names that LLVM has for them."""
    known = ("popcnt", "avx2", "avx512f", "avx512vpopcntdq", "neon", "sve")
    has = [one for one in known if features.get(one)]
    numbers = {"architecture": architecture, "processor": name, "features": has}
    found = f"{architecture}, {name}: {', '.join(has) or 'no vector instructions that are known here'}"
    if architecture in ("x86_64", "AMD64") and "avx2" not in has:
        advice = (
            "codes are compared several times slower than with AVX2: use another machine, or let the virtual machine "
            "have the processor's own features (`-cpu host`)"
        )
        return Finding(check="processor", state="warning", found=found, advice=advice, numbers=numbers)
    return Finding(check="processor", state="ok", found=found, numbers=numbers)


def cores_of(installed: int, allowed: int, limit: float | None) -> Finding:
    """Judge the cores of a machine, those that this process may run on, and the limit of its container."""
    numbers = {"installed": installed, "allowed": allowed, "limit": limit}
    found = f"{allowed} of {installed} cores" if allowed < installed else f"{installed} cores"
    if limit is None or limit >= allowed:
        return Finding(check="processor", state="ok", found=found, numbers=numbers)
    found += f", and time of {limit:g} for this container"
    if limit < 1 or limit != int(limit):
        advice = "give the container whole cores, at least one: its threads are stopped when their time is used up"
        return Finding(check="processor", state="warning", found=found, advice=advice, numbers=numbers)
    return Finding(check="processor", state="ok", found=found, numbers=numbers)


def memory(asked: Asked) -> Iterator[Finding]:
    """Tell how much memory there is."""
    found = machine.memory()
    if found is not None:
        yield memory_of(found)


def memory_of(found: machine.Memory) -> Finding:
    """Judge the memory that is available."""
    whose = "of this container" if found.is_limited else "of this machine"
    text = f"{gib(found.available)} of the {gib(found.total)} {whose} are available"
    numbers = found._asdict()
    if found.available < LEAST_MEMORY:
        advice = "end other programs, or give it more: with so little, processes are killed while they start"
        return Finding(check="memory", state="problem", found=text, advice=advice, numbers=numbers)
    if found.available < GOOD_MEMORY:
        advice = "give it at least 2 GiB: encoding, building and training need that in every process"
        return Finding(check="memory", state="warning", found=text, advice=advice, numbers=numbers)
    return Finding(check="memory", state="ok", found=text, numbers=numbers)


def limits(asked: Asked) -> Iterator[Finding]:
    """Tell how many files, threads and addresses a process may have."""
    yield files_of(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield threads_of(machine.threads_left(), resource.getrlimit(resource.RLIMIT_NPROC)[0])
    yield addresses_of(resource.getrlimit(resource.RLIMIT_AS)[0])


def files_of(soft: int, hard: int) -> Finding:
    """Judge the limit on open files; `resource.RLIM_INFINITY` is none."""
    if soft == resource.RLIM_INFINITY:
        return Finding(check="limits", state="ok", found="any number of open files")
    numbers = {"soft": soft, "hard": None if hard == resource.RLIM_INFINITY else hard}
    found = f"at most {soft:,} open files"
    if soft >= GOOD_FILES:
        return Finding(check="limits", state="ok", found=found, numbers=numbers)
    how = "`ulimit -n 65536`, `LimitNOFILE=65536` of systemd, `--ulimit nofile=65536` of Docker"
    if soft < LEAST_FILES:
        advice = f"raise it ({how}): a gateway of a thousand connections runs out of them, and refuses clients"
        return Finding(check="limits", state="problem", found=found, advice=advice, numbers=numbers)
    advice = f"raise it ({how}), for collections of many shards"
    return Finding(check="limits", state="warning", found=found, advice=advice, numbers=numbers)


def threads_of(left: int | None, processes: int) -> Finding:
    """Judge how many threads the container may still start, and how many processes the user may have."""
    if processes != resource.RLIM_INFINITY:
        left = processes if left is None else min(left, processes)
    if left is None:
        return Finding(check="limits", state="ok", found="any number of threads")
    numbers, found = {"left": left}, f"at most {left:,} more threads"
    if left >= _GOOD_THREADS:
        return Finding(check="limits", state="ok", found=found, numbers=numbers)
    advice = "raise the container's limit on pids (`--pids-limit` of Docker, `TasksMax=` of systemd) or `ulimit -u`"
    return Finding(check="limits", state="warning", found=found, advice=advice, numbers=numbers)


def addresses_of(soft: int) -> Finding:
    """Judge the limit on virtual memory."""
    if soft == resource.RLIM_INFINITY:
        return Finding(check="limits", state="ok", found="no limit on virtual memory")
    advice = "lift it (`ulimit -v unlimited`): files are mapped, which takes addresses and no memory"
    found = f"at most {gib(soft)} of virtual memory"
    return Finding(check="limits", state="warning", found=found, advice=advice, numbers={"soft": soft})
