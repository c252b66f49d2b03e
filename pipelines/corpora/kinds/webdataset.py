"""WebDataset shards as corpora: tar files of images, and of files that describe them.

Every image in a shard is an entry. Files in a row whose names agree up to the first dot are a sample, as in WebDataset
itself. A file of a sample that ends in `.cls`, `.txt` or `.json` is kept as the attribute `label`, `txt` or `json`, a
string: `0001.cls` describes all images of the sample (`0001.jpg`, `0001.left.jpg`), and `0001.left.cls` the one that
has its name up to the last dot. Other files are left out and counted. Which attributes a corpus has is taken from its
first thousand images. Values of a sample's JSON become columns of their own if they are asked for by their keys.

A shard is read from start to end, or one range of it: a work list divides shards of many images where a sample begins,
by their headers (`divided`).
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import io
import itertools
import json
import logging
import lzma
import tarfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa

from hashlight.engine.codes import IdArray
from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.failures import TooManyBytesError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import HIDDEN
from hashlight.engine.places.reading import groups, map_ahead
from hashlight.engine.places.uris import is_local, without_credentials
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.kinds import images
from hashlight.pipelines.corpora.kinds.columns import LABEL, TAKEN, prefixed
from hashlight.pipelines.corpora.kinds.documents import parse_json
from hashlight.pipelines.corpora.listing import (
    BASE_SCHEMA,
    CHUNK_ENTRIES,
    COLUMN_OF_LABELS,
    ROW,
    SHARDS,
    SOURCE,
    STAMP,
    File,
    FileStream,
    Listing,
    Piece,
    Pieces,
    images_of_next_unit,
    skip,
    suffix_kind,
)
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.corpora.reasons import reworded
from hashlight.pipelines.jobs.errors import PipelineError

logger = logging.getLogger(__name__)

SUFFIXES = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst",
)  # fmt: skip
_ATTRIBUTE_OF = {"cls": "label", "txt": "txt", "json": "json"}
ATTRIBUTES = tuple(_ATTRIBUTE_OF.values())
# Of columns that are values of a sample's JSON; what is none of the others is a text, in JSON if it was none.
JSON_TYPES = {"bool": pa.bool_(), "int64": pa.int64(), "double": pa.float64(), "string": pa.string()}
# Limit on a text; images have a limit of their own.
_MAX_TEXT_BYTES = 1_000_000
# Images of one sample in memory at a time: a folder of photographs may have one name up to the first dot. Of larger
# samples the texts are read beforehand.
_MAX_SAMPLE_BYTES = 64 << 20
# Images looked at to find out which attributes a corpus has.
_LOOKED_AT = 1000
# How what begins with these bytes is decompressed.
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
    b"\x5d\0\0": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda file: pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"),
}
_DAMAGE = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException)
# From a store, one request brings this much.
_LOCAL_BUFFER_BYTES, _STORE_BUFFER_BYTES = 1 << 18, 8 << 20
# Where only headers are read, which is worth while in a store only if all of it is read.
_HEADERS_BUFFER_BYTES = 4096
# The headers of a shard that is compressed, or in a store, cannot be had for less than all of it. Up to so many bytes
# it is one unit: many shards are work enough for all actors, and of few shards the small ones are encoded in seconds.
_MAX_WHOLE_BYTES, _MAX_WHOLE_BYTES_OF_FEW = 1 << 30, 64 << 20
_FEW_SHARDS = 64
# Decompressed as slowly as images are decoded, or more slowly, so that it is not done once for the headers and again by
# each actor: gzip and zstd give 300 to 1,300 MB/s, bzip2 and xz 8 to 22, and photographs are decoded at some 50.
_SLOW_SUFFIXES = (".bz2", ".tbz2", ".xz", ".txz")
# Tars are looked at before it is known how many images those before them have.
_IMAGES_OF_A_SHARD = 1000
# The range of a shard: the offsets of its first header, and of the first one that is not in it; -1 is the end.
START, STOP = "__start", "__stop"


# A name that is not UTF-8 is shown with escapes: it must be stored as part of a URI.
_NAMES: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
# Both are public in `tarfile`; typeshed leaves them out.
_DAMAGED_HEADER = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error: `tarfile` takes all but the first for the end of the shard."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except _DAMAGED_HEADER as error:
            raise tarfile.ReadError(f"the header at byte {tarfile_.offset} is damaged: {error}") from error


@dataclass(slots=True)
class Sample:
    """One image of a shard.

    Attributes
    ----------
    name : str
        Its name in the shard; empty for what cannot be read of a damaged one.
    data : bytes or OSError
        The encoded image, or why there is none.
    attributes : dict of str to str
        Texts, and what `take_json` adds.
    """

    name: str
    data: bytes | OSError
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Text:
    """A file that describes images: all of its sample, or those with its name up to the last dot."""

    name: str
    text: str
    is_used: bool = False


@dataclass(slots=True)
class _Group:
    """Files in a row whose names agree up to the first dot, `key`: images and the texts that describe them."""

    key: str
    number: int = 0
    images: list[Sample] = field(default_factory=list)
    texts: list[_Text] = field(default_factory=list)
    num_bytes: int = 0
    has_all_texts: bool = False

    def add(self, image: Sample) -> None:
        self.images.append(image)
        self.num_bytes += len(image.data) if isinstance(image.data, bytes) else 0

    def add_text(self, text: _Text) -> None:
        """Add a text, unless it was read beforehand."""
        if not self.has_all_texts:
            self.texts.append(text)

    def take_all_texts(self, texts: list[_Text]) -> None:
        """Take all texts of the sample, before the shard comes to them."""
        self.texts, self.has_all_texts = texts, True

    def is_full(self, name: str) -> bool:
        """Whether the images are to be taken before that of another name is added."""
        return self.num_bytes > _MAX_SAMPLE_BYTES and _stem(self.images[-1].name) != _stem(name)

    def take(self) -> list[Sample]:
        """Return the images so far, with their attributes, and keep the texts that may describe later ones."""
        by_stem: dict[str, list[Sample]] = {self.key: self.images}
        for image in self.images:
            if _stem(image.name) != self.key:
                by_stem.setdefault(_stem(image.name), []).append(image)
        # An image's own text counts more than its sample's.
        for text in sorted(self.texts, key=lambda text: _stem(text.name) != self.key):
            for image in by_stem.get(_stem(text.name), ()):
                image.attributes[_attribute(text.name)] = text.text
                text.is_used = True
        self.texts = [text for text in self.texts if not text.is_used or _stem(text.name) == self.key]
        taken, self.images, self.num_bytes = self.images, [], 0
        return taken

    def end(self, skipped: Counter[str]) -> list[Sample]:
        """Return the rest of the images, and count the texts that describe none."""
        taken = self.take()
        for text in self.texts:
            if not text.is_used:
                skip(skipped, f"{suffix_kind(text.name)} without an image")
        return taken


def list_files(root: str, found: FileStream, ids: IdRule, options: CorpusOptions) -> Listing:
    """List shards; their images are known only when they are read.

    Raises
    ------
    PipelineError
        If a column that is asked for is in none of the first samples.
    """
    reads_json = _json_keys(options) is not None or ids.column is not None
    texts, values = _attributes_of((file.uri for file in found()), reads_json=reads_json)
    json_columns = choose_columns(values, options, ids, without_credentials(root))
    kept = [name for name in texts if name not in json_columns and _is_kept(name, options)]

    def pieces(_split: bool) -> Iterator[Piece]:
        for part in groups(found(), CHUNK_ENTRIES):
            yield functools.partial(_list_shards, part, ids)

    dropped = frozenset(name for name in ATTRIBUTES if not _is_kept(name, options))
    return list_shards(root, pieces, found, ids, kept, json_columns, dropped)


def _list_shards(files: list[File], ids: IdRule, _skipped: Counter[str]) -> Iterator[pa.Table]:
    yield entries_of_shards(files, ids)


def list_shards(
    root: str,
    pieces: Pieces,
    found: FileStream,
    ids: IdRule,
    texts: list[str],
    json_columns: dict[str, tuple[str, str]],
    dropped: frozenset[str],
) -> Listing:
    """Return the listing of shards whose samples have some texts as attributes, and some values of their JSON."""
    schema = pa.schema([*BASE_SCHEMA, *attribute_fields([*texts, *json_columns], json_columns)])
    labels_from = COLUMN_OF_LABELS if LABEL in schema.names else None
    return Listing(
        root,
        SHARDS,
        schema,
        pieces,
        found.skipped,
        ids=ids,
        labels_from=labels_from,
        columns=frozenset([*schema.names, *(key for key, _ in json_columns.values())]),
        json_columns=json_columns,
        dropped=dropped,
        has_ids=ids.column is not None,
    )


def attribute_fields(names: Iterable[str], json_columns: Mapping[str, tuple[str, str]]) -> list[pa.Field]:
    """Return the columns of attributes of shards: texts, but for values of JSON, which have a type."""
    return [
        pa.field(name, JSON_TYPES[json_columns[name][1]] if name in json_columns else pa.string()) for name in names
    ]


def choose_columns(
    values: Mapping[str, str], options: CorpusOptions, ids: IdRule, where: str
) -> dict[str, tuple[str, str]]:
    """Return the columns to make of the values of samples' JSON: by name, the key and the type.

    Parameters
    ----------
    values : mapping
        The types of values by their keys.
    options : CorpusOptions
        Its columns that are texts of the samples themselves are left out.
    ids : IdRule
        A text that is an id is kept, too.
    where : str
        The corpus, for messages.

    Raises
    ------
    PipelineError
        If there is no such key, or values that are ids are neither whole numbers nor texts.
    """
    wanted = [key for key in _json_keys(options) or () if key not in ATTRIBUTES or key == options.label_column]
    needed = [] if ids.column is None else [ids.column]
    # What is not here may be in the metadata.
    needed += wanted if options.join is None else []
    if missing := [key for key in needed if key not in values]:
        raise PipelineError(
            f"the JSON of the first samples of {where} has no {missing}: it has {sorted(values) or 'no values'}"
        )
    if ids.column is not None:
        if values[ids.column] not in ("int64", "string"):
            raise PipelineError(
                f"`{ids.column}` in the JSON of {where} must be whole numbers or texts to be ids, got "
                f"{values[ids.column]}"
            )
        wanted += [ids.column] if values[ids.column] == "string" and ids.column not in wanted else []
    columns: dict[str, tuple[str, str]] = {}
    for key in wanted:
        if key not in values:
            continue
        name = LABEL if key == options.label_column else prefixed(key, TAKEN | {LABEL} | columns.keys())
        columns[name] = (key, values[key])
    return columns


def _json_keys(options: CorpusOptions) -> list[str] | None:
    keys = [*(options.keep or ()), *([] if options.label_column is None else [options.label_column])]
    return list(dict.fromkeys(keys)) or None


def _is_kept(name: str, options: CorpusOptions) -> bool:
    return options.keep is None or name in options.keep or name == LABEL


def entries_of_shards(files: list[File], ids: IdRule) -> pa.Table:
    """Make an entry of each shard."""
    names = [file.name for file in files]
    columns = {
        "id": ids.of_files.ids_of(names, names),
        "uri": names,
        SOURCE: [file.uri for file in files],
        ROW: np.full(len(files), -1, np.int64),
        STAMP: [file.stamp for file in files],
    }
    return pa.table(columns, BASE_SCHEMA)


def _attributes_of(uris: Iterable[str], *, reads_json: bool) -> tuple[list[str], dict[str, str]]:
    """Return what the first samples of some shards have: attributes, and types of the values of their JSON by key.

    A sample may lack what others have.
    """
    samples = itertools.chain.from_iterable(read_shard(uri, max_image_bytes=_MAX_TEXT_BYTES) for uri in uris)
    found: set[str] = set()
    values: dict[str, str | None] = {}
    for sample in itertools.islice(samples, _LOOKED_AT):
        found |= sample.attributes.keys()
        if not reads_json and len(found) == len(ATTRIBUTES):
            break
        for key, value in json_values(sample).items() if reads_json else ():
            values[key] = _wider(values.get(key), value)
    return [name for name in ATTRIBUTES if name in found], {key: kind or "string" for key, kind in values.items()}


def json_values(sample: Sample) -> dict[str, Any]:
    """Return the values of a sample's JSON by their keys; none if it has no JSON object."""
    try:
        said = parse_json(sample.attributes.get("json", "{}"))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _wider(kind: str | None, value: Any) -> str | None:
    """Return a type for a value and for those of a type; None as long as all of them are null."""
    if value is None:
        return kind
    known = {bool: "bool", int: "int64", float: "double"}
    own = known.get(type(value), "string")
    return own if kind in (None, own) else "double" if {kind, own} == {"int64", "double"} else "string"


def _as_kind(value: Any, kind: str) -> Any:
    """Return a value as one of a type; ValueError if it is none."""
    if kind == "string":
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    expected = {"bool": bool, "int64": int, "double": int | float}[kind]
    if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
        raise ValueError(f"expected {kind}, got {value!r}")
    if kind == "int64" and not -(2**63) <= value < 2**63:
        raise ValueError(f"expected {kind}, got {value}")
    return float(value) if kind == "double" else value


def take_json(samples: list[Sample], json_columns: Mapping[str, tuple[str, str]]) -> set[str]:
    """Give samples the values of their JSON as attributes; return the columns in which some are of another type."""
    others: set[str] = set()
    for sample in samples if json_columns else ():
        values = json_values(sample)
        for name, (key, kind) in json_columns.items():
            value = values.get(key)
            try:
                sample.attributes[name] = None if value is None else _as_kind(value, kind)
            except ValueError:
                sample.attributes[name] = None
                others.add(name)
    return others


def find_few(shards: Iterator[pa.Table]) -> tuple[bool, Iterator[pa.Table]]:
    """Return whether a listing has so few shards that actors would wait while others have one, and its entries."""
    ahead: list[pa.Table] = []
    for table in shards:
        ahead.append(table)
        if sum(map(len, ahead)) > _FEW_SHARDS:
            return False, itertools.chain(ahead, shards)
    return True, iter(ahead)


def divided(
    shards: Iterable[pa.Table], size: int, ids: IdRule, *, first: int = 0, are_few: bool = False
) -> Iterator[pa.Table]:
    """Divide shards into ranges; yield the entry of each, with the columns `START` and `STOP`.

    A range begins with a sample and has up to `size` images (`images_of_next_unit`), or as many more as its last sample
    has. Not divided are shards that are compressed or in a store, where the headers cost as much as the images, unless
    they are large, and the less so the fewer there are; those that are decompressed slowly; and those that need to be
    read whole, because a name occurs twice or the headers depend on one another.

    Parameters
    ----------
    shards : iterable of pyarrow.Table
        The entries of a listing, which are shards.
    size : int
    ids : IdRule
        Of the listing.
    first : int
        The number of the first of them among all shards of the corpus.
    are_few : bool
        Whether the corpus has few of them (`find_few`).

    Raises
    ------
    ReadFailedError
        If a store fails for a reason that may pass.
    """
    entries = enumerate((table.slice(row, 1) for table in shards for row in range(len(table))), start=first)

    def find(numbered: tuple[int, pa.Table]) -> tuple[pa.Table, list[int]]:
        number, entry = numbered
        return entry, _starts_of(entry[SOURCE][0].as_py(), size, listed=number * _IMAGES_OF_A_SHARD, are_few=are_few)

    for entry, starts in map_ahead(find, entries):
        for start, stop in itertools.pairwise([*starts, -1]):
            name = entry["uri"][0].as_py()
            own = entry.set_column(0, "id", pa.array([range_id(name, start, ids)], pa.int64()))
            for column, value in ((START, start), (STOP, stop)):
                own = own.append_column(column, pa.array([value], pa.int64()))
            yield own


def range_id(shard: str, start: int, ids: IdRule) -> int:
    """Return the id, among the entries of a work list, of the range of a shard that begins at a byte."""
    name = f"{shard}@{start}" if start else shard
    return int(ids.of_files.ids_of([name], [name])[0])


def is_compressed(source: str) -> bool:
    """Whether a shard is compressed, by its name."""
    return not without_credentials(source).lower().endswith(".tar")


def _starts_of(source: str, size: int, *, listed: int = 0, are_few: bool = False) -> list[int]:
    """Return the bytes, of the plain tar, at which the ranges of a shard begin.

    `listed` images are thought to be in shards before it.
    """
    starts: list[int] = [0]
    names = array("q")
    has_cheap_headers = is_local(source) and not is_compressed(source)
    try:
        most = _MAX_WHOLE_BYTES_OF_FEW if are_few else _MAX_WHOLE_BYTES
        is_slow = without_credentials(source).lower().endswith(_SLOW_SUFFIXES)
        if is_slow or (not has_cheap_headers and _size_of(source) <= most):
            return [0]
        with _open(source, buffer_bytes=_HEADERS_BUFFER_BYTES if has_cheap_headers else None) as shard:
            if not _is_plain(shard) and not is_compressed(source):
                return [0]
            for member, begins in _with_cuts(_members(shard), size, listed=listed):
                names.append(hash(member.name))
                if begins is not None:
                    starts.append(begins)
            if shard.pax_headers:
                return [0]
    except ReadFailedError:
        raise
    except _DAMAGE:
        pass  # whoever reads the last range says what is wrong
    return starts if len(np.unique(names)) == len(names) else [0]


def _size_of(source: str) -> int:
    entry = open_place(source).entry()
    return 0 if entry is None else entry.size


def _with_cuts(
    members: Iterable[tarfile.TarInfo], size: int, *, listed: int
) -> Iterator[tuple[tarfile.TarInfo, int | None]]:
    """Yield the images, and with the first of each range but the first of a shard the byte where that range begins."""
    key, images, begins = "", 0, None
    for member in members:
        if member.isdir() or not _is_wanted(member, Counter()):
            continue
        if _key(member.name) != key:
            key = _key(member.name)
            if images >= images_of_next_unit(listed, size) and begins is None:
                begins = member.offset
                listed += images
        if _is_image(member.name):
            yield member, begins
            images = 1 if begins is not None else images + 1
            begins = None


def own_id(sample: Sample, ids: IdRule) -> int | None:
    """Return the id that a sample's JSON gives it; None if ids are made from something else.

    Raises
    ------
    ValueError
        If it is neither a whole number of 0 or more nor a text.
    """
    if ids.column is None:
        return None
    value = json_values(sample).get(ids.column)
    if isinstance(value, str):
        return int(ids.ids_of_texts([value])[0])
    if type(value) is int and 0 <= value < 2**63:
        return value
    raise ValueError(f"its JSON must have a whole number of 0 or more, or a text, as `{ids.column}`, got {value!r}")


def shard_entries(shard: str, source: str, samples: list[Sample], schema: pa.Schema, ids: IdRule) -> pa.Table:
    """Make the entries of the samples of a shard; `shard` is its name within the corpus.

    Parameters
    ----------
    schema : pyarrow.Schema
        Of the entries; an attribute that a sample lacks is null, one that the schema lacks is left out.
    """
    base = without_credentials(source)
    uris = [f"{base}#{sample.name}" for sample in samples]
    hashed = ids.of_files.ids_of((f"{shard}#{sample.name}" for sample in samples), uris)
    columns = {
        "id": _with_own(hashed, samples, ids),
        "uri": uris,
        SOURCE: [source] * len(samples),
        ROW: np.arange(len(samples)),
        STAMP: [""] * len(samples),
    }
    others = {name: [sample.attributes.get(name) for sample in samples] for name in schema.names if name not in columns}
    return pa.table({**columns, **others}, schema)


def _with_own(hashed_N: IdArray, samples: list[Sample], ids: IdRule) -> IdArray:
    """Return the ids of samples: their own, or the hash of the name of one that lacks it, which is a reject."""
    for row, sample in enumerate(samples):
        with contextlib.suppress(ValueError):
            if (own := own_id(sample, ids)) is not None:
                hashed_N[row] = own
    return hashed_N


def read_rows(source: str, rows: np.ndarray) -> Iterator[bytes | OSError]:
    """Read the images of ascending samples of a shard, by their numbers."""
    wanted = iter(rows.tolist())
    row = next(wanted, None)
    for number, sample in enumerate(read_shard(source)):
        if number == row:
            yield sample.data
            row = next(wanted, None)
    while row is not None:
        yield OSError(f"{without_credentials(source)} has no sample {row}")
        row = next(wanted, None)


def read_image(source: str, name: str) -> bytes | OSError:
    """Read the image with this name from a shard."""
    found = next((sample.data for sample in read_shard(source) if sample.name == name), None)
    return OSError(f"{without_credentials(source)} has no image {name}") if found is None else found


def read_shard(
    uri: str,
    *,
    start: int = 0,
    stop: int = -1,
    max_image_bytes: int = images.MAX_ENCODED_BYTES,
    skipped: Counter[str] | None = None,
    opened: OpenShard | None = None,
) -> Iterator[Sample]:
    """Read the images of a shard in order, those of one sample in memory at a time, up to 64 MiB.

    A shard that is damaged or cannot be read gives the images before the damage, and then one whose `data` says what
    is wrong.

    Parameters
    ----------
    uri : str
    start, stop : int
        A range of it, as `divided` gives them.
    max_image_bytes : int
        Larger images are not read.
    skipped : Counter, optional
        Counts the files that are neither images nor describe one, by kind.
    opened : OpenShard, optional
        Given again for the range that follows, a compressed shard is read on instead of from its start.

    Raises
    ------
    ReadFailedError
        If its store fails for a reason that may pass.
    """
    counts: Counter[str] = Counter() if skipped is None else skipped
    kept = OpenShard() if opened is None else opened
    group = _Group("")
    ahead: dict[int, list[_Text]] | None = None
    damage: OSError | None = None
    try:
        with kept.at(uri, start, keep=opened is not None and stop >= 0) as shard:
            for member in _members(shard, stop):
                if member.isdir() or not _is_wanted(member, counts):
                    continue
                if (key := _key(member.name)) != group.key:
                    yield from group.end(counts)
                    group = _Group(key, group.number + 1)
                if _is_image(member.name):
                    if group.is_full(member.name):
                        ahead = _texts_of_large_samples(uri, start, stop) if ahead is None else ahead
                        if not group.has_all_texts:
                            group.take_all_texts(ahead.get(group.number, []))
                        yield from group.take()
                    group.add(Sample(member.name, _image(shard, member, max_image_bytes)))
                else:
                    group.add_text(_text(shard, member))
    except ReadFailedError:
        raise
    except _DAMAGE as error:
        damage = reworded(error, f"the shard cannot be read from here on: {error}")
    yield from group.end(counts)
    if damage:
        yield Sample("", damage)


class OpenShard:
    """A compressed shard that is kept open where the last range of it ended, so that later ones are read on from there.

    Not to be used by two threads at once.
    """

    def __init__(self) -> None:
        self._uri = ""
        self._shard: tarfile.TarFile | None = None
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def at(self, uri: str, start: int, *, keep: bool = False) -> Iterator[tarfile.TarFile]:
        """Yield a shard whose next member is the one at the byte `start`; keep it open afterwards, if that pays."""
        shard, self._shard = self._shard if self._uri == uri else None, None
        if shard is None or shard.offset > start:
            self.close()
            shard = self._stack.enter_context(_open(uri, start))
        is_kept = False
        try:
            if shard.offset < start:
                _pass_over(shard, start)
            yield shard
            is_kept = keep and not _is_plain(shard)
        except GeneratorExit:  # the rest of the range is not wanted
            is_kept = keep and not _is_plain(shard)
            raise
        finally:
            if is_kept:
                self._uri, self._shard = uri, shard
            else:
                self.close()

    def close(self) -> None:
        """Close it."""
        self._shard = None
        self._stack.close()


def _members(shard: tarfile.TarFile, stop: int = -1) -> Iterator[tarfile.TarInfo]:
    """Yield the members whose headers begin before the byte `stop`, without keeping them, as `tarfile` does."""
    while (member := shard.next()) is not None:
        yield member
        shard.members.clear()  # type: ignore[attr-defined]  # typeshed leaves it out
        if 0 <= stop <= shard.offset:
            return


def _texts_of_large_samples(uri: str, start: int, stop: int) -> dict[int, list[_Text]]:
    """Read what describes the images of a sample, of those in a range too large for memory, by their numbers there.

    Of a damaged shard, what comes before the damage.
    """
    found: dict[int, list[_Text]] = {}
    key, number, num_bytes = "", 0, 0
    texts: list[_Text] = []
    try:
        with _open(uri, start) as shard:
            for member in _members(shard, stop):
                if member.isdir() or not _is_wanted(member, Counter()):
                    continue
                if _key(member.name) != key:
                    key, number, num_bytes, texts = _key(member.name), number + 1, 0, []
                if _is_image(member.name):
                    num_bytes += member.size
                else:
                    texts.append(_text(shard, member))
                if num_bytes > _MAX_SAMPLE_BYTES:
                    found[number] = texts
    except ReadFailedError:
        raise
    except _DAMAGE as error:
        logger.debug("%s is damaged after the texts that were read: %s", without_credentials(uri), error)
    return found


def _text(shard: tarfile.TarFile, member: tarfile.TarInfo) -> _Text:
    return _Text(member.name, _read(shard, member).decode(errors="replace").strip())


def _is_wanted(member: tarfile.TarInfo, skipped: Counter[str]) -> bool:
    """Whether a member is an image or a text; what is neither is counted."""
    if any(part.startswith(".") for part in member.name.split("/") if part not in (".", "..")):
        skip(skipped, HIDDEN)
    elif _is_image(member.name):
        return True
    elif not member.isfile():
        skip(skipped, "links and devices")
    elif not _attribute(member.name):
        skip(skipped, suffix_kind(member.name))
    elif member.size > _MAX_TEXT_BYTES:
        skip(skipped, f"{suffix_kind(member.name)} above {_MAX_TEXT_BYTES:,} bytes")
    else:
        return True
    return False


def _is_image(name: str) -> bool:
    return images.is_image(name.lower()) or images.is_unsupported(name.lower())


def _image(shard: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | OSError:
    if not member.isfile():
        return OSError(f"the shard has no bytes of it, only a link to {member.linkname or 'a device'}")
    if member.size > max_bytes:
        return TooManyBytesError(f"too many bytes: above {max_bytes:,}")
    return _read(shard, member)


def _read(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.sparse is None and _is_plain(shard):
        # Many times faster than a file object per member.
        shard.fileobj.seek(member.offset_data)
        data = shard.fileobj.read(member.size)
    else:
        file = shard.extractfile(member)
        assert file is not None, "only files are read"
        data = file.read()
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name} is truncated")
    return data


def _is_plain(shard: tarfile.TarFile) -> bool:
    """Whether a shard is not compressed, and can be read at any position."""
    return isinstance(shard.fileobj, io.BufferedReader)


def _key(name: str) -> str:
    """Return what the names of a sample have in common: the name up to its first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _stem(name: str) -> str:
    """Return a name up to its last dot."""
    return name.rpartition(".")[0]


def _attribute(name: str) -> str:
    """Return the attribute that a text of this name becomes; the empty string if it becomes none."""
    return _ATTRIBUTE_OF.get(name.rpartition(".")[2].lower(), "")


@contextlib.contextmanager
def _open(uri: str, start: int = 0, *, buffer_bytes: int | None = None) -> Iterator[tarfile.TarFile]:
    """Open a shard, to be read from the byte `start` on; a compressed one is decompressed up to there."""
    size = buffer_bytes or (_LOCAL_BUFFER_BYTES if is_local(uri) else _STORE_BUFFER_BYTES)
    with io.BufferedReader(open_place(uri).open(), size) as file:
        # What is plain by its name, and has been divided, need not be looked at again.
        is_known = start > 0 and not is_compressed(uri)
        is_plain = file.seekable() and (is_known or not file.peek(6).startswith(tuple(_COMPRESSED)))
        if start and is_plain:
            file.seek(start)
        with _decompressed(file, is_plain=is_plain) as plain:
            mode: Any = "r:" if is_plain else "r|"
            with tarfile.open(fileobj=plain, mode=mode, tarinfo=_Member, **_NAMES) as shard:
                if not is_plain:
                    _pass_over(shard, start)
                yield shard


def _pass_over(shard: tarfile.TarFile, stop: int) -> None:
    """Read the members of a shard whose headers begin before the byte `stop`."""
    for _member in _members(shard, stop) if stop else ():
        pass


@contextlib.contextmanager
def _decompressed(file: Any, *, is_plain: bool) -> Iterator[Any]:
    """Yield what is compressed as a stream; one that several compressors wrote, one after the other, too."""
    begins = b"" if is_plain else file.peek(6)
    opened = next((how for magic, how in _COMPRESSED.items() if begins.startswith(magic)), None)
    if opened is None:
        yield file
        return
    with opened(file) as plain:
        yield plain
