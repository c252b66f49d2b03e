"""Search a collection by an image, and show what was found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hashlight.encoders.data.images import decode_image
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import ImageError
from hashlight.engine.codes import CodeArray
from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import EncoderMismatchError
from hashlight.engine.results import PAD_ID, Coverage
from hashlight.pipelines.evaluation.pictures import Tile, answer_tile, save_grid
from hashlight.pipelines.jobs.errors import PipelineError


@dataclass(frozen=True, slots=True)
class Answer:
    """One image found: its id, its Hamming distance from the query, and its attributes."""

    id: int
    distance: int
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a query found: answers ascending by (distance, id), whether a limit cut them, and what was searched."""

    answers: list[Answer]
    truncated: bool
    coverage: Coverage

    def as_json(self) -> dict[str, Any]:
        """Return plain types for `json.dumps`."""
        coverage = {**asdict(self.coverage), "complete": self.coverage.complete}
        return {**_without_nan(asdict(self)), "coverage": coverage}


def load_encoder(collection: Collection, encoder: str | Path | None = None) -> HashEncoder:
    """Load the encoder that made a collection's codes, from the collection or from `encoder`.

    Raises
    ------
    EncoderMismatchError
        If the collection has none, or `encoder` is another one.
    """
    path = Path(encoder) if encoder is not None else collection.encoder_path
    if path is None:
        raise EncoderMismatchError(
            f"{collection.path} keeps no encoder: its codes came from elsewhere; "
            "name the one that made them with --encoder"
        )
    model = HashEncoder.load(path)
    if collection.fingerprint not in (None, model.fingerprint) or model.bits != collection.bits:
        raise EncoderMismatchError(
            f"{collection.path} stores {collection.bits}-bit codes of encoder {_short(collection.fingerprint)}, "
            f"{path} is encoder {_short(model.fingerprint)} with {model.bits} bits: search with the encoder that made "
            "the codes, or encode the corpus again"
        )
    return model


def encode_file(model: HashEncoder, image: str | Path) -> CodeArray:
    """Encode one image file, to codes of shape (1, W).

    Raises
    ------
    PipelineError
        If it cannot be read or decoded.
    """
    try:
        return model.encode([decode_image(Path(image).read_bytes())])
    except (OSError, ImageError) as error:
        raise PipelineError(f"{image} cannot be searched for: {error}") from error


def find_nearest(collection: Collection, query: CodeArray, k: int) -> Answers:
    """Find the `k` nearest images of one query, (1, W)."""
    result = collection.search(query, min(k, len(collection)))
    found = result.ids[0] != PAD_ID
    return _answers(collection, result.ids[0][found], result.distances[0][found], False, result.coverage)


def find_within(collection: Collection, query: CodeArray, radius: int, limit: int | None = None) -> Answers:
    """Find the images within `radius` of one query, (1, W)."""
    result = collection.range_search(query, radius, limit)
    return _answers(collection, result.ids, result.distances, bool(result.truncated[0]), result.coverage)


def save_answers(image: str | Path, found: Answers, path: Path, *, most: int = 20) -> None:
    """Save a picture of the query and its nearest answers with their distances."""
    query = Tile(Path(image).read_bytes(), "query")
    save_grid([[query, *(_tile(answer) for answer in found.answers[:most])]], path)


def _tile(answer: Answer) -> Tile:
    label = answer.attributes.get("label_name", answer.attributes.get("label"))
    caption = f"d={answer.distance}" if label is None else f"d={answer.distance} {label}"
    return answer_tile(answer.attributes.get("uri"), caption)


def _answers(
    collection: Collection, ids: np.ndarray, distances: np.ndarray, truncated: bool, coverage: Coverage | None
) -> Answers:
    assert coverage is not None, "a collection's answers carry coverage"
    rows = collection.get(ids).drop_columns(["id", "code"]).to_pylist()
    if not rows:
        rows = [{} for _ in ids]
    answers = [
        Answer(id=int(id_), distance=int(distance), attributes=row)
        for id_, distance, row in zip(ids, distances, rows, strict=True)
    ]
    return Answers(answers, truncated, coverage)


def _without_nan(value: Any) -> Any:
    """Return null for NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else f"{fingerprint[:12]}…"
