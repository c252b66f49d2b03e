"""Training from the command line: every method, every supervision, and resuming after an interruption."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import hashlight.encoders.training.checkpoints
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.methods import METHODS
from hashlight.encoders.training.train import TrainConfig, train
from hashlight.engine.places.bucket import Bucket
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.codes.encoder import load_encoder
from hashlight.pipelines.corpora.fashion_mnist import as_corpus
from hashlight.pipelines.corpora.labels import labels_of
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.training.material import gather
from hashlight.pipelines.training.train import train_encoder

QUICK = ("--bits", 12, "--epochs", 1, "--warmup-epochs", 0, "--batch-size", 16)
# For methods on features, which have no epochs of their own and need a backbone that has learned.
QUICK_FITTED = ("--bits", 12, "--warmup-epochs", 1, "--batch-size", 16)


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
    trains = METHODS[method].objective is not None
    settings = QUICK if trains and not METHODS[method].pretrains else QUICK_FITTED + ("--epochs", 1) * trains
    result = run("--input", corpus, "--output", tmp_path / "encoder", "--method", method, *settings)
    assert result.exit_code == 0, result.output
    encoder = HashEncoder.load(tmp_path / "encoder")
    assert (encoder.config.method, encoder.bits) == (method, 12)
    assert (tmp_path / "encoder" / "training.jsonl").is_file()
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_learned_is_refused_with_its_reason(tmp_path, corpora):
    output = ("--output", tmp_path / "encoder", *QUICK)
    bare = ("--input", corpora["none"], *output)
    fitted = ("--input", corpora["none"], "--output", tmp_path / "encoder", *QUICK_FITTED)
    assert "the corpus has no labels" in error(*fitted, "--method", "itq-cca")
    assert "the corpus has no labels" in error(*fitted, "--method", "ksh")
    assert "hashnet learns from labels or multi-labels or pairs or views, got nothing" in error(
        *bare, "--method", "hashnet"
    )
    assert "with one label per image its weights would all be 1" in error(
        "--input", corpora["one"], *output, "--method", "hashnet-c"
    )
    assert "go together, got no list of pairs" in error(*bare, "--supervision", "pairs")
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--supervision", "luck", "one of labels, pairs, views, nothing, got 'luck'"),
        ("--method", "magic", "`method` must be one of auto, hashnet, "),
        ("--precision", "float16", "one of float32, bfloat16, float64, got 'float16'"),
        ("--device", "tpu", "`device` must be one of cpu, cuda, got 'tpu'"),
        ("--seed", -1, "`seed` must be 0 to 4,294,967,295, got -1"),
        ("--patience", 2, "with `validation_images` to judge epochs by"),
        ("--frozen-stages", "most", "`frozen_stages` must be 0 or more, or 'all', got 'most'"),
        ("--stage-decay", 2, "`stage_decay` must be above 0 and at most 1"),
    ],
)
def test_wrong_values_of_options_exit_with_2(tmp_path, corpora, option, value, reason):
    result = run("--input", corpora["one"], "--output", tmp_path / "encoder", option, value)
    assert result.exit_code == 2
    assert reason in " ".join(result.stderr.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_device_that_is_not_there_is_refused(tmp_path, corpora):
    reason = error("--input", corpora["one"], "--output", tmp_path / "encoder", "--device", "cuda", *QUICK)
    assert "`device` must be available, got cuda" in reason


@pytest.mark.parametrize(
    ("method", "bits", "reason"),
    [("itq", 300, "at most 256 for ITQ on 256-dimensional features, got 300"), ("csq", 3, "10 classes its own code")],
)
def test_impossible_bits_are_refused_at_once_and_others_then_train(tmp_path, corpora, method, bits, reason):
    arguments = ("--input", corpora["one"], "--output", tmp_path / "encoder", "--method", method)
    arguments += ("--warmup-epochs", 1, "--batch-size", 16) + ("--epochs", 1) * (method == "csq")
    assert reason in error(*arguments, "--bits", bits)
    assert not list(tmp_path.iterdir())
    result = run(*arguments, "--bits", 12)
    assert result.exit_code == 0, result.output
    assert HashEncoder.load(tmp_path / "encoder").bits == 12


@pytest.mark.parametrize(
    ("method", "option"),
    [("itq", ("--epochs", 3)), ("hashnet-st", ("--schedule", "released")), ("dhn", ("--final-beta", 5))],
)
def test_an_option_that_a_method_does_not_have_is_refused(tmp_path, corpora, method, option):
    result = run("--input", corpora["one"], "--output", tmp_path / "encoder", "--method", method, *option)
    assert result.exit_code == 2
    assert f"{method} has no use for {option[0]}" in " ".join(result.stderr.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_views_need_no_labels(tmp_path, corpora):
    result = run("--input", corpora["none"], "--output", tmp_path / "encoder", "--supervision", "views", *QUICK)
    assert result.exit_code == 0, result.output
    assert HashEncoder.load(tmp_path / "encoder").config.training["supervision"] == "two views of each of 64 images"


def test_unsupervised_methods_need_no_labels_but_weights(tmp_path, corpora, pictures):
    arguments = ("--input", corpora["none"], "--output", tmp_path / "encoder", "--method", "itq", "--bits", 8)
    assert "random weights and no warm-up: pass `weights`" in error(*arguments, "--backbone", "small-cnn")
    weights = tmp_path / "backbone.safetensors"
    images, labels = pictures
    config = TrainConfig(method="lsh", bits=8, batch_size=16, warmup_epochs=1)
    train(images[:64], labels[:64], config).save_backbone(weights)
    result = run(*arguments, "--weights", weights)
    assert result.exit_code == 0, result.output


def test_lists_of_labels_become_columns(corpora):
    matrix, names = labels_of(pq.read_table(corpora["several"]))
    expected = [{str(label), str(10 + label % 2)} for label in pq.read_table(corpora["one"])["label"].to_pylist()]
    assert [{names[column] for column in np.flatnonzero(row)} for row in matrix.toarray()] == expected
    with pytest.raises(PipelineError, match=r"2 of 3 images have no label \(first: b\)"):
        labels_of(pa.table({"uri": ["a", "b", "c"], "label": [[1], [], None]}))


def test_an_interrupted_training_resumes_to_the_same_encoder(tmp_path, corpora, monkeypatch):
    monkeypatch.setattr(hashlight.encoders.training.checkpoints, "CHECKPOINT_S", 0.0)
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


def interrupt(step, steps, state):
    if state.phase == "hashing" and step == 6:
        raise KeyboardInterrupt


def test_another_training_into_the_same_folder_is_refused_until_it_is_overwritten(tmp_path, corpora, monkeypatch):
    monkeypatch.setattr(hashlight.encoders.training.checkpoints, "CHECKPOINT_S", 0.0)
    config = TrainConfig(bits=8, batch_size=16, epochs=2, warmup_epochs=1)
    with pytest.raises(KeyboardInterrupt):
        train_encoder(corpora["one"], tmp_path / "cut", config, progress=interrupt)
    checkpoint = tmp_path / ".cut.training" / "checkpoint.pt"
    kept = checkpoint.read_bytes()
    other = dataclasses.replace(config, bits=12)
    with pytest.raises(PipelineError, match=r"unfinished training of another job, with bits 8 \(asked: 12\)"):
        train_encoder(corpora["one"], tmp_path / "cut", other)
    assert checkpoint.read_bytes() == kept
    assert train_encoder(corpora["one"], tmp_path / "cut", other, overwrite=True).bits == 12
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


def test_an_interrupted_training_into_a_bucket_resumes_and_the_bucket_serves_it(tmp_path, corpora, bucket, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashlight.encoders.training.checkpoints, "CHECKPOINT_S", 0.0)
    config = TrainConfig(bits=8, batch_size=16, epochs=2, warmup_epochs=1)
    whole = train_encoder(corpora["one"], tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        train_encoder(corpora["one"], bucket.uri("encoder"), config, progress=interrupt)
    assert not bucket.keys("encoder")
    steps, put = [], Bucket.put

    def put_some(place, name, data, **options):
        if name == "config.json":
            raise OSError("the network is gone")
        put(place, name, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put", put_some)
        with pytest.raises(OSError, match="network"):
            train_encoder(corpora["one"], bucket.uri("encoder"), config, progress=lambda *state: steps.append(state[0]))
    assert steps == [6, 7, 8]
    assert bucket.keys("encoder") == ["encoder/model.onnx", "encoder/model.safetensors", "encoder/training.jsonl"]
    train_encoder(corpora["one"], bucket.uri("encoder"), config, progress=lambda *state: steps.append(state[0]))
    assert steps == [6, 7, 8], "the last checkpoint was enough"
    assert load_encoder(bucket.uri("encoder")).fingerprint == whole.fingerprint
    assert not list((tmp_path / "cache" / "hashlight" / "training").iterdir())
    with pytest.raises(PipelineError, match="is not empty"):
        train_encoder(corpora["one"], bucket.uri("encoder"), config)
    arguments = ("--encoder", bucket.uri("encoder"), "--database", corpora["one"], "--queries", corpora["one"])
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--output", bucket.uri("report")])
    assert result.exit_code == 0, result.output
    assert {"report/report.md", "report/report.json", "report/results.png"} <= set(bucket.keys("report/"))
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cache"}, "no folder is called s3:"


def test_a_corpus_in_a_bucket_is_trained_on_and_evaluated(tmp_path, corpora, bucket):
    bucket.put("one.parquet", corpora["one"].read_bytes())
    there, encoder = bucket.uri("one.parquet"), tmp_path / "encoder"
    result = run("--input", there, "--output", encoder, *QUICK)
    assert result.exit_code == 0, result.output
    assert run("--input", corpora["one"], "--output", tmp_path / "local", *QUICK).exit_code == 0
    assert HashEncoder.load(encoder).fingerprint == HashEncoder.load(tmp_path / "local").fingerprint
    arguments = ("--encoder", encoder, "--database", there, "--queries", there, "--output", tmp_path / "report")
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report" / "report.json").read_text()
    assert f"s3://{bucket.name}/one.parquet" in text
    assert "endpoint_override" not in text


def flat(text):
    return " ".join(text.split())


def folders_of(tmp_path, pictures, names):
    """A folder of images, eight in each of some sub-folders."""
    images, _ = pictures
    for number, name in enumerate(names):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for row in range(8):
            Image.fromarray(images[8 * number + row]).save(tmp_path / "photos" / name / f"{row}.png")
    return tmp_path / "photos"


def test_an_archive_by_date_does_not_become_a_classifier_of_years(tmp_path, pictures):
    archive = folders_of(tmp_path, pictures, ["2019", "2020", "Misc"])
    arguments = ("--input", archive, "--bits", 8)
    result = run(*arguments, "--output", tmp_path / "encoder")
    assert result.exit_code == 0, result.output
    assert "not taken for labels, as they look like dates; `--labels folders` takes them" in flat(result.stdout)
    assert (
        "learning 8 bits from 24 images without labels and pairs by itq, which needs neither, on efficientnet"
        in flat(result.stdout)
    )
    encoder = HashEncoder.load(tmp_path / "encoder")
    assert (encoder.config.method, encoder.config.backbone) == ("itq", "efficientnet-lite0")
    asked = gather(archive, labels="folders")
    assert asked.classes == {"2019": 8, "2020": 8, "Misc": 8}
    assert asked.refused == ""
    assert gather(archive, supervision="labels").classes == asked.classes
    with pytest.raises(PipelineError, match=r"csq learns classes, and the sub-folders .* look like dates"):
        gather(archive, method="csq")


def test_what_is_learned_is_said_before(tmp_path, pictures):
    corpus = folders_of(tmp_path, pictures, [f"{animal} kind" for animal in "abcdefghijklmno"])
    material = gather(corpus)
    assert (material.supervision, material.suited_method(8), len(material.classes)) == ("labels", "hashnet", 15)
    result = run("--input", corpus, "--output", tmp_path / "encoder", "--bits", 8, "--epochs", 1, "--warmup-epochs", 0)
    assert result.exit_code == 0, result.output
    shown = ", ".join(f"{animal} kind 8" for animal in "abcdefghijkl")
    assert f"15 classes: {shown}, and 3 more" in flat(result.stdout)
    assert "learning 8 bits from 120 images and their labels by hashnet, on small-cnn" in flat(result.stdout)
    loose = tmp_path / "photos" / "loose.png"
    Image.fromarray(pictures[0][0]).save(loose)
    assert gather(corpus).refused == "albums, as some images are in none"
    with pytest.raises(PipelineError, match="1 of 121 images have no label"):
        gather(corpus, labels="folders")
    with pytest.raises(PipelineError, match="has no labels from folders"):
        gather(corpus / "a kind", labels="folders")
