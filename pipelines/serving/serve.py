"""Serve a collection over HTTP."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hashlight.engine.cache.cache import Progress
from hashlight.engine.collection.collection import Collection
from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.indexes.warmup import warm
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.encoding import ImageEncoder
from hashlight.engine.service.asking.following import Follower, Pending
from hashlight.engine.service.asking.searcher import CollectionSearcher, Searcher
from hashlight.engine.service.door.fetch import ImageFetcher
from hashlight.engine.service.door.http_server import LOOPBACK_NAMES, Address, HttpServer, check_exposure
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.telemetry.metrics import Metrics
from hashlight.engine.writing.committing import Committer


@contextlib.contextmanager
def serve_embedded(
    path: str | Path,
    address: Address,
    keys: Keys,
    *,
    encoder: str | Path | None = None,
    limits: Limits | None = None,
    image_hosts: Sequence[str] = (),
    insecure: bool = False,
    index: IndexChoice = "auto",
    writable: bool = False,
    metrics: Metrics | None = None,
    progress: Progress | None = None,
) -> Iterator[HttpServer]:
    """Open a collection in this process and bind a gateway to it; call `run()` on what this yields to serve.

    Kernels are compiled and a test search is made first. A new version of the collection is picked up when it is
    published, without failing a query. `index` is the index that answers, and `progress` is told what is fetched from a
    bucket, as in `Collection.open`. With `writable` it accepts writes, each of which is searched before it is answered.
    `metrics` is where requests are counted.

    Raises
    ------
    ValueError
        If other machines could query without a key and `insecure` is not set.
    EncoderMismatchError
        If `encoder` is not the one that made the codes.
    """
    check_exposure(address, keys, insecure=insecure)
    collection = Collection.open(path, index=index, progress=progress)
    searcher = CollectionSearcher(collection)
    model = encoder_of(collection, encoder)
    follower = Follower(path, searcher.renew)
    with writing(path, searcher.renew) if writable else contextlib.nullcontext() as committer:
        server = bind_gateway(
            searcher,
            model,
            address,
            keys,
            limits=limits,
            image_hosts=image_hosts,
            metrics=metrics,
            pending=lambda: follower.pending,
            committer=committer,
        )
        warm()
        searcher.ready()
        # As long as the process lives.
        threading.Thread(target=follower.follow, args=(threading.Event(),), name="hashlight-renew", daemon=True).start()
        yield server


@contextlib.contextmanager
def writing(path: str | Path, renew: Callable[[], object], *, gather_s: float = 0.0) -> Iterator[Committer]:
    """Yield what commits writes to a collection.

    Parameters
    ----------
    path : str or Path
    renew : callable
        Called when there is a new version.
    gather_s : float
        As in `engine.writing.committing.Committer`.
    """

    def committed(_: int) -> None:
        renew()

    with contextlib.closing(Committer(path, gather_s=gather_s, committed=committed)) as committer:
        yield committer


def bind_gateway(
    searcher: Searcher,
    encoder: ImageEncoder | None,
    address: Address,
    keys: Keys,
    *,
    limits: Limits | None = None,
    image_hosts: Sequence[str] = (),
    metrics: Metrics | None = None,
    scale: Callable[[int], None] | None = None,
    pending: Callable[[], Pending | None] | None = None,
    committer: Committer | None = None,
) -> HttpServer:
    """Bind a gateway to `address`, with the checks that its exposure requires."""
    limits = limits or Limits()
    app = create_app(
        searcher,
        encoder=encoder,
        keys=keys,
        limits=limits,
        fetcher=ImageFetcher(image_hosts, max_bytes=limits.body_bytes) if image_hosts else None,
        metrics=metrics,
        scale=scale,
        pending=pending,
        committer=committer,
        allowed_hosts=LOOPBACK_NAMES if not keys and address.is_loopback else None,
    )
    return HttpServer(app, address)


def encoder_of(collection: Collection, encoder: str | Path | None) -> ImageEncoder | None:
    """Load the encoder of a collection; None if neither the collection nor the caller has one.

    Raises
    ------
    EncoderMismatchError
        If `encoder` is not the one that made the codes.
    """
    if encoder is None and collection.encoder_path is None:
        return None
    # Imported here, so that a collection without an encoder is served without torch.
    from hashlight.pipelines.searching.search import load_encoder
    from hashlight.pipelines.serving.image_encoder import HashImageEncoder

    return HashImageEncoder.for_server(load_encoder(collection, encoder))
