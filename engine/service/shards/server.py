"""A shard server: a process that has a group of shards open and answers over Arrow Flight.

    python -m hashlight.engine.service.shards.server COLLECTION --version 3 --shards NAME,NAME

It prints one line of JSON, `{"address": ..., "pid": ...}`, once it has answered a real search. Requests come over
`DoExchange` streams (`engine.service.protocol.wire`), go into a bounded queue and are answered by as many threads as
there are cores; what finds the queue full is refused at once, and what waited past its deadline is not begun.
`DoAction` controls it: `health`, `ready`, `describe`, `load`, `drop`.

SIGTERM, or the end of its standard input, drains it: routers are told, what was taken is answered, then it ends.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import DeadlineExceededError, HashlightError, NotReadyError, OverloadedError
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.indexes.warmup import warm
from hashlight.engine.service.asking.searcher import describe_collection, try_search
from hashlight.engine.service.protocol.cluster_map import open_group
from hashlight.engine.service.protocol.exposure import is_loopback
from hashlight.engine.service.protocol.security import TOKEN_VARIABLE, Security
from hashlight.engine.service.protocol.wire import (
    COMMAND,
    Kind,
    Request,
    Status,
    VersionNotServedError,
    encode_error,
    pages,
)
from hashlight.engine.service.shards.answering import answer

logger = logging.getLogger(__name__)

QUEUE_SIZE = 256
DRAIN_S = 20.0

_MOST_PAGES_BEHIND = 4096  # 4 GB: a router that reads no more
_SMOOTHING = 0.05  # weight of the last request in the mean time of one


class ShardServer(flight.FlightServerBase):  # type: ignore[misc]
    """Answers for groups of shards of a collection, of one or more of its versions.

    Parameters
    ----------
    collection : str or Path
    host : str
        Interface to listen on.
    port : int
        0 for a free one.
    advertise : str, optional
        Host that others reach it by, if not `host`.
    security : Security, optional
        With a token, if other machines can reach `host`.
    workers : int, optional
        Requests answered at a time; one a core if left out.
    queue_size : int
        Requests that may wait.
    faults : bool
        Whether the action `fault`, which slows every answer down for tests of routers, is there.

    Raises
    ------
    ValueError
        If other machines could ask without a token, or `host` cannot be resolved.
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
        faults: bool = False,
    ) -> None:
        security = security or Security()
        if not security.token and not is_loopback(host, port):
            raise ValueError(
                f"{host} can be reached from other machines, and there is no token: give one ({TOKEN_VARIABLE}), or "
                "listen on 127.0.0.1"
            )
        super().__init__(f"{security.scheme}://{host}:{port}", **security.server_options())
        self.address = f"{security.scheme}://{advertise or host}:{self.port}"
        self._location = collection
        self._served: dict[int, Collection] = {}
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._queue_size = queue_size
        self._streams: set[_Stream] = set()
        self._leaving = threading.Event()
        self._faults = faults
        self._delay_s = 0.0
        self._mean_s = 1e-3
        self._taken = 0  # requests that wait or are at work
        self._counting = threading.Lock()
        self._workers = [
            threading.Thread(target=self._work, name=f"hashlight-shard-{number}", daemon=True)
            for number in range(workers or max(2, usable_cores()))
        ]
        for worker in self._workers:
            worker.start()

    def load(self, version: int, shards: Sequence[str]) -> dict[str, Any]:
        """Open shards of a version beside what is open, search in each, then serve them; return what is served.

        Raises
        ------
        CollectionNotFoundError, CorruptDataError, NotReadyError, ValueError
            As `open_group` and `try_search`; what was served before is served on.
        """
        served = self._served.get(version)
        if served is None or {shard.name for shard in served.shards} != set(shards):
            group = open_group(self._location, version, shards)
            try_search(group)
            self._served = {**self._served, version: group}
        return self.describe()

    def drop(self, version: int) -> dict[str, Any]:
        """Stop serving a version; what was taken of it is still answered."""
        self._served = {number: group for number, group in self._served.items() if number != version}
        return self.describe()

    def describe(self) -> dict[str, Any]:
        """Return what is served, by version, how many requests wait, and how many are taken and not answered."""
        versions = {
            str(version): {
                "about": describe_collection(group),
                "shards": {shard.name: len(shard) for shard in group.shards},
            }
            for version, group in self._served.items()
        }
        return {**self.health(), "versions": versions, "waiting": self._jobs.qsize(), "taken": self._taken}

    def health(self) -> dict[str, Any]:
        """Say that the process lives, and whether it takes requests."""
        return {
            "status": "leaving" if self._leaving.is_set() else "serving",
            "address": self.address,
            "pid": os.getpid(),
        }

    def ready(self) -> dict[str, Any]:
        """Search in every shard.

        Raises
        ------
        NotReadyError
            If there is none, one does not find its own code, or the server is about to end.
        """
        if self._leaving.is_set() or not self._served:
            raise NotReadyError(f"{self.address} serves no shards" if not self._served else f"{self.address} is ending")
        for group in self._served.values():
            try_search(group)
        return self.health()

    def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Take no more requests, tell the routers, answer what was taken; say whether all of it was."""
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
        """Take the requests of one router until it ends the stream."""
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
        """Answer a control action with "ok" or "error", and JSON."""
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
            return [b"ok", json.dumps(acts[action.type](**arguments)).encode()]
        except (HashlightError, TypeError, ValueError, OSError) as error:
            logger.warning("%s %s: %s", action.type, arguments, error)
            return [b"error", encode_error(error)]

    def _fault(self, delay_s: float) -> dict[str, Any]:
        self._delay_s = delay_s
        return self.health()

    def _take(self, stream: _Stream, request: Request) -> None:
        """Queue a request, or answer at once what needs no shard."""
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
        with self._counting:  # so that `drain` waits for all that it does not refuse
            group = self._group_for(request)
            self._taken += 1
        job = _Job(stream, request, group, time.monotonic() + request.timeout_s)
        stream.waiting[request.id] = job
        self._jobs.put(job)

    def _group_for(self, request: Request) -> Collection:
        """Return the shards that a request is to be answered from.

        Raises
        ------
        NotReadyError, VersionNotServedError, OverloadedError
            If it is not taken.
        """
        if self._leaving.is_set():
            raise NotReadyError(f"{self.address} is ending: ask another replica")
        group = self._served.get(request.version)
        if group is None:
            served = ", ".join(map(str, sorted(self._served))) or "none"
            raise VersionNotServedError(f"{self.address} serves version {served}, not {request.version}")
        waiting = self._jobs.qsize()
        if waiting >= self._queue_size:
            raise OverloadedError(
                f"{self.address} has {waiting} requests waiting: try again later",
                retry_after_s=waiting * self._mean_s / len(self._workers),
            )
        return group

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._answer(job)
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
                raise DeadlineExceededError(f"waited at {self.address} past its deadline")
            if self._delay_s:
                time.sleep(self._delay_s)
            return Status.OK, answer(job.group, job.request)
        except Exception as error:  # whatever it is, the router must hear of it and the server go on
            if not isinstance(error, HashlightError | TypeError | ValueError):
                logger.exception("request %s failed", job.request.kind.name)
            return Status.ERROR, encode_error(error)


class _Job:
    """A request that waits."""

    __slots__ = ("deadline_s", "group", "request", "stream")

    def __init__(self, stream: _Stream, request: Request, group: Collection, deadline_s: float) -> None:
        self.stream, self.request, self.group, self.deadline_s = stream, request, group, deadline_s


class _Stream:
    """The way back to one router.

    Whoever finds the stream free writes what waits for it, also that of others, so that a router that reads slowly
    holds one thread and no more.
    """

    def __init__(self, writer: Any) -> None:
        self.waiting: dict[int, _Job] = {}
        self.closed = False
        self._writer = writer
        self._frames: collections.deque[bytes] = collections.deque()
        self._writing = threading.Lock()

    @property
    def behind(self) -> int:
        """Number of frames that wait to be written or are being written."""
        return len(self._frames) + self._writing.locked()

    def send(self, status: Status, id_: int, version: int, body: bytes, seconds: float = 0.0) -> None:
        """Write an answer page by page."""
        self._frames.extend(pages(status, id_, version, body, seconds))
        if len(self._frames) > _MOST_PAGES_BEHIND:
            logger.warning("a router reads no more, %d pages behind: its stream is given up", len(self._frames))
            self.give_up()
        while self._frames and self._writing.acquire(blocking=False):
            try:
                with contextlib.suppress(IndexError):  # the last one is written, or all were dropped meanwhile
                    while True:
                        self._write(self._frames.popleft())
            finally:
                self._writing.release()

    def cancel(self, id_: int) -> None:
        """Forget a request that has not begun."""
        self.waiting.pop(id_, None)

    def close(self) -> None:
        """Wait for who is writing, and let nobody write again: gRPC ends the process over a frame after the call."""
        self.give_up()
        with self._writing:
            self._writer = None

    def give_up(self) -> None:
        """Drop what waits; the router is gone."""
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
    """Read frames until the stream ends, as it should or by a broken connection."""
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
    parser.add_argument("--shards", required=True, help="names, separated by commas")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--queue-size", type=int, default=QUEUE_SIZE)
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
            faults=given.faults,
        )
    except ValueError as error:
        parser.error(str(error))
    warm()
    server.load(given.version, given.shards.split(","))
    sys.stdout.write(json.dumps(server.health()) + "\n")
    sys.stdout.flush()
    threading.Thread(target=_end_with_input, args=(ending,), daemon=True).start()
    ending.wait()
    whole = server.drain()
    logging.shutdown()
    # Streams that routers hold open would keep an orderly shutdown waiting; what was taken is answered.
    os._exit(0 if whole else 1)


def _end_with_input(ending: threading.Event) -> None:
    """Wait for the end of the standard input: the process that started this one is gone."""
    while sys.stdin.buffer.read(4096):
        pass
    ending.set()


if __name__ == "__main__":
    main()
