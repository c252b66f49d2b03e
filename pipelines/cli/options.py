"""Options and arguments that several verbs take, with the same help everywhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hashlight.engine.indexes.choice import IndexChoice

# Names and no types of theirs: help needs no server.
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

if TYPE_CHECKING:
    from hashlight.engine.exchange.columns import Columns
    from hashlight.engine.features import FeatureKind
    from hashlight.engine.service.protocol.security import Security
    from hashlight.pipelines.corpora.options import CorpusOptions

# Without their module, so that help needs no numpy.
COPY_CODE_NAMES = ("pdq", "phash")

ExchangeKind = Literal["faiss", "parquet", "arrow"]

_ENDINGS: dict[ExchangeKind, tuple[str, ...]] = {
    "faiss": (".faiss", ".index"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".arrows", ".feather"),
}

CORPUS_HELP = (
    "Corpus: a folder of images, Parquet files, CSV files, JSON lines, WebDataset tars or IDX files, what img2dataset "
    "wrote, or a text file of URIs; local or s3://."
)


EMBEDDINGS_HELP = (
    "Embeddings: .npy, .parquet, .arrow or a float Flat index of FAISS, a folder of one kind, of clip-retrieval or of "
    "Hugging Face's save_to_disk; local or s3://."
)


def refuse_missing(place: str | None) -> str | None:
    """Refuse a local path that does not exist; whether something is in a store is found out when it is read."""
    if place is not None and "://" not in place and not Path(place).exists():
        raise typer.BadParameter(f"{place} does not exist")
    return place


def refuse_missing_encoder(encoder: str | None) -> str | None:
    """Refuse a local folder that does not exist, unless it is the name of a copy code."""
    return encoder if encoder in COPY_CODE_NAMES else refuse_missing(encoder)


def local_path(text: str | Path) -> Path:
    """Parse a path of this machine; a URI is refused, which would otherwise name a folder `s3:`."""
    if "://" in str(text):
        raise typer.BadParameter(f"{text} must be a path of this machine, not a URI")
    return Path(text)


def local_file(help_text: str) -> Any:
    """Return an option for a file that this machine must have: a library opens it, or it is a secret."""

    def parse(text: str | Path) -> Path:
        path = local_path(text)
        if not path.exists() or path.is_dir():
            raise typer.BadParameter(f"{path} must be a file that exists")
        return path

    return typer.Option(help=help_text, parser=parse, metavar="FILE")


def exchange_kind(location: str, option: str) -> ExchangeKind:
    """Tell from its name what a file that is exported or imported is."""
    kind = _kind_by_ending(location)
    if kind is not None:
        return kind
    from hashlight.engine.places.uris import without_credentials

    known = ", ".join(ending for endings in _ENDINGS.values() for ending in endings)
    what = f"say what it is with {option}"
    if option == "--from":
        what += ", or encode images with `hashlight encode` first"
    raise typer.BadParameter(f"{without_credentials(location)} ends in none of {known}: {what}")


def has_ending(location: str) -> bool:
    """Whether the name of a file or folder says what it is, for `exchange_kind`."""
    return _kind_by_ending(location) is not None


def _kind_by_ending(location: str) -> ExchangeKind | None:
    name = location.partition("?")[0].lower().rstrip("/")
    return next((kind for kind, endings in _ENDINGS.items() if name.endswith(endings)), None)


FeaturesAsOption = Annotated[
    Literal["float16", "bfloat16", "int8"] | None,
    typer.Option(help="Keep features as float16 (by default) or bfloat16, in 2 bytes a number, or as int8, in 1 byte."),
]


@dataclass(frozen=True, kw_only=True)
class SourceColumns:
    """What the columns of a Parquet or Arrow source are; all others become attributes."""

    code_column: Annotated[str, typer.Option(help="Column of the codes.")] = "code"
    id_column: Annotated[str, typer.Option(help="Column of the ids.")] = "id"
    number_rows: Annotated[bool, typer.Option("--number-rows", help="Number the rows instead.")] = False
    features_column: Annotated[str | None, typer.Option(help="Column of fine features, for re-ranking.")] = None
    thumbnail_column: Annotated[str | None, typer.Option(help="Column of encoded pictures.")] = None

    def named(self, features_as: FeatureKind | None) -> Columns:
        """Return them as a source is read by, with what features are kept as."""
        from hashlight.engine.exchange.columns import Columns

        ids = None if self.number_rows else self.id_column
        return Columns(self.code_column, ids, self.features_column, self.thumbnail_column, features_as)


@dataclass(frozen=True, kw_only=True)
class CorpusNames:
    """What a corpus does not say itself: its kind, and the names of its columns."""

    kind: Annotated[
        str | None,
        typer.Option(
            help="images, parquet, tar, idx, csv, jsonl, list or img2dataset; without it the names of the files tell."
        ),
    ] = None
    image_column: Annotated[str | None, typer.Option(help="Column of encoded images.")] = None
    uri_column: Annotated[str | None, typer.Option(help="Column of the images' URIs or paths.")] = None
    id_column: Annotated[str | None, typer.Option(help="Column of ids: whole numbers, or texts to hash.")] = None
    label_column: Annotated[str | None, typer.Option(help="Column of labels; in tars a key of the JSON.")] = None
    keep: Annotated[str | None, typer.Option(help="Columns to keep, as a,b; without it all; of tars' JSON none.")] = (
        None
    )
    join: Annotated[
        str | None, typer.Option(help="Metadata to add, FILE:COLUMN; the column has the images' file names or ids.")
    ] = None

    def parsed(self) -> CorpusOptions:
        """Return them as the library takes them."""
        from hashlight.pipelines.corpora.options import CorpusOptions

        try:
            return CorpusOptions.parse(**asdict(self))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error


def check_listen(text: str | None) -> str | None:
    """Refuse what is no address to listen at."""
    if text is not None:
        parse_listen(text)
    return text


@dataclass(frozen=True, kw_only=True)
class Observing:
    """How a server is seen from outside."""

    log_format: Annotated[LogFormat, typer.Option(help="A line of text a record, or of JSON, to standard error.")] = (
        "text"
    )
    log_level: Annotated[LogLevel, typer.Option(help="The least level; each request is one line of `info`.")] = "info"
    metrics_listen: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT at which to answer /metrics and /health/... to anyone, without a key.",
            callback=check_listen,
        ),
    ] = None

    def as_log_options(self) -> list[str]:
        """Return those that say how to log, for another process."""
        return ["--log-format", self.log_format, "--log-level", self.log_level]

    @contextlib.contextmanager
    def watching(self, service: str) -> Iterator[None]:
        """Log so, and export traces under this name if the environment says so, as long as the context is open."""
        from hashlight.engine.service.telemetry.exporting import exporting_traces
        from hashlight.engine.service.telemetry.logs import logging_as

        with logging_as(self.log_format, self.log_level), exporting_traces(service):
            yield


@dataclass(frozen=True, kw_only=True)
class ShardTls:
    """How gateways and shard servers know each other on networks that are not trusted, besides by the token."""

    shard_tls_cert: Annotated[Path | None, local_file("Certificate (PEM) between gateway and shard servers.")] = None
    shard_tls_key: Annotated[Path | None, local_file("Its private key (PEM).")] = None
    shard_tls_authority: Annotated[Path | None, local_file("Authority that signed it.")] = None

    @property
    def given(self) -> list[str]:
        """Names of the options that were given."""
        return [f"--{name.replace('_', '-')}" for name, value in asdict(self).items() if value is not None]

    def check(self) -> None:
        """Refuse half of a certificate, and an authority without one."""
        if (self.shard_tls_cert is None) != (self.shard_tls_key is None):
            raise typer.BadParameter("--shard-tls-cert and --shard-tls-key go together: give both or neither")
        if self.shard_tls_authority is not None and self.shard_tls_cert is None:
            raise typer.BadParameter("--shard-tls-authority goes with --shard-tls-cert and --shard-tls-key")

    def security(self, *, fresh_token: bool = False) -> Security:
        """Return how connections are protected; the token is that of HASHLIGHT_SHARD_TOKEN, or a fresh one."""
        from hashlight.engine.service.protocol.security import Security

        return Security.from_files(
            certificate=self.shard_tls_cert,
            key=self.shard_tls_key,
            authority=self.shard_tls_authority,
            fresh_token=fresh_token,
        )


def parse_listen(text: str) -> tuple[str, int]:
    """Return the host and the port of an option `HOST:PORT`."""
    from hashlight.engine.service.protocol.exposure import split_address

    try:
        return split_address(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def set_cache_size(text: str | None) -> str | None:
    """Limit what this process, and those that it starts, keep of collections in buckets."""
    from hashlight.engine.cache.size import VARIABLE, parse_size

    if text is not None:
        try:
            parse_size(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        os.environ[VARIABLE] = text
    return text


CollectionArgument = Annotated[str, typer.Argument(help="A collection: a folder, or the URI of one in a bucket.")]
ExistingCollectionArgument = Annotated[
    str, typer.Argument(help="A collection: a folder, or the URI of one in a bucket.", callback=refuse_missing)
]
EncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder",
        help="Folder of a trained encoder, or s3://; or a code that finds copies: pdq (256 bits) or phash (64).",
        callback=refuse_missing_encoder,
    ),
]
OtherEncoderOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of the encoder, which makes codes of images, or s3://; only if the collection does not keep it.",
        callback=refuse_missing,
    ),
]
IndexOption = Annotated[
    IndexChoice,
    typer.Option(
        "--index",
        help="What finds the answers, which are the same: the fastest for each query (auto), tables of parts of codes "
        "(multi), a comparison with every code (scan), or an index of FAISS.",
    ),
]
BitsOption = Annotated[int, typer.Option(min=1, max=1024, help="Bits of a code.")]
MaxMegapixelsOption = Annotated[int, typer.Option(min=1, help="Largest image that is decoded, in millions of pixels.")]
UnitImagesOption = Annotated[int, typer.Option(min=1, help="Images per unit of work.")]
EmbeddingColumnOption = Annotated[
    str, typer.Option("--embedding-column", help="With --embeddings: their column, if there are several of lists.")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Run on the Ray cluster at this address; `auto` is the one of this machine."),
]
IdsOption = Annotated[
    str,
    typer.Option(
        "--ids",
        help="What ids are made from: name (of corpus and image), name:NAME (names the corpus), uri, content, "
        "column:NAME; auto: the column `id`, or else name.",
    ),
]
PrefetchOption = Annotated[
    bool,
    typer.Option("--prefetch", help="Fetch all shards (parts) of a collection in a bucket now."),
]
CacheSizeOption = Annotated[
    str | None,
    typer.Option(
        "--cache-size",
        help="How much of collections in buckets this machine keeps, such as 200GB; without it HASHLIGHT_CACHE_SIZE, "
        "or half of what is free.",
        callback=set_cache_size,
    ),
]
DrainDelayOption = Annotated[
    float,
    typer.Option(
        "--drain-delay", min=0, help="Seconds after SIGTERM in which requests are answered still, without being ready."
    ),
]
PollOption = Annotated[
    float, typer.Option("--poll", min=0.05, help="Seconds between looks for new versions and servers.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
FilterOption = Annotated[
    str | None, typer.Option("--filter", help="A condition on attributes and ids: 'label == 3 and price < 5.5'.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and change nothing.")]
