"""Writes over HTTP: bodies become writes, images become codes, and what cannot be lost is answered."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import re
import time
from collections.abc import AsyncIterator

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray
from starlette.types import Message, Receive

from hashlight.engine.errors import DeadlineExceededError, HashlightError, NotReadyError
from hashlight.engine.service.api import bodies, changes, schemas
from hashlight.engine.service.api.gateway import Gateway, json_response
from hashlight.engine.service.asking.encoding import Encoded
from hashlight.engine.service.problems import RequestError, invalid, named
from hashlight.engine.writing.committing import Committer
from hashlight.engine.writing.keys import KeyReusedError
from hashlight.engine.writing.records import Change, Key
from hashlight.engine.writing.writes import Delete, DeleteWhere, Put

_LOOK_S = 0.02  # between looks whether a version is served

KEY_HEADER = "Idempotency-Key"
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


class ItemWriter:
    """Makes the writes of requests. Belongs to one event loop.

    Parameters
    ----------
    gateway : Gateway
        Whose limits, encoder and searcher are used.
    committer : Committer or None
        Closed here. Without one, every write is refused.
    """

    def __init__(self, gateway: Gateway, committer: Committer | None) -> None:
        self._gateway = gateway
        self._committer = committer

    @property
    def is_open(self) -> bool:
        """Whether writes are accepted."""
        return self._committer is not None

    async def close(self) -> None:
        """Commit what waits."""
        if self._committer is not None:
            await asyncio.to_thread(self._committer.close)

    async def put(self, request: Request) -> Response:
        """Store items."""
        arrived_s, committer = time.monotonic(), self._open_to(request)
        options = changes.options_of(request, schemas.PutOptions)
        deadline_s = arrived_s + self._gateway.timeout_s(options.timeout_ms)
        keyed = Keyed(request, options.on_conflict)
        given = await changes.read_items(
            keyed.request, await asyncio.to_thread(committer.live), self._gateway.limits, keyed.digest
        )
        async with self._commits(request, committer, options.wait, deadline_s, keyed) as commit:
            encoded, encoder = None, None
            if given.images:
                images = list(given.images.values())
                encoded, encoder = await self._gateway.encode_items(images, deadline_s)
            write = await asyncio.to_thread(
                _put_of, given, encoded, encoder, committer, replaces=options.on_conflict == "replace"
            )
            return await commit(write)

    async def update(self, request: Request) -> Response:
        """Change attributes of items."""
        arrived_s, committer = time.monotonic(), self._open_to(request)
        options = changes.options_of(request, schemas.WriteOptions)
        deadline_s = arrived_s + self._gateway.timeout_s(options.timeout_ms)
        keyed = Keyed(request)
        live = await asyncio.to_thread(committer.live)
        write = await changes.read_update(keyed.request, live, self._gateway.limits)
        async with self._commits(request, committer, options.wait, deadline_s, keyed) as commit:
            return await commit(write)

    async def delete(self, request: Request) -> Response:
        """Delete items."""
        arrived_s, committer = time.monotonic(), self._open_to(request)
        options = changes.options_of(request, schemas.WriteOptions)
        deadline_s = arrived_s + self._gateway.timeout_s(options.timeout_ms)
        keyed = Keyed(request)
        write = await changes.read_deletion(keyed.request, self._gateway.limits)
        async with self._commits(request, committer, options.wait, deadline_s, keyed) as commit:
            return await commit(write)

    def _open_to(self, request: Request) -> Committer:
        """Return the committer.

        Raises
        ------
        RequestError
            403 if this server only reads, or a page of another site sends the request: browsers send forms anywhere.
        """
        if self._committer is None:
            raise RequestError(
                403, "read_only", "this server only reads its collection: start it with `--writable` for writes"
            )
        refuse_other_sites(request)
        return self._committer

    @contextlib.asynccontextmanager
    async def _commits(
        self, request: Request, committer: Committer, wait: str | None, deadline_s: float, keyed: Keyed
    ) -> AsyncIterator[_Commit]:
        """Yield what commits a write of a request, within its time and the limits of all requests."""
        commit = _Commit(self._gateway, committer, wait, deadline_s, keyed)
        try:
            async with self._gateway.within(request, deadline_s):
                yield commit
        except DeadlineExceededError as error:
            if commit.begun:
                raise DeadlineExceededError(
                    "the write was not committed, or is not visible everywhere, within the time given, but may have "
                    "been made or be made yet: allow more (`timeout_ms`), and look, or write the same again"
                ) from error
            raise
        except KeyReusedError as error:
            raise invalid(str(error), KEY_HEADER) from error
        except (HashlightError, RequestError):
            raise
        except ValueError as error:
            raise named(error) from error
        except TypeError as error:
            raise invalid(str(error), None) from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            message = f"the collection cannot be written ({reason}): nothing of this request was stored, or all of it"
            raise RequestError(503, "not_written", message) from error


class _Commit:
    """Commits one write."""

    def __init__(
        self, gateway: Gateway, committer: Committer, wait: str | None, deadline_s: float, keyed: Keyed
    ) -> None:
        self.begun = False
        self._gateway, self._committer, self._wait, self._deadline_s = gateway, committer, wait, deadline_s
        self._keyed = keyed

    async def __call__(self, write: Change) -> Response:
        """Commit it, and answer with its number, and the version that has it as far as there is one."""
        submit, store = functools.partial(self._committer.submit, deadline_s=self._deadline_s), self._committer.store
        # In threads, because keys are looked up on the disk.
        future = await asyncio.to_thread(submit, write, key=self._keyed.key)
        try:
            made = await asyncio.wrap_future(future)
        finally:
            if future.cancelled():
                # Under a key others may wait for the same write, which is made all the same.
                self.begun = self._keyed.key is not None
            else:
                self.begun = not future.done() or future.exception() is None
        version = made.version if store.commits_first else None
        if self._wait is not None:
            version = await asyncio.wrap_future(await asyncio.to_thread(store.visible, made))
            while not self._is_served(version):
                await asyncio.sleep(_LOOK_S)
        return json_response({"version": version, "sequence": made.number, **_counts(write, made.deleted)})

    def _is_served(self, version: int) -> bool:
        try:
            return self._gateway.searcher.version >= version
        except NotReadyError:  # the write is made, whether there are shard servers or not
            return False


def _counts(write: Change, deleted: int | None) -> dict[str, int | None]:
    """Return what the answer to a deletion says besides."""
    if isinstance(write, Delete):
        return {"deleted": deleted, "not_found": None if deleted is None else len(np.unique(write.ids)) - deleted}
    return {"deleted": deleted} if isinstance(write, DeleteWhere) else {}


class Keyed:
    """A write as it is delivered: under which idempotency key, and what it asks for.

    Parameters
    ----------
    request : Request
    *more : str
        What else of it decides what it does.

    Attributes
    ----------
    request : Request
        The same; what is read of its body goes into the digest, if there is a key.
    digest : hashlib.sha256
        Of a form, whose boundaries differ from one delivery to the next, its reader adds what it has.

    Raises
    ------
    RequestError
        422 if the key is not one.
    """

    def __init__(self, request: Request, *more: str) -> None:
        self._text = request.headers.get(KEY_HEADER)
        if self._text is not None and not _KEY.fullmatch(self._text):
            raise invalid(f"`{KEY_HEADER}` must be 1 to 128 visible ASCII characters", KEY_HEADER)
        kind = bodies.media_type(request)
        self.digest = hashlib.sha256("\0".join([request.method, kind, *more, ""]).encode())
        self.request = request
        if self._text is not None and kind != bodies.FORM:
            self.request = Request(request.scope, self._receive(request.receive))

    @property
    def key(self) -> Key | None:
        """The key and the digest, once the body was read."""
        return None if self._text is None else Key(self._text, self.digest.hexdigest())

    def _receive(self, receive: Receive) -> Receive:
        async def read() -> Message:
            message = await receive()
            self.digest.update(message.get("body", b""))
            return message

        return read


def _put_of(
    given: changes.Given, encoded: Encoded | None, encoder: str | None, committer: Committer, *, replaces: bool
) -> Put:
    """Return items with the codes and features that were made of their images."""
    codes_NW, made = given.codes, dict[int, NDArray[np.float32]]()
    if encoded is not None:
        numbers = list(given.images)
        codes_NW = codes_NW.copy()
        if encoded.codes.shape[1] != codes_NW.shape[1]:
            raise RequestError(503, "not_ready", "the collection was replaced while images were encoded: try again")
        codes_NW[numbers] = encoded.codes
        made = dict(zip(numbers, encoded.features, strict=True))
    features = changes.features_of(given, made, committer.live())
    return Put(codes_NW, given.ids, given.attributes, features, given.thumbnails, replaces, encoder)


def refuse_other_sites(request: Request) -> None:
    """Raise RequestError (403) if a page of another site sends a request: browsers send forms anywhere."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise RequestError(403, "forbidden", "a page of another site may not write", field="origin")
