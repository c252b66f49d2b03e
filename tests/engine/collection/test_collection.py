"""Collections on disk: exact answers with any number of shards, and no data lost in any failure."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import faiss
import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.draft import new_shard
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import (
    CollectionBusyError,
    CollectionExistsError,
    CollectionNotFoundError,
    CorruptDataError,
    EncoderMismatchError,
    IdNotFoundError,
)
from hashlight.engine.places.folder import Folder
from hashlight.engine.storage import leftovers
from hashlight.engine.storage.leftovers import Intent
from hashlight.engine.storage.shard import write_shard
from hashlight.engine.storage.versions import publish
from tests import oracles

BITS = 48


@pytest.fixture(scope="module")
def corpus():
    """3,000 codes with many ties, shuffled ids, and 500 queries."""
    rng = np.random.default_rng(5)
    codes = oracles.clustered_codes(rng, 3000, BITS, centres=40, flips=6)
    ids = rng.permutation(10**6)[:3000]
    queries = oracles.clustered_codes(np.random.default_rng(5), 500, BITS, centres=40, flips=4)
    return codes, ids, queries


def make(path, corpus, shards=4, **options):
    codes, ids, _ = corpus
    attributes = {"uri": [f"image-{id_}.png" for id_ in ids], "label": ids % 7}
    return Collection.create(path, codes, ids=ids, attributes=attributes, bits=BITS, shards=shards, **options)


@pytest.mark.parametrize(("shards", "tables"), [(1, True), (2, True), (4, True), (7, True), (3, False)])
def test_answers_equal_the_oracle_whatever_the_shards(tmp_path, corpus, shards, tables):
    codes, ids, queries = corpus
    collection = make(tmp_path / "c", corpus, shards, tables=tables)
    expected_distances, expected_ids = oracles.knn(queries, codes, ids, 25)
    found = collection.search(queries, 25)
    np.testing.assert_array_equal(found.distances, expected_distances)
    np.testing.assert_array_equal(found.ids, expected_ids)
    for limit in (None, 5):
        within, cut = oracles.within_radius(queries, codes, ids, 3, limit)
        result = collection.range_search(queries, 3, limit)
        got = [
            list(zip(result.distances[a:b].tolist(), result.ids[a:b].tolist(), strict=True))
            for a, b in zip(result.lims, result.lims[1:], strict=False)
        ]
        assert got == within
        assert result.truncated.tolist() == cut
        assert sum(map(len, within)) > 500, "an empty answer must not pass"


def test_shards_give_the_same_bytes(tmp_path, corpus):
    answers = set()
    for shards in (1, 2, 4, 7):
        collection = make(tmp_path / str(shards), corpus, shards)
        search = collection.search(corpus[2], 10)
        within = collection.range_search(corpus[2], 4)
        answers.add(b"".join(array.tobytes() for array in (*search[:2], *within[:4])))
        assert [array.dtype for array in (*search[:2], *within[:4])] == [
            np.int32, np.int64, np.int64, np.int32, np.int64, np.bool_,
        ]  # fmt: skip
    assert len(answers) == 1


@pytest.mark.parametrize("tables", [True, False])
def test_single_queries_and_any_threads_give_the_same(tmp_path, corpus, tables):
    collection = make(tmp_path / "c", corpus, 4, tables=tables)
    queries = corpus[2][:60]
    together = collection.range_search(queries, 4), collection.search(queries, 9)
    for threads in (None, 1, 3):
        alone = [collection.range_search(queries[q : q + 1], 4, threads=threads) for q in range(60)]
        np.testing.assert_array_equal(np.concatenate([one.ids for one in alone]), together[0].ids)
        alone = [collection.search(queries[q : q + 1], 9, threads=threads) for q in range(60)]
        np.testing.assert_array_equal(np.concatenate([one.ids for one in alone]), together[1].ids)


def test_explain_adds_up_over_shards(tmp_path, corpus):
    queries = corpus[2][:5]
    explained = make(tmp_path / "c", corpus, 4, tables=False).range_search(queries, 3, explain=True).explain
    assert explained.plans == ("scan",) * 5
    assert explained.candidates.tolist() == [3000] * 5
    assert (explained.seconds > 0).all()
    assert make(tmp_path / "d", corpus, 4).search(queries, 3).explain is None


def test_coverage_reports_what_was_searched(tmp_path, corpus):
    coverage = make(tmp_path / "c", corpus).search(corpus[2][:1], 1).coverage
    assert (coverage.shards, coverage.answered, coverage.codes, coverage.searched) == (4, 4, 3000, 3000)
    assert coverage.complete
    assert coverage.version == 1


def test_faiss_opens_every_shard(tmp_path, corpus):
    collection = make(tmp_path / "c", corpus)
    stored = set()
    for shard in collection.shards:
        index = faiss.read_index_binary(str(tmp_path / "c" / "shards" / shard.name / "codes.faiss"))
        assert (index.d, index.ntotal) == (64, len(shard))
        words = faiss.vector_to_array(index.xb).view(np.uint64)
        stored |= set(zip(words.tolist(), shard.ids_N.tolist(), strict=True))
    assert stored == set(zip(corpus[0][:, 0].tolist(), corpus[1].tolist(), strict=True))


@pytest.mark.parametrize("ids", [[1.5], ["1"], [[0, 1]]])
def test_get_takes_nothing_but_a_list_of_whole_numbers_for_ids(tmp_path, ids):
    collection = Collection.create(tmp_path / "c", np.arange(4, dtype=np.uint64)[:, None])
    with pytest.raises((TypeError, ValueError), match="`ids` must"):
        collection.get(ids)


def test_get_returns_codes_and_attributes_in_the_requested_order(tmp_path, corpus):
    codes, ids, _ = corpus
    collection = make(tmp_path / "c", corpus)
    rows = [2999, 0, 1500, 0]
    items = collection.get(ids[rows])
    assert items["id"].to_pylist() == ids[rows].tolist()
    assert items["code"].to_pylist() == [codes[row].tobytes() for row in rows]
    assert items["uri"].to_pylist() == [f"image-{ids[row]}.png" for row in rows]
    assert items["label"].to_pylist() == (ids[rows] % 7).tolist()
    with pytest.raises(IdNotFoundError, match=r"1 of 2 ids was not found: -1 \(-1 pads short answers"):
        collection.get([int(ids[0]), -1])
    assert len(collection.get([])) == 0


def test_k_beyond_n_pads(tmp_path):
    collection = Collection.create(tmp_path / "c", np.array([[1], [3]], np.uint64), bits=16, shards=2)
    found = collection.search(np.array([[0]], np.uint64), k=4)
    assert found.ids.tolist() == [[0, 1, -1, -1]]
    assert found.distances.tolist() == [[1, 2, 2**31 - 1, 2**31 - 1]]


def test_an_open_collection_keeps_its_version(tmp_path, corpus):
    codes, ids, queries = corpus
    old = make(tmp_path / "c", corpus)
    before = old.search(queries[:50], 5)
    for step in range(3):
        new = Collection.create(tmp_path / "c", codes[: 100 * (step + 1)], bits=BITS, overwrite=True)
    after = old.search(queries[:50], 5)
    np.testing.assert_array_equal(before.ids, after.ids)
    assert old.get(ids[:3])["label"].to_pylist() == (ids[:3] % 7).tolist()
    assert (old.version, new.version, len(new)) == (1, 4, 300)
    assert len(list((tmp_path / "c" / "shards").iterdir())) == 6, "the live version, the one before, and the open one"


@pytest.mark.parametrize("name", ["codes.faiss", "ids.npy", "rows_by_id.npy", "attributes.arrow", "tables/entries.npy"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_files_are_named(tmp_path, corpus, name, damage):
    make(tmp_path / "c", corpus, shards=2)
    victim = sorted((tmp_path / "c" / "shards").glob(f"*/{name}"))[0]
    data = bytearray(victim.read_bytes())
    victim.unlink()
    if damage == "flip":
        data[len(data) // 2] ^= 0x10
        victim.write_bytes(data)
    elif damage == "truncate":
        victim.write_bytes(data[:-1])
    with pytest.raises(CorruptDataError, match=name.replace(".", r"\.")):
        Collection.open(tmp_path / "c")


def test_any_flipped_byte_of_a_manifest_is_refused(tmp_path, corpus):
    make(tmp_path / "c", corpus, shards=2)
    (path,) = (tmp_path / "c" / "manifests").iterdir()
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.choice(len(data), 200, replace=False):
        if data[position : position + 1].isspace():
            continue
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(7))
        path.write_bytes(broken)
        with pytest.raises(CorruptDataError, match=rf"{path.name} is damaged"):
            Collection.open(tmp_path / "c")
        refused += 1
    assert refused > 100
    path.write_bytes(data)
    assert len(Collection.open(tmp_path / "c")) == 3000


def test_a_damaged_collection_can_be_replaced(tmp_path, corpus):
    make(tmp_path / "c", corpus)
    (manifest,) = (tmp_path / "c" / "manifests").iterdir()
    manifest.write_bytes(b"{}")
    with pytest.raises(CorruptDataError):
        make(tmp_path / "c", corpus)
    assert make(tmp_path / "c", corpus, overwrite=True).version == 2


def test_bad_arguments_leave_nothing_behind(tmp_path, corpus):
    codes, ids, _ = corpus
    path = tmp_path / "c"
    with pytest.raises(ValueError, match="1 to 3000"):
        Collection.create(path, codes, bits=BITS, shards=3001)
    with pytest.raises(ValueError, match="more than once"):
        Collection.create(path, codes, ids=ids * 0, bits=BITS)
    with pytest.raises(ValueError, match="3000 rows, one per code, got 2"):
        Collection.create(path, codes, bits=BITS, attributes={"uri": ["a", "b"]})
    for names in (["id", "uri"], ["code"], ["distance", "query"]):
        with pytest.raises(ValueError, match=rf"must not be named \{sorted(set(names) - {'uri'})}"):
            Collection.create(path, codes, bits=BITS, attributes=dict.fromkeys(names, ids))
    with pytest.raises(CollectionNotFoundError, match="hashlight build"):
        Collection.open(path)
    assert not list(tmp_path.glob("c/shards/*"))


def test_collections_with_attributes_of_reserved_names_are_readable(tmp_path, corpus):
    codes, ids, _ = corpus
    with Transaction(tmp_path / "c", fresh=Fresh(BITS, None)) as writer:
        with writer.new_shard() as folder:
            spec = write_shard(folder, codes, ids, pa.table({"query": ids % 7, "distance": ids}), bits=BITS)
        writer.check_shard(spec)
        writer.adopt([spec])
        writer.commit()
    collection = Collection.open(tmp_path / "c", verify=True)
    assert collection.get(ids[:5]).select(["query", "distance"]).to_pylist() == [
        {"query": id_ % 7, "distance": id_} for id_ in ids[:5].tolist()
    ]
    kept = ids % 7 == 3
    expected = oracles.knn(codes[:4], codes[kept], ids[kept], 6)[1]
    assert collection.search(codes[:4], 6, filter="query == 3 and distance >= 0").ids.tolist() == expected.tolist()


def test_foreign_folders_are_left_alone(tmp_path, corpus):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(CollectionExistsError, match=r"photo\.png"):
        make(tmp_path, corpus)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
    make(tmp_path / "c", corpus)
    with pytest.raises(CollectionExistsError, match="version 1, 3,000 codes"):
        make(tmp_path / "c", corpus)


def test_of_two_that_create_a_collection_the_later_is_refused(tmp_path, corpus):
    codes, _, _ = corpus
    with Transaction(tmp_path / "c", fresh=Fresh(BITS, None)) as later:
        later.add(codes[:7])
        make(tmp_path / "c", corpus)
        with pytest.raises(CollectionExistsError, match="made by another process meanwhile"):
            later.commit()
    with Transaction(tmp_path / "c", fresh=Fresh(BITS, None, overwrite=True)) as later:
        later.add(codes[:7])
        make(tmp_path / "c", corpus, overwrite=True)
        with pytest.raises(CollectionBusyError, match="another process meanwhile"):
            later.commit()
    assert len(Collection.open(tmp_path / "c", verify=True)) == 3000
    assert len(names_in(tmp_path / "c")) == 8, "nothing is left of the refused writes"


def test_attributes_with_missing_values_come_back(tmp_path):
    attributes = pa.table({"caption": pa.array(["a", None, "c"]), "tags": pa.array([["x"], [], None])})
    codes = np.array([[5], [1], [3]], np.uint64)
    collection = Collection.create(tmp_path / "c", codes, attributes=attributes, shards=3)
    assert collection.get([0, 1, 2]).select(["caption", "tags"]).to_pylist() == attributes.to_pylist()


class Stop(BaseException):
    """Simulates a kill: only the clean-up of contexts runs after it."""


@pytest.mark.parametrize("first", [True, False])
def test_a_write_stopped_at_any_step_leaves_the_old_version_or_the_new(tmp_path, monkeypatch, corpus, first):
    codes = corpus[0]
    stops = 0
    for step in itertools.count(1):
        path = tmp_path / str(step)
        if not first:
            Collection.create(path, codes[:50], bits=BITS)
        with monkeypatch.context() as patch:
            calls = itertools.count(1)
            for module, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (shutil, "rmtree")):
                patch.setattr(module, name, stopping(getattr(module, name), calls, step))
            try:
                Collection.create(path, codes[:80], bits=BITS, shards=2, overwrite=not first)
                break
            except Stop:
                stops += 1
        if first and not (path / "CURRENT").exists():
            with pytest.raises(CollectionNotFoundError):
                Collection.open(path)
        else:
            assert len(Collection.open(path, verify=True)) in ((80,) if first else (50, 80))
        assert len(Collection.create(path, codes[:90], bits=BITS, overwrite=True)) == 90
        assert len(list((path / "shards").iterdir())) <= 3
    assert stops > 15


def stopping(function, calls, step):
    """Wrap `function` so that it stops at step `step`; each call has two steps, one before and one after its work."""

    def run(*arguments, **options):
        if next(calls) == step:
            raise Stop
        result = function(*arguments, **options)
        if next(calls) == step:
            raise Stop
        return result

    return run


def test_an_encoder_in_the_folder_is_not_mistaken_for_a_collection(tmp_path, corpus):
    (tmp_path / "work" / "encoder").mkdir(parents=True)
    (tmp_path / "work" / "encoder" / "config.json").write_text("{}")
    with pytest.raises(CollectionExistsError, match="it has encoder"):
        make(tmp_path / "work", corpus)
    assert (tmp_path / "work" / "encoder" / "config.json").exists()


def test_a_missing_current_is_not_mistaken_for_an_empty_folder(tmp_path, corpus):
    make(tmp_path / "c", corpus)
    (tmp_path / "c" / "CURRENT").unlink()
    with pytest.raises(CorruptDataError, match="can be replaced"):
        make(tmp_path / "c", corpus)
    assert len(list((tmp_path / "c" / "shards").iterdir())) == 4
    assert make(tmp_path / "c", corpus, overwrite=True).version == 2


def test_any_flipped_bit_of_current_is_refused(tmp_path, corpus):
    make(tmp_path / "c", corpus)
    make(tmp_path / "c", corpus, overwrite=True)
    path = tmp_path / "c" / "CURRENT"
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(CorruptDataError):
            Collection.open(tmp_path / "c")


def test_a_damaged_copy_of_the_encoder_is_replaced(tmp_path, corpus):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text('{"bits": 48}')
    for overwrite in (False, True):
        collection = make(tmp_path / "c", corpus, encoder=tmp_path / "encoder", fingerprint="f", overwrite=overwrite)
        assert (collection.encoder_path / "config.json").read_text() == '{"bits": 48}'
        (collection.encoder_path / "config.json").write_text("{")


WRITER = """
    import sys
    import numpy as np
    from hashlight.engine.collection.collection import Collection
    codes = np.random.default_rng(1).integers(2**48, size=(200_000, 1), dtype=np.uint64)
    print("ready", flush=True)
    while True:
        Collection.create(sys.argv[1], codes, bits=48, shards=4, overwrite=True)
        print("published", flush=True)
"""


def test_a_killed_writer_leaves_a_complete_collection(tmp_path, corpus):
    make(tmp_path / "c", corpus)
    rng = np.random.default_rng(2)
    for attempt in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path / "c")],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        with writer:
            writer.stdout.readline()
            if attempt == 0:
                writer.stdout.readline()
            time.sleep(rng.uniform(0.05, 1.0))
            writer.send_signal(signal.SIGKILL)
        survivor = Collection.open(tmp_path / "c", verify=True)
        assert survivor.search(corpus[2][:1], 1).coverage.complete
        assert len(survivor) == 200_000, "the first writer published before it was killed"
    assert make(tmp_path / "c", corpus, overwrite=True).search(corpus[2], 1).coverage.codes == 3000


def test_add_equals_a_single_write(tmp_path, corpus):
    codes, ids, queries = corpus
    labels = {"label": (ids % 7).tolist()}
    old = Collection.create(
        tmp_path / "c", codes[:2000], ids=ids[:2000], attributes={"label": labels["label"][:2000]}, bits=BITS
    )
    new = old.add(codes[2000:], ids=ids[2000:], attributes={"label": labels["label"][2000:]}, shards=2)
    distances, nearest = oracles.knn(queries, codes, ids, 5)
    np.testing.assert_array_equal(new.search(queries, 5).ids, nearest)
    np.testing.assert_array_equal(new.search(queries, 5).distances, distances)
    assert new.get(ids[[1, 2500]])["label"].to_pylist() == (ids[[1, 2500]] % 7).tolist()
    assert (len(old), len(new), new.version) == (2000, 3000, 2)
    numbered = new.add(codes[:2], attributes={"label": [1, 2]})
    assert numbered.get([ids.max() + 1, ids.max() + 2])["label"].to_pylist() == [1, 2]


def test_add_refuses_mismatched_data(tmp_path, corpus):
    codes, ids, _ = corpus
    collection = make(tmp_path / "c", corpus, shards=2)
    before = sorted((tmp_path / "c").rglob("*"))
    attributes = {"uri": ["x"], "label": [1]}
    with pytest.raises(ValueError, match=rf"id {ids[5]} is in .*/c already: replace what is there \(`upsert`, "):
        collection.add(codes[:1], ids=ids[5:6], attributes=attributes)
    for wrong, message in [
        ({"kind": ["x"]}, r"stores attributes uri \(string\), label \(int64\), got attribute kind .*`set_column`"),
        ({"label": ["x"]}, r"got attribute label \(string\): cast it to int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            collection.add(codes[:1], attributes=wrong)
    with pytest.raises(ValueError, match="stores none beside its codes, got features of 3 dimensions: leave them out"):
        collection.add(codes[:1], features=np.ones((1, 3), np.float16))
    fine = Collection.create(tmp_path / "fine", codes[:2], bits=collection.bits, features=np.ones((2, 3), np.float16))
    with pytest.raises(
        ValueError, match=r"stores features of 3 dimensions .*got none: give .*`hashlight encode --features`"
    ):
        fine.add(codes[2:3])
    with pytest.raises(ValueError, match="words per code"):
        collection.add(np.zeros((1, 2), np.uint64))
    with (
        collection.transaction() as change,
        pytest.raises(EncoderMismatchError, match="stores 48-bit codes of encoder unknown, got 40-bit codes"),
    ):
        change.require(bits=40, encoder="a" * 64)
    with pytest.raises(CollectionNotFoundError):
        Transaction(tmp_path / "d").__enter__()
    assert not (tmp_path / "d").exists()
    assert sorted((tmp_path / "c").rglob("*")) == before


def leave(path, prefix, text='{"until_gone": null}'):
    """What a writer leaves that was killed before it committed, but the shard, which is a copy."""
    (path / "intents").mkdir(exist_ok=True)
    (path / "intents" / prefix).write_text(text)
    shutil.copytree(next((path / "shards").iterdir()), path / "shards" / f"{prefix}-0001")
    for folder in ("deletions", "columns", "encoder"):
        (path / folder).mkdir(exist_ok=True)
        (path / folder / f"{prefix}-0002").write_bytes(b"x")


def names_in(path):
    return {f"{file.parent.name}/{file.name}" for file in path.glob("*/*") if file.parent.name != "manifests"}


@pytest.mark.parametrize("text", ['{"until_gone": null}', '{"until_gone": "build/sidecars/00000.json"}', "{", ""])
def test_leftovers_of_dead_writers_are_removed_even_if_the_next_write_fails(tmp_path, corpus, text):
    make(tmp_path / "c", corpus, shards=2)
    make(tmp_path / "c", corpus, shards=3, overwrite=True)
    kept = names_in(tmp_path / "c")
    assert len(kept) == 5, "the live version and the one before it"
    for fresh in (None, Fresh(BITS, None, overwrite=True)):
        leave(tmp_path / "c", "f" * 32, text)
        with pytest.raises(KeyboardInterrupt), Transaction(tmp_path / "c", fresh=fresh):
            raise KeyboardInterrupt
        assert names_in(tmp_path / "c") == kept
    assert len(Collection.open(tmp_path / "c", verify=True)) == 3000


def test_what_nobody_announced_is_nobodys_leftover(tmp_path, corpus):
    make(tmp_path / "c", corpus, shards=2)
    (tmp_path / "c" / "shards" / "mine").mkdir()
    make(tmp_path / "c", corpus, shards=2, overwrite=True)
    assert (tmp_path / "c" / "shards" / "mine").is_dir()


def test_what_a_living_writer_makes_stays(tmp_path, corpus):
    make(tmp_path / "c", corpus, shards=2)
    with Intent(Folder(tmp_path / "c")) as intent:
        (tmp_path / "c" / "shards" / intent.new_name("shards")).mkdir()
        for _ in range(3):
            make(tmp_path / "c", corpus, overwrite=True)
        assert len(names_in(tmp_path / "c")) == 4 + 4 + 2, "two versions, its shard and its announcement"
    assert len(names_in(tmp_path / "c")) == 8


def test_nothing_is_removed_if_a_manifest_cannot_be_read(tmp_path, corpus):
    make(tmp_path / "c", corpus, shards=2)
    (first,) = (tmp_path / "c" / "manifests").iterdir()
    make(tmp_path / "c", corpus, shards=3, overwrite=True)
    leave(tmp_path / "c", "f" * 32)
    whole = first.read_bytes()
    first.write_bytes(b"{")
    kept = names_in(tmp_path / "c")
    for left in (kept, kept - {name for name in kept if "f" * 32 in name}):
        with pytest.raises(KeyboardInterrupt), Transaction(tmp_path / "c"):
            raise KeyboardInterrupt
        assert names_in(tmp_path / "c") == left
        first.write_bytes(whole)


def test_a_writer_that_dies_as_it_commits_loses_nothing(tmp_path, corpus, monkeypatch):
    """It is found dead only after the manifests were read that are to say what is kept."""
    codes, _, _ = corpus
    collection = make(tmp_path / "c", corpus, shards=2)
    place = Folder(tmp_path / "c")
    dying = Intent(place)
    with new_shard(place, dying) as folder:
        spec = write_shard(folder, codes[:9], np.arange(9) + 10**7, None, bits=BITS)
    real = leftovers.claim

    def commit_first(path):
        if path.parent.name == "intents":
            live = collection.manifest
            assert publish(
                place,
                dataclasses.replace(live, version=2, parent=live.file_name, shards=(spec,), next_id=10**8),
                place.find("CURRENT"),
                in_doubt=lambda: None,
            )
            dying.abandon()
            monkeypatch.undo()
        return real(path)

    monkeypatch.setattr(leftovers, "claim", commit_first)
    leftovers.sweep_intents(place)
    assert not list((tmp_path / "c" / "intents").iterdir())
    assert len(Collection.open(tmp_path / "c", verify=True)) == 9
