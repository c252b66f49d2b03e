"""What a collection holds, read with numpy and Arrow alone, and a plain model of what it should hold."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.ipc


def contents(read, name=None):
    """Return {id: (code, attributes, thumbnail)} of a version, by default the live one; `read(name)` gives a file."""
    document = json.loads(read(f"manifests/{name or read('CURRENT').decode().split()[0]}"))
    text = document["schema"]
    names = [] if text is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))).names
    rows = {}
    for shard in document["shards"]:
        rows_before = len(rows)
        for row, (id_, item) in enumerate(_rows_of(read, shard, names)):
            assert id_ not in rows, f"id {id_} is there twice"
            assert shard["ids"][0] <= id_ <= shard["ids"][1] < document["next_id"], row
            rows[id_] = item
        alive = shard["rows"] - (shard["dead"]["count"] if shard["dead"] else 0)
        assert len(rows) - rows_before == alive > 0
    return rows


def _rows_of(read, shard, names):
    folder = f"shards/{shard['name']}"
    ids = np.load(io.BytesIO(read(f"{folder}/ids.npy")))
    codes = np.frombuffer(read(f"{folder}/codes.faiss"), "<u8", offset=33).reshape(len(ids), -1)
    columns = dict.fromkeys(names, [None] * len(ids))
    if "attributes.arrow" in shard["files"]:
        own = table_of(read(f"{folder}/attributes.arrow"))
        columns |= {name: own[name].to_pylist() for name in names if name in own.column_names}
    for name, file in shard["columns"].items():
        columns[name] = table_of(read(f"columns/{file['name']}"))[name].to_pylist()
    pictures = [None] * len(ids)
    if "thumbnails.arrow" in shard["files"]:
        pictures = table_of(read(f"{folder}/thumbnails.arrow"))["thumbnail"].to_pylist()
    dead = set()
    if shard["dead"]:
        found = np.load(io.BytesIO(read(f"deletions/{shard['dead']['name']}")))
        assert found.dtype == np.uint32
        assert (np.diff(found.astype(np.int64)) > 0).all()
        dead = set(found.tolist())
    for row, id_ in enumerate(ids.tolist()):
        if row not in dead:
            item = {name: columns[name][row] for name in names}
            yield id_, (tuple(codes[row].tolist()), item, pictures[row])


def table_of(data):
    return pyarrow.ipc.open_file(io.BytesIO(data)).read_all()


class RefusedError(Exception):
    """The model does not allow a change."""


@dataclass
class Model:
    """A collection as a dict; every method is what that of a transaction should do."""

    rows: dict = field(default_factory=dict)
    next_id: int = 0
    names: tuple = ()

    def copy(self):
        return Model({id_: (code, dict(item), picture) for id_, (code, item, picture) in self.rows.items()},
                     self.next_id, self.names)  # fmt: skip

    def add(self, codes, ids=None, attributes=None, thumbnails=None, *, upsert=False):
        ids = range(self.next_id, self.next_id + len(codes)) if ids is None else [int(id_) for id_ in ids]
        if not upsert and set(ids) & set(self.rows):
            raise RefusedError
        for row, id_ in enumerate(ids):
            item = {name: None if name not in (attributes or {}) else attributes[name][row] for name in self.names}
            code = tuple(int(word) for word in codes[row])
            self.rows[id_] = code, item, thumbnails[row] if thumbnails else None
            self.next_id = max(self.next_id, id_ + 1)

    def upsert(self, codes, ids, attributes=None, thumbnails=None):
        self.add(codes, ids, attributes, thumbnails, upsert=True)

    def delete(self, ids):
        for id_ in ids:
            self.rows.pop(int(id_), None)

    def delete_if(self, condition):
        self.delete([id_ for id_, (_, item, _) in self.rows.items() if condition(id_, item)])

    def update(self, ids, attributes):
        if set(map(int, ids)) - set(self.rows):
            raise RefusedError
        for row, id_ in enumerate(ids):
            self.rows[int(id_)][1].update({name: values[row] for name, values in attributes.items()})

    def set_column(self, name, values, ids):
        if set(map(int, ids)) - set(self.rows):
            raise RefusedError
        if name not in self.names:
            self.names += (name,)
            for _, item, _ in self.rows.values():
                item[name] = None
        self.update(ids, {name: values})

    def drop_column(self, name):
        if name not in self.names:
            raise RefusedError
        self.names = tuple(each for each in self.names if each != name)
        for _, item, _ in self.rows.values():
            item.pop(name)
