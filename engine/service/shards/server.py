"""A shard server: keeps groups of shards open and answers over Arrow Flight.

Requests arrive over `DoExchange` streams (`engine.service.protocol.wire`), go into a bounded queue and are answered by
as many threads as there are cores. A request for shards that it does not serve, or that finds the queue full, is
refused at once; one that waited past its deadline is dropped. `DoAction` asks it about itself: `health`, `ready`,
`describe`, and what `offer` adds. Nobody orders it to serve something: `engine.service.shards.keeping` does that.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.flight as flight

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import DeadlineExceededError, HashlightError, NotReadyError, OverloadedError
from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.indexes.stopping import Stop, StoppedError, until
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.service.asking.following import Pending
from hashlight.engine.service.asking.searcher import describe_collection, try_search
from hashlight.engine.service.protocol.cluster_map import Assignment, ServerName, open_group
from hashlight.engine.service.protocol.exposure import is_loopback
from hashlight.engine.service.protocol.security import TOKEN_VARIABLE, Security
from hashlight.engine.service.protocol.wire import (
    COMMAND,
    PROTOCOLS,
    Kind,
    OtherServerError,
    Request,
    Status,
    VersionNotServedError,
    encode_error,
    encode_hello,
    pages,
)
from hashlight.engine.service.shards.answering import answer
from hashlight.engine.service.telemetry.requests import shared_span, told_by, working_for

logger = logging.getLogger(__name__)

QUEUE_SIZE = 256
DRAIN_S = 20.0

_MAX_PAGES_BEHIND = 4096  # 4 GB: the router has stopped reading
_FREE_S = 0.01  # between attempts to listen where another door has just closed
_SMOOTHING = 0.05  # weight of the latest request in the running mean


class Observer(Protocol):
    """Is told of every request that was answered ("ok", "error") or refused."""

    def __call__(self, kind: str, status: str, *, waited_s: float, seconds: float) -> None:
        """Take note of it."""
        ...


class _Served:
    """Open shards, what they were opened for, and when they were last asked, on the clock of `time.monotonic`."""

    __slots__ = ("asked_s", "assignment", "group")

    def __init__(self, assignment: Assignment, group: Collection) -> None:
        self.assignment, self.group, self.asked_s = assignment, group, float("-inf")


class ShardServer(flight.FlightServerBase):  # type: ignore[misc]
    """Answers for groups of shards of one or more versions of a collection.

    Parameters
    ----------
    collection : str or Path
    host : str
        Interface to listen on.
    port : int
        0 for a free one.
    advertise : str, optional
        `HOST:PORT` for others to connect to, if not where it listens.
    security : Security, optional
        Must have a token if other machines can reach `host`.
    workers : int, optional
        Number of requests answered in parallel; by default one for each core.
    queue_size : int
        Maximum number of waiting requests.
    index : str
        The index that answers, as in `Collection.open`.
    faults : bool
        Whether to offer the action `fault`, which slows every answer down, for tests of routers.

    Raises
    ------
    ValueError
        If other machines could query without a token, or `host` cannot be resolved.
    """

    def __init__(
        self,
        collection: str | Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        security: Security | None = None,
        workers: int | None = None,
        queue_size: int = QUEUE_SIZE,
        index: IndexChoice = "auto",
        faults: bool = False,
    ) -> None:
        security = security or Security()
        if not security.token and not is_loopback(host, port):
            raise ValueError(
                f"{host} can be reached from other machines, and there is no token: give one ({TOKEN_VARIABLE}), or "
                "listen on 127.0.0.1"
            )
        super().__init__(f"{security.scheme}://{_url_host(host)}:{port}", **security.server_options())
        reached_at = advertise or f"{_url_host(host)}:{self.port}"
        self.name = ServerName(f"{security.scheme}://{reached_at}", secrets.token_hex(8))
        self.address = self.name.address
        self._listens_at = f"{security.scheme}://{_url_host(host)}:{self.port}"
        self._door: flight.FlightServerBase = self  # which accepts connections
        self._location = collection
        self._index = index
        self._served: dict[str, _Served] = {}  # by identity
        self._loading = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._queue_size = queue_size
        self._streams: set[_Stream] = set()
        self._draining, self._leaving = threading.Event(), threading.Event()
        self._actions: dict[str, Callable[..., dict[str, Any]]] = {}
        self._faults = faults
        self._delay_s = 0.0
        self._mean_s = 1e-3
        self._taken = 0  # requests waiting or in progress
        self._received_bytes = self._sent_bytes = 0
        self._counting = threading.Lock()
        self._observe: Observer | None = None
        self._pending: Callable[[], Pending | None] = lambda: None
        self._workers = [
            threading.Thread(target=self._work, name=f"hashlight-shard-{number}", daemon=True)
            for number in range(workers or max(2, usable_cores()))
        ]
        for worker in self._workers:
            worker.start()

    def load(self, version: int, manifest: str, shards: Sequence[str]) -> dict[str, Any]:
        """Open shards of a version beside the open ones, search each, then serve them; return what is served.

        The arguments are those of an `Assignment`.

        Raises
        ------
        CollectionNotFoundError, CorruptDataError, NotReadyError, ValueError
            As in `open_group` and `try_search`; what was served before stays in service.
        """
        assignment = Assignment(version, manifest, tuple(shards))
        with self._loading:  # so that two orders for the same shards open them once
            if assignment.identity not in self._served:
                known = [served.group for served in self._served.values()]
                group = open_group(self._location, assignment, index=self._index, reuse=known)
                try_search(group)
                with self._counting:
                    self._served = {**self._served, assignment.identity: _Served(assignment, group)}
        return self.describe()

    def drop(self, manifest: str) -> dict[str, Any]:
        """Stop serving the version with this manifest digest; its accepted requests are still answered."""
        with self._counting:
            self._served = {key: one for key, one in self._served.items() if one.assignment.manifest != manifest}
        return self.describe()

    def group_of(self, identity: str) -> Collection:
        """Return the open shards of an identity; KeyError if they are not served."""
        return self._served[identity].group

    def idle_s(self, manifest: str) -> float:
        """Return for how many seconds no request has asked for the version with this manifest digest."""
        asked_s = [one.asked_s for one in self._served.values() if one.assignment.manifest == manifest]
        return time.monotonic() - max(asked_s, default=float("-inf"))

    def renew(self, security: Security) -> None:
        """Give new connections other certificates; those that are open go on, with their requests.

        For about a millisecond, in which connections are tried again, nothing listens.

        Raises
        ------
        pyarrow.ArrowException
            If they cannot be used; those in use stay.
        """
        _Door(f"{security.scheme}://127.0.0.1:0", self, security).shutdown()
        # It stops to listen at once, and returns when the last of its connections has ended.
        threading.Thread(target=_close, args=(self._door,), name="hashlight-old-door", daemon=True).start()
        while True:
            try:
                self._door = _Door(self._listens_at, self, security)
                return
            except (pa.ArrowException, OSError) as error:
                logger.info("%s is not free yet: %s", self._listens_at, error)
                time.sleep(_FREE_S)

    def shutdown(self) -> None:
        """Stop to listen, and wait until every connection has ended."""
        if self._door is not self:
            self._door.shutdown()
        super().shutdown()

    def offer(self, actions: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
        """Answer further actions, by their names."""
        self._actions |= actions

    def observe_by(self, observer: Observer) -> None:
        """Call `observer` with every answered or refused request."""
        self._observe = observer

    def pending_by(self, pending: Callable[[], Pending | None]) -> None:
        """Learn from `pending` which version is published and cannot be served."""
        self._pending = pending

    def stats(self) -> dict[str, float]:
        """Return statistics for operators: of requests, bytes, and the versions that are served."""
        served = [(one.assignment.version, len(one.assignment.shards)) for one in self._served.values()]
        version, shards = max(served, default=(0, 0))
        pending = self._pending()
        return {
            "received_bytes": self._received_bytes,
            "sent_bytes": self._sent_bytes,
            "in_flight_requests": self._taken,
            "waiting_requests": self._jobs.qsize(),
            "open_shards": shards,
            "served_version": version,
            "served_versions": len({version for version, _ in served}),
            "published_version": version if pending is None or pending.version is None else pending.version,
            "pending_attempts": 0 if pending is None else pending.attempts,
            "draining": float(self.draining),
        }

    @property
    def draining(self) -> bool:
        """Whether it is to end, and is not to be asked if another can be."""
        return self._draining.is_set()

    def describe(self) -> dict[str, Any]:
        """Return what is served, by identity, and the numbers of waiting and of unanswered requests."""
        served = {identity: (one.assignment, one.group) for identity, one in self._served.items()}
        groups = {
            identity: {
                "version": assignment.version,
                "manifest": assignment.manifest,
                "shards": {shard.name: len(shard) for shard in group.shards},
                "about": describe_collection(group),
            }
            for identity, (assignment, group) in served.items()
        }
        return {**self.health(), "groups": groups, "waiting": self._jobs.qsize(), "taken": self._taken}

    def health(self) -> dict[str, Any]:
        """Report that the process is alive, which server it is, what it serves, and whether it accepts requests."""
        return {
            "status": "draining" if self.draining else "serving",
            **self.name._asdict(),
            "pid": os.getpid(),
            "served": list(self._served),
        }

    def ready(self) -> dict[str, Any]:
        """Search in every shard.

        Raises
        ------
        NotReadyError
            If there is none, one does not find its own codes, or the server is shutting down.
        """
        if self.draining or not self._served:
            raise NotReadyError(
                f"{self.address} serves no shards" if not self._served else f"{self.address} is shutting down"
            )
        for served in self._served.values():
            try_search(served.group)
        return self.health()

    def drain(
        self, delay_s: float = 0.0, timeout_s: float = DRAIN_S, *, hurried: threading.Event | None = None
    ) -> bool:
        """Tell the routers, go on for a while, accept no more, answer what was accepted; return whether all was.

        Parameters
        ----------
        delay_s : float
            How long requests are accepted still: those of routers that have not heard yet, or know no other server.
        timeout_s : float
            For what was accepted, after that.
        hurried : Event, optional
            Ends the delay.
        """
        self._draining.set()
        for stream in tuple(self._streams):
            stream.send(Status.LEAVING, 0, 0, b"")
        (hurried or threading.Event()).wait(delay_s)
        with self._counting:
            self._leaving.set()
        until_s = time.monotonic() + timeout_s
        while self._taken or any(stream.behind for stream in tuple(self._streams)):
            if time.monotonic() > until_s:
                return False
            time.sleep(0.01)
        return True

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Serve the requests of one router until it closes the stream."""
        if descriptor.command != COMMAND:
            raise ValueError(f"expected an exchange of {COMMAND!r}, got {descriptor.command!r}")
        stream = _Stream(writer)
        self._streams.add(stream)
        if self.draining:
            stream.send(Status.LEAVING, 0, 0, b"")
        try:
            for frame in _frames(reader):
                with self._counting:
                    self._received_bytes += len(frame)
                self._take(stream, Request.decode(frame))
        finally:
            self._streams.discard(stream)
            stream.close()

    def do_action(self, context: Any, action: Any) -> list[bytes]:
        """Answer a control action with "ok" or "error", and JSON.

        The argument `instance` of any action is that of the server it is meant for.
        """
        body = action.body.to_pybytes()
        arguments = json.loads(body) if body else {}
        acts: Mapping[str, Any] = {
            "health": self.health,
            "ready": self.ready,
            "describe": self.describe,
            **self._actions,
            **({"fault": self._fault} if self._faults else {}),
        }
        if action.type not in acts:
            raise ValueError(f"expected one of the actions {', '.join(acts)}, got {action.type!r}")
        try:
            self._check_meant(arguments.pop("instance", self.name.instance))
            return [b"ok", json.dumps(acts[action.type](**arguments)).encode()]
        except (HashlightError, TypeError, ValueError, OSError) as error:
            logger.warning("%s %s: %s", action.type, arguments, error)
            return [b"error", encode_error(error)]

    def _check_meant(self, instance: str) -> None:
        if instance != self.name.instance:
            raise OtherServerError(
                f"{self.address} belongs to server {self.name.instance}, not to {instance}: that one has ended"
            )

    def _fault(self, delay_s: float) -> dict[str, Any]:
        self._delay_s = delay_s
        return self.health()

    def _take(self, stream: _Stream, request: Request) -> None:
        """Queue a request, or answer it at once if it needs no shard."""
        if request.kind is Kind.PING:
            stream.send(Status.OK, request.id, 0, encode_hello(), protocol=request.protocol)
        elif request.kind is Kind.CANCEL:
            stream.cancel(request.id)
        else:
            try:
                self._queue(stream, request)
            except HashlightError as refusal:
                self._note(request, "refused", 0.0, 0.0)
                stream.send(Status.ERROR, request.id, request.version, encode_error(refusal), protocol=request.protocol)

    def _queue(self, stream: _Stream, request: Request) -> None:
        """Queue a request; errors as in `_group_for`."""
        with self._counting:  # so that `drain` waits for every request that is not refused
            group = self._group_for(request)
            self._taken += 1
        job = _Job(stream, request, group, time.monotonic())
        stream.waiting[request.id] = job
        self._jobs.put(job)

    def _group_for(self, request: Request) -> Collection:
        """Return the shards that a request needs.

        Raises
        ------
        NotReadyError, VersionNotServedError, OverloadedError
            If it is refused.
        """
        if self._leaving.is_set():
            raise NotReadyError(f"{self.address} is shutting down: ask another replica")
        served = self._served.get(request.identity)
        if served is None:
            raise VersionNotServedError(
                f"{self.address} does not have these shards of version {request.version} (identity "
                f"{request.identity}), but {self._what_is_served()}: either it has moved to another version, or the "
                "collection was built again, or the address belongs to another server by now"
            )
        waiting = self._jobs.qsize()
        if waiting >= self._queue_size:
            raise OverloadedError(
                f"{self.address} has {waiting} requests waiting: try again later",
                retry_after_s=waiting * self._mean_s / len(self._workers),
            )
        served.asked_s = time.monotonic()
        return served.group

    def _what_is_served(self) -> str:
        served = [(identity, one.assignment) for identity, one in self._served.items()]
        return "; ".join(
            f"{len(shards)} shards of version {version} (identity {identity}, manifest {manifest[:16]}…)"
            for identity, (version, manifest, shards) in served
        ) or "none at all"  # fmt: skip

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._answer(job)
            except Exception:  # whatever the error, the server must go on
                logger.exception("request %s was not answered", job.request.kind.name)
            finally:
                with self._counting:
                    self._taken -= 1

    def _answer(self, job: _Job) -> None:
        started_s = time.monotonic()
        if not job.stream.begin(job):
            return
        request, handled = job.request, told_by(job.request.context)
        try:
            about = {"hashlight.rows": len(request.values), "hashlight.version": request.version}
            with working_for(handled), shared_span(f"shard {request.kind.name.lower()}", about, kind="SERVER"):
                status, body = self._outcome(job, started_s)
                seconds = time.monotonic() - started_s
                self._note(request, status.name.lower(), started_s - job.taken_s, seconds, body)
        finally:
            job.stream.running.pop(request.id, None)
        self._mean_s += _SMOOTHING * (seconds - self._mean_s)
        job.stream.send(status, request.id, request.version, body, seconds, protocol=request.protocol)

    def _note(self, request: Request, status: str, waited_s: float, seconds: float, body: bytes = b"") -> None:
        """Count a request that is answered, or refused, and log it if that is wished."""
        kind = request.kind.name.lower()
        with self._counting:
            self._sent_bytes += len(body)
        if self._observe is not None:
            self._observe(kind, status, waited_s=waited_s, seconds=seconds)
        if logger.isEnabledFor(logging.DEBUG):
            fields = {
                "kind": kind, "status": status, "rows": len(request.values), "version": request.version,
                "wait_ms": round(1000 * waited_s, 3), "ms": round(1000 * seconds, 3), "bytes_out": len(body),
            }  # fmt: skip
            logger.debug("%s: %s in %.3f ms", kind, status, 1000 * seconds, extra={"fields": fields})

    def _outcome(self, job: _Job, now_s: float) -> tuple[Status, bytes]:
        try:
            if now_s >= job.deadline_s:
                raise DeadlineExceededError(f"the request waited at {self.address} past its deadline")
            if self._delay_s:
                time.sleep(self._delay_s)
            message = f"the request was not answered at {self.address} by its deadline"
            with until(job.deadline_s, job.stop, message):
                return Status.OK, answer(job.group, job.request)
        except Exception as error:  # whatever the error, the router must hear of it and the server must go on
            if not isinstance(error, HashlightError | TypeError | ValueError):
                logger.exception("request %s failed", job.request.kind.name)
            return Status.ERROR, encode_error(error)


class _Door(flight.FlightServerBase):  # type: ignore[misc]
    """Accepts connections to a server with other certificates than it began with."""

    def __init__(self, address: str, server: ShardServer, security: Security) -> None:
        super().__init__(address, **security.server_options())
        self._server = server

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Pass an exchange on."""
        self._server.do_exchange(context, descriptor, reader, writer)

    def do_action(self, context: Any, action: Any) -> list[bytes]:
        """Pass an action on."""
        return self._server.do_action(context, action)


def _close(door: flight.FlightServerBase) -> None:
    flight.FlightServerBase.shutdown(door)


class _Job:
    """A request, and what ends it."""

    __slots__ = ("deadline_s", "group", "request", "stop", "stream", "taken_s")

    def __init__(self, stream: _Stream, request: Request, group: Collection, taken_s: float) -> None:
        self.stream, self.request, self.group, self.taken_s = stream, request, group, taken_s
        self.deadline_s = taken_s + request.timeout_s
        self.stop = Stop()


class _Stream:
    """The stream back to one router.

    Whichever thread finds the stream free writes all waiting frames, including those of others, so that a slow reader
    blocks only one thread.
    """

    def __init__(self, writer: Any) -> None:
        self.waiting: dict[int, _Job] = {}
        self.running: dict[int, _Job] = {}
        self.closed = False
        self._writer = writer
        self._frames: collections.deque[bytes] = collections.deque()
        self._writing = threading.Lock()

    @property
    def behind(self) -> int:
        """Number of frames waiting or being written."""
        return len(self._frames) + self._writing.locked()

    def send(
        self,
        status: Status,
        id_: int,
        version: int,
        body: bytes,
        seconds: float = 0.0,
        *,
        protocol: int = PROTOCOLS[0],  # which every router reads, of whom nothing is known before its first request
    ) -> None:
        """Write an answer page by page."""
        self._frames.extend(pages(status, id_, version, body, seconds, protocol=protocol))
        if len(self._frames) > _MAX_PAGES_BEHIND:
            logger.warning("a router has stopped reading, %d pages behind: closing its stream", len(self._frames))
            self.give_up()
        while self._frames and self._writing.acquire(blocking=False):
            try:
                with contextlib.suppress(IndexError):  # the last one was written, or all were dropped meanwhile
                    while True:
                        self._write(self._frames.popleft())
            finally:
                self._writing.release()

    def begin(self, job: _Job) -> bool:
        """Return whether a request is to be answered still; it can be ended from now on."""
        self.running[job.request.id] = job
        if self.waiting.pop(job.request.id, None) is not None and not self.closed:
            return True
        del self.running[job.request.id]
        return False

    def cancel(self, id_: int) -> None:
        """Drop a request, or end it if it has begun."""
        if self.waiting.pop(id_, None) is None and (job := self.running.get(id_)) is not None:
            job.stop.set(StoppedError("the router does not wait for this answer any more"))

    def close(self) -> None:
        """Wait for the current writer, then forbid writing: gRPC aborts the process on a frame after the call."""
        self.give_up()
        with self._writing:
            self._writer = None

    def give_up(self) -> None:
        """Drop waiting frames; the router is gone."""
        self.closed = True
        self.waiting.clear()
        for job in tuple(self.running.values()):
            job.stop.set(StoppedError("the router is gone"))
        self._frames.clear()

    def _write(self, frame: bytes) -> None:
        if self.closed:
            return
        try:
            self._writer.write_metadata(pa.py_buffer(frame))
        except (flight.FlightError, pa.ArrowException, OSError) as error:
            logger.info("a router is gone: %s", error)
            self.give_up()


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _frames(reader: Any) -> Iterator[memoryview]:
    """Read frames until the stream ends, cleanly or by a broken connection."""
    while True:
        try:
            chunk = reader.read_chunk()
        except StopIteration:
            return
        except (flight.FlightError, pa.ArrowException, OSError) as error:
            logger.info("a router is gone: %s", error)
            return
        yield memoryview(chunk.app_metadata or b"")
