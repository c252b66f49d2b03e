"""Images, or embeddings, to codes inside a server: images are decoded each by itself, and encoded together.

An encoder takes about as long for one image as for a batch, so images that arrive while one batch is in progress become
the next one.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray
from hashlight.engine.extras import missing
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.service.asking.batching import MicroBatcher
from hashlight.engine.service.asking.retrieval import time_left
from hashlight.engine.service.problems import invalid
from hashlight.engine.service.telemetry.requests import Handled, carried, current, shared_span, working_for

if TYPE_CHECKING:
    from hashlight.engine.service.telemetry.metrics import Metrics

# Entry points of this group open the encoder in a folder; the engine itself has none.
OPENERS = "hashlight.image_encoders"
_MORE_THAN_CORES = 4


class ImageRefusedError(ValueError):
    """An image cannot be decoded, or has more pixels than are allowed."""


class VectorRefusedError(ValueError):
    """An embedding has other dimensions, or no code.

    Attributes
    ----------
    number : int
        Its place among the embeddings.
    reason : str
        What it has: "512 numbers, expected 768".
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"`vector` {number} has {reason}")
        self.number = number
        self.reason = reason


class Encoded(NamedTuple):
    """What an encoder returns for N images or embeddings.

    Attributes
    ----------
    codes : ndarray of uint64, shape (N, W)
    features : ndarray of float32, shape (N, F)
        Fine features, for re-ranking.
    projections : ndarray of float32, shape (N, B), or None
        The real numbers whose signs are the bits, for asymmetric order, if the encoder gives them.
    """

    codes: CodeArray
    features: NDArray[np.float32]
    projections: NDArray[np.float32] | None = None


class _Waiting(NamedTuple):
    """A decoded image, and the requests that it is of."""

    image: Any
    handled: tuple[Handled, ...]


_Row = tuple[NDArray[np.uint64], NDArray[np.float32], NDArray[np.float32] | None]  # of Encoded


class ImageEncoder(Protocol):
    """Makes codes from images. Thread-safe."""

    @property
    def bits(self) -> int:
        """Number of bits in a code."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the encoder."""
        ...

    @property
    def batch_size(self) -> int:
        """Number of images that are encoded as fast as one."""
        ...

    def decode(self, data: bytes, max_pixels: int, timeout_s: float | None = None) -> Any:
        """Return an image for `encode`, at the size of the model's input, because many may be waiting.

        Raises
        ------
        ImageRefusedError
            If `data` is not an image, is damaged, has more than `max_pixels` pixels, or takes too long; after
            `timeout_s` seconds nobody waits for it any more.
        """
        ...

    def encode(self, images: Sequence[Any]) -> Encoded:
        """Encode decoded images."""
        ...


class VectorEncoder(Protocol):
    """Makes codes from embeddings. Thread-safe."""

    @property
    def bits(self) -> int:
        """Number of bits in a code."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the encoder."""
        ...

    @property
    def dims(self) -> int:
        """Numbers in an embedding."""
        ...

    def encode_vectors(self, vectors_ND: NDArray[np.float32]) -> Encoded:
        """Encode embeddings (N, `dims`); ValueError if one of them has no code."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Makes codes from texts, as an encoder of images may do besides. Thread-safe."""

    @property
    def takes_texts(self) -> bool:
        """Whether the network embeds texts too."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Encoded:
        """Encode texts."""
        ...


Encoder = ImageEncoder | VectorEncoder


def takes_texts(encoder: object) -> TypeGuard[TextEncoder]:
    """Return whether an encoder makes codes from texts."""
    return isinstance(encoder, TextEncoder) and encoder.takes_texts


def takes_vectors(encoder: Encoder) -> TypeGuard[VectorEncoder]:
    """Return whether an encoder makes codes from embeddings, and not from images."""
    return hasattr(encoder, "encode_vectors")


def takes_images(encoder: Encoder) -> TypeGuard[ImageEncoder]:
    """Return whether an encoder makes codes from images."""
    return not takes_vectors(encoder)


def encode_vectors(encoder: VectorEncoder, vectors: Sequence[NDArray[np.float32]]) -> Encoded:
    """Encode embeddings, one after the other, so that what is wrong with one is said of that one.

    Raises
    ------
    VectorRefusedError
        Naming the first that has other dimensions, or no code.
    """
    found: list[Encoded] = []
    for place, vector in enumerate(vectors):
        if vector.shape != (encoder.dims,):
            raise VectorRefusedError(place, f"{len(vector)} numbers, expected {encoder.dims}, as embeddings here have")
        try:
            found.append(encoder.encode_vectors(vector[None]))
        except ValueError as error:
            raise VectorRefusedError(place, f"no code: {error}") from error
    given = [one.projections for one in found if one.projections is not None]
    return Encoded(
        np.concatenate([one.codes for one in found]),
        np.concatenate([one.features for one in found]),
        np.concatenate(given) if len(given) == len(found) else None,
    )


def is_encoder_of(encoder: Encoder, *, bits: int, fingerprint: str | None) -> bool:
    """Return whether an encoder made a collection's codes; without a fingerprint, whether it could have."""
    return encoder.bits == bits and fingerprint in (None, encoder.fingerprint)


def num_decoders() -> int:
    """Return how many images a server decodes at once.

    More than cores, so that a few images that take long do not keep others waiting; they share the cores with them.
    """
    return usable_cores() + _MORE_THAN_CORES


def open_encoder(folder: Path) -> Encoder | None:
    """Open the encoder of a collection; None if no installed package opens encoders.

    Raises
    ------
    MissingDependencyError
        If opening it needs a package of an extra that is not installed.
    """
    for opener in entry_points(group=OPENERS):
        try:
            encoder: Encoder = opener.load()(folder)
        except ModuleNotFoundError as error:
            raise missing(error, "searching by image") or error from error
        return encoder
    return None


class EncodingThreads:
    """Decodes and encodes in threads, the images of several requests together. Belongs to one event loop.

    Parameters
    ----------
    encoder : ImageEncoder
    max_pixels : int
        Limit for one image.
    metrics : Metrics
    """

    def __init__(self, encoder: ImageEncoder, *, max_pixels: int, metrics: Metrics) -> None:
        self.encoder = encoder
        self._max_pixels = max_pixels
        self._metrics = metrics
        self._decoders = ThreadPoolExecutor(num_decoders(), "hashlight-decode")
        self._encoders = ThreadPoolExecutor(1, "hashlight-encode")
        self._batcher: MicroBatcher[_Waiting, _Row] = MicroBatcher(self._encode_batch, batch_size=encoder.batch_size)

    def close(self) -> None:
        """Release the threads; work that has not started is dropped."""
        for pool in (self._decoders, self._encoders):
            pool.shutdown(wait=False, cancel_futures=True)

    async def encode(
        self, images: Sequence[bytes], fields: Sequence[str], timing_ms: dict[str, float], *, deadline_s: float
    ) -> Encoded:
        """Encode image files, by a deadline of `time.monotonic`.

        Raises
        ------
        RequestError
            Naming the one of `fields` whose image cannot be decoded.
        """
        loop = asyncio.get_running_loop()
        with self._metrics.stage("decode", timing_ms):
            jobs = [
                loop.run_in_executor(self._decoders, carried(functools.partial(self._decode, data, field, deadline_s)))
                for data, field in zip(images, fields, strict=True)
            ]
            decoded = await asyncio.gather(*jobs)
        with self._metrics.stage("encode", timing_ms):
            rows = await asyncio.gather(*[self._batcher.submit(_Waiting(image, current())) for image in decoded])
        codes, features, projections = zip(*rows, strict=True)
        given = [row for row in projections if row is not None]
        return Encoded(np.stack(codes), np.stack(features), np.stack(given) if len(given) == len(rows) else None)

    def _decode(self, data: bytes, field: str, deadline_s: float) -> Any:
        try:
            return self.encoder.decode(data, self._max_pixels, time_left(deadline_s))
        except ImageRefusedError as error:
            raise invalid(f"`{field}` cannot be decoded: {error}", field) from error

    def _encode(self, images: Sequence[Any]) -> Encoded:
        with shared_span("encode_batch", {"hashlight.images": len(images)}):
            return self.encoder.encode(images)

    async def _encode_batch(self, waiting: Sequence[_Waiting]) -> list[_Row]:
        self._metrics.encode_batch.observe(len(waiting))
        work = functools.partial(self._encode, [one.image for one in waiting])
        handled = {id(one): one for image in waiting for one in image.handled}
        with working_for(list(handled.values())):
            encoded = await asyncio.get_running_loop().run_in_executor(self._encoders, carried(work))
        projections = [None] * len(waiting) if encoded.projections is None else encoded.projections
        return list(zip(encoded.codes, encoded.features, projections, strict=True))
