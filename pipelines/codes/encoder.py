"""Loading and saving an encoder in a local folder or a bucket."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hashlight.encoders.encoder import CONFIG_FILE, COPY_CODE_NAMES, NETWORK_FILE, WEIGHTS_FILE, HashEncoder
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import Place
from hashlight.pipelines.jobs.errors import PipelineError


def load_encoder(location: str | Path) -> HashEncoder:
    """Load an encoder from its folder, on this machine or in a bucket; or return the copy code of this name.

    Raises
    ------
    PipelineError
        If there is none in the bucket.
    EncoderError
        If it is damaged, or there is none in the folder.
    """
    if is_copy_code(location):
        return HashEncoder.copy_code(str(location))
    place = open_place(location)
    if place.local:
        return HashEncoder.load(place.local)
    with tempfile.TemporaryDirectory(prefix="hashlight-encoder-") as folder:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            try:
                Path(folder, name).write_bytes(place.read(name))
            except FileNotFoundError as error:
                raise PipelineError(
                    f"{place} is not an encoder: it has no {name}, expected what `hashlight train` writes"
                ) from error
        if network := place.find(NETWORK_FILE):
            Path(folder, NETWORK_FILE).write_bytes(network.data)
        return HashEncoder.load(folder)


def input_of(place: Place) -> str | None:
    """Say what the encoder at a place takes, without loading it; None if its configuration cannot be read."""
    try:
        config = json.loads(place.read(CONFIG_FILE))
        if (embeddings := config.get("embeddings")) is None:
            return f"images, by {config['backbone']}"
        return f"embeddings of {embeddings['dims']} numbers{', normalised' if embeddings['normalise'] else ''}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def is_copy_code(location: str | Path) -> bool:
    """Whether this names a copy code, and not the folder of an encoder."""
    return isinstance(location, str) and location in COPY_CODE_NAMES


def save_encoder(encoder: HashEncoder, place: Place, folder: str = "") -> None:
    """Save an encoder into a folder of a place; its configuration, which marks it as complete, is written last."""
    with tempfile.TemporaryDirectory(prefix="hashlight-encoder-") as scratch:
        encoder.save(scratch)
        for name in encoder.files:
            place.put(f"{folder}/{name}" if folder else name, Path(scratch, name).read_bytes())
