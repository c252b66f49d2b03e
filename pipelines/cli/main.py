"""The command `hashlight`.

Exit codes: 0 done, 1 failed, 2 wrong usage. Errors are one line on the standard error; `hashlight --debug COMMAND ...`
shows where they came from. The packages a command needs are imported when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from hashlight.pipelines.cli.console import (
    answers_table,
    encoding_bar,
    err,
    key_value_table,
    out,
    progress_bar,
    spinner,
    training_bar,
)

if TYPE_CHECKING:
    from hashlight.pipelines.searching.search import Answers

app = typer.Typer(
    help="Finds images among billions by learned binary codes, exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_debug = False

_CORPUS_HELP = (
    "Corpus: a folder of images, Parquet files, WebDataset tars or IDX files, or a text file of URIs; local or s3://."
)
EncoderOption = Annotated[Path, typer.Option("--encoder", help="Folder of a trained encoder.", exists=True)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _refuse_missing(place: str | None) -> str | None:
    """Refuse a path where nothing is; a store is asked later."""
    if place is not None and "://" not in place and not Path(place).exists():
        raise typer.BadParameter(f"{place} does not exist")
    return place


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hashlight {version('hashlight')}")
        raise typer.Exit


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    global _debug
    _debug = debug


def main() -> None:
    """Run the command line."""
    app()


def _reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a failure into one line and exit code 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            err.print("interrupted: what is finished is kept; the same command goes on or starts again")
            raise typer.Exit(130) from None
        except Exception as raised:
            if _debug or isinstance(raised, typer.BadParameter):
                raise
            error = _name_extra(raised, command.__name__.replace("_", "-"))
            expected = isinstance(error, _expected_errors())
            what = str(error) if expected else f"unexpected {type(error).__name__}: {error}"
            err.print(Text.assemble(("error: ", "bold red"), what), soft_wrap=True)
            if not expected:
                err.print("this is a fault of hashlight; `hashlight --debug ...` shows where", soft_wrap=True)
            raise typer.Exit(1) from raised

    return run


def _name_extra(error: Exception, verb: str) -> Exception:
    """Return what to tell instead, where a verb fails for want of a package that an extra brings."""
    from hashlight.engine.extras import missing

    told = missing(error, f"`hashlight {verb}`") if isinstance(error, ModuleNotFoundError) else None
    return told or error


def _expected_errors() -> tuple[type[Exception], ...]:
    from hashlight.encoders.errors import EncoderError, ImageError
    from hashlight.engine.errors import HashlightError
    from hashlight.pipelines.jobs.errors import PipelineError

    return (HashlightError, EncoderError, ImageError, PipelineError, OSError, ValueError, FloatingPointError)


# What `train` takes, in the order of its help.
MethodOption = Annotated[
    str,
    typer.Option(
        help="hashnet, hashnet-c, hashnet-w, hashnet-sgn, hashnet-tanh, hashnet-sharp, hashnet-st, dhn, latent, joint, "
        "csq, orthohash; on the backbone's features lsh, sh, itq, itq-cca, sdh, ksh."
    ),
]
BackboneOption = Annotated[
    str, typer.Option(help="small-cnn, efficientnet-lite0, or a torchvision classification model.")
]
WeightsOption = Annotated[
    str | None, typer.Option(help="Backbone weights: a file, or the name of weights the backbone has.")
]
SupervisionOption = Annotated[
    str | None,
    typer.Option(help="labels, pairs, views (two of each image, to find copies) or nothing; by what is there."),
]
PairsOption = Annotated[
    Path | None, typer.Option(help="Train on pairs (CSV or Parquet: a, b, similar), not labels.", exists=True)
]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="Passes over the images; 15.")]
WarmupOption = Annotated[
    int | None,
    typer.Option(
        min=0, help="Passes of classification before; 12 with labels from random weights, or for joint; else 0."
    ),
]
BatchOption = Annotated[int | None, typer.Option(min=4, help="Images a step, all pairs of which count; 64.")]
ChunkOption = Annotated[int | None, typer.Option(min=2, help="Images of a batch in memory at a time; all.")]
ScheduleOption = Annotated[str | None, typer.Option(help="How beta rises: stages (by default), released or constant.")]
BetaOption = Annotated[float | None, typer.Option(min=1, help="Where beta ends; by the schedule, 30 or 7.07.")]
ValidationOption = Annotated[
    int | None, typer.Option(min=0, help="Keep this many images out, and choose the best epoch on them.")
]
PatienceOption = Annotated[int | None, typer.Option(min=1, help="Stop after this many epochs without a better.")]


@app.command()
@_reports_errors
def train(
    input: Annotated[
        str, typer.Option("--input", help=f"{_CORPUS_HELP} It must fit in memory.", callback=_refuse_missing)
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder for the encoder.")],
    method: MethodOption = "hashnet",
    bits: Annotated[int, typer.Option(min=1, max=1024, help="Bits of a code.")] = 48,
    backbone: BackboneOption = "small-cnn",
    weights: WeightsOption = None,
    supervision: SupervisionOption = None,
    pairs: PairsOption = None,
    epochs: EpochsOption = None,
    warmup_epochs: WarmupOption = None,
    batch_size: BatchOption = None,
    chunk_size: ChunkOption = None,
    schedule: ScheduleOption = None,
    final_beta: BetaOption = None,
    validation_images: ValidationOption = None,
    patience: PatienceOption = None,
    precision: Annotated[str | None, typer.Option(help="float32 (by default), bfloat16 (mixed) or float64.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the network.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Train on Ray: processes that share every batch, a CPU or GPU each.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="With --workers: a Ray cluster.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Train an encoder; an interrupted training goes on where it was."""
    from hashlight.encoders.methods import METHODS
    from hashlight.encoders.training.train import TrainConfig
    from hashlight.pipelines.training.train import SUPERVISIONS, train_encoder

    if supervision not in (None, *SUPERVISIONS):
        raise typer.BadParameter(f"--supervision must be one of {', '.join(SUPERVISIONS)}, got {supervision!r}")
    # What is not given is left to the defaults of TrainConfig.
    settings = dict(
        method=method,
        bits=bits,
        backbone=backbone,
        weights=weights,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        batch_size=batch_size,
        chunk_size=chunk_size,
        schedule=schedule,
        final_beta=final_beta,
        validation_images=validation_images,
        patience=patience,
        precision=precision,
        compile=compile,
        device=device,
        seed=seed,
    )
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    try:
        config = TrainConfig(**given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if ignored := METHODS[method].ignores & given.keys():
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(ignored))
        raise typer.BadParameter(f"{method} has no use for {names}: leave it out")
    start = time.perf_counter()
    with training_bar() as report:
        encoder = train_encoder(
            input,
            output,
            config,
            supervision=supervision,
            pairs=pairs,
            overwrite=overwrite,
            workers=workers,
            address=address,
            progress=report,
        )
    seconds = time.perf_counter() - start
    out.print(
        f"trained {encoder.bits} bits by {method} in {seconds:.0f} s: {output}, encoder {encoder.fingerprint[:12]}…",
        soft_wrap=True,
    )


@app.command("plan-work")
@_reports_errors
def plan_work(
    corpus: Annotated[str, typer.Argument(help=_CORPUS_HELP, callback=_refuse_missing)],
    output: Annotated[str, typer.Option("--output", help="The work list (.parquet).")],
    unit_images: Annotated[int, typer.Option(min=1, help="Images of a unit of work.")] = 2000,
    as_json: JsonOption = False,
) -> None:
    """List a corpus once into a work list, which `hashlight encode --input` takes in the corpus's place."""
    from dataclasses import asdict

    from hashlight.pipelines.corpora.work import plan_work as write_work

    if not output.partition("?")[0].endswith(".parquet"):
        raise typer.BadParameter(f"--output must end in .parquet, got {output}")
    with spinner("listing") as say:
        work = write_work(corpus, output, unit_images=unit_images, progress=lambda n: say(f"listing: {n:,} entries"))
    if as_json:
        typer.echo(json.dumps(asdict(work)))
        return
    what = f"{work.units:,} shards" if work.images is None else f"{work.images:,} images in {work.units:,} units"
    out.print(f"listed {what}: {output}", soft_wrap=True)


@app.command()
@_reports_errors
def encode(
    input: Annotated[
        str,
        typer.Option(
            "--input", help=f"{_CORPUS_HELP} Or a work list of `hashlight plan-work`.", callback=_refuse_missing
        ),
    ],
    encoder: EncoderOption,
    output: Annotated[str, typer.Option("--output", help="Folder for the codes, local or in a store.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images decoded at a time by an actor.")] = 256,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Processes that run the model; one a GPU or core if left out.")
    ] = None,
    features: Annotated[bool, typer.Option("--features", help="Keep fine features too, to re-rank by.")] = False,
    thumbnails: Annotated[
        int, typer.Option(min=0, max=1024, help="Keep a JPEG of each image, its longest side so many pixels; 0: none.")
    ] = 0,
    unit_images: Annotated[int, typer.Option(min=1, help="Images of a unit of work.")] = 2000,
    max_rejects: Annotated[
        str | None, typer.Option(help="Stop when more images than this are rejected: a number, or a share such as 1%.")
    ] = None,
    decode_seconds: Annotated[float, typer.Option(min=0.01, help="Processor time that one image may take.")] = 20,
    decode_memory: Annotated[int, typer.Option(min=16, help="Memory in MiB that one image may take.")] = 2048,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Encode a corpus on Ray; an interrupted job goes on where it was."""
    from dataclasses import asdict

    from hashlight.pipelines.decoding.worker import DecodeLimits
    from hashlight.pipelines.encoding.encode import encode_corpus

    start = time.perf_counter()
    with encoding_bar() as report:
        summary = encode_corpus(
            input,
            encoder,
            output,
            batch_size=batch_size,
            actors=actors,
            features=features,
            thumbnail=thumbnails,
            unit_images=unit_images,
            max_rejects=max_rejects,
            limits=DecodeLimits(seconds=decode_seconds, memory_bytes=decode_memory << 20),
            overwrite=overwrite,
            progress=report,
        )
    seconds = time.perf_counter() - start
    if as_json:
        typer.echo(json.dumps({**asdict(summary), "seconds": round(seconds, 3)}))
        return
    out.print(
        f"encoded {summary.codes:,} of {summary.images:,} images to {summary.bits} bits in {seconds:.1f} s: {output}",
        soft_wrap=True,
    )
    if summary.rejects:
        out.print(
            f"{summary.rejects:,} images were rejected; the reasons are in {output}/rejects.parquet", soft_wrap=True
        )


@app.command()
@_reports_errors
def build(
    codes: Annotated[
        str, typer.Option("--codes", help="Folder that `hashlight encode` wrote, or s3://.", callback=_refuse_missing)
    ],
    output: Annotated[str, typer.Option("--output", help="The collection: a folder, or s3://BUCKET/PREFIX.")],
    shards: Annotated[int | None, typer.Option(min=1, help="Number of shards.")] = None,
    shard_rows: Annotated[int | None, typer.Option(min=1, help="Most codes of a shard; 20 million.")] = None,
    shard_bytes: Annotated[str | None, typer.Option(help="About the most bytes of a shard: 500MB, 2GB.")] = None,
    tables: Annotated[
        bool, typer.Option("--tables/--no-tables", help="Build the multi-index; without it every answer is a scan.")
    ] = True,
    append: Annotated[bool, typer.Option("--append", help="Add to the collection that is there.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Shards built at once, each in up to 3 times its size; one a core.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Build a collection from codes on Ray, or add codes to one."""
    if sum(size is not None for size in (shards, shard_rows, shard_bytes)) > 1:
        raise typer.BadParameter("give one of --shards, --shard-rows and --shard-bytes")
    if append and overwrite:
        raise typer.BadParameter("give --append or --overwrite, not both")
    from hashlight.engine.places.store import open_store
    from hashlight.engine.storage.manifest import read_current
    from hashlight.pipelines.building.build import build_collection

    with progress_bar("building") as report:
        build_collection(
            codes,
            output,
            shards=shards,
            shard_rows=shard_rows,
            shard_bytes=None if shard_bytes is None else _parse_bytes(shard_bytes),
            tables=tables,
            overwrite=overwrite,
            append=append,
            workers=workers,
            progress=report,
        )
    store = open_store(output)
    built = read_current(store)
    size = f"{built.rows:,} codes of {built.bits} bits in {len(built.shards)} shards, {built.num_bytes:,} bytes"
    out.print(f"built version {built.version} of {store}: {size}", soft_wrap=True)


def _parse_bytes(text: str) -> int:
    """Read a number of bytes: 1000, 500MB, 2GB, 1.5GiB."""
    units = {
        "": 1,
        **{f"{c}B": 1000**n for n, c in enumerate("KMGT", 1)},
        **{f"{c}iB": 1024**n for n, c in enumerate("KMGT", 1)},
    }
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)?", text)
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"expected a number of bytes such as 500MB, 2GB or 1.5GiB, got {text!r}")
    return int(float(found[1]) * units[found[2] or ""])


@app.command()
@_reports_errors
def search(
    collection: Annotated[str, typer.Argument(help="A collection: a folder, or s3://BUCKET/PREFIX.")],
    image: Annotated[
        Path | None, typer.Option("--image", help="The image to search for.", exists=True, dir_okay=False)
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option("--codes", help="Or millions of queries: Parquet with a column `code`, or a folder of codes."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="With --codes: the Parquet file to write.")] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="Number of nearest images (10 without --radius).")] = None,
    radius: Annotated[int | None, typer.Option(min=0, help="Find all images within this Hamming distance.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --radius: keep the nearest this many.")] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="The encoder, if the collection does not keep it.", exists=True)
    ] = None,
    as_json: JsonOption = False,
    save: Annotated[
        Path | None, typer.Option(help="Save a picture (PNG) of the query and its 20 nearest answers.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="With --codes: tasks at once; one a core.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Find the images nearest to an image, or all within a Hamming radius; or answer a file of codes on Ray."""
    if k is not None and radius is not None:
        raise typer.BadParameter("give -k or --radius, not both")
    if limit is not None and radius is None:
        raise typer.BadParameter("--limit goes with --radius; -k is a limit itself")
    if (image is None) == (codes is None):
        raise typer.BadParameter("give one of --image and --codes")
    if codes is not None:
        if output is None or save is not None or encoder is not None:
            raise typer.BadParameter("--codes goes with --output, and with neither --save nor --encoder")
        _search_codes(collection, codes, output, k, radius, limit, workers, overwrite, as_json)
        return
    if output is not None:
        raise typer.BadParameter("--output goes with --codes")
    if save is not None and (save.suffix.lower() != ".png" or not save.parent.is_dir() or save.is_dir()):
        raise typer.BadParameter(f"--save must be a .png file in a folder that exists, got {save}")
    from hashlight.engine.collection.collection import Collection
    from hashlight.pipelines.searching.search import encode_file, find_nearest, find_within, load_encoder, save_answers

    opened = Collection.open(collection)
    if radius is not None and radius > opened.bits:
        raise typer.BadParameter(
            f"--radius must be 0 to {opened.bits} (the codes have {opened.bits} bits), got {radius}"
        )
    query = encode_file(load_encoder(opened, encoder), image)
    found = find_nearest(opened, query, k or 10) if radius is None else find_within(opened, query, radius, limit)
    asked = {"image": str(image), **({"k": k or 10} if radius is None else {"radius": radius, "limit": limit})}
    if as_json:
        typer.echo(json.dumps({"query": asked, **found.as_json()}, default=str))
    else:
        _show_answers(found)
    if save is not None:
        save_answers(image, found, save)
        err.print(f"saved {save}", soft_wrap=True)


def _search_codes(
    collection: str,
    codes: Path,
    output: Path,
    k: int | None,
    radius: int | None,
    limit: int | None,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    from hashlight.pipelines.searching.batch import search_codes

    wanted = {"k": k or 10} if radius is None else {"radius": radius, "limit": limit}
    start = time.perf_counter()
    with progress_bar("searching") as report:
        job = search_codes(collection, codes, output, **wanted, workers=workers, overwrite=overwrite, progress=report)
    seconds = time.perf_counter() - start
    if as_json:
        typer.echo(json.dumps({"queries": job.queries, "codes": job.codes, **wanted, "seconds": round(seconds, 3)}))
        return
    out.print(
        f"answered {job.queries:,} queries from {job.codes:,} codes in {seconds:.1f} s "
        f"({job.queries / seconds:,.0f} a second): {output}",
        soft_wrap=True,
    )


def _show_answers(found: Answers) -> None:
    coverage = found.coverage
    if found.answers:
        out.print(answers_table(found.answers))
    cut = " (the nearest: --limit cut more)" if found.truncated else ""
    out.print(
        f"{len(found.answers):,} answers{cut}, {coverage.searched:,} of {coverage.codes:,} "
        f"codes searched in {coverage.answered} of {coverage.shards} shards"
    )


@app.command()
@_reports_errors
def dedup(
    collection: Annotated[str, typer.Argument(help="A collection: a folder, or s3://BUCKET/PREFIX.")],
    radius: Annotated[int, typer.Option(min=0, help="Images within this Hamming distance are near-duplicates.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for pairs, clusters and a gallery.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Pairs of shards joined at once; one a core.")] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find all near-duplicates of a collection on Ray; an interrupted job goes on where it was."""
    from dataclasses import asdict

    from hashlight.pipelines.dedup.dedup import find_duplicates

    start = time.perf_counter()
    with progress_bar("joining") as report:
        found = find_duplicates(
            collection, output, radius=radius, workers=workers, overwrite=overwrite, progress=report
        )
    seconds = time.perf_counter() - start
    if as_json:
        typer.echo(json.dumps({**asdict(found), "seconds": round(seconds, 3)}))
        return
    out.print(
        f"{found.pairs:,} pairs within radius {radius} among {found.codes:,} images, in {seconds:.1f} s: "
        f"{found.clusters:,} clusters of {found.members:,} images, the largest of {found.largest:,}; "
        f"{found.removable:,} could go; look at {output / 'gallery.html'}",
        soft_wrap=True,
    )


@app.command()
@_reports_errors
def evaluate(
    encoder: EncoderOption,
    database: Annotated[str, typer.Option(help="Labelled corpus to rank.", callback=_refuse_missing)],
    queries: Annotated[str, typer.Option(help="Labelled corpus to query with.", callback=_refuse_missing)],
    output: Annotated[Path, typer.Option("--output", help="Folder for the report.")],
    train: Annotated[
        str | None,
        typer.Option(help="Corpus that the baselines learn from; the database if left out.", callback=_refuse_missing),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="Methods on features, beside the encoder; by default itq, where it fits, and lsh."),
    ] = None,
) -> None:
    """Measure how well an encoder retrieves images that share a label with the query."""
    from hashlight.pipelines.evaluation.evaluate import evaluate_encoder

    with spinner("loading") as say:
        report = evaluate_encoder(
            encoder,
            database=database,
            queries=queries,
            output=output,
            train=train,
            baselines=baseline,
            progress=say,
        )
    rows = {f"mAP, {title}": f"{report.methods[name].map_all:.4f}" for name, title in report.titles().items()}
    relaxed = f"{report.map_relaxed:.4f} (signs, same queries: {report.map_signs_of_those:.4f})"
    out.print(key_value_table("retrieval", {**rows, "mAP, relaxed codes": relaxed}))
    out.print(f"report: {output / 'report.md'}", soft_wrap=True)


@app.command()
@_reports_errors
def info(
    collection: Annotated[
        str, typer.Argument(help="A collection: a folder, or the URI of one in a bucket.", callback=_refuse_missing)
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Describe a collection and check its files."""
    from hashlight.engine.collection.collection import Collection

    opened = Collection.open(collection, verify=verify)
    attributes = opened.shards[0].attributes
    facts = {
        "path": str(opened.path),
        "version": opened.version,
        "codes": len(opened),
        "bits": opened.bits,
        "shards": len(opened.shards),
        "bytes": opened.num_bytes,
        "encoder": opened.fingerprint,
        "attributes": [] if attributes is None else attributes.schema.names,
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    facts["bytes"] = f"{opened.num_bytes:,}"
    facts["codes"] = f"{len(opened):,}"
    facts["encoder"] = opened.fingerprint or "not kept"
    facts["attributes"] = ", ".join(facts["attributes"]) or "none"
    if verify:
        facts["verified"] = "every file, against its SHA-256"
    out.print(key_value_table("collection", facts))


@app.command()
@_reports_errors
def serve(
    collection: Annotated[
        str, typer.Argument(help="A collection: a folder, or the URI of one in a bucket.", callback=_refuse_missing)
    ],
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is every address of the machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    encoder: Annotated[
        Path | None, typer.Option(help="The encoder, if the collection does not keep it.", exists=True)
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="API keys, lines `NAME SCOPES KEY`; HASHLIGHT_API_KEYS without it.", exists=True),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let other machines ask without a key.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM): serve https.", exists=True)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).", exists=True)] = None,
    image_host: Annotated[
        list[str] | None, typer.Option(help="Fetch query images from this host, or from all below .example.com.")
    ] = None,
    in_flight: Annotated[int | None, typer.Option(min=1, help="Requests at work; more are told to come again.")] = None,
    groups: Annotated[
        int | None, typer.Option(min=1, help="Shard servers in so many groups, each with a part of the shards.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Of each group; 1 if left out.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Shard servers on Ray, not as processes here.")] = False,
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster; `auto` is this machine's.")] = None,
    shard_tls_cert: Annotated[
        Path | None, typer.Option(help="The shard servers' certificate (PEM).", exists=True)
    ] = None,
    shard_tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).", exists=True)] = None,
    shard_tls_authority: Annotated[Path | None, typer.Option(help="Who signed it (PEM).", exists=True)] = None,
) -> None:
    """Serve a collection over HTTP: from this process, or with --groups from shard servers, here or on Ray.

    Shard servers want a token, that of HASHLIGHT_SHARD_TOKEN or one made for the occasion.
    """
    from hashlight.engine.places.store import open_store
    from hashlight.engine.service.door.http_server import Address
    from hashlight.engine.service.door.keys import Keys
    from hashlight.engine.service.door.limits import Limits
    from hashlight.pipelines.serving.serve import serve_embedded

    shard_tls = {"cert": shard_tls_cert, "key": shard_tls_key, "authority": shard_tls_authority}
    _check_shard_options(groups, replicas, ray, address, shard_tls)
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("--tls-cert and --tls-key go together: give both or neither")
    where = Address(host=host, port=port, certificate=tls_cert, private_key=tls_key)
    gateway: dict[str, Any] = {
        "encoder": encoder,
        "limits": Limits() if in_flight is None else Limits(in_flight=in_flight),
        "image_hosts": image_host or (),
        "insecure": insecure,
    }
    # The web server ends in order and then raises the signal once more: shard servers must still be stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        with spinner("opening"):
            if groups is None and not ray:
                server = serve_embedded(collection, where, Keys.load(keys), **gateway)
            else:
                from hashlight.engine.service.protocol.security import Security
                from hashlight.pipelines.serving.cluster import serve_cluster

                security = Security.from_files(
                    certificate=shard_tls_cert, key=shard_tls_key, authority=shard_tls_authority, fresh_token=True
                )
                cluster = serve_cluster(
                    collection, where, Keys.load(keys), groups=groups or 1, replicas=replicas or 1, ray=ray,
                    ray_address=address, shard_security=security, **gateway,
                )  # fmt: skip
                server = stack.enter_context(cluster)
        out.print(f"serving {open_store(collection)} at {server.url}", soft_wrap=True)
        server.run()


def _check_shard_options(
    groups: int | None, replicas: int | None, ray: bool, address: str | None, tls: Mapping[str, Path | None]
) -> None:
    """Refuse options that would be ignored."""
    if address is not None and not ray:
        raise typer.BadParameter("--address is that of a Ray cluster: give --ray, too, or leave it out")
    given = [f"--shard-tls-{name}" for name, path in tls.items() if path is not None]
    given += [] if replicas is None else ["--replicas"]
    if given and groups is None and not ray:
        raise typer.BadParameter(
            f"{', '.join(given)}: there are no shard servers without --groups or --ray; give one of those, or leave "
            "it out"
        )
    if tls["authority"] is not None and tls["cert"] is None:
        raise typer.BadParameter("--shard-tls-authority goes with --shard-tls-cert and --shard-tls-key")


@app.command()
@_reports_errors
def scale(
    url: Annotated[str, typer.Argument(help="Of a server that was started with --groups.")],
    replicas: Annotated[int, typer.Option(min=1, help="Shard servers of each group.")],
    key: Annotated[
        str | None, typer.Option(envvar="HASHLIGHT_API_KEY", help="A key with the scope admin, if it wants one.")
    ] = None,
) -> None:
    """Start or stop shard servers of a running server, without a query that fails."""
    from hashlight.pipelines.serving.scale import scale_replicas

    with spinner("scaling"):
        scale_replicas(url, replicas, key=key)
    out.print(f"{replicas} shard servers in every group of {url}", soft_wrap=True)


@app.command()
@_reports_errors
def warmup() -> None:
    """Compile the search kernels and measure this machine once, so that the first query is as quick as the next."""
    from hashlight.engine.indexes.warmup import warm

    start = time.perf_counter()
    with spinner("compiling kernels and measuring this machine"):
        warm()
    out.print(f"ready in {time.perf_counter() - start:.1f} s")


@app.command()
@_reports_errors
def calibrate(
    encoder: Annotated[
        Path | None, typer.Option(help="Encoder to time; an untrained small-cnn if left out.", exists=True)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine once, for `hashlight plan`."""
    from dataclasses import asdict

    from hashlight.pipelines.capacity.calibrate import calibrate as measure

    with spinner("measuring this machine") as say:
        constants = asdict(measure(encoder, say=say))
    if as_json:
        typer.echo(json.dumps(constants))
        return
    shown = {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in constants.items()}
    out.print(key_value_table("this machine", shown))


@app.command()
@_reports_errors
def plan(
    images: Annotated[float, typer.Option(min=1, help="Images of the collection, such as 5e9.")],
    qps: Annotated[float, typer.Option(help="Queries a second, one at a time.")],
    bits: Annotated[int, typer.Option(min=1, max=1024, help="Bits of a code.")] = 64,
    radius: Annotated[int | None, typer.Option(min=0, help="Hamming radius of the queries.")] = None,
    k: Annotated[int | None, typer.Option("-k", min=1, help="Or: number of nearest images.")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of every shard.")] = 2,
    shard_codes: Annotated[float, typer.Option(min=1, help="Codes of a shard.")] = 50e6,
    node_cores: Annotated[int | None, typer.Option(min=1, help="Cores of a node; as here if left out.")] = None,
    node_memory: Annotated[float | None, typer.Option(help="Memory of a node in GiB; as here if left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Plan shards, memory, disk, nodes and hours from what `hashlight calibrate` measured, with the arithmetic."""
    from dataclasses import asdict

    from hashlight.pipelines.capacity.constants import load_constants
    from hashlight.pipelines.capacity.plan import GIB, Demand
    from hashlight.pipelines.capacity.plan import plan as work_out
    from hashlight.pipelines.cli.console import plan_table

    if (radius is None) == (k is None):
        raise typer.BadParameter("give --radius or -k, one of them")
    constants = load_constants()
    demand = Demand(
        images=int(images),
        bits=bits,
        qps=qps,
        radius=radius,
        k=k,
        replicas=replicas,
        shard_codes=int(shard_codes),
        node_cores=node_cores or constants.cores,
        node_bytes=constants.memory_bytes if node_memory is None else int(node_memory * GIB),
    )
    lines = work_out(demand, constants)
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in lines]))
        return
    out.print(plan_table(lines))
    out.print(f"nodes of {demand.node_cores} cores and {demand.node_bytes / GIB:.1f} GiB; codes as if uniform")


@app.command()
@_reports_errors
def demo(
    output: Annotated[Path, typer.Option("--output", help="Folder for everything the demo makes.")] = Path("demo"),
) -> None:
    """Run the main job on the packaged images: train, encode, build, evaluate, search."""
    from hashlight.pipelines.cli.demo import run_demo

    run_demo(output)


if __name__ == "__main__":
    main()
