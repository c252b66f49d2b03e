"""The folder of a training run: a checkpoint to resume from, and a log of its epochs.

::

    checkpoint.pt     weights, optimizer, rate, random numbers and position; replaced atomically
    training.jsonl    one JSON line for each epoch
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from hashlight.encoders.encoder import write_whole
from hashlight.encoders.errors import EncoderError

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "training.jsonl"

# Seconds between checkpoints within an epoch: an interruption loses at most this much work. Each epoch's end is saved.
CHECKPOINT_S = 60.0


class Found(Protocol):
    """A file that was found."""

    @property
    def data(self) -> bytes:
        """What is in it."""


class Files(Protocol):
    """Where a run keeps its files, on this machine or elsewhere."""

    def path(self, name: str, /) -> str:
        """Return a file's name for messages."""

    def find(self, name: str, /) -> Found | None:
        """Read a file; None if it does not exist."""

    def put(self, name: str, data: bytes, /) -> None:
        """Write a file in one step."""


class _Read(NamedTuple):
    data: bytes


class _Folder:
    """A local folder as `Files`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> str:
        return str(self._folder / name)

    def find(self, name: str) -> _Read | None:
        path = self._folder / name
        return _Read(path.read_bytes()) if path.is_file() else None

    def put(self, name: str, data: bytes) -> None:
        write_whole(self._folder / name, data)


class TrainingFolder:
    """Stores a run's state; without a folder it keeps only the history.

    Parameters
    ----------
    folder : Path, Files or None
    run : mapping
        What identifies the run, as JSON: settings, supervision and number of images. A run resumes only from a
        checkpoint with the same identity. The pixels of the images and the contents of a weight file are not compared:
        do not change them before the run is done.

    Attributes
    ----------
    history : list of dict
        The lines of the log.
    """

    def __init__(self, folder: Path | Files | None, run: Mapping[str, Any]):
        self.history: list[dict[str, Any]] = []
        self._files: Files | None = _Folder(folder) if isinstance(folder, Path) else folder
        self._run = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
        self._saved_at = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """Return the state to resume from, or None at the start of a run.

        Raises
        ------
        EncoderError
            If the checkpoint is damaged or belongs to another run.
        """
        if self._files is None or (found := self._files.find(CHECKPOINT_FILE)) is None:
            return None
        path = self._files.path(CHECKPOINT_FILE)
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(found.data), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as exc:
            raise EncoderError(
                f"{path} is not a readable checkpoint ({' '.join(str(exc).split())[:200]}): delete it to start over"
            ) from exc
        if state.get("run") != self._run:
            raise EncoderError(
                f"{path} belongs to a run with other settings, labels or number of images: resume with those of "
                "that run, or delete its folder (--overwrite does) to start over"
            )
        self.history = state["history"]
        return state

    def due(self) -> bool:
        """Whether it is time for another checkpoint."""
        return self._files is not None and time.monotonic() - self._saved_at >= CHECKPOINT_S

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        if self._files is None:
            return
        buffer = io.BytesIO()
        torch.save({**state, "run": self._run, "history": self.history}, buffer)
        self._files.put(CHECKPOINT_FILE, buffer.getvalue())
        self._saved_at = time.monotonic()

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to the log and rewrite the file, so that an epoch that is run again has only one line."""
        self.history.append(line)
        if self._files is not None:
            text = "".join(json.dumps(entry) + "\n" for entry in self.history)
            self._files.put(LOG_FILE, text.encode())
