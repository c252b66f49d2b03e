"""`hashlight add`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import progress_bar, spinner
from hashlight.pipelines.cli.keeping.given import say
from hashlight.pipelines.cli.options import (
    AddressOption,
    ExistingCollectionArgument,
    JsonOption,
    SourceColumns,
    exchange_kind,
    has_ending,
    refuse_missing,
)

if TYPE_CHECKING:
    from hashlight.engine.collection.writing.transaction import Commit
    from hashlight.engine.exchange.rows import Incoming

AddedKind = Literal["codes", "faiss", "parquet", "arrow"]

_BATCH_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class NewShards:
    """What the rows become."""

    upsert: Annotated[
        bool, typer.Option("--upsert", help="Replace the items that have their ids, with attributes and thumbnails.")
    ] = False
    shard_rows: Annotated[int | None, typer.Option(min=1, help="Maximum codes per shard.")] = None
    tables: Annotated[
        bool,
        typer.Option(
            "--tables/--no-tables", help="Build the multi-index (tables that find codes without comparing all)."
        ),
    ] = True


def add(
    collection: ExistingCollectionArgument,
    source: Annotated[
        str,
        typer.Argument(
            help="A folder that `hashlight encode` wrote; a file of Parquet, Arrow or FAISS (from an origin you "
            "trust), a folder of Parquet files; or s3://.",
            callback=refuse_missing,
        ),
    ],
    kind: Annotated[
        AddedKind | None,
        typer.Option("--from", help="What it is; by default what the name ends in, and else a folder of codes."),
    ] = None,
    *,
    columns: SourceColumns,
    shards: NewShards,
    workers: Annotated[int | None, typer.Option(min=1, help="With codes: shards built at once.")] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add codes to a collection, or replace those that it has."""
    kind = kind or _kind_of(source)
    if kind in ("codes", "faiss") and columns != SourceColumns():
        raise typer.BadParameter("columns are named for Parquet and Arrow: leave out --*-column and --number-rows")
    if shards.upsert and columns.number_rows:
        raise typer.BadParameter("give --upsert or --number-rows: codes with new ids replace none")
    if kind != "codes" and (workers is not None or address is not None):
        raise typer.BadParameter("--workers and --address go with a folder of codes")
    from hashlight.engine.places.opening import open_place

    if kind == "codes":
        done = _add_codes(collection, source, shards, workers, address)
    else:
        with spinner("adding"):
            done = _add_file(collection, source, kind, columns, shards)
    replaced = f", {done.deleted:,} of them in place of others" if done.deleted else ""
    line = f"added {counted(done.added, 'code')}{replaced}: version {done.version} of {open_place(collection)}"
    say(line, {"version": done.version, "added": done.added, "deleted": done.deleted}, as_json=as_json)


def _kind_of(source: str) -> AddedKind:
    """Tell what is added: what the name ends in, or a folder of codes."""
    from hashlight.engine.places.opening import open_place
    from hashlight.pipelines.codes.summary import SUMMARY, encode_first
    from hashlight.pipelines.jobs.folder import MARKER

    place = open_place(source)
    if place.exists(SUMMARY) or place.exists(MARKER):
        return "codes"
    entry = place.entry()
    if entry is None or not entry.is_folder or has_ending(source):
        return exchange_kind(source, "--from")
    if place.exists("CURRENT"):
        what = f"export it first: `hashlight export {place} codes.parquet`, and add that file"
        raise typer.BadParameter(f"{place} is a collection itself: {what}")
    raise typer.BadParameter(
        f"{place} has no codes that `hashlight encode` wrote: {encode_first(source)}; a folder of Parquet files needs "
        "--from parquet"
    )


def _add_codes(collection: str, codes: str, shards: NewShards, workers: int | None, address: str | None) -> Commit:
    from hashlight.pipelines.building.build import build_collection
    from hashlight.pipelines.jobs.session import joined

    with joined(address), progress_bar("adding") as report:
        return build_collection(
            codes,
            collection,
            shard_rows=shards.shard_rows,
            tables=shards.tables,
            append=True,
            upsert=shards.upsert,
            workers=workers,
            progress=report,
        )


def _add_file(collection: str, source: str, kind: AddedKind, names: SourceColumns, shards: NewShards) -> Commit:
    from hashlight.engine.collection.importing import add_rows
    from hashlight.engine.exchange.arrow import open_batches
    from hashlight.engine.exchange.columns import read_batches
    from hashlight.engine.exchange.parquet import open_parquet

    write = functools.partial(
        add_rows,
        collection,
        upsert=shards.upsert,
        number=names.number_rows,
        shard_rows=shards.shard_rows,
        tables=shards.tables,
    )
    if kind == "faiss":
        return write(lambda live: _read_faiss(source, live.bits))
    with (open_parquet if kind == "parquet" else open_batches)(source) as (schema, batches):
        return write(lambda live: read_batches(schema, batches, names.named(live.features_as), default_bits=live.bits))


def _read_faiss(source: str, bits: int) -> Incoming:
    from hashlight.engine.exchange.codes import pack_bytes
    from hashlight.engine.exchange.faiss_indexes import load_index, read_index
    from hashlight.engine.exchange.rows import Incoming, Rows, cut_rows
    from hashlight.engine.ids import check_ids

    bytes_NB, ids_N = read_index(load_index(source))
    rows = Rows(pack_bytes(bytes_NB, bits=bits, name="codes"), check_ids(ids_N, rows=len(bytes_NB)))
    return Incoming(bits, None, cut_rows(rows, _BATCH_ROWS))
