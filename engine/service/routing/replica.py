"""One shard server as seen by a router: a persistent stream, and how reliable the server is."""

from __future__ import annotations

import itertools
import logging
import queue
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from hashlight.engine.errors import HashlightError
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.protocol.wire import (
    COMMAND,
    PROTOCOLS,
    Kind,
    Page,
    ProtocolError,
    Request,
    Status,
    agree,
)

logger = logging.getLogger(__name__)

BREAKER_S = 1.0
MAX_BREAKER_S = 30.0
PING_S = 0.25
SILENT_S = 1.0  # silence although an answer is due: a stopped process or a cut network
# Looks, one every `PING_S`, that find an answer overdue; then the server counts as lost, and so do the requests that it
# has. Looks and not seconds, because a router that was itself stopped must not blame its servers.
LOST_LOOKS = 12
OPENING_LOOKS = 40  # the same for a connection that is being opened
FIRST_WAIT_S, MAX_WAIT_S = 0.05, 2.0  # between attempts to connect
END_S = 2.0  # for threads to end

# gRPC lets 64 KiB of a stream go unread before a write blocks. Writes that could block run in their own thread, so that
# no caller waits past its deadline for a server that has stopped reading.
_FREE_BYTES = 32 << 10

# Separate connections and short pauses, so that a returning server is noticed at once.
_GRPC_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

_BROKEN = (flight.FlightError, pa.ArrowException, OSError)
_ids = itertools.count(1)
_NOTHING = np.zeros((0, 1), np.uint64)


class ReplicaLostError(HashlightError):
    """The connection to a shard server broke or does not exist."""


class Reply(NamedTuple):
    """A complete answer of one shard server."""

    status: Status
    version: int
    seconds: float
    body: memoryview


# Receives the outcome of a request: an answer, or the error that replaces it.
Receiver = Callable[[Reply | ReplicaLostError], None]
# Returns a request as a frame of a protocol.
FrameOf = Callable[[int], bytes]


class _Waiting:
    """A request in progress."""

    __slots__ = ("body", "receiver")

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.body = bytearray()

    def add(self, page: Page) -> memoryview | None:
        """Store a page; return the body once it is complete.

        Raises
        ------
        ProtocolError
            If it is not the next page of the answer.
        """
        if len(page.body) == page.total:
            return page.body
        # Memory grows with what has arrived, not with what was announced.
        if page.offset != len(self.body):
            raise ProtocolError(
                f"expected the page at byte {len(self.body)} of an answer, got the one at {page.offset}"
            )
        self.body += page.body
        return memoryview(self.body) if len(self.body) == page.total else None


class Replica:
    """A shard server and the stream to it. Thread-safe.

    Its own thread connects, reads answers, and reconnects when the stream breaks.

    Parameters
    ----------
    address : str
    security : Security
    on_change : callable
        Called when the replica becomes reachable or unreachable.
    """

    def __init__(self, address: str, security: Security, on_change: Callable[[], None]) -> None:
        self.address = address
        self.reason = "not connected yet"
        self.breakers_opened = 0  # how often it was avoided after a failure
        self._security = security
        self._on_change = on_change
        self._stream: _Stream | None = None  # None until the first page has arrived
        self._opening: _Stream | None = None
        self._leaving = False
        self._shut_until_s = 0.0
        self._failures = 0
        self._heard_s: float | None = None  # when its last page arrived
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_connected, name=f"hashlight-{address}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        """Show address and state."""
        return f"Replica({self.address}, {self.state}, {self.load} under way)"

    @property
    def connected(self) -> bool:
        """Whether requests can be sent; one that is leaving still answers for a while."""
        return self._stream is not None

    @property
    def ended(self) -> bool:
        """Whether it was closed and its thread has ended."""
        return not self._thread.is_alive()

    @property
    def load(self) -> int:
        """Number of requests in progress."""
        stream = self._stream
        return 0 if stream is None else len(stream.waiting)

    @property
    def state(self) -> str:
        """Connected, silent (an answer is overdue), shut (it has just failed), leaving, or lost."""
        if self._stream is None:
            return "lost"
        if self._leaving:
            return "leaving"
        if self.silent:
            return "silent"
        return "shut" if time.monotonic() < self._shut_until_s else "connected"

    @property
    def trusted(self) -> bool:
        """Whether it is a good choice; an untrusted replica is asked only if there is no other."""
        return self.state == "connected"

    @property
    def silent(self) -> bool:
        """Whether the server owes an answer and has gone silent."""
        stream = self._stream
        return stream is not None and stream.silent_s() > SILENT_S

    def stats(self) -> dict[str, Any]:
        """Return statistics for operators.

        `address`, `state`, `reason` (why it is lost or leaving), `under_way` (requests), `last_answer_s` (seconds since
        it was last heard, heartbeats included; None: never), `failures` (in a row), `breaker_s` (seconds for which it
        is still avoided), `breakers_opened`.
        """
        now_s, heard_s, state = time.monotonic(), self._heard_s, self.state
        return {
            "address": self.address,
            "state": state,
            "reason": self.reason if state in ("lost", "leaving") else None,
            "under_way": self.load,
            "last_answer_s": None if heard_s is None else now_s - heard_s,
            "failures": self._failures,
            "breaker_s": max(0.0, self._shut_until_s - now_s),
            "breakers_opened": self.breakers_opened,
        }

    def send(self, id_: int, frame_of: FrameOf, receiver: Receiver) -> None:
        """Send a request under its id; `receiver` is called once with its outcome, in another thread.

        Raises
        ------
        ReplicaLostError
            If there is no connection.
        ProtocolError
            If the server's protocol does not have such requests.
        """
        stream = self._stream
        if stream is None:
            raise ReplicaLostError(self.reason)
        stream.send(id_, frame_of, receiver)

    def cancel(self, id_: int) -> None:
        """Drop the answer to a request."""
        stream = self._stream
        if stream is not None and stream.waiting.pop(id_, None) is not None:
            stream.tell(Request(Kind.CANCEL, id_, 0, 0.0, _NOTHING))

    def failed(self) -> None:
        """Avoid the replica for a while, longer with each failure in a row."""
        self._failures += 1
        now_s = time.monotonic()
        self.breakers_opened += now_s >= self._shut_until_s
        pause_s = min(MAX_BREAKER_S, BREAKER_S * 2 ** (self._failures - 1))
        self._shut_until_s = now_s + pause_s

    def succeeded(self) -> None:
        """Forget earlier failures."""
        self._failures = 0
        self._shut_until_s = 0.0

    def check(self) -> None:
        """Send a heartbeat request if none is pending; break off and connect again after a long silence.

        To be called every `PING_S`.
        """
        stream, limit = self._stream, LOST_LOOKS
        if stream is None:
            stream, limit = self._opening, OPENING_LOOKS
        if stream is not None and stream.look() >= limit:
            stream.break_off(f"{self.address} has not answered a heartbeat for {limit * PING_S:g} s")

    def close(self) -> None:
        """Begin to close the stream and the thread; requests in progress are lost."""
        self._closed.set()
        stream = self._stream
        if stream is not None and not self.silent:
            stream.end()
        elif (stream := stream or self._opening) is not None:
            stream.break_off("this router is closed")  # the server may never close its side

    def break_off(self) -> None:
        """Close at once what is still open."""
        stream = self._stream or self._opening
        if stream is not None:
            stream.break_off("this router is closed")

    def join(self, until_s: float) -> None:
        """Wait until what `close` has begun is done: a thread that is within gRPC must not outlive the interpreter.

        Python 3.11 ends it there by unwinding its stack, and C++ then aborts the process. A stream that is open at
        `until_s`, in monotonic time, is broken off.
        """
        self._thread.join(max(0.0, until_s - time.monotonic()))
        if self._thread.is_alive():
            self.break_off()
            self._thread.join(max(0.0, until_s + END_S - time.monotonic()))

    def _keep_connected(self) -> None:
        wait_s = FIRST_WAIT_S
        while not self._closed.is_set():
            connected_s = self._connect_and_read()
            wait_s = FIRST_WAIT_S if connected_s > MAX_WAIT_S else min(MAX_WAIT_S, 2 * wait_s)
            # Jitter, so that many routers do not reconnect all at once.
            self._closed.wait(wait_s * random.uniform(0.5, 1.0))

    def _connect_and_read(self) -> float:
        """Read answers until the stream ends; return its lifetime in seconds."""
        connected_s, stream = time.monotonic(), None
        try:
            stream = self._opening = _Stream(self.address, self._security)
            if self._closed.is_set():  # `close` may have run before the stream existed
                stream.break_off("this router is closed")
            stream.look()
            for page in stream.pages():
                self._heard_s = time.monotonic()
                if self._stream is None and not self._closed.is_set():
                    connected_s = time.monotonic()
                    self._stream, self._opening, self._leaving = stream, None, False
                    self._on_change()
                if page.status is Status.LEAVING:
                    self._leaving, self.reason = True, f"{self.address} is ending"
                    self._on_change()
            self.reason = stream.broken_off or f"{self.address} ended the connection"
        except _BROKEN as error:
            broken_off = None if stream is None else stream.broken_off
            self.reason = broken_off or f"{self.address} is lost: {_what_happened(error)}"
        except Exception as error:  # whatever arrives, this thread must go on: without it no answer is read
            if not isinstance(error, ProtocolError):
                logger.exception("an answer of %s cannot be read", self.address)
            self.failed()
            self.reason = f"{self.address} sent what cannot be read: {error!s:.300}"
            if stream is not None:
                stream.break_off(self.reason)
        was_there, self._stream, self._opening = self._stream is not None, None, None
        if stream is not None:
            stream.abandon(self.reason)
        if was_there and not self._closed.is_set():
            # A server that announced its departure has not failed.
            logger.log(logging.INFO if self._leaving else logging.WARNING, "%s", self.reason)
            self._on_change()
        return time.monotonic() - connected_s if was_there else 0.0


class _Stream:
    """An open exchange, its requests in progress, and when the server was last heard."""

    def __init__(self, address: str, security: Security) -> None:
        self.waiting: dict[int, _Waiting] = {}
        self._protocol = PROTOCOLS[0]  # until the server has said what it speaks
        self._client = security.connect(address, generic_options=_GRPC_OPTIONS)
        descriptor = flight.FlightDescriptor.for_command(COMMAND)
        self._writer, self._reader = self._client.do_exchange(descriptor, security.call_options())
        self._writing = threading.Lock()
        self._patient: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_on, name=f"hashlight-write-{address}", daemon=True)
        self._thread.start()
        self._unread_bytes = 0
        self._due_s: float | None = None
        self._looks = 0  # since an answer is due
        self.broken_off: str | None = None
        self._lost: str | None = None
        self._finished = False

    def silent_s(self) -> float:
        """Return for how many seconds an answer has been overdue."""
        due_s = self._due_s
        return 0.0 if due_s is None else time.monotonic() - due_s

    def send(self, id_: int, frame_of: FrameOf, receiver: Receiver) -> None:
        """Write a request and remember its receiver."""
        frame = frame_of(self._protocol)
        self.waiting[id_] = _Waiting(receiver)
        # Whoever removes the request reports it: the thread that gave up the stream, or this one.
        if self._lost is not None and self.waiting.pop(id_, None) is not None:
            raise ReplicaLostError(self._lost)
        self._write(frame)

    def look(self) -> int:
        """Return how many looks have found an answer overdue; send a heartbeat request if none is due."""
        if self._due_s is None:
            self._due_s, self._looks = time.monotonic(), 0
            self.tell(Request(Kind.PING, 0, 0, 0.0, _NOTHING))
        else:
            self._looks += 1
        return self._looks

    def tell(self, request: Request) -> None:
        """Write a frame that has no receiver."""
        self._write(request.encode(self._protocol))

    def pages(self) -> Any:
        """Read pages until the stream ends, passing complete answers to their receivers."""
        while True:
            try:
                chunk = self._reader.read_chunk()
            except StopIteration:
                return
            page = Page.decode(memoryview(chunk.app_metadata or b""))
            # Any answer shows that the server is alive and has read everything written before.
            self._due_s, self._unread_bytes = None, 0
            if page.id == 0 and page.status is Status.OK:
                self._protocol = agree(page.body)
            self._deliver(page)
            yield page

    def break_off(self, reason: str) -> None:
        """Make reading end, whether the server answers or not."""
        self.broken_off = self.broken_off or reason
        self._reader.cancel()

    def end(self) -> None:
        """Close the stream cleanly: the server closes its side, then reading ends."""
        self._patient.put(lambda: self._finish(self._writer.done_writing))

    def abandon(self, reason: str) -> None:
        """Tell all receivers that no answer will come, and close the stream."""
        self._lost = reason
        # First: closing waits for whoever writes, and for gRPC to have done with a host that is gone.
        while self.waiting:
            try:
                _, waiting = self.waiting.popitem()
            except KeyError:  # the last one has just been cancelled
                break
            waiting.receiver(ReplicaLostError(reason))
        self._finish(self._writer.close)
        self._patient.put(None)
        self._thread.join(END_S)

    def _deliver(self, page: Page) -> None:
        waiting = self.waiting.get(page.id)
        if waiting is None:
            return
        body = waiting.add(page)
        if body is not None and self.waiting.pop(page.id, None) is not None:
            waiting.receiver(Reply(page.status, page.version, page.seconds, body))

    def _write(self, frame: bytes) -> None:
        self._unread_bytes += len(frame)
        if self._unread_bytes > _FREE_BYTES or not self._writing.acquire(blocking=False):
            self._patient.put(lambda: self._write_patiently(frame))
            return
        try:
            self._put(frame)
        finally:
            self._writing.release()

    def _write_patiently(self, frame: bytes) -> None:
        with self._writing:
            self._put(frame)

    def _write_on(self) -> None:
        while (write := self._patient.get()) is not None:
            try:
                write()
            except Exception as error:  # whatever the error, this thread must go on
                logger.exception("a request was not written")
                self.break_off(f"a request was not written: {error}")

    def _finish(self, finish: Callable[[], None]) -> None:
        """Close for writing. gRPC aborts the process if this is done twice, or if a frame is written afterwards."""
        with self._writing:
            if self._finished:
                return
            self._finished = True
            try:
                finish()
            except _BROKEN as error:
                logger.debug("a stream did not close cleanly: %s", error)

    def _put(self, frame: bytes) -> None:
        if self._finished:
            return
        try:
            self._writer.write_metadata(pa.py_buffer(frame))
        except _BROKEN as error:
            # Reading ends for the same reason, and informs all receivers.
            logger.debug("a request was not written: %s", error)


def next_id() -> int:
    """Return an id for a request."""
    return next(_ids)


def _what_happened(error: BaseException) -> str:
    """Return the message without the details that gRPC and Arrow add."""
    return re.split(r"\n|\. Detail: |\. gRPC client debug context", str(error).strip(), maxsplit=1)[0]
