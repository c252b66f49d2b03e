"""The splits of the public protocols, from made-up files of the same layout."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import protocols
from hashlight.pipelines.corpora.corpus import list_corpus
from hashlight.pipelines.corpora.labels import labels_of


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2)).save(path)


def read(folder):
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


def uris(rows):
    return {row["uri"] for row in rows}


def test_cifar_10(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(protocols, "CIFAR_QUERIES", 2)
    monkeypatch.setattr(protocols, "CIFAR_TRAIN", 3)
    source, rng = tmp_path / "cifar", np.random.default_rng(0)
    source.mkdir()
    (source / "batches.meta.txt").write_text("\n".join(f"class{number}" for number in range(10)) + "\n\n")
    pixels = rng.integers(0, 256, (120, 3072), np.uint8)
    record = np.column_stack([np.arange(120) % 10, pixels]).astype(np.uint8)
    for name, rows in zip([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"], np.split(record, 6), strict=True):
        (source / f"{name}.bin").write_bytes(rows.tobytes())
    protocols.main(["cifar-10", "--source", str(source), "--output", str(tmp_path / "out")])
    assert capsys.readouterr().out.splitlines() == ["train: 30 images", "database: 70 images", "queries: 20 images"]
    parts = {name: pq.read_table(tmp_path / "out" / f"{name}.parquet") for name in ("train", "database", "queries")}
    ids = [set(table["id"].to_pylist()) for table in parts.values()]
    assert set.union(*ids) == set(range(120))
    assert sum(map(len, ids)) == 120, "no image is in two corpora"
    assert np.bincount(parts["queries"]["label"].to_numpy()).tolist() == [2] * 10
    assert np.bincount(parts["train"]["label"].to_numpy()).tolist() == [3] * 10
    row = parts["queries"].to_pylist()[0]
    assert row["label_name"] == f"class{row['label']}"
    shown = list_corpus(tmp_path / "out" / "queries.parquet")
    assert len(shown) == 20
    image = np.asarray(Image.open(io.BytesIO(row["image"])))
    assert (image.transpose(2, 0, 1).ravel() == pixels[row["id"]]).all()


def test_imagenet_100(tmp_path, monkeypatch):
    monkeypatch.setattr(protocols, "IMAGENET_TRAIN", 2)
    for number in range(4):
        for part, count in (("train", 5), ("val", 3)):
            for image in range(count):
                picture(tmp_path / "imagenet" / part / f"n0{number}" / f"{part}{image}.JPEG")
    (tmp_path / "classes.txt").write_text("n03\nn01\n")
    arguments = ["imagenet-100", "--source", str(tmp_path / "imagenet"), "--output", str(tmp_path / "out")]
    protocols.main([*arguments, "--classes", str(tmp_path / "classes.txt")])
    parts = read(tmp_path / "out")
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 4, "database": 10, "queries": 6}
    assert uris(parts["train"]) < uris(parts["database"])
    assert all("/val/" in row["uri"] for row in parts["queries"])
    for rows in parts.values():
        assert all(row["label"] == [row["uri"].split("/")[-2]] for row in rows)
        assert {row["label"][0] for row in rows} == {"n01", "n03"}
    matrix, names = labels_of(list_corpus(tmp_path / "out" / "train.jsonl"))
    assert (names, matrix.sum(axis=0).tolist()) == (["n01", "n03"], [2, 2])


@pytest.fixture
def nus(tmp_path):
    """81 concepts, of which 21 are frequent; images 0 to 9 are not there, and have all of them."""
    source, rng = tmp_path / "NUS-WIDE", np.random.default_rng(1)
    names = [f"concept{number % 7}\\{number:04d}_1.jpg" for number in range(400)]
    (source / "ImageList").mkdir(parents=True)
    (source / "ImageList" / "Imagelist.txt").write_text("".join(f"{name}\n" for name in names))
    (source / "Groundtruth" / "AllLabels").mkdir(parents=True)
    has = rng.random((400, 81)) < np.where(np.arange(81) % 4 == 0, 0.2, 0.02)
    has[:10] = True
    for concept in range(81):
        text = "".join(f"{int(flag)}\n" for flag in has[:, concept])
        (source / "Groundtruth" / "AllLabels" / f"Labels_c{concept:02d}.txt").write_text(text)
    for name in names[10:]:
        picture(source / "Flickr" / name.replace("\\", "/"))
    return source, has


def check_labels(rows, has, concepts):
    for row in rows:
        number = int(row["uri"].rsplit("/", 1)[1][:4])
        assert row["label"] == [f"c{concept:02d}" for concept in concepts if has[number, concept]]
        assert number >= 10
        assert row["label"]


def test_nus_wide_21(tmp_path, monkeypatch, nus):
    monkeypatch.setattr(protocols, "NUS_QUERIES", 1)
    monkeypatch.setattr(protocols, "NUS_TRAIN", 3)
    source, has = nus
    protocols.main(["nus-wide-21", "--source", str(source), "--output", str(tmp_path / "out")])
    parts = read(tmp_path / "out")
    frequent = range(0, 81, 4)
    there = int(has[10:][:, frequent].any(axis=1).sum())
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 63, "database": there - 21, "queries": 21}
    assert uris(parts["train"]) < uris(parts["database"])
    assert not uris(parts["queries"]) & uris(parts["database"])
    for rows in parts.values():
        check_labels(rows, has, frequent)
    for rows, least in ((parts["queries"], 1), (parts["train"], 3)):
        count = {f"c{concept:02d}": sum(f"c{concept:02d}" in row["label"] for row in rows) for concept in frequent}
        assert min(count.values()) >= least


def test_nus_wide_81(tmp_path, monkeypatch, nus):
    monkeypatch.setattr(protocols, "QUERIES", 20)
    monkeypatch.setattr(protocols, "TRAIN", 40)
    source, has = nus
    protocols.main(["nus-wide-81", "--source", str(source), "--output", str(tmp_path / "out")])
    parts = read(tmp_path / "out")
    there = int(has[10:].any(axis=1).sum())
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 40, "database": there - 20, "queries": 20}
    assert uris(parts["train"]) < uris(parts["database"])
    for rows in parts.values():
        check_labels(rows, has, range(81))


def test_coco(tmp_path, monkeypatch):
    monkeypatch.setattr(protocols, "QUERIES", 3)
    monkeypatch.setattr(protocols, "TRAIN", 4)
    source = tmp_path / "coco"
    (source / "annotations").mkdir(parents=True)
    categories = [{"id": 7, "name": "dog"}, {"id": 90, "name": "kite"}]
    expected = {}
    for part, first in (("train2014", 0), ("val2014", 100)):
        images = [{"id": first + n, "file_name": f"COCO_{part}_{n:03d}.jpg"} for n in range(8)]
        # The last has no annotation, the others have a dog, every second one two kites.
        notes = [{"image_id": first + n, "category_id": 7} for n in range(7)]
        notes += [{"image_id": first + n, "category_id": 90} for n in range(0, 7, 2) for _ in range(2)]
        found = {"images": images, "annotations": notes, "categories": categories}
        (source / "annotations" / f"instances_{part}.json").write_text(json.dumps(found))
        for n in range(7):
            expected[str(source / part / f"COCO_{part}_{n:03d}.jpg")] = ["dog", "kite"] if n % 2 == 0 else ["dog"]
    protocols.main(["coco", "--source", str(source), "--output", str(tmp_path / "out")])
    parts = read(tmp_path / "out")
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 4, "database": 11, "queries": 3}
    assert uris(parts["train"]) < uris(parts["database"])
    assert {row["uri"]: row["label"] for rows in parts.values() for row in rows} == expected


def test_too_few_images_are_refused(tmp_path, nus):
    source, _ = nus
    with pytest.raises(SystemExit, match=r"class 0 has \d+ images left, expected at least 100"):
        protocols.main(["nus-wide-21", "--source", str(source), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="expected at least 15000: 5000 queries are drawn"):
        protocols.main(["nus-wide-81", "--source", str(source), "--output", str(tmp_path / "out")])
