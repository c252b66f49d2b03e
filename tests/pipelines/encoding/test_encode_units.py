"""One unit of an encode job, without Ray around it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.places.opening import open_place
from hashlight.pipelines.codes.parts import CODES, STEPS, list_parts, read_checked
from hashlight.pipelines.corpora import ids
from hashlight.pipelines.corpora.kinds import webdataset
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.corpora.work import Units, WorkList, WorkSummary, list_work
from hashlight.pipelines.decoding.worker import DecodeLimits
from hashlight.pipelines.encoding import encode, settling
from hashlight.pipelines.encoding import units as encode_units
from hashlight.pipelines.encoding.actors import fit_actors
from hashlight.pipelines.encoding.rejects import RejectBudget, write_rejects
from hashlight.pipelines.encoding.units import EncodeUnits, UnitSettings
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, sidecar_name
from hashlight.pipelines.jobs.nodes import Node
from tests.pipelines.reads import Reads

WITHOUT_MORE = {"left_out": [], "skipped": {}, "seconds": dict.fromkeys(STEPS, 0.0)}
OPTIONS = {"batch_size": 32, "features": None, "thumbnail": 0, "limits": DecodeLimits()}


@pytest.fixture
def folder(tmp_path, corpus, encoder):
    """An output as it is when its units begin: three units of 100 images."""
    list_work(corpus, tmp_path / "codes" / "plan.arrow", unit_images=100)
    shutil.copytree(encoder, tmp_path / "codes" / "encoder")
    return tmp_path / "codes"


@pytest.fixture
def units(folder):
    units = EncodeUnits(str(folder), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))
    yield units
    units.close()


def part_of(folder, unit):
    (path,) = (folder / "parts").glob(f"{unit:05d}-*.parquet")
    return path


def planned(folder):
    """The summary of a plan and its units."""
    with pa.OSFile(str(folder / "plan.arrow")) as raw:
        work = WorkList(raw, "plan")
        return work.summary, work.units()


def ours(folder):
    """The folder of the job whose units these tests run."""
    return JobFolder(folder, CODES, name="ours")


def nodes(*resources):
    return [Node(f"{number:032x}", f"10.0.0.{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(resources)]


@pytest.mark.parametrize(("actors", "units", "shares"), [(None, 1000, 2), (3, 1000, 9), (1, 1000, 1), (2, 1000, 2)])
def test_actors_that_start_later_have_their_share(actors, units, shares):
    assert fit_actors(nodes((2, 0)), actors, units).shares == shares


@pytest.mark.parametrize(
    ("cluster", "actors", "units", "expected"),
    [
        (nodes((64, 0)), None, 1000, (64, 1000, "cpu", 1, 1)),
        (nodes((64, 0)), 3, 1000, (3, 3, "cpu", 1, 1)),
        (nodes((2, 0)), 8, 1000, (2, 8, "cpu", 1, 1)),
        (nodes((64, 0)), None, 5, (5, 5, "cpu", 1, 1)),
        (nodes((64, 8)), None, 1000, (8, 1000, "cuda", 8, 7)),
        (nodes((64, 8)), 2, 1000, (2, 2, "cuda", 8, 7)),
        (nodes((64, 8)), 20, 1000, (8, 20, "cuda", 8, 7)),
        # All cores over all GPUs, 33 and 34, are on no node.
        (nodes((32, 0), (1, 1)), 4, 1000, (1, 4, "cuda", 1, 1)),
        (nodes((32, 0), (32, 4), (4, 2)), None, 1000, (6, 1000, "cuda", 2, 1)),
        # A node may give out GPUs alone, and a head nothing at all.
        (nodes((16, 1), (0, 2)), None, 1000, (3, 1000, "cuda", 0, 1)),
        (nodes((0, 0), (2, 0), (1.5, 0)), None, 1000, (3, 1000, "cpu", 1, 1)),
    ],
)
def test_actors_are_as_many_as_the_nodes_have_room_for(cluster, actors, units, expected):
    stage = fit_actors(cluster, actors, units)
    settings = stage.settings["device"], stage.num_cpus, stage.settings["decoders"]
    assert (stage.actors, stage.max_actors, *settings) == expected
    # An oracle that places them one by one.
    left = {node.id: [node.cpus, node.gpus] for node in cluster}
    for _ in range(stage.actors):
        fitting = [node for node in left.values() if node[0] >= stage.num_cpus and node[1] >= stage.num_gpus]
        assert fitting, "an actor would wait for ever"
        fitting[0][0] -= stage.num_cpus
        fitting[0][1] -= stage.num_gpus


def test_a_cluster_that_has_nothing_to_give_is_refused():
    with pytest.raises(PipelineError, match=r"none: 10\.0\.0\.0 \(000000\) has 0 CPUs, .* has 0\.5 CPUs"):
        fit_actors(nodes((0, 0), (0.5, 0)), 2, 10)


def test_the_rate_covers_the_time_from_the_first_begin_to_the_last_end(monkeypatch, tmp_path):
    """Rows do not come in the order in which units begin and end."""
    work = WorkSummary("c", "images", units=3, images=300, columns=[], digest="", ids="auto", name="c")
    job = encode._Job(ours(tmp_path), {}, work, Units(*np.zeros((4, 3), np.int64)))
    times = [(10.0, 14.0), (9.0, 15.0), (12.0, 13.0)]
    rows = [
        {
            "codes": 90,
            "rejects": 10,
            "of_the_moment": 0,
            "started": started,
            "ended": ended,
            **dict.fromkeys(map("{}_s".format, STEPS), 1.0),
        }
        for started, ended in times
    ]
    monkeypatch.setattr(encode, "ray_session", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(encode, "plan_actors", lambda *_: fit_actors(nodes((2, 0)), None, 3))
    monkeypatch.setattr(encode, "_refuse_unshared", lambda *_: None)
    monkeypatch.setattr(encode, "_encode_units", lambda *_: iter(rows))
    state, _ = encode._run(job, None, OPTIONS, RejectBudget(), lambda _state: None)
    assert (state.images, state.rejects, state.images_per_s) == (300, 30, 300 / 6)


def test_units_of_two_threads_do_not_mix(folder, units, encoder, pictures):
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda unit: units({"unit": np.array([unit])}), range(3)))
    assert [row["codes"].tolist() for row in rows] == [[100]] * 3
    expected = HashEncoder.load(encoder).encode(pictures[0][:300])
    found = pq.read_table(folder / "parts")
    assert found["code"].to_pylist() == [code.tobytes() for code in expected]


def test_ten_units_of_one_row_group_read_the_file_once(tmp_path, corpus, encoder, pictures, monkeypatch):
    list_work(corpus, tmp_path / "plan.arrow", unit_images=30)
    shutil.copytree(encoder, tmp_path / "encoder")
    units = EncodeUnits(str(tmp_path), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))
    reads = Reads(monkeypatch)
    for unit in range(10):
        units({"unit": np.array([unit])})
    units.close()
    assert reads.opened[corpus.name] == 1
    assert reads.num_bytes[corpus.name] < 2 * corpus.stat().st_size, "it was read ten times"
    found = pa.concat_tables([pq.read_table(part_of(tmp_path, unit)) for unit in range(10)])
    assert found["id"].to_pylist() == list(range(1000, 1300))
    assert found["code"].to_pylist() == [code.tobytes() for code in HashEncoder.load(encoder).encode(pictures[0][:300])]


def test_a_name_that_occurs_twice_in_a_shard_and_attributes_that_come_late(tmp_path, corpus, encoder, monkeypatch):
    monkeypatch.setattr(webdataset, "_LOOKED_AT", 2)
    images = pq.read_table(corpus)["image"].to_pylist()
    files = [("a.cls", b"1"), ("a.png", images[0]), ("b.png", images[1]), ("b.txt", b"two"), ("a.png", images[2])]
    (tmp_path / "shards").mkdir()
    for shard in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / "shards" / shard, "w") as tar:
            for name, data in [*files, ("c.png", images[3]), ("c.json", b"{}")]:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    folder = tmp_path / "codes"
    list_work(tmp_path / "shards", folder / "plan.arrow")
    shutil.copytree(encoder, folder / "encoder")
    units = EncodeUnits(str(folder), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))
    row = units({"unit": np.arange(2)})
    units.close()
    assert (row["codes"].tolist(), row["rejects"].tolist()) == ([3, 3], [1, 1])
    table = pq.read_table(part_of(folder, 1))
    assert table.select(["uri", "label", "txt"]).to_pylist() == [
        {"uri": f"{tmp_path}/shards/1.tar#a.png", "label": "1", "txt": None},
        {"uri": f"{tmp_path}/shards/1.tar#b.png", "label": None, "txt": "two"},
        {"uri": f"{tmp_path}/shards/1.tar#c.png", "label": None, "txt": None},
    ]
    gathered = write_rejects(ours(folder), range(2))
    assert gathered.left_out == {"json"}
    (first, _) = pq.read_table(folder / "rejects.parquet").to_pylist()
    assert first["uri"] == f"{tmp_path}/shards/0.tar#a.png"
    assert first["reason"] == "unreadable: a.png occurs twice in the shard"


def write_shards(folder, images):
    """Three tars of four images each, whose names are the same in every tar."""
    folder.mkdir()
    for number in range(3):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for row in range(4):
                member = tarfile.TarInfo(f"{row}.png")
                member.size = len(images[4 * number + row])
                tar.addfile(member, io.BytesIO(images[4 * number + row]))


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_tar_in_ten_units_gives_what_it_gives_in_one(tmp_path, monkeypatch, corpus, encoder, suffix):
    monkeypatch.setattr(webdataset, "_MAX_WHOLE_BYTES_OF_FEW", 0)
    images = pq.read_table(corpus)["image"].to_pylist()[:60]
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / f"0.{suffix}", "w:gz" if suffix == "tar.gz" else "w") as tar:
        for row, image in enumerate(images):
            files = {".png": b"broken" if row % 20 == 7 else image, ".cls": b"%d" % row, ".npy": b"?"}
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{row:03d}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    found = []
    for name, size, expected in (("one", 60, 1), ("ten", 6, 10)):
        folder = tmp_path / name
        work = list_work(tmp_path / "shards", folder / "plan.arrow", unit_images=size)
        assert (work.units, work.kind, work.images) == (expected, "shards", None)
        shutil.copytree(encoder, folder / "encoder")
        units = EncodeUnits(str(folder), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))
        units({"unit": np.arange(expected)})
        units.close()
        settling.settle_repeated(ours(folder), range(expected))
        gathered = write_rejects(ours(folder), range(expected))
        assert (gathered.codes, gathered.rejects, gathered.skipped) == (57, 3, {"*.npy": 60})
        table = pa.concat_tables([pq.read_table(part_of(folder, unit)) for unit in range(expected)])
        found.append((table.combine_chunks(), pq.read_table(folder / "rejects.parquet")))
    (table, rejects), (divided, rejects_of_ten) = found
    assert divided.equals(table)
    assert rejects_of_ten.equals(rejects)
    assert table["label"].to_pylist() == [str(row) for row in range(60) if row % 20 != 7]


def test_images_of_tars_get_ids_of_their_json_and_joined_metadata(tmp_path, corpus, encoder):
    images = pq.read_table(corpus)["image"].to_pylist()[:30]
    (tmp_path / "shards").mkdir()
    about = tmp_path / "about.csv"
    about.write_text("asset,label,size\n" + "".join(f"{100 + row},c{row},{row / 4}\n" for row in range(0, 30, 3)))
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        for row, image in enumerate(images):
            said = {} if row == 7 else {"asset": 100 + row, "n": row}
            for suffix, data in {".png": image, ".cls": b"x", ".json": json.dumps(said).encode()}.items():
                member = tarfile.TarInfo(f"{row:03d}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    folder = tmp_path / "codes"
    options = CorpusOptions(id_column="asset", keep=("n", "size"), join=(str(about), "asset"))
    work = list_work(tmp_path / "shards", folder / "plan.arrow", unit_images=10, options=options)
    shutil.copytree(encoder, folder / "encoder")
    units = EncodeUnits(str(folder), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))
    done = units({"unit": np.arange(work.units)})
    units.close()
    assert (work.units, done["codes"].sum(), done["rejects"].sum()) == (3, 29, 1)
    table = pa.concat_tables([pq.read_table(part_of(folder, unit)) for unit in range(3)]).to_pydict()
    rows = [row for row in range(30) if row != 7]
    assert (table["id"], table["n"]) == ([100 + row for row in rows], rows)
    assert table["label"] == [f"c{row}" if row % 3 == 0 else None for row in rows]
    assert table["size"] == [row / 4 if row % 3 == 0 else None for row in rows]
    write_rejects(ours(folder), range(3))
    (reject,) = pq.read_table(folder / "rejects.parquet").to_pylist()
    assert (reject["uri"].rpartition("#")[2], "as `asset`, got None" in reject["reason"]) == ("007.png", True)
    about.write_text("asset,label,size\n100,c,1\n")
    with pytest.raises(PipelineError, match=r"about.csv was changed since the corpus was listed with it"):
        EncodeUnits(str(folder), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))


def narrow(text, bits):
    """The hash of a name or an image in so few bits that many have the same."""
    data = text if isinstance(text, bytes) else text.encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> (64 - bits)


def settled(texts, bits):
    """The id of each of some names: the first free one of its hash, the hash of that, and so on."""
    ids = []
    for text in texts:
        id_, tries = narrow(text, bits), 0
        while id_ in ids:
            tries += 1
            id_ = narrow(narrow(text, bits).to_bytes(8, "little") + tries.to_bytes(8, "little"), bits)
        ids.append(id_)
    return ids


@pytest.mark.parametrize("interrupted", [False, True])
def test_images_of_tars_with_the_same_hash_get_the_next(tmp_path, corpus, encoder, monkeypatch, interrupted):
    monkeypatch.setattr(ids, "HASH_BITS", 5)
    write_shards(tmp_path / "shards", pq.read_table(corpus)["image"].to_pylist())
    names = [f"shards/{shard}.tar#{row}.png" for shard in range(3) for row in range(4)]
    assert len({narrow(name, 5) for name in names}) < 10, "some have the same hash"
    folder = tmp_path / "codes"
    list_work(tmp_path / "shards", folder / "plan.arrow")
    shutil.copytree(encoder, folder / "encoder")
    units = EncodeUnits(str(folder), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))
    units({"unit": np.arange(3)})
    units.close()
    if interrupted:
        interrupt_after_the_first_part(monkeypatch, folder)
    for _ in range(2):  # a second time there is nothing to do
        settling.settle_repeated(ours(folder), range(3))
        gathered = write_rejects(ours(folder), range(3))
        assert (gathered.codes, gathered.rejects, gathered.orphans) == (12, 0, set())
        table = pa.concat_tables([pq.read_table(part_of(folder, unit)) for unit in range(3)])
        assert [uri.removeprefix(f"{tmp_path}/") for uri in table["uri"].to_pylist()] == names
        assert table["id"].to_pylist() == settled(names, 5)


def interrupt_after_the_first_part(monkeypatch, folder):
    real = settling.put_part

    def put_part(*arguments):
        if len(put) == 1:
            raise KeyboardInterrupt
        put.append(arguments)
        return real(*arguments)

    put = []
    with monkeypatch.context() as patch:
        patch.setattr(settling, "put_part", put_part)
        with pytest.raises(KeyboardInterrupt):
            settling.settle_repeated(ours(folder), range(3))


def test_ids_of_the_content_are_those_of_the_bytes_and_copies_get_the_next(tmp_path, corpus, encoder):
    images = pq.read_table(corpus)["image"].to_pylist()[:3]
    (tmp_path / "photos").mkdir()
    for number, image in enumerate([images[0], images[1], images[0], b"broken", images[2], images[0]]):
        (tmp_path / "photos" / f"{number}.png").write_bytes(image)
    folder = tmp_path / "codes"
    list_work(tmp_path / "photos", folder / "plan.arrow", unit_images=2, ids="content")
    shutil.copytree(encoder, folder / "encoder")
    units = EncodeUnits(str(folder), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))
    units({"unit": np.arange(3)})
    units.close()
    settling.settle_repeated(ours(folder), range(3))
    found = pa.concat_tables([pq.read_table(part_of(folder, unit)) for unit in range(3)])["id"].to_pylist()
    expected = settled([images[0], images[1], images[0], images[2], images[0]], 63)
    assert found == expected
    assert len(set(expected)) == 5


def publish_meanwhile(monkeypatch, folder, job, entries=None):
    """Have another process publish unit 1 while it is encoded here."""
    entries = entries or int(planned(folder)[1].digests[1])
    said = json.dumps(
        {
            "job": job,
            "entries": entries,
            "codes": 99,
            "rejects": 1,
            "rejected": [{"row": 3, "id": 1103, "uri": "3", "kind": "format", "reason": "damaged"}],
            "bytes": 1,
            "sha256": "0" * 64,
            **WITHOUT_MORE,
        }
    )

    def step(name, key=""):
        if (name, key) == ("encoded", 1):
            open_place(folder).put(sidecar_name(1), said.encode())

    monkeypatch.setattr(encode_units.chaos, "step", step)


def test_a_unit_is_written_with_its_sidecar(folder, units, encoder, pictures):
    row = units({"unit": np.array([1])})
    assert (row["unit"].tolist(), row["codes"].tolist(), row["rejects"].tolist()) == ([1], [100], [0])
    table = pq.read_table(part_of(folder, 1))
    expected = HashEncoder.load(encoder).encode(pictures[0][100:200])
    assert table["code"].to_pylist() == [code.tobytes() for code in expected]
    assert table["id"].to_pylist() == list(range(1100, 1200))
    sidecar = ours(folder).sidecar(1)
    assert (sidecar["codes"], sidecar["rejected"]) == (100, [])
    before = part_of(folder, 1).stat().st_mtime_ns
    assert units({"unit": np.array([1])})["codes"].tolist() == [100]
    assert part_of(folder, 1).stat().st_mtime_ns == before, "a finished unit is not encoded again"


def test_a_unit_that_another_job_publishes_meanwhile_stops_this_one(monkeypatch, folder, units):
    publish_meanwhile(monkeypatch, folder, "another")
    with pytest.raises(PipelineError, match="unit 1 was published by another job meanwhile"):
        units({"unit": np.array([1])})


def test_a_unit_that_a_lost_actor_publishes_meanwhile_counts_as_it_says(monkeypatch, folder, units):
    publish_meanwhile(monkeypatch, folder, "ours")
    assert units({"unit": np.array([1])})["codes"].tolist() == [99]


def test_a_unit_that_is_finished_while_its_turn_is_awaited_is_not_begun(monkeypatch, folder, units):
    with contextlib.closing(
        EncodeUnits(str(folder), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))
    ) as lost:
        begun, looks, look = [], [], units._job.sidecar

        def look_before_the_other_ends(unit):
            found = look(unit)
            looks.append(found)
            if len(looks) == 1:
                lost({"unit": np.array([unit])})
            return found

        monkeypatch.setattr(units._job, "sidecar", look_before_the_other_ends)
        monkeypatch.setattr(
            encode_units.chaos, "step", lambda name, key="": begun.append(key) if name == "unit" else None
        )
        assert units({"unit": np.array([1])})["codes"].tolist() == [100]
    assert looks[0] is None
    assert begun == [1]


def test_units_of_another_job_are_not_committed(folder, units):
    units({"unit": np.arange(3)})
    output = open_place(folder)
    gathered = write_rejects(ours(folder), range(3))
    assert (gathered.codes, gathered.rejects) == (300, 0)
    said = json.loads(output.read(sidecar_name(2)))
    output.put(sidecar_name(2), json.dumps({**said, "job": "another"}).encode())
    with pytest.raises(PipelineError, match="unit 2 was published by another job"):
        write_rejects(ours(folder), range(3))


def test_two_machines_that_round_differently_leave_one_part_and_its_sidecar(monkeypatch, folder, units, encoder):
    """The other actor's part is not ours, and its sidecar is first: whatever is read is what it says."""
    theirs = JobFolder(folder, CODES, name="ours")

    def meanwhile(name, key=""):
        if (name, key) == ("encoded", 1):
            table = pa.table({"id": [1], "code": pa.array([b"\1" * 8], pa.binary(8))})
            entries = int(planned(folder)[1].digests[1])
            said = {"entries": entries, "codes": 1, "rejects": 0, "rejected": [], **WITHOUT_MORE}
            theirs.publish(1, {**said, **encode_units.put_part(theirs.place, 1, table)})

    monkeypatch.setattr(encode_units.chaos, "step", meanwhile)
    assert units({"unit": np.array([0, 1])})["codes"].tolist() == [100, 1]
    parts = list_parts(folder)
    assert [part.rows for part in parts] == [100, 1]
    assert pq.read_table(read_checked(parts[1]))["code"].to_pylist() == [b"\1" * 8]
    assert len(list((folder / "parts").iterdir())) == 2


def test_a_part_that_comes_after_its_sidecar_is_not_taken_for_it(folder, units):
    """An actor that was thought dead writes its part after another has finished the unit."""
    units({"unit": np.arange(3)})
    before = [pq.read_table(read_checked(part)) for part in list_parts(folder)]
    encode_units.put_part(open_place(folder), 1, pa.table({"id": [1], "code": pa.array([b"\1" * 8], pa.binary(8))}))
    after = [pq.read_table(read_checked(part)) for part in list_parts(folder)]
    assert all(one.equals(other) for one, other in zip(before, after, strict=True))
    state, waiting = encode._take_stock(encode._Job(ours(folder), {}, *planned(folder)))
    assert (state.units, waiting) == (3, [])
    assert [name[:5] for name in write_rejects(ours(folder), range(3)).orphans] == ["00001"]


def test_a_unit_that_is_published_meanwhile_for_other_entries_stops_this_job(monkeypatch, folder, units):
    """As by an actor of a job that was begun before the corpus changed."""
    publish_meanwhile(monkeypatch, folder, "ours", entries=17)
    with pytest.raises(PipelineError, match="unit 1 was published meanwhile for an earlier listing"):
        units({"unit": np.array([1])})
    assert encode._take_stock(encode._Job(ours(folder), {}, *planned(folder)))[1] == [0, 1, 2]
    assert not (folder / sidecar_name(1)).exists()


def test_a_part_without_its_sidecar_is_no_finished_unit(folder, units):
    units({"unit": np.arange(3)})
    (folder / sidecar_name(1)).unlink()
    part_of(folder, 2).unlink()
    state, waiting = encode._take_stock(encode._Job(ours(folder), {}, *planned(folder)))
    assert (state.units, waiting) == (1, [1, 2])
