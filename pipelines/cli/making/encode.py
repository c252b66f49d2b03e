"""`hashlight encode`."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import encoding_bar, out
from hashlight.pipelines.cli.options import (
    CORPUS_HELP,
    EMBEDDINGS_HELP,
    AddressOption,
    CorpusNames,
    EmbeddingColumnOption,
    EncoderOption,
    FeaturesAsOption,
    IdsOption,
    JsonOption,
    MaxMegapixelsOption,
    OverwriteOption,
    UnitImagesOption,
    refuse_missing,
)

if TYPE_CHECKING:
    from hashlight.encoders.encoder import HashEncoder
    from hashlight.engine.features import FeatureKind
    from hashlight.pipelines.codes.summary import EncodeSummary
    from hashlight.pipelines.corpora.options import CorpusOptions


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What is encoded, if not images."""

    embeddings: Annotated[
        str | None,
        typer.Option(help=f"Encode embeddings, in the place of --input. {EMBEDDINGS_HELP}", callback=refuse_missing),
    ] = None
    embedding_column: EmbeddingColumnOption = ""


FitOption = Annotated[
    Literal["crop", "pad", "stretch"] | None,
    typer.Option(
        help="How a picture that is not square becomes the network's input: its centre, all of it with margins, or all "
        "of it distorted; as the encoder was trained if left out."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Actors:
    """The processes that encode."""

    batch_size: Annotated[int, typer.Option(min=1, help="Images decoded at a time by an actor.")] = 256
    actors: Annotated[
        int | None, typer.Option(min=1, help="Processes that run the model; one per GPU or core if left out.")
    ] = None
    address: AddressOption = None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept beside the codes."""

    features: Annotated[bool, typer.Option("--features", help="Keep fine features too, to re-rank by.")] = False
    features_as: FeaturesAsOption = None
    thumbnails: Annotated[
        int, typer.Option(min=0, max=1024, help="Keep a JPEG of each image, with this longest side in pixels; 0: none.")
    ] = 0

    @property
    def how(self) -> bool | FeatureKind:
        """As what features are kept; false: they are not."""
        return self.features_as or self.features


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the job and a single image may take."""

    unit_images: UnitImagesOption = 2000
    max_rejects: Annotated[
        str | None, typer.Option(help="Stop when more images than this are rejected: a number, or a share such as 1%.")
    ] = None
    decode_seconds: Annotated[float, typer.Option(min=0.01, help="Processor time that one image may take.")] = 20
    decode_memory: Annotated[int, typer.Option(min=16, help="Memory in MiB that one image may take.")] = 2048
    max_megapixels: MaxMegapixelsOption = 64


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What was encoded before."""

    since: Annotated[
        list[str] | None,
        typer.Option("--since", help="Encode only what is new since this folder of codes; may be given repeatedly."),
    ] = None
    overwrite: OverwriteOption = False
    retry_rejects: Annotated[
        bool, typer.Option("--retry-rejects", help="Try images that were rejected again; codes stay as they are.")
    ] = False


def _refuse_names(ids: str, options: CorpusOptions, corpus: str, *, retry_rejects: bool) -> None:
    """Refuse ids and names of columns where a list has them already, before any work."""
    from hashlight.pipelines.corpora.ids import IdRule
    from hashlight.pipelines.corpora.options import NO_OPTIONS
    from hashlight.pipelines.corpora.work import read_work

    if ids == "auto" and options == NO_OPTIONS:
        return
    try:
        IdRule.parse(options.ids(ids), "")
    except ValueError as error:
        raise typer.BadParameter(f"--ids: {error}") from None
    what, they = ("ids", "--ids") if options == NO_OPTIONS else ("columns", "the options of the corpus")
    if retry_rejects:
        raise typer.BadParameter(f"--retry-rejects keeps the {what} that the job has: give it without {they}")
    if read_work(corpus):
        raise typer.BadParameter(f"a work list has its {what}: give {they} to `hashlight list`, which writes it")


@contextlib.contextmanager
def _listed(
    corpus: str, encoder: str | HashEncoder, ids: str, options: CorpusOptions, earlier: Earlier, unit_images: int
) -> Iterator[str | Path]:
    """Yield what to encode: the corpus, or a work list of it where it is not to be listed as it is by default."""
    from hashlight.pipelines.corpora.options import NO_OPTIONS

    if ids == "auto" and options == NO_OPTIONS and not earlier.since:
        yield corpus
        return
    from hashlight.engine.places.opening import open_place
    from hashlight.pipelines.codes.encoder import load_encoder
    from hashlight.pipelines.corpora.work import SUFFIX, list_work, read_work
    from hashlight.pipelines.encoding.since import write_new

    with tempfile.TemporaryDirectory(prefix="hashlight-work-") as folder:
        work, new = Path(folder, f"all{SUFFIX}"), Path(folder, f"new{SUFFIX}")
        if read_work(corpus):
            open_place(corpus).download("", work)
        else:
            list_work(corpus, work, unit_images=unit_images, ids=ids, options=options)
        if earlier.since:
            model = load_encoder(encoder) if isinstance(encoder, str) else encoder
            write_new(work, earlier.since, new, encoder=model.fingerprint, unit_images=unit_images)
        yield new if earlier.since else work


def encode(
    *,
    input: Annotated[
        str | None,
        typer.Option("--input", help=f"{CORPUS_HELP} Or a work list of `hashlight list`.", callback=refuse_missing),
    ] = None,
    embedded: Embedded,
    encoder: EncoderOption,
    output: Annotated[str, typer.Option("--output", help="Folder for the codes, local or in a bucket.")],
    actors: Actors,
    kept: Kept,
    limits: Limits,
    names: CorpusNames,
    earlier: Earlier,
    ids: IdsOption = "auto",
    fit: FitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode a corpus on Ray; a job resumes where it stopped, or with what has changed in the corpus."""
    options = names.parsed()
    if embedded.embeddings is not None:
        if input is not None or fit or earlier.retry_rejects or earlier.since or names != CorpusNames():
            raise typer.BadParameter(
                "--embeddings goes with none of --input and the options of a corpus of images, --fit, --since and "
                "--retry-rejects"
            )
        _encode_embeddings(embedded, encoder, output, actors, kept, limits, ids, earlier.overwrite, as_json)
        return
    if input is None:
        raise typer.BadParameter("give one of --input, a corpus of images, and --embeddings")
    if earlier.retry_rejects and (earlier.overwrite or earlier.since):
        raise typer.BadParameter(
            f"give {'--overwrite' if earlier.overwrite else '--since'} or --retry-rejects, not both"
        )
    _refuse_names(ids, options, input, retry_rejects=earlier.retry_rejects)
    from hashlight.pipelines.codes.encoder import load_encoder
    from hashlight.pipelines.encoding.encode import encode_corpus
    from hashlight.pipelines.encoding.encode import retry_rejects as try_again
    from hashlight.pipelines.jobs.session import joined

    start = time.perf_counter()
    common = _settings(actors, limits)
    fitted = load_encoder(encoder).with_fit(fit) if fit else encoder
    with joined(actors.address), encoding_bar() as report:
        if earlier.retry_rejects:
            summary = try_again(input, fitted, output, **common)
        else:
            with _listed(input, fitted, ids, options, earlier, limits.unit_images) as corpus:
                summary = encode_corpus(
                    corpus,
                    fitted,
                    output,
                    features=kept.how,
                    thumbnail=kept.thumbnails,
                    unit_images=limits.unit_images,
                    overwrite=earlier.overwrite,
                    progress=report,
                    **common,
                )
    _tell(summary, output, time.perf_counter() - start, as_json)


def _settings(actors: Actors, limits: Limits) -> dict[str, Any]:
    """Return what a job with images and one with its rejects are both given."""
    from hashlight.pipelines.decoding.worker import DecodeLimits

    return {
        "batch_size": actors.batch_size,
        "actors": actors.actors,
        "max_rejects": limits.max_rejects,
        "limits": DecodeLimits(
            seconds=limits.decode_seconds,
            memory_bytes=limits.decode_memory << 20,
            pixels=limits.max_megapixels * 1_000_000,
        ),
    }


def _encode_embeddings(
    embedded: Embedded,
    encoder: str,
    output: str,
    actors: Actors,
    kept: Kept,
    limits: Limits,
    ids: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Encode embeddings, which need no decoding."""
    from hashlight.pipelines.corpora.embeddings.listing import UNIT_ROWS
    from hashlight.pipelines.encoding.embeddings import encode_embeddings
    from hashlight.pipelines.jobs.session import joined

    decoding = replace(limits, unit_images=Limits.unit_images, max_rejects=None)
    if decoding != Limits() or kept.thumbnails or actors.batch_size != Actors.batch_size:
        raise typer.BadParameter(
            "--embeddings are not decoded: leave out --decode-seconds, --decode-memory, --max-megapixels, "
            "--thumbnails and --batch-size"
        )
    source, start = embedded.embeddings, time.perf_counter()
    assert source is not None, "they are given"
    with joined(actors.address), encoding_bar() as report:
        summary = encode_embeddings(
            source,
            encoder,
            output,
            column=embedded.embedding_column,
            ids=ids,
            features=kept.how,
            unit_rows=UNIT_ROWS if limits.unit_images == Limits.unit_images else limits.unit_images,
            actors=actors.actors,
            max_rejects=limits.max_rejects,
            overwrite=overwrite,
            progress=report,
        )
    _tell(summary, output, time.perf_counter() - start, as_json, what="embedding")


def _tell(summary: EncodeSummary, output: str, seconds: float, as_json: bool, what: str = "image") -> None:
    """Print what was done."""
    if as_json:
        typer.echo(json.dumps({**asdict(summary), "seconds": round(seconds, 3)}))
        return
    from hashlight.engine.places.uris import join, without_credentials
    from hashlight.pipelines.corpora.listing import told

    out.print(
        f"encoded {summary.codes:,} of {counted(summary.images, what)} to {counted(summary.bits, 'bit')} in "
        f"{seconds:.1f} s: {without_credentials(output)}",
        soft_wrap=True,
    )
    if summary.rejects:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary.reject_kinds.items())
        out.print(
            f"{counted(summary.rejects, what)} {'was' if summary.rejects == 1 else 'were'} rejected ({kinds}); "
            "the reasons are in "
            f"{without_credentials(join(output, 'rejects.parquet'))}",
            soft_wrap=True,
        )
    if summary.skipped:
        out.print(f"left out {told(summary.skipped)}", soft_wrap=True)
