"""Augmentation of whole batches, drawn from torch's random numbers."""

from __future__ import annotations

import torch
from torch.nn import functional

# A 28-pixel image moves by up to 2 pixels, a 224-pixel one by up to 16.
SHIFT_SHARE = 1 / 14


def flip_and_shift(image_NCHW: torch.Tensor) -> torch.Tensor:
    """Mirror half of the images and shift each by its own few pixels, repeating the border.

    Parameters
    ----------
    image_NCHW : Tensor, shape (N, C, H, W)
        Square.

    Returns
    -------
    Tensor, same shape and dtype
    """
    num_images, _, size, _ = image_NCHW.shape
    mirrored_N = torch.rand(num_images) < 0.5
    image_NCHW = torch.where(mirrored_N[:, None, None, None], image_NCHW.flip(-1), image_NCHW)
    reach = round(size * SHIFT_SHARE)
    padded_NCPP = functional.pad(image_NCHW, (reach,) * 4, mode="replicate")
    row_NS = torch.randint(2 * reach + 1, (num_images, 1)) + torch.arange(size)
    column_NS = torch.randint(2 * reach + 1, (num_images, 1)) + torch.arange(size)
    image_N = torch.arange(num_images)[:, None, None]
    shifted_NHWC = padded_NCPP.permute(0, 2, 3, 1)[image_N, row_NS[:, :, None], column_NS[:, None, :]]
    return shifted_NHWC.permute(0, 3, 1, 2)
