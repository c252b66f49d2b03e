"""What the README shows works."""

from __future__ import annotations

from tests.pages import ROOT, blocks_of

README = "README.md"


def test_the_quickstart_runs(tmp_path, monkeypatch):
    (code,) = [block.text for block in blocks_of(README) if block.language == "python"]
    assert len(code.strip().splitlines()) <= 15
    assert "assert" in code.strip().splitlines()[-1]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, README, "exec"), {})


def test_it_is_short():
    assert len((ROOT / README).read_text().splitlines()) < 120
