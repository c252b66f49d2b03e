"""Calls executed in this process, by an open collection or by the servers of a cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.client.calls import (
    Call,
    Count,
    Delete,
    Describe,
    Encode,
    Facets,
    Get,
    Histogram,
    Put,
    Ready,
    Scroll,
    Search,
    Thumbnail,
    Update,
    Write,
)
from hashlight.engine.client.queries import Address, Code, Picture, QueryInput, with_codes
from hashlight.engine.client.results import Items, Page, SearchResponse, ValueCounts, data_uri
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import Order, Rerank
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import EncoderMismatchError, HashlightError
from hashlight.engine.indexes.warmup import warm
from hashlight.engine.service.asking.encoding import (
    Encoded,
    Encoder,
    encode_vectors,
    is_encoder_of,
    open_encoder,
    takes_images,
    takes_texts,
    takes_vectors,
)
from hashlight.engine.service.asking.rendering import page_frame, search_frame, search_table
from hashlight.engine.service.asking.resolving import (
    Resolved,
    Sorted,
    check_features_of_code,
    sort_queries,
    stored_codes,
)
from hashlight.engine.service.asking.retrieval import Ask, answer, stored_items, stored_page, time_left
from hashlight.engine.service.asking.searcher import CollectionSearcher, Searcher
from hashlight.engine.service.limits import Limits
from hashlight.engine.writing import writes

_PICTURE_S = 5.0  # for one picture in a notebook


class LocalTransport:
    """Executes calls in this process. Thread-safe.

    Parameters
    ----------
    target : str, Path or Searcher
        A collection's folder, or an existing searcher, which is not closed here.
    encoder : ImageEncoder or VectorEncoder, optional
        For images or embeddings. By default the collection's own encoder is opened for the first image.
    """

    def __init__(self, target: str | Path | Searcher, *, encoder: Encoder | None) -> None:
        self._owned = isinstance(target, str | Path)
        self._collection: Collection | None = None
        if isinstance(target, str | Path):
            # Kernels are compiled on a machine's first use, which would take longer than a search's timeout.
            warm()
            collection = Collection.open(target)
            self._collection, self._searcher = collection, CollectionSearcher(collection)
        else:
            self._searcher = target  # type: ignore[assignment]
        self._given = encoder

    def __repr__(self) -> str:
        return repr(self._searcher)

    def send(self, call: Call) -> Any:
        """Execute a call."""
        match call:
            case Search():
                return self._search(call)
            case Encode():
                return self._encode([image.data for image in call.images], time.monotonic() + call.timeout_s).codes
            case Get():
                return Items(stored_items(self._searcher, call.ids, timeout_s=call.timeout_s))
            case Count():
                count, _ = self._searcher.count(call.filter, call.parameters, timeout_s=call.timeout_s)
                return count
            case Facets():
                return self._facets(call)
            case Histogram():
                return self._histogram(call)
            case Scroll():
                return self._page(call)
            case Put() | Update() | Delete():
                return self._write(call)
            case Thumbnail():
                return self._searcher.thumbnail(call.id, timeout_s=call.timeout_s)
            case Describe():
                return self._searcher.describe()
            case Ready():
                self._searcher.ready()
                return None

    def close(self) -> None:
        """Close whatever this transport opened."""
        if self._owned:
            self._searcher.close()

    def _facets(self, call: Facets) -> ValueCounts:
        table, coverage = self._searcher.facets(
            call.column, call.filter, call.parameters, limit=call.limit, timeout_s=call.timeout_s
        )
        return ValueCounts(table, {"column": call.column, "version": coverage.version})

    def _histogram(self, call: Histogram) -> NDArray[np.int64]:
        deadline_s = time.monotonic() + call.timeout_s
        codes_QW = self._resolve(call.queries, None, None, deadline_s).codes
        counts_QD, _ = self._searcher.histogram(
            codes_QW,
            call.filter,
            call.parameters,
            timeout_s=time_left(deadline_s),
            allow_partial=call.allow_partial,
        )
        return counts_QD

    def _page(self, call: Scroll) -> Page:
        table, coverage = stored_page(
            self._searcher,
            call.filter,
            call.parameters,
            after=call.after,
            limit=call.limit,
            version=call.version,
            sequence=call.sequence,
            timeout_s=call.timeout_s,
        )
        return Page(table, page_frame(table, coverage, limit=call.limit))

    def _write(self, call: Write) -> int:
        """Commit a write, and go over to the version that has it."""
        searcher = self._searcher
        if not isinstance(searcher, CollectionSearcher):
            raise ValueError("shard servers only read: write to their gateway, or to the collection's folder")
        with Transaction(searcher.location) as change:
            live = change.live
            assert live is not None, "there is a live version, or beginning would have failed"
            write = self._as_write(call, live.features is not None)
            write.check(live)
            write.record(change)
            version = change.commit().version
        searcher.renew()
        return version

    def _as_write(self, call: Write, has_features: bool) -> writes.Write:
        match call:
            case Put():
                codes, features, encoder = call.items, call.features, None
                if not isinstance(codes, np.ndarray):
                    images = [image.data for image in codes]
                    encoded, encoder = self._encode(images, time.monotonic() + call.timeout_s), self._encoder()
                    codes = encoded.codes
                    if features is None and has_features:
                        features = encoded.features
                fingerprint = None if encoder is None else encoder.fingerprint
                return writes.Put(
                    codes, call.ids, call.attributes, features, call.thumbnails, call.replaces, fingerprint
                )
            case Update():
                return writes.Update([(call.ids, call.attributes)])
            case Delete():
                if call.filter is None:
                    assert call.ids is not None, "either is given"
                    return writes.Delete(call.ids)
                return writes.DeleteWhere(call.filter, call.parameters)

    def _search(self, call: Search) -> SearchResponse:
        deadline_s = time.monotonic() + call.timeout_s
        codes, rerank, features = self._resolve(call.queries, call.rerank, call.query.k, deadline_s)
        ask = Ask(
            codes=codes,
            query=call.query,
            features=features,
            rerank=rerank,
            allow_partial=call.allow_partial,
            include=frozenset(call.include) - {"explain"},
            version=call.version,
            sequence=call.sequence,
        )
        found = answer(self._searcher, ask, timeout_s=time_left(deadline_s))
        timing_ms = {stage: round(1000 * seconds, 3) for stage, seconds in found.seconds.items()}
        table = search_table(found)
        return SearchResponse(table, search_frame(found, timing_ms), self._pictures)

    def _resolve(
        self, asked: Code | list[QueryInput], order: Rerank | Order | None, k: int | None, deadline_s: float
    ) -> Resolved:
        """Return codes, and how their answers are ordered."""
        queries = with_codes(asked, self._searcher.bits)
        if isinstance(queries, np.ndarray):
            check_features_of_code(0, order)
            return Resolved(queries, None, None)
        for query in queries:
            if isinstance(query, Address):
                raise ValueError(f"`queries` has {query.url}, which only a gateway fetches: pass the image's bytes")
        by_kind: Sorted[QueryInput] = sort_queries(queries, bits=self._searcher.bits, asked=order)
        rerank = by_kind.order(order, k)
        found: list[tuple[Iterable[int], Encoded]] = []
        if by_kind.images:
            pictures = [image.data for image in by_kind.images.values() if isinstance(image, Picture)]
            found.append((by_kind.images, self._encode(pictures, deadline_s)))
        if by_kind.ids:
            wanted = list(by_kind.ids.values())
            with_features = rerank is not None and rerank.by_features
            stored = stored_codes(self._searcher, wanted, with_features=with_features, deadline_s=deadline_s)
            found.append((by_kind.ids, stored))
        if by_kind.vectors:
            found.append((by_kind.vectors, self._encode_vectors(list(by_kind.vectors.values()))))
        if by_kind.texts:
            found.append((by_kind.texts, self._encode_texts(list(by_kind.texts.values()))))
        return by_kind.resolve(found, rerank, is_asked=order is not None)

    def _encode_texts(self, texts: Sequence[str]) -> Encoded:
        encoder = self._encoder()
        if not takes_texts(encoder):
            raise EncoderMismatchError(
                f"the collection's encoder {encoder.fingerprint[:12]} takes no texts: its network embeds none"
            )
        return encoder.encode_texts(texts)

    def _encode_vectors(self, vectors: Sequence[NDArray[np.float32]]) -> Encoded:
        encoder = self._encoder()
        if not takes_vectors(encoder):
            raise EncoderMismatchError(
                f"the collection's encoder {encoder.fingerprint[:12]} takes images, not embeddings: ask with an image, "
                "a code or an id"
            )
        return encode_vectors(encoder, vectors)

    def _encode(self, images: Sequence[bytes], deadline_s: float) -> Encoded:
        encoder, max_pixels = self._encoder(), Limits().pixels
        if not takes_images(encoder):
            raise EncoderMismatchError(
                f"the collection's encoder {encoder.fingerprint[:12]} takes embeddings, not images: ask with "
                "`vector`, a code or an id"
            )
        return encoder.encode([encoder.decode(image, max_pixels, time_left(deadline_s)) for image in images])

    def _encoder(self) -> Encoder:
        if self._given is None and self._collection is not None:
            folder = self._collection.encoder_path
            self._given = None if folder is None else open_encoder(folder)
        if self._given is None:
            raise EncoderMismatchError(
                "there is no encoder here to make codes of images: pass `encoder`, or ask with codes or ids"
            )
        fingerprint = self._searcher.fingerprint
        if not is_encoder_of(self._given, bits=self._searcher.bits, fingerprint=fingerprint):
            raise EncoderMismatchError(
                f"the collection stores {self._searcher.bits}-bit codes of encoder {fingerprint}, `encoder` is "
                f"{self._given.fingerprint} with {self._given.bits} bits: pass the one that made the codes"
            )
        return self._given

    def _pictures(self, ids: Sequence[int]) -> list[str | None]:
        return [self._picture(id) for id in ids]

    def _picture(self, id: int) -> str | None:
        try:
            return data_uri(self._searcher.thumbnail(id, timeout_s=_PICTURE_S))
        except HashlightError:
            return None


class AsyncLocalTransport:
    """Like `LocalTransport`, for asyncio: each call runs in a thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._transport = LocalTransport(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._transport)

    async def send(self, call: Call) -> Any:
        """Execute a call."""
        return await asyncio.to_thread(self._transport.send, call)

    async def close(self) -> None:
        """Close whatever this transport opened."""
        self._transport.close()
