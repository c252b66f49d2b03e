"""The leaderboard points at files and programs that exist, and quotes what they say."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COLUMNS = ("area", "number", "conditions", "date", "commit", "machine", "result", "command")


def read_rows() -> list[dict[str, str]]:
    lines = (ROOT / "benchmarks" / "LEADERBOARD.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert tuple(table[0]) == COLUMNS
    return [dict(zip(COLUMNS, cells, strict=True)) for cells in table[2:]]


ROWS = read_rows()


def test_every_area_has_one_row():
    areas = [row["area"] for row in ROWS]
    assert len(set(areas)) == len(areas) >= 12


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["area"])
def test_the_result_file_exists_and_has_the_number(row):
    (link,) = re.findall(r"\]\((results/[^)]+)\)", row["result"])
    report = (ROOT / "benchmarks" / link).read_text()
    number = row["number"].split()[0]
    assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d.,]*\d)", report), (number, link)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["area"])
def test_the_command_names_a_benchmark_that_exists(row):
    (module,) = re.findall(r"python -m (benchmarks\.\w+)", row["command"])
    assert find_spec(module) is not None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["area"])
def test_the_command_gives_options_that_the_benchmark_has(row):
    (module,) = re.findall(r"python -m benchmarks\.(\w+)", row["command"])
    program = (ROOT / "benchmarks" / f"{module}.py").read_text()
    for option in re.findall(r"(?<!\S)--[a-z]+", row["command"]):
        assert f'"{option}"' in program, (module, option)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["area"])
def test_date_and_commit_are_given(row):
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", row["date"])
    assert re.fullmatch(r"[0-9a-f]{7,40}", row["commit"])
