"""What a shard server answers to one request, from the shards it has open."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.codes import MOST_PADDED, IdArray
from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.asking.searcher import try_search
from hashlight.engine.service.protocol.wire import (
    Kind,
    ProtocolError,
    Request,
    encode_features,
    encode_range,
    encode_search,
    encode_table,
)


def answer(collection: Collection, request: Request) -> bytes:
    """Return the body of the answer.

    Raises
    ------
    TypeError, ValueError
        If the request does not fit the collection.
    NotReadyError
        If a shard does not find its own codes.
    """
    match request.kind:
        case Kind.SEARCH:
            # What a group has; the router, which knows how many codes there are in all, pads.
            k = min(request.number, max(len(collection), MOST_PADDED))
            result = collection.search(request.values, k, filter=request.filter, explain=request.explain)
            return encode_search(result)
        case Kind.RANGE:
            within = collection.range_search(
                request.values, request.number, request.limit, filter=request.filter, explain=request.explain
            )
            return encode_range(within)
        case Kind.GET:
            return encode_table(collection.get(_held(collection, request.ids)))
        case Kind.THUMBNAILS:
            return _thumbnails(collection, request.ids)
        case Kind.FEATURES:
            held = _held(collection, request.ids)
            return encode_features(held, collection.features_of(held))
        case Kind.READY:
            try_search(collection)
            return b""
    raise ProtocolError(f"{request.kind!r} has no answer")


def _held(collection: Collection, ids_M: IdArray) -> IdArray:
    """Return those of the ids that are in these shards."""
    here_M: NDArray[np.bool_] = np.zeros(len(ids_M), np.bool_)
    for shard in collection.shards:
        here_M |= shard.rows_of(ids_M) >= 0
    return ids_M[here_M]


def _thumbnails(collection: Collection, ids_M: IdArray) -> bytes:
    held = _held(collection, ids_M)
    pictures = collection.thumbnails_of(held)
    return encode_table(pa.table({"id": pa.array(held), "thumbnail": pa.array(pictures, pa.binary())}))
