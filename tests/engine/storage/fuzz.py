"""Mutated files under right checksums: each is refused by name, or the answers are those of what it holds.

Run as a program, because a mutated file may end the process: `python -m tests.engine.storage.fuzz FOLDER FIRST COUNT
KIND...` prints each mutation before it tries it, and the outcomes last.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.indexes.multi_index import planner
from hashlight.engine.storage import scalars
from hashlight.engine.storage.shard import write_thumbnails
from tests.engine.storage.forging import (
    forge,
    manifest_of,
    publish_bytes,
    replace,
    sha256,
    shard_file,
)

BITS, ROWS, WIDTH = 60, 2300, 3
FILES = (
    "codes.faiss",
    "ids.npy",
    "rows_by_id.npy",
    "features.npy",
    "attributes.arrow",
    "scalars.arrow",
    "thumbnails.arrow",
    "tables/tables.json",
    "tables/offsets.npy",
    "tables/entries.npy",
    "tables/starts.npy",
)
OTHERS = ("manifest", "CURRENT", "stamps", "costs")
KINDS = (*FILES, *OTHERS)
# Whatever these hold, it is only another opinion of how fast the machine is, or of what must be hashed again.
NEVER_REFUSED = {"stamps", "costs"}

VALUES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, ROWS, ROWS - 1, 1024)
TOKENS = (
    "0",
    "-1",
    "1.5",
    "1e999",
    "NaN",
    "4294967296",
    "9" * 30,
    "null",
    "true",
    "[]",
    "{}",
    '"x"',
    '"../x"',
    "[[1]]",
)


def make(folder):
    """Write a collection of one shard with everything that a shard can have; return its path."""
    rng = np.random.default_rng(0)
    codes = rng.integers(2**BITS, size=(ROWS, 1), dtype=np.uint64)
    codes[::4] = codes[1::4][: len(codes[::4])]
    ids = rng.permutation(ROWS) * 3
    kinds = pa.array([("shoe", None, "bag")[id_ % 3] for id_ in range(ROWS)])
    table = pa.table({"label": pa.array(ids % 7), "kind": kinds, "name": pa.array([f"image {id_}" for id_ in ids])})
    features = rng.normal(size=(ROWS, WIDTH)).astype(np.float16)
    path = folder / "c"
    Collection.create(path, codes, ids=ids, attributes=table, features=features, bits=BITS)
    pictures = pa.table({"thumbnail": [b"picture %d" % row if row % 3 else None for row in range(ROWS)]})
    write_thumbnails(shard_file(path, "codes.faiss").parent, [pictures], np.arange(ROWS))
    forge(path, "thumbnails.arrow", shard_file(path, "thumbnails.arrow").read_bytes())
    return path


def mutate(rng, data):
    """Change some bytes, of the beginning or the end as often as of the rest: what is there decides most."""
    data = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        size = len(data)
        place = int(
            rng.choice(
                [rng.integers(min(size, 256) + 1), max(size - int(rng.integers(600)), 0), rng.integers(size + 1)]
            )
        )
        length = int(rng.choice([1, 2, 4, 8, 64]))
        match int(rng.integers(7)):
            case 0 | 1 if place < size:
                data[place] ^= 1 << int(rng.integers(8))
            case 2 | 3:
                value = int(rng.choice(np.array(VALUES, np.uint64))).to_bytes(8, "little")
                place -= place % 4 if rng.random() < 0.7 else 0
                data[place : place + min(length, 8)] = value[: min(length, 8, max(size - place, 0))]
            case 4:
                del data[place : place + length]
            case 5:
                data[place:place] = rng.bytes(length)
            case _:
                other = int(rng.integers(size + 1))
                data[place : place + length] = data[other : other + length]
    return bytes(data)


def mutate_text(rng, data):
    """Give a JSON document other values, or change its bytes."""
    if rng.random() < 0.3:
        return mutate(rng, data)
    text = data.decode()
    tokens = list(re.finditer(r'-?\d+(?:\.\d+)?|"[^"]*"', text))
    token = tokens[int(rng.integers(len(tokens)))]
    return (text[: token.start()] + str(rng.choice(TOKENS)) + text[token.end() :]).encode()


class Fuzz:
    """Tries mutations of one collection, each from what it was at first."""

    def __init__(self, path):
        self.path = path
        self.shard = shard_file(path, "codes.faiss").parent
        files = [*(self.shard / name for name in FILES), manifest_of(path), path / "CURRENT"]
        self.pristine = {file: file.read_bytes() for file in files}
        self.texts = itertools.count()
        self.stamps = Path(os.environ["XDG_CACHE_HOME"], "hashlight", "verified", f"{self.shard.name}.json")
        self.queries = np.frombuffer(self.pristine[self.shard / "codes.faiss"], "<u8", offset=33)[
            ::400, None
        ] ^ np.uint64(0b101)

    def restore(self):
        for file, data in self.pristine.items():
            if file.read_bytes() != data:
                replace(file, data)
        for manifest in (self.path / "manifests").iterdir():
            if manifest not in self.pristine:
                manifest.unlink()

    def put(self, rng, kind):
        """Put a mutation of a kind of file in place."""
        if kind in FILES:
            change = mutate_text if kind.endswith(".json") else mutate
            forge(self.path, kind, change(rng, self.pristine[self.shard / kind]))
        elif kind == "manifest":
            publish_bytes(self.path, mutate_text(rng, manifest_of(self.path).read_bytes()))
        elif kind == "CURRENT":
            replace(self.path / "CURRENT", mutate(rng, (self.path / "CURRENT").read_bytes()))
        elif kind == "stamps":
            Collection.open(self.path)
            replace(self.stamps, mutate_text(rng, self.stamps.read_bytes()))
        else:
            stored = json.dumps({"word_ns": 1.0, "load_ns": 1.0, "near_lookup_ns": 1.0, "far_lookup_ns": 1.0})
            planner.machine_file("costs").write_bytes(mutate_text(rng, stored.encode()))
            planner._costs, planner._stored_costs_read = None, False

    def answer(self):
        """Ask the collection whatever it can be asked, and compare with what the files say to plain numpy and Arrow."""
        codes = np.frombuffer((self.shard / "codes.faiss").read_bytes(), "<u8", offset=33)
        ids = np.frombuffer((self.shard / "ids.npy").read_bytes()[128:], "<i8")
        features = np.frombuffer((self.shard / "features.npy").read_bytes()[128:], "<f2").reshape(len(ids), -1)
        stored = pyarrow.ipc.open_file(self.shard / "attributes.arrow").read_all()
        pictures = pyarrow.ipc.open_file(self.shard / "thumbnails.arrow").read_all()
        far = np.bitwise_count(self.queries ^ codes)
        nearest = [np.lexsort((ids, row))[:7] for row in far]
        radius = 24
        for index in ("auto", "multi", "scan"):
            opened = Collection.open(self.path, index=index)
            same(opened.search(self.queries, 7).ids, [ids[rows] for rows in nearest])
            found = opened.range_search(self.queries, radius)
            for number, row in enumerate(far):
                same(np.sort(found.ids[found.lims[number] : found.lims[number + 1]]), np.sort(ids[row <= radius]))
        asked = np.arange(0, len(ids), 97)
        same(opened.features_of(ids[asked]).view(np.uint16), features[asked].view(np.uint16))
        got = opened.get(ids[asked])
        same(np.frombuffer(b"".join(got["code"].to_pylist()), "<u8"), codes[asked])
        same_table(got.drop_columns(["id", "code"]), stored.take(asked))
        assert opened.thumbnails_of(ids[asked]) == pictures["thumbnail"].take(asked).to_pylist()
        if "label" in stored.schema.names and stored.schema.field("label").type == pa.int64():
            # Masks are kept by shard, which never changes, and text.
            text = f"label == 3 and label != {1_000_000 + next(self.texts)}"
            labels = stored["label"].to_numpy()
            same(np.sort(opened.range_search(self.queries[:1], BITS, filter=text).ids), np.sort(ids[labels == 3]))

    def try_one(self, kind, number):
        """Return "refused" or "answered"; anything else is an error."""
        rng = np.random.default_rng([number, *sha256(kind.encode())[:8].encode()])
        self.put(rng, kind)
        try:
            Collection.open(self.path)
            self.answer()
        except CorruptDataError as error:
            if kind in NEVER_REFUSED or str(self.path) not in str(error):
                raise AssertionError("refused, but not by name, or without need") from error
            return "refused"
        return "answered"


def same(got, expected):
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


def same_table(got, expected):
    assert got.schema.names == expected.schema.names
    assert got.equals(expected) or repr(got.to_pylist()) == repr(expected.to_pylist())


def main(folder, first, count, *kinds):
    scalars.MIN_ROWS = 1  # so that even these few are stored
    fuzz = Fuzz(make(Path(folder)))
    fuzz.answer()
    outcomes = collections.Counter()
    for kind in kinds:
        for number in range(int(first), int(first) + int(count)):
            sys.stdout.write(f"{kind} {number}\n")
            sys.stdout.flush()
            fuzz.restore()
            outcomes[f"{kind} {fuzz.try_one(kind, number)}"] += 1
        fuzz.restore()
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
