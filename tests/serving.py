"""Shared by the tests of serving: a collection of real images, an encoder that needs no training, running servers."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from hashlight.engine.codes import pack_bits
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.service.asking.encoding import Encoded, ImageRefusedError
from hashlight.engine.service.door.http_server import HEAD_S, MAX_CONNECTIONS, Address, HttpServer
from hashlight.engine.writing.buffering import Buffer, Gathering
from hashlight.engine.writing.committing import Committer
from hashlight.engine.writing.opened import Opened

BITS = 60  # not whole bytes, not whole words


class AverageHash:
    """Codes of the 60 first pixels of an 8 x 8 thumbnail, compared with their mean; those pixels are its features."""

    bits = BITS
    fingerprint = "average-hash"
    batch_size = 4

    def __init__(self) -> None:
        self.batches: list[int] = []

    def decode(self, data: bytes, max_pixels: int, timeout_s: float | None = None) -> np.ndarray:
        try:
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > max_pixels:
                raise ImageRefusedError(f"too many pixels: {image.width} x {image.height}")
            return np.asarray(image.convert("L").resize((8, 8)), np.float32)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
            raise ImageRefusedError(f"not an image: {error}") from error

    def encode(self, images) -> Encoded:
        self.batches.append(len(images))
        pixels = np.stack(images).reshape(len(images), 64)[:, :BITS]
        above = pixels - pixels.mean(axis=1, keepdims=True)
        # Whole numbers, so that sums of them are exact.
        return Encoded(pack_bits(above > 0), pixels, 2 * np.floor(above) + 1)


class Named(AverageHash):
    """Knows two words, each of which stands for a stored code."""

    takes_texts = True
    words: ClassVar = {"stripes": 3, "dots": 8}

    def __init__(self, codes: np.ndarray) -> None:
        super().__init__()
        self._codes = codes

    def encode_texts(self, texts) -> Encoded:
        codes = np.stack([self._codes[self.words[text]] for text in texts])
        return Encoded(codes, np.zeros((len(texts), 4), np.float32))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_pictures(count: int) -> list[np.ndarray]:
    """Grey pictures (16, 16) of a few shapes with some noise, so that codes are near each other and tie."""
    rng = np.random.default_rng(3)
    shapes = rng.integers(256, size=(7, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
    noise = rng.integers(-60, 60, size=(count, 16, 16))
    return list((shapes[np.arange(count) % 7] + noise).clip(0, 255).astype(np.uint8))


def make_collection(folder, count: int = 500, shards: int = 3) -> Collection:
    """Pictures with attributes of several kinds, thumbnails and features, under unordered ids."""
    pictures = make_pictures(count)
    encoded = AverageHash().encode([AverageHash().decode(png(picture), 10**6) for picture in pictures])
    ids = np.random.default_rng(8).permutation(10_000)[:count]
    attributes = pa.table(
        {
            "label": [number % 7 for number in range(count)],
            "name": [None if number % 5 == 0 else f'picture <{number}> & "é"' for number in range(count)],
            "price": [float("nan") if number % 11 == 0 else number / 3 for number in range(count)],
        }
    )
    thumbnails = pa.array([None if number % 9 == 0 else png(picture) for number, picture in enumerate(pictures)])
    with Transaction(folder, fresh=Fresh(BITS, AverageHash.fingerprint)) as writer:
        writer.add(encoded.codes, ids, attributes, encoded.features.astype(np.float16), thumbnails, shards)
        writer.commit()
    collection = Collection.open(folder)
    warm_up(collection)
    return collection


def warm_up(collection: Collection) -> None:
    """Compile the kernels that queries of these tests need, which takes longer than a request may."""
    queries = np.ascontiguousarray(collection.shards[0].codes_NW[:8])
    for number in (1, 8):
        for more in ({}, {"filter": "label is not null"}):
            collection.search(queries[:number], 5, **more)
            for radius, limit in ((2, None), (2, 3), (collection.bits, None), (collection.bits, 3)):
                collection.range_search(queries[:number], radius, limit, **more)


def committer_of(folder, searcher, *, gather_s: float = 0.0, log=None, **gathering) -> Committer:
    """What makes the writes of a server that answers by `searcher`; ended by the application, or by `close`."""
    store = Buffer(Collection.open(folder), Opened(folder, log), searcher.show, gathering=Gathering(**gathering))
    searcher.recall_by(store.recall)
    return Committer(store, gather_s=gather_s)


@contextlib.contextmanager
def running(app, *, head_s: int = HEAD_S, max_connections: int = MAX_CONNECTIONS, **address) -> Iterator[str]:
    """Serve an application on a free port of this machine; yields its URL."""
    server = HttpServer(app, Address(port=0, **address), head_s=head_s, max_connections=max_connections)
    with run_server(server) as url:
        yield url


@contextlib.contextmanager
def run_server(server: HttpServer) -> Iterator[str]:
    """Run a server that is bound to its address; yields its URL."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.url
    finally:
        server.stop()
        thread.join()
