"""From queries of any kind to codes: some are codes, some name an item that has one, others are images or embeddings.

A gateway, which works on an event loop, and a client, which has its own thread, resolve in the same three steps:
`sort_queries` says what is to be looked up and what to be encoded, `stored_codes` looks up, and `Sorted.resolve` puts
together what both gave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, check_codes, num_words, unpack_bits
from hashlight.engine.collection.rerank import ASYMMETRIC, MAX_POOL, Order, Rerank
from hashlight.engine.errors import NotReadyError
from hashlight.engine.query import Text
from hashlight.engine.service.asking.encoding import Encoded
from hashlight.engine.service.asking.retrieval import time_left
from hashlight.engine.service.asking.searcher import Searcher

_TRIES = 3  # if a version goes live between the codes and the features of items

Image = TypeVar("Image")


class NoFeaturesError(ValueError):
    """A query that is to be re-ranked by features is a code.

    Attributes
    ----------
    number : int
        Its place among the queries.
    """

    def __init__(self, number: int) -> None:
        super().__init__("`rerank` needs features, which codes do not have: query by image or id")
        self.number = number


class Resolved(NamedTuple):
    """The codes (Q, W) of queries, how their answers are ordered, and the features or projections (Q, F) for that."""

    codes: CodeArray
    rerank: Rerank | None
    features: NDArray[np.float32] | None


@dataclasses.dataclass(frozen=True, slots=True)
class Sorted(Generic[Image]):
    """Queries by kind.

    Attributes
    ----------
    codes : ndarray of uint64, shape (Q, W)
        Zeros where the code is still to be found.
    ids : dict of int to int
        Number of a query -> the item whose code it stands for.
    images : dict of int to Image
        Number of a query -> its image.
    vectors : dict of int to ndarray of float, shape (D,)
        Number of a query -> its embedding.
    texts : dict of int to str
        Number of a query -> its text.
    """

    codes: CodeArray
    ids: dict[int, int]
    images: dict[int, Image]
    vectors: dict[int, NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    texts: dict[int, str] = dataclasses.field(default_factory=dict)

    def order(self, asked: Rerank | Order | None, k: int | None, *, most: int = MAX_POOL) -> Rerank | None:
        """Return how answers are ordered; None is the order of Hamming distances.

        Parameters
        ----------
        asked : Rerank, "hamming", "asymmetric" or None
            If None, the k nearest of images, embeddings and texts are in asymmetric order. That of codes and ids, of
            which no more than the signs of projections are known, is that of Hamming distances.
        k : int or None
        most : int
            Largest pool of which the size is chosen here.
        """
        if isinstance(asked, Rerank):
            return asked
        if asked == ASYMMETRIC or (asked is None and k is not None and (self.images or self.vectors or self.texts)):
            return Rerank.asymmetric(k or 1, most=most)
        return None

    def resolve(
        self, found: Iterable[tuple[Iterable[int], Encoded]], rerank: Rerank | None, *, is_asked: bool
    ) -> Resolved:
        """Return the codes of all queries, and what their answers are ordered by.

        Parameters
        ----------
        found : iterable of (numbers, Encoded)
            What was looked up and encoded, and for which queries: together those of `ids`, `images`,
            `vectors` and `texts`.
        rerank : Rerank or None
            From `order`.
        is_asked : bool
            Whether it was asked for. Otherwise answers are in Hamming order if the encoder gives no projections.

        Raises
        ------
        ValueError
            If it was, and the encoder gives none.
        """
        codes_QW = self.codes.copy()
        known: list[tuple[list[int], Encoded]] = []
        for numbers, encoded in found:
            known.append((list(numbers), encoded))
            codes_QW[known[-1][0]] = encoded.codes
        if rerank is None:
            return Resolved(codes_QW, None, None)
        if rerank.by_features:
            features_QF = np.zeros((len(codes_QW), known[0][1].features.shape[1]), np.float32)
            for places, encoded in known:
                features_QF[places] = encoded.features
            return Resolved(codes_QW, rerank, features_QF)
        encoded_here = [(places, encoded.projections) for places, encoded in known if places[0] not in self.ids]
        if is_asked and any(projections is None for _, projections in encoded_here):
            raise ValueError("`rerank` is asymmetric, the encoder here gives no projections: ask for hamming")
        given = [(places, projections) for places, projections in encoded_here if projections is not None]
        if not given:
            return Resolved(codes_QW, None, None)
        bit_QB = unpack_bits(codes_QW, given[0][1].shape[1])
        projection_QB = np.where(bit_QB, np.float32(1), np.float32(-1))
        for places, projections in given:
            projection_QB[places] = projections
        return Resolved(codes_QW, rerank, projection_QB)


def sort_queries(
    queries: Sequence[CodeArray | NDArray[np.floating[Any]] | int | Text | Image],
    *,
    bits: int,
    asked: Rerank | Order | None,
) -> Sorted[Image]:
    """Sort queries by kind: codes (W,), embeddings (D,), ids, texts, and images, which is what is none of these.

    Raises
    ------
    NoFeaturesError
        If one that is to be re-ranked by features is a code.
    TypeError, ValueError
        If a code does not have `bits` bits.
    """
    codes_QW = np.zeros((len(queries), num_words(bits)), np.uint64)
    ids: dict[int, int] = {}
    images: dict[int, Image] = {}
    vectors: dict[int, NDArray[np.float32]] = {}
    texts: dict[int, str] = {}
    for number, query in enumerate(queries):
        if isinstance(query, np.ndarray) and query.dtype.kind == "f":
            with np.errstate(over="ignore"):  # what becomes infinite has no code
                vectors[number] = np.asarray(query, np.float32)
        elif isinstance(query, np.ndarray):
            check_features_of_code(number, asked)
            codes_QW[number] = check_codes(query[None], bits=bits, name="queries")[0]
        elif isinstance(query, int):
            ids[number] = query
        elif isinstance(query, Text):
            texts[number] = query.words
        else:
            images[number] = query
    return Sorted(codes_QW, ids, images, vectors, texts)


def check_features_of_code(number: int, asked: Rerank | Order | None) -> None:
    """Raise NoFeaturesError if a query that is a code is to be re-ranked by features."""
    if isinstance(asked, Rerank) and asked.by_features:
        raise NoFeaturesError(number)


def stored_codes(searcher: Searcher, ids: Sequence[int], *, with_features: bool, deadline_s: float) -> Encoded:
    """Return the stored codes of items, and their features if they are wanted, by a deadline of `time.monotonic`.

    Raises
    ------
    IdNotFoundError
        If the collection lacks one of the items.
    DeadlineExceededError
        If the time is over.
    NotReadyError
        If new versions keep going live between codes and features.
    """
    wanted_M, searcher = np.array(ids, np.int64), searcher.pinned()
    for _ in range(_TRIES):
        version = searcher.version
        codes = b"".join(searcher.get(wanted_M, timeout_s=time_left(deadline_s))["code"].to_pylist())
        codes_MW = np.frombuffer(codes, "<u8").reshape(len(wanted_M), -1).astype(np.uint64)
        if not with_features:
            return Encoded(codes_MW, np.zeros((len(wanted_M), 0), np.float32))
        features = searcher.features_of(wanted_M, timeout_s=time_left(deadline_s))
        if searcher.version == version:
            return Encoded(codes_MW, features.astype(np.float32))
    raise NotReadyError(f"the collection changed {_TRIES} times during one request: try again")
