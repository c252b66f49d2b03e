"""What the write log holds: writes as bytes, each with its idempotency key and the codes that it is of.

A record is a JSON object, preceded by its length (uint32), and Arrow IPC streams, each preceded by its length (uint64):
of a put one with `id`, `code`, perhaps `features` (bytes of the numbers, float16 unless the object has a type) and
`thumbnail`, and the attributes; of an update one for each of its
tables, with `id` and the attributes; of a deletion one with `id`. Attributes keep their names, whatever they are: how
many columns come before them, the object says.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from hashlight.engine.errors import CorruptDataError
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.storage.columns import code_column
from hashlight.engine.writing.writes import Delete, DeleteWhere, Put, Update

_HEAD = struct.Struct("<I")
_PART = struct.Struct("<Q")


Change = Put | Delete | DeleteWhere | Update


class Key(NamedTuple):
    """An idempotency key, and a digest of the request that came with it."""

    text: str
    digest: str


@dataclasses.dataclass(frozen=True, slots=True)
class Logged:
    """A write that is in the log.

    Attributes
    ----------
    number : int
        Of its record.
    write : Put, Delete, DeleteWhere or Update
    codes : tuple of int and str or None
        Bits and encoder of the collection when it was logged.
    written_s : float
        Seconds since 1970.
    key : Key or None
    deleted : int or None
        Of a deletion, the items that it found, if that is known.
    """

    number: int
    write: Change
    codes: tuple[int, str | None]
    written_s: float = dataclasses.field(default_factory=time.time)
    key: Key | None = None
    deleted: int | None = None

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        return _bytes_of(self.write)


def encode(logged: Logged) -> bytes:
    """Return the record of a write."""
    write = logged.write
    head: dict[str, Any] = {
        "codes": logged.codes, "at": logged.written_s, "key": logged.key, "deleted": logged.deleted
    }  # fmt: skip
    match write:
        case Put():
            names, tables = ["id", "code"], [_put_table(write)]
            if write.features is not None:
                names.append("features")
                head |= {} if write.features.dtype == np.float16 else {"features": "<f4"}
            names += ["thumbnail"] if write.thumbnails is not None else []
            head |= {"kind": "put", "columns": names, "encoder": write.encoder, "replaces": write.replaces}
        case Update():
            tables = [_with_ids(ids, table) for ids, table in write.parts]
            head |= {"kind": "update", "columns": ["id"]}
        case Delete():
            tables = [pa.table([pa.array(write.ids, pa.int64())], names=["id"])]
            head |= {"kind": "delete", "columns": ["id"]}
        case DeleteWhere():
            lists = write.parameters and {name: values.tolist() for name, values in write.parameters.items()}
            head |= {"kind": "delete_where", "filter": write.filter, "parameters": lists, "columns": []}
            tables = []
        case _:
            raise TypeError(f"expected a put, an update or a deletion, got {type(write).__name__}")
    text = json.dumps(head).encode()
    return b"".join([_HEAD.pack(len(text)), text, *map(_stream, tables)])


def decode(number: int, data: bytes) -> Logged:
    """Return the write of a record.

    Raises
    ------
    CorruptDataError
        If it is not one.
    """
    try:
        (length,) = _HEAD.unpack_from(data)
        head = json.loads(data[_HEAD.size : _HEAD.size + length])
        bits, encoder = head["codes"]
        write = _write(head, list(_tables(data, _HEAD.size + length)))
        key = None if head["key"] is None else Key(*head["key"])
        # Records of earlier releases do not have the number.
        return Logged(number, write, (bits, encoder), float(head["at"]), key, head.get("deleted"))
    except (ValueError, LookupError, TypeError, struct.error, pa.ArrowException) as error:
        raise CorruptDataError(
            f"record {number} of the write log is not a write ({error!r}): it was written by another release; start "
            "that one to have it committed"
        ) from error


def _write(head: dict[str, Any], tables: list[pa.Table]) -> Change:
    names = head["columns"]
    if head["kind"] == "delete_where":
        return DeleteWhere(head["filter"], Parameters.of(head["parameters"]))
    parts = [_apart(table, len(names)) for table in tables]
    if head["kind"] == "update":
        return Update([(_ids(fixed[0]), attributes) for fixed, attributes in parts if attributes is not None])
    ((fixed, attributes),) = parts
    if head["kind"] == "delete":
        return Delete(_ids(fixed[0]))
    if head["kind"] != "put":
        raise ValueError(f"a write of kind {head['kind']!r}")
    columns = dict(zip(names, fixed, strict=True))
    features, thumbnails = columns.get("features"), columns.get("thumbnail")
    values = np.dtype(head.get("features", "<f2"))
    return Put(
        _matrix(columns["code"], np.dtype("<u8")).astype(np.uint64),
        _ids(columns["id"]),
        attributes,
        None if features is None else _matrix(features, values).astype(values.newbyteorder("=")),
        None if thumbnails is None else pa.concat_arrays(thumbnails.chunks),
        head["replaces"],
        head["encoder"],
    )


def _put_table(put: Put) -> pa.Table:
    table = pa.table([pa.array(put.ids, pa.int64()), code_column(put.codes)], names=["id", "code"])
    if put.features is not None:
        values = np.ascontiguousarray(put.features, put.features.dtype.newbyteorder("<"))
        kind, data = pa.binary(values.itemsize * values.shape[1]), pa.py_buffer(values)
        column = pa.FixedSizeBinaryArray.from_buffers(kind, len(put.ids), [None, data])
        table = table.append_column("features", column)
    if put.thumbnails is not None:
        table = table.append_column("thumbnail", put.thumbnails.cast(pa.binary()))
    return _beside(table, put.attributes)


def _with_ids(ids: NDArray[np.int64], attributes: pa.Table) -> pa.Table:
    return _beside(pa.table([pa.array(ids, pa.int64())], names=["id"]), attributes)


def _beside(table: pa.Table, attributes: pa.Table | None) -> pa.Table:
    if attributes is None:
        return table
    return pa.table([*table.columns, *attributes.columns], schema=pa.schema([*table.schema, *attributes.schema]))


def _apart(table: pa.Table, count: int) -> tuple[list[pa.ChunkedArray], pa.Table | None]:
    """Return the first columns, and the others, which are attributes."""
    fields = list(table.schema)[count:]
    attributes = pa.table(table.columns[count:], schema=pa.schema(fields)) if fields else None
    return table.columns[:count], attributes


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    return _PART.pack(len(data)) + bytes(data)


def _tables(data: bytes, at: int) -> Iterator[pa.Table]:
    while at < len(data):
        (length,) = _PART.unpack_from(data, at)
        at += _PART.size
        with pyarrow.ipc.open_stream(pa.py_buffer(data[at : at + length])) as reader:
            yield reader.read_all()
        at += length


def _ids(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.array(column.to_numpy(), np.int64)


def _matrix(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return fixed-size binary as rows of numbers."""
    width = column.type.byte_width
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8, count=width * len(chunk), offset=width * chunk.offset)
        for chunk in column.chunks
    ]
    flat = np.concatenate([np.empty(0, np.uint8), *parts])
    return flat.view(dtype).reshape(len(column), width // dtype.itemsize)


def _bytes_of(write: Change) -> int:
    if isinstance(write, Delete):
        return int(write.ids.nbytes)
    if isinstance(write, DeleteWhere):
        return len(write.filter)
    if isinstance(write, Update):
        return sum(int(ids.nbytes) + int(table.nbytes) for ids, table in write.parts)
    sizes = [column.nbytes for column in _given([write.attributes, write.features, write.thumbnails])]
    return int(write.ids.nbytes) + int(write.codes.nbytes) + sum(map(int, sizes))


def _given(columns: Sequence[Any]) -> list[Any]:
    return [column for column in columns if column is not None]
