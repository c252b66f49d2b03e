"""Commands run in any folder, whatever packages and modules are in it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hashlight.engine.client.client import SearchClient
from hashlight.engine.collection.collection import Collection

# Ten processes that load torch or Ray each, on a machine that may be busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SCRIPT = (str(Path(sys.executable).parent / "hashlight"),)
MODULE = (sys.executable, "-P", "-m", "hashlight")
# Our folders, packages that jobs use, and modules of the standard library that are imported early and late.
PACKAGES = ("engine", "encoders", "pipelines", "hashlight", "torch", "ray", "numpy")
MODULES = ("types", "queue", "random", "ipaddress")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder whose modules all fail when they are imported."""
    trap = 'raise RuntimeError(f"{__name__} was imported from the working folder")\n'
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(trap)
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(trap)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path


def run(program, *arguments):
    done = subprocess.run([*program, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "program", [pytest.param(SCRIPT, id="script", marks=pytest.mark.long), pytest.param(MODULE, id="module")]
)
def test_every_job_runs_beside_packages_of_our_names(program, folder, corpus):
    learn = ("--input", corpus, "--output", "encoder", "--bits", 16, "--epochs", 1, "--warmup-epochs", 0)
    workers = ("--workers", 1) if program is SCRIPT else ()
    run(program, "train", *learn, *workers)
    run(program, "encode", "--input", corpus, "--encoder", "encoder", "--output", "codes", "--actors", 1)
    run(program, "build", "--codes", "codes", "--output", "collection", "--shards", 2)
    run(program, "dedup", "collection", "--radius", 0, "--output", "duplicates")
    run(program, "search", "collection", "--codes", "codes", "--radius", 0, "--output", "found.parquet")
    assert len(Collection.open("collection")) == 300
    assert all(distances[0] == 0 for distances in pq.read_table("found.parquet")["distances"].to_pylist())
    assert (folder / "duplicates" / "gallery.html").is_file()
    serves(program, "collection", "--port", 0, "--groups", 1)


def serves(program, *arguments):
    command = [*program, "serve", *map(str, arguments)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        found = re.search(r"at (https?://\S+)", server.stdout.readline())
        assert found, server.stderr.read()
        with SearchClient(found[1], timeout_s=60) as client:
            assert len(client.search(1007, k=5)[0]) == 5
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
