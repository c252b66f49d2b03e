"""The verbs that keep a collection: what they write is what a plain dict says, and what they say is what they did."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.importing import add_rows
from hashlight.engine.errors import EncoderMismatchError
from hashlight.engine.exchange.rows import Incoming, Rows, cut_rows
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.searching.encoder import load_encoder
from tests.engine.collection.contents import Model, contents
from tests.pipelines.building.test_build import FINGERPRINT, write_codes

BITS = 48
CODES = np.random.default_rng(5).integers(2**BITS, size=(60, 1), dtype=np.uint64)
IDS = np.arange(30) * 4 + 1
LABELS = [n % 3 for n in range(30)]


@pytest.fixture(params=["folder", "bucket"])
def where(request, tmp_path, bucket):
    """The location of a collection, and a function that reads a file there."""
    if request.param == "folder":
        location, read = str(tmp_path / "c"), lambda name: (tmp_path / "c" / name).read_bytes()
    else:
        location, read = bucket.uri("c"), lambda name: bucket.get(f"c/{name}")
    Collection.create(location, CODES[:30], ids=IDS, attributes={"label": LABELS}, bits=BITS, tables=False)
    return location, read


@pytest.fixture
def photos(tmp_path):
    Collection.create(
        tmp_path / "c", CODES[:30], ids=IDS, attributes={"label": LABELS}, bits=BITS, tables=False, shards=3
    )
    return tmp_path / "c"


@pytest.fixture
def images(photos):
    """A folder of images, named as a person would beside the collection; and a table that has an id twice."""
    folder = photos.parent / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    (folder / "twice.csv").write_text("id,label\n1,5\n1,6\n")
    return "images"


def model():
    kept = Model(names=("label",))
    kept.add(CODES[:30], IDS, {"label": LABELS})
    return kept


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


def read(path):
    return contents(lambda name: (path / name).read_bytes())


def parquet(path, ids, codes=None, **columns):
    columns = {"id": pa.array(ids, pa.int64())} | columns
    if codes is not None:
        columns["code"] = pa.array([code.tobytes() for code in codes])
    pq.write_table(pa.table(columns), path)
    return path


def test_a_life_of_a_collection(where, tmp_path):
    location, stored = where
    kept = model()
    more = parquet(tmp_path / "more.parquet", [5, 1000], CODES[30:32], label=pa.array([7, 8]))
    said = json.loads(run("add", location, more, "--upsert", "--no-tables", "--json"))
    kept.upsert(CODES[30:32], [5, 1000], {"label": [7, 8]})
    assert said == {"version": 2, "added": 2, "deleted": 1}
    assert contents(stored) == kept.rows
    said = json.loads(run("delete", location, "--ids", "1, 9,2", "--json"))
    assert said == {"version": 3, "deleted": 2, "not_found": 1}
    kept.delete([1, 9])
    assert contents(stored) == kept.rows
    assert run("tag", location, "before").startswith("tagged version 3 as before: version 4 of ")
    assert json.loads(run("delete", location, "--filter", "label == 2", "--json")) == {"version": 5, "deleted": 9}
    kept.delete_if(lambda _id, item: item["label"] == 2)
    assert contents(stored) == kept.rows
    assert run("update", location, "--ids", "13,1000", "--set", "label=44").startswith("updated label of 2 codes: ")
    kept.update([13, 1000], {"label": [44, 44]})
    names = parquet(tmp_path / "names.parquet", [17, 1000], name=pa.array(["ant", "bee"]))
    assert run("set-column", location, names).startswith("set name of 2 codes: version 7 of ")
    kept.set_column("name", ["ant", "bee"], [17, 1000])
    assert contents(stored) == kept.rows
    assert run("count", location) == str(len(kept.rows))
    assert json.loads(run("count", location, "--filter", "label == 44", "--json")) == {"version": 7, "count": 2}
    said = json.loads(run("info", location, "--json"))
    assert (said["codes"], said["deleted"], said["tags"]) == (len(kept.rows), 14, {"before": 3})
    assert (said["columns"], said["oldest_version"]) == (["name"], 1)
    assert said["path"] == str(location).partition("?")[0]
    with pytest.raises(EncoderMismatchError, match=f"^{re.escape(said['path'])} keeps no encoder"):
        load_encoder(Collection.open(location))
    done = json.loads(run("compact", location, "--full", "--json"))
    assert done == {"version": 8, "merged": 3, "into": 1}
    assert contents(stored) == kept.rows
    assert json.loads(run("info", location, "--json"))["deleted"] == 0
    assert run("rollback", location, "before").startswith("rolled back to version 3, 29 codes: version 9 of ")
    assert len(contents(stored)) == 29


def test_versions_are_listed_tagged_and_pruned(photos):
    for id_ in (1, 5, 9):
        run("delete", photos, "--ids", id_)
    run("tag", photos, "kept", "--version", 2)
    listed = json.loads(run("versions", photos, "--json"))
    assert [(line["version"], line["codes"], line["deleted"], line["tags"]) for line in listed] == [
        (5, 27, 3, []), (4, 27, 3, []), (3, 28, 2, []), (2, 29, 1, ["kept"]), (1, 30, 0, []),
    ]  # fmt: skip
    assert "kept" in run("versions", photos)
    dry = run("prune", photos, "--keep", 2, "--dry-run")
    assert dry == f"would remove 3 versions (1, 3 to 4) of {photos}: nothing was changed"
    assert [line["version"] for line in json.loads(run("versions", photos, "--json"))] == [5, 4, 3, 2, 1]
    assert json.loads(run("prune", photos, "--keep", 2, "--json")) == {"version": 6, "pruned": [1, 3, 4]}
    assert run("prune", photos, "--older-than", "1d") == f"removed no version: version 6 of {photos}"
    assert run("tag", photos, "kept", "--remove") == f"removed tag kept: version 7 of {photos}"
    assert "its tags are none" in run("rollback", photos, "kept", code=1)
    assert "has no version 1:" in run("rollback", photos, 1, code=1)


def test_rows_are_added_from_every_kind_of_file(photos, tmp_path):
    kept = model()
    others = tmp_path / "others"
    Collection.create(others, CODES[30:40], ids=np.arange(10) + 500, bits=BITS, tables=False)
    run("export", others, tmp_path / "x.faiss")
    run("export", others, tmp_path / "x.arrow")
    assert run("add", photos, tmp_path / "x.faiss", "--no-tables") == f"added 10 codes: version 2 of {photos}"
    kept.add(CODES[30:40], np.arange(10) + 500)
    assert read(photos) == kept.rows
    pq.write_table(pa.table({"code": [code.tobytes() for code in CODES[30:40]]}), tmp_path / "codes.parquet")
    run("add", photos, tmp_path / "codes.parquet", "--number-rows", "--shard-rows", 4, "--no-tables")
    kept.add(CODES[30:40])
    assert read(photos) == kept.rows
    assert len(Collection.open(photos).shards) == 3 + 1 + 3
    assert "10 of 10 ids are in" in run("add", photos, tmp_path / "x.arrow", code=1)
    said = run("add", photos, tmp_path / "x.arrow", "--upsert", "--no-tables")
    assert said == f"added 10 codes, 10 of them in place of others: version 4 of {photos}"
    assert read(photos) == kept.rows
    short = parquet(tmp_path / "short.parquet", [7], np.zeros((1, 3), np.uint8))
    assert "3 bytes" in run("add", photos, short, code=1)
    wide = parquet(tmp_path / "wide.parquet", [7], CODES[:1], colour=pa.array(["red"]))
    assert "colour" in run("add", photos, wide, code=1)


@pytest.mark.usefixtures("ray_session")
def test_codes_of_an_encode_job_are_added(tmp_path):
    uris = [f"{id_}.png" for id_ in IDS.tolist()]
    path = tmp_path / "c"
    Collection.create(path, CODES[:30], ids=IDS, attributes={"uri": uris}, bits=BITS, fingerprint=FINGERPRINT)
    kept = Model(names=("uri",))
    kept.add(CODES[:30], IDS, {"uri": uris})
    codes = write_codes(tmp_path / "codes", CODES[30:35], np.array([1, 5, 600, 601, 602]))
    assert "encode them with `hashlight encode --ids name:NAME`" in (said := run("add", path, codes, code=1))
    assert f"got 1 and 1 other more than once in {path} and the codes" in said
    assert f"replace those that are there with `hashlight add {path} CODES --upsert`" in said
    assert read(path) == kept.rows
    said = run("add", path, codes, "--upsert", "--no-tables")
    assert said.endswith(f"added 5 codes, 2 of them in place of others: version 2 of {path}")
    kept.upsert(CODES[30:35], [1, 5, 600, 601, 602], {"uri": [f"{id_}.png" for id_ in (1, 5, 600, 601, 602)]})
    assert read(path) == kept.rows


def test_ids_come_from_files(photos, tmp_path, bucket):
    kept = model()
    (tmp_path / "ids.txt").write_text("1\n5\n")
    np.save(tmp_path / "ids.npy", np.array([9]))
    bucket.put("ids.txt", b"17\n")
    for file in (
        tmp_path / "ids.txt",
        tmp_path / "ids.npy",
        parquet(tmp_path / "i.parquet", [13]),
        bucket.uri("ids.txt"),
    ):
        run("delete", photos, "--ids-file", file)
    kept.delete([1, 5, 9, 13, 17])
    assert read(photos) == kept.rows
    dry = run("delete", photos, "--ids", "21,22,1", "--dry-run")
    assert dry == f"would delete 1 of 3 codes, 2 were not there: {photos} has 25 codes, and nothing was changed"
    assert run("delete", photos, "--ids", 22) == f"deleted 0 of 1 code, 1 was not there: version 5 of {photos}"
    assert read(photos) == kept.rows
    assert (
        run("delete", photos, "--ids", "21,22,21,1") == f"deleted 1 of 3 codes, 2 were not there: version 6 of {photos}"
    )
    assert run("delete", photos, "--ids", "25") == f"deleted 1 code: version 7 of {photos}"
    kept.delete([21, 25])
    assert read(photos) == kept.rows


def test_values_come_from_csv_in_the_types_of_the_collection(photos, tmp_path):
    kept = model()
    (tmp_path / "values.csv").write_text("id,label\n5,70\n9,\n")
    assert run("update", photos, tmp_path / "values.csv") == f"updated label of 2 codes: version 2 of {photos}"
    kept.update([5, 9], {"label": [70, None]})
    assert read(photos) == kept.rows
    run("update", photos, "--ids", 5, "--set-null", "label")
    kept.update([5], {"label": [None]})
    assert read(photos) == kept.rows
    run("update", photos, parquet(tmp_path / "short.parquet", [9], label=pa.array([11], pa.int16())))
    kept.update([9], {"label": [11]})
    assert read(photos) == kept.rows
    (tmp_path / "values.csv").write_text("id,label\n5,many\n")
    assert "is not readable as CSV of these attributes" in run("update", photos, tmp_path / "values.csv", code=1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["delete", "{c}"], 2, "give one of --ids, --ids-file and --filter"),
        (["delete", "{c}", "--ids", "1", "--filter", "id == 1"], 2, "give one of --ids, --ids-file and --filter"),
        (["delete", "{c}", "--ids", "1,two"], 2, "--ids must be whole numbers, got 'two'"),
        (["delete", "{c}", "--ids", str(2**63)], 2, f"--ids must be at most {2**63 - 1}"),
        (["delete", "{c}", "--filter", "nothing == 1"], 1, "nothing"),
        (["delete", "missing", "--ids", "1"], 2, "missing does not exist"),
        (["update", "{c}"], 2, "give a file of values, or ids with --set NAME=VALUE"),
        (["update", "{c}", "--ids", "1"], 2, "give a file of values, or ids with --set NAME=VALUE"),
        (["update", "{c}", "--ids", "1", "--set", "label"], 2, "--set takes NAME=VALUE"),
        (["update", "{c}", "--ids", "1", "--set", "label=x"], 1, "attribute 'label' is int64, got 'x'"),
        (["update", "{c}", "--ids", "1", "--set", "no=1"], 1, "no attribute 'no', only label"),
        (["update", "{c}", "--ids", "2", "--set", "label=1"], 1, "id 2 was not found"),
        (["update", "{c}", "--ids", "1", "--set", "label=1", "--set-null", "label"], 2, "not both"),
        (["add", "{c}", "{c}"], 2, "is a collection itself: export it first"),
        (["add", "{c}", "{images}"], 2, "encode them first: `hashlight encode --input {images} --encoder ENCODER"),
        (["add", "{c}", "{images}/a.png"], 2, "say what it is with --from, or encode images with `hashlight encode`"),
        (["build", "--codes", "{images}", "--output", "x"], 1, "encode them first: `hashlight encode --input {images}"),
        (["search", "{c}", "--codes", "{images}", "--output", "x.parquet"], 1, "encode them first: `hashlight encode"),
        (["set-column", "{c}", "{images}/twice.csv"], 1, "got 1 more than once in 2 rows: give each id once, with the"),
        (["update", "{c}", "{images}/twice.csv"], 1, "got 1 more than once in 2 rows: give each id once, with the"),
        (["add", "{c}", "{c}", "--from", "codes", "--number-rows"], 2, "leave out --*-column and --number-rows"),
        (["add", "{c}", "{c}", "--from", "parquet", "--number-rows", "--upsert"], 2, "--upsert or --number-rows"),
        (["prune", "{c}"], 2, "give --keep, --older-than, or both"),
        (["prune", "{c}", "--older-than", "7"], 2, "must be an age such as 30m, 12h, 7d or 4w, got '7'"),
        (["tag", "{c}", "1"], 1, "is not a number, got '1'"),
        (["tag", "{c}", "x", "--remove"], 1, "no version tagged 'x'"),
        (["tag", "{c}", "x", "--remove", "--version", "1"], 2, "leave out --version"),
        (["rollback", "{c}", "9"], 1, "has no version 9"),
        (["facets", "{c}", "no"], 1, "`column` must be an attribute"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_changes_nothing(photos, images, monkeypatch, arguments, code, message):
    monkeypatch.chdir(photos.parent)
    said = run(*(a.replace("{c}", str(photos)).replace("{images}", images) for a in arguments), code=code)
    assert message.replace("{images}", images) in said
    assert read(photos) == model().rows
    assert Collection.open(photos).version == 1


def test_values_are_counted(photos):
    run("update", photos, "--ids", "1,5", "--set-null", "label")
    said = json.loads(run("facets", photos, "label", "--filter", "id < 100", "--limit", 2, "--json"))
    labels = [None if id_ in (1, 5) else label for id_, label in zip(IDS.tolist(), LABELS, strict=True) if id_ < 100]
    counts = sorted(((labels.count(value), value) for value in (0, 1, 2)), key=lambda pair: (-pair[0], pair[1]))
    assert said["facets"] == [{"value": value, "count": count} for count, value in counts[:2]]
    assert run("count", photos, "--filter", "label is null") == "2"
    assert "(none) 2" in run("facets", photos, "label")


def test_a_number_agrees_with_its_noun(tmp_path):
    Collection.create(tmp_path / "c", CODES[:3], bits=BITS, tables=False)
    run("delete", tmp_path / "c", "--ids", 1)
    assert run("compact", tmp_path / "c", "--full") == f"merged 1 shard into 1: version 3 of {tmp_path / 'c'}"
    run("delete", tmp_path / "c", "--ids", 2)
    said = run("verify", tmp_path / "c", "--live")
    assert said.endswith(f"sound: version 4 of {tmp_path / 'c'} (1 version, 1 shard, 2 rows)")
    assert run("export", tmp_path / "c", tmp_path / "x.arrow").startswith("exported 1 code of 48 bits, version 4: ")


def test_nothing_to_merge_is_said(photos):
    assert run("compact", photos) == f"no shard is worth merging: version 1 of {photos}"
    assert run("rollback", photos, 1, "--dry-run").endswith(f"of version 1 of {photos}: nothing was changed")


def test_damage_is_found_and_mended(photos):
    run("delete", photos, "--ids", 1)
    before = read(photos)
    assert run("verify", photos).endswith(f"sound: version 2 of {photos} (2 versions, 3 shards, 30 rows)")
    (shard, *_) = sorted((photos / "shards").iterdir())
    (shard / "rows_by_id.npy").write_bytes(b"something else")
    said = run("verify", photos, code=1)
    assert f"can be mended [checksum] shards/{shard.name}/rows_by_id.npy (versions 1 to 2): expected " in said
    assert f"1 fault: version 2 of {photos}" in said
    mended = CliRunner().invoke(app, ["verify", str(photos), "--live", "--repair", "--json"])
    assert mended.exit_code == 0
    report = json.loads(mended.stdout)
    assert (report["sound"], report["version"], report["versions"]) == (True, 3, [3])
    assert [fault["kind"] for fault in report["mended"]] == ["checksum"]
    assert read(photos) == before
    assert "only versions before the live one have it" in run("verify", photos, code=1)


def test_numbered_rows_take_the_ids_after_those_of_a_faster_writer(photos):
    kept = model()

    def read_after_another(_live):
        Collection.open(photos).add(CODES[50:53], tables=False)
        return Incoming(BITS, None, cut_rows(Rows(CODES[30:34], np.arange(4)), 3))

    assert add_rows(photos, read_after_another, number=True, shard_rows=3, tables=False) == (3, 4, 0)
    kept.add(CODES[50:53])
    kept.add(CODES[30:34])
    assert read(photos) == kept.rows
