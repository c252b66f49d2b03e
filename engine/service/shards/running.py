"""A shard server as a process: it begins to listen, keeps to the live version, and ends when it is told to."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.indexes.warmup import warm
from hashlight.engine.service.asking.following import LOOK_S
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.shards.keeping import Keeper
from hashlight.engine.service.shards.renewing import renewing
from hashlight.engine.service.shards.server import ShardServer

DELAY_S = 5.0


@contextmanager
def shard_server(
    collection: str | Path,
    *,
    group: int,
    groups: int,
    host: str = "127.0.0.1",
    port: int = 0,
    advertise: str | None = None,
    security: Security | None = None,
    index: IndexChoice = "auto",
    poll_s: float = LOOK_S,
    faults: bool = False,
) -> Iterator[ShardServer]:
    """Yield a server of one group of a collection that serves its live version, and follows it.

    Parameters
    ----------
    collection : str or Path
    group, groups : int
        Which of how many groups; the first is 1.
    host, port, security, index, faults
        As of `ShardServer`.
    advertise : str, optional
        `HOST:PORT` under which others reach it, if not where it listens.
    poll_s : float
        Between looks at the live version.

    Raises
    ------
    ValueError
        If there is no such group, or other machines could query without a token.
    HashlightError, OSError
        If the live version cannot be served.
    """
    server = ShardServer(
        collection, host=host, port=port, advertise=advertise, security=security, index=index, faults=faults
    )
    keeper = Keeper(server, collection, group=group, groups=groups, look_s=poll_s)
    warm()
    with keeper.following(), renewing(server, security or Security()):
        yield server


def serve_until_told(
    server: ShardServer,
    *,
    delay_s: float = DELAY_S,
    ready: Callable[[], None],
    ended: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT, drain, and end the process; `ready` is called first, and `ended` after the drain.

    Parameters
    ----------
    server : ShardServer
    delay_s : float
        As of `ShardServer.drain`; SIGINT and a second signal do not wait for it.
    ready, ended : callable
    """
    told, hurried = threading.Event(), threading.Event()

    def end(number: int, _: object) -> None:
        if number == signal.SIGINT or told.is_set():
            hurried.set()
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    ready()
    told.wait()
    whole = server.drain(delay_s, hurried=hurried)
    ended()
    logging.shutdown()
    sys.stdout.flush()
    # Accepted requests are answered; open streams of routers would block a clean shutdown.
    os._exit(0 if whole else 1)
