"""`hashlight search`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import answers_table, err, fetching_bar, out, progress_bar
from hashlight.pipelines.cli.options import (
    AddressOption,
    CacheSizeOption,
    CollectionArgument,
    FilterOption,
    IndexOption,
    JsonOption,
    MaxMegapixelsOption,
    OtherEncoderOption,
    OverwriteOption,
    PrefetchOption,
    refuse_missing,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hashlight.engine.client.results import SearchResponse
    from hashlight.engine.codes import CodeArray
    from hashlight.engine.collection.collection import Collection
    from hashlight.engine.indexes.choice import IndexChoice


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is searched for."""

    image: Annotated[
        str | None, typer.Option("--image", help="The image to search for, or s3://.", callback=refuse_missing)
    ] = None
    id: Annotated[
        int | None, typer.Option("--id", min=0, help="Or an image of the collection, by its id: find more like it.")
    ] = None
    vector: Annotated[
        str | None,
        typer.Option(
            "--vector",
            help="Or an embedding (.npy, or a list in JSON; local or s3://), where embeddings were encoded.",
            callback=refuse_missing,
        ),
    ] = None
    text: Annotated[
        str | None,
        typer.Option("--text", help="Or a text, where the network of the encoder embeds texts too, as CLIP does."),
    ] = None
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            metavar="HEX",
            help="Or a code in hexadecimal, two digits for each 8 bits: bit 0 is the lowest of the first two.",
        ),
    ] = None
    codes: Annotated[
        str | None,
        typer.Option(
            "--codes",
            help="Or millions of queries: Parquet with a column `code`, or a folder that `hashlight encode` wrote; "
            "local or s3://.",
        ),
    ] = None
    max_megapixels: MaxMegapixelsOption = 64
    output: Annotated[
        str | None, typer.Option("--output", help="With --codes: the Parquet file to write, or s3://.")
    ] = None

    def check(self) -> None:
        """Refuse anything but one kind of query."""
        asked = (self.image, self.id, self.vector, self.text, self.code, self.codes)
        if sum(given is not None for given in asked) != 1:
            raise typer.BadParameter("give one of --image, --id, --vector, --text, --code and --codes")

    @property
    def is_encoded(self) -> bool:
        """Whether an encoder makes the code that is searched for."""
        return any(given is not None for given in (self.image, self.vector, self.text))

    def read_code(self, bits: int) -> CodeArray:
        """Return `--code` as a batch of one code, (1, W)."""
        from hashlight.engine.codes import check_codes, read_hex

        assert self.code is not None, "this is called if there is one"
        try:
            code_W = read_hex(self.code, bits=bits)
        except ValueError as error:
            raise typer.BadParameter(f"--code has {error}") from error
        try:
            return check_codes(code_W[None], bits=bits, name="--code")
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    @property
    def max_pixels(self) -> int:
        """The largest image that is decoded."""
        return self.max_megapixels * 1_000_000

    @property
    def document(self) -> dict[str, Any]:
        """What is searched for, for JSON."""
        from hashlight.engine.places.uris import without_credentials

        if self.image is not None:
            return {"image": without_credentials(self.image)}
        if self.vector is not None:
            return {"vector": without_credentials(self.vector)}
        if self.text is not None:
            return {"text": self.text}
        return {"id": self.id} if self.id is not None else {"code": self.code}


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Which answers are wanted: how many, or how far away, and on what condition."""

    k: Annotated[int | None, typer.Option("-k", min=1, help="Number of nearest images (10 without --radius).")] = None
    radius: Annotated[
        int | None,
        typer.Option(
            min=0, help="Find all images whose codes differ in at most this many bits (their Hamming distance)."
        ),
    ] = None
    order: Annotated[
        Literal["asymmetric", "hamming"] | None,
        typer.Option(
            help="Of the answers: `asymmetric`, by the sizes of the numbers whose signs are the bits (by default with "
            "--image, --vector and --text, without --radius), or `hamming`, by the number of bits that differ."
        ),
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="With --radius: keep the nearest this many.")] = None
    filter: FilterOption = None

    def check(self) -> None:
        """Refuse options that contradict each other."""
        if self.k is not None and self.radius is not None:
            raise typer.BadParameter("give -k or --radius, not both")
        if self.limit is not None and self.radius is None:
            raise typer.BadParameter("--limit goes with --radius; -k is a limit itself")
        if self.order == "asymmetric" and self.radius is not None:
            raise typer.BadParameter("--order asymmetric goes with -k: answers within a --radius are in Hamming order")

    @property
    def wanted(self) -> dict[str, Any]:
        """The arguments of the search."""
        reach = {"k": self.k or 10} if self.radius is None else {"radius": self.radius, "limit": self.limit}
        return reach if self.filter is None else {**reach, "filter": self.filter}


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
    """Find the images nearest to one, or all within a Hamming radius.

    Asked with an image, an image's id, an embedding, a text or a code; or with a file of codes, which a job on Ray
    answers.
    """
    asked.check()
    reach.check()
    if asked.codes is not None:
        if asked.output is None or save is not None or encoder is not None:
            raise typer.BadParameter("--codes goes with --output, and with neither --save nor --encoder")
        if prefetch:
            raise typer.BadParameter("--prefetch goes with a single query: the tasks of a job fetch what they search")
        _search_codes(collection, asked.codes, asked.output, reach, index, job, as_json)
        return
    if asked.output is not None or job != Job():
        raise typer.BadParameter("--output, --workers, --address and --overwrite go with --codes")
    if encoder is not None and not asked.is_encoded:
        raise typer.BadParameter("--encoder goes with --image, --vector and --text: ids and codes need none")
    if save is not None:
        _check_picture(save)
    from hashlight.engine.collection.collection import Collection

    with fetching_bar() as report:
        opened = Collection.open(collection, index=index, prefetch=prefetch, progress=report)
        _search_one(opened, asked, reach, encoder, save, as_json)


def _check_picture(save: str) -> None:
    """Refuse a picture that could not be saved, before the search."""
    from hashlight.engine.places.opening import open_target
    from hashlight.engine.places.uris import split_name, without_credentials

    folder, name = split_name(open_target(save).location)
    local = open_target(folder).local
    if not name.lower().endswith(".png") or (local and (not local.is_dir() or (local / name).is_dir())):
        raise typer.BadParameter(f"--save must be a .png file in a folder that exists, got {without_credentials(save)}")


def _search_one(
    opened: Collection, asked: Asked, reach: Reach, encoder: str | None, save: str | None, as_json: bool
) -> None:
    """Answer a single query."""
    from hashlight.engine.places.uris import without_credentials
    from hashlight.engine.query import Query
    from hashlight.pipelines.searching.search import as_json as document_of
    from hashlight.pipelines.searching.search import find

    radius = reach.radius
    if radius is not None and radius > opened.bits:
        raise typer.BadParameter(
            f"--radius must be 0 to {opened.bits} (the codes have {opened.bits} bits), got {radius}"
        )
    if reach.order == "asymmetric" and not asked.is_encoded:
        raise typer.BadParameter(
            "--order asymmetric goes with --image, --vector or --text: of ids and codes only bits are known"
        )
    code, projections = _code_of(opened, asked, encoder)
    asymmetric = radius is None and reach.order != "hamming"
    found = find(opened, code, Query(**reach.wanted), projections=projections if asymmetric else None)
    if as_json:
        document = {"query": {**asked.document, **reach.wanted}, **document_of(found)}
        typer.echo(json.dumps(document, default=str))
    else:
        _show_answers(found)
    if save is not None:
        _save(opened, asked, found, save)
        err.print(f"saved {without_credentials(save)}", soft_wrap=True)


def _code_of(opened: Collection, asked: Asked, encoder: str | None) -> tuple[CodeArray, NDArray[np.float32] | None]:
    """Return the code to search for, (1, W), and the projections of an image, (1, B), which alone needs torch."""
    if asked.id is not None:
        from hashlight.pipelines.searching.search import code_of_item

        return code_of_item(opened, asked.id), None
    if asked.code is not None:
        return asked.read_code(opened.bits), None
    from hashlight.pipelines.searching.encoder import load_encoder

    if asked.vector is not None:
        from hashlight.pipelines.searching.vectors import encode_vector

        encoded = encode_vector(load_encoder(opened, encoder), asked.vector)
    elif asked.text is not None:
        output = load_encoder(opened, encoder).encode_texts([asked.text])
        return output.codes, output.projections
    else:
        from hashlight.pipelines.searching.images import encode_file

        assert asked.image is not None, "there is one of them"
        encoded = encode_file(load_encoder(opened, encoder), asked.image, max_pixels=asked.max_pixels)
    return encoded.codes, encoded.projections


def _save(opened: Collection, asked: Asked, found: SearchResponse, save: str) -> None:
    """Save a picture of a query and its answers; a code has none, so that its tile is blank."""
    from hashlight.pipelines.evaluation.pictures import Tile
    from hashlight.pipelines.searching.images import QUERY, save_answers, tile_of_file, tile_of_item

    if asked.image is not None:
        query = tile_of_file(asked.image)
    else:
        query = Tile(None, QUERY) if asked.id is None else tile_of_item(opened, asked.id)
    save_answers(query, found[0], save, max_pixels=asked.max_pixels)


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
        f"answered {counted(done.queries, 'query')} from {counted(done.codes, 'code')} in {seconds:.1f} s "
        f"({done.queries / seconds:,.0f} a second): {without_credentials(output)}",
        soft_wrap=True,
    )


def _show_answers(found: SearchResponse) -> None:
    [hits], coverage = found, found.coverage
    if hits:
        out.print(answers_table(hits))
    cut = " (the nearest: --limit cut more)" if hits.truncated else ""
    out.print(
        f"{counted(len(hits), 'answer')}{cut}, {coverage.searched:,} of {counted(coverage.codes, 'code')} searched in "
        f"{coverage.answered} of {counted(coverage.shards, 'shard')}"
        + (", the nearest in asymmetric order" if found.order == "asymmetric" else "")
    )
