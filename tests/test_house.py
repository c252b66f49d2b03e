"""The house rules that no other tool checks: the size of folders and functions, and that the map is true."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("encoders", "engine", "pipelines")
TOP = {
    ".ci", ".dockerignore", ".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile",
    "README.md", "SECURITY.md", "benchmarks", "constraints.txt", "deploy", "docs", "encoders", "engine", "hashlight",
    "mkdocs.yml", "pipelines", "pyproject.toml", "tests",
}  # fmt: skip
MAX_FILES, MAX_LINES, MAX_ARGUMENTS = 12, 60, 12

FILES = sorted(file for part in PARTS for file in (ROOT / part).rglob("*.py"))
FOLDERS = sorted({file.parent for file in FILES})


def functions(file):
    tree = ast.parse(file.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def named(file, node):
    return f"{file.relative_to(ROOT)}::{node.name}"


def num_lines(node):
    return node.end_lineno - node.lineno + 1


def num_arguments(node):
    arguments = node.args
    return len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)


def test_there_is_something_to_check():
    assert len(FILES) > 100
    assert sum(len(functions(file)) for file in FILES) > 500


def test_nothing_else_lies_at_the_top():
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("git is not installed, or this is not a checkout")
    tracked = subprocess.run(
        [git, "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert {path.partition("/")[0] for path in tracked} <= TOP


def test_no_folder_holds_more_than_a_dozen_files_of_code():
    counts = {
        str(folder.relative_to(ROOT)): len([file for file in folder.glob("*.py") if file.name != "__init__.py"])
        for folder in FOLDERS
    }
    assert {folder: count for folder, count in counts.items() if count > MAX_FILES} == {}


def test_no_function_is_longer_than_sixty_lines_but_in_kernels():
    lengths = {
        named(file, node): num_lines(node) for file in FILES if "kernels" not in file.parts for node in functions(file)
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_function_takes_more_than_a_dozen_arguments():
    counts = {named(file, node): num_arguments(node) for file in FILES for node in functions(file)}
    assert {name: count for name, count in counts.items() if count > MAX_ARGUMENTS} == {}


def map_of_the_rooms():
    """Read the tables of docs/architecture.md: {dotted room: floor}."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms, container = {}, None
    for line in text.splitlines():
        if heading := re.match(r"\| floor \| of `([\w.]+)` \|", line):
            container = heading[1]
        elif room := re.match(r"\| (\d+|-) \| `([\w.]+)` \| .+ \|$", line):
            rooms[f"{container}.{room[2]}"] = room[1]
    return rooms


def floors_of(contract):
    """Return the floors in a contract: {dotted room: floor}."""
    [container] = contract["containers"]
    layers = [re.findall(r"\w+", layer) for layer in reversed(contract["layers"])]
    return {f"{container}.{room}": str(floor) for floor, rooms in enumerate(layers, start=1) for room in rooms}


def contracts():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return [contract for contract in settings["contracts"] if contract["type"] == "layers"]


@pytest.mark.parametrize("contract", contracts(), ids=lambda contract: contract["name"])
def test_the_map_has_the_floors_that_are_enforced(contract):
    assert contract["exhaustive"]
    floors = {room: floor for room, floor in floors_of(contract).items() if room != "hashlight.__main__"}
    assert len(floors) > 2
    mapped = map_of_the_rooms()
    assert {room: mapped.get(room) for room in floors} == floors


def test_every_room_has_its_line_on_the_map():
    rooms = {"hashlight." + ".".join(folder.relative_to(ROOT).parts) for folder in FOLDERS}
    mapped = map_of_the_rooms()
    assert rooms - mapped.keys() == set()


def test_the_map_has_no_line_for_a_room_that_is_gone():
    places = [ROOT.joinpath(*room.split(".")[1:]) for room in map_of_the_rooms()]
    assert [str(place) for place in places if not place.is_dir() and not place.with_suffix(".py").is_file()] == []
