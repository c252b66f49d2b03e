"""What the README shows works."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from hashlight.pipelines.cli.main import app

README = Path(__file__).parent.parent / "README.md"


def test_the_quickstart_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 15
    assert "assert" in code.strip().splitlines()[-1]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_it_is_short():
    assert len(README.read_text().splitlines()) < 160


def test_every_command_and_option_of_the_readme_exists():
    commands = re.findall(r"^hashlight (\w+) (.*)$", README.read_text(), flags=re.MULTILINE)
    assert {name for name, _ in commands} >= {"train", "encode", "build", "search"}
    for name, arguments in commands:
        usage = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
        for option in re.findall(r"(?<!\S)--?[a-z]+(?:-[a-z]+)*", arguments):
            assert option in usage, (name, option)
