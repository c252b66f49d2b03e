"""Operations on one small collection, for tests of what survives when they are interrupted."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.transaction import Transaction
from tests.engine.collection.contents import contents

BITS = 40
CODES = np.random.default_rng(3).integers(4, size=(60, 1), dtype=np.uint64)  # many are equal


def make(path: Path) -> None:
    """Make a collection of several versions and shards, with deleted rows, columns set later, and a tag."""
    labels = {"label": [number % 3 for number in range(12)], "name": list("abcdefghijkl")}
    collection = Collection.create(path, CODES[:12], bits=BITS, attributes=labels, shards=2, tables=False)
    collection = collection.delete([2, 3]).set_column("price", [0.5, 1.5], ids=[0, 9])
    collection = collection.tag("first", 1).add(CODES[12:15], thumbnails=[b"x", None, b"y"], tables=False)
    collection.upsert(CODES[20:22], ids=np.array([1, 40]), tables=False)


def _with(change, *, commit=True):
    def run(path):
        with Transaction(path, tables=False) as writer:
            change(writer)
            writer.commit()

    return run


def _several(writer):
    writer.delete([5])
    writer.add(CODES[30:33], np.array([5, 60, 61]), {"label": [7, 8, 9]}, thumbnails=[b"a", b"b", None], shards=2)
    writer.set_column("later", ["q"], ids=[60])
    writer.tag("second")


def _replace(path):
    Collection.create(path, CODES[:5], bits=BITS, overwrite=True, tables=False)


OPERATIONS = {
    "add": _with(lambda t: t.add(CODES[30:33], np.array([100, 50, 77]), {"label": [7, 8, 9]}, shards=2)),
    "number": _with(lambda t: t.add(CODES[33:35], attributes={"name": ["y", "z"]})),
    "upsert": _with(lambda t: t.upsert(CODES[35:37], np.array([0, 60]), {"label": [5, 6]})),
    "delete": _with(lambda t: t.delete([0, 7, 12])),
    "delete a shard": _with(lambda t: t.delete([12, 13, 14])),
    "delete where": _with(lambda t: t.delete_where("label == 1")),
    "update": _with(lambda t: t.update([5, 13], {"label": [55, 33]})),
    "set": _with(lambda t: t.set_column("price", [2.5, None], ids=[5, 9])),
    "drop": _with(lambda t: t.drop_column("label")),
    "rollback": _with(lambda t: t.rollback("first")),
    "tag": _with(lambda t: t.tag("second", 3)),
    "untag": _with(lambda t: t.untag("first")),
    "prune": _with(lambda t: t.prune(keep=1)),
    "several": _with(_several),
    "compact": lambda path: Collection.open(path).compact(full=True),
    "replace": _replace,
}


def promised(read) -> dict[str, dict]:
    """Return the contents of each version that can be opened, the live one first, by the name of its manifest.

    Read with numpy and Arrow alone, beginning with CURRENT.
    """
    live = read("CURRENT").decode().strip()
    document = json.loads(read(f"manifests/{live}"))
    found = {live: contents(read, live)}
    name = document["parent"]
    while name is not None and int(name[:8]) >= document["oldest"]:
        found[name] = contents(read, name)
        name = json.loads(read(f"manifests/{name}"))["parent"]
    for name in document["tags"].values():
        found.setdefault(name, contents(read, name))
    return found


def described(read) -> tuple:
    """Return all of the live version that readers see, but for names that are drawn at random."""
    versions = promised(read)
    document = json.loads(read(f"manifests/{next(iter(versions))}"))
    schema = document["schema"] and pa.ipc.read_schema(pa.py_buffer(base64.b64decode(document["schema"])))
    tags = {tag: int(name[:8]) for tag, name in document["tags"].items()}
    numbers = {int(name[:8]): rows for name, rows in versions.items()}
    return numbers, schema, tags, document["version"], document["oldest"], document["next_id"]


def reader(path: Path):
    return lambda name: (path / name).read_bytes()
