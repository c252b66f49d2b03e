"""What is new of a corpus since it was encoded before is encoded by itself, and added to the collection."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from hashlight.pipelines.codes.parts import read_parts
from hashlight.pipelines.codes.summary import EncodeSummary
from hashlight.pipelines.corpora.work import WorkList, list_work
from hashlight.pipelines.encoding import since as since_module
from hashlight.pipelines.encoding.encode import encode_corpus
from hashlight.pipelines.encoding.since import write_new
from hashlight.pipelines.jobs.errors import PipelineError

from ..corpora.layouts import add, png

ENCODER = "e" * 64


def encoded(corpus, folder, *, encoder=ENCODER, ids="auto"):
    """A folder of codes of a corpus as far as `write_new` reads it: the plan, the job, the summary."""
    folder.mkdir()
    work = list_work(corpus, folder / "plan.arrow", unit_images=2, ids=ids)
    identity = {"corpus": work.corpus, "ids": work.ids, "name": work.name, "encoder": encoder, "bits": 8}
    (folder / "job.json").write_text(json.dumps({"version": 1, **identity}))
    done = EncodeSummary(images=work.images or 1, codes=1, rejects=0, bits=8, encoder=encoder, corpus=work.corpus)
    (folder / "codes.json").write_text(json.dumps(asdict(done)))
    return folder


def new_since(corpus, tmp_path, *codes, encoder=ENCODER, ids="auto"):
    list_work(corpus, tmp_path / "all.arrow", unit_images=3, ids=ids)
    summary = write_new(tmp_path / "all.arrow", codes, tmp_path / "new.arrow", encoder=encoder, unit_images=3)
    with pa.memory_map(str(tmp_path / "new.arrow")) as raw:
        work = WorkList(raw, "new.arrow")
        units = list(work.read_all())
    uris = [uri.rpartition("/")[2] for unit in units for uri in unit["uri"].to_pylist()]
    assert summary.units == len(units)
    assert summary.images in (None, len(uris))
    return uris


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder


def test_only_what_is_new_or_was_written_again_is_listed(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(since_module, "_RUN_KEYS", 3)
    first = encoded(photos, tmp_path / "first")
    with pytest.raises(PipelineError, match=f"nothing of {photos} is new since {first}"):
        new_since(photos, tmp_path, first)
    (photos / "0.png").unlink()
    for name in ("00.png", "5a.png", "9.png"):
        (photos / name).write_bytes(png(1))
    (photos / "3.png").write_bytes(png(200) + b" ")
    assert new_since(photos, tmp_path, first) == ["00.png", "3.png", "5a.png", "9.png"]
    second = encoded(photos, tmp_path / "second")
    (photos / "last.png").write_bytes(png(3))
    assert new_since(photos, tmp_path, first, second) == ["last.png"]
    assert new_since(photos, tmp_path, second) == ["last.png"]
    # A copy elsewhere, with the times of the files, has the same images.
    copy = shutil.copytree(photos, tmp_path / "copy" / "photos")
    assert new_since(copy, tmp_path, first, second) == ["last.png"]


def test_rows_by_uri_are_known_by_their_ids(tmp_path):
    table = tmp_path / "set" / "list.csv"
    table.parent.mkdir()
    table.write_text("uri,label\na.png,x\nb.png,y\n")
    first = encoded(table, tmp_path / "first")
    table.write_text("uri,label\nc.png,x\na.png,other\nb.png,y\n")
    assert new_since(table, tmp_path, first) == ["c.png"]


def test_a_tar_that_was_written_again_is_new_as_a_whole(tmp_path):
    def write(name, count):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for row in range(count):
                add(tar, f"{name}{row}.png", png(row))
        (tmp_path / "tars" / f"{name}.tar").write_bytes(buffer.getvalue())

    (tmp_path / "tars").mkdir()
    write("a", 3)
    write("b", 3)
    first = encoded(tmp_path / "tars", tmp_path / "first")
    write("b", 60)
    write("c", 1)
    assert set(new_since(tmp_path / "tars", tmp_path, first)) == {"b.tar", "c.tar"}


def test_codes_that_do_not_belong_together_are_refused(photos, tmp_path):
    first = encoded(photos, tmp_path / "first")
    (photos / "new.png").write_bytes(png(1))
    with pytest.raises(PipelineError, match="codes of the encoder eeeeeeeeeeee…, this one is ffffffffffff"):
        new_since(photos, tmp_path, first, encoder="f" * 64)
    with pytest.raises(
        PipelineError, match="ids made from auto in the corpus 'photos', this list from uri in 'photos'"
    ):
        new_since(photos, tmp_path, first, ids="uri")
    with pytest.raises(PipelineError, match="no codes"):
        new_since(photos, tmp_path, tmp_path)
    os.remove(first / "codes.json")
    with pytest.raises(PipelineError, match="an unfinished encode job"):
        new_since(photos, tmp_path, first)


def test_what_is_new_is_encoded_and_added(photos, tmp_path, encoder, ray_session):
    from typer.testing import CliRunner

    from hashlight.pipelines.cli.main import app

    def run(*arguments):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result.stdout

    encode_corpus(photos, encoder, tmp_path / "codes", actors=1)
    run("build", "--codes", tmp_path / "codes", "--output", tmp_path / "collection")
    for number in (7, 8):
        (photos / f"{number}.png").write_bytes(png(number))
    job = ("--encoder", encoder, "--input", photos, "--since", tmp_path / "codes", "--actors", 1)
    assert "encoded 2 of 2 images" in run("encode", *job, "--output", tmp_path / "new")
    assert "added 2 codes" in run("add", tmp_path / "collection", tmp_path / "new")
    whole = tmp_path / "whole"
    encode_corpus(photos, encoder, whole, actors=1)
    apart = pa.concat_tables([*read_parts(tmp_path / "codes"), *read_parts(tmp_path / "new")]).sort_by("id")
    together = pa.concat_tables(read_parts(whole)).sort_by("id")
    assert apart.equals(together)
    assert len(np.unique(apart["id"])) == 9
    # Once more, it has nothing to do.
    assert "encoded 2 of 2 images" in run("encode", *job, "--output", tmp_path / "new")
