"""The folder of a training run: a checkpoint to go on from, and a log of its epochs.

::

    checkpoint.pt     weights, optimizer, rate, random numbers and position; replaced atomically
    training.jsonl    one JSON line an epoch
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hashlight.encoders.errors import EncoderError

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "training.jsonl"

# Seconds of work that an interruption may cost, beside the epoch's end, which is always kept.
CHECKPOINT_S = 60.0


class TrainingFolder:
    """Keeps a run's state; without a folder it keeps only the history.

    Parameters
    ----------
    folder : Path or None
    run : mapping
        What a checkpoint must have in common with the run that would go on from it, as JSON: settings, supervision and
        number of images. The pixels of the images and the contents of a file of weights are not compared: leave both
        as they are until the run is done.

    Attributes
    ----------
    history : list of dict
        The lines of the log.
    """

    def __init__(self, folder: Path | None, run: Mapping[str, Any]):
        self.history: list[dict[str, Any]] = []
        self._folder = folder
        self._run = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
        self._saved_at = time.monotonic()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, Any] | None:
        """Return the state to go on from, or None at the start of a run.

        Raises
        ------
        EncoderError
            If the checkpoint is damaged or belongs to another run.
        """
        path = None if self._folder is None else self._folder / CHECKPOINT_FILE
        if path is None or not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as exc:
            raise EncoderError(
                f"{path} is not a readable checkpoint ({' '.join(str(exc).split())[:200]}): delete it to start anew"
            ) from exc
        if state.get("run") != self._run:
            raise EncoderError(
                f"{path} belongs to a run with other settings, labels or number of images: go on with what it was "
                "started with, or delete its folder (--overwrite does) to start anew"
            )
        self.history = state["history"]
        return state

    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return self._folder is not None and time.monotonic() - self._saved_at >= CHECKPOINT_S

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        if self._folder is None:
            return
        buffer = io.BytesIO()
        torch.save({**state, "run": self._run, "history": self.history}, buffer)
        _replace(self._folder / CHECKPOINT_FILE, buffer.getvalue())
        self._saved_at = time.monotonic()

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to the log, which is written whole: an epoch that is run again has one line."""
        self.history.append(line)
        if self._folder is not None:
            text = "".join(json.dumps(entry) + "\n" for entry in self.history)
            _replace(self._folder / LOG_FILE, text.encode())


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
