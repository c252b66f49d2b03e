"""Augmentation: every random draw is recovered from the pixels, and its distribution checked."""

import numpy as np
import pytest
import torch

from hashlight.encoders.data.augment import flip_and_shift, random_view


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def shifted(image_CHW, mirrored, down, right):
    """Move an image, one pixel at a time; pixels from outside repeat the border."""
    size = image_CHW.shape[-1]
    moved = np.empty_like(image_CHW)
    for row in range(size):
        for column in range(size):
            source_row, source_column = (min(max(at, 0), size - 1) for at in (row + down, column + right))
            moved[:, row, column] = image_CHW[:, source_row, size - 1 - source_column if mirrored else source_column]
    return moved


@pytest.mark.parametrize(("size", "reach"), [(14, 1), (28, 2), (40, 3)])
def test_half_are_mirrored_and_each_is_shifted_on_its_own(size, reach):
    image = np.random.default_rng(0).random((2, size, size), np.float32)
    moves = [
        (mirrored, down, right)
        for mirrored in (False, True)
        for down in range(-reach, reach + 1)
        for right in range(-reach, reach + 1)
    ]
    expected = {shifted(image, *move).tobytes(): move for move in moves}
    assert len(expected) == len(moves) == 2 * (2 * reach + 1) ** 2

    given = torch.from_numpy(image).expand(1_500, -1, -1, -1).clone()
    augmented = flip_and_shift(given)
    assert (given == torch.from_numpy(image)).all()
    assert (augmented.shape, augmented.dtype) == (given.shape, given.dtype)
    # A KeyError means that an image is not a shifted copy.
    drawn = np.array([expected[np.ascontiguousarray(one).tobytes()] for one in augmented.numpy()])
    assert 0.4 < drawn[:, 0].mean() < 0.6
    steps = np.arange(-reach, reach + 1)
    for axis in (1, 2):
        share = (drawn[:, axis, None] == steps).mean(axis=0)
        assert (share > 0.6 / len(steps)).all()
        assert (share < 1.5 / len(steps)).all()
    # Drawn independently: no two of the three numbers are correlated.
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.15


def test_every_image_of_a_batch_keeps_its_own_pixels():
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 28, 28)
    assert torch.equal(flip_and_shift(images.clone()), images)


class Views:
    """The parameters of `random_view` for many images, by least squares on images that encode positions.

    Two channels contain each pixel's horizontal and vertical position, -1 to 1, so that in the view they show where it
    came from; the other two, constant 0 and 1, show light, contrast and noise.
    """

    def __init__(self, count=600, size=64):
        centre = (np.arange(size) + 0.5) / size * 2 - 1
        across, down = np.meshgrid(centre, centre)
        images = np.stack([across, down, np.zeros_like(across), np.ones_like(across)]).astype(np.float32)
        self.given = torch.from_numpy(images).expand(count, -1, -1, -1).clone()
        self.views = random_view(self.given)
        views = self.views.double().numpy()
        self.brightness = views[:, 2].mean(axis=(1, 2))
        self.contrast = views[:, 3].mean(axis=(1, 2)) - self.brightness
        self.noise = views[:, 2] - self.brightness[:, None, None]
        # Only the middle: the corners of a rotated view are outside the image.
        inner = (np.abs(across) < 0.6) & (np.abs(down) < 0.6)
        plane = np.stack([across[inner], down[inner], np.ones(inner.sum())], axis=1)
        taken = (views[:, :2][:, :, inner] - self.brightness[:, None, None]) / self.contrast[:, None, None]
        fitted = np.linalg.lstsq(plane, taken.reshape(2 * count, -1).T, rcond=None)[0].T.reshape(count, 2, 3)
        self.matrix, self.offset = fitted[:, :, :2], fitted[:, :, 2]
        determinant = np.linalg.det(self.matrix)
        self.side = np.sqrt(np.abs(determinant))
        self.mirrored = determinant < 0
        self.angle = np.degrees(np.arctan2(-self.matrix[:, 0, 1], self.matrix[:, 1, 1]))


@pytest.fixture(scope="module")
def views():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Views()


def assert_uniform(values, low, high, slack):
    """Assert that values are uniform from low to high, each with an error of at most `slack`."""
    assert low - slack < values.min() < low + 0.1 * (high - low) + slack
    assert high - 0.1 * (high - low) - slack < values.max() < high + slack
    quarters = np.histogram(values, np.linspace(low, high, 5))[0] / len(values)
    assert (quarters > 0.15).all()
    assert (quarters < 0.35).all()


def test_half_of_the_views_are_mirrored(views):
    assert 0.4 < views.mirrored.mean() < 0.6


def test_views_are_cropped_and_rotated_without_distortion(views):
    assert_uniform(views.side, 0.67, 1.0, 0.03)
    assert_uniform(views.angle, -10, 10, 3.0)
    squares = np.einsum("nij,nkj->nik", views.matrix, views.matrix)
    assert np.abs(squares - np.eye(2) * views.side[:, None, None] ** 2).max() < 0.12


def test_crops_lie_anywhere_within_the_image(views):
    room = 1 - views.side[:, None]
    assert (np.abs(views.offset) <= room + 0.06).all()
    wide = room[:, 0] > 0.2
    for axis in range(2):
        assert_uniform(views.offset[wide, axis] / room[wide, 0], -1, 1, 0.2)
    assert abs(np.corrcoef(views.offset[wide].T)[0, 1]) < 0.2


def test_views_differ_in_light_and_noise(views):
    assert_uniform(views.contrast, 0.6, 1.4, 0.02)
    assert_uniform(views.brightness, -0.4, 0.4, 0.02)
    assert views.noise.std() == pytest.approx(0.1, rel=0.02)
    assert np.abs(np.corrcoef(views.noise.reshape(len(views.noise), -1)[:20]) - np.eye(20)).max() < 0.1


def test_the_draws_of_a_view_are_independent(views):
    drawn = np.stack([views.mirrored, views.side, views.angle, views.contrast, views.brightness])
    assert np.abs(np.corrcoef(drawn) - np.eye(5)).max() < 0.2


def test_views_keep_shape_and_leave_their_images_alone(views):
    assert (views.views.shape, views.views.dtype) == (views.given.shape, torch.float32)
    assert torch.equal(views.given[0], views.given[-1])
    assert (views.given[0, 3] == 1).all()
