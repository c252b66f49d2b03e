"""Versions with deleted rows, columns that were set later, and ids that have moved, written with nothing of ours.

Only the shards themselves are written by `Collection.create`, each as a collection of its own.
"""

from __future__ import annotations

import base64
import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from hashlight.engine.collection.collection import Collection
from tests.engine.storage.forging import forge_manifest, manifest_of, sha256

BATCH = 1024


class Part:
    """A shard: its rows as they were written, those that were deleted, and columns that were set later, by id."""

    def __init__(self, codes, ids, attributes=None, features=None, thumbnails=None, dead=(), columns=None):
        self.codes, self.ids = np.asarray(codes, np.uint64), np.asarray(ids, np.int64)
        self.attributes, self.features, self.thumbnails = attributes, features, thumbnails
        self.dead, self.columns = set(dead), columns or {}


def arrow_file(name, column):
    sink = io.BytesIO()
    table = pa.table({name: column})
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        for batch in table.combine_chunks().to_batches(max_chunksize=BATCH):
            writer.write_batch(batch)
    return sink.getvalue()


def npy_file(array):
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def put(folder, name, data):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return {"name": name, "bytes": len(data), "sha256": sha256(data)}


def assemble(path, parts, *, bits, schema, tables=True):
    """Write a collection of these parts, whose attributes are those of `schema` (a pyarrow.Schema)."""
    shards = []
    for number, part in enumerate(parts):
        made = path if number == 0 else path.with_name(f"{path.name}-{number}")
        Collection.create(
            made, part.codes, ids=part.ids, attributes=part.attributes, features=part.features, bits=bits, tables=tables
        )
        (shard,) = json.loads(manifest_of(made).read_bytes())["shards"]
        if number:
            shutil.move(made / "shards" / shard["name"], path / "shards" / shard["name"])
            shutil.rmtree(made)
        shards.append(changed(path, shard, part))

    def change(document):
        document["shards"] = shards
        document["schema"] = None if schema is None else base64.b64encode(schema.serialize()).decode()
        document["next_id"] = 1 + max(shard["ids"][1] for shard in shards)
        document["needs"] = ["columns", "dead-rows"]
        document["thumbnails"] = any(part.thumbnails for part in parts)

    forge_manifest(path, change)
    return path


def changed(path, shard, part):
    """Write what has changed about a shard, and the pictures of its rows; return its entry in the manifest."""
    folder = path / "shards" / shard["name"]
    ids = np.load(folder / "ids.npy").tolist()
    if part.thumbnails:
        data = arrow_file("thumbnail", pa.array([part.thumbnails.get(id_) for id_ in ids], pa.binary()))
        (folder / "thumbnails.arrow").write_bytes(data)
        shard["files"]["thumbnails.arrow"] = {"bytes": len(data), "sha256": sha256(data)}
    if part.dead:
        rows = np.array([row for row, id_ in enumerate(ids) if id_ in part.dead], np.uint32)
        shard["dead"] = put(path / "deletions", f"{shard['name']}-dead", npy_file(rows)) | {"count": len(rows)}
    for number, (name, (kind, values)) in enumerate(sorted(part.columns.items())):
        data = arrow_file(name, pa.array([values[id_] for id_ in ids], kind))
        shard["columns"][name] = put(path / "columns", f"{shard['name']}-{number:04d}", data)
        shard["statistics"].pop(name, None)  # those of the values that it was written with
    return shard


def write_next(path, change):
    """Let `change` alter the live manifest's document, as the version after it."""
    before = manifest_of(path)
    document = json.loads(before.read_bytes())
    document |= {"version": document["version"] + 1, "parent": before.name}
    change(document)
    data = json.dumps(document).encode()
    name = f"{document['version']:08d}-{sha256(data)}.json"
    (before.parent / name).write_bytes(data)
    (path / "CURRENT").write_text(f"{name}\n")
