"""What is in a corpus, as a stream: entries by the ten thousand, so that memory does not grow with the corpus.

A listing opens no image. Folders are walked in the order of their names, one folder's names in memory at a time.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from hashlight.engine.places.buckets import split_options
from hashlight.engine.storage.attributes import RESERVED
from hashlight.pipelines.corpora import idx, webdataset
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.filesystems import is_local, list_s3, normalise, open_filesystem
from hashlight.pipelines.jobs.reads import open_file, open_stream

IMAGE_SUFFIXES = {".apng", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# Not decoded, but in a folder of images they are images: rejects that say why, not missing without a word.
_OTHER_IMAGE_SUFFIXES = {".avif", ".heic", ".heif", ".j2k", ".jp2", ".jxl"}
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LIST_SUFFIXES = (".txt", ".lst")
IMAGE_COLUMN = "image"
SOURCE, ROW = "__source", "__row"
IMAGES, SHARDS = "images", "shards"
CHUNK_ENTRIES = 20_000

_MOST_ID = 2**63 - 1
_RESERVED = (RESERVED - {"id"}) | {SOURCE, ROW}
_BASE_SCHEMA = pa.schema({"id": pa.int64(), "uri": pa.string(), SOURCE: pa.string(), ROW: pa.int64()})


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some entries of a corpus, and bytes that change when what they name changes."""

    entries: pa.Table
    stamp: bytes


@dataclass(frozen=True, slots=True)
class Listing:
    """A corpus, ready to be listed.

    Attributes
    ----------
    corpus : str
        Its path or URI.
    kind : str
        `IMAGES`: an entry is an image. `SHARDS`: an entry is a tar file, whose images are met when it is read.
    schema : pa.Schema
        Of the entries; for shards, of the entries that reading one gives.
    chunks : callable
        Starts the stream of `Chunk`, anew at every call.
    """

    corpus: str
    kind: str
    schema: pa.Schema
    chunks: Callable[[], Iterator[Chunk]]


@dataclass(frozen=True, slots=True)
class _File:
    uri: str
    name: str
    stamp: str


def open_listing(corpus: str | Path) -> Listing:
    """Find out what kind of corpus stands at a path or URI.

    Raises
    ------
    PipelineError
        If there is nothing, no image in it, or what is there cannot be read.
    """
    root = normalise(corpus)
    kind_of_root = _type_of(root)
    if kind_of_root == pafs.FileType.NotFound:
        raise PipelineError(
            f"no corpus at {root}: expected a folder of images, Parquet files, tar shards or IDX files, one of those "
            "files, or a list of URIs (.txt)"
        )
    if kind_of_root == pafs.FileType.File:
        return _open_file_listing(root)
    files = _walk(root)
    skipped = 0
    for first in files:
        if _kind_of(first.name):
            return _open_folder_listing(root, first)
        skipped += 1
    raise PipelineError(
        f"{root} has no images: expected files ending in {' '.join(sorted(IMAGE_SUFFIXES))}, .parquet, .tar or "
        f"-ubyte, got {skipped} other files"
    )


def hashed_ids(names: Iterable[str]) -> np.ndarray:
    """Ids that do not depend on the listing's order: the first 63 bits of BLAKE2b of each name."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return (np.frombuffer(digests, "<u8") >> np.uint64(1)).astype(np.int64)


def _type_of(root: str) -> pafs.FileType:
    filesystem, path = open_filesystem(root)
    try:
        return filesystem.get_file_info(path).type
    except OSError as error:
        raise PipelineError(f"{split_options(root)[0]} cannot be listed: {error}") from error


def _kind_of(name: str) -> str | None:
    lower = name.lower()
    if PurePosixPath(lower).suffix in IMAGE_SUFFIXES:
        return "image"
    if lower.endswith(".parquet"):
        return "Parquet"
    if lower.endswith(TAR_SUFFIXES):
        return "tar"
    return "IDX" if idx.is_idx(lower) else None


def _open_file_listing(root: str) -> Listing:
    base = split_options(root)[0]
    name = base.rpartition("/")[2]
    file = _File(root, name, _stamp_of(root))
    kind = _kind_of(name)
    if kind:
        return _listing_of(kind, root, lambda: iter([file]))
    if name.lower().endswith(LIST_SUFFIXES):
        return Listing(root, IMAGES, _BASE_SCHEMA, lambda: _list_uris(root))
    raise PipelineError(
        f"{base} is no corpus: expected an image, a .parquet, .tar or -ubyte file, or a list of URIs (.txt)"
    )


def _open_folder_listing(root: str, first: _File) -> Listing:
    kind = _kind_of(first.name)
    assert kind is not None, "the first file has a kind"

    def files() -> Iterator[_File]:
        for file in _walk(root):
            found = _kind_of(file.name)
            if found == kind or (kind == "image" and PurePosixPath(file.name.lower()).suffix in _OTHER_IMAGE_SUFFIXES):
                yield file
            elif found and not (kind == "IDX" or found == "IDX"):
                raise PipelineError(
                    f"{root} has {kind} files ({first.name}) and {found} files ({file.name}): name one kind"
                )

    return _listing_of(kind, root, files)


def _listing_of(kind: str, root: str, files: Callable[[], Iterator[_File]]) -> Listing:
    if kind == "image":
        return _image_listing(root, files)
    if kind == "Parquet":
        return _parquet_listing(root, list(files()))
    if kind == "tar":
        names = webdataset.attributes_of((file.uri for file in files()), IMAGE_SUFFIXES)
        schema = pa.schema([*_BASE_SCHEMA, *(pa.field(name, pa.string()) for name in names)])
        return Listing(root, SHARDS, schema, lambda: _list_shards(files()))
    return _idx_listing(root, list(files()))


# Images, one a file.


def _image_listing(root: str, files: Callable[[], Iterator[_File]]) -> Listing:
    some = list(itertools.islice(files(), CHUNK_ENTRIES))
    labelled = any("/" in file.name for file in some) or (is_local(root) and _has_folders(root))
    schema = _BASE_SCHEMA.append(pa.field("label", pa.string())) if labelled else _BASE_SCHEMA

    def chunks() -> Iterator[Chunk]:
        for part in _groups(files(), CHUNK_ENTRIES):
            names = [file.name for file in part]
            _refuse_bad_names(part)
            columns: dict[str, Any] = {
                "id": hashed_ids(names),
                "uri": [split_options(file.uri)[0] for file in part],
                SOURCE: [file.uri for file in part],
                ROW: np.full(len(part), -1, np.int64),
            }
            if labelled:
                columns["label"] = [name.partition("/")[0] if "/" in name else None for name in names]
            yield Chunk(pa.table(columns, schema), "\0".join(file.stamp for file in part).encode())

    return Listing(root, IMAGES, schema, chunks)


def _has_folders(root: str) -> bool:
    if not os.path.isdir(root):
        return False
    with os.scandir(root) as entries:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)


def _refuse_bad_names(files: list[_File]) -> None:
    for file in files:
        try:
            file.name.encode()
        except UnicodeEncodeError:
            raise PipelineError(
                f"the name of {file.uri!r} is not UTF-8, so it cannot be stored as a URI: rename it"
            ) from None


def _list_uris(root: str) -> Iterator[Chunk]:
    """List the lines of a text file; a relative path is one from the folder of the list."""
    base, options = split_options(root)
    folder = base.rpartition("/")[0]
    with open_stream(root) as raw:
        lines = (line.decode().strip() for line in _lines(raw))
        for part in _groups((line for line in lines if line), CHUNK_ENTRIES):
            places = [_within(folder, line) for line in part]
            columns = {
                "id": hashed_ids(part),
                "uri": places,
                SOURCE: [f"{place}{options}" if options and not is_local(place) else place for place in places],
                ROW: np.full(len(part), -1, np.int64),
            }
            yield Chunk(pa.table(columns, _BASE_SCHEMA), "\0".join(part).encode())


def _lines(stream: pa.NativeFile) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(1 << 20):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    yield rest


def _within(folder: str, name: str) -> str:
    if not is_local(name) or name.startswith("/"):
        return normalise(name) if name.startswith("file://") else name
    return os.path.normpath(f"{folder}/{name}") if is_local(folder) else f"{folder}/{name}"


# WebDataset shards.


def _list_shards(files: Iterator[_File]) -> Iterator[Chunk]:
    for part in _groups(files, CHUNK_ENTRIES):
        columns = {
            "id": hashed_ids([file.name for file in part]),
            "uri": [file.name for file in part],
            SOURCE: [file.uri for file in part],
            ROW: np.full(len(part), -1, np.int64),
        }
        yield Chunk(pa.table(columns, _BASE_SCHEMA), "\0".join(file.stamp for file in part).encode())


# IDX.


def _idx_listing(root: str, files: list[_File]) -> Listing:
    found = {file.name: file for file in files}
    images = [file for file in files if len(idx.read_header(file.uri)) in (3, 4)]
    if not images:
        raise PipelineError(
            f"{root} has no images: its IDX files have {[idx.read_header(f.uri) for f in files]} values"
        )
    labels = {file.name: _idx_labels(file, found) for file in images}
    labelled = any(labels.values())
    schema = _BASE_SCHEMA.append(pa.field("label", pa.int64())) if labelled else _BASE_SCHEMA

    def chunks() -> Iterator[Chunk]:
        for file in images:
            rows = idx.read_header(file.uri)[0]
            for start in range(0, rows, CHUNK_ENTRIES):
                stop = min(start + CHUNK_ENTRIES, rows)
                uris = [f"{split_options(file.uri)[0]}#{row}" for row in range(start, stop)]
                columns: dict[str, Any] = {
                    "id": hashed_ids(f"{file.name}#{row}" for row in range(start, stop)),
                    "uri": uris,
                    SOURCE: [file.uri] * len(uris),
                    ROW: np.arange(start, stop),
                }
                if labelled:
                    of = labels[file.name]
                    columns["label"] = idx.read_rows(of, start, stop).astype(np.int64) if of else [None] * len(uris)
                yield Chunk(pa.table(columns, schema), file.stamp.encode())

    return Listing(root, IMAGES, schema, chunks)


def _idx_labels(file: _File, found: dict[str, _File]) -> str | None:
    """Return the URI of the labels beside a file of images, whether or not the corpus names them."""
    name = idx.labels_name(file.name)
    if name == file.name:
        return None
    if name in found:
        return found[name].uri
    base, options = split_options(file.uri)
    uri = f"{base.removesuffix(file.name)}{name}{options}"
    return uri if _type_of(uri) == pafs.FileType.File else None


# Parquet.


def _parquet_listing(root: str, files: list[_File]) -> Listing:
    schemas = [_entry_schema(file) for file in files]
    try:
        schema = pa.unify_schemas(schemas, promote_options="default")
    except pa.ArrowException as error:
        raise PipelineError(f"the Parquet files of {root} disagree on their columns: {error}") from error

    def chunks() -> Iterator[Chunk]:
        for file in files:
            for table in _list_parquet(file):
                yield Chunk(_promote(table, schema), file.stamp.encode())

    return Listing(root, IMAGES, schema, chunks)


def _entry_schema(file: _File) -> pa.Schema:
    names, schema = _listed_columns(file)
    others = [schema.field(name).remove_metadata() for name in names if name not in ("id", "uri")]
    return pa.schema([*_BASE_SCHEMA, *others])


def _listed_columns(file: _File) -> tuple[list[str], pa.Schema]:
    """Return the columns other than the image, and the schema, of a Parquet file that can be a corpus."""
    where = split_options(file.uri)[0]
    try:
        with open_file(file.uri) as raw, pq.ParquetFile(raw) as table:
            schema = table.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{where} is not a readable Parquet file: {error}") from error
    images = schema.field(IMAGE_COLUMN).type if IMAGE_COLUMN in schema.names else None
    names = [name for name in schema.names if name != IMAGE_COLUMN]
    by_uri = images is None and "uri" in names and _is_text(schema.field("uri").type)
    if not by_uri and not _holds_bytes(images):
        raise PipelineError(
            f"{where} has no column `{IMAGE_COLUMN}` with encoded images (binary, or a struct with `bytes`) and no "
            f"column `uri` to read them from: it has {[*names, *([f'{IMAGE_COLUMN} ({images})'] if images else [])]}"
        )
    reserved = _RESERVED & set(names)
    if reserved:
        raise PipelineError(f"{where} has columns named {sorted(reserved)}, which Hashlight writes itself: rename them")
    return names, schema


def _holds_bytes(kind: pa.DataType | None) -> bool:
    if kind is None:
        return False
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return binary or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _list_parquet(file: _File) -> Iterator[pa.Table]:
    names, schema = _listed_columns(file)
    by_uri = IMAGE_COLUMN not in schema.names
    try:
        with open_file(file.uri) as raw, pq.ParquetFile(raw, pre_buffer=False) as parquet:
            first = 0
            if not names:
                for start in range(0, parquet.metadata.num_rows, CHUNK_ENTRIES):
                    rows = min(CHUNK_ENTRIES, parquet.metadata.num_rows - start)
                    yield _parquet_entries(None, rows, start, file, by_uri=by_uri)
                return
            for batch in parquet.iter_batches(CHUNK_ENTRIES, columns=names):
                yield _parquet_entries(pa.Table.from_batches([batch]), len(batch), first, file, by_uri=by_uri)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{split_options(file.uri)[0]} is not a readable Parquet file: {error}") from error


def _parquet_entries(table: pa.Table | None, count: int, first: int, file: _File, *, by_uri: bool) -> pa.Table:
    base, options = split_options(file.uri)
    names = [] if table is None else table.column_names
    rows = np.arange(first, first + count)
    if by_uri:
        assert table is not None, "a column `uri` was found"
        given = table["uri"].to_pylist()
        if None in given:
            raise PipelineError(f"{base}: `uri` must be there in every row, row {first + given.index(None)} has none")
        made = hashed_ids(given)
        uris = [_within(base.rpartition("/")[0], uri) for uri in given]
        sources = [f"{uri}{options}" if options and not is_local(uri) else uri for uri in uris]
        rows = np.full(count, -1, np.int64)
    else:
        made = None if "id" in names else hashed_ids(f"{file.name}#{row}" for row in rows)
        uris = table["uri"].cast(pa.string()) if "uri" in names else [f"{base}#{row}" for row in rows]
        sources = pa.array([file.uri] * count, pa.string())
    entries = {
        "id": _given_ids(table["id"], base) if "id" in names else made,
        "uri": uris,
        SOURCE: sources,
        ROW: rows,
    }
    return pa.table({**entries, **{name: table[name] for name in names if name not in entries}})


def _promote(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = {
        field.name: table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    }
    return pa.table(columns, schema)


def _given_ids(column: pa.ChunkedArray, file: str) -> pa.ChunkedArray:
    if not pa.types.is_integer(column.type):
        raise PipelineError(f"{file}: `id` must be whole numbers, got {column.type}: leave it out to have ids made")
    least, most = pc.min_max(column).as_py().values()
    if column.null_count or (least is not None and (least < 0 or most > _MOST_ID)):
        raise PipelineError(
            f"{file}: `id` must be 0 to {_MOST_ID} in every row, got {column.null_count} nulls, a least of {least} and "
            f"a most of {most}"
        )
    return column.cast(pa.int64())


# Folders.


def _walk(root: str) -> Iterator[_File]:
    """Walk all visible files under a folder."""
    if is_local(root):
        yield from _walk_local(root, "")
    elif root.startswith("s3://"):
        base, options = split_options(root)
        for uri, size, time in list_s3(root):
            name = uri[len(base) + 1 :]
            if not name.endswith("/") and not any(part.startswith(".") for part in name.split("/")):
                yield _File(uri + options, name, f"{size}:{time}")
    else:
        filesystem, path = open_filesystem(root)
        yield from _walk_store(filesystem, path, root, "")


def _walk_local(root: str, inner: str) -> Iterator[_File]:
    folder = f"{root}/{inner}" if inner else root
    for name, is_folder in _sorted_names(folder):
        below = f"{inner}/{name}" if inner else name
        if is_folder:
            yield from _walk_local(root, below)
        else:
            uri = f"{root}/{below}"
            yield _File(uri, below, _stamp_of(uri))


def _sorted_names(folder: str) -> Iterator[tuple[str, bool]]:
    """Yield the visible names of a folder in order, and whether each is a folder.

    Millions of names are kept as Arrow's bytes, a sixth of what as many Python strings take.
    """
    names, folders = [], []
    with os.scandir(folder) as entries:
        visible = (entry for entry in entries if not entry.name.startswith("."))
        for part in _groups(visible, CHUNK_ENTRIES):
            names.append(pa.array([os.fsencode(entry.name) for entry in part], pa.large_binary()))
            folders.append(pa.array([entry.is_dir(follow_symlinks=False) for entry in part], pa.bool_()))
    if not names:
        return
    table = pa.table({"name": pa.chunked_array(names), "folder": pa.chunked_array(folders)})
    order = pc.sort_indices(table, [("name", "ascending")])
    for start in range(0, len(order), CHUNK_ENTRIES):
        part = table.take(order[start : start + CHUNK_ENTRIES])
        yield from zip(map(os.fsdecode, part["name"].to_pylist()), part["folder"].to_pylist(), strict=True)


def _walk_store(filesystem: pafs.FileSystem, path: str, root: str, inner: str) -> Iterator[_File]:
    infos = filesystem.get_file_info(pafs.FileSelector(f"{path}/{inner}" if inner else path))
    for info in sorted(infos, key=lambda info: info.base_name):
        if info.base_name.startswith("."):
            continue
        below = f"{inner}/{info.base_name}" if inner else info.base_name
        if info.type == pafs.FileType.Directory:
            yield from _walk_store(filesystem, path, root, below)
        else:
            base, options = split_options(root)
            yield _File(f"{base}/{below}{options}", below, f"{info.size}:{info.mtime_ns}")


def _stamp_of(uri: str) -> str:
    if is_local(uri):
        try:
            stat = os.stat(uri)
        except OSError:
            return "unreadable"
        return f"{stat.st_size}:{stat.st_mtime_ns}"
    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    return f"{info.size}:{info.mtime_ns}"


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part
