"""The examples of docstrings run, and every promise on resilience names tests that exist."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hashlight.pipelines.cli.main import app


@pytest.mark.parametrize(
    "module",
    ["hashlight.engine.client.client", "hashlight.engine.collection.collection", "hashlight.engine.filters.filter"],
)
def test_docstring_examples(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("page", ["docs/living-collection.md"])
def test_every_example_of_a_page_runs(page, tmp_path, monkeypatch):
    run_examples(page, tmp_path, monkeypatch)


@pytest.mark.usefixtures("ray_session")
def test_every_example_of_embeddings_runs(tmp_path, monkeypatch):
    run_examples("docs/embeddings.md", tmp_path, monkeypatch)


def run_examples(page, tmp_path, monkeypatch):
    blocks = re.findall(r"```(python|bash)\n(.*?)```", Path(page).read_text(), flags=re.DOTALL)
    assert {language for language, _ in blocks} == {"python", "bash"}
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, text in blocks:
        if language == "python":
            exec(compile(text, page, "exec"), names)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "hashlight"
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, (line, done.output)


def test_every_promise_is_kept_by_tests_that_exist():
    page = Path("docs/resilience.md").read_text()
    promises = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(promises) > 60
    for promise in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promise)
        assert named, promise
        for path, name in named:
            assert f"def {name}" in Path(path).read_text(), promise
