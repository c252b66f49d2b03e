"""The plan of a job whose corpus changes: units whose entries stay, stay."""

from __future__ import annotations

import os
import struct
import uuid

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hashlight.engine.places.opening import open_place
from hashlight.pipelines.corpora.work import WorkList, WorkSummary, WorkWriter, list_work
from hashlight.pipelines.encoding import plan
from hashlight.pipelines.encoding.plan import put_plan
from tests.pipelines.corpora.test_accounting import tar_of


def listed(folder, *, size=3):
    """Plan a folder again; return {number: uris of the unit} and all numbers in the order of the plan."""
    work = folder.parent / "work.arrow"
    list_work(folder, work, unit_images=size)
    put_plan(open_place(folder.parent / "codes"), work, size, str(work))
    with pa.OSFile(str(folder.parent / "codes" / "plan.arrow")) as raw:
        found = WorkList(raw, "work.arrow")
        units = dict(found.read_numbered(place) for place in range(found.summary.units))
        assert list(units) == found.units().numbers.tolist()
        assert found.summary.images == sum(map(len, units.values()))
    return {number: [os.path.basename(uri) for uri in unit["uri"].to_pylist()] for number, unit in units.items()}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in "bcdefghi":
        write(folder, name)
    return folder


def write(folder, name, data=b"x"):
    (folder / name).with_suffix(".png").write_bytes(data)


BEFORE = {0: ["b.png", "c.png", "d.png"], 1: ["e.png", "f.png", "g.png"], 2: ["h.png", "i.png"]}


def test_nothing_changes_if_nothing_changed(folder):
    assert listed(folder) == BEFORE
    before = (folder.parent / "codes" / "plan.arrow").read_bytes()
    assert listed(folder, size=2) == BEFORE
    assert (folder.parent / "codes" / "plan.arrow").read_bytes() == before


def test_new_images_before_between_and_after_make_units_of_their_own(folder):
    listed(folder)
    for name in ("a", "bb", "ee", "k"):
        write(folder, name)
    assert listed(folder) == {**BEFORE, 3: ["a.png", "bb.png", "ee.png"], 4: ["k.png"]}
    write(folder, "ab")
    assert listed(folder) == {**BEFORE, 3: ["a.png", "bb.png", "ee.png"], 4: ["k.png"], 5: ["ab.png"]}


@pytest.mark.parametrize("first", [True, False])
def test_an_image_that_is_gone_costs_its_unit(folder, first):
    listed(folder)
    (folder / ("e.png" if first else "f.png")).unlink()
    assert listed(folder) == {0: BEFORE[0], 2: BEFORE[2], 3: ["f.png" if first else "e.png", "g.png"]}


def test_an_image_that_was_written_again_or_touched_costs_its_unit(folder):
    listed(folder)
    write(folder, "c", b"another")
    os.utime(folder / "i.png", ns=(1, 1))
    assert listed(folder) == {1: BEFORE[1], 3: ["b.png", "c.png", "d.png"], 4: ["h.png", "i.png"]}


def ranges(folder, size):
    """Plan a folder of tars again; return {number: (tar, first byte, first byte after it)}."""
    work = folder.parent / "work.arrow"
    list_work(folder, work, unit_images=size)
    put_plan(open_place(folder.parent / "codes"), work, size, str(work))
    with pa.OSFile(str(folder.parent / "codes" / "plan.arrow")) as raw:
        found = WorkList(raw, "work.arrow")
        units = dict(found.read_numbered(place) for place in range(found.summary.units))
    columns = ("uri", "__start", "__stop")
    return {number: tuple(unit[name][0].as_py() for name in columns) for number, unit in units.items()}


def test_tars_that_do_not_change_stay_divided_as_they_were(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    images = [(f"{number}.png", b"%d" % number) for number in range(6)]
    for name in ("b.tar", "c.tar"):
        (folder / name).write_bytes(tar_of(images))
    before = {
        **{0: ("b.tar", 0, 2048), 1: ("b.tar", 2048, 4096), 2: ("b.tar", 4096, -1)},
        **{3: ("c.tar", 0, 2048), 4: ("c.tar", 2048, 4096), 5: ("c.tar", 4096, -1)},
    }
    assert ranges(folder, 2) == before
    assert ranges(folder, 3) == before
    (folder / "a.tar").write_bytes(tar_of(images))
    assert ranges(folder, 5) == before | {6: ("a.tar", 0, 5120), 7: ("a.tar", 5120, -1)}
    (folder / "b.tar").write_bytes(tar_of([*images, ("x.png", b"x")]))
    now = ranges(folder, 9)
    assert now == {number: range_ for number, range_ in before.items() if number > 2} | {
        6: ("a.tar", 0, 5120),
        7: ("a.tar", 5120, -1),
        8: ("b.tar", 0, -1),
    }
    os.utime(folder / "c.tar", ns=(1, 1))
    assert {range_[0] for number, range_ in ranges(folder, 2).items() if number > 8} == {"c.tar"}


def test_a_plan_that_changes_says_first_that_the_codes_are_not_whole(folder, monkeypatch):
    listed(folder)
    codes = open_place(folder.parent / "codes")
    codes.put("codes.json", b"{}")
    listed(folder)
    assert codes.exists("codes.json")
    write(folder, "a")
    list_work(folder, folder.parent / "work.arrow", unit_images=3)
    monkeypatch.setattr(type(codes), "put_file", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        put_plan(codes, folder.parent / "work.arrow", 3, "work.arrow")
    assert not codes.exists("codes.json")
    monkeypatch.undo()
    assert listed(folder) == {**BEFORE, 3: ["a.png"]}


def write_list(path, entries, size):
    """A work list of images whose names are numbers, each in some version."""
    columns = {
        "id": pa.array(list(entries), pa.int64()),
        "uri": pa.array(map(str, entries), pa.string()),
        "__source": pa.array(map(str, entries), pa.string()),
        "__row": pa.array([-1] * len(entries), pa.int64()),
        "__stamp": pa.array(map(str, entries.values()), pa.string()),
    }
    table = pa.table(columns)
    with WorkWriter(path) as work:
        for start in range(0, len(table), size):
            work.add(table.slice(start, size))
        work.finish(WorkSummary("c", "images", 0, len(table), table.column_names, "", "auto", "c"))


def read_list(path):
    """{number: {name: version}} of a plan."""
    with pa.OSFile(str(path)) as raw:
        work = WorkList(raw, "work.arrow")
        units = [work.read_numbered(place) for place in range(work.summary.units)]
    return {
        number: dict(zip(unit["id"].to_pylist(), map(int, unit["__stamp"].to_pylist()), strict=True))
        for number, unit in units
    }


LISTS = st.dictionaries(st.integers(0, 40), st.integers(0, 2), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LISTS, min_size=2, max_size=4), st.integers(1, 5), st.integers(1, 5))
def test_every_entry_is_in_one_unit_and_whole_units_stay(tmp_path, versions, size, cut):
    """Folders, listed by name, with any images added, removed and replaced."""
    codes = open_place(tmp_path / str(uuid.uuid4()))
    before = {}
    for version in versions:
        entries = dict(sorted(version.items()))
        write_list(tmp_path / "new.arrow", entries, cut)
        put_plan(codes, tmp_path / "new.arrow", size, "new.arrow")
        now = read_list(codes.local / "plan.arrow")
        found = [pair for unit in now.values() for pair in unit.items()]
        assert sorted(found) == list(entries.items()), "each once, in its new version"
        kept = {number: unit for number, unit in before.items() if unit.items() <= entries.items()}
        assert kept.items() <= now.items()
        assert {number: unit for number, unit in now.items() if number in before} == kept, "others have new numbers"
        before = now


def test_of_too_many_units_that_lie_within_each_other_some_are_given_up(tmp_path, monkeypatch):
    codes = open_place(tmp_path / "codes")
    monkeypatch.setattr(plan, "_MAX_OPEN", 2)
    versions = [[0, 50, 100], [1, 51], [2, 52], [3, 53], [4, 54]]
    for number in range(1, 6):
        entries = sorted(name for version in versions[:number] for name in version)
        write_list(tmp_path / "new.arrow", dict.fromkeys(entries, 0), 1)
        put_plan(codes, tmp_path / "new.arrow", 9, "new.arrow")
    now = {number: list(unit) for number, unit in read_list(codes.local / "plan.arrow").items()}
    assert now == {0: [0], 1: [50], 2: [100], 4: [2, 52], 5: [3, 53], 6: [1, 4, 51, 54]}


def test_labels_of_idx_files_that_change_alone_make_new_units(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "t-images-idx3-ubyte").write_bytes(struct.pack(">HBB3I", 0, 8, 3, 9, 2, 2) + bytes(36))
    units = []
    for labels in (bytes(9), bytes(8) + b"\5"):
        (folder / "t-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 9) + labels)
        listed(folder)
        with pa.OSFile(str(tmp_path / "codes" / "plan.arrow")) as raw:
            work = WorkList(raw, "plan.arrow")
            units.append([work.read_numbered(place) for place in range(work.summary.units)])
    assert [[number for number, _ in found] for found in units] == [[0, 1, 2], [0, 1, 3]]
    assert [unit["label"].to_pylist() for _, unit in units[1]] == [[0] * 3, [0] * 3, [0, 0, 5]]
