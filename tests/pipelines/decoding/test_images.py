"""Images that jobs decode for this process: by guarded processes, so that nothing of them reaches the terminal."""

from __future__ import annotations

import io
import tempfile

import numpy as np
import pytest
from PIL import Image

from hashlight.encoders.data import prepared as prepared_module
from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.encoder import HashEncoder
from hashlight.pipelines.corpora.corpus import list_corpus
from hashlight.pipelines.decoding.images import (
    decode_one,
    encode_entries,
    prepared_images,
    readable_images,
    thumbnails,
)
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.searching.images import encode_file


def saved(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture
def damaged():
    """A TIFF at which libtiff writes to the standard error, past Python."""
    whole = saved(Image.effect_noise((64, 64), 50), "TIFF", compression="tiff_lzw")
    return whole[:40] + b"\0\xff" * 200 + whole[440:]


@pytest.fixture
def folder(tmp_path, pictures, damaged):
    for number in range(5):
        Image.fromarray(pictures[0][number]).save(tmp_path / f"{number}.png")
    (tmp_path / "3.tiff").write_bytes(damaged)
    return tmp_path


def test_a_damaged_image_is_left_out_without_a_word_of_a_library(folder, encoder, pictures, capfd, caplog):
    model = HashEncoder.load(encoder)
    entries = list_corpus(folder)
    good, encoded = readable_images(entries)
    assert good["uri"].to_pylist() == [f"{folder}/{number}.png" for number in range(5)]
    assert encoded == [(folder / f"{number}.png").read_bytes() for number in range(5)]
    good, prepared = prepared_images(entries, model.config.preprocessing, folder)
    assert good["uri"].to_pylist() == [f"{folder}/{number}.png" for number in range(5)]
    np.testing.assert_array_equal(prepared.pixels_NHWC[..., 0], pictures[0][:5])
    good, output = encode_entries(model, entries)
    assert good["uri"].to_pylist() == [f"{folder}/{number}.png" for number in range(5)]
    np.testing.assert_array_equal(output.codes, model.encode(pictures[0][:5]))
    with pytest.raises(PipelineError, match=r"3\.tiff cannot be searched for: damaged"):
        encode_file(model, folder / "3.tiff")
    assert capfd.readouterr() == ("", "")
    assert sum("left out 1 of 6 images: 1 format" in line for line in caplog.text.splitlines()) == 3


def test_a_full_disk_is_told_with_what_is_needed(folder, monkeypatch):
    rule = Preprocessing(size=4, channels=1, mean=(0.5,), std=(0.5,))
    monkeypatch.setattr(prepared_module, "MEMORY_BYTES", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    with pytest.raises(PipelineError, match=r"no room for the resized pixels of 6 images, 0\.0 GB, in .*: make room"):
        prepared_images(list_corpus(folder), rule, folder)


def test_a_large_image_is_searched_for_if_that_is_allowed():
    """A TIFF of more pixels than Pillow itself allows; ten kilobytes."""
    rule = Preprocessing(size=4, channels=1, mean=(0.5,), std=(0.5,), interpolation="nearest")
    large = saved(Image.new("1", (14_000, 13_000), 1), "TIFF", compression="group4")
    assert decode_one(large, rule, max_pixels=182_000_000).min() == 255


def test_thumbnails_are_in_order_whatever_cannot_be_decoded(damaged):
    images = [saved(Image.new("L", (40, 20), value), "PNG") for value in range(0, 200, 10)]
    images[3:3], images[20:20] = [damaged], [b""]
    found = thumbnails(images, side=10, max_pixels=1000)
    assert [number for number, data in enumerate(found) if data is None] == [3, 20]
    opened = [Image.open(io.BytesIO(data)) for data in found if data is not None]
    assert {image.size for image in opened} == {(10, 5)}
    values = [int(np.asarray(image).mean()) for image in opened]
    assert values == sorted(values)
    assert thumbnails([], side=10, max_pixels=1000) == []
