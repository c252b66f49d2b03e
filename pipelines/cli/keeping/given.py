"""What the verbs of this room are given, ids and values, and how they say what they have done."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hashlight.pipelines.cli.console import out
from hashlight.pipelines.cli.options import refuse_missing

if TYPE_CHECKING:
    import pyarrow as pa

    from hashlight.engine.codes import IdArray

SomeIdsOption = Annotated[str | None, typer.Option("--ids", help="Ids with commas between them: 7,8,9.")]
IdsFileOption = Annotated[
    str | None,
    typer.Option(
        "--ids-file",
        help="A file of ids, or s3://: text with one on each line, .npy, or the column `id` of a .parquet file.",
        callback=refuse_missing,
    ),
]


def parse_ids(ids: str | None, ids_file: str | None) -> IdArray:
    """Return the ids of `--ids` or `--ids-file`, one of which is given."""
    import numpy as np

    if (ids is None) == (ids_file is None):
        raise typer.BadParameter("give one of --ids and --ids-file")
    if ids is not None:
        return _whole_numbers(ids.split(","), "--ids")
    assert ids_file is not None, "one of the two is given"
    return np.asarray(_read_ids(ids_file))


def _read_ids(location: str) -> IdArray:
    import numpy as np

    from hashlight.engine.exchange.parquet import open_parquet
    from hashlight.engine.places.opening import open_place
    from hashlight.engine.places.uris import without_credentials

    name, shown = location.partition("?")[0].lower(), without_credentials(location)
    if name.endswith(".parquet"):
        with open_parquet(location) as (schema, batches):
            if "id" not in schema.names:
                raise typer.BadParameter(f"{shown} has no column `id`, only {', '.join(schema.names)}")
            columns = [batch.column("id").to_numpy(zero_copy_only=False) for batch in batches]
        found: IdArray = np.concatenate([np.zeros(0, np.int64), *columns])
        return found
    data = open_place(location).read()
    if name.endswith(".npy"):
        loaded: IdArray = np.load(io.BytesIO(data), allow_pickle=False)
        return loaded
    return _whole_numbers(data.decode(errors="replace").split(), shown)


def _whole_numbers(words: Sequence[str], where: str) -> IdArray:
    import numpy as np

    found = []
    for word in words:
        with contextlib.suppress(ValueError):
            found.append(int(word))
            continue
        raise typer.BadParameter(f"{where} must be whole numbers, got {word.strip()!r}")
    try:
        return np.array(found, np.int64)
    except OverflowError:
        raise typer.BadParameter(f"{where} must be at most {2**63 - 1}, got {max(found)}") from None


def parse_values(settings: Sequence[str], nulls: Sequence[str], schema: pa.Schema | None, rows: int) -> pa.Table:
    """Return attributes of `rows` rows that all have the values of `NAME=VALUE`, as the collection has their types."""
    import pyarrow as pa

    given: dict[str, str | None] = {}
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign or name in given:
            raise typer.BadParameter(f"--set takes NAME=VALUE, each name once, got {setting!r}")
        given[name] = text
    if again := sorted(given.keys() & set(nulls)):
        raise typer.BadParameter(f"give --set or --set-null for {', '.join(again)}, not both")
    given |= dict.fromkeys(nulls)
    columns = {}
    for name, value in given.items():
        if schema is None or name not in schema.names:
            known = ", ".join(schema.names if schema else ()) or "none"
            raise ValueError(
                f"the collection has no attribute {name!r}, only {known}: `hashlight set-column` adds attributes"
            )
        kind = schema.field(name).type
        try:
            columns[name] = pa.nulls(rows, kind) if value is None else pa.array([value] * rows).cast(kind)
        except pa.ArrowException as error:
            raise ValueError(f"attribute {name!r} is {kind}, got {value!r}: {error}") from error
    return pa.table(columns)


def read_table(location: str, schema: pa.Schema | None) -> tuple[IdArray, pa.Table]:
    """Return the ids and the other columns of a Parquet, Arrow or CSV file, in the types that attributes have here."""
    import pyarrow as pa
    import pyarrow.csv

    from hashlight.engine.exchange.arrow import open_batches
    from hashlight.engine.exchange.parquet import open_parquet
    from hashlight.engine.places.opening import open_place
    from hashlight.engine.places.uris import without_credentials

    kinds = {field.name: field.type for field in schema or ()}
    name, shown = location.partition("?")[0].lower(), without_credentials(location)
    if name.endswith(".csv"):
        options = pyarrow.csv.ConvertOptions(column_types={**kinds, "id": pa.int64()})
        with open_place(location).open() as file:
            try:
                table = pyarrow.csv.read_csv(file, convert_options=options)
            except pa.ArrowException as error:
                raise ValueError(f"{shown} is not readable as CSV of these attributes: {error}") from error
    elif name.endswith((".parquet", ".arrow", ".arrows", ".feather")):
        with (open_parquet if name.endswith(".parquet") else open_batches)(location) as (held, batches):
            table = pa.Table.from_batches(list(batches), schema=held)
    else:
        raise typer.BadParameter(f"{shown} ends in none of .parquet, .arrow, .arrows, .feather, .csv")
    names = table.schema.names
    if names.count("id") != 1 or len(names) < 2:
        raise ValueError(f"{shown} must have one column `id` and at least one attribute, got {', '.join(names)}")
    ids = table["id"]
    if not pa.types.is_integer(ids.type) or ids.null_count:
        raise ValueError(f"`id` of {shown} must be whole numbers without nulls, got {ids.type}")
    return ids.cast(pa.int64()).to_numpy(), _as_attributes(table.drop_columns(["id"]), kinds, shown)


def _as_attributes(table: pa.Table, kinds: dict[str, pa.DataType], shown: str) -> pa.Table:
    import pyarrow as pa

    for number, name in enumerate(table.schema.names):
        kind = kinds.get(name, table.schema.types[number])
        try:
            table = table.set_column(number, name, table.column(number).cast(kind))
        except pa.ArrowException as error:
            raise ValueError(f"`{name}` of {shown} is not {kind}, as attribute {name!r} is: {error}") from error
    return table


def say(line: str, document: dict[str, Any], *, as_json: bool) -> None:
    """Print what was done: a line for people, or JSON."""
    if as_json:
        typer.echo(json.dumps(document))
    else:
        out.print(line, soft_wrap=True)
