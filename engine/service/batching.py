"""Requests that are cheaper together than one by one: those that wait go out in one batch.

Nobody waits for a batch to fill: while batches are at work, those that arrive wait and become the next one.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Row = TypeVar("Row")


class MicroBatcher(Generic[Item, Row]):
    """Does what several requests bring in common batches, one after the other. Belongs to one event loop.

    Parameters
    ----------
    work : callable
        Awaited with the items of a batch; returns a row for each.
    batch_size : int
        Most items of a batch.
    patience_s : float, optional
        After so long others wait for a batch no more, and the next has one item: what is slow, or waits for something
        else, gains nothing by company and must not make others late. Sizes double with each batch that is in time.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Row]]],
        *,
        batch_size: int,
        patience_s: float | None = None,
    ) -> None:
        self._work = work
        self._batch_size = self._size = batch_size
        self._patience_s = patience_s
        self._waiting: deque[tuple[Item, asyncio.Future[Row]]] = deque()
        self._awaited: asyncio.Task[None] | None = None
        self._late: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        """Whether nothing is at work, and so nothing waits."""
        return self._awaited is None and not self._late

    def submit(self, item: Item) -> asyncio.Future[Row]:
        """Put an item into the next batch; cancelling the future takes it out again."""
        future: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._awaited is None:
            self._start()
        return future

    def _start(self) -> None:
        """Begin the next batch, if something waits."""
        batch = self._next_batch()
        if not batch:
            self._awaited = None
            return
        loop = asyncio.get_running_loop()
        task = self._awaited = loop.create_task(self._run(batch))
        timer = None if self._patience_s is None else loop.call_later(self._patience_s, self._lose_patience, task)
        task.add_done_callback(functools.partial(self._end, timer))

    def _lose_patience(self, task: asyncio.Task[None]) -> None:
        self._late.add(task)
        self._size = 1
        self._start()

    def _end(self, timer: asyncio.TimerHandle | None, task: asyncio.Task[None]) -> None:
        if timer is not None:
            timer.cancel()
        if task in self._late:
            self._late.discard(task)
        else:
            self._size = min(2 * self._size, self._batch_size)
            self._start()

    async def _run(self, batch: Sequence[tuple[Item, asyncio.Future[Row]]]) -> None:
        try:
            rows = await self._work([item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), row in zip(batch, rows, strict=True):
            if not future.done():
                future.set_result(row)

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Row]]]:
        """Take what waits, without those whose request has ended meanwhile."""
        batch: list[tuple[Item, asyncio.Future[Row]]] = []
        while self._waiting and len(batch) < self._size:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch
