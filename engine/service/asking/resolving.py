"""From queries of any kind to codes: some are codes, some name an item that has one, others are images or embeddings.

A gateway, which works on an event loop, and a client, which has its own thread, resolve in the same three steps:
`sort_queries` says what is to be looked up and what to be encoded, `stored_codes` looks up, and `Sorted.resolve` puts
together what both gave.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, check_codes, num_words
from hashlight.engine.errors import NotReadyError
from hashlight.engine.service.asking.encoding import Encoded
from hashlight.engine.service.asking.retrieval import time_left
from hashlight.engine.service.asking.searcher import Searcher

_TRIES = 3  # if a version goes live between the codes and the features of items

Image = TypeVar("Image")


class NoFeaturesError(ValueError):
    """A query that is to be re-ranked is a code.

    Attributes
    ----------
    number : int
        Its place among the queries.
    """

    def __init__(self, number: int) -> None:
        super().__init__("`rerank` needs features, which codes do not have: query by image or id")
        self.number = number


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
    reranks : bool
        Whether features are wanted, too.
    """

    codes: CodeArray
    ids: dict[int, int]
    images: dict[int, Image]
    reranks: bool
    vectors: dict[int, NDArray[np.float32]] = dataclasses.field(default_factory=dict)

    def resolve(self, found: Iterable[tuple[Iterable[int], Encoded]]) -> tuple[CodeArray, NDArray[np.float32] | None]:
        """Return the codes (Q, W) of all queries, and their features (Q, F) if they are wanted.

        Parameters
        ----------
        found : iterable of (numbers, Encoded)
            What was looked up and encoded, and for which queries: together those of `ids`, `images` and `vectors`.
        """
        codes_QW, features_QF = self.codes.copy(), None
        for numbers, encoded in found:
            places = list(numbers)
            codes_QW[places] = encoded.codes
            if self.reranks:
                if features_QF is None:
                    features_QF = np.zeros((len(codes_QW), encoded.features.shape[1]), np.float32)
                features_QF[places] = encoded.features
        return codes_QW, features_QF


def sort_queries(
    queries: Sequence[CodeArray | NDArray[np.floating[Any]] | int | Image], *, bits: int, reranks: bool
) -> Sorted[Image]:
    """Sort queries by kind: codes (W,), embeddings (D,), ids, and images, which is what is none of these.

    Raises
    ------
    NoFeaturesError
        If one that is to be re-ranked is a code.
    TypeError, ValueError
        If a code does not have `bits` bits.
    """
    codes_QW = np.zeros((len(queries), num_words(bits)), np.uint64)
    ids: dict[int, int] = {}
    images: dict[int, Image] = {}
    vectors: dict[int, NDArray[np.float32]] = {}
    for number, query in enumerate(queries):
        if isinstance(query, np.ndarray) and query.dtype.kind == "f":
            with np.errstate(over="ignore"):  # what becomes infinite has no code
                vectors[number] = np.asarray(query, np.float32)
        elif isinstance(query, np.ndarray):
            if reranks:
                raise NoFeaturesError(number)
            codes_QW[number] = check_codes(query[None], bits=bits, name="queries")[0]
        elif isinstance(query, int):
            ids[number] = query
        else:
            images[number] = query
    return Sorted(codes_QW, ids, images, reranks, vectors)


def stored_codes(searcher: Searcher, ids: Sequence[int], *, reranks: bool, deadline_s: float) -> Encoded:
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
        if not reranks:
            return Encoded(codes_MW, np.zeros((len(wanted_M), 0), np.float32))
        features = searcher.features_of(wanted_M, timeout_s=time_left(deadline_s))
        if searcher.version == version:
            return Encoded(codes_MW, features.astype(np.float32))
    raise NotReadyError(f"the collection changed {_TRIES} times during one request: try again")
