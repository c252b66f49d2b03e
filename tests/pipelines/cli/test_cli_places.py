"""Every option that names a place takes every place, or refuses it in one line before any work is done."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import typing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import EncoderError
from hashlight.engine.cache.size import VARIABLE
from hashlight.engine.collection.collection import Collection
from hashlight.pipelines.capacity.calibrate import _measure_encoding
from hashlight.pipelines.cli.errors import command_name
from hashlight.pipelines.cli.grouping import expand_groups
from hashlight.pipelines.cli.main import VERBS, app
from hashlight.pipelines.corpora.corpus import list_corpus
from hashlight.pipelines.serving.serve import encoder_of
from hashlight.pipelines.training.material import read_pairs
from tests.encoded import read_codes

# What an option that takes text may be. A new one must be put into one of the three.
PLACES = {
    "index": {"images", "encoder", "output"},
    "train": {"input", "output", "pairs", "embeddings", "join"},
    "list": {"corpus", "output", "join"},
    "encode": {"input", "encoder", "output", "embeddings", "join", "since"},
    "build": {"codes", "output"},
    "import": {"source", "collection"},
    "export": {"collection", "target"},
    "search": {"collection", "image", "vector", "codes", "output", "encoder", "save"},
    "dedup": {"collection", "output"},
    "evaluate": {"encoder", "database", "queries", "output", "train", "join"},
    "info": {"collection"},
    "count": {"collection"},
    "facets": {"collection"},
    "add": {"collection", "source"},
    "delete": {"collection", "ids_file"},
    "update": {"collection", "values", "ids_file"},
    "set-column": {"collection", "values"},
    "compact": {"collection"},
    "versions": {"collection"},
    "tag": {"collection"},
    "rollback": {"collection"},
    "prune": {"collection"},
    "verify": {"collection"},
    "serve": {"collection", "encoder", "duplicates", "rejects"},
    "shard-server": {"collection"},
    "gateway": {"collection", "encoder", "duplicates", "rejects"},
    "calibrate": {"encoder"},
    "doctor": {"collection"},
}
THIS_MACHINE = {
    "train": {"weights"},
    "shard-server": {"shard_tls_cert", "shard_tls_key", "shard_tls_authority"},
    "gateway": {
        "keys",
        "map",
        "tls_cert",
        "tls_key",
        "tls_client_authority",
        "shard_tls_cert",
        "shard_tls_key",
        "shard_tls_authority",
        "write_log",
    },
    "serve": {
        "keys",
        "tls_cert",
        "tls_key",
        "tls_client_authority",
        "shard_tls_cert",
        "shard_tls_key",
        "shard_tls_authority",
        "write_log",
    },
    "demo": {"output"},
    "doctor": {"map", "shard_tls_cert", "shard_tls_key", "shard_tls_authority"},
    "size": {"helm"},
}
NO_PLACES = {
    "method", "backbone", "supervision", "schedule", "precision", "device", "address", "max_rejects", "shard_bytes",
    "baseline", "index", "host", "image_host", "url", "key", "ids", "code_column", "id_column", "features_column",
    "thumbnail_column", "filter", "code", "settings", "nulls", "column", "name", "version", "older_than",
    "cache_size", "frozen_stages", "text", "embedding_column", "kind", "image_column", "uri_column", "label_column",
    "keep", "gateway", "metrics_listen", "group", "listen", "advertise", "shards",
}  # fmt: skip


def options_of(verb):
    """Each option of a verb: its name, the types of its values, and how it was declared."""
    for name, parameter in inspect.signature(expand_groups(verb)).parameters.items():
        kind, declared = typing.get_args(parameter.annotation)
        yield name, {kind, *typing.get_args(kind)}, declared


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_every_option_that_takes_text_is_known(verb):
    # Without a parser of our own the command line takes `s3://bucket` for the local folder `s3:/bucket`.
    assert all(declared.parser for _, kinds, declared in options_of(verb) if Path in kinds)
    found = {name for name, kinds, _ in options_of(verb) if {str, Path, list[str]} & kinds}
    title = command_name(verb)
    places, local = PLACES.get(title, set()), THIS_MACHINE.get(title, set())
    assert places <= found
    assert local <= found
    assert found - places - local <= NO_PLACES


def refusal(arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code in (1, 2), result.output
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A working folder in which nothing may appear."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.iterdir())


LOCAL_OPTIONS = [(verb, name) for verb, names in THIS_MACHINE.items() for name in sorted(names)]


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize(("verb", "name"), LOCAL_OPTIONS)
def test_what_must_be_on_this_machine_refuses_a_uri(verb, name):
    others = {
        "serve": ["s3://bucket/c"],
        "size": ["--images", "1e6", "--qps", "1", "--radius", "4"],
        "shard-server": ["s3://bucket/c", "--group", "1/2"],
        "train": ["--input", "s3://bucket/none", "--output", "encoder"],
    }
    said = refusal([verb, *others.get(verb, []), f"--{name.replace('_', '-')}", "s3://bucket/there"])
    assert "this machine" in said
    assert "s3://bucket/there" in said


READ_ONLY = [
    ("train", "--input", "s3://bucket/none", "--output", "memory://out"),
    ("index", "s3://bucket/none", "--output", "memory://out"),
    ("list", "s3://bucket/none", "--output", "memory://out/work.arrow"),
    ("list", "s3://bucket/none", "--output", "https://host.invalid/out.arrow"),
    ("encode", "--input", "s3://bucket/none", "--encoder", "s3://bucket/none", "--output", "https://host.invalid/out"),
    ("build", "--codes", "s3://bucket/none", "--output", "memory://out"),
    ("dedup", "s3://bucket/none", "--radius", 1, "--output", "http://host.invalid/out"),
    ("search", "s3://bucket/none", "--codes", "s3://bucket/none", "--output", "memory://out/a.parquet"),
    ("search", "s3://bucket/none", "--image", "s3://bucket/none", "--save", "memory://out/a.png"),
    (
        "evaluate", "--encoder", "s3://bucket/none", "--database", "s3://bucket/none", "--queries", "s3://bucket/none",
        "--output", "https://host.invalid/out",
    ),
]  # fmt: skip


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize("arguments", READ_ONLY, ids=lambda arguments: f"{arguments[0]} {arguments[-1]}")
def test_what_cannot_be_written_is_refused_before_anything_is_read(arguments):
    """None of the inputs exists: who looked for them first would say so."""
    assert "can only be read: write to a folder of this machine, or to a bucket" in refusal(arguments)


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "s3://bucket/none", "--output", "s3://work.arrow"),
        ("search", "s3://bucket/none", "--codes", "s3://bucket/none", "--output", "s3://found.parquet"),
        ("search", "s3://bucket/none", "--image", "s3://bucket/none", "--save", "s3://grid.png"),
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-1]}",
)
def test_a_bucket_is_not_taken_for_a_file(arguments):
    assert f"{arguments[-1]} does not name a file: expected s3://PLACE/NAME" in refusal(arguments)


def test_an_encoder_outside_the_jobs_refuses_a_uri(somewhere, encoder):
    model = HashEncoder.load(encoder)
    with pytest.raises(EncoderError, match=r"s3://bucket/encoder is a URI"):
        model.save("s3://bucket/encoder")
    with pytest.raises(EncoderError, match=r"s3://bucket/encoder is a URI"):
        HashEncoder.load("s3://bucket/encoder")
    with pytest.raises(EncoderError, match=r"s3://bucket/b\.safetensors is a URI"):
        model.save_backbone("s3://bucket/b.safetensors")


@pytest.fixture
def stored(bucket, encoder):
    """The URI of the encoder in a bucket."""
    for path in encoder.iterdir():
        bucket.put(f"encoder/{path.name}", path.read_bytes())
    return bucket.uri("encoder")


@pytest.mark.usefixtures("ray_session")
def test_search_takes_image_encoder_and_picture_from_and_to_a_bucket(tmp_path, bucket, stored, codes, pictures):
    encoded = read_codes(codes)
    Collection.create(
        tmp_path / "c", encoded.codes, ids=encoded.ids, attributes=encoded.attributes, bits=48,
        fingerprint=encoded.fingerprint,
    )  # fmt: skip
    Image.fromarray(pictures[0][7]).save(tmp_path / "query.png")
    bucket.put("query.png", (tmp_path / "query.png").read_bytes())
    places = {"image": bucket.uri("query.png"), "encoder": stored, "save": bucket.uri("out/grid.png")}
    options = [text for name, place in places.items() for text in (f"--{name}", place)]
    result = CliRunner().invoke(app, ["search", str(tmp_path / "c"), *options, "-k", "1", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["answers"][0]["distance"] == 0
    assert document["query"]["image"] == f"s3://{bucket.name}/query.png"
    assert bucket.get("out/grid.png").startswith(b"\x89PNG")
    wrong = CliRunner().invoke(app, ["search", str(tmp_path / "c"), "--image", bucket.uri("none.png"), *options[2:4]])
    assert wrong.exit_code == 1
    assert f"s3://{bucket.name}/none.png cannot be searched for: " in " ".join(wrong.stderr.split())
    served = encoder_of(Collection.open(tmp_path / "c"), stored)
    assert served.fingerprint == encoded.fingerprint
    assert _measure_encoding(stored)[0].endswith(encoded.fingerprint[:12])


def test_pairs_are_read_from_a_bucket(bucket, corpus):
    entries = list_corpus(corpus)
    bucket.put("pairs.csv", b"a,b,similar\n1000,1002,1\n1001,1003,0\n")
    found = read_pairs(bucket.uri("pairs.csv"), entries)
    np.testing.assert_array_equal([found.index_a, found.index_b], [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--pairs", "missing.csv", "missing.csv does not exist"),
        ("--pairs", None, "there is no list of pairs at s3://"),
        ("--weights", "missing.pth", "there are no weights at missing.pth"),
    ],
)
def test_what_training_needs_is_looked_for_before_the_corpus_is_read(somewhere, bucket, option, value, message):
    value = value or bucket.uri("none.csv")
    said = refusal(["train", "--input", "s3://bucket/none", "--output", somewhere / "encoder", option, value])
    assert message in said


def test_a_folder_named_like_a_scheme_is_nobodys(tmp_path, monkeypatch, encoder):
    """The encoder is where the URI would be if it were a path: it is not taken for it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(encoder, tmp_path / "s3:" / "bucket" / "encoder")
    with pytest.raises(EncoderError, match="is a URI"):
        HashEncoder.load("s3://bucket/encoder")


def test_a_collection_in_a_bucket_is_fetched_when_it_is_asked_for(bucket, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1GB")
    uri = bucket.uri("fetched")
    created = Collection.create(uri, np.arange(50, dtype=np.uint64)[:, None], bits=16, shards=2)

    def run(*arguments):
        done = CliRunner().invoke(app, ["info", uri, *arguments])
        folder = created.path / "shards"
        return done.exit_code, done.stderr, len(list(folder.iterdir())) if folder.is_dir() else 0

    assert run() == (0, "", 0)
    exit_code, said, shards = run("--cache-size", "lots")
    assert (exit_code, shards) == (2, 0)
    assert "got 'lots'" in said
    total = f"{created.num_bytes:,}"
    assert run("--prefetch", "--cache-size", "2 GB") == (0, f"fetching, bytes: {total} of {total}\n", 2)
    assert os.environ[VARIABLE] == "2 GB"
    assert run("--prefetch") == (0, "", 2)
