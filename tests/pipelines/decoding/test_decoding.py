"""Decoding in other processes: pixels for every good image, a reason for every other, whichever process dies."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import signal

import numpy as np
import pytest
from PIL import Image

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.pipelines.decoding.pool import DecodePool
from hashlight.pipelines.decoding.worker import DecodeLimits
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.errors import PipelineError
from tests.pipelines.decoding import hostile

RULE = Preprocessing(size=hostile.SIDE, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def numbered(count):
    """Images of a single colour each, which identifies them."""
    return [hostile.save(Image.new("L", (20, 20), value % 256), "PNG") for value in range(count)]


def decoded(pool, images):
    """All pixels and reasons by position, each reason as "kind: words", and the batches' firsts."""
    pixels, reasons, firsts = {}, {}, []
    for batch in pool.decode(images):
        firsts.append(batch.first)
        pixels.update(zip(batch.good.tolist(), batch.pixels.copy(), strict=True))
        reasons |= {row: f"{kind}: {words}" for row, (kind, words) in batch.reasons.items()}
    return pixels, reasons, firsts


@pytest.fixture(scope="module")
def outcome():
    """The outcome for each hostile image, by name."""
    images = {**hostile.good(), **hostile.bad()}
    with DecodePool(RULE, batch_size=8, limits=DecodeLimits(seconds=1)) as pool:
        pixels, reasons, _ = decoded(pool, [data for data, _ in images.values()])
    assert pixels.keys() | reasons.keys() == set(range(len(images)))
    assert not pixels.keys() & reasons.keys()
    return {name: pixels.get(number, reasons.get(number)) for number, name in enumerate(images)}


@pytest.mark.parametrize("name", hostile.good())
def test_good_images_are_upright_and_right(outcome, name):
    _, expected = hostile.good()[name]
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    np.testing.assert_array_equal(outcome[name], expected)


@pytest.mark.parametrize("name", hostile.bad())
def test_bad_images_have_their_reason(outcome, name):
    assert isinstance(outcome[name], str), "a bad image was decoded"
    assert "\n" not in outcome[name]
    assert re.search(hostile.bad()[name][1], outcome[name]), outcome[name]


@pytest.mark.parametrize(("processes", "batch_size"), [(1, 1), (1, 7), (2, 7), (3, 64)])
def test_the_stream_keeps_its_order_whatever_the_batches(processes, batch_size):
    images = numbered(100)
    images[13], images[50] = b"", FileNotFoundError("gone")
    with DecodePool(RULE, processes=processes, batch_size=batch_size) as pool:
        for _ in range(2):
            pixels, reasons, firsts = decoded(pool, images)
            assert reasons == {13: "format: empty file", 50: "missing: unreadable: gone"}
            assert {row: int(image[0, 0, 0]) for row, image in pixels.items()} == {
                row: row for row in range(100) if row not in reasons
            }
            assert firsts == list(range(0, 100, batch_size))


def test_memory_is_limited_for_an_image():
    large = hostile.save(Image.new("RGB", (7000, 7000)), "PNG")
    images = [*numbered(3), large, *numbered(2)]
    with DecodePool(RULE, limits=DecodeLimits(memory_bytes=64 << 20)) as pool:
        pixels, reasons, _ = decoded(pool, images)
    assert reasons == {3: "limit: needs more than 64 MiB to decode"}
    assert sorted(pixels) == [0, 1, 2, 4, 5]


def test_the_limit_on_pixels_is_an_option():
    rule = Preprocessing(size=4, channels=1, mean=(0.5,), std=(0.5,))
    images = [hostile.save(Image.new("1", size, 1), "PNG") for size in ((9_600, 9_600), (30, 20), (9_600, 9_601))]
    with DecodePool(rule, limits=DecodeLimits(pixels=9_600**2)) as pool:
        pixels, reasons, _ = decoded(pool, images)
    assert reasons == {2: "limit: too many pixels: 9600 x 9601, at most 92,160,000 are decoded"}
    assert {row: image.min() for row, image in pixels.items()} == {0: 255, 1: 255}
    with DecodePool(rule, limits=DecodeLimits(pixels=599)) as pool:
        assert decoded(pool, images[1:2])[1] == {0: "limit: too many pixels: 30 x 20, at most 599 are decoded"}


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """Apply fault rules to the `decode` steps of the decoding processes."""

    def write(*rules):
        (tmp_path / "rules.json").write_text(json.dumps(rules))
        monkeypatch.setenv(chaos.VARIABLE, str(tmp_path))

    return write


KILLED = "killed: was at hand each time when the decoding process was killed, 5 times: is the memory enough for it?"


def name_of(data):
    return hashlib.blake2b(data, digest_size=8).hexdigest()


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("segfault", "killed: ends the decoding process (SIGSEGV)"),
        ("hang", "limit: takes more than 0.2 s of processor time to decode"),
        ("kill", KILLED),
    ],
)
def test_an_image_that_ends_its_decoder_costs_only_itself(faults, do, reason):
    images = numbered(30)
    guilty = [0, 11, 12, 29]
    faults(*({"step": "decode", "key": name_of(images[row]), "do": do, "times": 1000} for row in guilty))
    with DecodePool(RULE, batch_size=10, limits=DecodeLimits(seconds=0.2)) as pool:
        pixels, reasons, _ = decoded(pool, images)
    assert reasons == dict.fromkeys(guilty, reason)
    assert {row: int(image[0, 0, 0]) for row, image in pixels.items()} == {r: r for r in range(30) if r not in guilty}


def test_a_decoder_that_dies_once_costs_nothing(faults):
    images = numbered(200)
    faults({"step": "decode", "skip": 20, "times": 1, "do": "kill"}, {"step": "decode", "skip": 90, "do": "kill"})
    with DecodePool(RULE, batch_size=16) as pool:
        pixels, reasons, _ = decoded(pool, images)
    assert reasons == {}
    assert {row: int(image[0, 0, 0]) for row, image in pixels.items()} == {row: row for row in range(200)}


def test_images_are_not_blamed_for_kills_from_outside(faults):
    """The kernel kills this process first when the machine runs out of memory, whichever image it is decoding."""
    images = numbered(50)
    faults({"step": "decode", "key": name_of(images[20]), "times": 4, "do": "kill"})
    with DecodePool(RULE, batch_size=16) as pool:
        pixels, reasons, _ = decoded(pool, images)
        assert reasons == {}
        assert {row: int(image[0, 0, 0]) for row, image in pixels.items()} == {row: row for row in range(50)}
    faults({"step": "decode", "skip": 30, "times": 1000, "do": "kill"})
    with (
        DecodePool(RULE, batch_size=16) as pool,
        pytest.raises(PipelineError, match=r"killed 1\d times in a row: is the machine out of memory"),
    ):
        decoded(pool, images)


def test_an_image_that_gets_the_watcher_killed_too_is_named(faults):
    """As where the kernel ends all processes of a container at once."""
    images = numbered(12)
    faults({"step": "decode", "key": name_of(images[7]), "times": 1000, "do": "kill-parent"})
    with DecodePool(RULE, batch_size=5) as pool:
        pixels, reasons, _ = decoded(pool, images)
    assert reasons == {7: KILLED}
    assert sorted(pixels) == [row for row in range(12) if row != 7]


def test_many_images_that_get_their_decoder_killed_are_all_named(faults):
    """More kills than the limit in one slot, but with images decoded in between."""
    images = numbered(10)
    guilty = [1, 3, 5, 7]
    faults(*({"step": "decode", "key": name_of(images[row]), "do": "kill", "times": 1000} for row in guilty))
    with DecodePool(RULE, batch_size=10) as pool:
        pixels, reasons, _ = decoded(pool, images)
    assert reasons == dict.fromkeys(guilty, KILLED)
    assert sorted(pixels) == [0, 2, 4, 6, 8, 9]


def test_adjacent_images_that_get_their_decoder_killed_are_all_named(faults):
    """More kills than the limit without an image decoded in between, over the end of a slot."""
    images = numbered(8)
    guilty = [2, 3, 4, 5, 6]
    faults(*({"step": "decode", "key": name_of(images[row]), "do": "kill", "times": 1000} for row in guilty))
    with DecodePool(RULE, batch_size=5) as pool:
        pixels, reasons, _ = decoded(pool, images)
    assert reasons == dict.fromkeys(guilty, KILLED)
    assert sorted(pixels) == [0, 1, 7]


def test_a_watcher_that_is_killed_is_replaced():
    images = numbered(400)
    with DecodePool(RULE, batch_size=16) as pool:
        found = {}
        for batch in pool.decode(images):
            found.update(zip(batch.good.tolist(), batch.pixels[:, 0, 0, 0].tolist(), strict=True))
            if batch.first in (64, 128):
                os.kill(pool._decoders[0]._process.pid, signal.SIGKILL)
    assert found == {row: row % 256 for row in range(400)}


def test_a_stream_that_fails_leaves_the_pool_usable_and_one_that_is_abandoned_does_not():
    def failing():
        yield from numbered(40)
        raise OSError("the store is gone")

    with DecodePool(RULE, batch_size=8) as pool:
        with pytest.raises(OSError, match="the store is gone"):
            decoded(pool, failing())
        pixels, _, _ = decoded(pool, numbered(30)[::-1])
        assert [int(pixels[row][0, 0, 0]) for row in range(30)] == list(range(30))[::-1]
        next(pool.decode(numbered(40)))
        with pytest.raises(PipelineError, match="was not consumed to its end"):
            decoded(pool, numbered(30))


def test_comments_are_not_copied_into_thumbnails():
    buffer = io.BytesIO()
    Image.new("RGB", (100, 100)).save(buffer, "JPEG", comment=b"c" * 60_000)
    with DecodePool(RULE, thumbnail=64) as pool:
        (batch,) = list(pool.decode([buffer.getvalue()]))
    assert batch.reasons == {}
    assert len(batch.thumbnails[0]) < 2000


def test_a_thumbnail_is_as_large_as_asked_for_whatever_size_is_decoded():
    rule = dataclasses.replace(RULE, draft=2)
    images = [
        hostile.save(Image.effect_noise(size, 50), kind)
        for size in ((900, 700), (300, 200), (40, 30))
        for kind in ("JPEG", "PNG")
    ]
    with DecodePool(rule, thumbnail=256) as pool:
        [batch] = pool.decode(images)
        opened = [Image.open(io.BytesIO(data)).size for data in batch.thumbnails]
        pixels = batch.pixels.copy()
    assert opened == [(256, 199)] * 2 + [(256, 171)] * 2 + [(40, 30)] * 2
    with DecodePool(rule) as pool:
        [batch] = pool.decode(images)
        assert (batch.pixels == pixels).all(), "whether thumbnails are kept is not part of the codes' identity"


def test_thumbnails_come_beside_the_pixels():
    images = [hostile.save(Image.new("RGB", (400, 200), (200, 30, 90)), "PNG"), b"", *numbered(1)]
    with DecodePool(RULE, thumbnail=64) as pool:
        (batch,) = list(pool.decode(images))
    opened = [Image.open(io.BytesIO(data)) for data in batch.thumbnails]
    assert [(image.format, image.size, image.mode) for image in opened] == [
        ("JPEG", (64, 32), "RGB"),
        ("JPEG", (20, 20), "L"),
    ]
    assert np.abs(np.asarray(opened[0])[16, 32].astype(int) - [200, 30, 90]).max() < 6
