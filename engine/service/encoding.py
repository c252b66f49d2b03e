"""Images to codes inside a server: decoded one by one, encoded together.

An encoder takes about as long for one image as for a batch, so while one batch is at work those that arrive wait and
become the next one. Nobody waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.codes import CodeArray


class ImageRefusedError(ValueError):
    """An image cannot be decoded, or has more pixels than are allowed."""


class Encoded(NamedTuple):
    """What an encoder gives for N images.

    Attributes
    ----------
    codes : ndarray of uint64, shape (N, W)
    features : ndarray of float32, shape (N, F)
        Fine features, to re-rank by.
    """

    codes: CodeArray
    features: NDArray[np.float32]


class ImageEncoder(Protocol):
    """What makes codes of images. Several threads may use one at once."""

    @property
    def bits(self) -> int:
        """Bits of a code."""
        ...

    @property
    def fingerprint(self) -> str:
        """Which encoder this is."""
        ...

    @property
    def batch_size(self) -> int:
        """Images that are encoded as quickly as one."""
        ...

    def decode(self, data: bytes, max_pixels: int) -> Any:
        """Return an image for `encode`.

        Raises
        ------
        ImageRefusedError
            If `data` is no image, is damaged, or has more than `max_pixels` pixels.
        """
        ...

    def encode(self, images: Sequence[Any]) -> Encoded:
        """Encode decoded images."""
        ...


class MicroBatcher:
    """Encodes what several requests bring in common batches. Belongs to one event loop.

    Parameters
    ----------
    encode : callable
        As `ImageEncoder.encode`.
    executor : Executor
        Where it runs, one batch at a time.
    batch_size : int
        Most images of a batch.
    observe : callable, optional
        Called with the number of images of each batch.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[Any]], Encoded],
        executor: Executor,
        *,
        batch_size: int,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        self._encode = encode
        self._executor = executor
        self._batch_size = batch_size
        self._observe = observe
        self._waiting: deque[tuple[Any, asyncio.Future[tuple[CodeArray, NDArray[np.float32]]]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def encode(self, images: Sequence[Any]) -> Encoded:
        """Encode some images, beside those of other requests."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[tuple[CodeArray, NDArray[np.float32]]]] = [loop.create_future() for _ in images]
        self._waiting.extend(zip(images, futures, strict=True))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        rows = await asyncio.gather(*futures)
        return Encoded(np.stack([code for code, _ in rows]), np.stack([features for _, features in rows]))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            images, futures = zip(*batch, strict=True)
            if self._observe is not None:
                self._observe(len(images))
            try:
                encoded = await loop.run_in_executor(self._executor, self._encode, images)
            except Exception as error:
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, *row in zip(futures, encoded.codes, encoded.features, strict=True):
                if not future.done():
                    future.set_result((row[0], row[1]))

    def _next_batch(self) -> list[tuple[Any, asyncio.Future[tuple[CodeArray, NDArray[np.float32]]]]]:
        """Take what waits, without those whose request has ended meanwhile."""
        batch: list[tuple[Any, asyncio.Future[tuple[CodeArray, NDArray[np.float32]]]]] = []
        while self._waiting and len(batch) < self._batch_size:
            image, future = self._waiting.popleft()
            if not future.done():
                batch.append((image, future))
        return batch
