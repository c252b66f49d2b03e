"""What a manifest holds: the description of one version of a collection, and how that is written in a file.

A version is a list of shards, each with the rows that were deleted since and the columns that were replaced. Shards and
the other files it names never change; a write adds files, and a manifest that names them.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import functools
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from hashlight.engine.codes import MAX_BITS, MIN_BITS
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.features import FLOAT16, FeatureKind, check_kind
from hashlight.engine.ids import MAX_ID
from hashlight.engine.indexes.base import MAX_ROWS
from hashlight.engine.places.integrity import FileSpec

FORMAT_VERSION = 2

# What a reader must know about to give right answers; a manifest lists those that it uses.
DEAD_ROWS = "dead-rows"
COLUMNS = "columns"
FEATURES_AS = "features-as"
NEEDS = frozenset({DEAD_ROWS, COLUMNS, FEATURES_AS})

REQUIRED_FILES = frozenset({"codes.faiss", "ids.npy", "rows_by_id.npy"})
TABLE_FILES = frozenset({"tables/tables.json", "tables/offsets.npy", "tables/entries.npy", "tables/starts.npy"})
MAX_VERSION = 99_999_999

# Of a column in one shard: `{"min": value or None, "max": value or None, "nulls": count}`, values as JSON.
Statistics = Mapping[str, Mapping[str, Any]]

_REMEDY = "restore it from a copy, or build the collection again"


@dataclass(frozen=True, slots=True)
class DeadRows:
    """The deleted rows of a shard: a file `deletions/NAME`, uint32 row numbers in ascending order, `count` of them."""

    name: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ColumnFile:
    """One attribute of a shard, added or replaced since: a file `columns/NAME`, Arrow, as many rows as the shard."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One shard: its folder's name, its rows, its files, and what has changed about its rows.

    Attributes
    ----------
    name : str
        Of the folder below `shards/`.
    rows : int
        Of its files, deleted ones included.
    files : dict of str to FileSpec
    ids : tuple of int, int, or None
        Lowest and highest id; None in manifests of format 1.
    dead : DeadRows or None
    columns : dict of str to ColumnFile
        By attribute; they take precedence over the shard's own. An attribute that is in neither is null.
    statistics : dict
        Of scalar attributes, those of `columns` included; see `Statistics`. One without an entry may hold any value.
    """

    name: str
    rows: int
    files: dict[str, FileSpec]
    ids: tuple[int, int] | None = None
    dead: DeadRows | None = None
    columns: dict[str, ColumnFile] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=dict)

    @property
    def has_tables(self) -> bool:
        """Whether it has a multi-index."""
        return self.files.keys() >= TABLE_FILES

    @property
    def alive(self) -> int:
        """Number of rows that have not been deleted."""
        return self.rows - (self.dead.count if self.dead else 0)


@dataclass(frozen=True, slots=True)
class LogMark:
    """How far a version has the records of a server's write log: through this number, as it had at this time."""

    through: int
    written: str


@dataclass(frozen=True)
class Manifest:
    """One version of a collection.

    Attributes
    ----------
    version : int
        1 for the first; each write makes the next.
    bits : int
        True number of bits of a code.
    encoder : str or None
        Fingerprint of the encoder that made the codes; None if they came from elsewhere.
    shards : tuple of ShardSpec
    encoder_folder : str or None
        Name of the folder below `encoder/` with the copy of that encoder; None if there is no copy.
    schema : pyarrow.Schema or None
        Of the attributes; None without attributes, and in manifests of format 1.
    features : int or None
        Dimensions of the fine features; None without features.
    features_as : {"float16", "bfloat16", "int8"}
        As what they are kept.
    thumbnails : bool
        Whether rows may have a thumbnail.
    collection : str
        A UUID in hex, the same for all versions; empty in manifests of format 1.
    parent : str or None
        File name of the version before, from which this one was made.
    written : str
        UTC, ISO 8601 with seconds.
    next_id : int
        Higher than any id so far, deleted ones included.
    oldest : int
        The lowest version that is kept, but for tagged ones.
    tags : dict of str to str
        File names of versions that are kept under a name.
    logs : dict of str to LogMark
        By the ids of write logs: which of their records this version has.
    commit : str
        A UUID in hex, so that no two writes make the same file.
    format_version : int
    """

    version: int
    bits: int
    encoder: str | None
    shards: tuple[ShardSpec, ...]
    encoder_folder: str | None = None
    schema: pa.Schema | None = None
    features: int | None = None
    features_as: FeatureKind = FLOAT16
    thumbnails: bool = False
    collection: str = ""
    parent: str | None = None
    written: str = ""
    next_id: int = 0
    oldest: int = 1
    tags: dict[str, str] = field(default_factory=dict)
    logs: dict[str, LogMark] = field(default_factory=dict)
    commit: str = field(default_factory=lambda: uuid.uuid4().hex)
    format_version: int = FORMAT_VERSION

    @property
    def rows(self) -> int:
        """Number of codes in all shards, without deleted ones."""
        return sum(shard.alive for shard in self.shards)

    @property
    def dead_rows(self) -> int:
        """Number of deleted rows whose codes are still there."""
        return sum(shard.rows - shard.alive for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shard files, and of what has changed about their rows."""
        return sum(bytes for _, bytes in self._files())

    def _files(self) -> Iterator[tuple[str, int]]:
        for shard in self.shards:
            yield from ((f"shards/{shard.name}/{name}", file.bytes) for name, file in shard.files.items())
            yield from ((f"columns/{file.name}", file.bytes) for file in shard.columns.values())
            if shard.dead:
                yield f"deletions/{shard.dead.name}", shard.dead.bytes

    @property
    def names(self) -> set[str]:
        """What the version consists of: names of folders and files in the collection's own."""
        found = {f"shards/{shard.name}" for shard in self.shards}
        found |= {f"columns/{file.name}" for shard in self.shards for file in shard.columns.values()}
        found |= {f"deletions/{shard.dead.name}" for shard in self.shards if shard.dead}
        return found | ({f"encoder/{self.encoder_folder}"} if self.encoder_folder else set())

    @property
    def needs(self) -> list[str]:
        """What a reader must know about."""
        dead = any(shard.dead for shard in self.shards)
        columns = any(shard.columns for shard in self.shards)
        features = self.features_as != FLOAT16
        return [need for need, used in ((COLUMNS, columns), (DEAD_ROWS, dead), (FEATURES_AS, features)) if used]

    @functools.cached_property
    def data(self) -> bytes:
        """The contents of its file."""
        body = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "shards"}
        body["schema"] = self.schema and base64.b64encode(self.schema.serialize()).decode()
        body["needs"] = self.needs
        if self.features_as == FLOAT16:
            del body["features_as"]
        if not self.logs:
            del body["logs"]
        else:
            body["logs"] = {log: asdict(mark) for log, mark in self.logs.items()}
        # A line each: with all of it indented, which Python's fast encoder cannot, 1,000 shards take 8 times as long.
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in body.items()]
        shards = ",\n".join(json.dumps(_document_of(shard)) for shard in self.shards)
        return ("{" + ",\n".join([*lines, f'"shards": [\n{shards}]']) + "}\n").encode()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the contents: tells versions apart that have the same number, as after a build from scratch."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def file_name(self) -> str:
        """Name of this version's file under `manifests/`."""
        return f"{self.version:08d}.json" if self.format_version == 1 else f"{self.version:08d}-{self.digest}.json"


def _document_of(shard: ShardSpec) -> dict[str, Any]:
    """Return what `dataclasses.asdict` would, in half of the time."""
    return {
        "name": shard.name,
        "rows": shard.rows,
        "files": {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in shard.files.items()},
        "ids": shard.ids,
        "dead": None if shard.dead is None else asdict(shard.dead),
        "columns": {name: asdict(file) for name, file in shard.columns.items()},
        "statistics": shard.statistics,
    }


# A commit reads the same manifest several times, and a server again and again.
@functools.lru_cache(maxsize=8)
def parse_manifest(path: str, data: bytes) -> Manifest:
    """Parse the file of a manifest, whose checksum may be right whoever wrote it: nothing in it is trusted.

    Raises
    ------
    CorruptDataError
        If it is not valid, or of a format that this release cannot read.
    """
    try:
        document = json.loads(data)
        format_version = document["format_version"]
        if format_version == 1:
            # Manifests of the first releases have no checksum of their own.
            checksum = document.pop("sha256", None)
            if checksum not in (None, hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()):
                raise ValueError("its contents do not match its own checksum")
        elif format_version != FORMAT_VERSION:
            raise CorruptDataError(
                f"{path} has format version {format_version}, this release reads 1 and {FORMAT_VERSION}: open it with "
                "the release that wrote it, or build the collection again"
            )
        elif unknown := sorted(set(document["needs"]) - NEEDS):
            raise CorruptDataError(
                f"{path} needs {', '.join(unknown)}, which this release does not know: open it with the release that "
                "wrote it"
            )
        manifest = _manifest(document)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, pa.ArrowException, OSError) as error:
        raise CorruptDataError(f"{path} is not a readable manifest ({error!r}): {_REMEDY}") from error
    manifest.__dict__["data"] = data  # not encoded again, which could differ
    return manifest


def parse_shard(shard: dict[str, Any]) -> ShardSpec:
    """Undo `dataclasses.asdict` of a `ShardSpec`.

    Raises
    ------
    ValueError, LookupError, TypeError, AttributeError
        If it is not a valid description of a shard.
    """
    files = {
        "/".join(check_name(part, "a file of a shard") for part in name.split("/")): FileSpec(**_sized(file))
        for name, file in shard["files"].items()
    }
    if not files.keys() >= REQUIRED_FILES or 0 < len(TABLE_FILES & files.keys()) < len(TABLE_FILES):
        raise ValueError(
            f"a shard has {', '.join(sorted(REQUIRED_FILES))}, and all of {', '.join(sorted(TABLE_FILES))} or none, "
            f"got {', '.join(sorted(files))}"
        )
    rows = _whole(shard["rows"], "rows of a shard", 1, MAX_ROWS)
    return ShardSpec(
        name=check_name(shard["name"], "a shard"),
        rows=rows,
        files=files,
        ids=_parse_ids(shard.get("ids")),
        dead=None if (dead := shard.get("dead")) is None else _parse_dead(dead, rows),
        columns={_text(name, "an attribute"): _parse_column(file) for name, file in shard.get("columns", {}).items()},
        statistics={
            _text(name, "an attribute"): _parse_statistics(each, rows)
            for name, each in shard.get("statistics", {}).items()
        },
    )


def _parse_ids(ids: Any) -> tuple[int, int] | None:
    if ids is None:
        return None
    low, high = ids
    return _whole(low, "the lowest id", 0, MAX_ID), _whole(high, "the highest id", low, MAX_ID)


def _parse_dead(dead: dict[str, Any], rows: int) -> DeadRows:
    count = _whole(dead["count"], "deleted rows", 1, rows)
    return DeadRows(name=check_name(dead["name"], "a file of deleted rows"), count=count, **_sized(dead))


def _parse_column(file: dict[str, Any]) -> ColumnFile:
    return ColumnFile(name=check_name(file["name"], "a column"), **_sized(file))


def _parse_statistics(each: dict[str, Any], rows: int) -> dict[str, Any]:
    return {"min": each["min"], "max": each["max"], "nulls": _whole(each["nulls"], "nulls", 0, rows)}


def _sized(file: dict[str, Any]) -> dict[str, Any]:
    if not re.fullmatch("[0-9a-f]{64}", file["sha256"]):
        raise ValueError(f"a SHA-256 has 64 hexadecimal digits, got {file['sha256']!r}")
    return {"bytes": _whole(file["bytes"], "bytes of a file", 0, 2**63 - 1), "sha256": file["sha256"]}


def _manifest(body: dict[str, Any]) -> Manifest:
    shards = tuple(parse_shard(shard) for shard in body["shards"])
    if len({shard.name for shard in shards}) < len(shards):
        raise ValueError(f"a collection has each shard once, got {[shard.name for shard in shards]}")
    if not shards and body["format_version"] == 1:
        raise ValueError("a collection of format 1 has at least one shard, got none")
    encoder = None if body["encoder"] is None else check_name(body["encoder"], "an encoder")
    # The first manifests have none: their copy of the encoder is named by its fingerprint.
    folder = body.get("encoder_folder", encoder)
    manifest = Manifest(
        version=_whole(body["version"], "the version", 1, MAX_VERSION),
        bits=_whole(body["bits"], "bits", MIN_BITS, MAX_BITS),
        encoder=encoder,
        shards=shards,
        encoder_folder=None if folder is None else check_name(folder, "an encoder"),
        commit="",
        format_version=1,
    )
    return manifest if body["format_version"] == 1 else _with_second_format(manifest, body)


def _with_second_format(manifest: Manifest, body: dict[str, Any]) -> Manifest:
    ranges = [shard.ids for shard in manifest.shards if shard.ids]
    if len(ranges) < len(manifest.shards):
        raise ValueError("a shard without the range of its ids")
    highest = max((high for _, high in ranges), default=-1)
    schema, features, parent = body["schema"], body["features"], body["parent"]
    return dataclasses.replace(
        manifest,
        schema=None if schema is None else pyarrow.ipc.read_schema(pa.py_buffer(base64.b64decode(schema))),
        features=None if features is None else _whole(features, "dimensions of features", 1, 2**31 - 1),
        features_as=check_kind(body.get("features_as", FLOAT16)),
        thumbnails=_truth(body["thumbnails"], "thumbnails"),
        collection=_text(body["collection"], "the collection"),
        parent=None if parent is None else _manifest_name(parent),
        written=_time(body["written"]),
        next_id=_whole(body["next_id"], "the next id", highest + 1, MAX_ID + 1),
        oldest=_whole(body["oldest"], "the oldest version", 1, manifest.version),
        tags={check_tag(tag): _manifest_name(name) for tag, name in body["tags"].items()},
        logs={_text(log, "a log"): _parse_mark(mark) for log, mark in body.get("logs", {}).items()},
        commit=_text(body["commit"], "the commit"),
        format_version=FORMAT_VERSION,
    )


def _parse_mark(mark: dict[str, Any]) -> LogMark:
    return LogMark(_whole(mark["through"], "a record", 1, 2**63 - 1), _time(mark["written"]))


def check_tag(tag: object) -> str:
    """Return a name for a version.

    Raises
    ------
    ValueError
        If it is empty, longer than 100 characters, or could be taken for a version's number.
    """
    if not isinstance(tag, str) or not re.fullmatch(r"(?![0-9]+$)[\w.+-]{1,100}", tag):
        raise ValueError(
            f"a tag has 1 to 100 letters, digits, and any of . _ + -, and is not a number, got {tag!r}: choose another"
        )
    return tag


def check_name(name: object, what: str) -> str:
    """Return the name of a shard, a file or an encoder, which becomes part of a path: it must not lead elsewhere.

    Raises
    ------
    ValueError
        If it is not the name of one visible file or folder.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^./\\\0][^/\\\0]{0,199}", name):
        raise ValueError(f"{what} is named by up to 200 characters without slashes, no dot first, got {name!r}")
    return name


def _manifest_name(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[0-9]{8}(-[0-9a-f]{64})?\.json", name):
        raise ValueError(f"expected the file name of a manifest, got {name!r}")
    return name


def _time(value: object) -> str:
    text = _text(value, "the time")
    if datetime.datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"expected a time with its zone, got {text!r}")
    return text


def _whole(value: object, what: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"expected {low} to {high} for {what}, got {value!r}")
    return value


def _truth(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false for {what}, got {value!r}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text for {what}, got {value!r}")
    return value
