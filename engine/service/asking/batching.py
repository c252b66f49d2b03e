"""Requests that are cheaper together than one by one: waiting ones go out in one batch.

No request waits for a batch to fill: those that arrive while batches are in progress become the next batch.
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
    """Processes the items of several requests in shared batches, one after another. Belongs to one event loop.

    Parameters
    ----------
    work : callable
        Awaited with the items of a batch; returns a row for each, or an error that its request ends with.
    batch_size : int
        Maximum number of items in a batch.
    patience_s : float, optional
        Maximum time to wait for the previous batch. While batches take longer, every item goes out at once and alone,
        because slow or waiting work gains nothing from batching. Sizes double with each batch that is in time.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Row | Exception]]],
        *,
        batch_size: int,
        patience_s: float | None = None,
    ) -> None:
        self._work = work
        self._batch_size = self._size = batch_size
        self._patience_s = patience_s
        self._waiting: deque[tuple[Item, asyncio.Future[Row]]] = deque()
        self._current: set[asyncio.Task[None]] = set()
        self._overdue: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        """Whether nothing is in progress, and so nothing waits."""
        return not self._current and not self._overdue

    def submit(self, item: Item) -> asyncio.Future[Row]:
        """Put an item into the next batch; cancelling the future removes it."""
        future: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if not self._current or not self._size:
            self._start()
        return future

    def _start(self) -> None:
        """Start the next batch, if anything waits."""
        batch = self._next_batch()
        if not batch:
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._run(batch))
        self._current.add(task)
        timer = None if self._patience_s is None else loop.call_later(self._patience_s, self._overtake, task)
        task.add_done_callback(functools.partial(self._end, timer))

    def _overtake(self, task: asyncio.Task[None]) -> None:
        self._current.discard(task)
        self._overdue.add(task)
        self._size = 0
        while self._waiting:
            self._start()

    def _end(self, timer: asyncio.TimerHandle | None, task: asyncio.Task[None]) -> None:
        if timer is not None:
            timer.cancel()
        if task in self._overdue:
            self._overdue.discard(task)
            return
        self._current.discard(task)
        self._size = min(max(1, 2 * self._size), self._batch_size)
        if not self._current:
            self._start()

    async def _run(self, batch: Sequence[tuple[Item, asyncio.Future[Row]]]) -> None:
        try:
            rows = await self._work([item for item, _ in batch])
            settled = [(future, row) for (_, future), row in zip(batch, rows, strict=True)]
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            if not isinstance(error, Exception):
                raise
            return
        for future, row in settled:
            if not future.done():
                future.set_exception(row) if isinstance(row, Exception) else future.set_result(row)

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Row]]]:
        """Take the waiting items, except those whose request has ended."""
        batch: list[tuple[Item, asyncio.Future[Row]]] = []
        while self._waiting and len(batch) < max(1, self._size):
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch
