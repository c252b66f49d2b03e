"""Options in groups: a parameter of a verb that is a dataclass stands for the fields of that dataclass.

Typer builds a command line from a signature, with an option for each parameter. Here a verb with many options takes
them in a few frozen dataclasses, whose fields are annotated as parameters would be, and passes each on as a whole:

    @dataclass(frozen=True, kw_only=True)
    class Cluster:
        workers: Annotated[int | None, typer.Option(min=1, help="...")] = None
        address: Annotated[str | None, typer.Option(help="...")] = None

    def train(output: Annotated[Path, typer.Option("--output")], cluster: Cluster) -> None: ...

`hashlight train --help` lists the options in the order in which they are written: --output, --workers, --address.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints


def expand_groups(verb: Callable[..., None]) -> Callable[..., None]:
    """Return `verb` with a signature in which every dataclass is replaced by its fields.

    Raises
    ------
    ValueError
        If two options have the same name.
    """
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, type] = {}
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        kind = hints[parameter.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            groups[parameter.name] = kind
            options += _fields_as_options(kind)
        else:
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))

    @functools.wraps(verb)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        verb(**values)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _fields_as_options(group: type) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )
