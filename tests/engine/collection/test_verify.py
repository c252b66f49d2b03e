"""Every kind of damage is found by its name, and either mended, so that all is as before, or said not to be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.verifying import verify as verifying
from hashlight.engine.collection.verifying.shards import check_column
from hashlight.engine.errors import CollectionNotFoundError
from hashlight.engine.storage import scalars
from tests import oracles
from tests.engine.collection.by_hand import arrow_file, npy_file
from tests.engine.collection.contents import contents
from tests.engine.storage.forging import forge_manifest, manifest_of, publish, replace, sha256

FIRST_FORMAT = Path(__file__).parents[2] / "data" / "format1"
BITS = 40
RNG = np.random.default_rng(17)
CODES = RNG.integers(2**BITS, size=(260, 1), dtype=np.uint64)
QUERIES = CODES[:5] ^ np.uint64(5)
LABELS = [None if n % 7 == 0 else n % 5 for n in range(260)]
DEAD = [3, 90, 155]


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """Version 4 of a collection: two shards, deleted rows in the first, and a column that was set later."""
    path = tmp_path_factory.mktemp("verify") / "c"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scalars, "MIN_ROWS", 50)
        made = Collection.create(
            path, CODES[:200], ids=np.arange(200), bits=BITS, features=np.ones((200, 2), np.float16),
            attributes={"label": pa.array(LABELS[:200], pa.int64()), "name": [f"n{n % 9}" for n in range(200)]},
        )  # fmt: skip
        made = made.add(
            CODES[200:], ids=np.arange(500, 560), features=np.ones((60, 2), np.float16), thumbnails=[b"jpg"] * 60,
            attributes={"label": pa.array(LABELS[200:], pa.int64()), "name": ["x"] * 60},
        )  # fmt: skip
        made.delete(DEAD).set_column("price", [1.5, -2.5], ids=[7, 510])
    return path


@pytest.fixture
def damaged(master, tmp_path, monkeypatch):
    monkeypatch.setattr(scalars, "MIN_ROWS", 50)
    return shutil.copytree(master, tmp_path / "c")


def document_of(path):
    return json.loads(manifest_of(path).read_bytes())


def read(path):
    return contents(lambda name: (path / name).read_bytes())


def kinds(report):
    return sorted((fault.kind, fault.is_mendable) for fault in report.faults)


def check_answers(path):
    """Compare answers with a brute-force search through what the files hold."""
    rows = read(path)
    ids = np.array(sorted(rows))
    codes = np.array([rows[id_][0] for id_ in ids.tolist()], np.uint64)
    opened = Collection.open(path, verify=True)
    for index in ("multi", "scan"):
        found = Collection.open(path, index=index)
        assert found.search(QUERIES, k=9).ids.tolist() == oracles.knn(QUERIES, codes, ids, 9)[1].tolist()
    wanted = sorted(id_ for id_ in rows if rows[id_][1]["label"] == 2)
    assert sorted(opened.scan(filter="label == 2").read_all()["id"].to_pylist()) == wanted
    assert opened.get(ids)["id"].to_pylist() == ids.tolist()


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    replace(path, bytes(data))


def shard_path(path, name, number=0):
    return path / "shards" / document_of(path)["shards"][number]["name"] / name


def put_forged(path, name, data, number=0):
    """Replace a file of a shard, with its checksum in the live manifest; versions before keep the old one."""
    document = document_of(path)
    replace(path / "shards" / document["shards"][number]["name"] / name, data)
    document["shards"][number]["files"][name] = {"bytes": len(data), "sha256": sha256(data)}
    forget_history(path, document)


def forget_history(path, document):
    """Write the live manifest as one that keeps no version before it."""
    document |= {"oldest": document["version"], "parent": None}
    old = list((path / "manifests").iterdir())
    publish(path, document)
    for each in set(old) - {manifest_of(path)}:
        each.unlink()


def change_live(path, change):
    document = document_of(path)
    change(document)
    forget_history(path, document)


def forge_array(path, name, change, number=0):
    array = np.load(shard_path(path, name, number)).copy()
    put_forged(path, name, npy_file(change(array)), number)


def swap(first, second):
    def change(array):
        array[[first, second]] = array[[second, first]]
        return array

    return change


def put_changed(path, what, data, **more):
    """Replace the file of deleted rows, or of a column, of the first shard, with its checksum."""
    document = document_of(path)
    entry = document["shards"][0]["dead"] if what == "deletions" else document["shards"][0]["columns"]["price"]
    replace(path / what / entry["name"], data)
    entry |= {"bytes": len(data), "sha256": sha256(data), **more}
    forget_history(path, document)


def set_statistics(path, name, **values):
    change_live(path, lambda document: document["shards"][0]["statistics"][name].update(values))


def dead_file(path):
    return path / "deletions" / document_of(path)["shards"][0]["dead"]["name"]


def column_file(path):
    return path / "columns" / document_of(path)["shards"][0]["columns"]["price"]["name"]


def codes_file(path):
    return shard_path(path, "codes.faiss").read_bytes()


def own_rows(path):
    return np.load(dead_file(path))


def test_a_sound_collection_is_sound(damaged):
    report = Collection.verify(damaged)
    assert report.is_sound
    assert (report.version, report.versions, report.shards, report.rows) == (4, (4, 3, 2, 1), 2, 260)
    assert Collection.verify(damaged, live_only=True).versions == (4,)
    repaired = Collection.verify(damaged, repair=True)
    assert repaired.is_sound
    assert repaired.version == 4
    assert not repaired.mended


# What is planted, the kind of fault, and whether the checksum is right.
MENDED = {
    "a table is damaged": (lambda path: flip(shard_path(path, "tables/entries.npy")), "checksum"),
    "a table is gone": (lambda path: shard_path(path, "tables/starts.npy").unlink(), "missing"),
    "a table is of other codes": (
        lambda path: forge_array(path, "tables/entries.npy", lambda array: array[::-1].copy()), "tables"),
    "rows by id are damaged": (lambda path: flip(shard_path(path, "rows_by_id.npy")), "checksum"),
    "rows by id are gone": (lambda path: shard_path(path, "rows_by_id.npy").unlink(), "missing"),
    "rows by id are in another order": (lambda path: forge_array(path, "rows_by_id.npy", swap(4, 9)), "rows-by-id"),
    "scalars are damaged": (lambda path: flip(shard_path(path, "scalars.arrow"), 900), "checksum"),
    "scalars are gone": (lambda path: shard_path(path, "scalars.arrow").unlink(), "missing"),
    "scalars are not the attributes": (
        lambda path: put_forged(path, "scalars.arrow", shard_path(path, "attributes.arrow").read_bytes()), "scalars"),
    "a bound is too low": (lambda path: set_statistics(path, "label", max=1), "statistics"),
    "nulls are miscounted": (lambda path: set_statistics(path, "label", nulls=0), "statistics"),
    "a bound of a later column is wrong": (lambda path: set_statistics(path, "price", min=3.5), "statistics"),
    "the range of ids is too small": (
        lambda path: change_live(path, lambda document: document["shards"][0].update(ids=[0, 9])), "id-range"),
    "deleted rows are out of order": (
        lambda path: put_changed(path, "deletions", npy_file(own_rows(path)[::-1].copy())), "dead-rows"),
    "there is a leftover": (lambda path: (path / "columns" / "somebody").write_bytes(b"x"), "leftover"),
    "a folder is left over": (
        lambda path: shutil.copytree(shard_path(path, "."), path / "shards" / f"{'0' * 32}-0001"), "leftover"),
}  # fmt: skip


@pytest.mark.parametrize("what", MENDED)
def test_what_can_be_made_again_is_mended(damaged, what):
    before = read(damaged)
    plant, kind = MENDED[what]
    plant(damaged)
    report = Collection.verify(damaged)
    live = [fault for fault in report.faults if fault.is_mendable]
    assert [fault.kind for fault in live] == [kind], report
    assert not report.is_sound
    repaired = Collection.verify(damaged, live_only=True, repair=True)
    assert repaired.is_sound, repaired
    assert [fault.kind for fault in repaired.mended] == [kind]
    assert read(damaged) == before
    check_answers(damaged)


def test_rows_out_of_order_are_sorted(damaged):
    """The second shard, which has no deleted rows, is written backwards, with all that belongs to its rows."""
    before = read(damaged)
    put_forged(damaged, "ids.npy", npy_file(np.load(shard_path(damaged, "ids.npy", 1))[::-1].copy()), 1)
    data = shard_path(damaged, "codes.faiss", 1).read_bytes()
    codes = np.frombuffer(data, "<u8", offset=33)[::-1].tobytes()
    put_forged(damaged, "codes.faiss", data[:33] + codes, 1)
    for name in ("attributes.arrow", "thumbnails.arrow"):
        table = pa.ipc.open_file(shard_path(damaged, name, 1).read_bytes()).read_all()
        table = table.take(list(range(59, -1, -1))).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        put_forged(damaged, name, sink.getvalue().to_pybytes(), 1)
    document = document_of(damaged)
    entry = document["shards"][1]["columns"]["price"]
    prices = pa.ipc.open_file((damaged / "columns" / entry["name"]).read_bytes()).read_all()["price"].to_pylist()[::-1]
    data = arrow_file("price", pa.array(prices, pa.float64()))
    replace(damaged / "columns" / entry["name"], data)
    entry |= {"bytes": len(data), "sha256": sha256(data)}
    forget_history(damaged, document)
    assert read(damaged) == before
    assert ("order", True) in kinds(Collection.verify(damaged))
    assert Collection.verify(damaged, live_only=True, repair=True).is_sound
    assert read(damaged) == before
    check_answers(damaged)


def test_the_next_id_is_raised(damaged):
    change_live(damaged, lambda document: (document["shards"][1].update(ids=[500, 520]), document.update(next_id=521)))
    assert kinds(Collection.verify(damaged)) == [("id-range", True), ("next-id", True)]
    assert Collection.verify(damaged, live_only=True, repair=True).is_sound
    assert document_of(damaged)["next_id"] == 560
    added = Collection.open(damaged).add(CODES[:1], features=np.ones((1, 2), np.float16))
    assert 560 in added.scan().read_all()["id"].to_pylist()


def test_the_next_id_is_raised_though_its_shard_is_lost(damaged):
    shard_path(damaged, "features.npy", 1).unlink()
    change_live(damaged, lambda document: (document["shards"][1].update(ids=[500, 520]), document.update(next_id=521)))
    left = Collection.verify(damaged, live_only=True, repair=True)
    assert kinds(left) == [("id-range", True), ("missing", False)]
    assert [fault.kind for fault in left.mended] == ["next-id"]
    assert document_of(damaged)["next_id"] == 560


LOST = {
    "codes are damaged": (lambda path: flip(shard_path(path, "codes.faiss")), "checksum"),
    "codes are gone": (lambda path: shard_path(path, "codes.faiss").unlink(), "missing"),
    "ids are damaged": (lambda path: flip(shard_path(path, "ids.npy")), "checksum"),
    "attributes are damaged": (lambda path: flip(shard_path(path, "attributes.arrow"), 400), "checksum"),
    "features are gone": (lambda path: shard_path(path, "features.npy").unlink(), "missing"),
    "thumbnails are damaged": (lambda path: flip(shard_path(path, "thumbnails.arrow", 1), 300), "checksum"),
    "a bit beyond the code is set": (
        lambda path: put_forged(path, "codes.faiss", codes_file(path)[:-1] + b"\1"), "codes"),
    "an id is negative": (
        lambda path: forge_array(path, "ids.npy", lambda array: np.where(array == 5, -5, array)), "ids"),
    "features are of another shape": (lambda path: forge_array(path, "features.npy", lambda a: a[:-1]), "features"),
    "attributes are something else": (
        lambda path: put_forged(path, "attributes.arrow", b"not Arrow at all, but long enough"), "attributes"),
    "thumbnails are something else": (
        lambda path: put_forged(path, "thumbnails.arrow", arrow_file("t", pa.array([1] * 60)), 1), "thumbnails"),
    "deleted rows are damaged": (lambda path: flip(dead_file(path)), "checksum"),
    "deleted rows are gone": (lambda path: dead_file(path).unlink(), "missing"),
    "a deleted row is beyond the shard": (
        lambda path: put_changed(path, "deletions", npy_file(np.array([1, 2, 200], np.uint32))), "dead-rows"),
    "a column is damaged": (lambda path: flip(column_file(path), 400), "checksum"),
    "a column is gone": (lambda path: column_file(path).unlink(), "missing"),
    "a column is of another type": (
        lambda path: put_changed(path, "columns", arrow_file("price", pa.array([1] * 200))), "column"),
    "an attribute is of another type": (
        lambda path: put_forged(path, "attributes.arrow", arrow_file("label", pa.array(["x"] * 200))), "attributes"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOST)
def test_what_is_lost_is_said(damaged, what):
    plant, kind = LOST[what]
    plant(damaged)
    report = Collection.verify(damaged, live_only=True)
    assert (kind, False) in kinds(report), report
    assert not report.is_sound
    said = next(fault for fault in report.faults if fault.kind == kind and not fault.is_mendable)
    assert "restore it from a copy" in str(said)
    assert "(version 4)" in str(said)
    current = (damaged / "CURRENT").read_bytes()
    repaired = Collection.verify(damaged, live_only=True, repair=True)
    assert (kind, False) in kinds(repaired)
    assert not repaired.mended
    assert (damaged / "CURRENT").read_bytes() == current


def test_one_damaged_shard_does_not_keep_another_from_being_mended(damaged):
    dead_file(damaged).unlink()
    flip(shard_path(damaged, "tables/entries.npy", 1))
    repaired = Collection.verify(damaged, live_only=True, repair=True)
    assert kinds(repaired) == [("missing", False)]
    assert [fault.kind for fault in repaired.mended] == ["checksum"]


def test_an_id_that_is_twice_is_found(damaged):
    forge_array(damaged, "ids.npy", lambda array: np.where(array == 8, 9, array))
    assert ("repeated-ids", False) in kinds(Collection.verify(damaged, repair=True))


def test_an_id_that_is_in_two_shards_is_found(damaged):
    def change(document):
        document["shards"][1]["ids"] = [0, 559]

    forge_array(damaged, "ids.npy", lambda array: np.where(array == 500, 0, array), 1)
    change_live(damaged, change)
    faults = Collection.verify(damaged).faults
    assert [(fault.kind, fault.where) for fault in faults if fault.kind == "repeated-ids"] == [
        ("repeated-ids", f"manifests/{manifest_of(damaged).name}")
    ]
    assert "1 id, first 0, in several shards" in str(next(f for f in faults if f.kind == "repeated-ids"))


def test_an_attribute_that_only_some_shards_have_is_no_fault(damaged):
    Collection.open(damaged).set_column("stars", [5], ids=[0])
    assert Collection.verify(damaged).is_sound
    before = read(damaged)
    number = next(i for i, shard in enumerate(document_of(damaged)["shards"]) if "stars" not in shard["columns"])
    change_live(damaged, lambda document: document["shards"][number]["statistics"]["stars"].update(nulls=3))
    assert kinds(Collection.verify(damaged)) == [("statistics", True)]
    assert Collection.verify(damaged, live_only=True, repair=True).is_sound
    assert read(damaged) == before


def test_versions_before_keep_what_they_have(damaged):
    flip(shard_path(damaged, "tables/entries.npy"))
    repaired = Collection.verify(damaged, repair=True)
    assert repaired.version == 5
    assert kinds(repaired) == [("checksum", False)]
    assert "only versions before the live one have it" in str(repaired.faults[0])
    assert "(versions 1 to 4)" in str(repaired.faults[0])
    pruned = Collection.open(damaged).prune(keep=1).prune(keep=1)
    assert Collection.verify(damaged).is_sound, pruned


def test_current_is_restored(damaged):
    before = read(damaged)
    for plant in (
        lambda: (damaged / "CURRENT").unlink(),
        lambda: (damaged / "CURRENT").write_text("?"),
        lambda: (damaged / "CURRENT").write_text(f"00000009-{'0' * 64}.json\n"),
    ):
        plant()
        assert kinds(Collection.verify(damaged)) == [("current", True)]
        assert Collection.verify(damaged, repair=True).is_sound
        assert read(damaged) == before
    check_answers(damaged)


def test_a_damaged_manifest_gives_way_to_the_version_before(damaged):
    flip(manifest_of(damaged))
    report = Collection.verify(damaged)
    assert report.version == 3
    repaired = Collection.verify(damaged, repair=True)
    # Nothing that the lost version had is removed while its manifest is there.
    assert kinds(repaired) == [("manifest", False)]
    assert len(read(damaged)) == 257
    assert Collection.open(damaged).version == 3
    assert len(list((damaged / "columns").iterdir())) == 2


def test_a_missing_manifest_leaves_its_files_until_the_next_repair(damaged):
    manifest_of(damaged).unlink()
    repaired = Collection.verify(damaged, repair=True)
    assert {fault.kind for fault in repaired.faults} == {"leftover"}
    assert Collection.verify(damaged, repair=True).is_sound
    assert len(read(damaged)) == 257


def test_a_hole_in_the_chain_and_a_lost_tag_are_found(damaged):
    Collection.open(damaged).tag("first", 1)
    manifests = sorted((damaged / "manifests").iterdir())
    manifests[1].unlink()
    assert kinds(Collection.verify(damaged)) == [("chain", False)]
    manifests[0].unlink()
    assert kinds(Collection.verify(damaged)) == [("chain", False), ("tag", False)]
    forge_manifest(damaged, lambda document: document.update(oldest=5))
    assert kinds(Collection.verify(damaged)) == [("tag", False)]


@pytest.mark.parametrize("name", ["everything", "plain", "tables", "types"])
def test_collections_of_the_first_format_are_sound_and_mended(tmp_path, name):
    path = shutil.copytree(FIRST_FORMAT / name / "collection", tmp_path / "c")
    assert Collection.verify(path).is_sound
    before = Collection.open(path)
    ids, attributes = before.scan().read_all()["id"], before.scan().read_all()
    (path / "shards" / before.shards[0].name / "rows_by_id.npy").unlink()
    (path / "CURRENT").unlink()
    repaired = Collection.verify(path, live_only=True, repair=True)
    assert repaired.is_sound
    assert sorted(fault.kind for fault in repaired.mended) == ["current", "missing"]
    after = Collection.open(path, verify=True)
    assert after.scan().read_all().equals(attributes)
    assert len(after) == len(ids)


def test_what_a_writer_is_making_is_no_leftover(damaged):
    opened = Collection.open(damaged)
    with opened.transaction() as change:
        change.add(CODES[:5], features=np.ones((5, 2), np.float16))
        assert len(list((damaged / "shards").iterdir())) == 3
        assert Collection.verify(damaged, repair=True).is_sound
        change.commit()
    assert Collection.verify(damaged).is_sound
    assert len(Collection.open(damaged)) == 262


def test_an_empty_collection_is_sound(damaged):
    Collection.open(damaged).delete(range(560))
    report = Collection.verify(damaged, live_only=True)
    assert (report.is_sound, report.shards, report.rows) == (True, 0, 0)


def test_there_must_be_a_collection(tmp_path):
    with pytest.raises(CollectionNotFoundError):
        Collection.verify(tmp_path / "none")
    with pytest.raises(CollectionNotFoundError):
        Collection.verify(tmp_path, repair=True)


def test_a_collection_in_a_bucket_is_mended(damaged, bucket):
    before = read(damaged)
    flip(shard_path(damaged, "tables/entries.npy"))
    shard_path(damaged, "rows_by_id.npy", 1).unlink()
    for file in damaged.rglob("*"):
        if file.is_file():
            bucket.put(f"c/{file.relative_to(damaged)}", file.read_bytes())
    report = Collection.verify(bucket.uri("c"), live_only=True)
    assert kinds(report) == [("checksum", True), ("missing", True)]
    assert Collection.verify(bucket.uri("c"), live_only=True, repair=True).is_sound
    assert contents(lambda name: bucket.get(f"c/{name}")) == before


def test_versions_that_are_let_go_meanwhile_are_no_fault(damaged, monkeypatch):
    def prune_first(*arguments, **options):
        opened = Collection.open(damaged)
        opened.delete([int(opened.scan().read_all()["id"][0].as_py())]).prune(keep=1)
        monkeypatch.undo()
        return check_column(*arguments, **options)

    Collection.open(damaged).delete([20])
    monkeypatch.setattr(verifying, "check_column", prune_first)
    assert Collection.verify(damaged).is_sound
    assert not {1, 2, 3} & {version.version for version in Collection.open(damaged).versions()}
