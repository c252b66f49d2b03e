"""Makes the golden collections of the present format: `python -m tests.data.make_golden FOLDER`.

Each format has its own, made once by the release that wrote it, in `tests/data/formatN`, and never made again. Beside
each collection stand `expected.arrow` (the rows of every version, written by pyarrow from the literals below, not from
what was stored) and `expected.json`.
"""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
import sys
import uuid
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

DAY = datetime.date
AT = datetime.datetime
TEXT_KINDS = pa.dictionary(pa.int8(), pa.string())


def storage(kind, values):
    """An array, also of an extension type, from plain values."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    return pa.array(values, kind)


# Name -> type as given, type as stored, values (repeated as often as there are rows).
KINDS = {
    "null": (pa.null(), pa.null(), [None]),
    "bool": (pa.bool_(), pa.bool_(), [True, None, False]),
    "int8": (pa.int8(), pa.int8(), [-128, None, 127]),
    "uint8": (pa.uint8(), pa.uint8(), [0, None, 255]),
    "int16": (pa.int16(), pa.int16(), [-(2**15), None, 2**15 - 1]),
    "uint16": (pa.uint16(), pa.uint16(), [0, None, 2**16 - 1]),
    "int32": (pa.int32(), pa.int32(), [-(2**31), None, 2**31 - 1]),
    "uint32": (pa.uint32(), pa.uint32(), [0, None, 2**32 - 1]),
    "int64": (pa.int64(), pa.int64(), [-(2**63), None, 2**63 - 1]),
    "uint64": (pa.uint64(), pa.uint64(), [0, None, 2**64 - 1]),
    "float16": (pa.float16(), pa.float16(), [1.5, None, -0.0, 65504.0]),
    "float32": (pa.float32(), pa.float32(), [1.5, None, -0.0, float("inf")]),
    "float64": (pa.float64(), pa.float64(), [0.1, None, -0.0, 1e300]),
    "decimal32": (pa.decimal32(9, 2), pa.decimal32(9, 2), [Decimal("1.10"), None, Decimal("-9999999.99")]),
    "decimal64": (pa.decimal64(18, 2), pa.decimal64(18, 2), [Decimal("1.10"), None, Decimal("-2.00")]),
    "decimal128": (pa.decimal128(38, 3), pa.decimal128(38, 3), [Decimal("1.100"), None, Decimal("-2.000")]),
    "hundreds": (pa.decimal128(5, -2), pa.decimal128(5, -2), [Decimal("1.1E+3"), None, Decimal("-2E+2")]),
    "decimal256": (pa.decimal256(76, 40), pa.decimal256(76, 40), [Decimal("1.5"), None, Decimal(-2)]),
    "date32": (pa.date32(), pa.date32(), [DAY(1969, 12, 31), None, DAY(2024, 2, 29)]),
    "date64": (pa.date64(), pa.date64(), [DAY(1969, 12, 31), None, DAY(2024, 2, 29)]),
    "time32s": (pa.time32("s"), pa.time32("s"), [datetime.time(8), None, datetime.time(23, 59, 59)]),
    "time32ms": (pa.time32("ms"), pa.time32("ms"), [datetime.time(8, 0, 0, 1000), None]),
    "time64us": (pa.time64("us"), pa.time64("us"), [datetime.time(8, 0, 0, 1), None]),
    "time64ns": (pa.time64("ns"), pa.time64("ns"), [1, None, 86_399_999_999_999]),
    "timestamp_s": (pa.timestamp("s"), pa.timestamp("s"), [-1, None, 1_700_000_000]),
    "timestamp_ms": (pa.timestamp("ms", "+02:00"), pa.timestamp("ms", "+02:00"), [-1, None, 1_700_000_000_001]),
    "timestamp_us": (pa.timestamp("us", "UTC"), pa.timestamp("us", "UTC"), [AT(2024, 1, 2, tzinfo=datetime.UTC), None]),
    "timestamp_ns": (
        pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("ns", "Europe/Berlin"), [-1, None, 17 * 10**17 + 1]),
    "duration_s": (pa.duration("s"), pa.duration("s"), [-1, None, 5]),
    "duration_ms": (pa.duration("ms"), pa.duration("ms"), [-1, None, 5]),
    "duration_us": (pa.duration("us"), pa.duration("us"), [-1, None, 5]),
    "duration_ns": (pa.duration("ns"), pa.duration("ns"), [-1, None, 5]),
    "interval": (pa.month_day_nano_interval(), pa.month_day_nano_interval(), [(1, -2, 3), None, (0, 0, 2**60)]),
    "string": (pa.string(), pa.string(), ["", None, "Ä €", "b" * 40]),
    "large_string": (pa.large_string(), pa.large_string(), ["", None, "Ä €"]),
    "string_view": (pa.string_view(), pa.string(), ["", None, "b" * 40]),
    "binary": (pa.binary(), pa.binary(), [b"", None, b"\x00\xff"]),
    "large_binary": (pa.large_binary(), pa.large_binary(), [b"", None, b"\x00\xff"]),
    "binary_view": (pa.binary_view(), pa.binary(), [b"", None, b"\xff" * 40]),
    "fixed_binary": (pa.binary(3), pa.binary(3), [b"abc", None, b"\x00\x01\x02"]),
    "dictionary": (TEXT_KINDS, pa.string(), ["x", None, "y", "x"]),
    "dictionary_int": (pa.dictionary(pa.int32(), pa.int64()), pa.int64(), [7, None, 8]),
    "list": (pa.list_(pa.int32()), pa.list_(pa.int32()), [[1, None], None, [], [2, 3]]),
    "list_dictionary": (pa.list_(TEXT_KINDS), pa.list_(pa.string()), [["x", None], None, [], ["y", "x"]]),
    "large_list": (pa.large_list(pa.string_view()), pa.large_list(pa.string()), [["x"], None, [], ["y", "x"]]),
    "fixed_list": (pa.list_(pa.float32(), 2), pa.list_(pa.float32(), 2), [[1.0, None], None, [3.0, 4.0]]),
    "list_view": (pa.list_view(pa.int32()), pa.list_view(pa.int32()), [[1], None, [2, 3], []]),
    "large_list_view": (pa.large_list_view(pa.int32()), pa.large_list_view(pa.int32()), [[1], None, [2, 3], []]),
    "list_interval": (
        pa.list_(pa.month_day_nano_interval()), pa.list_(pa.month_day_nano_interval()), [[(1, 2, 3), None], None, []]),
    "struct": (
        pa.struct([("b", TEXT_KINDS), ("n", pa.int32())]), pa.struct([("b", pa.string()), ("n", pa.int32())]),
        [{"b": "x", "n": 1}, None, {"b": None, "n": 2}]),
    "map": (
        pa.map_(pa.string(), pa.int32()), pa.map_(pa.string(), pa.int32()), [[("x", 1)], None, [], [("y", None)]]),
    "uuid": (pa.uuid(), pa.uuid(), [uuid.UUID(int=5).bytes, None, uuid.UUID(int=2**127).bytes]),
    "bool8": (pa.bool8(), pa.bool8(), [0, None, 1]),
    "json": (pa.json_(), pa.json_(), ["{}", None, "[1]"]),
    "tensor": (
        pa.fixed_shape_tensor(pa.int8(), (2, 2)), pa.fixed_shape_tensor(pa.int8(), (2, 2)), [[1, 2, 3, 4], None]),
}  # fmt: skip


def cycled(values, rows):
    return list(itertools.islice(itertools.cycle(values), rows))


def table_of(kinds, rows, *, stored):
    """The attributes of `rows` rows, in the types as given or as stored."""
    columns = {name: storage(kind[int(stored)], cycled(kind[2], rows)) for name, kind in kinds.items()}
    return pa.table(columns)


def clustered(seed, rows, bits):
    """Codes of few values, so that some rows have equal codes."""
    rng = np.random.default_rng(seed)
    centres = rng.random((rows // 2, bits)) < 0.5
    words = -(-bits // 64)
    padded = np.zeros((rows, 64 * words), bool)
    padded[:, :bits] = centres[rng.integers(len(centres), size=rows)]
    return np.packbits(padded, axis=1, bitorder="little").view("<u8")


def spread_ids(seed, rows):
    return np.random.default_rng(seed).permutation(rows).astype(np.int64) * 7 + 2**40


def rows_table(codes, ids, attributes=None, features=None, thumbnails=None, *, version):
    """What a reader must find in one version, a row per code."""
    width = 8 * codes.shape[1]
    columns = {
        "version": pa.array([version] * len(ids), pa.int32()),
        "id": pa.array(ids),
        "code": pa.array([code.astype("<u8").tobytes() for code in codes], pa.binary(width)),
    }
    for name in attributes.column_names if attributes is not None else ():
        columns[f"attribute {name}"] = attributes[name]
    if features is not None:
        columns["features"] = pa.array(features.tolist(), pa.list_(pa.float16(), features.shape[1]))
    if thumbnails is not None:
        columns["thumbnail"] = pa.array(thumbnails, pa.binary())
    return pa.table(columns)


def write_expected(folder, tables, **facts):
    table = pa.concat_tables(tables)
    with pa.OSFile(str(folder / "expected.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (folder / "expected.json").write_text(json.dumps(facts, indent=1) + "\n")


def make_plain(folder):
    """Codes alone, without tables."""
    from hashlight import Collection

    codes = clustered(1, 40, 64)
    Collection.create(folder / "collection", codes, tables=False)
    write_expected(
        folder, [rows_table(codes, np.arange(40), version=1)], bits=64, encoder=None, versions={"1": {"shards": 1}}
    )


def make_tables(folder):
    """Two shards with tables, codes that are no whole words, attributes, and a version with more rows."""
    from hashlight import Collection

    codes, ids = clustered(2, 60, 48), spread_ids(2, 60)
    labels = pa.table({"label": pa.array([row % 5 for row in range(60)], pa.int64())})
    parts = [rows_table(codes[:36], ids[:36], labels.slice(0, 36), version=version) for version in (1, 2)]
    parts.append(rows_table(codes[36:], ids[36:], labels.slice(36), version=2))
    first = Collection.create(
        folder / "collection", codes[:36], ids=ids[:36], attributes=labels.slice(0, 36), bits=48, shards=2
    )
    first.add(codes[36:], ids=ids[36:], attributes=labels.slice(36))
    write_expected(folder, parts, bits=48, encoder=None, versions={"1": {"shards": 2}, "2": {"shards": 3}})


def make_types(folder):
    """Attributes of every type of Arrow that can be stored."""
    from hashlight import Collection

    codes, ids = clustered(3, 30, 100), spread_ids(3, 30)
    Collection.create(
        folder / "collection", codes, ids=ids, attributes=table_of(KINDS, 30, stored=False), bits=100, shards=2
    )
    expected = rows_table(codes, ids, table_of(KINDS, 30, stored=True), version=1)
    write_expected(folder, [expected], bits=100, encoder=None, versions={"1": {"shards": 2}})


def make_everything(folder):
    """Features, thumbnails and an encoder, over three versions; a reader holds the first."""
    from hashlight import Collection
    from hashlight.engine.collection.writing.opening import Fresh
    from hashlight.engine.collection.writing.transaction import Transaction

    rows, bits, steps = 48, 256, (24, 36, 48)
    codes, ids = clustered(4, rows, bits), spread_ids(4, rows)
    names = pa.table({"uri": [f"s3://photos/{row}.jpg" for row in range(rows)]})
    features = (np.arange(rows * 3).reshape(rows, 3) / 8 - 4).astype(np.float16)
    thumbnails = [None if row % 3 == 0 else b"\xff\xd8\xff" + bytes([row] * row) for row in range(rows)]
    files = {"config.json": b'{"bits": 256}\n', "weights.safetensors": bytes(range(64))}
    held, parts, start = [], [], 0
    for version, stop in enumerate(steps, start=1):
        fresh = Fresh(bits, "0f" * 16) if version == 1 else None
        with Transaction(folder / "collection", fresh=fresh) as writer:
            if version == 1:
                writer.add_encoder(files)
            part = slice(start, stop)
            writer.add(codes[part], ids[part], names[part], features[part], thumbnails[part])
            writer.commit()
        held.append(Collection.open(folder / "collection"))
        parts.append(
            rows_table(codes[:stop], ids[:stop], names[:stop], features[:stop], thumbnails[:stop], version=version)
        )
        start = stop
    versions = {str(each.version): {"shards": each.version} for each in held[-1].versions()}
    encoder_files = {name: data.hex() for name, data in files.items()}
    write_expected(folder, parts, bits=bits, encoder="0f" * 16, versions=versions, encoder_files=encoder_files)


def make_changed(folder):
    """Rows deleted, replaced and added, attributes changed, added and dropped, over versions of which one is tagged."""
    from hashlight import Collection

    codes, ids = clustered(5, 40, 70), spread_ids(5, 40)
    later, kinds = clustered(6, 40, 70), pa.timestamp("s", "UTC")
    rows = {
        int(id_): {"code": codes[row], "n": row % 4, "name": f"name {row}"} for row, id_ in enumerate(ids[:30].tolist())
    }
    table = pa.table({"n": [row["n"] for row in rows.values()], "name": [row["name"] for row in rows.values()]})
    live = Collection.create(folder / "collection", codes[:30], ids=ids[:30], attributes=table, bits=70, shards=2)
    parts = [changed_table(rows, {"n": pa.int64(), "name": pa.string()}, version=1)]
    live = live.tag("first").delete(ids[3:9].tolist())
    for id_ in ids[3:9].tolist():
        del rows[id_]
    live = live.upsert(later[:8], ids=ids[6:14], attributes={"n": [9] * 8, "name": [None] * 8})
    rows |= {int(id_): {"code": later[row], "n": 9, "name": None} for row, id_ in enumerate(ids[6:14].tolist())}
    live = live.set_column("at", pa.array([5, None, 7], kinds), ids=ids[14:17].tolist())
    live = live.update(ids[20:22].tolist(), {"n": [100, None]})
    for at, id_ in zip([5, None, 7], ids[14:17].tolist(), strict=True):
        rows[id_]["at"] = at
    for n, id_ in zip([100, None], ids[20:22].tolist(), strict=True):
        rows[id_]["n"] = n
    parts.append(changed_table(rows, {"n": pa.int64(), "name": pa.string(), "at": kinds}, version=live.version))
    live = live.drop_column("name").delete_where("n == 1")
    rows = {id_: row for id_, row in rows.items() if row["n"] != 1}
    live = live.add(later[8:10], attributes={"n": [1, 2]})
    rows |= {max(map(int, ids[:30])) + 1 + row: {"code": later[8 + row], "n": row + 1} for row in range(2)}
    parts.append(changed_table(rows, {"n": pa.int64(), "at": kinds}, version=live.version))
    told = {part["version"][0].as_py() for part in parts}
    versions = {str(each.version): {"shards": len(each.shards)} for each in live.versions() if each.version in told}
    schema = pa.unify_schemas([part.schema for part in parts])
    parts = [pa.Table.from_pylist(part.to_pylist(), schema) for part in parts]
    write_expected(folder, parts, bits=70, encoder=None, versions=versions, attributes={
        str(part["version"][0].as_py()): names for part, names in
        zip(parts, (["n", "name"], ["n", "name", "at"], ["n", "at"]), strict=True)
    }, tags={"first": 1})  # fmt: skip


def changed_table(rows, kinds, *, version):
    """What a reader must find of rows that a dict has: id -> code and attributes."""
    codes = np.array([row["code"] for row in rows.values()])
    attributes = pa.table(
        {name: pa.array([row.get(name) for row in rows.values()], kind) for name, kind in kinds.items()}
    )
    return rows_table(codes, np.array(list(rows), np.int64), attributes, version=version)


COLLECTIONS = {
    "plain": make_plain,
    "tables": make_tables,
    "types": make_types,
    "everything": make_everything,
    "changed": make_changed,
}


def main(target):
    target.mkdir()
    try:
        for name, make in COLLECTIONS.items():
            (target / name).mkdir()
            make(target / name)
            for lock in (target / name).rglob(".lock"):
                lock.unlink()
    except BaseException:
        shutil.rmtree(target)
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
