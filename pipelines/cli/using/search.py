"""`hashlight search`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from hashlight.pipelines.cli.console import answers_table, err, fetching_bar, out, progress_bar
from hashlight.pipelines.cli.options import (
    AddressOption,
    CacheSizeOption,
    CollectionArgument,
    IndexOption,
    JsonOption,
    MaxMegapixelsOption,
    OtherEncoderOption,
    OverwriteOption,
    PrefetchOption,
    refuse_missing,
)

if TYPE_CHECKING:
    from hashlight.engine.client.results import SearchResponse
    from hashlight.engine.collection.collection import Collection
    from hashlight.engine.indexes.choice import IndexChoice


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is searched for."""

    image: Annotated[
        str | None, typer.Option("--image", help="The image to search for, or s3://.", callback=refuse_missing)
    ] = None
    codes: Annotated[
        str | None,
        typer.Option(
            "--codes",
            help="Or millions of queries: Parquet with a column `code`, or a folder of codes; local or s3://.",
        ),
    ] = None
    max_megapixels: MaxMegapixelsOption = 64
    output: Annotated[
        str | None, typer.Option("--output", help="With --codes: the Parquet file to write, or s3://.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How many answers are wanted, or how far away."""

    k: Annotated[int | None, typer.Option("-k", min=1, help="Number of nearest images (10 without --radius).")] = None
    radius: Annotated[int | None, typer.Option(min=0, help="Find all images within this Hamming distance.")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="With --radius: keep the nearest this many.")] = None

    def check(self) -> None:
        """Refuse options that contradict each other."""
        if self.k is not None and self.radius is not None:
            raise typer.BadParameter("give -k or --radius, not both")
        if self.limit is not None and self.radius is None:
            raise typer.BadParameter("--limit goes with --radius; -k is a limit itself")

    @property
    def wanted(self) -> dict[str, int | None]:
        """The arguments of the search."""
        return {"k": self.k or 10} if self.radius is None else {"radius": self.radius, "limit": self.limit}


@dataclass(frozen=True, kw_only=True)
class Job:
    """How a job with many queries runs."""

    workers: Annotated[int | None, typer.Option(min=1, help="With --codes: tasks at once; one per core.")] = None
    address: AddressOption = None
    overwrite: OverwriteOption = False


def search(
    *,
    collection: CollectionArgument,
    asked: Asked,
    reach: Reach,
    encoder: OtherEncoderOption = None,
    as_json: JsonOption = False,
    save: Annotated[
        str | None, typer.Option(help="Save a picture (PNG, or s3://) of the query and its 20 nearest answers.")
    ] = None,
    index: IndexOption = "auto",
    prefetch: PrefetchOption = False,
    cache_size: CacheSizeOption = None,
    job: Job,
) -> None:
    """Find the images nearest to an image, or all within a Hamming radius; or answer a file of codes on Ray."""
    reach.check()
    if (asked.image is None) == (asked.codes is None):
        raise typer.BadParameter("give one of --image and --codes")
    if asked.codes is not None:
        if asked.output is None or save is not None or encoder is not None:
            raise typer.BadParameter("--codes goes with --output, and with neither --save nor --encoder")
        if prefetch:
            raise typer.BadParameter("--prefetch goes with --image: the tasks of a job fetch what they search")
        _search_codes(collection, asked.codes, asked.output, reach, index, job, as_json)
        return
    from hashlight.engine.collection.collection import Collection

    if asked.output is not None or job.address is not None:
        raise typer.BadParameter("--output and --address go with --codes")
    if save is not None:
        _check_picture(save)
    with fetching_bar() as report:
        opened = Collection.open(collection, index=index, prefetch=prefetch, progress=report)
        _search_image(opened, asked, reach, encoder, save, as_json)


def _check_picture(save: str) -> None:
    """Refuse a picture that could not be saved, before the search."""
    from hashlight.engine.places.opening import open_target
    from hashlight.engine.places.uris import split_name, without_credentials

    folder, name = split_name(open_target(save).location)
    local = open_target(folder).local
    if not name.lower().endswith(".png") or (local and (not local.is_dir() or (local / name).is_dir())):
        raise typer.BadParameter(f"--save must be a .png file in a folder that exists, got {without_credentials(save)}")


def _search_image(
    opened: Collection, asked: Asked, reach: Reach, encoder: str | None, save: str | None, as_json: bool
) -> None:
    """Search by an image."""
    from hashlight.engine.places.uris import without_credentials
    from hashlight.engine.query import Query
    from hashlight.pipelines.searching.search import as_json as document_of
    from hashlight.pipelines.searching.search import encode_file, find, load_encoder, save_answers

    radius = reach.radius
    if radius is not None and radius > opened.bits:
        raise typer.BadParameter(
            f"--radius must be 0 to {opened.bits} (the codes have {opened.bits} bits), got {radius}"
        )
    query = Query(k=reach.k or 10) if radius is None else Query(radius=radius, limit=reach.limit)
    image = asked.image
    assert image is not None, "there is one without --codes"
    max_pixels = asked.max_megapixels * 1_000_000
    code = encode_file(load_encoder(opened, encoder), image, max_pixels=max_pixels)
    found = find(opened, code, query)
    if as_json:
        document = {"query": {"image": without_credentials(image), **reach.wanted}, **document_of(found)}
        typer.echo(json.dumps(document, default=str))
    else:
        _show_answers(found)
    if save is not None:
        save_answers(image, found[0], save, max_pixels=max_pixels)
        err.print(f"saved {without_credentials(save)}", soft_wrap=True)


def _search_codes(
    collection: str, codes: str, output: str, reach: Reach, index: IndexChoice, job: Job, as_json: bool
) -> None:
    from hashlight.engine.places.uris import without_credentials
    from hashlight.pipelines.jobs.session import joined
    from hashlight.pipelines.searching.batch import search_codes

    wanted = reach.wanted
    start = time.perf_counter()
    with joined(job.address), progress_bar("searching") as report:
        done = search_codes(
            collection,
            codes,
            output,
            **wanted,
            index=index,
            workers=job.workers,
            overwrite=job.overwrite,
            progress=report,
        )
    seconds = time.perf_counter() - start
    if as_json:
        typer.echo(json.dumps({"queries": done.queries, "codes": done.codes, **wanted, "seconds": round(seconds, 3)}))
        return
    out.print(
        f"answered {done.queries:,} queries from {done.codes:,} codes in {seconds:.1f} s "
        f"({done.queries / seconds:,.0f} a second): {without_credentials(output)}",
        soft_wrap=True,
    )


def _show_answers(found: SearchResponse) -> None:
    [hits], coverage = found, found.coverage
    if hits:
        out.print(answers_table(hits))
    cut = " (the nearest: --limit cut more)" if hits.truncated else ""
    out.print(
        f"{len(hits):,} answers{cut}, {coverage.searched:,} of {coverage.codes:,} "
        f"codes searched in {coverage.answered} of {coverage.shards} shards"
    )
