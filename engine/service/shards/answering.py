"""A shard server's answer to one request, from its open shards."""

from __future__ import annotations

import pyarrow as pa

from hashlight.engine.codes import MAX_PADDED, IdArray
from hashlight.engine.collection.collection import Collection
from hashlight.engine.query import Query
from hashlight.engine.service.asking.searcher import check_values, scan_page, try_search
from hashlight.engine.service.protocol.wire import (
    Kind,
    ProtocolError,
    Request,
    encode_codes,
    encode_count,
    encode_features,
    encode_histogram,
    encode_result,
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
        case Kind.SEARCH | Kind.RANGE:
            assert request.query is not None, "a search has a query"
            return encode_result(collection.answer(request.values, _no_wider(request.query, collection)))
        case Kind.GET:
            return encode_table(collection.get(_held(collection, request.ids)))
        case Kind.THUMBNAILS:
            return _thumbnails(collection, request.ids)
        case Kind.FEATURES:
            held = _held(collection, request.ids)
            return encode_features(held, collection.features_of(held))
        case Kind.CODES:
            held = _held(collection, request.ids)
            return encode_codes(held, collection.codes_of(held))
        case Kind.COUNT | Kind.FACETS | Kind.SCAN | Kind.HISTOGRAM | Kind.SAMPLE:
            assert request.query is not None, "it has a filter, if only none"
            return _of_items(collection, request, request.query)
        case Kind.READY:
            try_search(collection)
            return b""
    raise ProtocolError(f"expected a request that shards can answer, got {request.kind!r}")


def _of_items(collection: Collection, request: Request, query: Query) -> bytes:
    """Count or list items; the values of an attribute are all counted, since the router adds up those of all groups."""
    where = query.filter, query.parameters
    if request.kind is Kind.COUNT:
        return encode_count(collection.count(*where))
    if request.kind is Kind.HISTOGRAM:
        return encode_histogram(collection.histogram(request.values, filter=where[0], parameters=where[1]))
    if request.kind is Kind.SAMPLE:
        ids_M = collection.sample(query.limit or 1, filter=where[0], parameters=where[1])
        return encode_codes(ids_M, collection.codes_of(ids_M))
    if request.kind is Kind.FACETS:
        return encode_table(check_values(collection.facets(request.column, *where, limit=None), request.column))
    after = None if query.after is None else query.after[1]
    return encode_table(scan_page(collection, *where, after=after, limit=query.limit or 1))


def _no_wider(query: Query, collection: Collection) -> Query:
    """Limit k to the size of the group; the router, which knows the total number of codes, pads."""
    most = max(len(collection), MAX_PADDED)
    return query if query.k is None or query.k <= most else query._replace(k=most)


def _held(collection: Collection, ids_M: IdArray) -> IdArray:
    """Return the ids that are in these shards."""
    return ids_M[collection.has(ids_M)]


def _thumbnails(collection: Collection, ids_M: IdArray) -> bytes:
    held = _held(collection, ids_M)
    pictures = collection.thumbnails_of(held)
    return encode_table(pa.table({"id": pa.array(held), "thumbnail": pa.array(pictures, pa.binary())}))
