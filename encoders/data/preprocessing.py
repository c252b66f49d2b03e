"""From an image to the network's input: one rule, stored in the artifact, used by training, pipelines and servers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hashlight.encoders.checks import check_number, check_whole
from hashlight.encoders.data.images import MAX_PIXELS, ImageLike, decode_image, open_image, to_rgb_or_grey

if TYPE_CHECKING:
    # Torch takes seconds to import, and processes that only decode do not need it.
    import torch

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
FITS = ("stretch", "crop", "pad")
ORDERS = ("rgb", "bgr")
MAX_SIZE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How an image becomes a float32 tensor of shape (channels, size, size).

    Attributes
    ----------
    size : int
        Height and width of the network's input.
    channels : int
        1 (grey) or 3 (RGB).
    mean, std : tuple of float
        One for each channel, in their order, for pixels scaled to 0..`white`.
    fit : str
        "stretch" resizes to the square, ignoring the aspect ratio; "crop" resizes the shorter side to `resize` and
        cuts out the central square; "pad" resizes the longer side to `size` and puts the mean colour around it.
    resize : int
        The shorter side before the crop; at least `size`. Unused by the others.
    interpolation : str
        "nearest", "bilinear", "bicubic" or "lanczos"; Pillow's filters, which antialias.
    order : str
        "rgb", or "bgr" for networks of Caffe and OpenCV.
    white : float
        What a channel of a white pixel is before the mean is taken off: 1, or 255 where `mean` and `std` are in levels.
    draft : int
        A JPEG may be decoded at a half, quarter or eighth that is at least this many times as large as what it is then
        resized to; 0 if only at full size.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "stretch"
    resize: int = 0
    interpolation: str = "bilinear"
    draft: int = 0
    order: str = "rgb"
    white: float = 1.0

    def __post_init__(self) -> None:
        check_whole(self.size, "size", 1, MAX_SIZE)
        check_whole(self.resize, "resize", 0, 2 * MAX_SIZE)
        check_whole(self.channels, "channels", 1, 3)
        check_whole(self.draft, "draft", 0, 8)
        if self.channels == 2:
            raise ValueError(f"`channels` must be 1 (grey) or 3 (RGB), got {self.channels}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"`mean` and `std` must have {self.channels} numbers, one per channel, got {self.mean} and {self.std}"
            )
        for mean, std in zip(self.mean, self.std, strict=True):
            check_number(mean, "mean")
            check_number(std, "std", above=0.0)
        if self.order not in ORDERS or (self.order == "bgr" and self.channels != 3):
            raise ValueError(
                f"`order` must be one of {', '.join(ORDERS)}, of one channel rgb, got {self.order!r} of {self.channels}"
            )
        check_number(self.white, "white", above=0.0)
        if self.fit not in FITS:
            raise ValueError(f"`fit` must be one of {', '.join(FITS)}, got {self.fit!r}")
        if self.fit == "crop" and self.resize < self.size:
            raise ValueError(f"`resize` must be at least `size` ({self.size}) to crop from, got {self.resize}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"`interpolation` must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the float32 tensor (C, H, W) of one image of any mode."""
        import torch

        pixels_HWC = torch.from_numpy(self.pixels(image))
        return self.normalise(pixels_HWC.unsqueeze(0))[0]

    def open(self, image: ImageLike) -> Image.Image:
        """Return an image of any accepted kind for `pixels`; errors as in `encoders.data.images.open_image`."""
        return open_image(image, enough=self._enough if self.draft else None)

    def decode(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Decode one image for `pixels`; errors as in `encoders.data.images.decode_image`."""
        return decode_image(data, max_pixels=max_pixels, enough=self._enough if self.draft else None)

    def with_fit(self, fit: str) -> Preprocessing:
        """Return the same with another fit; a crop keeps seven eighths of the shorter side unless `resize` is set."""
        resize = self.resize if fit != "crop" or self.resize else round(self.size * 8 / 7)
        return dataclasses.replace(self, fit=fit, resize=resize)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the resized uint8 pixels (H, W, C), which training can cache between epochs."""
        image = to_rgb_or_grey(image).convert("L" if self.channels == 1 else "RGB")
        image = {"crop": self._crop, "pad": self._pad, "stretch": self._stretch}[self.fit](image)
        return np.array(image, np.uint8).reshape(self.size, self.size, self.channels)

    def normalise(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        """Scale uint8 pixels (N, H, W, C) to the float32 input (N, C, H, W), laid out channels last."""
        import torch

        mean_C = torch.tensor(self.mean, dtype=torch.float32, device=pixels_NHWC.device)
        std_C = torch.tensor(self.std, dtype=torch.float32, device=pixels_NHWC.device)
        if self.order == "bgr":
            pixels_NHWC = pixels_NHWC.flip(-1)
        return ((pixels_NHWC.float() / (255.0 / self.white) - mean_C) / std_C).permute(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the artifact's JSON."""
        plain = dataclasses.asdict(self)
        # As encoders of earlier releases have it, whose fingerprints cover this.
        for name, usual in (("draft", 0), ("order", "rgb"), ("white", 1.0)):
            if plain[name] == usual:
                del plain[name]
        return plain | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Preprocessing:
        """Undo `to_dict`."""
        values = dict(plain)
        return cls(**(values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])}))

    def _enough(self, width: int, height: int) -> tuple[int, int]:
        """Return a size of a decoded image that is enough to resize from."""
        if self.fit != "pad":
            side = self.draft * (self.resize if self.fit == "crop" else self.size)
            return side, side
        scale = self.draft * self.size / max(width, height)
        return max(1, math.ceil(width * scale)), max(1, math.ceil(height * scale))

    def _pad(self, image: Image.Image) -> Image.Image:
        scale = self.size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        colour = self.mean[::-1] if self.order == "bgr" else self.mean
        around = tuple(round(255 * min(max(mean / self.white, 0.0), 1.0)) for mean in colour)
        square = Image.new(image.mode, (self.size, self.size), around if self.channels == 3 else around[0])
        small = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        square.paste(small, ((self.size - width) // 2, (self.size - height) // 2))
        return square

    def _stretch(self, image: Image.Image) -> Image.Image:
        if image.size == (self.size, self.size):
            return image
        return image.resize((self.size, self.size), INTERPOLATIONS[self.interpolation])

    def _crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        scale = self.resize / min(width, height)
        width, height = max(self.resize, round(width * scale)), max(self.resize, round(height * scale))
        # Resize only what the crop keeps; a panorama would otherwise be enlarged as a whole.
        left, top = (width - self.size) // 2, (height - self.size) // 2
        box = (left / scale, top / scale, (left + self.size) / scale, (top + self.size) / scale)
        return image.resize((self.size, self.size), INTERPOLATIONS[self.interpolation], box=_within(box, image.size))


def _within(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Clip a box to the image; rounding may put it outside by a fraction of a pixel."""
    left, top, right, bottom = box
    return max(left, 0.0), max(top, 0.0), min(right, float(size[0])), min(bottom, float(size[1]))
