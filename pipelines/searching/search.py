"""Search a collection for one code, and show what was found."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.client.results import SearchResponse
from hashlight.engine.codes import CodeArray
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.query import Query
from hashlight.engine.service.asking.rendering import search_frame, search_table
from hashlight.engine.service.asking.retrieval import Ask, answer
from hashlight.engine.service.asking.searcher import CollectionSearcher


def code_of_item(collection: Collection, id: int) -> CodeArray:
    """Return the code of a stored item, (1, W); IdNotFoundError if it is not there."""
    code = collection.get([id])["code"][0].as_py()
    return np.frombuffer(code, "<u8").astype(np.uint64)[None]


def find(
    collection: Collection, code: CodeArray, query: Query, *, projections: NDArray[np.float32] | None = None
) -> SearchResponse:
    """Find images by one code, (1, W), with their attributes; with its projections (1, B) in asymmetric order."""
    rerank = None if projections is None else Rerank.asymmetric(query.k or 1)
    ask = Ask(codes=code, query=query, features=projections, rerank=rerank, include=frozenset({"attributes"}))
    found = answer(CollectionSearcher(collection), ask, timeout_s=None)
    return SearchResponse(search_table(found), search_frame(found, {}), lambda ids: [None] * len(ids))


def as_json(found: SearchResponse) -> dict[str, Any]:
    """Return what `find` found as plain types for `json.dumps`."""
    [hits] = found
    answers = [{"id": hit.id, "distance": hit.distance, "attributes": hit.attributes or {}} for hit in hits]
    coverage = {**asdict(found.coverage), "complete": found.coverage.complete}
    del coverage["sequence"]  # of a server's write log
    return {"answers": _without_nan(answers), "order": found.order, "truncated": hits.truncated, "coverage": coverage}


def _without_nan(value: Any) -> Any:
    """Return null for NaN, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
