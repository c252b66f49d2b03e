"""The examples of docstrings run, and every promise on resilience names tests that exist."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hashlight.pipelines.cli.main import app

from .pipelines.corpora.layouts import add, png, write_img2dataset


@pytest.mark.parametrize(
    "module",
    ["hashlight.engine.client.client", "hashlight.engine.collection.collection", "hashlight.engine.filters.filter"],
)
def test_docstring_examples(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("page", ["docs/living-collection.md"])
def test_every_example_of_a_page_runs(page, tmp_path, monkeypatch):
    run_examples(page, tmp_path, monkeypatch)


@pytest.mark.usefixtures("ray_session")
def test_every_example_of_embeddings_runs(tmp_path, monkeypatch):
    run_examples("docs/embeddings.md", tmp_path, monkeypatch)


def run_examples(page, tmp_path, monkeypatch):
    blocks = re.findall(r"```(python|bash)\n(.*?)```", Path(page).read_text(), flags=re.DOTALL)
    assert {language for language, _ in blocks} == {"python", "bash"}
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, text in blocks:
        if language == "python":
            exec(compile(text, page, "exec"), names)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "hashlight"
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, (line, done.output)


def corpora_of_the_page(folder):
    """Make the corpora that docs/corpora.md lists; return how many images each list has, None for tars."""
    (folder / "photos" / "cats").mkdir(parents=True)
    (folder / "photos" / "cats" / "a.png").write_bytes(png(1))
    (folder / "photos" / "b.png").write_bytes(png(2))
    (folder / "about.csv").write_text("picture,note\na,first\n")
    shutil.copytree(folder / "photos", folder / "imagefolder")
    (folder / "imagefolder" / "metadata.csv").write_text("file_name,label\ncats/a.png,tabby\n")
    for name, layout in (("laion-files", "files"), ("laion-tars", "webdataset"), ("laion-parquet", "parquet")):
        write_img2dataset(folder / name, layout)
    for name, table in {
        "hugging-face/train.parquet": pa.table({"img": [{"bytes": png(1), "path": "a.png"}] * 3, "label": [0, 1, 0]}),
        "laion-metadata/part.parquet": pa.table(
            {"URL": ["https://example.org/a.jpg", None], "TEXT": ["a", "b"], "similarity": [0.3, 0.4]}
        ),
        "others.parquet": pa.table({"photo": [png(1)], "species": ["x"], "image": ["a.png"]}),
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, folder / name)
    shutil.copytree(folder / "photos", folder / "pictures")
    (folder / "pictures" / "list.csv").write_text("file_name,label\nb.png,x\ncats/a.png,y\n")
    (folder / "pictures" / "list.jsonl").write_text('{"path": "b.png", "asset": 7, "class": "x"}\n')
    (folder / "pictures" / "list.txt").write_text("b.png\ncats/a.png\n")
    (folder / "pictures" / "labelled.txt").write_text("b.png 0 1 0\ncats/a.png 1 1 0\n")
    notes = [{"image_id": 3, "category_id": 1}]
    images = [{"id": 3, "file_name": "b.png"}, {"id": 4, "file_name": "cats/a.png"}]
    found = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "pictures" / "instances.json").write_text(json.dumps(found))
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / "0.tar.gz", "w:gz") as tar:
        add(tar, "0.png", png(1))
        add(tar, "0.json", b'{"class": "x", "width": 4}')
    return {
        "photos": 2, "imagefolder": 2, "laion-files": 6, "laion-tars": None, "laion-parquet": 6, "hugging-face": 3,
        "laion-metadata": 1, "others": 1, "csv": 2, "jsonl": 1, "txt": 2, "tars": None, "joined": 2, "together": 3,
        "labelled": 2, "coco": 1, "joined-coco": 2,
    }  # fmt: skip


def test_every_corpus_of_the_page_is_listed(tmp_path, monkeypatch, ray_session):
    expected = corpora_of_the_page(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", Path("docs/corpora.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) == len(expected)
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "hashlight"
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exit_code == 0, (line, done.output)
        name = arguments[arguments.index("--output") + 1].removesuffix(".arrow")
        assert json.loads(done.stdout)["images"] == expected.pop(name), line
    assert not expected


def test_every_promise_is_kept_by_tests_that_exist():
    page = Path("docs/resilience.md").read_text()
    promises = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(promises) > 60
    for promise in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", promise)
        assert named, promise
        for path, name in named:
            assert f"def {name}" in Path(path).read_text(), promise
