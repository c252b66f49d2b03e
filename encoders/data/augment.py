"""Augmentation of whole batches, on their device, using torch's random numbers; of a few, the processor's."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

# A 28-pixel image moves by up to 2 pixels, a 224-pixel one by up to 16.
SHIFT_SHARE = 1 / 14

# How a copy may differ and still be found: cropped by a third of each side, rotated by 10 degrees, relit, noisy.
_VIEW_SIDES = (0.67, 1.0)
_VIEW_ANGLE = math.radians(10)
_VIEW_CONTRAST = 0.4
_VIEW_BRIGHTNESS = 0.4
_VIEW_NOISE = 0.1


def flip_and_shift(image_NCHW: torch.Tensor) -> torch.Tensor:
    """Mirror half of the images at random and shift each by a few pixels of its own, repeating the border.

    Parameters
    ----------
    image_NCHW : Tensor, shape (N, C, H, W)
        Square.

    Returns
    -------
    Tensor, same shape and dtype
    """
    num_images, _, size, _ = image_NCHW.shape
    device = image_NCHW.device
    mirrored_N = (torch.rand(num_images) < 0.5).to(device)
    image_NCHW = torch.where(mirrored_N[:, None, None, None], image_NCHW.flip(-1), image_NCHW)
    reach = round(size * SHIFT_SHARE)
    padded_NCPP = functional.pad(image_NCHW, (reach,) * 4, mode="replicate")
    row_NS = (torch.randint(2 * reach + 1, (num_images, 1)) + torch.arange(size)).to(device)
    column_NS = (torch.randint(2 * reach + 1, (num_images, 1)) + torch.arange(size)).to(device)
    image_N = torch.arange(num_images, device=device)[:, None, None]
    shifted_NHWC = padded_NCPP.permute(0, 2, 3, 1)[image_N, row_NS[:, :, None], column_NS[:, None, :]]
    return shifted_NHWC.permute(0, 3, 1, 2)


def random_view(image_NCHW: torch.Tensor) -> torch.Tensor:
    """Crop, rotate, mirror, relight and add noise to each image at random, as in copies found on the web.

    Parameters
    ----------
    image_NCHW : Tensor of float32, shape (N, C, H, W)
        Square, normalised.

    Returns
    -------
    Tensor, same shape and dtype
    """
    num_images, device = len(image_NCHW), image_NCHW.device
    side_N = _uniform(num_images, *_VIEW_SIDES)
    angle_N = _uniform(num_images, -_VIEW_ANGLE, _VIEW_ANGLE)
    mirror_N = torch.where(torch.rand(num_images) < 0.5, -1.0, 1.0)
    across_N, down_N = ((1 - side_N) * _uniform(num_images, -1, 1) for _ in range(2))
    cosine_N, sine_N = side_N * torch.cos(angle_N), side_N * torch.sin(angle_N)
    rows = [mirror_N * cosine_N, -sine_N, across_N, mirror_N * sine_N, cosine_N, down_N]
    affine_N23 = torch.stack(rows, 1).view(-1, 2, 3).to(device)
    grid_NHW2 = functional.affine_grid(affine_N23, list(image_NCHW.shape), align_corners=False)
    view_NCHW = functional.grid_sample(image_NCHW, grid_NHW2, padding_mode="border", align_corners=False)
    contrast_N111 = _uniform(num_images, 1 - _VIEW_CONTRAST, 1 + _VIEW_CONTRAST)[:, None, None, None].to(device)
    brightness_N111 = _uniform(num_images, -_VIEW_BRIGHTNESS, _VIEW_BRIGHTNESS)[:, None, None, None].to(device)
    noise_NCHW = torch.randn(view_NCHW.shape, device=device)
    return view_NCHW * contrast_N111 + brightness_N111 + _VIEW_NOISE * noise_NCHW


def _uniform(count: int, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * torch.rand(count)
