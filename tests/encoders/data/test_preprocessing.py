import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from hashlight.encoders.data.preprocessing import Preprocessing

CROP = Preprocessing(size=8, channels=3, mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1), fit="crop", resize=8)
PAD = dataclasses.replace(CROP, fit="pad")
GREY = Preprocessing(size=28, channels=1, mean=(0.25,), std=(0.5,))


def test_values_are_scaled_and_normalised():
    tensor = CROP(Image.new("RGB", (8, 8), (255, 102, 0)))
    assert tensor.shape == (3, 8, 8)
    assert tensor.dtype == torch.float32
    assert tensor[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, -3.0], abs=1e-6)


def test_channels_and_levels_of_caffe():
    rule = dataclasses.replace(CROP, mean=(104, 117, 123), std=(1, 2, 1), order="bgr", white=255)
    tensor = rule(Image.new("RGB", (8, 8), (255, 102, 0)))
    assert tensor[:, 0, 0].tolist() == [0 - 104, (102 - 117) / 2, 255 - 123]
    # Around a padded image lies the mean colour, in which the network sees nothing.
    padded = dataclasses.replace(rule, fit="pad")(Image.new("RGB", (80, 40)))
    assert padded[:, 0, 0].tolist() == [0, 0, 0]


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


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((80, 40), (2, 6, 0, 8)),
        ((40, 80), (0, 8, 2, 6)),
        ((8, 8), (0, 8, 0, 8)),
        ((8, 4), (2, 6, 0, 8)),
        ((1, 90), None),
    ],
)
def test_pad_shows_all_of_an_image_in_the_middle_of_the_mean_colour(size, shown):
    pixels = PAD.pixels(Image.new("RGB", size, (0, 200, 0)))
    expected = np.full((8, 8, 3), (128, 102, 76), np.uint8)
    top, bottom, left, right = shown or (0, 8, 3, 4)
    expected[top:bottom, left:right] = (0, 200, 0)
    assert (pixels == expected).all()


def jpeg(width, height, **options):
    """A smooth picture, which survives compression: red rises to the right, green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    picture = Image.fromarray(np.dstack([across, down, np.full_like(across, 90)]).astype(np.uint8))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("fit", "size", "decoded"),
    [
        ("stretch", (400, 300), (50, 38)),
        ("stretch", (400, 30), (400, 30)),
        ("stretch", (128, 127), (32, 32)),
        ("stretch", (15, 15), (15, 15)),
        ("crop", (400, 300), (50, 38)),
        ("crop", (400, 90), (100, 23)),
        ("pad", (400, 90), (50, 12)),
        ("pad", (127, 20), (32, 5)),
    ],
)
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_jpeg_is_decoded_at_no_less_than_twice_the_size(fit, size, decoded, is_turned):
    rule = dataclasses.replace(CROP, fit=fit, draft=2)
    exif = Image.Exif()
    exif[0x0112] = 6 if is_turned else 1
    data = jpeg(*size, exif=exif)
    found = rule.decode(data)
    assert found.size == (decoded[::-1] if is_turned else decoded)
    whole = dataclasses.replace(rule, draft=0)
    assert whole.decode(data).size == (size[::-1] if is_turned else size)
    difference = rule.pixels(found).astype(int) - whole.pixels(whole.decode(data))
    assert np.abs(difference).max() <= 12
    assert (rule.pixels(rule.open(data)) == rule.pixels(found)).all()


def test_only_jpegs_are_decoded_at_another_size():
    rule = dataclasses.replace(CROP, draft=2)
    for kind in ("PNG", "WEBP", "TIFF"):
        file = io.BytesIO()
        Image.new("RGB", (400, 300)).save(file, kind)
        assert rule.decode(file.getvalue()).size == (400, 300)


def test_another_fit_is_another_rule():
    assert CROP.with_fit("crop") == CROP
    assert [GREY.with_fit(fit).resize for fit in ("stretch", "pad", "crop")] == [0, 0, 32]
    assert CROP.with_fit("pad") == PAD
    with pytest.raises(ValueError, match="one of stretch, crop, pad, got 'squash'"):
        CROP.with_fit("squash")


def test_an_image_of_the_right_size_is_unchanged():
    array = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    assert (GREY.pixels(Image.fromarray(array))[..., 0] == array).all()
    assert GREY(Image.new("RGBA", (90, 40))).shape == (1, 28, 28)


@pytest.mark.parametrize(
    "rule", [CROP, GREY, PAD, dataclasses.replace(GREY, draft=2), dataclasses.replace(CROP, order="bgr", white=255)]
)
def test_round_trip(rule):
    assert Preprocessing.from_dict(rule.to_dict()) == rule


def test_fingerprints_of_earlier_releases_do_not_have_the_usual_order_and_levels():
    assert CROP.to_dict().keys() == {"size", "channels", "mean", "std", "fit", "resize", "interpolation"}


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
        ({"draft": 9}, "`draft` must be 0 to 8, got 9"),
        ({"order": "gbr"}, "`order` must be one of rgb, bgr, of one channel rgb, got 'gbr'"),
        ({"order": "bgr"}, "`order` must be one of rgb, bgr, of one channel rgb, got 'bgr' of 1"),
        ({"white": 0}, "`white` must be a finite number above 0"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**({"size": 28, "channels": 1, "mean": (0.0,), "std": (1.0,)} | change))
