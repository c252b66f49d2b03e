"""How a command fails: one line on the standard error and an exit code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ParamSpec

import typer
from rich.text import Text
from typer.core import TyperCommand

from hashlight.pipelines.cli.console import err

_P = ParamSpec("_P")
_shows_tracebacks: ContextVar[bool] = ContextVar("shows_tracebacks", default=False)


def show_tracebacks(wanted: bool) -> None:
    """Choose whether a failure shows its traceback, as `--debug` asks."""
    _shows_tracebacks.set(wanted)


class Command(TyperCommand):
    """A verb that says which value it refuses; what Typer refuses itself says only what was expected."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            refused = getattr(error.__cause__, "errors", None)  # of a `pydantic.ValidationError`
            if refused is not None:
                value = repr(refused()[0]["input"])
                error.message += "" if value in error.message else f", got {value}"
            raise


def command_name(verb: Callable[..., None]) -> str:
    """Return the name of a verb on the command line; a function whose name Python reserves ends in an underscore."""
    return verb.__name__.strip("_").replace("_", "-")


def report_errors(command: Callable[_P, None]) -> Callable[_P, None]:
    """Turn a failure of `command` into one line and exit code 1, an interruption into 130."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            err.print("interrupted: what is finished is kept; the same command resumes or starts again")
            raise typer.Exit(130) from None
        except Exception as error:
            if _shows_tracebacks.get():
                raise
            _print_error(_name_extra(error, command_name(command)))
            raise typer.Exit(1) from error

    return run


def _name_extra(error: Exception, verb: str) -> Exception:
    """Return the error to report instead, where a verb lacks a package that an extra brings."""
    from hashlight.engine.extras import missing

    named = missing(error, f"`hashlight {verb}`") if isinstance(error, ModuleNotFoundError) else None
    return named or error


def _print_error(error: Exception) -> None:
    expected = isinstance(error, _expected_errors())
    what = _said(error) if expected else f"unexpected {type(error).__name__}: {error}"
    err.print(Text.assemble(("error: ", "bold red"), what), soft_wrap=True)
    if not expected:
        err.print("this is a bug in hashlight; `hashlight --debug ...` shows where", soft_wrap=True)


def _said(error: Exception) -> str:
    """Return what an error says; one of the system without its number, and with the file first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None and error.filename2 is None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _expected_errors() -> tuple[type[Exception], ...]:
    from hashlight.encoders.errors import EncoderError, ImageError
    from hashlight.engine.errors import HashlightError
    from hashlight.pipelines.jobs.errors import PipelineError

    return (HashlightError, EncoderError, ImageError, PipelineError, OSError, ValueError, FloatingPointError)
