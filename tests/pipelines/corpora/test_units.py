"""How a corpus is divided into units, so that nothing is read again for each: row groups, compressed files, tars."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import struct
import tarfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hashlight.pipelines.corpora.corpus import Readers, list_corpus, read_images
from hashlight.pipelines.corpora.kinds import webdataset
from hashlight.pipelines.corpora.kinds.webdataset import read_shard
from hashlight.pipelines.corpora.work import WorkList, cut, list_work
from tests.pipelines.corpora.test_accounting import PHOTOS, members, tar_of
from tests.pipelines.reads import Reads


def units_of(corpus, path, **options):
    """The units of a corpus, and what the list says of them."""
    list_work(corpus, path, **options)
    with pa.OSFile(str(path)) as raw:
        work = WorkList(raw, "work.arrow")
        return list(work.read_all()), work.units()


def noise(rows, size):
    """Images that cannot be decoded, or compressed."""
    rng = np.random.default_rng(rows)
    return [b"%05d" % row + rng.bytes(size) for row in range(rows)]


def write_parquet(path, images, row_group_size):
    table = pa.table({"image": pa.array(images, pa.binary())})
    pq.write_table(
        table, path, row_group_size=row_group_size, data_page_size=1 << 14, write_batch_size=4, use_dictionary=False
    )


def write_idx(path, rows):
    pixels = np.random.default_rng(rows).integers(256, size=(rows, 40, 40), dtype=np.uint8)
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, *pixels.shape) + pixels.tobytes(), 1))


# Groups: the lengths of runs of entries, and whether each run is one group.
runs = st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=12)


@settings(deadline=None)
@given(runs, st.integers(1, 6), st.integers(1, 9))
def test_a_group_is_divided_only_if_it_is_larger_than_a_unit(runs, size, chunk):
    groups = [number if is_group else -1 for number, (length, is_group) in enumerate(runs) for _ in range(length)]
    table = pa.table({"id": range(len(groups)), "__source": [f"f{group // 2}" for group in groups], "__group": groups})
    units = list(cut((table.slice(start, chunk) for start in range(0, len(table), chunk)), size))
    assert pa.concat_tables(units).equals(table)
    assert all(1 <= len(unit) <= size for unit in units)
    lengths = Counter(groups)
    for group in set(groups) - {-1}:
        having = [unit["__group"].to_pylist() for unit in units if group in unit["__group"].to_pylist()]
        assert len(having) == -(-lengths[group] // size), "in as few units as can be"
        if lengths[group] > size:
            assert all(unit[0] == group for unit in having)
    for unit, following in itertools.pairwise(units):
        assert len(unit) == size or following["__group"][0].as_py() >= 0


def test_without_groups_all_units_but_the_last_are_full():
    table = pa.table({"id": range(23)})
    units = list(cut((table.slice(start, 5) for start in range(0, 23, 5)), 4))
    assert [len(unit) for unit in units] == [4, 4, 4, 4, 4, 3]


@pytest.mark.parametrize(("images", "num_units"), [(99, 1), (796, 8), (8_105, 63), (1_000_000, 598)])
@pytest.mark.parametrize("is_group", [False, True])
def test_units_grow_with_the_corpus(images, num_units, is_group):
    """A small corpus has work for many actors, and a large one has few units; of one large group, too."""
    table = pa.table({"id": range(images), "__source": ["f"] * images, "__group": [0 if is_group else -1] * images})
    expected, left = [], images
    while left:
        before = images - left
        expected.append(min(left, 2000, max(100, int(before / 32))))
        left -= expected[-1]
    assert len(expected) == num_units
    assert [len(unit) for unit in cut([table], 2000)] == expected


@pytest.mark.parametrize(
    ("row_group_size", "expected"),
    [(50, [10] * 5), (8, [8] * 5 + [10]), (5, [10] * 5), (25, [10, 10, 5] * 2)],
)
def test_units_of_row_groups(tmp_path, row_group_size, expected):
    write_parquet(tmp_path / "a.parquet", noise(50, 10), row_group_size)
    units, said = units_of(tmp_path / "a.parquet", tmp_path / "work.arrow", unit_images=10)
    assert [len(unit) for unit in units] == expected
    first_group = [unit["__row"][0].as_py() // row_group_size for unit in units]
    same = [left == right for left, right in itertools.pairwise(first_group)]
    assert [left == right for left, right in itertools.pairwise(said.groups.tolist())] == same
    assert (said.groups != 0).all()


def test_what_has_no_groups_says_so(tmp_path):
    (tmp_path / "uris.txt").write_text("a.png\nb.png\n")
    pq.write_table(pa.table({"uri": ["a.png", "b.png"]}), tmp_path / "uris.parquet")
    for name in ("uris.txt", "uris.parquet"):
        units, said = units_of(tmp_path / name, tmp_path / "work.arrow", unit_images=1)
        assert (len(units), said.groups.tolist()) == (2, [0, 0])


@pytest.mark.parametrize(("kind", "num_units"), [("parquet", 10), ("idx", 40)])
def test_one_row_group_of_ten_units_or_more_is_read_once(tmp_path, monkeypatch, kind, num_units):
    """Each unit read it from its start: 5.5 times."""
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a-images-idx3-ubyte.gz")
    if kind == "parquet":
        images = noise(1000, 12_000)
        write_parquet(path, images, 1000)
    else:
        write_idx(path, 4000)
        images = list(read_images(list_corpus(path)))
    units, _ = units_of(path, tmp_path / "work.arrow", unit_images=len(images) // 10)
    reads = Reads(monkeypatch)
    with Readers() as readers:
        found = [image for unit in units for image in read_images(unit, readers)]
    assert (len(units), found == images) == (num_units, True)
    assert reads.opened == {path.name: 1}
    assert reads.num_bytes[path.name] < 1.2 * path.stat().st_size


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 599), min_size=1, max_size=6, unique=True).map(sorted), min_size=1, max_size=6))
@example([[0, 1], [2, 500], [499, 599], [0]])
def test_rows_in_any_order_are_the_same_read_on_or_from_the_start(tmp_path, asked):
    """Units are read again, or not at all, when a job is resumed or its rejects are tried again."""
    if not (tmp_path / "a.parquet").exists():
        write_parquet(tmp_path / "a.parquet", noise(600, 20), 400)
        write_idx(tmp_path / "b-images-idx3-ubyte.gz", 600)
    for name in ("a.parquet", "b-images-idx3-ubyte.gz"):
        entries = list_corpus(tmp_path / name)
        expected = list(read_images(entries))
        with Readers() as readers:
            for rows in asked:
                assert list(read_images(entries.take(rows), readers)) == [expected[row] for row in rows]


def test_a_row_group_that_is_damaged_costs_the_rows_from_there_on_however_it_is_read(tmp_path):
    write_parquet(tmp_path / "a.parquet", noise(1000, 3_000), 500)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    place = data.index(b"%05d" % 300)
    data[place : place + 40_000] = b"\xff" * 40_000  # the headers of some pages
    (tmp_path / "a.parquet").write_bytes(data)
    entries = list_corpus(tmp_path / "a.parquet")
    alone = [image for start in range(0, 1000, 50) for image in read_images(entries.slice(start, 50))]
    with Readers() as readers:
        together = [image for start in range(0, 1000, 50) for image in read_images(entries.slice(start, 50), readers)]
    good = [isinstance(image, bytes) for image in together]
    assert good == [isinstance(image, bytes) for image in alone]
    assert (all(good[500:]), all(good[:200]), any(good[350:500])) == (True, True, False)
    assert "row group 0" in str(together[499])


def ranges_of(path, size):
    """The entries of a tar's ranges, and the images that reading them gives."""
    units, _ = units_of(path, path.with_suffix(".arrow"), unit_images=size)
    skipped = Counter()
    bounds = [(unit["__start"][0].as_py(), unit["__stop"][0].as_py()) for unit in units]
    samples = [
        [(sample.name, sample.data if isinstance(sample.data, bytes) else None, sample.attributes) for sample in read]
        for read in (read_shard(str(path), start=start, stop=stop, skipped=skipped) for start, stop in bounds)
    ]
    return units, samples, skipped


def key(name):
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


LONG = [(f"{'long/' * 60}{number}.png", b"1") for number in range(9)]


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    members=members,
    size=st.integers(1, 4),
    format=st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)),
    suffix=st.sampled_from((".tar", ".tar.gz")),
)
@example(members=PHOTOS, size=2, format=tarfile.PAX_FORMAT, suffix=".tar")
@example(members=LONG, size=2, format=tarfile.PAX_FORMAT, suffix=".tar")
@example(members=LONG, size=2, format=tarfile.PAX_FORMAT, suffix=".tar.gz")
@example(members=LONG, size=2, format=tarfile.GNU_FORMAT, suffix=".tar")
def test_the_ranges_of_a_tar_have_what_the_tar_has(tmp_path, monkeypatch, members, size, format, suffix):
    """Files seen = images + texts that describe them + left out, in all ranges together."""
    monkeypatch.setattr(webdataset, "_MAX_WHOLE_BYTES_OF_FEW", 0)
    path = tmp_path / f"0{suffix}"
    path.write_bytes(tar_of(members, "w:gz" if suffix == ".tar.gz" else "w", format=format))
    whole = Counter()
    expected = [
        (sample.name, sample.data if isinstance(sample.data, bytes) else None, sample.attributes)
        for sample in read_shard(str(path), skipped=whole)
    ]
    units, samples, skipped = ranges_of(path, size)
    assert list(itertools.chain(*samples)) == expected
    assert skipped == whole
    assert len({unit["id"][0].as_py() for unit in units}) == len(units)
    for before, after in itertools.pairwise(samples):
        assert key(before[-1][0]) != key(after[0][0]), "no sample is cut apart"
    for images in samples[:-1]:
        assert len(images) >= size
        assert len(images) < size + sum(key(name) == key(images[-1][0]) for name, *_ in images), "nor are there more"


def numbered(count, size=100):
    return [(f"{number:05d}.png", b"%05d" % number * (size // 5)) for number in range(count)]


def test_a_tar_of_many_images_is_many_units_and_only_its_headers_are_read_for_that(tmp_path, monkeypatch):
    path = tmp_path / "0.tar"
    path.write_bytes(tar_of(numbered(200, 50_000)))
    reads = Reads(monkeypatch)
    starts = webdataset._starts_of(str(path), 20)
    assert (len(starts), reads.opened["0.tar"]) == (10, 1)
    assert reads.num_bytes["0.tar"] < 0.1 * path.stat().st_size
    reads.clear()
    for start, stop in itertools.pairwise([*starts, -1]):
        assert len(list(read_shard(str(path), start=start, stop=stop))) == 20
    assert reads.num_bytes["0.tar"] < 1.5 * path.stat().st_size, "5.5 times if each were read from the start"


def test_the_ranges_of_one_tar_grow_and_those_of_later_tars_are_larger_from_the_start(tmp_path):
    path = tmp_path / "0.tar"
    path.write_bytes(tar_of(numbered(796, 10)))
    counts = [
        np.diff([*map(ends_of(path).index, webdataset._starts_of(str(path), 2000, listed=listed)), 796]).tolist()
        for listed in (0, 9_600, 64_000)
    ]
    assert counts == [[100] * 7 + [96], [300, 309, 187], [796]]


def ends_of(path):
    """Where each image begins."""
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def whole_because(path, members, **options):
    path.write_bytes(tar_of(members, **options))
    units, samples, _ = ranges_of(path, 2)
    (unit,) = units
    assert (unit["__start"].to_pylist(), unit["__stop"].to_pylist()) == ([0], [-1])
    return samples[0]


def test_tars_that_have_to_be_read_whole_are_one_unit(tmp_path):
    assert len(whole_because(tmp_path / "a.tar.gz", numbered(9), mode="w:gz")) == 9
    assert len(whole_because(tmp_path / "b.tar", numbered(9), pax_headers={"comment": "x"})) == 9
    # The second of a name is a reject, wherever the first is.
    assert len(whole_because(tmp_path / "c.tar", [*numbered(9), *numbered(1)])) == 10
    assert len(whole_because(tmp_path / "d.tar", [(f"IMG.{number}.png", b"1") for number in range(9)])) == 9


def test_a_damaged_tar_is_divided_before_the_damage(tmp_path):
    data = bytearray(tar_of(numbered(10)))
    data[7 * 1024 + 110] ^= 1
    (tmp_path / "0.tar").write_bytes(data)
    _, samples, _ = ranges_of(tmp_path / "0.tar", 2)
    assert [[name for name, *_ in images] for images in samples] == [
        ["00000.png", "00001.png"],
        ["00002.png", "00003.png"],
        ["00004.png", "00005.png"],
        ["00006.png", ""],
    ]
    (tmp_path / "0.tar").write_bytes(data[: 5 * 1024 + 512 + 20])
    _, samples, _ = ranges_of(tmp_path / "0.tar", 2)
    assert [len(images) for images in samples] == [2, 2, 2]
    assert samples[-1][-1][:2] == ("", None)


def test_a_tar_of_a_bucket_is_divided_if_it_is_large(bucket, tmp_path, monkeypatch):
    bucket.put("shards/0.tar", tar_of(numbered(9)))
    bucket.put("shards/1.tar", tar_of(numbered(2)))
    reads = Reads(monkeypatch)
    units, _ = units_of(bucket.uri("shards"), tmp_path / "work.arrow", unit_images=3)
    assert [unit["uri"].to_pylist() for unit in units] == [["0.tar"], ["1.tar"]]
    assert reads.opened == {"0.tar": 1, "1.tar": 1}, "for the attributes of the first images"
    monkeypatch.setattr(webdataset, "_MAX_WHOLE_BYTES_OF_FEW", 4096)
    units, _ = units_of(bucket.uri("shards"), tmp_path / "work.arrow", unit_images=3)
    assert [unit["uri"].to_pylist() for unit in units] == [["0.tar"]] * 3 + [["1.tar"]]
    found = [
        sample.name
        for unit in units
        for sample in read_shard(
            *unit["__source"].to_pylist(), start=unit["__start"][0].as_py(), stop=unit["__stop"][0].as_py()
        )
    ]
    assert found == [name for name, _ in numbered(9) + numbered(2)]
    monkeypatch.setattr(webdataset, "_FEW_SHARDS", 1)
    units, _ = units_of(bucket.uri("shards"), tmp_path / "work.arrow", unit_images=3)
    assert [unit["uri"].to_pylist() for unit in units] == [["0.tar"], ["1.tar"]], "two are work enough for all"


def test_few_shards_are_told_from_many_without_listing_them_all():
    listed = []

    def listing(sizes):
        for size in sizes:
            listed.append(size)
            yield pa.table({"id": range(size)})

    for sizes, are_few, num_listed in (([64], True, 1), ([30, 34], True, 2), ([30, 35, 1, 1], False, 2), ([], True, 0)):
        listed.clear()
        found, shards = webdataset.find_few(listing(sizes))
        assert (found, len(listed)) == (are_few, num_listed)
        assert [len(table) for table in shards] == sizes


def compressed(data, suffix):
    if suffix == "tar.zst":
        return pa.compress(data, "zstd", asbytes=True)
    return {"tar.gz": gzip, "tar.bz2": bz2, "tar.xz": lzma}[suffix].compress(data)


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.zst"])
def test_a_large_compressed_tar_is_many_units_and_one_reader_reads_it_once(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"0.{suffix}"
    names = [f"{number:03d}.png" for number in range(200)]
    data = list(zip(names, noise(200, 3_000), strict=True))
    path.write_bytes(compressed(tar_of(data), suffix))
    monkeypatch.setattr(webdataset, "_MAX_WHOLE_BYTES_OF_FEW", path.stat().st_size)
    assert len(units_of(path, tmp_path / "work.arrow", unit_images=20)[0]) == 1
    monkeypatch.setattr(webdataset, "_MAX_WHOLE_BYTES_OF_FEW", path.stat().st_size - 1)
    units, said = units_of(path, tmp_path / "work.arrow", unit_images=20)
    bounds = [(unit["__start"][0].as_py(), unit["__stop"][0].as_py()) for unit in units]
    assert (len(bounds), len(set(said.groups.tolist())), said.groups.all()) == (10, 1, True)
    reads = Reads(monkeypatch)
    with Readers() as readers:
        read = [list(read_shard(str(path), start=a, stop=b, opened=readers.shard)) for a, b in bounds]
    assert [[(sample.name, sample.data) for sample in range_] for range_ in read] == [
        data[first : first + 20] for first in range(0, 200, 20)
    ]
    assert (reads.opened[path.name], reads.num_bytes[path.name] < 1.01 * path.stat().st_size) == (1, True)
    alone = [list(read_shard(str(path), start=a, stop=b)) for a, b in bounds]
    assert alone == read


@pytest.mark.parametrize("suffix", ["tar.bz2", "tar.xz"])
def test_a_tar_that_is_decompressed_more_slowly_than_images_are_decoded_is_one_unit(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(webdataset, "_MAX_WHOLE_BYTES_OF_FEW", 0)
    path = tmp_path / f"0.{suffix}"
    path.write_bytes(compressed(tar_of(numbered(9)), suffix))
    units, _ = units_of(path, tmp_path / "work.arrow", unit_images=3)
    assert [unit["__stop"].to_pylist() for unit in units] == [[-1]]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6))
@example([(0, 3), (1, 9), (5, 1), (4, 9), (9, 9), (9, 9)])
def test_ranges_of_a_compressed_tar_in_any_order_are_the_same_read_on_or_from_the_start(tmp_path, asked):
    """Of a range, the first images may be all that is wanted."""
    path = tmp_path / "0.tar.gz"
    if not path.exists():
        path.write_bytes(compressed(tar_of(numbered(40)), "tar.gz"))
    bounds = list(itertools.pairwise([*ends_of(path)[::4], -1]))
    with Readers() as readers:
        for place, wanted in asked:
            start, stop = bounds[place]
            samples = read_shard(str(path), start=start, stop=stop, opened=readers.shard)
            found = [sample.name for sample in itertools.islice(samples, wanted)]
            samples.close()
            assert found == [name for name, _ in numbered(40)[4 * place : 4 * place + 4]][:wanted]
