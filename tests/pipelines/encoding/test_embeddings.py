"""Embeddings from files to a collection: fitted, encoded on Ray, built; the oracle is numpy in double precision."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.packing import unpack_bits
from hashlight.engine.collection.collection import Collection
from hashlight.engine.features import Features
from hashlight.pipelines.building.build import build_collection
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.encoding.embeddings import encode_embeddings
from hashlight.pipelines.encoding.encode import encode_corpus
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.training.embeddings import fit_to_embeddings
from tests.encoded import read_codes

DIMS, BITS = 48, 40
RNG = np.random.default_rng(0)
CENTRES = RNG.standard_normal((12, DIMS))
X = (CENTRES[RNG.integers(0, 12, 900)] + 0.5 * RNG.standard_normal((900, DIMS))).astype(np.float32)
BAD = {17: "2 of its 48 numbers are nan or infinite", 333: "its length is 0", 640: "it has no embedding"}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two files of Parquet with ids, a caption, and three rows that have no code."""
    folder = tmp_path_factory.mktemp("embeddings") / "set"
    folder.mkdir()
    x = X.copy()
    x[17, [3, 5]] = np.nan, np.inf
    x[333] = 0
    rows = [*x.tolist()]
    rows[640] = None
    table = pa.table(
        {
            "id": np.arange(900) + 5000,
            "caption": [f"thing {i}" for i in range(900)],
            "embedding": pa.array(rows, pa.list_(pa.float32(), DIMS)),
        }
    )
    pq.write_table(table.slice(0, 500), folder / "a.parquet", row_group_size=150)
    pq.write_table(table.slice(500), folder / "b.parquet", row_group_size=150)
    return folder


@pytest.fixture(scope="module")
def encoder(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted") / "encoder"
    fit_to_embeddings(corpus, folder, bits=BITS)
    return folder


@pytest.fixture(scope="module")
def codes(corpus, encoder, tmp_path_factory, ray_session):
    folder = tmp_path_factory.mktemp("encoded") / "codes"
    encode_embeddings(corpus, encoder, folder, features=True, unit_rows=100)
    return folder


def good_rows():
    return np.setdiff1d(np.arange(900), list(BAD))


def test_the_fit_to_files_is_the_fit_to_their_good_rows(encoder, caplog):
    fitted = HashEncoder.load(encoder)
    assert fitted.config.training["settings"]["rows"] == 897
    in_memory = HashEncoder.fit_embeddings(X[good_rows()], bits=BITS)
    z = [one.head.project(X[:400]) for one in (fitted, in_memory)]
    np.testing.assert_allclose(z[0], z[1], atol=1e-5)


def test_codes_are_the_signs_of_the_rotated_components(codes, encoder):
    encoded = read_codes(codes)
    good = good_rows()
    assert encoded.ids.tolist() == (good + 5000).tolist()
    assert encoded.attributes["caption"].to_pylist() == [f"thing {i}" for i in good]
    head = HashEncoder.load(encoder).head
    unit = X[good].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    z = unit @ head.weight.astype(np.float64) + head.bias
    assert (unpack_bits(encoded.codes, BITS) == (z > 0))[np.abs(z) > 1e-6].all()


def test_what_has_no_code_is_a_reject_with_a_reason(codes, corpus):
    rejects = pq.read_table(codes / "rejects.parquet").to_pylist()
    assert {row["id"] - 5000: row["reason"] for row in rejects} == BAD
    assert {row["kind"] for row in rejects} == {"format"}
    assert rejects[2]["uri"] == f"{corpus}/b.parquet#140"
    assert json.loads((codes / "codes.json").read_text())["codes"] == 897


def parts(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "parts").glob("*.parquet"))}


def test_a_job_resumes_and_actors_change_no_byte(codes, corpus, encoder, tmp_path):
    again = tmp_path / "codes"
    encode_embeddings(corpus, encoder, again, features=True, unit_rows=100, actors=1)
    assert parts(again) == parts(codes)
    (again / "codes.json").unlink()
    (again / "sidecars" / "00003.json").unlink()
    seen = []
    encode_embeddings(
        corpus, encoder, again, features=True, unit_rows=100, progress=lambda state: seen.append(state.units)
    )
    assert (seen[0], seen[-1]) == (len(parts(codes)) - 1, len(parts(codes)))
    assert parts(again) == parts(codes)


def test_what_has_changed_is_encoded_again_and_nothing_else(corpus, encoder, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a.npy", "b.npy"):
        np.save(folder / name, X[:300])
    encode_embeddings(folder, encoder, tmp_path / "codes", unit_rows=100)
    np.save(folder / "b.npy", -X[:200])
    seen = []
    summary = encode_embeddings(
        folder, encoder, tmp_path / "codes", unit_rows=100, progress=lambda state: seen.append(state.units)
    )
    assert summary.codes == 500
    assert (seen[0], seen[-1]) == (3, 5)
    found = read_codes(tmp_path / "codes").codes
    expected = HashEncoder.load(encoder).encode_embeddings(np.concatenate([X[:300], -X[:200]]))
    assert Counter(map(bytes, found)) == Counter(map(bytes, expected))


def test_a_collection_of_embeddings_finds_them_and_reranks(codes, encoder, tmp_path):
    build_collection(codes, tmp_path / "c", shards=2)
    collection = Collection.open(tmp_path / "c")
    assert len(collection) == 897
    fitted = HashEncoder.load(collection.encoder_path)
    assert fitted.fingerprint == HashEncoder.load(encoder).fingerprint
    good = good_rows()
    found = collection.search(fitted.encode_embeddings(X[good[:50]]), k=1)
    assert (found.distances == 0).all()
    unit = X[good] / np.linalg.norm(X[good], axis=1, keepdims=True)
    np.testing.assert_allclose(collection.features_of(good + 5000), unit.astype(np.float16))


def test_features_are_kept_as_asked(codes, corpus, encoder, tmp_path):
    good = good_rows()
    ids = good + 5000
    head = HashEncoder.load(encoder).head
    steps = encode_embeddings(corpus, encoder, tmp_path / "steps", features="int8", unit_rows=300)
    assert steps.codes == 897
    as_int8 = Features.of(head.features(X[good]), "int8")[:]
    build_collection(tmp_path / "steps", tmp_path / "c")
    made = Collection.open(tmp_path / "c")
    assert (made.features_as, made.num_features) == ("int8", DIMS)
    assert made.features_of(ids).tolist() == as_int8.tolist()
    # From what other codes have, rounded once more; what is added is kept as the collection has it.
    build_collection(codes, tmp_path / "d", features_as="bfloat16")
    other = Collection.open(tmp_path / "d")
    as_float16 = head.features(X[good]).astype(np.float16)
    assert other.features_of(ids).tolist() == Features.of(as_float16, "bfloat16")[:].tolist()
    build_collection(codes, tmp_path / "c", append=True, upsert=True)
    added = Collection.open(tmp_path / "c", verify=True)
    assert (len(added), added.features_as) == (897, "int8")
    assert added.features_of(ids).tolist() == Features.of(as_float16, "int8")[:].tolist()
    with pytest.raises(ValueError, match="keeps features as int8, got `features_as` float16: leave it out"):
        build_collection(codes, tmp_path / "c", append=True, upsert=True, features_as="float16")


def test_features_cannot_be_kept_of_codes_without_them(corpus, encoder, tmp_path, ray_session):
    np.save(tmp_path / "x.npy", X[:50])
    encode_embeddings(tmp_path / "x.npy", encoder, tmp_path / "codes")
    with pytest.raises(PipelineError, match="has no features: encode with `--features` to keep some"):
        build_collection(tmp_path / "codes", tmp_path / "c", features_as="int8")
    assert not (tmp_path / "c" / "CURRENT").exists()
    with pytest.raises(ValueError, match="must be one of float16, bfloat16, int8, got 'int4'"):
        encode_embeddings(tmp_path / "x.npy", encoder, tmp_path / "other", features="int4")
    assert not (tmp_path / "other" / "job.json").exists()


def test_ids_that_occur_twice_are_refused(encoder, tmp_path, ray_session):
    table = pa.table({"id": [1, 2, 1], "e": pa.array(X[:3].tolist(), pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(PipelineError, match="1 ids occur more than once in the corpus, for example 1: give each row"):
        encode_embeddings(tmp_path / "x.parquet", encoder, tmp_path / "codes")


def test_other_dimensions_and_other_encoders_are_refused(corpus, encoder, tmp_path):
    np.save(tmp_path / "x.npy", X[:, :30])
    with pytest.raises(PipelineError, match="has embeddings of 30 numbers, the encoder takes 48"):
        encode_embeddings(tmp_path / "x.npy", encoder, tmp_path / "codes")
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    with pytest.raises(EncoderError, match="takes embeddings of 48 numbers, not images"):
        encode_corpus(tmp_path / "list.txt", encoder, tmp_path / "codes")
    assert not (tmp_path / "codes" / "job.json").exists()


def test_the_command_line_fits_and_encodes(corpus, tmp_path, ray_session):
    fitted = run(
        "train", "--embeddings", corpus, "--method", "lsh", "--bits", 300, "--no-normalise", "--output", tmp_path / "e"
    )
    assert fitted.exit_code == 0, fitted.output
    assert "fitted 300 bits by lsh to 898 embeddings of 48 numbers" in fitted.stdout.replace("\n", " ")
    kept = "--features-as", "int8"
    done = run(
        "encode", "--embeddings", corpus, "--encoder", tmp_path / "e", "--output", tmp_path / "codes", "--json", *kept
    )
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["codes"], summary["rejects"], summary["bits"]) == (898, 2, 300)
    assert run("build", "--codes", tmp_path / "codes", "--output", tmp_path / "c").exit_code == 0
    assert Collection.open(tmp_path / "c").features_as == "int8"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train", "--output", "e"], "give one of --input, a corpus of images, and --embeddings"),
        (["train", "--output", "e", "--embeddings", ".", "--input", "."], "give one of --input"),
        (["train", "--output", "e", "--embeddings", ".", "--epochs", "3", "--compile"], "for --epochs, --compile"),
        (["encode", "--output", "c", "--encoder", "."], "give one of --input"),
        (["encode", "--output", "c", "--encoder", ".", "--embeddings", ".", "--thumbnails", "64"], "are not decoded"),
        (["encode", "--output", "c", "--encoder", ".", "--embeddings", ".", "--retry-rejects"], "goes with none of"),
        (["encode", "--output", "c", "--encoder", ".", "--embeddings", ".", "--fit", "pad"], "--fit, --since and"),
        (["encode", "--output", "c", "--encoder", ".", "--input", ".", "--fit", "squash"], "'crop', 'pad', 'stretch'"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused(arguments, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert reason in " ".join(done.output.replace("│", " ").split())
