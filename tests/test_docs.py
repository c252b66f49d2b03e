"""The examples of docstrings run, and every promise on resilience names tests that exist."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "module",
    ["hashlight.engine.client.client", "hashlight.engine.collection.collection", "hashlight.engine.filters.filter"],
)
def test_docstring_examples(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failed == 0


def test_every_promise_is_kept_by_tests_that_exist():
    page = Path("docs/resilience.md").read_text()
    promises = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(promises) > 60
    for promise in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promise)
        assert named, promise
        for path, name in named:
            assert f"def {name}" in Path(path).read_text(), promise
