"""A shard server: a process that keeps a group of shards open and answers over Arrow Flight.

    python -m hashlight.engine.service.shards.server COLLECTION --version 3 --shards NAME,NAME

It prints its `health` as one line of JSON once it has answered a test search. Requests arrive over `DoExchange`
streams (`engine.service.protocol.wire`), go into a bounded queue and are answered by as many threads as there are
cores. A request for shards that it does not serve, or that finds the queue full, is refused at once; one that waited
past its deadline is dropped. `DoAction` controls it: `health`, `ready`, `describe`, `load`, `drop`.

SIGTERM, or the end of its standard input, drains it: it tells the routers, answers accepted requests, and exits.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import os
import queue
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.flight as flight

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import DeadlineExceededError, HashlightError, NotReadyError, OverloadedError
from hashlight.engine.indexes.choice import INDEX_CHOICES, IndexChoice
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.indexes.warmup import warm
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.asking.searcher import describe_collection, try_search
from hashlight.engine.service.protocol.cluster_map import Assignment, ServerName, open_group
from hashlight.engine.service.protocol.exposure import is_loopback
from hashlight.engine.service.protocol.security import TOKEN_VARIABLE, Security
from hashlight.engine.service.protocol.wire import (
    COMMAND,
    Kind,
    OtherServerError,
    Request,
    Status,
    VersionNotServedError,
    encode_error,
    pages,
)
from hashlight.engine.service.shards.answering import answer
from hashlight.engine.storage.versions import read_version

logger = logging.getLogger(__name__)

QUEUE_SIZE = 256
DRAIN_S = 20.0

_MAX_PAGES_BEHIND = 4096  # 4 GB: the router has stopped reading
_SMOOTHING = 0.05  # weight of the latest request in the running mean


class _Served(NamedTuple):
    """Open shards, and what they were opened for."""

    assignment: Assignment
    group: Collection


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
        Host name for others to connect to, if not `host`.
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
        super().__init__(f"{security.scheme}://{host}:{port}", **security.server_options())
        self.name = ServerName(f"{security.scheme}://{advertise or host}:{self.port}", secrets.token_hex(8))
        self.address = self.name.address
        self._location = collection
        self._index = index
        self._served: dict[str, _Served] = {}  # by identity
        self._loading = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._queue_size = queue_size
        self._streams: set[_Stream] = set()
        self._leaving = threading.Event()
        self._faults = faults
        self._delay_s = 0.0
        self._mean_s = 1e-3
        self._taken = 0  # requests waiting or in progress
        self._counting = threading.Lock()
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

    def describe(self) -> dict[str, Any]:
        """Return what is served, by identity, and the numbers of waiting and of unanswered requests."""
        groups = {
            identity: {
                "version": assignment.version,
                "manifest": assignment.manifest,
                "shards": {shard.name: len(shard) for shard in group.shards},
                "about": describe_collection(group),
            }
            for identity, (assignment, group) in self._served.items()
        }
        return {**self.health(), "groups": groups, "waiting": self._jobs.qsize(), "taken": self._taken}

    def health(self) -> dict[str, Any]:
        """Report that the process is alive, which server it is, what it serves, and whether it accepts requests."""
        return {
            "status": "leaving" if self._leaving.is_set() else "serving",
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
        if self._leaving.is_set() or not self._served:
            raise NotReadyError(
                f"{self.address} serves no shards" if not self._served else f"{self.address} is shutting down"
            )
        for served in self._served.values():
            try_search(served.group)
        return self.health()

    def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Accept no more requests, tell the routers, answer accepted ones; return whether all were answered."""
        with self._counting:
            self._leaving.set()
        for stream in tuple(self._streams):
            stream.send(Status.LEAVING, 0, 0, b"")
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
        if self._leaving.is_set():
            stream.send(Status.LEAVING, 0, 0, b"")
        try:
            for frame in _frames(reader):
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
            "load": self.load,
            "drop": self.drop,
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
            stream.send(Status.OK, request.id, 0, b"")
        elif request.kind is Kind.CANCEL:
            stream.cancel(request.id)
        else:
            try:
                self._queue(stream, request)
            except HashlightError as refusal:
                stream.send(Status.ERROR, request.id, request.version, encode_error(refusal))

    def _queue(self, stream: _Stream, request: Request) -> None:
        """Queue a request; errors as in `_group_for`."""
        with self._counting:  # so that `drain` waits for every request that is not refused
            group = self._group_for(request)
            self._taken += 1
        job = _Job(stream, request, group, time.monotonic() + request.timeout_s)
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
        return served.group

    def _what_is_served(self) -> str:
        return "; ".join(
            f"{len(shards)} shards of version {version} (identity {identity}, manifest {manifest[:16]}…)"
            for identity, ((version, manifest, shards), _) in self._served.items()
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
        if job.stream.waiting.pop(job.request.id, None) is None or job.stream.closed:
            return
        status, body = self._outcome(job, started_s)
        seconds = time.monotonic() - started_s
        self._mean_s += _SMOOTHING * (seconds - self._mean_s)
        job.stream.send(status, job.request.id, job.request.version, body, seconds)

    def _outcome(self, job: _Job, now_s: float) -> tuple[Status, bytes]:
        try:
            if now_s >= job.deadline_s:
                raise DeadlineExceededError(f"the request waited at {self.address} past its deadline")
            if self._delay_s:
                time.sleep(self._delay_s)
            return Status.OK, answer(job.group, job.request)
        except Exception as error:  # whatever the error, the router must hear of it and the server must go on
            if not isinstance(error, HashlightError | TypeError | ValueError):
                logger.exception("request %s failed", job.request.kind.name)
            return Status.ERROR, encode_error(error)


class _Job:
    """A waiting request."""

    __slots__ = ("deadline_s", "group", "request", "stream")

    def __init__(self, stream: _Stream, request: Request, group: Collection, deadline_s: float) -> None:
        self.stream, self.request, self.group, self.deadline_s = stream, request, group, deadline_s


class _Stream:
    """The stream back to one router.

    Whichever thread finds the stream free writes all waiting frames, including those of others, so that a slow reader
    blocks only one thread.
    """

    def __init__(self, writer: Any) -> None:
        self.waiting: dict[int, _Job] = {}
        self.closed = False
        self._writer = writer
        self._frames: collections.deque[bytes] = collections.deque()
        self._writing = threading.Lock()

    @property
    def behind(self) -> int:
        """Number of frames waiting or being written."""
        return len(self._frames) + self._writing.locked()

    def send(self, status: Status, id_: int, version: int, body: bytes, seconds: float = 0.0) -> None:
        """Write an answer page by page."""
        self._frames.extend(pages(status, id_, version, body, seconds))
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

    def cancel(self, id_: int) -> None:
        """Drop a request that has not started."""
        self.waiting.pop(id_, None)

    def close(self) -> None:
        """Wait for the current writer, then forbid writing: gRPC aborts the process on a frame after the call."""
        self.give_up()
        with self._writing:
            self._writer = None

    def give_up(self) -> None:
        """Drop waiting frames; the router is gone."""
        self.closed = True
        self.waiting.clear()
        self._frames.clear()

    def _write(self, frame: bytes) -> None:
        if self.closed:
            return
        try:
            self._writer.write_metadata(pa.py_buffer(frame))
        except (flight.FlightError, pa.ArrowException, OSError) as error:
            logger.info("a router is gone: %s", error)
            self.give_up()


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or the end of the standard input."""
    parser = argparse.ArgumentParser(description="Answers for a group of shards over Arrow Flight.")
    parser.add_argument("collection")
    parser.add_argument("--version", type=int, required=True)
    parser.add_argument("--manifest", help="digest that the version's manifest must have; any if left out")
    parser.add_argument("--shards", required=True, help="names, separated by commas; empty for a version without any")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--queue-size", type=int, default=QUEUE_SIZE)
    parser.add_argument("--index", choices=INDEX_CHOICES, default="auto")
    parser.add_argument("--tls-certificate", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--tls-authority", type=Path)
    parser.add_argument("--faults", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    security = Security.from_files(certificate=given.tls_certificate, key=given.tls_key, authority=given.tls_authority)
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    try:
        server = ShardServer(
            given.collection,
            host=given.host,
            port=given.port,
            security=security,
            workers=given.workers,
            queue_size=given.queue_size,
            index=given.index,
            faults=given.faults,
        )
    except ValueError as error:
        parser.error(str(error))
    warm()
    try:
        manifest = given.manifest or read_version(open_place(given.collection), given.version).digest
        server.load(given.version, manifest, [name for name in given.shards.split(",") if name])
    except (HashlightError, OSError, ValueError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
    sys.stdout.write(json.dumps(server.health()) + "\n")
    sys.stdout.flush()
    threading.Thread(target=_end_with_input, args=(ending,), daemon=True).start()
    ending.wait()
    whole = server.drain()
    logging.shutdown()
    # Accepted requests are answered; open streams of routers would block a clean shutdown.
    os._exit(0 if whole else 1)


def _end_with_input(ending: threading.Event) -> None:
    """Wait for the end of standard input, which means that the parent process is gone."""
    while sys.stdin.buffer.read(4096):
        pass
    ending.set()


if __name__ == "__main__":
    main()
