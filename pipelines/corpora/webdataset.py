"""WebDataset shards as corpora: tar files in which files whose names agree up to the first dot are one sample.

A sample is an image (`0001.jpg`) and what is known about it: `0001.cls` (its label), `0001.txt`, `0001.json`, each kept
as the attribute `label`, `txt` or `json`, a string. A shard is read once, from start to end. Which attributes a corpus
has is taken from its first thousand samples.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.failures import TooManyBytesError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.reading import groups
from hashlight.engine.places.uris import is_local, without_credentials
from hashlight.pipelines.corpora import images
from hashlight.pipelines.corpora.ids import hashed_ids
from hashlight.pipelines.corpora.listing import (
    BASE_SCHEMA,
    CHUNK_ENTRIES,
    ROW,
    SHARDS,
    SOURCE,
    Chunk,
    File,
    FileStream,
    Listing,
    stamps_of,
)

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_ATTRIBUTE_OF = {"cls": "label", "txt": "txt", "json": "json"}
ATTRIBUTES = tuple(_ATTRIBUTE_OF.values())
# Limit on the text of a sample; images have a limit of their own.
_MAX_TEXT_BYTES = 1_000_000
# Samples read to find out which attributes a corpus has.
_LOOKED_AT = 1000
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\0\0")
# From a store, one request brings this much.
_LOCAL_BUFFER_BYTES, _STORE_BUFFER_BYTES = 1 << 18, 8 << 20


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
    """One sample of a shard.

    Attributes
    ----------
    key : str
    name : str
        The image's name in the shard; the key if there is no image.
    data : bytes or OSError
        The encoded image, or why there is none.
    attributes : dict of str to str
    """

    key: str
    name: str
    data: bytes | OSError
    attributes: dict[str, str] = field(default_factory=dict)


def list_files(root: str, found: FileStream) -> Listing:
    """List shards; their images are known only when they are read."""
    attributes = _attributes_of(file.uri for file in found())
    schema = pa.schema([*BASE_SCHEMA, *(pa.field(name, pa.string()) for name in attributes)])
    return Listing(root, SHARDS, schema, lambda: _chunks(found()))


def _chunks(files: Iterator[File]) -> Iterator[Chunk]:
    for part in groups(files, CHUNK_ENTRIES):
        columns = {
            "id": hashed_ids(file.name for file in part),
            "uri": [file.name for file in part],
            SOURCE: [file.uri for file in part],
            ROW: np.full(len(part), -1, np.int64),
        }
        yield Chunk(pa.table(columns, BASE_SCHEMA), stamps_of(part))


def _attributes_of(uris: Iterable[str]) -> list[str]:
    """Return the attributes that the first samples of some shards have: a sample may lack one that others have."""
    samples = itertools.chain.from_iterable(read_shard(uri, max_image_bytes=_MAX_TEXT_BYTES) for uri in uris)
    found: set[str] = set()
    for sample in itertools.islice(samples, _LOOKED_AT):
        found |= sample.attributes.keys()
        if len(found) == len(ATTRIBUTES):
            break
    return [name for name in ATTRIBUTES if name in found]


def shard_entries(shard: str, source: str, samples: list[Sample], schema: pa.Schema) -> pa.Table:
    """Make the entries of the samples of a shard; `shard` is its name within the corpus.

    Parameters
    ----------
    schema : pyarrow.Schema
        Of the entries; an attribute that a sample lacks is null, one that the schema lacks is left out.
    """
    uri = without_credentials(source)
    columns = {
        "id": hashed_ids(f"{shard}#{sample.name}" for sample in samples),
        "uri": [f"{uri}#{sample.name}" for sample in samples],
        SOURCE: [source] * len(samples),
        ROW: np.arange(len(samples)),
    }
    others = {name: [sample.attributes.get(name) for sample in samples] for name in schema.names if name not in columns}
    return pa.table({**columns, **others}, schema)


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


def read_shard(uri: str, *, max_image_bytes: int = images.MAX_ENCODED_BYTES) -> Iterator[Sample]:
    """Read the samples of a shard in order, one in memory at a time.

    A shard that is damaged or cannot be read gives the samples before the damage, and then one whose `data` says what
    is wrong.

    Raises
    ------
    ReadFailedError
        If its store fails for a reason that may pass.
    """
    sample: Sample | None = None
    try:
        with _open(uri) as shard:
            for member in shard:
                if not member.isfile() or member.name.rpartition("/")[2].startswith("."):
                    continue
                key, extension = _split(member.name)
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                    sample = Sample(key, key, OSError("the sample has no image"))
                _add(sample, shard, member, extension, max_image_bytes)
    except ReadFailedError:
        raise
    except (tarfile.TarError, EOFError, OSError) as error:
        # The sample that was being read may be incomplete.
        yield Sample("", "", OSError(f"the shard cannot be read from here on: {error}"))
        return
    if sample is not None:
        yield sample


def _add(sample: Sample, shard: tarfile.TarFile, member: tarfile.TarInfo, extension: str, max_bytes: int) -> None:
    if f".{extension.rpartition('.')[2]}" in images.SUFFIXES:
        if sample.name != sample.key:
            return  # Only the first image of a sample counts.
        sample.name = member.name
        sample.data = (
            TooManyBytesError(f"too many bytes: above {max_bytes:,}")
            if member.size > max_bytes
            else _read(shard, member)
        )
    elif extension in _ATTRIBUTE_OF and member.size <= _MAX_TEXT_BYTES:
        sample.attributes[_ATTRIBUTE_OF[extension]] = _read(shard, member).decode(errors="replace").strip()


def _read(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.sparse is None and isinstance(shard.fileobj, io.BufferedReader):
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


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


@contextlib.contextmanager
def _open(uri: str) -> Iterator[tarfile.TarFile]:
    size = _LOCAL_BUFFER_BYTES if is_local(uri) else _STORE_BUFFER_BYTES
    with io.BufferedReader(open_place(uri).open(), size) as file:
        is_plain = file.seekable() and not file.peek(6).startswith(_COMPRESSED)
        with tarfile.open(fileobj=file, mode="r:" if is_plain else "r|*", tarinfo=_Member) as shard:
            yield shard
