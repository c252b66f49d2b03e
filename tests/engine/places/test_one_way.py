"""All reads and writes go through `engine.places`: no other package talks to stores or publishes files by itself."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
CLIENTS = {"obstore", "boto3", "botocore", "fsspec", "s3fs", "gcsfs", "adlfs", "pyarrow.fs"}
# Ray Train wants a store for results that are not used: it is given one in memory.
OWN_STORES = {
    "pipelines/training/workers.py": [
        "fsspec.implementations.memory",
        "fsspec.implementations.memory.MemoryFileSystem",
        "pyarrow.fs",
    ]
}
# The encoders import nothing from the engine; calibration and the doctor measure the disk; a log is appended to.
OWN_FSYNC = {
    "encoders/encoder.py",
    "engine/writing/log.py",
    "pipelines/capacity/calibrate.py",
    "pipelines/doctor/disks.py",
}


def files_elsewhere():
    for room in ("encoders", "engine", "pipelines"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith("engine/places/"):
                yield name, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def test_only_places_talk_to_stores():
    found = {
        name: sorted(modules)
        for name, tree in files_elsewhere()
        if (modules := {m for m in imported(tree) if m in CLIENTS or m.partition(".")[0] in CLIENTS})
    }
    assert found == OWN_STORES


def test_only_places_fsync():
    calls = {
        name
        for name, tree in files_elsewhere()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.fsync"
    }
    assert calls == OWN_FSYNC


def test_these_checks_find_what_they_look_for():
    tree = ast.parse("import boto3\nfrom pyarrow import fs\nimportlib.import_module('fsspec.core')")
    assert set(imported(tree)) >= {"boto3", "pyarrow.fs", "fsspec.core"}
    places = [ast.unparse(ast.parse(path.read_text())) for path in (ROOT / "engine" / "places").glob("*.py")]
    assert any("os.fsync" in text for text in places)
