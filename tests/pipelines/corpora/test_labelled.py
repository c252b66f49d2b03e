"""Lists of labelled images and COCO's annotations, as corpora and joined to a folder of images."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from hashlight.pipelines.corpora.corpus import list_all, list_corpus, open_listing
from hashlight.pipelines.corpora.labels import labels_of
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.jobs.errors import PipelineError


def write_list(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def labels_by_uri(entries):
    return dict(zip(entries["uri"].to_pylist(), entries["label"].to_pylist(), strict=True))


def test_a_list_of_hashnets_kind(tmp_path):
    path = write_list(tmp_path / "train.txt", "a/1.jpg 0 1 0", "", "my photo 1.jpg 1 0 1", "1 0 0 0", "/b/2.png 0 0 1")
    listing = open_listing(path)
    assert labels_by_uri(list_all(listing)) == {
        f"{tmp_path}/a/1.jpg": [1],
        f"{tmp_path}/my photo 1.jpg": [0, 2],
        "/b/2.png": [2],
    }
    assert listing.skipped == {"images without a label": 1}
    matrix, names = labels_of(list_corpus(path))
    assert (matrix.toarray().astype(int).tolist(), names) == ([[0, 1, 0], [1, 0, 1], [0, 0, 1]], ["0", "1", "2"])


def test_a_list_of_uris_stays_one(tmp_path):
    path = write_list(tmp_path / "uris.txt", "a.jpg", "photo 1.jpg", "photo 1")
    entries = list_corpus(path)
    assert entries["uri"].to_pylist() == [f"{tmp_path}/{name}" for name in ("a.jpg", "photo 1.jpg", "photo 1")]
    assert "label" not in entries.column_names


def test_a_line_with_too_few_classes_is_refused(tmp_path):
    path = write_list(tmp_path / "train.txt", "a.jpg 0 1 0", "b.jpg 0 1")
    with pytest.raises(PipelineError, match=r"line 2 of .*train.txt ends in 2 zeros or ones, the first line in 3"):
        list_corpus(path)


def coco(**changes):
    found = {
        "info": {"year": 2014},
        "images": [{"id": 5, "file_name": "5.jpg"}, {"id": 2, "file_name": "2.jpg"}, {"id": 9, "file_name": "9.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, "segmentation": [[1.0, 2.0]]},
            {"id": 2, "image_id": 2, "category_id": 1, "bbox": [0, 0, 1, 1]},
            {"id": 3, "image_id": 5, "category_id": 1},
            {"id": 4, "image_id": 5, "category_id": 3},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
    }
    return json.dumps({**found, **changes})


def test_annotations_of_coco(tmp_path):
    (tmp_path / "instances.json").write_text(coco())
    listing = open_listing(tmp_path / "instances.json")
    expected = {f"{tmp_path}/5.jpg": ["car", "person"], f"{tmp_path}/2.jpg": ["person"]}
    assert labels_by_uri(list_all(listing)) == expected
    assert listing.skipped == {"images without a label": 1}
    (tmp_path / "instances").write_text(coco())
    assert labels_by_uri(list_corpus(tmp_path / "instances", CorpusOptions(kind="coco"))) == expected


@pytest.mark.parametrize("name", ["instances.json", "labels.txt"])
def test_labels_are_joined_to_a_folder(tmp_path, name):
    (tmp_path / "photos").mkdir()
    for number in (5, 2):
        Image.new("L", (2, 2)).save(tmp_path / "photos" / f"{number}.jpg")
    (tmp_path / "instances.json").write_text(coco())
    write_list(tmp_path / "labels.txt", "5.jpg 1 1", "2.jpg 0 1")
    column = {"instances.json": "file_name", "labels.txt": "uri"}[name]
    options = CorpusOptions(join=(str(tmp_path / name), column))
    expected = {"instances.json": [["person"], ["car", "person"]], "labels.txt": [[1], [0, 1]]}[name]
    assert [label for _, label in sorted(labels_by_uri(list_corpus(tmp_path / "photos", options)).items())] == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1, 2", "is not readable as JSON"),
        ("[" * 100_000, "is not readable as JSON: it is nested too deeply"),
        ("[1, 2]", "has no COCO annotations: expected `images`"),
        ("{}", "has no COCO annotations: .*KeyError: 'categories'"),
        (coco(annotations=[{"image_id": 5, "category_id": 4}]), "has no COCO annotations: .*KeyError: 4"),
        (coco(images=[{"id": 5}]), "has no COCO annotations: .*KeyError: 'file_name'"),
    ],
)
def test_other_json_is_refused(tmp_path, text, reason):
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(PipelineError, match=reason):
        list_corpus(tmp_path / "instances.json")
