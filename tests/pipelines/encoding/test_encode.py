"""The encode job: the same bytes whatever runs it, and a reject for every image that is broken."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import tarfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.s3.models import S3Backend
from PIL import Image

from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.training.train import TrainConfig, train
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.errors import CollectionNotFoundError
from hashlight.pipelines.building.build import build_collection
from hashlight.pipelines.codes.parts import FEATURES_COLUMN, read_parts
from hashlight.pipelines.codes.summary import read_summary
from hashlight.pipelines.corpora.corpus import list_corpus, read_images
from hashlight.pipelines.corpora.work import list_work
from hashlight.pipelines.decoding.images import encode_entries
from hashlight.pipelines.decoding.worker import DecodeLimits
from hashlight.pipelines.encoding import encode as encode_module
from hashlight.pipelines.encoding.encode import encode_corpus
from hashlight.pipelines.encoding.rejects import RejectBudget
from hashlight.pipelines.jobs.errors import PipelineError
from tests.encoded import read_codes
from tests.pipelines.decoding import hostile

pytestmark = pytest.mark.usefixtures("ray_session")


def parts(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "parts").glob("*.parquet"))}


def test_codes_are_what_the_encoder_gives(codes, encoder, pictures):
    images, labels = pictures
    encoded = read_codes(codes)
    np.testing.assert_array_equal(encoded.ids, np.arange(1000, 1300))
    np.testing.assert_array_equal(encoded.codes, HashEncoder.load(encoder).encode(images[:300]))
    assert encoded.attributes["label"].to_pylist() == labels[:300].tolist()


@pytest.fixture(scope="module")
def units_of_70(tmp_path_factory, corpus, encoder, ray_session):
    """What one actor writes, fifty images at a time."""
    folder = tmp_path_factory.mktemp("units") / "codes"
    encode_corpus(corpus, encoder, folder, batch_size=50, actors=1, unit_images=70)
    return parts(folder)


@pytest.mark.parametrize(("batch_size", "actors"), [(1, 1), (32, 2)])
def test_batches_and_actors_change_no_byte(tmp_path, corpus, codes, encoder, units_of_70, batch_size, actors):
    encode_corpus(corpus, encoder, tmp_path / "codes", batch_size=batch_size, actors=actors, unit_images=70)
    assert len(parts(tmp_path / "codes")) == 5
    expected = pq.read_table(codes / "parts")
    assert pq.read_table(tmp_path / "codes" / "parts").equals(expected)
    assert parts(tmp_path / "codes") == units_of_70


def test_many_units_by_two_actors(tmp_path, corpus, encoder):
    seen = []
    for actors in (1, 2):
        encode_corpus(
            corpus,
            encoder,
            tmp_path / str(actors),
            batch_size=16,
            actors=actors,
            unit_images=37,
            progress=lambda state: seen.append((state.images, state.images_total, state.units)),
        )
    assert parts(tmp_path / "1") == parts(tmp_path / "2")
    assert len(parts(tmp_path / "1")) == 9
    assert [units for _, _, units in seen] == [*range(10), *range(10)], "each is told when it is done"
    assert seen[0] == (0, 300, 0)
    assert seen[-1] == (300, 300, 9)


def test_an_actor_reads_a_row_group_of_a_bucket_once_for_ten_units(tmp_path, corpus, encoder, bucket, monkeypatch):
    gets = Counter()
    real = S3Backend.get_object

    def get_object(store, name, key, *arguments, **options):
        gets[key] += 1
        return real(store, name, key, *arguments, **options)

    bucket.put("corpus.parquet", corpus.read_bytes())
    list_work(bucket.uri("corpus.parquet"), tmp_path / "work.arrow", unit_images=30)
    entries = list_corpus(bucket.uri("corpus.parquet"))
    monkeypatch.setattr(S3Backend, "get_object", get_object)
    assert len(list(read_images(entries))) == 300
    once = gets.pop("corpus.parquet")
    encode_corpus(tmp_path / "work.arrow", encoder, tmp_path / "codes", actors=1)
    assert len(parts(tmp_path / "codes")) == 10
    assert once <= gets["corpus.parquet"] < 2 * once, "a job also asks whether the file is there"


@pytest.fixture
def hostile_thousand(tmp_path, pictures):
    """1,000 images of which 20 are broken, each in one of five ways."""
    folder = tmp_path / "hostile"
    (folder / "x").mkdir(parents=True)
    rng = random.Random(3)
    broken = {
        "empty": lambda data: b"",
        "truncated": lambda data: data[: len(data) // 2],
        "text": lambda data: b"this is a text, not an image",
        "noise": lambda data: bytes(rng.randrange(256) for _ in range(300)),
        "cut header": lambda data: data[:7],
    }
    ways = dict(zip(rng.sample(range(1000), 20), list(broken) * 4, strict=True))
    for number in range(1000):
        buffer = io.BytesIO()
        Image.fromarray(pictures[0][number % 400]).save(buffer, "PNG")
        data = buffer.getvalue()
        if number in ways:
            data = broken[ways[number]](data)
        (folder / "x" / f"{number:04d}.png").write_bytes(data)
    return folder, ways


def test_broken_images_become_rejects(tmp_path, hostile_thousand, encoder):
    folder, ways = hostile_thousand
    summary = encode_corpus(folder, encoder, tmp_path / "codes")
    assert (summary.images, summary.codes, summary.rejects) == (1000, 980, 20)
    rejects = pq.read_table(tmp_path / "codes" / "rejects.parquet").to_pylist()
    assert {reject["uri"] for reject in rejects} == {str(folder / "x" / f"{n:04d}.png") for n in ways}
    reasons = {ways[int(reject["uri"][-8:-4])]: reject["reason"] for reject in rejects}
    assert len(set(reasons.values())) >= 3, reasons
    assert "empty" in reasons["empty"]
    assert len(read_codes(tmp_path / "codes").codes) == 980
    build_collection(tmp_path / "codes", tmp_path / "collection", shards=2)


def test_an_interrupted_job_resumes(tmp_path, corpus, encoder, units_of_70):
    encode_corpus(corpus, encoder, tmp_path / "codes", unit_images=70, actors=1)
    for name in ("codes.json", "rejects.parquet", "sidecars/00002.json", "sidecars/00004.json"):
        (tmp_path / "codes" / name).unlink()
    next((tmp_path / "codes" / "parts").glob("00004-*")).unlink()
    with pytest.raises(PipelineError, match="unfinished encode job"):
        read_summary(tmp_path / "codes")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "codes" / "sidecars").glob("*.json")}
    encode_corpus(corpus, encoder, tmp_path / "codes", unit_images=70, actors=1)
    assert parts(tmp_path / "codes") == units_of_70
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "codes" / "sidecars").glob("*.json")}
    assert {name: now[name] for name in kept} == kept, "a finished unit is not encoded again"


def test_another_jobs_folder_is_left_alone(tmp_path, corpus, codes, encoder, hostile_thousand):
    shutil.copytree(codes, tmp_path / "codes")
    before = parts(tmp_path / "codes")
    with pytest.raises(PipelineError, match="codes of another job, with corpus"):
        encode_corpus(hostile_thousand[0], encoder, tmp_path / "codes")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PipelineError, match="has no images"):
        encode_corpus(tmp_path / "empty", encoder, tmp_path / "codes", overwrite=True)
    assert parts(tmp_path / "codes") == before
    for name in ("parts", "encoder"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "thesis.tex").write_text("x")
    with pytest.raises(PipelineError, match="not empty"):
        encode_corpus(corpus, encoder, tmp_path / "mine", overwrite=True)
    assert len(list(tmp_path.glob("mine/*/thesis.tex"))) == 2


def test_an_encoder_beside_or_around_the_codes_survives(tmp_path, corpus, codes, encoder):
    shutil.copytree(encoder, tmp_path / "work" / "encoder")
    with pytest.raises(PipelineError, match="not empty"):
        encode_corpus(corpus, tmp_path / "work" / "encoder", tmp_path / "work", overwrite=True)
    shutil.copytree(codes, tmp_path / "codes")
    encode_corpus(corpus, tmp_path / "codes" / "encoder", tmp_path / "codes", overwrite=True)
    assert parts(tmp_path / "codes") == parts(codes)
    encode_corpus(corpus, tmp_path / "work" / "encoder", tmp_path / "work" / "encoder" / "codes")
    HashEncoder.load(tmp_path / "work" / "encoder")


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


def codes_by_uri(folder):
    table = pa.concat_tables(list(read_parts(folder)))
    return {row["uri"]: (row["id"], row["code"]) for row in table.to_pylist()}


def sidecars(folder):
    return {path.name: path.read_bytes() for path in (folder / "sidecars").glob("*.json")}


def test_of_a_corpus_that_changed_only_what_is_new_is_encoded(tmp_path, encoder, pictures):
    images, _ = pictures
    photos, codes = tmp_path / "photos", tmp_path / "codes"
    for number in range(12):
        write_png(photos / f"{number:02d}.png", images[number])
    encode_corpus(photos, encoder, codes, unit_images=4, actors=1)
    first = sidecars(codes)
    write_png(photos / "005.png", images[20])  # between the others
    write_png(photos / "99.png", images[21])
    (photos / "04.png").unlink()
    write_png(photos / "08.png", images[22])
    with pytest.raises(PipelineError, match="another job, with encoder"):
        encode_corpus(photos, trained_otherwise(tmp_path, pictures), codes)
    assert sidecars(codes) == first
    progress = []
    summary = encode_corpus(
        photos, encoder, codes, unit_images=4, actors=1, progress=lambda s: progress.append(s.images)
    )
    assert summary == encode_corpus(photos, encoder, tmp_path / "fresh", unit_images=4, actors=1)
    assert codes_by_uri(codes) == codes_by_uri(tmp_path / "fresh")
    assert (summary.images, summary.codes, progress[0]) == (13, 13, 4), "the first unit was there"
    assert sidecars(codes).items() & first.items() == {("00000.json", first["00000.json"])}
    assert len(parts(codes)) == len(sidecars(codes)), "parts of units that are gone are removed"
    build_collection(codes, tmp_path / "collection", shards=2)
    assert sorted(Collection.open(tmp_path / "collection").get(read_codes(codes).ids)["uri"].to_pylist()) == sorted(
        map(str, photos.iterdir())
    )
    later = sidecars(codes)
    encode_corpus(photos, encoder, codes, unit_images=4, actors=1)
    assert sidecars(codes) == later


def trained_otherwise(tmp_path, pictures):
    train(*pictures, TrainConfig(bits=48, epochs=1, warmup_epochs=0, seed=7)).save(tmp_path / "trained otherwise")
    return tmp_path / "trained otherwise"


def test_an_interrupted_job_goes_on_with_one_image_more_or_a_touch(tmp_path, encoder, pictures):
    photos, codes = tmp_path / "photos", tmp_path / "codes"
    for number in range(9):
        write_png(photos / f"{number}.png", pictures[0][number])
    encode_corpus(photos, encoder, codes, unit_images=3, actors=1)
    for name in ("codes.json", "sidecars/00001.json"):
        (codes / name).unlink()
    kept = sidecars(codes)
    write_png(photos / "3a.png", pictures[0][10])
    os.utime(photos / "8.png", ns=(1, 1))
    encode_corpus(photos, encoder, codes, unit_images=3, actors=1)
    now = sidecars(codes)
    assert kept["00000.json"] == now["00000.json"]
    assert "00002.json" not in now, "the unit of the touched image"
    encode_corpus(photos, encoder, tmp_path / "fresh", unit_images=3, actors=1)
    assert codes_by_uri(codes) == codes_by_uri(tmp_path / "fresh")


def test_of_tars_that_changed_only_new_ones_are_read(tmp_path, encoder, pictures):
    shards, codes = tmp_path / "shards", tmp_path / "codes"

    def write_tar(name, numbers):
        shards.mkdir(exist_ok=True)
        with tarfile.open(shards / name, "w") as tar:
            for number in numbers:
                buffer = io.BytesIO()
                Image.fromarray(pictures[0][number]).save(buffer, "PNG")
                member = tarfile.TarInfo(f"{number}.png")
                member.size = len(buffer.getvalue())
                tar.addfile(member, io.BytesIO(buffer.getvalue()))

    write_tar("1.tar", range(3))
    write_tar("2.tar", range(3, 6))
    encode_corpus(shards, encoder, codes, actors=1)
    first = sidecars(codes)
    write_tar("0.tar", range(6, 8))
    write_tar("2.tar", range(8, 12))
    summary = encode_corpus(shards, encoder, codes, actors=1)
    assert (summary.images, summary.codes) == (9, 9)
    assert sidecars(codes).items() & first.items() == {("00000.json", first["00000.json"])}
    encode_corpus(shards, encoder, tmp_path / "fresh", actors=1)
    assert codes_by_uri(codes) == codes_by_uri(tmp_path / "fresh")


def test_parts_of_another_encoder_never_count_as_done(tmp_path, monkeypatch, corpus, codes, pictures):
    train(*pictures, TrainConfig(bits=48, epochs=1, warmup_epochs=0, seed=5)).save(tmp_path / "other")
    shutil.copytree(codes, tmp_path / "codes")
    shutil.copytree(tmp_path / "codes" / "sidecars", tmp_path / "stale")
    with monkeypatch.context() as patch:
        patch.setattr(encode_module, "_encode_units", interrupt)
        with pytest.raises(KeyboardInterrupt):
            encode_corpus(corpus, tmp_path / "other", tmp_path / "codes", overwrite=True)
    shutil.copytree(tmp_path / "stale", tmp_path / "codes" / "sidecars", dirs_exist_ok=True)
    encode_corpus(corpus, tmp_path / "other", tmp_path / "codes")
    np.testing.assert_array_equal(
        read_codes(tmp_path / "codes").codes, HashEncoder.load(tmp_path / "other").encode(pictures[0][:300])
    )


def interrupt(*_arguments):
    raise KeyboardInterrupt


def test_a_damaged_part_is_refused(tmp_path, codes):
    shutil.copytree(codes, tmp_path / "codes")
    part = min((tmp_path / "codes" / "parts").iterdir())
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    with pytest.raises(PipelineError, match=rf"{part.name} is damaged: expected SHA-256"):
        build_collection(tmp_path / "codes", tmp_path / "collection")
    with pytest.raises(CollectionNotFoundError):
        Collection.open(tmp_path / "collection")
    data[100] ^= 1
    part.write_bytes(data)
    build_collection(tmp_path / "codes", tmp_path / "collection")
    assert len(Collection.open(tmp_path / "collection")) == read_summary(tmp_path / "codes").codes


def test_attributes_of_any_type_pass_through(tmp_path, pictures, encoder):
    buffer = io.BytesIO()
    Image.fromarray(pictures[0][0]).save(buffer, "PNG")
    table = pa.table({"image": [buffer.getvalue()] * 2, "tags": [["a", "b"], None], "price": [1.5, None]})
    pq.write_table(table, tmp_path / "corpus.parquet")
    encode_corpus(tmp_path / "corpus.parquet", encoder, tmp_path / "codes")
    assert read_codes(tmp_path / "codes").attributes.select(["tags", "price"]).to_pylist() == [
        {"tags": ["a", "b"], "price": 1.5},
        {"tags": None, "price": None},
    ]


def test_features_are_kept_in_the_collection(tmp_path, corpus, encoder):
    encode_corpus(corpus, encoder, tmp_path / "codes", actors=1, features=True)
    build_collection(tmp_path / "codes", tmp_path / "collection", shards=2)
    collection = Collection.open(tmp_path / "collection")
    entries, output = encode_entries(HashEncoder.load(encoder), list_corpus(corpus))
    ids = entries["id"].to_numpy()
    assert (collection.features_of(ids) == output.features.astype(np.float16)).all()
    assert FEATURES_COLUMN not in collection.get(ids[:1]).column_names
    found = collection.search(output.codes[:5], 3, rerank=Rerank(pool=30), features=output.features[:5])
    # Features went through float16, so the query's own image is nearest, but not quite at distance zero.
    assert (found.ids[:, 0] == ids[:5]).all()
    assert (found.distances[:, 0] < 0.05).all()
    with pytest.raises(PipelineError, match="features"):
        encode_corpus(corpus, encoder, tmp_path / "codes", actors=1)


@pytest.fixture
def wild(tmp_path):
    """A folder of hostile images."""
    folder = tmp_path / "wild"
    folder.mkdir()
    for name, (data, _) in {**hostile.good(), **hostile.bad()}.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_hostile_corpus_in_a_bucket_is_encoded_into_one(tmp_path, bucket, wild, encoder):
    for path in wild.iterdir():
        bucket.put(f"wild/{path.name}", path.read_bytes())
    limits = DecodeLimits(seconds=1)
    summary = encode_corpus(bucket.uri("wild"), encoder, bucket.uri("codes"), actors=1, limits=limits, batch_size=5)
    assert (summary.codes, summary.rejects) == (len(hostile.good()), len(hostile.bad()))
    table = pa.concat_tables(list(read_parts(bucket.uri("codes"))))
    code_of = {
        uri.rpartition("/")[2]: code
        for uri, code in zip(*table.select(["uri", "code"]).to_pydict().values(), strict=True)
    }
    model = HashEncoder.load(encoder)
    assert code_of == {name: model.encode(pixels[None]).tobytes() for name, (_, pixels) in hostile.good().items()}
    rejects = pq.read_table(io.BytesIO(bucket.get("codes/rejects.parquet"))).to_pylist()
    reasons = {reject["uri"].rpartition("/")[2]: f"{reject['kind']}: {reject['reason']}" for reject in rejects}
    assert reasons.keys() == hostile.bad().keys()
    for name, (_, pattern) in hostile.bad().items():
        assert re.search(pattern, reasons[name]), (name, reasons[name])
    stats = json.loads(bucket.get("codes/stats.json"))
    assert (stats["rejects"], stats["units"], stats["reasons"]["too many pixels"]) == (len(hostile.bad()), 1, 2)
    assert set(stats["seconds"]) == {"read", "decode", "encode", "write"}


def test_too_many_rejects_stop_a_job_that_can_resume(tmp_path, hostile_thousand, encoder):
    folder, _ = hostile_thousand
    work = tmp_path / "work.arrow"
    list_work(folder, work, unit_images=100)
    output = tmp_path / "codes"
    with pytest.raises(PipelineError, match=r"images were rejected so far, more than --max-rejects 1% allows"):
        encode_corpus(work, encoder, output, actors=1, max_rejects="1%")
    rejected = pq.read_table(output / "rejects.parquet")
    assert 10 < len(rejected) <= 20
    begun = len(parts(output))
    with pytest.raises(PipelineError, match="more than --max-rejects 1% allows"):
        encode_corpus(work, encoder, output, actors=1, max_rejects="1%")
    assert len(parts(output)) == begun, "a job that is over its budget does nothing more"
    summary = encode_corpus(work, encoder, output, actors=1, max_rejects="2%")
    assert (summary.codes, summary.rejects) == (980, 20)
    with pytest.raises(ValueError, match="max-rejects must be a number of images or a share"):
        encode_corpus(work, encoder, output, max_rejects="many")


@pytest.mark.parametrize(
    ("budget", "counts", "exceeded"),
    [
        (None, (10, 10, 10), False),
        ("3", (3, 9, 9), False),
        (3, (4, 4, 9_000), True),
        ("1%", (10, 10, 1000), False),
        ("1%", (11, 11, 1000), True),
        ("1%", (11, 999, None), False),
        ("1%", (11, 1000, None), True),
        ("0%", (1, 5, 10), True),
    ],
)
def test_reject_budgets(budget, counts, exceeded):
    assert RejectBudget.parse(budget).is_exceeded(*counts) is exceeded


def test_shards_give_the_codes_of_their_images(tmp_path, corpus, codes, encoder):
    rows = pq.read_table(corpus).to_pylist()
    (tmp_path / "shards").mkdir()
    for number in range(3):
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as tar:
            for row in rows[number * 100 : (number + 1) * 100]:
                for suffix, data in (("png", row["image"]), ("cls", str(row["label"]).encode())):
                    member = tarfile.TarInfo(f"{row['id']}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    summary = encode_corpus(tmp_path / "shards", encoder, tmp_path / "codes", actors=1)
    assert summary.images == 300
    found, expected = read_codes(tmp_path / "codes"), read_codes(codes)
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert found.attributes["label"].to_pylist() == [str(row["label"]) for row in rows]
    shutil.copy(tmp_path / "shards" / "0.tar", tmp_path / "shards" / "3.tar")
    with tarfile.open(tmp_path / "shards" / "3.tar", "a") as tar:
        member = tarfile.TarInfo(f"{rows[0]['id']}.png")
        member.size = len(rows[0]["image"])
        tar.addfile(tarfile.TarInfo("between.png"))
        tar.addfile(member, io.BytesIO(rows[0]["image"]))
    summary = encode_corpus(tmp_path / "shards", encoder, tmp_path / "others", actors=1)
    assert (summary.images, summary.codes) == (402, 400)
    reasons = pq.read_table(tmp_path / "others" / "rejects.parquet")["reason"].to_pylist()
    assert sorted(reasons) == ["empty file", f"unreadable: {rows[0]['id']}.png occurs twice in the shard"]


def test_thumbnails_lie_beside_the_codes(tmp_path, corpus, encoder):
    encode_corpus(corpus, encoder, tmp_path / "codes", actors=1, thumbnail=14)
    table = pa.concat_tables(list(read_parts(tmp_path / "codes")))
    images = [Image.open(io.BytesIO(data)) for data in table["thumbnail"].to_pylist()]
    assert {(image.format, image.size) for image in images} == {("JPEG", (14, 14))}
    assert len(images) == 300


def test_another_fit_is_another_encoder_which_the_codes_keep(tmp_path, corpus, encoder):
    given = HashEncoder.load(encoder).with_fit("crop")
    summary = encode_corpus(corpus, given, tmp_path / "codes", actors=1)
    kept = HashEncoder.load(tmp_path / "codes" / "encoder")
    assert summary.encoder == kept.fingerprint == given.fingerprint != HashEncoder.load(encoder).fingerprint
    assert (kept.config.preprocessing.fit, kept.config.preprocessing.resize) == ("crop", 32)
    images = pq.read_table(corpus)["image"].to_pylist()
    np.testing.assert_array_equal(read_codes(tmp_path / "codes").codes, given.encode(images))
    with pytest.raises(PipelineError, match="holds the codes of another job"):
        encode_corpus(corpus, encoder, tmp_path / "codes", actors=1)
