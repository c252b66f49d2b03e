"""An encoder as servers use it: the codes of the encode pipeline in any company, and little memory while waiting."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.service.asking.encoding import ImageRefusedError
from hashlight.pipelines.decoding.pool import DecodePool
from hashlight.pipelines.serving.image_encoder import HashImageEncoder

MAX_PIXELS = 10**7


@pytest.fixture(scope="module")
def model(encoder):
    return HashEncoder.load(encoder)


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files():
    """64 image files of several kinds and sizes, one of them on its side."""
    rng = np.random.default_rng(5)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    corners = rng.integers(0, 300, (60, 2)).tolist()
    files = [
        encoded(photos[number % 2].crop((x, y, x + 40 + number, y + 100)), "JPEG" if number % 3 else "PNG")
        for number, (x, y) in enumerate(corners)
    ]
    turned = Image.Exif()
    turned[0x0112] = 6
    files.append(encoded(photos[0], "JPEG", exif=turned))
    files.append(encoded(photos[1].convert("RGBA").rotate(30), "PNG"))
    files.append(encoded(photos[1].convert("P"), "GIF"))
    files.append(encoded(Image.fromarray(rng.integers(0, 65536, (50, 70)).astype(np.uint16)), "PNG"))
    return files


def test_the_same_bits_alone_among_64_and_in_the_pipeline(model, files):
    asked = HashImageEncoder(model)
    together = asked.encode([asked.decode(data, MAX_PIXELS) for data in files])
    alone = [asked.encode([asked.decode(data, MAX_PIXELS)]) for data in files]
    with DecodePool(model.config.preprocessing, batch_size=32) as pool:
        pixels = np.concatenate([batch.pixels.copy() for batch in pool.decode(files)])
    piped = model.encode_pixels(pixels)
    assert (len(files), len(np.unique(together.features, axis=0))) == (64, 64)
    assert together.codes.tobytes() == np.concatenate([one.codes for one in alone]).tobytes() == piped.codes.tobytes()
    assert together.features.tobytes() == np.concatenate([one.features for one in alone]).tobytes()
    assert together.features.tobytes() == piped.features.tobytes()
    assert (together.codes == model.encode(files)).all()


def test_a_large_image_waits_at_the_size_that_the_model_takes(model):
    rule = model.config.preprocessing
    decoded = HashImageEncoder(model).decode(encoded(Image.new("RGB", (3000, 3000)), "PNG"), MAX_PIXELS)
    held = decoded if decoded.base is None else decoded.base
    assert (held.nbytes, held.dtype) == (rule.size**2 * rule.channels, np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"nothing to see", "not an image"),
        (encoded(Image.new("L", (4000, 3000)), "PNG"), "too many pixels: 4000 x 3000, at most 10,000,000"),
        (encoded(Image.new("RGB", (300, 300), "red"), "PNG")[:-30], "truncated|damaged"),
    ],
)
def test_values_that_are_not_images_are_refused(model, data, message):
    with pytest.raises(ImageRefusedError, match=message):
        HashImageEncoder(model).decode(data, MAX_PIXELS)
