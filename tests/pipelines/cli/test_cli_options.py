"""Options: what a person types arrives in the right field; the help lists what was declared, and appears quickly."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from hashlight.pipelines.cli.grouping import expand_groups


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option(min=1)]
    height: Annotated[int, typer.Option(min=1)] = 7


@dataclass(frozen=True, kw_only=True)
class Colour:
    names: Annotated[list[str] | None, typer.Option("--name")] = None


def draw(*, title: Annotated[str, typer.Argument()] = "none", size: Size, colour: Colour) -> None:
    """Draw something."""
    typer.echo(f"{title} {size} {colour}")


@pytest.fixture
def app():
    made = typer.Typer()
    made.command()(expand_groups(draw))
    return made


def test_fields_take_the_place_of_their_group():
    expanded = expand_groups(draw)
    assert list(inspect.signature(expanded).parameters) == ["title", "width", "height", "names"]
    assert inspect.signature(expanded).parameters["width"].default is inspect.Parameter.empty
    assert inspect.signature(expanded).parameters["height"].default == 7
    assert (expanded.__name__, expanded.__doc__) == ("draw", "Draw something.")


def test_every_option_arrives_in_its_field(app):
    result = CliRunner().invoke(app, ["T", "--width", "3", "--name", "red", "--name", "blue"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"T {Size(width=3, height=7)} {Colour(names=['red', 'blue'])}\n"


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "Missing option"), (["--width", "0"], "greater than or equal to 1")]
)
def test_a_field_is_checked_as_an_option_is(app, arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_two_options_with_the_same_name_are_refused():
    def draw_twice(size: Size, width: int) -> None:
        raise AssertionError("never called")

    with pytest.raises(ValueError, match="duplicate parameter name: 'width'"):
        expand_groups(draw_twice)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_loads_none_of_the_libraries_that_jobs_need(arguments):
    program = f"""
import sys
from hashlight.pipelines.cli.main import app
app({arguments}, prog_name="hashlight", standalone_mode=False)
assert not {{"torch", "ray", "faiss", "numba", "numpy", "pyarrow", "PIL", "sklearn", "httpx"}} & set(sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "hashlight" in shown.stdout
