"""The encoder of a collection; one of embeddings is loaded without torch."""

from __future__ import annotations

from pathlib import Path

from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import EncoderMismatchError
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.codes.encoder import load_encoder as load_encoder_from


def load_encoder(collection: Collection, encoder: str | Path | None = None) -> HashEncoder:
    """Load the encoder that made a collection's codes, from the collection or from `encoder`.

    Raises
    ------
    EncoderMismatchError
        If the collection has none, or `encoder` is another one.
    """
    location = encoder if encoder is not None else collection.encoder_path
    if location is None:
        raise EncoderMismatchError(
            f"{without_credentials(collection.location)} keeps no encoder: its codes came from elsewhere; "
            "name the one that made them with --encoder"
        )
    model = load_encoder_from(location)
    if collection.fingerprint not in (None, model.fingerprint) or model.bits != collection.bits:
        raise EncoderMismatchError(
            f"{without_credentials(collection.location)} stores {collection.bits}-bit codes of encoder "
            f"{_short(collection.fingerprint)}, "
            f"{without_credentials(str(location))} is encoder {_short(model.fingerprint)} with {model.bits} bits: "
            "search with the encoder that made the codes, or encode the corpus again"
        )
    return model


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else f"{fingerprint[:12]}…"
