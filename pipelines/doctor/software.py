"""Packages and their versions, and what of FAISS, of a GPU and of Ray can be used."""

from __future__ import annotations

import glob
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from hashlight.engine import machine
from hashlight.engine.wording import counted
from hashlight.pipelines.doctor.findings import Asked, Finding, gib

PACKAGE = "hashlight"

_SHOWN = (
    "numpy", "numba", "pyarrow", "faiss-cpu", "faiss-gpu", "torch", "onnxruntime", "ray", "fastapi", "uvicorn"
)  # fmt: skip
_FAISS = ("faiss-cpu", "faiss-gpu")
_CONNECT_S = 5.0
_LEAST_SHARED = 0.1  # of memory, for Ray's objects, which it gives three tenths


def versions(asked: Asked) -> Iterator[Finding]:
    """Tell the versions of Hashlight and of what it consists of, and which do not fit."""
    system = f"Python {platform.python_version()} on {platform.system()} {platform.release()}"
    found = {name: version for name in (PACKAGE, *_SHOWN) if (version := _version_of(name)) is not None}
    text = f"{', '.join(f'{name} {version}' for name, version in found.items())}; {system}"
    yield Finding(check="versions", state="ok", found=text, numbers={**found, "python": platform.python_version()})
    yield from unmet(importlib.metadata.requires(PACKAGE) or [], _version_of)
    yield from both_faiss([name for name in _FAISS if name in found])


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def unmet(requirements: Iterable[str], version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """Judge installed packages by what Hashlight requires; those of its extras only if they are there.

    Parameters
    ----------
    requirements : iterable of str
        As in a package's metadata: `numba>=0.61`, `faiss-cpu>=1.13; extra == "cpu"`.
    version_of : callable
        Returns the version of an installed package, None if it is not there.
    """
    wanted: dict[str, SpecifierSet] = {}
    needed: set[str] = set()
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        is_extra = "extra" in str(requirement.marker)
        if is_extra or requirement.marker is None or requirement.marker.evaluate():
            wanted[requirement.name] = wanted.get(requirement.name, SpecifierSet()) & requirement.specifier
            needed |= set() if is_extra else {requirement.name}
    for name, expected in sorted(wanted.items()):
        version = version_of(name)
        numbers = {"package": name, "installed": version, "expected": str(expected)}
        how = f"pip install '{name}{expected}'"
        if version is None and name in needed:
            yield Finding(
                check="versions", state="problem", found=f"{name} is not installed", advice=how, numbers=numbers
            )
        elif version is not None and not expected.contains(version, prereleases=True):
            found = f"{name} {version} is installed, expected {expected}"
            yield Finding(check="versions", state="problem", found=found, advice=how, numbers=numbers)


def both_faiss(installed: list[str]) -> Iterator[Finding]:
    """Judge which packages of FAISS there are: each brings a module `faiss`."""
    if len(installed) > 1:
        advice = f"pip uninstall {' '.join(installed)}, then install one of the two"
        yield Finding(
            check="versions", state="problem", found=f"{' and '.join(installed)} are both installed", advice=advice
        )


def faiss(asked: Asked) -> Iterator[Finding]:
    """Tell how FAISS was built."""
    from llvmlite.binding import get_host_cpu_features

    try:
        module: Any = importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        yield Finding(check="faiss", state="ok", found="not installed: needed by jobs and by indexes of FAISS alone")
        return
    gpus = module.get_num_gpus() if hasattr(module, "get_num_gpus") else 0
    yield build_of(module.__version__, module.get_compile_options(), dict(get_host_cpu_features()), gpus)


def build_of(version: str, options: str, features: Mapping[str, bool], gpus: int = 0) -> Finding:
    """Judge how FAISS was built for a processor, by the names that LLVM has for its features."""
    options = " ".join(options.split())
    numbers = {"version": version, "options": options, "gpus": gpus}
    found = f"FAISS {version}, built with {options or 'no options'}" + (f", {gpus} GPUs" if gpus else "")
    if features.get("avx2") and not re.search(r"\bAVX(2|512)", options):
        advice = "its build does not use the AVX2 of this processor: install faiss-cpu from PyPI, or build it with AVX2"
        return Finding(check="faiss", state="warning", found=found, advice=advice, numbers=numbers)
    return Finding(check="faiss", state="ok", found=found, numbers=numbers)


class Gpus(NamedTuple):
    """What there is of GPUs, and what torch makes of it.

    Attributes
    ----------
    devices : int
        Of the operating system.
    torch : str or None
        Version of torch; None if it is not installed.
    cuda : str or None
        Version of CUDA that torch was built for; None if it was built without.
    usable : list of str
        Names of the devices that torch can use.
    """

    devices: int
    torch: str | None
    cuda: str | None
    usable: list[str]


def gpu(asked: Asked) -> Iterator[Finding]:
    """Tell whether there are GPUs, and whether torch can use them."""
    devices = len([path for path in glob.glob("/dev/nvidia*") if re.fullmatch(r"/dev/nvidia\d+", path)])
    if devices == 0 or _version_of("torch") is None:
        yield gpus_of(Gpus(devices, _version_of("torch"), None, []))
        return
    torch: Any = importlib.import_module("torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(number) for number in range(count)]
    yield gpus_of(Gpus(devices, torch.__version__, torch.version.cuda, names))


def gpus_of(found: Gpus) -> Finding:
    """Judge whether the GPUs that are there can be used."""
    numbers = found._asdict()
    if found.devices == 0:
        return Finding(check="gpu", state="ok", found="none: processors encode", numbers=numbers)
    there = f"{found.devices} NVIDIA GPU" + ("s" if found.devices > 1 else "")
    if found.torch is None:
        return Finding(check="gpu", state="ok", found=f"{there}, and no torch that would use it", numbers=numbers)
    if found.cuda is None:
        advice = "install a build of torch with CUDA (https://pytorch.org/get-started) to encode and train on it"
        text = f"{there}, and torch {found.torch} was built without CUDA"
        return Finding(check="gpu", state="warning", found=text, advice=advice, numbers=numbers)
    if len(found.usable) < found.devices:
        text = f"{there}, of which torch {found.torch} (CUDA {found.cuda}) can use {len(found.usable)}"
        advice = (
            "see what `nvidia-smi` says: the driver may be older than that CUDA needs, CUDA_VISIBLE_DEVICES may leave "
            "some out, or the container may have been started without `--gpus`"
        )
        return Finding(check="gpu", state="warning", found=text, advice=advice, numbers=numbers)
    text = f"{', '.join(found.usable)}, by torch {found.torch} (CUDA {found.cuda})"
    return Finding(check="gpu", state="ok", found=text, numbers=numbers)


def ray(asked: Asked) -> Iterator[Finding]:
    """Tell whether Ray has the shared memory it needs, and whether its cluster answers, if there is one."""
    version = _version_of("ray")
    if version is None:
        yield Finding(check="ray", state="ok", found="not installed: needed by jobs alone")
        return
    yield Finding(check="ray", state="ok", found=f"Ray {version}", numbers={"version": version})
    found = machine.memory()
    if found is not None and Path("/dev/shm").is_dir():
        yield shared_memory_of(shutil.disk_usage("/dev/shm").total, found.total)
    if address := os.environ.get("RAY_ADDRESS"):
        yield cluster_of(address, "RAY_ADDRESS names it")
    elif (address := _current_cluster()) is not None:
        yield cluster_of(address, "this machine was made a part of it")


def shared_memory_of(shared: int, total: int) -> Finding:
    """Judge the size of `/dev/shm`, where Ray keeps objects."""
    numbers, found = {"shared": shared, "total": total}, f"{gib(shared)} of shared memory for Ray's objects"
    if shared >= _LEAST_SHARED * total:
        return Finding(check="ray", state="ok", found=found, numbers=numbers)
    advice = (
        "Ray keeps objects in files instead, which is slow: give the container more (`--shm-size` of Docker, a volume "
        f"in memory at /dev/shm in Kubernetes), a third of its {gib(total)}"
    )
    return Finding(check="ray", state="warning", found=found, advice=advice, numbers=numbers)


def _current_cluster() -> str | None:
    path = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def cluster_of(address: str, why: str) -> Finding:
    """Ask a cluster for its nodes."""
    numbers = {"address": address}
    advice = (
        "start it (`ray start --head`, or `ray up`), join it again (`ray stop`, `ray start --address`), or unset it"
    )
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        except OSError as error:
            found = f"the Ray cluster at {address} does not answer ({error}); {why}"
            return Finding(check="ray", state="problem", found=found, advice=advice, numbers=numbers)
    module: Any = importlib.import_module("ray")
    try:
        module.init(address=address, log_to_driver=False, configure_logging=False)
        nodes = module.nodes()
    except Exception as error:  # of many kinds
        found = f"the Ray cluster at {address} cannot be used: {' '.join(str(error).split())[:300]}; {why}"
        advice = f"{advice}; Python and Ray must have the same versions everywhere"
        return Finding(check="ray", state="problem", found=found, advice=advice, numbers=numbers)
    return nodes_of(address, nodes)


def nodes_of(address: str, nodes: Iterable[Mapping[str, Any]]) -> Finding:
    """Judge the nodes of a cluster, as `ray.nodes` lists them."""
    nodes = list(nodes)
    alive = [node for node in nodes if node["Alive"]]
    dead = len(nodes) - len(alive)
    cores = sum(node["Resources"].get("CPU", 0) for node in alive)
    gpus = sum(node["Resources"].get("GPU", 0) for node in alive)
    numbers = {"address": address, "alive": len(alive), "dead": dead, "cores": cores, "gpus": gpus}
    found = f"the cluster at {address} has {counted(len(alive), 'node')} with {cores:g} cores and {gpus:g} GPUs"
    if dead:
        advice = "see why with `ray list nodes`: jobs go on without them, and queries with fewer replicas"
        text = f"{found}, and {dead} that died"
        return Finding(check="ray", state="warning", found=text, advice=advice, numbers=numbers)
    return Finding(check="ray", state="ok", found=found, numbers=numbers)
