"""Compiled kernels are kept by the sources that they were compiled from, wherever they are kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

COUNT = """
import numpy as np
from hashlight.engine.kernels import histogram
total = np.zeros((1, 65), np.int64)
zeros = np.zeros(1, np.int64)
three = np.array([[0b111]], np.uint64)
histogram.count_distances(three, np.zeros((1, 1), np.uint64), zeros, zeros, total, total.copy())
print(histogram.__file__, np.flatnonzero(total)[0])
"""


@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR", pytest.param("XDG_CACHE_HOME", marks=pytest.mark.slow)])
def test_a_kernel_is_compiled_again_when_what_it_inlines_has_changed(tmp_path, variable):
    """`count_distances` inlines `popcount` of another file; its own file does not change."""
    shutil.copytree(ROOT / "engine" / "kernels", tmp_path / "hashlight" / "engine" / "kernels")
    for folder in ("hashlight", "hashlight/engine"):
        (tmp_path / folder / "__init__.py").touch()
    popcount = tmp_path / "hashlight" / "engine" / "kernels" / "popcount.py"
    assert run(tmp_path, variable) == 3
    source = popcount.read_text(encoding="utf-8")
    changed = source.replace("builder.ctpop(args[0])", "builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))")
    assert changed != source
    popcount.write_text(changed, encoding="utf-8")
    assert run(tmp_path, variable) == 0, "the lowest one of 0b111 is bit 0"


def run(folder, variable):
    """Count the distance of two codes by the kernels in `folder`, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment |= {variable: str(folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    path, distance = done.stdout.split()
    assert path.startswith(str(folder)), "the package under test, not the installed one"
    return int(distance)
