"""What can go wrong between an image and its code.

EncoderError: a folder is not an encoder, an artifact is damaged, weights do not fit
ImageError: one image cannot be decoded
ImageLimitError: one image is larger than what is decoded
"""

from __future__ import annotations


class EncoderError(Exception):
    """An encoder cannot be built, saved or loaded."""


class ImageError(Exception):
    """An image cannot be decoded.

    Attributes
    ----------
    reason : str
        Short and plain, suitable for a column of rejects: "empty file", "truncated: ...".
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class ImageLimitError(ImageError):
    """An image is larger than what is decoded."""
