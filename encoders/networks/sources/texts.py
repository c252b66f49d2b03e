"""Parts of networks that embed texts, with a tokenizer of the package tokenizers that they keep."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import nn


class TokenizedTower(nn.Module):
    """Keeps its tokenizer among its weights, so that an encoder's folder has it.

    Parameters
    ----------
    tokenizer : bytes
        The JSON of the package tokenizers.
    length : int
        Tokens of a text, of which more are cut off.
    padding : int or None
        The token that shorter texts are padded with, if the model wants that.
    pads_left : bool
        Whether it comes before them.
    """

    tokenizer: torch.Tensor

    def __init__(self, *, tokenizer: bytes, length: int, padding: int | None, pads_left: bool = False):
        super().__init__()
        self.length, self.padding, self.pads_left = length, padding, pads_left
        self.register_buffer("tokenizer", torch.from_numpy(np.frombuffer(tokenizer, np.uint8).copy()))
        self._opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tokenizer that is opened."""
        return self.__dict__ | {"_opened": None}

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        if self._opened is None:
            opened = importlib.import_module("tokenizers").Tokenizer.from_str(self.tokenizer.numpy().tobytes().decode())
            opened.enable_truncation(self.length)
            opened.no_padding()
            if self.padding is not None:
                side = "left" if self.pads_left else "right"
                opened.enable_padding(direction=side, length=self.length, pad_id=self.padding)
            self._opened = opened
        found: list[int] = self._opened.encode(text).ids
        return found
