import numpy as np
import pytest
import torch
from PIL import Image

from hashlight.encoders.data.preprocessing import Preprocessing

CROP = Preprocessing(size=8, channels=3, mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1), fit="crop", resize=8)
GREY = Preprocessing(size=28, channels=1, mean=(0.25,), std=(0.5,))


def test_values_are_scaled_and_normalised():
    tensor = CROP(Image.new("RGB", (8, 8), (255, 102, 0)))
    assert tensor.shape == (3, 8, 8)
    assert tensor.dtype == torch.float32
    assert tensor[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, -3.0], abs=1e-6)


@pytest.mark.parametrize("size", [(8, 30), (31, 8), (8, 8), (80, 300), (3, 5), (1, 1)])
def test_crop_takes_the_central_square(size):
    width, height = size
    side = min(size)
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = 255
    top, left = (height - side) // 2, (width - side) // 2
    ramp[top : top + side, left : left + side] = (0, 200, 0)
    pixels = CROP.pixels(Image.fromarray(ramp))
    assert pixels.shape == (8, 8, 3)
    assert (pixels[2:6, 2:6] == (0, 200, 0)).all()


def test_an_image_of_the_right_size_is_unchanged():
    array = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    assert (GREY.pixels(Image.fromarray(array))[..., 0] == array).all()
    assert GREY(Image.new("RGBA", (90, 40))).shape == (1, 28, 28)


@pytest.mark.parametrize("rule", [CROP, GREY])
def test_round_trip(rule):
    assert Preprocessing.from_dict(rule.to_dict()) == rule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "`size` must be 1 to 4096, got 0"),
        ({"channels": 2}, "got 2"),
        ({"std": (0.0,)}, "`std` must be a finite number above 0"),
        ({"mean": (0.1, 0.2)}, "must have 1 numbers"),
        ({"fit": "squash"}, "'squash'"),
        ({"fit": "crop", "resize": 20}, "at least `size` .28. to crop from, got 20"),
        ({"interpolation": "magic"}, "'magic'"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**({"size": 28, "channels": 1, "mean": (0.0,), "std": (1.0,)} | change))
