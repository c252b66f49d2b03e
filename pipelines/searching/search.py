"""Search a collection by an image, and show what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hashlight.encoders.data.images import MAX_PIXELS
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import ImageError
from hashlight.engine.client.results import Hit, SearchResponse
from hashlight.engine.codes import CodeArray
from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import EncoderMismatchError
from hashlight.engine.places.opening import open_place, open_target
from hashlight.engine.places.uris import split_name, without_credentials
from hashlight.engine.query import Query
from hashlight.engine.service.asking.rendering import search_frame, search_table
from hashlight.engine.service.asking.retrieval import Ask, answer
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.pipelines.codes.encoder import load_encoder as load_encoder_from
from hashlight.pipelines.corpora.kinds.images import MAX_ENCODED_BYTES
from hashlight.pipelines.decoding.images import decode_one
from hashlight.pipelines.evaluation.pictures import Tile, answer_tile, save_grid
from hashlight.pipelines.jobs.errors import PipelineError


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


def encode_file(model: HashEncoder, image: str | Path, *, max_pixels: int = MAX_PIXELS) -> CodeArray:
    """Encode one image file of at most `max_pixels` pixels, to codes of shape (1, W).

    Raises
    ------
    PipelineError
        If it cannot be read or decoded.
    """
    try:
        data = open_place(image).read(max_bytes=MAX_ENCODED_BYTES)
        pixels_HWC = decode_one(data, model.config.preprocessing, max_pixels=max_pixels)
        return model.encode_pixels(pixels_HWC[None]).codes
    except (OSError, ImageError) as error:
        raise PipelineError(f"{without_credentials(str(image))} cannot be searched for: {error}") from error


def find(collection: Collection, code: CodeArray, query: Query) -> SearchResponse:
    """Find images by one code, (1, W), with their attributes."""
    ask = Ask(codes=code, query=query, include=frozenset({"attributes"}))
    found = answer(CollectionSearcher(collection), ask, timeout_s=None)
    return SearchResponse(search_table(found), search_frame(found, {}), lambda ids: [None] * len(ids))


def as_json(found: SearchResponse) -> dict[str, Any]:
    """Return what `find` found as plain types for `json.dumps`."""
    [hits] = found
    answers = [{"id": hit.id, "distance": hit.distance, "attributes": hit.attributes or {}} for hit in hits]
    coverage = {**asdict(found.coverage), "complete": found.coverage.complete}
    return {"answers": _without_nan(answers), "truncated": hits.truncated, "coverage": coverage}


def save_answers(
    image: str | Path, hits: Sequence[Hit], path: str | Path, *, max_hits: int = 20, max_pixels: int = MAX_PIXELS
) -> None:
    """Save a picture of the query and its nearest answers with their distances, locally or in a bucket."""
    folder, name = split_name(open_place(path).location)
    query = Tile(open_place(image).read(), "query")
    target = open_target(folder)
    with target.scratch(name) as aside:
        save_grid([[query, *(_tile(hit) for hit in hits[:max_hits])]], aside, max_pixels=max_pixels)
        target.put_file(name, aside)


def _tile(hit: Hit) -> Tile:
    attributes = hit.attributes or {}
    label = attributes.get("label_name", attributes.get("label"))
    caption = f"d={hit.distance}" if label is None else f"d={hit.distance} {label}"
    return answer_tile(attributes.get("uri"), caption)


def _without_nan(value: Any) -> Any:
    """Return null for NaN, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else f"{fingerprint[:12]}…"
