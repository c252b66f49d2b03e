"""Search by an image file, and save a picture of what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hashlight.encoders.data.images import MAX_PIXELS
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import ImageError
from hashlight.engine.client.results import Hit
from hashlight.engine.collection.collection import Collection
from hashlight.engine.places.opening import open_place, open_target
from hashlight.engine.places.uris import split_name, without_credentials
from hashlight.engine.service.asking.encoding import Encoded
from hashlight.pipelines.corpora.kinds.images import MAX_ENCODED_BYTES
from hashlight.pipelines.decoding.images import decode_one
from hashlight.pipelines.evaluation.pictures import Tile, answer_tile, save_grid
from hashlight.pipelines.jobs.errors import PipelineError

QUERY = "query"  # the caption of what was searched for


def encode_file(model: HashEncoder, image: str | Path, *, max_pixels: int = MAX_PIXELS) -> Encoded:
    """Encode one image file of at most `max_pixels` pixels, as a batch of one.

    Raises
    ------
    PipelineError
        If it cannot be read or decoded.
    """
    try:
        data = open_place(image).read(max_bytes=MAX_ENCODED_BYTES)
        pixels_HWC = decode_one(data, model.config.preprocessing, max_pixels=max_pixels)
        output = model.encode_pixels(pixels_HWC[None])
        return Encoded(output.codes, output.features, output.projections)
    except (OSError, ImageError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise PipelineError(f"{without_credentials(str(image))} cannot be searched for: {why}") from error


def tile_of_file(image: str | Path) -> Tile:
    """Return the tile of a query that is an image file."""
    return Tile(open_place(image).read(), QUERY)


def tile_of_item(collection: Collection, id: int) -> Tile:
    """Return the tile of a query that is a stored item; it is blank if its image is no longer at its URI."""
    [item] = collection.get([id]).to_pylist()
    return answer_tile(item.get("uri"), QUERY)


def save_answers(
    query: Tile, hits: Sequence[Hit], path: str | Path, *, max_hits: int = 20, max_pixels: int = MAX_PIXELS
) -> None:
    """Save a picture of the query and its nearest answers with their distances, locally or in a bucket."""
    folder, name = split_name(open_place(path).location)
    target = open_target(folder)
    with target.scratch(name) as aside:
        save_grid([[query, *(_tile(hit) for hit in hits[:max_hits])]], aside, max_pixels=max_pixels)
        target.put_file(name, aside)


def _tile(hit: Hit) -> Tile:
    attributes = hit.attributes or {}
    label = attributes.get("label_name", attributes.get("label"))
    caption = f"d={hit.distance}" if label is None else f"d={hit.distance} {label}"
    return answer_tile(attributes.get("uri"), caption)
