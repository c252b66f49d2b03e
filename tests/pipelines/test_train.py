"""Training from the command line: every method, every supervision, and going on after an interruption."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import encoders.checkpoints
from encoders.encoder import HashEncoder
from encoders.methods import METHODS
from encoders.training import TrainConfig
from pipelines.cli import app
from pipelines.corpora import labels_of
from pipelines.errors import PipelineError
from pipelines.fashion_mnist import as_corpus
from pipelines.train import train_encoder

QUICK = ("--bits", 12, "--epochs", 1, "--warmup-epochs", 0, "--batch-size", 16)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table(pictures):
    images, labels = pictures
    return as_corpus(images[:64], labels[:64], np.arange(64))


@pytest.fixture(scope="module")
def corpora(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    several = pa.array([[label, 10 + label % 2] for label in table["label"].to_pylist()])
    tables = {
        "one": table,
        "several": table.drop("label").append_column("label", several),
        "none": table.drop("label"),
    }
    for name, rows in tables.items():
        pq.write_table(rows, folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in tables}


def run(*arguments):
    return CliRunner().invoke(app, ["train", *(str(argument) for argument in arguments)])


def error(*arguments):
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    return " ".join(result.stderr.split())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_from_the_command_line(tmp_path, corpora, method):
    corpus = corpora["several" if method == "hashnet-c" else "one"]
    result = run("--input", corpus, "--output", tmp_path / "encoder", "--method", method, *QUICK)
    assert result.exit_code == 0, result.output
    encoder = HashEncoder.load(tmp_path / "encoder")
    assert (encoder.config.method, encoder.bits) == (method, 12)
    logged = (tmp_path / "encoder" / "training.jsonl").is_file()
    assert logged == (METHODS[method].objective is not None)
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_learned_is_refused_with_its_reason(tmp_path, corpora):
    output = ("--output", tmp_path / "encoder", *QUICK)
    bare = ("--input", corpora["none"], *output)
    assert "the corpus has no labels" in error(*bare, "--method", "itq-cca")
    assert "the corpus has no labels" in error(*bare, "--method", "ksh")
    assert "hashnet learns from labels or multi-labels or pairs or views, got nothing" in error(*bare)
    assert "with one label an image its weights would all be 1" in error(
        "--input", corpora["one"], *output, "--method", "hashnet-c"
    )
    wide = ("--output", tmp_path / "encoder", "--bits", 300, "--warmup-epochs", 0, "--method", "itq")
    assert "at most 256 for ITQ on 256-dimensional features, got 300" in error("--input", corpora["one"], *wide)
    assert "go together, got no list of pairs" in error(*bare, "--supervision", "pairs")
    assert "must be one of labels, pairs, views, nothing, got 'luck'" in error(*bare, "--supervision", "luck")
    assert not (tmp_path / "encoder").exists()


def test_views_need_no_labels(tmp_path, corpora):
    result = run("--input", corpora["none"], "--output", tmp_path / "encoder", "--supervision", "views", *QUICK)
    assert result.exit_code == 0, result.output
    assert HashEncoder.load(tmp_path / "encoder").config.training["supervision"] == "two views of each of 64 images"


def test_unsupervised_methods_need_no_labels(tmp_path, corpora):
    result = run("--input", corpora["none"], "--output", tmp_path / "encoder", "--method", "itq", "--bits", 8)
    assert result.exit_code == 0, result.output


def test_lists_of_labels_become_columns(corpora):
    matrix, names = labels_of(pq.read_table(corpora["several"]))
    expected = [{str(label), str(10 + label % 2)} for label in pq.read_table(corpora["one"])["label"].to_pylist()]
    assert [{names[column] for column in np.flatnonzero(row)} for row in matrix] == expected
    with pytest.raises(PipelineError, match=r"2 of 3 images have no label \(first: b\)"):
        labels_of(pa.table({"uri": ["a", "b", "c"], "label": [[1], [], None]}))


def test_an_interrupted_training_goes_on_to_the_same_encoder(tmp_path, corpora, monkeypatch):
    monkeypatch.setattr(encoders.checkpoints, "CHECKPOINT_S", 0.0)
    config = TrainConfig(bits=8, batch_size=16, epochs=2, warmup_epochs=1)
    whole = train_encoder(corpora["one"], tmp_path / "whole", config)

    def interrupt(step, steps, state):
        if state.phase == "hashing" and step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_encoder(corpora["one"], tmp_path / "cut", config, progress=interrupt)
    assert not (tmp_path / "cut").exists()
    steps = []
    resumed = train_encoder(corpora["one"], tmp_path / "cut", config, progress=lambda *state: steps.append(state[0]))
    assert steps == [6, 7, 8]
    assert resumed.fingerprint == whole.fingerprint
    lines = [json.loads(line) for line in (tmp_path / "cut" / "training.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["epoch"]) for line in lines] == [("warm-up", 1), ("hashing", 1), ("hashing", 2)]
