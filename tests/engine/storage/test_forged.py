"""Right checksums, wrong contents: what a file says is checked when it is first hashed, before it is used."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.places.folder import Folder
from hashlight.engine.storage.versions import read_current, read_version
from tests.engine.storage.forging import (
    forge,
    forge_manifest,
    manifest_of,
    publish_bytes,
    publish_first_format,
    replace,
    shard_file,
)

BITS, ROWS = 60, 3000


def contents():
    """Codes of which some are equal, and what is stored beside them."""
    rng = np.random.default_rng(0)
    codes = rng.integers(2**BITS, size=(ROWS, 1), dtype=np.uint64)
    codes[::5] = codes[1::5]
    ids = rng.permutation(ROWS) * 3
    table = pa.table({"label": pa.array(ids % 7), "name": pa.array([f"image {id_}" for id_ in ids])})
    return codes, ids, table, rng.normal(size=(ROWS, 4)).astype(np.float16)


@pytest.fixture
def collection(tmp_path):
    codes, ids, table, features = contents()
    Collection.create(tmp_path / "c", codes, ids=ids, attributes=table, features=features, bits=BITS)
    return tmp_path / "c"


def array_of(collection, name):
    return np.load(shard_file(collection, name))


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def changed(array, where, value):
    array = array.copy()
    array[where] = value
    return npy(array)


def swapped(array, a, b):
    array = array.copy()
    array[[a, b]] = array[[b, a]]
    return npy(array)


FORGED = {
    "a row that does not exist": ("rows_by_id.npy", lambda a: changed(a, 7, ROWS), "expected rows up to 2999"),
    "a row far beyond": ("rows_by_id.npy", lambda a: changed(a, -1, 2**32 - 1), "expected rows up to 2999"),
    "rows in another order": ("rows_by_id.npy", lambda a: swapped(a, 3, 4), "ascending order of their ids"),
    "a row twice": ("rows_by_id.npy", lambda a: changed(a, 5, a[6]), "ascending order of their ids"),
    "a negative id": ("ids.npy", lambda a: changed(a, 0, -5), "ids of 0 or more, got -5"),
    "an id twice": ("ids.npy", lambda a: changed(a, 10, a[11]), "rows_by_id.npy"),
    "ids of another type": ("ids.npy", lambda a: npy(a.astype(np.float64)), "expected int64 of shape"),
    "ids as objects": ("ids.npy", lambda a: npy(a.astype(np.int64)).replace(b"'<i8'", b"'|O' "), "does not begin as"),
    "fewer ids": ("ids.npy", lambda a: npy(a[:-1]), "expected int64 of shape"),
    "offsets beyond the entries": ("tables/offsets.npy", lambda a: changed(a, 100, 2**31), "table 0 does not list"),
    "offsets that fall": ("tables/offsets.npy", lambda a: changed(a, slice(50, 60), 0), "table 0 does not list"),
    "offsets of the last table": ("tables/offsets.npy", lambda a: changed(a, -1, a[-1] - 1), "does not list"),
    "an entry of no row": ("tables/entries.npy", lambda a: changed(a, 0, 2**64 - 1), "table 1 does not list"),
    "entries in other buckets": ("tables/entries.npy", lambda a: swapped(a, 0, 1500), "table 1 does not list"),
    "a wrong sketch": ("tables/entries.npy", lambda a: changed(a, 9, a[9] ^ np.uint64(1 << 40)), "table 1 does not"),
    "starts beyond the rows": ("tables/starts.npy", lambda a: changed(a, -1, ROWS + 5), "table 0 does not list"),
    "starts out of order": ("tables/starts.npy", lambda a: swapped(a, 0, 1), "table 0 does not list"),
    "features of fewer rows": ("features.npy", lambda a: npy(a[:-1]), r"expected float16 of shape \(3000, any\)"),
    "features that are steps alone": ("features.npy", lambda a: npy(np.zeros((len(a), 4), "|u1")), "four more columns"),
    "features of another type": ("features.npy", lambda a: npy(a.astype(np.float32)), "expected float16"),
}


@pytest.mark.parametrize("case", FORGED)
def test_arrays_that_contradict_each_other_are_refused(collection, case):
    name, change, message = FORGED[case]
    forge(collection, name, change(array_of(collection, name)))
    for _ in range(2):  # a refusal is not remembered as a success
        with pytest.raises(CorruptDataError, match=message):
            Collection.open(collection)


def test_codes_that_are_not_the_tables_are_refused(collection):
    data = bytearray(shard_file(collection, "codes.faiss").read_bytes())
    words = np.frombuffer(data, "<u8", offset=33).copy()
    head = bytes(data[:33])
    for row, code, message in [
        (0, words[0] ^ np.uint64(1), "tables"),
        (5, words[-1], "must ascend"),
        (-1, 2**61, "set past"),
    ]:
        forged = words.copy()
        forged[row] = code
        forge(collection, "codes.faiss", head + forged.tobytes())
        with pytest.raises(CorruptDataError, match=message):
            Collection.open(collection)


@pytest.mark.parametrize(
    "changes", [{"largest": [1, 1, 1, 1, 1]}, {"distinct": ROWS}, {"widths": [True] * 7}, {"rows": True}]
)
def test_sizes_of_tables_that_are_not_theirs_are_refused(collection, changes):
    head = json.loads(shard_file(collection, "tables/tables.json").read_bytes())
    assert set(changes) <= set(head)
    changes = {key: value[: len(head[key])] if isinstance(value, list) else value for key, value in changes.items()}
    forge(collection, "tables/tables.json", json.dumps(head | changes).encode())
    with pytest.raises(CorruptDataError, match="tables"):
        Collection.open(collection)


def arrow(table, batch_rows):
    out = io.BytesIO()
    with pyarrow.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return out.getvalue()


def stored_attributes(collection):
    return pyarrow.ipc.open_file(shard_file(collection, "attributes.arrow")).read_all().combine_chunks()


@pytest.mark.parametrize("batch_rows", [1000, 1025, ROWS, 1])
def test_attributes_in_batches_of_another_length_are_refused(collection, batch_rows):
    forge(collection, "attributes.arrow", arrow(stored_attributes(collection), batch_rows))
    with pytest.raises(CorruptDataError, match=r"attributes\.arrow: expected 3000 rows in 3 batches of 1024"):
        Collection.open(collection)


@pytest.mark.parametrize("rows", [0, ROWS - 1, ROWS + 1])
def test_attributes_of_more_or_fewer_rows_are_refused(collection, rows):
    table = stored_attributes(collection)
    forge(collection, "attributes.arrow", arrow(pa.concat_tables([table, table]).slice(0, rows).combine_chunks(), 1024))
    with pytest.raises(CorruptDataError, match=r"attributes\.arrow: expected 3000 rows"):
        Collection.open(collection)


def with_offset(table, place, offset):
    """Attributes of which string `place` of the first batch begins at `offset`."""
    texts = pa.array(["x"] * ROWS)
    data = arrow(pa.table({"label": table["label"], "name": texts}), 1024)
    offsets = np.arange(1025, dtype=np.int32)
    assert data.count(offsets.tobytes()) == 2, "one for each whole batch"
    forged = offsets.copy()
    forged[place] = offset
    return data.replace(offsets.tobytes(), forged.tobytes(), 1)


def with_names(table, names):
    return arrow(pa.table({"label": table["label"], "name": names}), 1024)


UNREADABLE = {
    "the last offset beyond the buffer": lambda table: with_offset(table, 1024, 2**31 - 1),
    "an offset beyond the buffer": lambda table: with_offset(table, 500, 2**31 - 1),
    "an offset before the buffer": lambda table: with_offset(table, 500, -(2**31)),
    "no UTF-8": lambda table: with_names(table, pa.array([b"\xff\xfe"] * ROWS).view(pa.string())),
    "numbers without a value": lambda table: with_names(
        table, pa.DictionaryArray.from_arrays(pa.array(np.full(ROWS, 2**20), pa.int32()), ["a", "b"], safe=False)
    ),
}


@pytest.mark.parametrize("old", [b"label", b"name"])
def test_attributes_with_names_that_are_no_text_are_refused(collection, old):
    data = shard_file(collection, "attributes.arrow").read_bytes()
    forge(collection, "attributes.arrow", data.replace(old + b"\0", old[:-1] + b"\xfc\0"))
    with pytest.raises(CorruptDataError, match=r"attributes\.arrow is not readable as attributes"):
        Collection.open(collection)


OPEN_EACH = """
import sys
from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CorruptDataError
for path in sys.argv[1:]:
    try:
        Collection.open(path).get(range(0, 9000, 3)).to_pylist()
    except CorruptDataError as error:
        print(error, flush=True)
"""


def test_attributes_that_would_end_the_process_are_refused(tmp_path):
    """In a process of its own, which ends by a signal if Arrow believes such a file."""
    codes, ids, table, _ = contents()
    for number, forged in enumerate(UNREADABLE.values()):
        Collection.create(tmp_path / str(number), codes, ids=ids, attributes=table, bits=BITS)
        forge(tmp_path / str(number), "attributes.arrow", forged(stored_attributes(tmp_path / str(number))))
    paths = [str(tmp_path / str(number)) for number in range(len(UNREADABLE))]
    done = subprocess.run([sys.executable, "-c", OPEN_EACH, *paths], capture_output=True, text=True)
    refused = done.stdout.splitlines()
    assert (done.returncode, len(refused)) == (0, len(UNREADABLE)), done.stderr
    for path, line in zip(paths, refused, strict=True):
        assert line.startswith(f"{path}/shards/")
        assert "attributes.arrow is not readable as attributes" in line


@pytest.mark.parametrize(
    "encoder", ["../../elsewhere", "/etc", "..", "", "a/b", ".hidden", "a\0b", 7, ["f"], "f" * 300]
)
def test_an_encoder_that_is_a_path_is_refused(collection, encoder):
    forge_manifest(collection, lambda document: document.update(encoder=encoder))
    with pytest.raises(
        CorruptDataError, match=r"00000001-[0-9a-f]{64}\.json is not a readable manifest.*an encoder is named"
    ):
        Collection.open(collection)


def test_an_encoder_that_is_a_path_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="an encoder is named by"):
        Transaction(tmp_path / "c", fresh=Fresh(bits=64, encoder="../../elsewhere"))
    assert list(tmp_path.iterdir()) == []


MANIFESTS = {
    "no object": lambda document: [],
    "no list of shards": lambda document: document | {"shards": None},
    "a shard twice": lambda document: document | {"shards": document["shards"] * 2},
    "shards as a number": lambda document: document | {"shards": 3},
    "rows as text": lambda document: with_shard(document, rows="3000"),
    "rows as a fraction": lambda document: with_shard(document, rows=3000.0),
    "no rows": lambda document: with_shard(document, rows=0),
    "negative rows": lambda document: with_shard(document, rows=-3000),
    "too many rows": lambda document: with_shard(document, rows=2**32),
    "a shard elsewhere": lambda document: with_shard(document, name="../../shards/x"),
    "a shard without a name": lambda document: with_shard(document, name=""),
    "no files": lambda document: with_shard(document, files={}),
    "files as a list": lambda document: with_shard(document, files=[]),
    "no codes": lambda document: with_files(document, {"codes.faiss": None}),
    "half of the tables": lambda document: with_files(document, {"tables/starts.npy": None}),
    "a file elsewhere": lambda document: with_files(document, {"../x": {"bytes": 0, "sha256": "0" * 64}}),
    "a file of no size": lambda document: with_files(document, {"codes.faiss": {"bytes": -1, "sha256": "0" * 64}}),
    "a checksum of another kind": lambda document: with_files(document, {"ids.npy": {"bytes": 1, "sha256": "abc"}}),
    "bits as text": lambda document: document | {"bits": "60"},
    "bits as a truth": lambda document: document | {"bits": True},
    "too many bits": lambda document: document | {"bits": 2**31},
    "no bits": lambda document: {key: value for key, value in document.items() if key != "bits"},
    "another version": lambda document: document | {"version": 2},
    "no version": lambda document: document | {"version": None},
    "another format": lambda document: document | {"format_version": 3},
    "a need that is not known": lambda document: document | {"needs": ["sparse-codes"]},
    "needs as a number": lambda document: document | {"needs": 1},
    "no needs": lambda document: {key: value for key, value in document.items() if key != "needs"},
    "no range of ids": lambda document: with_shard(document, ids=None),
    "a range of ids that falls": lambda document: with_shard(document, ids=[5, 4]),
    "an id that may be given again": lambda document: document | {"next_id": 0},
    "ids beyond the last": lambda document: document | {"next_id": 2**63 + 1},
    "the oldest after the live one": lambda document: document | {"oldest": 2},
    "a tag that is a number": lambda document: document | {"tags": {"7": "00000001.json"}},
    "a tag of a file elsewhere": lambda document: document | {"tags": {"a": "../CURRENT"}},
    "a parent elsewhere": lambda document: document | {"parent": "../CURRENT"},
    "a tag of no manifest": lambda document: document | {"tags": {"a": "latest.json"}},
    "a parent of no manifest": lambda document: document | {"parent": "00000000"},
    "a time of no kind": lambda document: document | {"written": "yesterday"},
    "a time without a zone": lambda document: document | {"written": "2026-01-31T08:30:00"},
    "a schema as text": lambda document: document | {"schema": "label"},
    "a schema of no schema": lambda document: document | {"schema": "AAAA"},
    "features of no dimensions": lambda document: document | {"features": 0},
    "features of no kind": lambda document: document | {"features_as": "float8"},
    "thumbnails as a number": lambda document: document | {"thumbnails": 0},
    "no deleted row": lambda document: with_shard(document, dead=a_file(count=0)),
    "more deleted rows than rows": lambda document: with_shard(document, dead=a_file(count=3001)),
    "deleted rows elsewhere": lambda document: with_shard(document, dead=a_file(name="../x", count=1)),
    "a column elsewhere": lambda document: with_shard(document, columns={"label": a_file(name="..")}),
    "a column of no size": lambda document: with_shard(document, columns={"label": a_file(bytes=-1)}),
    "statistics of more rows": lambda document: with_shard(
        document, statistics={"label": {"min": 0, "max": 6, "nulls": 3001}}
    ),
    "no format": lambda document: {key: value for key, value in document.items() if key != "format_version"},
}


def a_file(**changes):
    return {"name": "x", "bytes": 1, "sha256": "0" * 64} | changes


def with_shard(document, **changes):
    return document | {"shards": [document["shards"][0] | changes]}


def with_files(document, changes):
    files = document["shards"][0]["files"] | changes
    return with_shard(document, files={name: spec for name, spec in files.items() if spec})


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_that_make_no_sense_are_refused(collection, case):
    document = json.loads(manifest_of(collection).read_bytes())
    publish_bytes(collection, json.dumps(MANIFESTS[case](document)).encode())
    with pytest.raises(CorruptDataError, match=r"00000001-[0-9a-f]{64}\.json"):
        Collection.open(collection)


@pytest.mark.parametrize("data", [b"", b"null", b"3", b'"text"', b"\xff", b"[" * 100_000, b'{"format_version": 1}'])
def test_a_live_manifest_that_is_no_manifest_is_refused(collection, data):
    publish_bytes(collection, data)
    with pytest.raises(CorruptDataError, match=r"00000001-[0-9a-f]{64}\.json is not a readable manifest"):
        Collection.open(collection)


def test_a_damaged_manifest_of_an_earlier_version_is_refused(collection):
    codes, _, table, features = contents()
    Collection.open(collection).add(codes, attributes=table, features=features)
    place, (path,) = Folder(collection), (collection / "manifests").glob("00000001-*.json")
    assert read_version(place, 1).rows == ROWS
    data, refused = path.read_bytes(), 0
    for position in range(0, len(data), 11):
        if data[position : position + 1].isspace():
            continue
        broken = bytearray(data)
        broken[position] ^= 1
        replace(path, bytes(broken))
        with pytest.raises(CorruptDataError, match=r"00000001-[0-9a-f]{64}\.json"):
            read_version(place, 1)
        refused += 1
    assert refused > 100
    replace(path, data)
    assert read_version(place, 1).rows == ROWS


def test_a_manifest_under_another_versions_name_is_refused(collection):
    codes, _, table, features = contents()
    (first,) = (collection / "manifests").iterdir()
    Collection.open(collection).add(codes, attributes=table, features=features)
    second = manifest_of(collection)
    replace(first, second.read_bytes())
    with pytest.raises(CorruptDataError, match=rf"{first.name} is damaged: expected SHA-256 {first.name[9:25]}"):
        read_version(Folder(collection), 1)
    named = collection / "manifests" / f"00000003{second.name[8:]}"
    replace(named, second.read_bytes())
    replace(collection / "CURRENT", f"{named.name}\n".encode())
    with pytest.raises(CorruptDataError, match=rf"{named.name} is the manifest of version 2"):
        Collection.open(collection)


@pytest.mark.parametrize("own_checksum", [True, False])
def test_manifests_of_the_first_format_are_read(collection, own_checksum):
    publish_first_format(collection, own_checksum=own_checksum)
    assert read_current(Folder(collection)).rows == len(Collection.open(collection)) == ROWS


def test_what_was_checked_once_is_not_checked_again(collection, monkeypatch):
    shards = []
    monkeypatch.setattr("hashlight.engine.storage.checking.check_shard", lambda *args, **options: shards.append(args))
    Collection.open(collection)
    assert shards == [], "this process wrote it"
    data = array_of(collection, "ids.npy")
    forge(collection, "ids.npy", npy(data))
    for _ in range(3):
        Collection.open(collection)
    assert len(shards) == 1
    Collection.open(collection, verify=True)
    assert len(shards) == 2
