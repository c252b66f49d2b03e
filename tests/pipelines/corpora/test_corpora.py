"""Listing a corpus: every image once, under a stable id."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hashlight.pipelines.corpora.corpus import list_corpus, read_images, read_uri
from hashlight.pipelines.corpora.labels import labels_of
from hashlight.pipelines.jobs.errors import PipelineError


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name, value in [
        ("cat/b.png", 2),
        ("cat/a.PNG", 1),
        ("dog/c.png", 3),
        (".hidden/d.png", 4),
        ("dog/notes.txt", 5),
    ]:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return tmp_path / "photos"


def test_a_folder_is_listed_by_name_with_labels(folder):
    entries = list_corpus(folder)
    names = ["cat/a.PNG", "cat/b.png", "dog/c.png"]
    assert entries["uri"].to_pylist() == [str(folder / name) for name in names]
    assert entries["label"].to_pylist() == ["cat", "cat", "dog"]
    hashed = (hashlib.blake2b(f"photos/{name}".encode(), digest_size=8).digest() for name in names)
    expected = [int.from_bytes(digest, "little") >> 1 for digest in hashed]
    assert entries["id"].to_pylist() == expected
    assert list(read_images(entries)) == [png(1), png(2), png(3)]
    numbers, classes = labels_of(entries)
    assert (numbers.tolist(), classes) == ([0, 0, 1], ["cat", "dog"])


def test_images_that_are_not_decoded_are_listed_among_images_only(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    for name in ("a.avif", "c.HEIC", "notes.txt"):
        (tmp_path / name).write_bytes(b"?")
    assert [name.rpartition("/")[2] for name in list_corpus(tmp_path)["uri"].to_pylist()] == [
        "a.avif",
        "b.png",
        "c.HEIC",
    ]
    (tmp_path / "b.png").unlink()
    pq.write_table(pa.table({"image": pa.array([b"x"], pa.binary())}), tmp_path / "p.parquet")
    assert len(list_corpus(tmp_path)) == 1


def test_ids_do_not_depend_on_where_the_folder_is(folder, tmp_path):
    before = list_corpus(folder)["id"].to_pylist()
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / folder.name)
    assert list_corpus(moved)["id"].to_pylist() == before


def test_parquet_keeps_ids_and_other_columns_and_reads_across_row_groups(tmp_path):
    table = pa.table(
        {
            "id": pa.array(range(50, 60)),
            "image": [png(value) for value in range(10)],
            "caption": [f"picture {value}" for value in range(10)],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    entries = list_corpus(tmp_path / "a.parquet")
    assert entries.column_names == ["id", "uri", "__source", "__row", "__stamp", "__group", "caption"]
    assert entries["__group"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert list(read_images(entries)) == table["image"].to_pylist()
    picked = entries.take([1, 4, 9])
    assert list(read_images(picked)) == [png(1), png(4), png(9)]
    assert read_uri(entries["uri"][7].as_py()) == png(7)


def test_a_folder_of_parquet_files_with_image_structs(tmp_path):
    for number in range(2):
        images = [{"bytes": png(value), "path": None} for value in (number, number + 10)]
        pq.write_table(pa.table({"image": images}), tmp_path / f"{number}.parquet")
    entries = list_corpus(tmp_path)
    assert list(read_images(entries)) == [png(0), png(10), png(1), png(11)]
    assert len(set(entries["id"].to_pylist())) == 4


def test_columns_named_like_a_users_own_pass_through(tmp_path):
    table = pa.table({"image": [png(1)], "source": ["camera 3"], "row": [17]})
    pq.write_table(table, tmp_path / "a.parquet")
    entries = list_corpus(tmp_path / "a.parquet")
    assert entries.select(["source", "row"]).to_pylist() == [{"source": "camera 3", "row": 17}]
    assert list(read_images(entries)) == [png(1)]


def test_a_damaged_row_group_is_an_error_for_its_rows_only(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [png(value) for value in range(6)]}), path, row_group_size=2, compression="none")
    entries = list_corpus(path)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)
    images = list(read_images(entries))
    assert [isinstance(image, OSError) for image in images] == [False, False, True, True, False, False]
    with pytest.raises(OSError, match="row group 1"):
        read_uri(f"{path}#2")


def test_a_parquet_file_that_is_gone_is_an_error_for_its_rows(tmp_path):
    pq.write_table(pa.table({"image": [png(1)]}), tmp_path / "a.parquet")
    entries = list_corpus(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").unlink()
    assert [type(image) for image in read_images(entries)] == [FileNotFoundError]
    with pytest.raises(OSError, match="cannot be read"):
        read_uri(entries["uri"][0].as_py())


def test_what_cannot_be_read_is_an_error_for_that_image_only(folder):
    entries = list_corpus(folder)
    (folder / "cat" / "b.png").unlink()
    first, second, third = read_images(entries)
    assert (first, third) == (png(1), png(3))
    assert isinstance(second, FileNotFoundError)


def test_missing_bytes_in_parquet_are_an_error_for_that_image_only(tmp_path):
    pq.write_table(pa.table({"image": pa.array([png(1), None], pa.binary())}), tmp_path / "a.parquet")
    first, second = read_images(list_corpus(tmp_path))
    assert first == png(1)
    assert isinstance(second, OSError)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no corpus at"),
        (lambda path: path.mkdir(), "has no images: expected files ending in .apng .bmp"),
        (lambda path: (path.mkdir(), (path / "a.txt").write_text("x")), r"got 1 file: 1 \*.txt"),
        (lambda path: (path.mkdir(), (path / "a.parquet").write_bytes(b"PAR1nonsense")), "not a readable Parquet"),
        (lambda path: (path.mkdir(), pq.write_table(pa.table({"x": [1]}), path / "a.parquet")), "no column `image`"),
        (
            lambda path: (
                path.mkdir(),
                pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path / "a.parquet"),
            ),
            "no rows",
        ),
        (
            lambda path: (
                path.mkdir(),
                pq.write_table(pa.table({"image": [b"", b""], "id": [7, 7]}), path / "a.parquet"),
            ),
            "1 id occurs more than once in the corpus, for example 7",
        ),
    ],
)
def test_what_is_not_a_corpus_is_refused_with_the_reason(tmp_path, make, message):
    path = tmp_path / "corpus"
    make(path)
    with pytest.raises(PipelineError, match=message):
        list_corpus(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1, None]}, "got 1 nulls"),
        ({"id": [1, -7]}, "a minimum of -7"),
        ({"id": pa.array([1, 2**63], pa.uint64())}, "a maximum of 9223372036854775808"),
        ({"id": [0.5, 1.5]}, "must be whole numbers or texts, got double"),
        ({"id": ["a", None]}, "must be there in every row, got 1 nulls"),
        ({"id": ["a", "a"]}, "1 id occurs more than once"),
        ({"image": ["a.png", "b.png"]}, "with encoded images .binary, or a struct"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused_before_any_work(tmp_path, columns, message):
    pq.write_table(pa.table({"image": [png(1), png(2)], **columns}), tmp_path / "a.parquet")
    with pytest.raises(PipelineError, match=message):
        list_corpus(tmp_path)


def test_files_that_disagree_are_refused(tmp_path):
    pq.write_table(pa.table({"image": [png(1)], "label": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [png(1)], "label": [[1.5]]}), tmp_path / "b.parquet")
    with pytest.raises(PipelineError, match="disagree on their columns"):
        list_corpus(tmp_path)


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "caf\udce9.png").write_bytes(png(1))
    with pytest.raises(PipelineError, match="is not UTF-8"):
        list_corpus(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"a.png\nb.png\ncaf\xe9.png\n",
            r"line 3 of .*list\.txt is not UTF-8: b'caf\\xe9\.png': expected a text in UTF-8",
        ),
        ("a.png\nb.png\n".encode("utf-16"), r"line 1 of .*list\.txt is not UTF-8"),
        (b"a.png\n" + b"x" * 3_000_000, r"line 2 of .*list\.txt has more than 1,048,576 bytes"),
    ],
)
def test_a_list_that_is_not_a_text_is_refused_by_its_line(tmp_path, data, message):
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(PipelineError, match=message):
        list_corpus(tmp_path / "list.txt")


def test_the_mark_at_the_beginning_of_a_text_is_not_part_of_a_name(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffa.png\r\nb\ufeff.png".encode())
    assert list_corpus(tmp_path / "list.txt")["uri"].to_pylist() == [f"{tmp_path}/a.png", f"{tmp_path}/b\ufeff.png"]


@pytest.mark.parametrize("name", ["uri", "caption"])
def test_a_text_in_parquet_that_is_not_utf8_is_refused(tmp_path, name):
    columns = {"uri": pa.array([b"a.png", b"b.png"]), name: pa.array([b"a", b"caf\xe9"])}
    texts = pa.table({key: pa.StringArray.from_buffers(2, *column.buffers()[1:]) for key, column in columns.items()})
    pq.write_table(texts, tmp_path / "list.parquet")
    with pytest.raises(PipelineError, match=r"list\.parquet is not a readable Parquet file: .*UTF"):
        list_corpus(tmp_path / "list.parquet")


def test_labels_are_needed_where_they_are_asked_for(tmp_path):
    pq.write_table(pa.table({"image": [b"", b""], "label": [1, None]}), tmp_path / "a.parquet")
    with pytest.raises(PipelineError, match="1 of 2 images have no label"):
        labels_of(list_corpus(tmp_path))
    with pytest.raises(PipelineError, match=r"got \['uri'\] beside the images"):
        labels_of(list_corpus(tmp_path).drop_columns(["label"]))
