"""Training images: decoded once, the same in memory and in a file, read ahead."""

from __future__ import annotations

import collections
import io
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image

from hashlight.encoders.data import prepared
from hashlight.encoders.data.pixels import PixelSource
from hashlight.encoders.data.prepared import PreparedImages
from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import ImageError
from hashlight.encoders.training.train import TrainConfig, train

RULE = Preprocessing(size=28, channels=1, mean=(0.286,), std=(0.353,), draft=2)
PIXELS = np.random.default_rng(0).integers(0, 256, (150, 28, 28, 1), dtype=np.uint8)


def png(pixels_HWC):
    file = io.BytesIO()
    Image.fromarray(pixels_HWC[..., 0]).save(file, "PNG")
    return file.getvalue()


class Counting:
    """Encoded images that count how often each is asked for."""

    def __init__(self):
        self.images = [png(pixels) for pixels in PIXELS]
        self.asked = collections.Counter()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, position):
        self.asked[position] += 1
        return self.images[position]


@pytest.mark.parametrize("memory_bytes", [10**9, 50_000, 0])
def test_each_image_is_decoded_once_and_kept_in_memory_or_in_a_file(monkeypatch, tmp_path, memory_bytes):
    monkeypatch.setattr(prepared, "MEMORY_BYTES", memory_bytes)
    images = Counting()
    source = PixelSource(images, RULE)
    for start in (0, 64, 7):
        index = torch.randperm(150)[start : start + 40]
        source.read_ahead(torch.flip(index, (0,)) if start == 64 else index)
        assert (source.batch(index).numpy() == PIXELS[index.numpy()]).all()
    assert set(images.asked.values()) == {1}
    assert len(images.asked) == 150
    assert isinstance(source.pixels, np.memmap) is (memory_bytes < 10**9)
    assert (source.sample(4) == PIXELS[[0, 49, 99, 149]]).all()


def test_the_file_has_no_name_and_a_full_disk_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(prepared, "MEMORY_BYTES", 0)
    gathered = PreparedImages.gather([PIXELS[:100], PIXELS[100:]], RULE, tmp_path)
    assert (gathered.pixels_NHWC == PIXELS).all()
    assert (len(gathered), list(tmp_path.iterdir())) == (150, [])
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        PreparedImages.gather([PIXELS], RULE, tmp_path)


def test_several_threads_keep_the_order_and_name_the_first_image_that_cannot_be_decoded():
    images = [png(pixels) for pixels in PIXELS]
    assert (PixelSource(images, RULE, num_threads=3).pixels == PIXELS).all()
    images[70], images[71] = b"", b"nothing"
    with pytest.raises(ImageError, match="training image 70: empty file"):
        PixelSource(images, RULE, num_threads=3)


def test_prepared_images_train_the_same_encoder_and_only_by_their_rule():
    config = TrainConfig(bits=16, epochs=1, warmup_epochs=0)
    labels = np.arange(150) % 5
    plain = train(PIXELS, labels, config)
    assert train(PreparedImages(PIXELS, RULE), labels, config).fingerprint == plain.fingerprint
    other = Preprocessing(size=28, channels=1, mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="must be prepared for the backbone"):
        train(PreparedImages(PIXELS, other), labels, config)
