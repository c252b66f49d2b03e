"""The certificates of a shard server, taken up when their files change."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

import pyarrow as pa

from hashlight.engine.places.files import stamp_of
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.shards.server import ShardServer

logger = logging.getLogger(__name__)

LOOK_S = 1.0


@contextlib.contextmanager
def renewing(server: ShardServer, security: Security, *, look_s: float = LOOK_S) -> Iterator[None]:
    """Look at the files of a server's certificates in a thread of its own, as long as the context is open.

    Files that cannot be used, as between the replacement of a certificate and that of its key, are logged once, and
    the certificates that were read before stay in use.
    """
    if not security.files or security.certificate is None:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(
        target=_look, args=(server, security, look_s, ended), name="hashlight-certificates", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _look(server: ShardServer, security: Security, look_s: float, ended: threading.Event) -> None:
    stamps: object = None  # the files may have changed since they were read
    while not ended.wait(look_s):
        found = [None if path is None else stamp_of(path) for path in security.files]
        if found == stamps:
            continue
        stamps = found
        try:
            renewed = security.renewed()
            if renewed != security:
                server.renew(renewed)
                logger.info("the certificate of %s was read from %s", server.address, security.files[0])
            security = renewed
        except (OSError, ValueError, pa.ArrowException) as error:
            logger.warning("the certificate of %s stays the one that was read before: %s", server.address, error)
