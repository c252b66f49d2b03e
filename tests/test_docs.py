"""The examples of docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module",
    ["hashlight.engine.client.client", "hashlight.engine.collection.collection", "hashlight.engine.filters.filter"],
)
def test_docstring_examples(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failed == 0
