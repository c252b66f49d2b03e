"""Corpora of embeddings: every kind of file, read with the right rows, ids and attributes, or refused."""

import hashlib
import json

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from hashlight.pipelines.corpora.embeddings.corpus import open_corpus, open_file
from hashlight.pipelines.corpora.embeddings.listing import list_embeddings
from hashlight.pipelines.corpora.embeddings.rows import RowReader
from hashlight.pipelines.corpora.kinds.webdataset import START, STOP
from hashlight.pipelines.corpora.listing import SOURCE, STAMP, File
from hashlight.pipelines.corpora.work import WorkList
from hashlight.pipelines.jobs.errors import PipelineError

X = np.random.default_rng(0).standard_normal((250, 24)).astype(np.float32)


def read(corpus, tmp_path, *, column="", ids="auto", unit_rows=100):
    """List a corpus, and read all of its units: one table, the embeddings, and the rows without one."""
    path = tmp_path / "work.arrow"
    found = open_corpus(corpus, column)
    summary = list_embeddings(found, path, ids=ids, unit_rows=unit_rows)
    assert summary.images == found.rows
    tables, parts, faults, first = [], [], {}, 0
    with pa.memory_map(str(path)) as raw:
        work = WorkList(raw, "work")
        assert work.summary == summary
        reader = RowReader(column=summary.embedding_column, dims=found.dims, ids=summary.id_rule)
        for entry in work.read_all():
            name, source, stamp, start, stop = (entry[c][0].as_py() for c in ("uri", SOURCE, STAMP, START, STOP))
            assert stop - start <= unit_rows
            for rows in reader.read(File(source, name, stamp), start, stop):
                tables.append(rows.entries)
                parts.append(np.asarray(rows.embeddings))
                faults |= {first + row: words for row, words in rows.faults.items()}
                first += len(rows.embeddings)
        reader.close()
    table = pa.concat_tables(tables, promote_options="permissive")
    assert [name for name in summary.columns if not name.startswith("__")] == table.column_names
    return table, np.concatenate(parts), faults


def name_hash(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", "<f8"])
def test_npy_files_are_read_by_rows_and_named_by_them(tmp_path, kind):
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "a.npy", X[:130].astype(kind))
    np.save(folder / "b.npy", X[130:].astype(kind))
    (folder / "notes.txt").write_text("not embeddings")
    table, embeddings, faults = read(folder, tmp_path)
    assert (embeddings == X.astype(kind)).all()
    assert not faults
    assert table["uri"][131].as_py() == f"{folder}/b.npy#1"
    assert table["id"].to_pylist()[:2] == [name_hash("vectors/a.npy#0"), name_hash("vectors/a.npy#1")]
    assert table["id"][131].as_py() == name_hash("vectors/b.npy#1")
    assert open_corpus(folder).skipped == {"*.txt": 1}
    assert read(folder / "a.npy", tmp_path)[0].equals(table.slice(0, 130))


def test_bfloat16_of_numpy_is_widened(tmp_path):
    top = (X.view("<u4") >> 16).astype("<u2")
    np.save(tmp_path / "x.npy", top.view("V2"))
    _, embeddings, _ = read(tmp_path / "x.npy", tmp_path)
    assert embeddings.dtype == np.float32
    assert (embeddings.view("<u4") == top.astype("<u4") << 16).all()


def table_of(kind, x=X, **columns):
    lists = kind(x)
    return pa.table(
        {
            "id": pa.array(np.arange(len(x)) * 3, pa.int32()),
            "name": [f"n{i}" for i in range(len(x))],
            "embedding": lists,
            **columns,
        }
    )


def fixed(x):
    return pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])


LISTS = {
    "fixed": fixed,
    "lists": lambda x: pa.array(list(x), pa.list_(pa.float32())),
    "large": lambda x: pa.array(list(x), pa.large_list(pa.float64())),
    "half": lambda x: pa.FixedSizeListArray.from_arrays(pa.array(x.astype(np.float16).reshape(-1)), x.shape[1]),
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("form", ["parquet", "feather", "stream"])
def test_lists_of_parquet_and_arrow_with_ids_and_attributes(tmp_path, kind, form):
    table = table_of(LISTS[kind])
    path = tmp_path / ("x.parquet" if form == "parquet" else "x.arrow")
    if form == "parquet":
        pq.write_table(table, path, row_group_size=60)
    elif form == "feather":
        pyarrow.feather.write_feather(table, path, chunksize=60)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=60)
    entries, embeddings, faults = read(path, tmp_path)
    assert (embeddings == (X.astype(np.float16) if kind == "half" else X)).all()
    assert entries["id"].to_pylist() == (np.arange(250) * 3).tolist()
    assert entries["name"].to_pylist() == table["name"].to_pylist()
    assert entries.column_names == ["id", "uri", "name"]
    assert not faults


def test_units_end_where_row_groups_do_and_a_reader_goes_on_within_one(tmp_path, monkeypatch):
    pq.write_table(table_of(fixed), tmp_path / "x.parquet", row_group_size=60)
    path = tmp_path / "work.arrow"

    def ranges(unit_rows):
        list_embeddings(open_corpus(tmp_path / "x.parquet"), path, unit_rows=unit_rows)
        with pa.memory_map(str(path)) as raw:
            work = WorkList(raw, "work")
            groups = work.units().groups
            return [(e[START][0].as_py(), e[STOP][0].as_py()) for e in work.read_all()], groups

    assert ranges(125)[0] == [(0, 120), (120, 240), (240, 250)]
    inside, groups = ranges(40)
    assert inside == [
        (0, 40),
        (40, 60),
        (60, 100),
        (100, 120),
        (120, 160),
        (160, 180),
        (180, 220),
        (220, 250),
    ]
    assert len(np.unique(groups)) == 4
    opened = []
    monkeypatch.setattr(
        "hashlight.pipelines.corpora.embeddings.rows.open_file",
        lambda *arguments: opened.append(arguments) or open_file(*arguments),
    )
    assert (read(tmp_path / "x.parquet", tmp_path, unit_rows=40)[1] == X).all()
    assert len(opened) == 1


def test_rows_without_an_embedding_are_told_apart(tmp_path):
    lists = [*map(list, X.tolist())]
    lists[7], lists[9], lists[11] = None, lists[9][:5], [*lists[11][:3], None, *lists[11][4:]]
    pq.write_table(pa.table({"e": pa.array(lists, pa.list_(pa.float32()))}), tmp_path / "x.parquet")
    _, embeddings, faults = read(tmp_path / "x.parquet", tmp_path)
    assert faults == {7: "it has no embedding", 9: "it has 5 numbers, not 24"}
    assert np.isnan(embeddings[11]).sum() == 1
    good = np.setdiff1d(np.arange(250), [7, 9, 11])
    assert (embeddings[good] == X[good]).all()


def clip_folder(root):
    """The layout of clip-retrieval's `inference`: numbered files of half precision, and metadata beside them."""
    for name in ("img_emb", "text_emb", "metadata"):
        (root / name).mkdir(parents=True)
    for number, rows in enumerate((slice(0, 100), slice(100, 250))):
        np.save(root / "img_emb" / f"img_emb_{number}.npy", X[rows].astype(np.float16))
        np.save(root / "text_emb" / f"text_emb_{number}.npy", -X[rows].astype(np.float16))
        about = {"image_path": [f"{i:09d}" for i in range(250)][rows], "caption": [f"a {i}" for i in range(250)][rows]}
        pq.write_table(pa.table(about), root / "metadata" / f"metadata_{number}.parquet", row_group_size=70)
    return root


def test_a_folder_of_clip_retrieval(tmp_path):
    root = clip_folder(tmp_path / "laion")
    table, embeddings, _ = read(root, tmp_path)
    assert (embeddings == X.astype(np.float16)).all()
    assert table["caption"].to_pylist() == [f"a {i}" for i in range(250)]
    assert table["id"][120].as_py() == name_hash("laion/img_emb/img_emb_1.npy#20")
    alone, texts, _ = read(root / "text_emb", tmp_path)
    assert (texts == -X.astype(np.float16)).all()
    assert alone["image_path"].to_pylist() == table["image_path"].to_pylist()
    pq.write_table(pa.table({"caption": ["only one"]}), root / "metadata" / "metadata_1.parquet")
    with pytest.raises(PipelineError, match=r"metadata_1\.parquet has 1 rows, .*img_emb_1\.npy has 150 embeddings"):
        open_corpus(root)
    pq.write_table(twice().drop_columns("embedding"), root / "metadata" / "metadata_1.parquet")
    with pytest.raises(PipelineError, match=r"metadata_1\.parquet has the columns \['a'\] more than once"):
        open_corpus(root)


def save_to_disk(folder, table, parts=2):
    """What `datasets.Dataset.save_to_disk` of Hugging Face writes: streams of Arrow, and JSON that names them."""
    folder.mkdir(parents=True)
    names = [f"data-{part:05d}-of-{parts:05d}.arrow" for part in range(parts)]
    rows = -(-len(table) // parts)
    for part, name in enumerate(names):
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table.slice(part * rows, rows), max_chunksize=50)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    with pa.ipc.new_stream(folder / "cache-0123.arrow", pa.schema([("x", pa.int64())])):
        pass
    return folder


def test_a_data_set_of_hugging_face(tmp_path):
    images = pa.array([{"bytes": b"png", "path": None}] * 250)
    table = table_of(fixed, image=images).rename_columns(["number", "label", "emb", "image"])
    folder = save_to_disk(tmp_path / "set", table)
    entries, embeddings, _ = read(folder, tmp_path)
    assert (embeddings == X).all()
    assert entries.column_names == ["id", "uri", "number", "label"]
    assert entries["id"][0].as_py() == name_hash("set/data-00000-of-00002.arrow#0")
    assert open_corpus(folder).skipped["column image, which cannot be kept"] == 2
    both = tmp_path / "both"
    save_to_disk(both / "train", table)
    save_to_disk(both / "test", table)
    (both / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert open_corpus(both).rows == 500


@pytest.mark.parametrize("metric", ["l2", "inner", "l1"])
@pytest.mark.parametrize("with_ids", [False, True])
def test_a_flat_index_of_faiss(tmp_path, metric, with_ids):
    kinds = {"l2": faiss.METRIC_L2, "inner": faiss.METRIC_INNER_PRODUCT, "l1": faiss.METRIC_L1}
    index = faiss.IndexFlat(24, kinds[metric])
    if with_ids:
        index = faiss.IndexIDMap(index)
        index.add_with_ids(X, np.arange(250, dtype=np.int64) * 7)
    else:
        index.add(X)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    table, embeddings, _ = read(tmp_path / "x.faiss", tmp_path)
    assert (embeddings == X).all()
    assert (table["id"].to_pylist() == (np.arange(250) * 7).tolist()) == with_ids


def test_ids_are_texts_uris_or_a_named_column(tmp_path):
    texts = [f"key-{i}" for i in range(250)]
    table = pa.table(
        {"id": texts, "number": np.arange(250), "uri": [f"s3://b/{i}.jpg" for i in range(250)], "e": fixed(X)}
    )
    (tmp_path / "c").mkdir()
    pq.write_table(table, tmp_path / "c" / "x.parquet")
    entries, _, _ = read(tmp_path / "c", tmp_path)
    assert entries["id"][3].as_py() == name_hash("c/key-3")
    assert entries["source_id"].to_pylist() == texts
    assert entries["uri"][3].as_py() == "s3://b/3.jpg"
    numbered, _, _ = read(tmp_path / "c", tmp_path, ids="column:number")
    assert numbered["id"].to_pylist() == list(range(250))
    assert numbered["number"].to_pylist() == list(range(250))
    assert read(tmp_path / "c", tmp_path, ids="uri")[0]["id"][3].as_py() == name_hash("s3://b/3.jpg")
    named, _, _ = read(tmp_path / "c", tmp_path, ids="name:other")
    assert named["id"][3].as_py() == name_hash("other/x.parquet#3")
    with pytest.raises(PipelineError, match="has no column `key` to take ids from"):
        read(tmp_path / "c", tmp_path, ids="column:key")
    with pytest.raises(PipelineError, match="not from content"):
        read(tmp_path / "c", tmp_path, ids="content")


def test_a_column_is_named_where_there_are_several(tmp_path):
    table = pa.table({"image": fixed(X), "text": fixed(-X)})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(PipelineError, match="it has several: image, text; name one with --embedding-column"):
        open_corpus(tmp_path / "x.parquet")
    entries, embeddings, _ = read(tmp_path / "x.parquet", tmp_path, column="text")
    assert (embeddings == -X).all()
    assert entries["image"][0].as_py() == X[0].tolist()
    with pytest.raises(PipelineError, match=r"`audio` is not among \['image', 'text'\]"):
        open_corpus(tmp_path / "x.parquet", "audio")


def npy(header):
    """Write a file of numpy's with any text in the place of its header."""
    data = header.encode() + b"\n"
    return lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data + bytes(512))


def stream(**columns):
    """A table as a stream of Arrow."""
    sink, table = pa.BufferOutputStream(), pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def twice():
    """A table with two columns of the same name beside the embeddings."""
    rows = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), X.shape[1])
    number = pa.array(range(len(X)))
    return pa.Table.from_arrays([rows, number, number], names=["embedding", "a", "a"])


def write(path, make):
    path.parent.mkdir(exist_ok=True)
    make(path)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("x.npy", lambda p: np.save(p, X.astype(np.int8)), r"holds int8 of shape \(250, 24\): expected embeddings"),
        ("x.npy", lambda p: np.save(p, X[0]), r"holds float32 of shape \(24,\)"),
        ("x.npy", lambda p: np.save(p, np.asfortranarray(X)), "column by column"),
        ("x.npy", lambda p: p.write_bytes(b"no magic"), "is not a readable .npy file"),
        ("x.npy", lambda p: np.save(p, X[:0]), "its files have no rows"),
        ("x.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -8)}"), r"shape \(-4, -8\)"),
        ("x.npy", npy("{'descr': '<f4', 'shape': ("), "is not a readable .npy file"),
        ("x.npy", npy("a\n  b\n c"), "is not a readable .npy file"),
        ("x.npy", npy("-" * 9000 + "1"), "is not a readable .npy file"),
        ("x.npy", lambda p: np.save(p, np.zeros((4, 8), [("a", "i1"), ("b", "i1")])), "of shape"),
        ("x.parquet", lambda p: p.write_bytes(b"PAR1 and then nothing"), "cannot be read"),
        ("x.parquet", lambda p: pq.write_table(pa.table({"a": [1]}), p), r"expected one column of lists.*got \['a'\]"),
        ("x.parquet", lambda p: pq.write_table(twice(), p), r"has the columns \['a'\] more than once"),
        ("x.arrow", lambda p: p.write_bytes(b"nothing"), "cannot be read"),
        ("x.arrow", lambda p: p.write_bytes(stream(number=[1]).replace(b"number", b"n\xffmber")), "name is not UTF-8"),
        ("x.faiss", lambda p: p.write_bytes(b"nothing"), "is not an index of FAISS whose vectors can be read"),
        ("x.txt", lambda p: p.write_text("1 2 3"), "is not a file of embeddings: expected .npy"),
    ],
)  # fmt: skip
def test_what_holds_no_embeddings_is_refused_with_a_reason(tmp_path, name, make, reason):
    make(tmp_path / name)
    with pytest.raises(PipelineError, match=reason):
        open_corpus(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.faiss"])
def test_a_truncated_file_is_refused(tmp_path, name):
    if name == "x.npy":
        np.save(tmp_path / name, X)
    else:
        index = faiss.IndexFlatL2(24)
        index.add(X)
        faiss.write_index(index, str(tmp_path / name))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-10])
    with pytest.raises(PipelineError, match=f"is truncated: expected {len(data):,} bytes, got {len(data) - 10:,}"):
        open_corpus(tmp_path / name)


def test_other_indexes_of_faiss_are_refused(tmp_path):
    index = faiss.IndexHNSWFlat(24, 8)
    index.add(X)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    with pytest.raises(PipelineError, match=r"IHNf.*expected IndexFlatL2"):
        open_corpus(tmp_path / "x.faiss")


def test_a_folder_has_one_kind_and_one_dimension(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X[:, :20])
    with pytest.raises(PipelineError, match=r"b\.npy has embeddings of 20 numbers, a\.npy of 24"):
        open_corpus(tmp_path)
    (tmp_path / "b.npy").unlink()
    pq.write_table(table_of(fixed), tmp_path / "c.parquet")
    with pytest.raises(
        PipelineError, match=r"Parquet files \(c\.parquet\) and npy files \(a\.npy\): expected one kind"
    ):
        open_corpus(tmp_path)
    with pytest.raises(PipelineError, match="no embeddings at"):
        open_corpus(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PipelineError, match=r"has no embeddings: expected \.npy"):
        open_corpus(tmp_path / "empty")


def test_embeddings_in_a_bucket(bucket, tmp_path):
    np.save(tmp_path / "x.npy", X)
    table = table_of(fixed)
    pq.write_table(table, tmp_path / "y.parquet", row_group_size=60)
    with pa.ipc.new_stream(tmp_path / "z.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=60)
    from hashlight.engine.places.opening import open_place

    for name in ("x.npy", "y.parquet", "z.arrow"):
        location = bucket.uri(name)
        open_place(location).put("", (tmp_path / name).read_bytes())
        assert (read(location, tmp_path)[1] == X).all()
