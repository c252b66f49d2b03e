"""A corpus that several workers list: its pieces are listed on Ray, and taken in their order.

What a worker lists waits in Ray's object store, which goes to disk when it is full, until the pieces before have been
taken. So the list is that which one process makes.
"""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from hashlight.engine.indexes.threads import usable_cores
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.kinds.webdataset import divided
from hashlight.pipelines.corpora.listing import Listing, Piece, skip
from hashlight.pipelines.jobs.session import ray_session
from hashlight.pipelines.jobs.tasks import get_result

# As many headers as are read at the same time.
_SHARDS_OF_A_PIECE = 16


def listed_by_workers(listing: Listing, workers: int) -> Iterator[pa.Table]:
    """List a corpus on Ray, `workers` pieces at the same time; see `Listing.chunks`."""
    return listing.add_columns(_in_order(listing.pieces(True), workers, listing.skipped))


def divided_by_workers(
    shards: Iterable[pa.Table], size: int, ids: IdRule, workers: int, *, are_few: bool
) -> Iterator[pa.Table]:
    """Divide shards on Ray, sixteen of them in each of `workers` tasks; see `webdataset.divided`."""
    return _in_order(_pieces_of(shards, size, ids, are_few), workers, Counter())


def _pieces_of(shards: Iterable[pa.Table], size: int, ids: IdRule, are_few: bool) -> Iterator[Piece]:
    first = 0
    for table in shards:
        for start in range(0, len(table), _SHARDS_OF_A_PIECE):
            some = table.slice(start, _SHARDS_OF_A_PIECE)
            yield functools.partial(_divide, some, size, ids, first + start, are_few)
        first += len(table)


def _divide(
    shards: pa.Table, size: int, ids: IdRule, first: int, are_few: bool, _skipped: Counter[str]
) -> Iterator[pa.Table]:
    return divided([shards], size, ids, first=first, are_few=are_few)


def _in_order(pieces: Iterator[Piece], workers: int, skipped: Counter[str]) -> Iterator[pa.Table]:
    """Run pieces as tasks, and take what they list one piece after the other."""
    import ray

    with ray_session(num_cpus=max(workers, usable_cores())):
        task = ray.remote(num_returns="streaming", max_retries=2)(_list_piece)
        running: deque[Any] = deque()
        try:
            while True:
                while len(running) < workers and (piece := next(pieces, None)) is not None:
                    running.append(task.remote(piece))
                if not running:
                    return
                for ref in running[0]:
                    part = get_result(ref)
                    if isinstance(part, pa.Table):
                        yield part
                        continue
                    for kind, number in part.items():
                        skip(skipped, kind, number)
                running.popleft()
        finally:
            for waiting in running:
                ray.cancel(waiting)


def _list_piece(piece: Piece) -> Iterator[pa.Table | Counter[str]]:
    """List a piece; the last that it yields is what was left out."""
    skipped: Counter[str] = Counter()
    yield from piece(skipped)
    yield skipped
