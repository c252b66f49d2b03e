"""The command line: right answers, one clear line for what is wrong, and exit codes that programs can use."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.collection.collection import Collection
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.codes.summary import read_summary
from tests import oracles
from tests.encoded import read_codes

pytestmark = pytest.mark.usefixtures("ray_session")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def image(tmp_path, pictures):
    path = tmp_path / "query.png"
    Image.fromarray(pictures[0][7]).save(path)
    return path


@pytest.fixture
def expected(codes, pictures):
    """(distance, id) of every image of the corpus from picture 7, by the oracle."""
    table = pq.read_table(codes / "parts")
    words = np.frombuffer(b"".join(table["code"].to_pylist()), np.uint64).reshape(-1, 1)
    distances = oracles.hamming_distances(words[7:8], words)[0]
    return sorted(zip(distances.tolist(), table["id"].to_pylist(), strict=True))


def test_search_by_k_as_json(collection, image, expected):
    result = run("search", collection, "--image", image, "-k", 5, "--order", "hamming", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [(a["distance"], a["id"]) for a in document["answers"]] == expected[:5]
    assert document["answers"][0]["attributes"].keys() == {"uri", "label", "label_name"}
    assert document["coverage"] == {
        "shards": 3, "answered": 3, "codes": 300, "searched": 300, "version": 1, "degraded": {}, "complete": True,
    }  # fmt: skip
    assert (document["query"], document["order"]) == ({"image": str(image), "k": 5}, "hamming")


def test_an_image_is_answered_in_asymmetric_order(collection, image, expected):
    document = json.loads(run("search", collection, "--image", image, "-k", 100, "--json").stdout)
    found = [(a["distance"], a["id"]) for a in document["answers"]]
    assert found[0][0] == 0
    assert set(found) < set(expected)
    assert found != expected[:100]
    assert document["order"] == "asymmetric"
    refused = run("search", collection, "--id", expected[0][1], "--order", "asymmetric")
    assert refused.exit_code == 2, refused.output


@pytest.mark.parametrize("radius", [0, 2, 48])
def test_search_by_radius_as_json(collection, image, expected, radius):
    document = json.loads(run("search", collection, "--image", image, "--radius", radius, "--json").stdout)
    assert [(a["distance"], a["id"]) for a in document["answers"]] == [pair for pair in expected if pair[0] <= radius]
    assert document["answers"]
    assert not document["truncated"]


def test_a_limit_cuts_and_says_so(collection, image, expected):
    arguments = ("search", collection, "--image", image, "--radius", 48, "--limit", 3)
    document = json.loads(run(*arguments, "--json").stdout)
    assert [(a["distance"], a["id"]) for a in document["answers"]] == expected[:3]
    assert document["truncated"]
    assert "--limit cut more" in run(*arguments).stdout


@pytest.mark.parametrize("reach", [{"-k": 5}, {"--radius": 3}])
@pytest.mark.parametrize("kind", ["--image", "--id", "--code"])
@pytest.mark.parametrize("label", [None, 3])
def test_an_image_an_id_and_a_code_find_the_same(collection, image, codes, expected, kind, reach, label):
    table = pq.read_table(codes / "parts")
    query = {"--image": str(image), "--id": table["id"][7].as_py(), "--code": table["code"][7].as_py()[:6].hex()}[kind]
    options = [kind, query, *next(iter(reach.items())), "--order", "hamming"]
    if label is not None:
        options += ["--filter", f"label == {label} and id > 0"]
    document = json.loads(run("search", collection, *options, "--json").stdout)
    labels = dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
    wanted = [pair for pair in expected if label is None or labels[pair[1]] == label]
    wanted = wanted[: reach["-k"]] if "-k" in reach else [pair for pair in wanted if pair[0] <= reach["--radius"]]
    assert wanted
    assert [(a["distance"], a["id"]) for a in document["answers"]] == wanted
    assert document["query"][kind[2:]] == query
    assert document["query"].get("filter") == (None if label is None else f"label == {label} and id > 0")


def test_a_query_by_id_or_code_is_saved_as_a_picture(collection, codes, tmp_path):
    code = pq.read_table(codes / "parts")["code"][7].as_py().hex()
    for name, query in (("id", ("--id", 1007)), ("code", ("--code", code))):
        result = run("search", collection, *query, "--save", tmp_path / f"{name}.png")
        assert result.exit_code == 0, result.output
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 800


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--code", "00ff"), 2, "--code has 4 digits, expected 12 (or 16, in whole words) for the 48 bits"),
        (("--code", "0g" * 6), 2, "--code has 'g', which is not a hexadecimal digit"),
        (("--code", "ff" * 8), 2, "`--code` has bits set past bit 47"),
        (
            ("--code", "00" * 6, "--encoder", "."),
            2,
            "--encoder goes with --image, --vector and --text: ids and codes need none",
        ),
        (("--id", 5), 1, "id 5 was not found"),
        (("--id", -1), 2, "greater than or equal to 0, got '-1'"),
        (("--id", 1007, "--filter", "colour == 1"), 1, "colour"),
        ((), 2, "give one of --image, --id, --vector, --text, --code and --codes"),
    ],
)
def test_a_query_that_is_none_is_refused(collection, arguments, code, message):
    result = run("search", collection, *arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("index", ["multi", "scan", "faiss-flat", "faiss-multi-hash"])
def test_every_index_answers_a_search_alike(collection, image, expected, index):
    options = ("-k", 9, "--index", index, "--order", "hamming", "--json")
    document = json.loads(run("search", collection, "--image", image, *options).stdout)
    assert [(a["distance"], a["id"]) for a in document["answers"]] == expected[:9]


def test_an_unknown_index_is_wrong_usage(collection, image):
    assert run("search", collection, "--image", image, "--index", "best").exit_code == 2


def test_search_prints_its_coverage_and_saves_a_picture(collection, image, tmp_path):
    result = run("search", collection, "--image", image, "--save", tmp_path / "grid.png")
    assert result.exit_code == 0, result.output
    assert "300 of 300 codes searched in 3 of 3 shards" in result.stdout.replace("\n", " ")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > 800


def test_info_describes_and_verifies(collection):
    facts = json.loads(run("info", collection, "--json", "--verify").stdout)
    assert (facts["codes"], facts["bits"], facts["shards"], facts["version"]) == (300, 48, 3, 1)
    assert facts["attributes"] == ["uri", "label", "label_name"]
    assert facts["tables"] is True
    assert facts["verified"] is True
    assert json.loads(run("info", collection, "--json").stdout)["verified"] is False


def test_train_on_pairs(tmp_path, corpus):
    options = ("train", "--input", corpus, "--bits", 16, "--epochs", 1, "--output", tmp_path / "encoder")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b,similar\n" + "".join(f"{1000 + n},{1150 + n},{n % 2}\n" for n in range(150)))
    result = run(*options, "--pairs", pairs)
    assert result.exit_code == 0, result.output
    assert "trained 16 bits" in result.stdout
    before = HashEncoder.load(tmp_path / "encoder").fingerprint
    assert "not empty" in failure(*options, "--pairs", pairs)
    pairs.write_text("a,b,similar\n1000,5,1\n")
    assert "names 1 image by id that the corpus lacks" in failure(*options, "--pairs", pairs, "--overwrite")
    assert HashEncoder.load(tmp_path / "encoder").fingerprint == before
    pairs.write_text("a,b,similar\n1000,1001,1\n1000,1002,0\n")
    assert run(*options, "--pairs", pairs, "--overwrite", "--seed", 3).exit_code == 0
    assert HashEncoder.load(tmp_path / "encoder").fingerprint != before


def test_encode_says_what_became_of_every_file(tmp_path, pictures, encoder):
    """Seen: 7 members of the shard and the file beside it; 3 images, one of them bad, and one text that describes."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "README.md").write_text("x")
    buffer = io.BytesIO()
    Image.fromarray(pictures[0][7]).save(buffer, "PNG")
    members = {
        "IMG_2020.01.01.png": buffer.getvalue(), "IMG_2020.01.02.cls": b"7", "IMG_2020.01.02.png": buffer.getvalue(),
        "IMG_2020.01.03.png": b"", "IMG_2020.01.04.cls": b"8", "IMG_2020.npy": b"x", ".DS_Store": b"x",
    }  # fmt: skip
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    result = run("encode", "--input", tmp_path / "shards", "--encoder", encoder, "--output", tmp_path / "codes")
    assert result.exit_code == 0, result.output
    assert "encoded 2 of 3 images" in result.stdout
    assert "1 image was rejected (1 format)" in result.stdout
    assert "left out 4 files: " in result.stdout
    skipped = {"*.md": 1, "*.npy": 1, "hidden": 1, "*.cls without an image": 1}
    assert read_summary(tmp_path / "codes").skipped == skipped
    assert json.loads((tmp_path / "codes" / "stats.json").read_text())["skipped"] == skipped
    assert read_codes(tmp_path / "codes").attributes["label"].to_pylist() == [None, "7"]


def test_uris_and_values_are_shown_as_they_are(tmp_path, codes, image, pictures):
    attributes = {"uri": [f"/data/[old]/[/x]/{n}.png" for n in range(300)], "price": [float("nan")] * 300}
    corpus = read_codes(codes)
    options = {"encoder": corpus.encoder, "fingerprint": corpus.fingerprint, "bits": 48}
    Collection.create(tmp_path / "c", corpus.codes, attributes=attributes, **options)
    assert "/data/[old]/[/x]/" in run("search", tmp_path / "c", "--image", image).stdout
    answer = json.loads(run("search", tmp_path / "c", "--image", image, "-k", 10**12, "--json").stdout)["answers"]
    assert len(answer) == 300
    assert answer[0]["attributes"]["price"] is None


@pytest.mark.slow
@pytest.mark.long
def test_warmup_leaves_compiled_kernels(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    result = subprocess.run(
        [sys.executable, "-P", "-m", "hashlight", "warmup"], capture_output=True, text=True, check=True
    )
    assert "ready in" in result.stdout
    assert len(list(tmp_path.rglob("*.nbi"))) > 5
    assert list(tmp_path.rglob("costs-*.json"))


def test_evaluate_writes_a_report(tmp_path, corpus, encoder):
    result = run(
        "evaluate", "--encoder", encoder, "--database", corpus, "--queries", corpus, "--output", tmp_path / "report"
    )
    assert result.exit_code == 0, result.output
    shown = (tmp_path / "report" / "results.png").read_bytes()
    report = json.loads((tmp_path / "report" / "report.json").read_bytes())
    assert set(report["methods"]) == {"hashnet", "itq", "lsh"}
    assert all(0.1 < method["map_all"] < 1 for method in report["methods"].values())
    assert (report["protocol"]["queries"], report["protocol"]["database"]) == (300, 300)
    assert (tmp_path / "report" / "precision_recall.png").stat().st_size > 5000
    again = run(
        "evaluate", "--encoder", encoder, "--database", corpus, "--queries", corpus, "--output", tmp_path / "report",
        "--index", "faiss-multi-hash", "--baseline", "lsh",
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert (tmp_path / "report" / "results.png").read_bytes() == shown


def test_encode_reports_and_resumes(tmp_path, corpus, encoder):
    arguments = ("encode", "--input", corpus, "--encoder", encoder, "--output", tmp_path / "codes")
    first = json.loads(run(*arguments, "--json").stdout)
    assert (first["images"], first["codes"], first["rejects"]) == (300, 300, 0)
    assert "encoded 300 of 300 images" in run(*arguments).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-k", 0), "greater than or equal to 1, got '0'"),
        (("-k", "many"), "got 'many'"),
        (("--radius", -1), "greater than or equal to 0, got '-1'"),
        (("--id", 3), "give one of --image, --id, --vector, --text, --code and --codes"),
        (("--code", "00"), "give one of --image, --id, --vector, --text, --code and --codes"),
        (("--overwrite",), "--output, --workers, --address and --overwrite go with --codes"),
        (("--radius", 49), "0 to 48 (the codes have 48 bits), got 49"),
        (("-k", 3, "--radius", 3), "not both"),
        (("--limit", 3), "--limit goes with --radius"),
        (("--save", "answers.jpg"), "--save must be a .png file in a folder that exists, got answers.jpg"),
        (("--colour", "red"), "No such option"),
    ],
)
def test_wrong_usage_exits_with_2(collection, image, arguments, message):
    result = run("search", collection, "--image", image, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_missing_files_exit_with_2(collection, tmp_path, encoder):
    assert run("search", collection, "--image", tmp_path / "no.png").exit_code == 2
    result = run("encode", "--input", tmp_path / "no", "--encoder", encoder, "--output", tmp_path / "codes")
    assert result.exit_code == 2
    assert "does not exist" in " ".join(result.stderr.replace("│", " ").split())


def test_a_work_list_stands_for_its_corpus(tmp_path, corpus, codes, encoder):
    work = tmp_path / "work.arrow"
    result = run("list", corpus, "--output", work, "--unit-images", 100, "--json")
    assert result.exit_code == 0, result.output
    assert {"kind": "images", "units": 3, "images": 300}.items() <= json.loads(result.stdout).items()
    assert run("list", corpus, "--output", tmp_path / "work").exit_code == 2
    arguments = ("encode", "--input", work, "--encoder", encoder, "--output", tmp_path / "codes", "--actors", 1)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert pq.read_table(tmp_path / "codes" / "parts").equals(pq.read_table(codes / "parts"))
    last = json.loads(result.stderr.splitlines()[-1])
    assert {"job": "encode", "units": 3, "units_total": 3, "images": 300, "rejects": 0}.items() <= last.items()
    assert last["images_per_s"] > 0


def failure(*arguments):
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_failures_exit_with_1_and_one_message(tmp_path, collection, codes, encoder, image):
    (tmp_path / "empty").mkdir()
    not_an_image = tmp_path / "not.png"
    not_an_image.write_bytes(b"text")
    output = tmp_path / "out"
    assert "no collection at" in failure("search", tmp_path / "empty", "--image", image)
    assert "cannot be searched for" in failure("search", collection, "--image", not_an_image)
    folder = failure("search", collection, "--image", tmp_path / "empty")
    assert folder == f"error: {tmp_path}/empty cannot be searched for: Is a directory"
    assert "has no images" in failure("encode", "--input", tmp_path / "empty", "--encoder", encoder, "--output", output)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    arguments = ("encode", "--input", tmp_path / "broken", "--encoder", encoder, "--output", tmp_path / "none")
    assert "none of 1 image could be encoded: not an image (1 time)" in failure(*arguments)
    assert "is a file, expected a folder" in failure(*arguments[:-1], not_an_image)
    assert "is not an encoder" in failure(
        "encode", "--input", image.parent, "--encoder", tmp_path / "empty", "--output", output
    )
    assert "no codes: expected" in failure("build", "--codes", tmp_path / "empty", "--output", output)
    assert "must be 1 to 300" in failure("build", "--codes", codes, "--output", output, "--shards", 301)
    assert "is a collection (version 1" in failure("build", "--codes", codes, "--output", collection)
    assert "not empty" in failure("train", "--input", image.parent, "--output", collection)
    assert not output.exists() or not list(output.glob("shards/*"))


def test_codes_of_another_encoder_are_refused(tmp_path, collection, pictures, image):
    from hashlight.encoders.training.train import TrainConfig, train

    for bits in (48, 16):
        train(*pictures, TrainConfig(bits=bits, epochs=1, warmup_epochs=0, seed=9)).save(tmp_path / str(bits))
        message = failure("search", collection, "--image", image, "--encoder", tmp_path / str(bits))
        assert f"with {bits} bits: search with the encoder that made the codes" in message


def test_one_flipped_byte_of_a_shard_is_named(tmp_path, codes, image):
    assert run("build", "--codes", codes, "--output", tmp_path / "c", "--shards", 2).exit_code == 0
    victim = next((tmp_path / "c" / "shards").glob("*/codes.faiss"))
    data = bytearray(victim.read_bytes())
    data[50] ^= 1
    victim.write_bytes(data)
    assert "codes.faiss is damaged: expected SHA-256" in failure("search", tmp_path / "c", "--image", image)


def test_debug_shows_where(tmp_path, image):
    arguments = [sys.executable, "-P", "-m", "hashlight", "--debug", "search", str(tmp_path), "--image", str(image)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert "Traceback" in result.stderr
    assert "CollectionNotFoundError" in result.stderr


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_build_leaves_the_old_collection_or_the_new_one(tmp_path, codes):
    build = [sys.executable, "-P", "-m", "hashlight", "build", "--codes", codes, "--output", tmp_path / "c"]
    started = time.monotonic()
    subprocess.run([*map(str, build), "--shards", "2"], check=True, capture_output=True, env=os.environ)
    duration = time.monotonic() - started
    rng = np.random.default_rng(1)
    for _ in range(5):
        before = Collection.open(tmp_path / "c").version
        with subprocess.Popen([*map(str, build), "--shards", "40", "--overwrite"], stderr=subprocess.DEVNULL) as job:
            time.sleep(rng.uniform(0.5, 1.1) * duration)
            job.send_signal(signal.SIGKILL)
        survivor = Collection.open(tmp_path / "c", verify=True)
        assert len(survivor) == 300
        assert survivor.version in (before, before + 1)
        assert len(survivor.shards) == (2 if survivor.version == 1 else 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ids", "uri"], "a work list has its ids: give --ids to `hashlight list`"),
        (["--ids", "uri", "--retry-rejects"], "--retry-rejects keeps the ids that the job has: give it without --ids"),
        (["--ids", "names"], "ids are made from auto, name, uri, content"),
    ],
)
def test_ids_that_cannot_be_given_are_refused_before_any_work(tmp_path, corpus, encoder, arguments, message):
    assert run("list", corpus, "--output", tmp_path / "work.arrow").exit_code == 0
    # At the address there is no cluster.
    options = ["--encoder", encoder, "--output", tmp_path / "codes", "--address", "127.0.0.1:1", *arguments]
    result = run("encode", "--input", tmp_path / "work.arrow", *options)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "codes").exists()


def test_a_damaged_work_list_is_named(tmp_path, corpus, encoder):
    assert run("list", corpus, "--output", tmp_path / "work.arrow").exit_code == 0
    data = (tmp_path / "work.arrow").read_bytes()
    (tmp_path / "work.arrow").write_bytes(data[:-20])
    result = run("encode", "--input", tmp_path / "work.arrow", "--encoder", encoder, "--output", tmp_path / "codes")
    assert result.exit_code == 1
    assert f"{tmp_path}/work.arrow is not a readable work list" in result.stderr
    assert "list the corpus again with `hashlight list`" in result.stderr
