"""A reader and a writer of collections, from docs/format.md alone: they share nothing with the package."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

HEAD = struct.Struct("<4siiqBiQ")
NEEDS = {"columns", "dead-rows", "features-as"}
BATCH = 1024


@dataclass
class Version:
    manifest: dict
    rows: dict[int, dict] = field(default_factory=dict)  # id -> code, attributes, features, thumbnail
    schema: pa.Schema | None = None


def sha256(data):
    return hashlib.sha256(data).hexdigest()


# Reading.


def read_version(folder: Path, version: int | None = None) -> Version:
    """Read one version (None: the live one), and check all that the page says of it."""
    name = (folder / "CURRENT").read_text()
    if first := re.fullmatch(r"(\d{8}\.json) ([0-9a-f]{64})\n", name):
        name, digest = first[1], first[2]
    else:
        [name] = re.fullmatch(r"(\d{8}-[0-9a-f]{64}\.json)\n", name).groups()
        digest = name[9:73]
    data = (folder / "manifests" / name).read_bytes()
    assert sha256(data) == digest
    manifest = json.loads(data)
    if version is not None and version != manifest["version"]:
        manifest = _older(folder, manifest, version)
    assert manifest["format_version"] in (1, 2)
    assert set(manifest.get("needs", ())) <= NEEDS
    for log, mark in manifest.get("logs", {}).items():
        assert re.fullmatch("[0-9a-f]{32}", log)
        assert mark["through"] >= 1
        assert mark["written"].endswith("+00:00")
    found = Version(manifest)
    if manifest.get("schema"):
        found.schema = pyarrow.ipc.read_schema(pa.py_buffer(base64.b64decode(manifest["schema"])))
    for shard in manifest["shards"]:
        _read_shard(folder, shard, found)
    return found


def _older(folder, manifest, version):
    if manifest["format_version"] == 1:
        return _first_format(folder / "manifests" / f"{version:08d}.json")
    tagged = {name for name in manifest["tags"].values() if name.startswith(f"{version:08d}-")}
    assert tagged or version >= manifest["oldest"]
    name = next(iter(tagged), manifest["parent"])
    while True:
        data = (folder / "manifests" / name).read_bytes()
        if re.fullmatch(r"\d{8}\.json", name):
            manifest = _first_format(folder / "manifests" / name)
        else:
            assert sha256(data) == name[9:73]
            manifest = json.loads(data)
        if manifest["version"] == version:
            return manifest
        name = manifest["parent"]


def _first_format(path):
    manifest = json.loads(path.read_bytes())
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    assert manifest["sha256"] == sha256(json.dumps(body, sort_keys=True).encode())
    return manifest


def _read_shard(folder, shard, found):
    bits, rows, path = found.manifest["bits"], shard["rows"], folder / "shards" / shard["name"]
    on_disk = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert on_disk == set(shard["files"])
    files = {name: _verified(path / name, said) for name, said in shard["files"].items()}
    codes = _read_codes(files["codes.faiss"], bits, rows)
    ids = _read_npy(files["ids.npy"], "<i8", (rows,))
    by_id = _read_npy(files["rows_by_id.npy"], "<u4", (rows,))
    keys = [(code, id_) for code, id_ in zip(codes, ids.tolist(), strict=True)]
    assert keys == sorted(set(keys))
    assert ids.min() >= 0
    assert (np.diff(ids[by_id]) > 0).all()
    assert shard.get("ids") in (None, [ids.min(), ids.max()])
    if "tables/tables.json" in files:
        _check_tables(files, codes, bits)
    dead = _read_dead(folder, shard.get("dead"), rows)
    attributes = _read_attributes(folder, shard, files, found.schema, found.manifest["format_version"])
    if "scalars.arrow" in files:
        check_scalars(files["scalars.arrow"], own_attributes(files, rows))
    features, thumbnails = None, None
    if "features.npy" in files:
        features = _read_features(files["features.npy"], rows, found.manifest.get("features_as", "float16"))
        assert found.manifest.get("features") in (None, features.shape[1])
    if "thumbnails.arrow" in files:
        [thumbnails] = _read_arrow(files["thumbnails.arrow"], rows).columns
        assert found.manifest.get("thumbnails") in (None, True)
    for row in range(rows):
        if row in dead:
            continue
        id_ = int(ids[row])
        assert id_ not in found.rows
        found.rows[id_] = {
            "code": codes[row].to_bytes(8 * -(-bits // 64), "little"),
            "attributes": {name: column[row] for name, column in attributes.items()},
            "features": None if features is None else features[row].tolist(),
            "thumbnail": None if thumbnails is None else thumbnails[row].as_py(),
        }


def _read_features(data, rows, kind):
    if kind == "float16":
        return _read_npy(data, "<f2", (rows, None))
    if kind == "bfloat16":
        upper = _read_npy(data, "<u2", (rows, None))
        return np.array(
            [[struct.unpack("<f", bytes(2) + int(one).to_bytes(2, "little"))[0] for one in row] for row in upper]
        )
    assert kind == "int8"
    packed = _read_npy(data, "|u1", (rows, None))
    values = [
        [struct.unpack("<f", row[:4])[0] * step for step in struct.unpack(f"{len(row) - 4}b", row[4:])]
        for row in map(bytes, packed)
    ]
    return np.array(values)


def _verified(path, said):
    data = path.read_bytes()
    assert (len(data), sha256(data)) == (said["bytes"], said["sha256"])
    return data


def _read_codes(data, bits, rows):
    """Return codes as numbers, of which bit i is bit i of the code."""
    size = 8 * -(-bits // 64)
    assert HEAD.unpack_from(data) == (b"IBxF", 8 * size, size, rows, 1, 1, size * rows)
    assert len(data) == HEAD.size + size * rows == 33 + size * rows
    codes = [int.from_bytes(data[start : start + size], "little") for start in range(33, len(data), size)]
    assert max(codes) < 1 << bits
    return codes


def _read_npy(data, dtype, shape):
    assert data[:8] == b"\x93NUMPY\x01\x00"
    length = int.from_bytes(data[8:10], "little")
    said = re.fullmatch(
        rb"\{'descr': '(...)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n", data[10 : 10 + length]
    )
    assert said[1].decode() == dtype
    got = tuple(int(part) for part in said[2].split(b",") if part)
    assert all(want in (None, length) for want, length in zip(shape, got, strict=True))
    array = np.frombuffer(data, dtype, offset=10 + length)
    return array.reshape(got)


def _read_arrow(data, rows):
    assert data[:6] == b"ARROW1"
    reader = pyarrow.ipc.open_file(pa.py_buffer(data))
    batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    assert [len(batch) for batch in batches] == [min(BATCH, rows - start) for start in range(0, rows, BATCH)]
    return pa.Table.from_batches(batches, reader.schema)


def check_scalars(data, attributes):
    """Check that a file of scalars repeats what the attributes (name -> column) have."""
    reader = pyarrow.ipc.open_file(pa.py_buffer(data))
    [rows] = {len(column) for column in attributes.values()}
    assert reader.schema.names == [name for name in attributes if name in reader.schema.names]
    assert reader.num_record_batches == -(-rows // 65_536)
    for number in range(reader.num_record_batches):
        batch, more = reader.get_batch_with_custom_metadata(number)
        statistics = json.loads(more["statistics"])
        assert set(statistics) == set(batch.schema.names)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            kind = attributes[name].type
            values = attributes[name].slice(number * 65_536, 65_536).combine_chunks()
            if pa.types.is_dictionary(column.type):
                words = column.dictionary.to_pylist()
                assert words == sorted(set(attributes[name].drop_null().to_pylist()))
                assert column.type.index_type == (pa.int8() if len(words) <= 128 else pa.int16())
                column = column.dictionary_decode()
            elif pa.types.is_decimal(kind):
                assert column.type == pa.int64()
                units = [None if value is None else int(value.scaleb(kind.scale)) for value in values.to_pylist()]
                values = pa.array(units, pa.int64())
            elif pa.types.is_temporal(kind):
                assert column.type == kind
                whole = pa.int32() if kind.bit_width == 32 else pa.int64()
                column, values = column.view(whole), values.view(whole)
            assert column.equals(values), name
            there = [value for value in values.to_pylist() if value is not None]
            said = statistics[name]
            assert said["nulls"] == len(values) - len(there)
            if said["min"] is not None:
                assert (said["min"], said["max"]) == (min(there), max(there))


def _read_dead(folder, said, rows):
    if said is None:
        return set()
    dead = _read_npy(_verified(folder / "deletions" / said["name"], said), "<u4", (said["count"],))
    assert (np.diff(dead.astype(np.int64)) > 0).all()
    assert dead.max() < rows
    return set(dead.tolist())


def own_attributes(files, rows):
    if "attributes.arrow" not in files:
        return {}
    table = _read_arrow(files["attributes.arrow"], rows)
    return dict(zip(table.column_names, table.columns, strict=True))


def _read_attributes(folder, shard, files, schema, format_version):
    own = own_attributes(files, shard["rows"])
    if format_version == 1:
        return own
    for name, said in shard["columns"].items():
        [own[name]] = _read_arrow(_verified(folder / "columns" / said["name"], said), shard["rows"]).columns
    values = {}
    for each in schema or ():
        values[each.name] = own.get(each.name, pa.nulls(shard["rows"], each.type))
        assert values[each.name].type == each.type
    return values


# The multi-index.


def table_layout(bits, rows, widths):
    """Yield (low, width, A, B, R) of each table."""
    row_bits = max(1, (rows - 1).bit_length())
    top = bits
    for width in widths:
        low = top - width
        above = min(64 - row_bits, bits - top)
        yield low, width, above, min(64 - row_bits - above, low), row_bits
        top = low


def make_tables(codes, bits, widths):
    """Return (offsets, entries, starts, largest) for codes as ascending numbers."""
    rows = len(codes)
    firsts = [row for row in range(rows) if not row or codes[row] != codes[row - 1]]
    offsets, entries, largest = [], [], []
    for table, (low, width, above, below, row_bits) in enumerate(table_layout(bits, rows, widths)):
        lists = {}
        for row in firsts:
            code = codes[row]
            sketch = (code >> (low + width)) % 2**above | ((code >> (low - below)) % 2**below) << above
            lists.setdefault((code >> low) % 2**width, []).append(row | sketch << row_bits)
        counts = np.zeros(2**width, np.int64)
        for value, listed in lists.items():
            counts[value] = len(listed)
        offsets += [0, *np.cumsum(counts).tolist()]
        largest.append(int(counts.max()))
        if table:
            entries += [entry for value in sorted(lists) for entry in lists[value]]
    starts = [] if len(firsts) == rows else firsts
    return np.array(offsets, "<u4"), np.array(entries + [0] * 8, "<u8"), np.array(starts, "<u4"), largest


def _check_tables(files, codes, bits):
    head = json.loads(files["tables/tables.json"])
    distinct = len(set(codes))
    assert (head["format"], head["bits"], head["rows"], head["distinct"]) == (1, bits, len(codes), distinct)
    offsets, entries, starts, largest = make_tables(codes, bits, head["widths"])
    assert head["largest"] == largest
    for name, dtype, expected in (("offsets", "<u4", offsets), ("entries", "<u8", entries), ("starts", "<u4", starts)):
        assert (_read_npy(files[f"tables/{name}.npy"], dtype, (len(expected),)) == expected).all()


# Writing.


def npy(array):
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    length = math.ceil((10 + len(text) + 1) / 64) * 64 - 10
    head = text.ljust(length - 1).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + head + array.tobytes()


def arrow_file(table):
    sink = pa.BufferOutputStream()
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=BATCH)
    return sink.getvalue().to_pybytes()


def _packed(features, kind):
    """Features that a kind holds exactly, as it keeps them."""
    if kind == "float16":
        return features.astype("<f2")
    if kind == "bfloat16":
        return [[int.from_bytes(struct.pack("<f", one)[2:], "little") for one in row] for row in features]
    step = 2.0**-3
    return [
        [*struct.pack("<f", step), *struct.pack(f"{len(row)}b", *(int(one / step) for one in row))] for row in features
    ]


def shard_files(codes, ids, bits, *, attributes=None, features=None, features_as="float16", widths=None):
    """The files of a shard of codes, given as numbers."""
    order = sorted(range(len(ids)), key=lambda row: (codes[row], ids[row]))
    codes, ids = [codes[row] for row in order], np.array(ids, "<i8")[order]
    size = 8 * -(-bits // 64)
    head = HEAD.pack(b"IBxF", 8 * size, size, len(ids), 1, 1, size * len(ids))
    files = {
        "codes.faiss": head + b"".join(code.to_bytes(size, "little") for code in codes),
        "ids.npy": npy(ids),
        "rows_by_id.npy": npy(np.argsort(ids).astype("<u4")),
    }
    if widths:
        offsets, entries, starts, largest = make_tables(codes, bits, widths)
        facts = {"bits": bits, "rows": len(ids), "distinct": len(set(codes)), "widths": widths, "largest": largest}
        files["tables/tables.json"] = json.dumps({"format": 1, **facts}).encode()
        for name, array in (("offsets", offsets), ("entries", entries), ("starts", starts)):
            files[f"tables/{name}.npy"] = npy(array)
    if attributes is not None:
        files["attributes.arrow"] = arrow_file(attributes.take(order))
    if features is not None:
        kinds = {"float16": "<f2", "bfloat16": "<u2", "int8": "|u1"}
        files["features.npy"] = npy(np.array(_packed(features, features_as), kinds[features_as])[order])
    return files


def described(data):
    return {"bytes": len(data), "sha256": sha256(data)}


def write_first_format(folder, shards, bits):
    """Write a collection of format 1 of shards, each given as its files."""
    said = [_put_shard(folder, files) for files in shards]
    body = {"format_version": 1, "version": 1, "bits": bits, "encoder": None, "encoder_folder": None, "shards": said}
    data = json.dumps({**body, "sha256": sha256(json.dumps(body, sort_keys=True).encode())}).encode()
    (folder / "manifests").mkdir()
    (folder / "manifests" / "00000001.json").write_bytes(data)
    (folder / "CURRENT").write_text(f"00000001.json {sha256(data)}\n")


def _put_shard(folder, files):
    name = uuid.uuid4().hex
    for file, data in files.items():
        path = folder / "shards" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    rows = HEAD.unpack_from(files["codes.faiss"])[3]
    return {"name": name, "rows": rows, "files": {file: described(data) for file, data in files.items()}}


def write_second_format(
    folder, shards, bits, *, schema=None, features=None, features_as=None, dead=None, columns=None, needs=()
):
    """Write a collection of format 2; `dead` are rows of the first shard, `columns` its tables of one column."""
    said = [_put_shard(folder, files) for files in shards]
    for each, files in zip(said, shards, strict=True):
        ids = _read_npy(files["ids.npy"], "<i8", (each["rows"],))
        each |= {"ids": [int(ids.min()), int(ids.max())], "dead": None, "columns": {}, "statistics": {}}
    needs = [*needs, *(["features-as"] if features_as else [])]
    if columns:
        needs.append("columns")
        for name, table in columns.items():
            said[0]["columns"][name] = _put(folder / "columns" / uuid.uuid4().hex, arrow_file(table))
    if dead:
        needs.append("dead-rows")
        data = npy(np.array(sorted(dead), "<u4"))
        said[0]["dead"] = {"count": len(dead), **_put(folder / "deletions" / uuid.uuid4().hex, data)}
    body = {
        "format_version": 2,
        "needs": needs,
        "version": 1,
        "bits": bits,
        "encoder": None,
        "encoder_folder": None,
        "schema": None if schema is None else base64.b64encode(schema.serialize().to_pybytes()).decode(),
        "features": features,
        **({"features_as": features_as} if features_as else {}),
        "thumbnails": False,
        "collection": uuid.uuid4().hex,
        "parent": None,
        "written": "2024-01-02T03:04:05+00:00",
        "next_id": max(each["ids"][1] for each in said) + 1,
        "oldest": 1,
        "tags": {},
        "commit": uuid.uuid4().hex,
        "shards": said,
    }
    data = json.dumps(body).encode()
    (folder / "manifests").mkdir()
    name = f"00000001-{sha256(data)}.json"
    (folder / "manifests" / name).write_bytes(data)
    (folder / "CURRENT").write_text(f"{name}\n")


def _put(path, data):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return {"name": path.name, **described(data)}
