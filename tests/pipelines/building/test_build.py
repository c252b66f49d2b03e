"""Building on Ray: the same rows whatever the shards, and one commit: all of it or nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CollectionExistsError, CollectionNotFoundError, EncoderMismatchError
from hashlight.engine.places.opening import open_place
from hashlight.engine.storage import leftovers, shard
from hashlight.pipelines.building import shards
from hashlight.pipelines.building.build import BUILD, build_collection
from hashlight.pipelines.building.shards import ShardJob
from hashlight.pipelines.codes.parts import CODES, Piece, list_parts, part_name
from hashlight.pipelines.dedup.dedup import NEAR_DUPLICATES
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder
from tests import oracles
from tests.pipelines import elsewhere

pytestmark = pytest.mark.usefixtures("ray_session")

BITS = 48
FINGERPRINT = "f" * 64


def write_codes(folder, codes, ids, *, part_rows=700, fingerprint=FINGERPRINT, more=None):
    """Write a folder as `hashlight encode` leaves it, of codes that no encoder made."""
    for name in ("parts", "sidecars", "encoder"):
        (folder / name).mkdir(parents=True)
    (folder / "encoder" / "config.json").write_text("{}")
    for number, start in enumerate(range(0, len(codes), part_rows)):
        part = slice(start, start + part_rows)
        table = pa.table(
            {
                "id": ids[part],
                "code": pa.array([code.tobytes() for code in codes[part]], pa.binary(8 * codes.shape[1])),
                "uri": [f"{id_}.png" for id_ in ids[part]],
                **{name: column[part] for name, column in (more or {}).items()},
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
        (folder / part_name(number, sha256)).write_bytes(buffer.getvalue())
        sidecar = {"job": "j", "codes": len(table), "rejects": 0, "sha256": sha256}
        (folder / "sidecars" / f"{number:05d}.json").write_text(json.dumps(sidecar))
    summary = {"images": len(ids), "codes": len(ids), "rejects": 0, "bits": BITS, "encoder": fingerprint, "corpus": "c"}
    (folder / "codes.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def rows():
    """3,000 codes with many ties, unordered ids, and 60 queries."""
    rng = np.random.default_rng(11)
    codes = oracles.clustered_codes(rng, 3000, BITS, centres=40, flips=6)
    return codes, rng.choice(10**12, 3000, replace=False), codes[::50].copy()


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    return write_codes(tmp_path_factory.mktemp("codes") / "codes", *rows[:2])


def answers(collection, queries):
    return collection.search(queries, 20).ids.tolist(), collection.range_search(queries, 4).ids.tolist()


def files_of(path):
    """The bytes of all shards, in the manifest's order; shards have names of their own in every build."""
    current = (path / "CURRENT").read_text().split()[0]
    shards = json.loads((path / "manifests" / current).read_text())["shards"]
    return [
        {name: (path / "shards" / shard["name"] / name).read_bytes() for name in sorted(shard["files"])}
        for shard in shards
    ]


@pytest.mark.parametrize(
    ("size", "expected"), [({"shards": 4}, 4), ({"shard_rows": 1000}, 3), ({"shard_bytes": 60_000}, None), ({}, 1)]
)
def test_answers_do_not_depend_on_the_shards(tmp_path, rows, folder, size, expected):
    codes, ids, queries = rows
    build_collection(folder, tmp_path / "c", **size)
    built = Collection.open(tmp_path / "c")
    assert len(built.shards) == expected if expected else len(built.shards) > 1
    assert answers(built, queries)[0] == oracles.knn(queries, codes, ids, 20)[1].tolist()
    within, _ = oracles.within_radius(queries, codes, ids, 4)
    assert answers(built, queries)[1] == [id_ for pairs in within for _, id_ in pairs]
    assert built.get(ids[:5])["uri"].to_pylist() == [f"{id_}.png" for id_ in ids[:5]]


def test_a_byte_budget_is_roughly_kept(tmp_path, folder):
    build_collection(folder, tmp_path / "c", shard_bytes=60_000)
    (version,) = (tmp_path / "c" / "manifests").iterdir()
    sizes = [sum(f["bytes"] for f in shard["files"].values()) for shard in json.loads(version.read_text())["shards"]]
    assert 30_000 < max(sizes) < 90_000


def test_append_gives_what_one_build_would(tmp_path, rows):
    codes, ids, queries = rows
    first = write_codes(tmp_path / "first", codes[:1800], ids[:1800])
    second = write_codes(tmp_path / "second", codes[1800:], ids[1800:])
    build_collection(first, tmp_path / "c", shards=2)
    old = Collection.open(tmp_path / "c")
    build_collection(second, tmp_path / "c", shards=2, append=True)
    new = Collection.open(tmp_path / "c", verify=True)
    assert (len(old), len(new), new.version, len(new.shards)) == (1800, 3000, 2, 4)
    assert answers(new, queries)[0] == oracles.knn(queries, codes, ids, 20)[1].tolist()
    assert [shard.name for shard in new.shards[:2]] == [shard.name for shard in old.shards]


def test_an_upsert_replaces_the_rows_that_have_the_ids(tmp_path, rows):
    codes, ids, queries = rows
    build_collection(write_codes(tmp_path / "first", codes[:1800], ids[:1800]), tmp_path / "c", shards=2)
    again = np.concatenate([ids[:900], ids[2000:]])
    second = write_codes(tmp_path / "second", codes[1100:], again)
    done = build_collection(second, tmp_path / "c", shards=2, append=True, upsert=True)
    assert done == (2, 1900, 900)
    kept_ids, kept_codes = np.concatenate([ids[900:1800], again]), np.concatenate([codes[900:1800], codes[1100:]])
    new = Collection.open(tmp_path / "c")
    assert answers(new, queries)[0] == oracles.knn(queries, kept_codes, kept_ids, 20)[1].tolist()


def test_what_was_deleted_can_be_appended_again_unless_a_rollback_brings_it_back(tmp_path, rows, monkeypatch):
    codes, ids, _ = rows
    build_collection(write_codes(tmp_path / "first", codes[:100], ids[:100]), tmp_path / "c")
    Collection.open(tmp_path / "c").delete(ids[:10])
    again = write_codes(tmp_path / "again", codes[:10], ids[:10])
    step = "hashlight.pipelines.building.build.chaos.step"
    rollback = {"build:before-commit": lambda: Collection.open(tmp_path / "c").rollback(1)}
    with monkeypatch.context() as patch:
        patch.setattr(step, lambda name, *_: rollback.pop(name, bool)())
        with pytest.raises(ValueError, match=r"10 of 10 ids are in .*/c already"):
            build_collection(again, tmp_path / "c", append=True)
    assert not rollback
    assert Collection.open(tmp_path / "c").delete(ids[:10]).has(ids[:10]).sum() == 0
    assert build_collection(again, tmp_path / "c", append=True).added == 10
    assert Collection.open(tmp_path / "c").has(ids[:100]).all()


def test_append_refuses_mismatched_data(tmp_path, rows, folder):
    codes, ids, _ = rows
    with pytest.raises(CollectionNotFoundError):
        build_collection(folder, tmp_path / "c", append=True)
    assert not (tmp_path / "c").exists()
    build_collection(folder, tmp_path / "c")
    before = sorted(path for path in (tmp_path / "c").rglob("*"))
    with pytest.raises(ValueError, match=rf"{min(ids[:10])} and 9 others more than once in .*/c and the codes"):
        build_collection(write_codes(tmp_path / "again", codes[:10], ids[:10]), tmp_path / "c", append=True)
    other = write_codes(tmp_path / "other", codes[:10], np.arange(10), fingerprint="e" * 64)
    with pytest.raises(EncoderMismatchError, match=r"encoder ffffffffffff…, got 48-bit codes of encoder eeeeeeeeeeee…"):
        build_collection(other, tmp_path / "c", append=True)
    more = write_codes(tmp_path / "more", codes[:10], np.arange(10), more={"label": np.arange(10)})
    with pytest.raises(ValueError, match=r"stores attributes uri \(string\), got attribute label \(int64\), too"):
        build_collection(more, tmp_path / "c", append=True)
    with pytest.raises(CollectionExistsError, match="--append"):
        build_collection(folder, tmp_path / "c")
    assert sorted(path for path in (tmp_path / "c").rglob("*")) == before
    assert len(Collection.open(tmp_path / "c", verify=True)) == 3000


def test_ids_that_are_there_are_refused_before_a_shard_is_built(tmp_path, rows, folder, monkeypatch):
    codes, ids, _ = rows
    build_collection(folder, tmp_path / "c")
    before = sorted((tmp_path / "c").rglob("*"))
    built = []
    monkeypatch.setattr(
        "hashlight.pipelines.building.build.run_tasks", lambda *arguments: built.append(arguments) or ()
    )
    twice = write_codes(tmp_path / "twice", codes[:10], np.array([*range(9), 3]), part_rows=4)
    known = write_codes(tmp_path / "known", codes[:10], np.array([*range(9), ids[17]]), part_rows=4)
    with pytest.raises(
        ValueError,
        match=rf"got {ids[17]} more .* and the codes: .* with `hashlight encode --ids name:NAME`, which",
    ):
        build_collection(known, tmp_path / "c", append=True)
    with pytest.raises(ValueError, match=r"got 3 more than once in the codes: if"):
        build_collection(twice, tmp_path / "d")
    assert not built
    assert sorted((tmp_path / "c").rglob("*")) == before


def test_attributes_named_like_columns_of_answers_are_refused(tmp_path, rows):
    codes, ids, _ = rows
    folder = write_codes(tmp_path / "codes", codes[:10], ids[:10], more={"distance": np.arange(10)})
    with pytest.raises(PipelineError, match=r"must not be named \['distance'\]"):
        build_collection(folder, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_ids_that_occur_twice_in_different_shards_are_refused(tmp_path, rows, monkeypatch):
    monkeypatch.setattr("hashlight.engine.ids._BUFFER_IDS", 500)
    codes, ids, _ = rows
    ids = ids.copy()
    ids[2999] = ids[0]
    with pytest.raises(ValueError, match=rf"got {ids[0]} more than once in the codes: if"):
        build_collection(write_codes(tmp_path / "codes", codes, ids), tmp_path / "c", shards=4)
    assert not list((tmp_path / "c").rglob("*.npy"))


def test_a_damaged_part_is_refused(tmp_path, rows):
    folder = write_codes(tmp_path / "codes", *rows[:2])
    (part,) = (folder / "parts").glob("00002-*")
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(PipelineError, match=rf"{part.name} is damaged"):
        build_collection(folder, tmp_path / "c", shards=3)
    with pytest.raises(CollectionNotFoundError):
        Collection.open(tmp_path / "c")


def test_thumbnails_and_columns_that_are_empty_in_a_part_are_kept(tmp_path, rows):
    codes, ids, _ = rows
    more = {
        "thumbnail": pa.array([b"x%d" % row if row % 3 else None for row in range(100)], pa.binary()),
        "note": [None] * 50 + ["a"] * 50,
    }
    folder = write_codes(tmp_path / "codes", codes[:100], ids[:100], part_rows=50, more=more)
    build_collection(folder, tmp_path / "c", shards=3)
    built = Collection.open(tmp_path / "c")
    assert built.thumbnails_of(ids[:100]) == [b"x%d" % row if row % 3 else None for row in range(100)]
    assert built.get(ids[:100])["note"].to_pylist() == [None] * 50 + ["a"] * 50
    assert built.get(ids[:1]).column_names == ["id", "code", "uri", "note"]


DRIVER = """
import sys
from hashlight.pipelines.building.build import build_collection
build_collection(sys.argv[1], sys.argv[2], shards=3, overwrite=True, workers=2)
"""


def build_elsewhere(folder, output, faults, *rules):
    return elsewhere.run_program(DRIVER, [folder, output], faults, *rules)


@pytest.fixture(scope="module")
def undisturbed(folder, ray_session, tmp_path_factory):
    """The files of a collection of three shards that nothing has disturbed."""
    path = tmp_path_factory.mktemp("undisturbed") / "c"
    build_collection(folder, path, shards=3)
    return files_of(path)


@pytest.mark.parametrize(
    ("step", "act", "survives"),
    [
        ("build:rows-written", "kill", True),
        pytest.param("build:shard-written", "no-space", False, marks=pytest.mark.slow),
        pytest.param("build:shard-written", "kill-driver", False, marks=pytest.mark.slow),
        pytest.param("build:before-commit", "kill", False, marks=pytest.mark.slow),
    ],
)
def test_what_goes_wrong_leaves_the_old_collection_or_the_new(tmp_path, rows, folder, undisturbed, step, act, survives):
    codes, ids, queries = rows
    Collection.create(tmp_path / "c", codes[:50], bits=BITS)
    done = build_elsewhere(
        folder, tmp_path / "c", tmp_path / "faults", {"step": step, "do": act, "skip": int("before" not in step)}
    )
    killed = act.startswith("kill") and not survives
    assert done.returncode == (0 if survives else -signal.SIGKILL if killed else 1), done.stderr
    if act == "no-space":
        assert os.strerror(errno.ENOSPC) in done.stderr
    assert len(Collection.open(tmp_path / "c", verify=True)) == (3000 if survives else 50)
    if survives:
        assert len(list((tmp_path / "c" / "shards").iterdir())) == 4, "what a dead task left is swept"
    build_collection(folder, tmp_path / "c", shards=3, overwrite=True)
    assert files_of(tmp_path / "c") == undisturbed
    kept = 3 + (3 if survives else 1)
    assert len(list((tmp_path / "c" / "shards").iterdir())) == kept, "leftovers of killed builds are removed"
    assert answers(Collection.open(tmp_path / "c"), queries)[0] == oracles.knn(queries, codes, ids, 20)[1].tolist()


def finished_shards(output):
    """{number: name} of the shards that an interrupted build has recorded as finished."""
    sidecars = (output / "build" / "sidecars").glob("*.json")
    return {int(path.stem): json.loads(path.read_text())["shard"]["name"] for path in sidecars}


@pytest.mark.parametrize(
    ("step", "skip", "finished"),
    [
        ("build:shard-done", 1, 2),
        pytest.param("build:shard", 0, 0, marks=pytest.mark.slow),
        pytest.param("build:rows-written", 1, 1, marks=pytest.mark.slow),
        pytest.param("build:shard-written", 2, 2, marks=pytest.mark.slow),
        pytest.param("build:before-commit", 0, 3, marks=pytest.mark.slow),
        pytest.param("build:after-commit", 0, 3, marks=pytest.mark.slow),
    ],
)
def test_a_killed_build_resumes_and_builds_no_finished_shard_twice(tmp_path, rows, folder, step, skip, finished):
    codes, ids, queries = rows
    output = tmp_path / "c"
    done = build_elsewhere(folder, output, tmp_path / "faults", {"step": step, "do": "kill-driver", "skip": skip})
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = finished_shards(output)
    assert len(before) >= finished
    build_collection(folder, output, shards=3, overwrite=True, workers=2)
    opened = Collection.open(output, verify=True)
    names = {number: opened.shards[number].name for number in before}
    assert names == before, "no finished shard is built again"
    assert answers(opened, queries)[0] == oracles.knn(queries, codes, ids, 20)[1].tolist()
    assert not (output / "build").exists()


def interrupt_build(monkeypatch, folder, output, **options):
    """Build, with a disk that fills up just before the commit."""

    def fail(_writer):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", fail)
        with pytest.raises(OSError, match="No space"):
            build_collection(folder, output, **options)


def test_an_unfinished_build_of_another_job_is_refused_unless_overwritten(tmp_path, rows, folder, monkeypatch):
    output = tmp_path / "c"
    interrupt_build(monkeypatch, folder, output, shards=2)
    names = set(finished_shards(output).values())
    assert len(names) == 2
    with pytest.raises(
        PipelineError, match=r"build holds the unfinished build of another job, with shards 2 .asked: 3"
    ):
        build_collection(folder, output, shards=3)
    assert set(finished_shards(output).values()) == names, "a refused job removes nothing"
    build_collection(folder, output, shards=2)
    assert {shard.name for shard in Collection.open(output).shards} == names
    interrupt_build(monkeypatch, folder, output, shards=2, overwrite=True)
    build_collection(folder, output, shards=3, overwrite=True)
    assert len(list((output / "shards").iterdir())) == 5, "the live version's, and those of the one before it"
    assert not (output / "build").exists()


def test_an_unfinished_build_with_nothing_to_lose_is_in_nobodys_way(tmp_path, rows, folder, monkeypatch):
    codes, ids, _ = rows
    output = tmp_path / "c"
    interrupt_build(monkeypatch, folder, output, shards=2)
    for sidecar in (output / "build" / "sidecars").iterdir():
        sidecar.unlink()  # as if it had been killed before its first shard was whole
    build_collection(folder, output, shards=3)
    assert len(Collection.open(output).shards) == 3
    more = write_codes(tmp_path / "more", codes, ids + 10_000)
    interrupt_build(monkeypatch, more, output, shards=2, append=True)
    others = write_codes(tmp_path / "others", codes, ids + 20_000)
    with pytest.raises(PipelineError, match=r"or delete .*/c/build to abandon it"):
        build_collection(others, output, append=True)
    finished = set(finished_shards(output).values())
    # Other writes leave the finished shards, until nothing speaks for them.
    Collection.open(output).add(codes[:10], ids=np.arange(30_000, 30_010), attributes={"uri": ["x"] * 10})
    assert finished <= {path.name for path in (output / "shards").iterdir()}
    shutil.rmtree(output / "build")
    build_collection(others, output, append=True)
    opened = Collection.open(output, verify=True)
    assert len(opened) == 6010
    assert not (output / "build").exists()
    assert {path.name for path in (output / "shards").iterdir()} == {shard.name for shard in opened.shards}


def test_a_finished_shard_that_is_gone_is_built_again(tmp_path, rows, folder, monkeypatch):
    output = tmp_path / "c"
    interrupt_build(monkeypatch, folder, output, shards=2)
    names = finished_shards(output)
    (output / "shards" / names[1] / "ids.npy").unlink()
    build_collection(folder, output, shards=2)
    opened = Collection.open(output, verify=True)
    assert opened.shards[0].name == names[0]
    assert opened.shards[1].name != names[1]
    assert len(opened) == 3000


@pytest.mark.parametrize(
    "damage",
    [
        lambda said: said["shard"].pop("rows"),
        lambda said: said["shard"].update(name="../../codes"),
        lambda said: said["shard"]["files"].pop("ids.npy"),
        lambda said: said.update(shard=None),
        lambda said: said["shard"]["files"]["ids.npy"].update(sha256="0" * 64),
    ],
)
def test_a_shard_whose_sidecar_is_damaged_is_built_again(tmp_path, folder, monkeypatch, damage):
    output = tmp_path / "c"
    interrupt_build(monkeypatch, folder, output, shards=2)
    names = finished_shards(output)
    sidecar = output / "build" / "sidecars" / "00001.json"
    said = json.loads(sidecar.read_bytes())
    damage(said)
    sidecar.write_text(json.dumps(said))
    job = JobFolder(output / "build", BUILD, name=said["job"])
    with pytest.raises(PipelineError, match=r"build/sidecars/00001\.json is damaged: delete it"):
        job.sidecar(1)
    build_collection(folder, output, shards=2)
    opened = Collection.open(output, verify=True)
    assert opened.shards[0].name == names[0]
    assert opened.shards[1].name != names[1]
    assert len(opened) == 3000
    assert list_parts(folder), "nothing outside the collection was removed"


def shard_job(folder, output):
    """The only task of a build, as the driver describes it."""
    parts = list_parts(folder)
    job = JobFolder(output / "build", BUILD, name="j")
    pieces = tuple(Piece(part, 0, part.rows) for part in parts)
    schema = pq.read_schema(parts[0].path).remove_metadata()
    return ShardJob(
        number=0, folder=job, output=str(output), pieces=pieces, schema=schema, bits=BITS, tables=True, threads=1
    )


@pytest.mark.parametrize("step", ["Tables.build", "write_attributes", "describe_files"])
@pytest.mark.parametrize("locks", [True, False])
def test_a_task_that_outlives_its_driver_is_left_alone_until_it_counts_as_dead(
    tmp_path, folder, monkeypatch, step, locks
):
    """The driver was killed; its task is still at work when the next one removes what the dead have left."""
    output = tmp_path / "c"
    Collection.create(output, np.arange(5, dtype=np.uint64)[:, None], bits=BITS)
    if not locks:
        monkeypatch.setattr(leftovers, "claim", lambda path: contextlib.nullcontext())
        monkeypatch.setattr(leftovers, "_DEAD_AFTER_S", -1)
    place = {"Tables.build": shard.Tables, "write_attributes": shards, "describe_files": shard}
    name = step.rpartition(".")[2]
    real = getattr(place[step], name)

    def overtaken(*arguments, **options):
        with Transaction(output, fresh=Fresh(BITS, None, overwrite=True)):
            return real(*arguments, **options)

    job = shard_job(folder, output)
    with monkeypatch.context() as patch:
        patch.setattr(place[step], name, overtaken)
        if locks:
            assert shards.is_whole(str(output), shards.build_shard(job))
            return
        with pytest.raises(FileNotFoundError):
            shards.build_shard(job)
    assert job.folder.sidecar(0) is None
    assert len(list((output / "shards").iterdir())) == 1, "the live version's"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_shard_that_was_swept_is_built_again(tmp_path, folder, monkeypatch, when):
    """A task of a killed driver says that a shard is whole, which the next driver has removed."""
    output = tmp_path / "c"
    job = shard_job(folder, output)
    real = shards._write_shard

    def swept_meanwhile(*arguments):
        monkeypatch.undo()
        swept = shards.build_shard(job)
        open_place(output).remove(f"shards/{swept.name}")
        return real(*arguments)

    if when == "before":
        open_place(output).remove(f"shards/{shards.build_shard(job).name}")
    else:
        monkeypatch.setattr(shards, "_write_shard", swept_meanwhile)
    built = shards.build_shard(job)
    assert job.folder.sidecar(0)["shard"]["name"] == built.name
    assert shards.is_whole(str(output), built)
    assert [path.name for path in (output / "shards").iterdir()] == [built.name]


@pytest.mark.parametrize("found", [None, "{", "{}"])
def test_codes_in_a_bucket_that_are_not_whole_are_named_without_credentials(bucket, tmp_path, found):
    if found is not None:
        summary = {"images": 3, "codes": 3, "rejects": 0, "bits": 48, "encoder": "f", "corpus": "c"}
        bucket.put("codes/codes.json", json.dumps(summary).encode() if found == "{}" else found.encode())
    with pytest.raises(PipelineError, match=rf"s3://{bucket.name}/codes") as caught:
        build_collection(bucket.uri("codes").replace("s3://", "s3://KEYID:PASSWORD@"), tmp_path / "c")
    assert "PASSWORD" not in str(caught.value)
    assert "KEYID" not in str(caught.value)


def test_what_is_not_an_unfinished_build_is_neither_taken_for_one_nor_removed(tmp_path, folder):
    output = tmp_path / "c"
    Collection.create(output, np.arange(5, dtype=np.uint64)[:, None], bits=BITS)
    mine = output / "build" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("kept")
    with pytest.raises(PipelineError, match=r"c/build is not empty and holds no unfinished build"):
        build_collection(folder, output, overwrite=True)
    assert mine.read_text() == "kept"
    mine.unlink()
    mine.parent.rmdir()
    mine.parent.write_text("a file")
    with pytest.raises(PipelineError, match=r"c/build is a file"):
        build_collection(folder, output, overwrite=True)
    assert len(Collection.open(output)) == 5


@pytest.mark.parametrize(("first", "second"), [(CODES, NEAR_DUPLICATES), (NEAR_DUPLICATES, CODES)])
def test_the_folder_of_another_kind_of_job_is_refused_even_to_be_overwritten(tmp_path, first, second):
    JobFolder(tmp_path / "j", first).begin(dict.fromkeys(first.identified_by, "x"), overwrite=False)
    JobFolder(tmp_path / "j", first).refuse_foreign()
    with pytest.raises(PipelineError, match=rf"j is not empty and holds no {second.holds}"):
        JobFolder(tmp_path / "j", second).refuse_foreign()
