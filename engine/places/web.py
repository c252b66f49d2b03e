"""The files of web servers, `http://` and `https://`, read only.

What a failure means depends on the answer. 404 and 410: there is no such file. 401, 403, 407 and 451: it may not be
read. 408, 425, 429, most 5xx, a refused connection, an unknown host and a broken transfer are of the moment, and tried
again. Other answers are refusals for good.

A process sends a server at most `CONNECTIONS` requests at once. If a server asks for a pause (`Retry-After`), all of
them wait, unless it is a long one. A server that cannot be reached is left alone for a while: reads from it then fail
at once, as what is of the moment does.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import http.cookiejar
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import httpx

from hashlight.engine.errors import PlaceError, ReadFailedError
from hashlight.engine.places.failures import NoFileError, OvertakenError, RefusedError, retried
from hashlight.engine.places.place import Entry, Found, ReadOnly
from hashlight.engine.places.reading import RangedFile, RetryingFile, refuse_more
from hashlight.engine.places.uris import without_credentials

CONNECTIONS = 8
# Longer pauses are not waited for.
MAX_PAUSE_S = 30.0
UNREACHABLE_S = 30.0
# A server may send a byte now and then for ever.
_MAX_TRANSFER_S = 300.0
_SERVERS = 10_000
_BLOCK_BYTES = 1 << 20
_MISSING, _DENIED, _LATER = {404, 410}, {401, 403, 407, 451}, {408, 425, 429}
_NEVER = {501, 505}

T = TypeVar("T")


class _UnreachableError(OSError):
    """A server could not be reached at all."""


class _NoSuchRangeError(RefusedError):
    """A file has no byte in the range that was asked for."""


class _Server:
    """What this process knows about a server, and its turns to ask it."""

    def __init__(self) -> None:
        self._turns = threading.BoundedSemaphore(CONNECTIONS)
        self._pause_ends = self._unreachable_until = 0.0

    @contextlib.contextmanager
    def turn(self, where: str) -> Iterator[None]:
        """Wait for a turn, and for the end of a pause; ReadFailedError if that would take too long."""
        with self._turns:
            now = time.monotonic()
            if now < self._unreachable_until:
                raise ReadFailedError(f"{where} cannot be read now: its server could not be reached a moment ago")
            pause = self._pause_ends - now
            if pause > MAX_PAUSE_S:
                raise ReadFailedError(f"{where} cannot be read now: its server asks for a pause of {pause:.0f} s")
            if pause > 0:
                time.sleep(pause)
            yield

    def pause(self, seconds: float) -> None:
        self._pause_ends = max(self._pause_ends, time.monotonic() + seconds)

    def give_up(self) -> None:
        self._unreachable_until = time.monotonic() + UNREACHABLE_S


@functools.lru_cache(_SERVERS)
def _cached_server(_host: str) -> _Server:
    return _Server()


# A cache by itself would make several of what many threads ask for at the same time.
_making = threading.Lock()


def _server_of(url: str) -> _Server:
    try:
        host = urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:  # such a URL is refused when it is sent
        host = ""
    with _making:
        return _cached_server(host)


def _client() -> httpx.Client:
    with _making:
        return _cached_client()


@functools.lru_cache(1)
def _cached_client() -> httpx.Client:
    jar = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return httpx.Client(
        follow_redirects=True,
        cookies=jar,
        headers={"User-Agent": "hashlight"},
        timeout=httpx.Timeout(30, connect=10, pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
    )


class Web(ReadOnly):
    """See `Place`. A web server has no listing, so that only names which are known can be read."""

    def __str__(self) -> str:
        """Return the URL without credentials and query, which may have a signature."""
        return without_credentials(self.location).partition("?")[0]

    def read(self, name: str = "", *, max_bytes: int | None = None) -> bytes:
        """See `Place.read`."""
        return self._retried(lambda: self._read(name, max_bytes), self.path(name))

    def _retried(self, read: Callable[[], T], where: str) -> T:
        """Do as `retried` does, and leave the server alone for a while if it could not be reached."""
        try:
            return retried(read, where)
        except ReadFailedError as error:
            if isinstance(error.__cause__, _UnreachableError):
                _server_of(self.location).give_up()
            raise

    def _read(self, name: str, max_bytes: int | None) -> bytes:
        with self._answer(name) as answer:
            return b"".join(_blocks(answer, self.path(name), max_bytes))

    @contextlib.contextmanager
    def _answer(self, name: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        """Ask for a file and yield the answer, whose body is still to be read; errors as in `Place.read`."""
        where, server = self.path(name), _server_of(self.location)
        with server.turn(where):
            try:
                with _client().stream("GET", self.location_of(name), headers=headers) as answer:
                    _refuse(answer, where, server)
                    yield answer
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeError) as error:
                raise NoFileError(f"{where} is not a valid URL: {error}") from error
            except httpx.TooManyRedirects as error:
                raise RefusedError(f"{where}: {error}") from error
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise _UnreachableError(f"{where}: {_reason(error)}") from error
            except httpx.HTTPError as error:
                raise OSError(f"{where}: {_reason(error)}") from error

    def find(self, name: str) -> Found | None:
        """See `Place.find`."""
        try:
            return Found(self.read(name))
        except FileNotFoundError:
            return None

    def open(self, name: str = "") -> RetryingFile:
        """See `Place.open`: in ranges, or where the server has none, from a copy that is made first."""
        where = self.path(name)
        size, tag, has_ranges = self._retried(lambda: self._about(name), where)
        if has_ranges:
            return RetryingFile(lambda: RangedFile(self._range_reader(name, tag), size), where, retry=self._retried)
        return RetryingFile(lambda: self._copy(name), where, retry=self._retried)

    def _about(self, name: str) -> tuple[int, str, bool]:
        """Return a file's size (0 if unknown), a text that changes with it, and whether it can be read in ranges."""
        try:
            with self._answer(name, _range(0, 1)) as got:
                size = got.headers.get("content-range", "").rpartition("/")[2]
                if got.status_code == httpx.codes.PARTIAL_CONTENT and size.isdecimal():
                    return int(size), _tag(got), True
                return int(got.headers.get("content-length", 0)), _tag(got), False
        except _NoSuchRangeError:  # An empty file has no first byte.
            with self._answer(name) as got:
                return int(got.headers.get("content-length", 0)), _tag(got), False

    def _range_reader(self, name: str, tag: str) -> Any:
        def read_range(start: int, stop: int) -> bytes:
            changed = OvertakenError(f"{self.path(name)} has changed while it was read")
            try:
                with self._answer(name, _range(start, stop)) as got:
                    if got.status_code != httpx.codes.PARTIAL_CONTENT or _tag(got) != tag:
                        raise changed
                    return b"".join(_blocks(got, self.path(name), None))
            except _NoSuchRangeError as error:
                raise changed from error

        return read_range

    def _copy(self, name: str) -> Any:
        with contextlib.ExitStack() as failing:
            copy = failing.enter_context(tempfile.TemporaryFile())
            with self._answer(name) as got:
                for block in _blocks(got, self.path(name), None):
                    copy.write(block)
            copy.seek(0)
            failing.pop_all()  # the reader closes it
        return copy

    def entry(self, name: str = "") -> Entry | None:
        """See `Place.entry`."""
        try:
            size, tag, _ = self._retried(lambda: self._about(name), self.path(name))
        except FileNotFoundError:
            return None
        return Entry(name, size, f"{size}:{tag}")

    def children(self, folder: str = "", *, hidden: bool = False) -> list[Entry]:
        """Refuse; see the class."""
        self._refuse_listing()

    def walk(self, folder: str = "", *, skipped: Counter[str] | None = None) -> Iterator[Entry]:
        """Refuse; see the class."""
        self._refuse_listing()

    def _refuse_listing(self) -> NoReturn:
        raise PlaceError(f"{self}: a web server does not list its files: name them in a text file of URIs (.txt)")

    def download(self, name: str, target: Path) -> None:
        """See `Place.download`."""
        with self.open(name) as file, target.open("wb") as copy:
            while block := file.read(_BLOCK_BYTES):
                copy.write(block)


def _range(start: int, stop: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}


def _refuse(answer: httpx.Response, where: str, server: _Server) -> None:
    """Raise what an answer that is not the file means."""
    status = answer.status_code
    said = f"{where}: the server answered {status} {answer.reason_phrase}".rstrip()
    if answer.is_success:
        return
    if status in _MISSING:
        raise FileNotFoundError(said)
    if status in _DENIED:
        raise PermissionError(said)
    if status in _LATER or (status >= httpx.codes.INTERNAL_SERVER_ERROR and status not in _NEVER):
        server.pause(_retry_after_s(answer.headers.get("retry-after", "")))
        raise OSError(said)
    if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise _NoSuchRangeError(said)
    raise RefusedError(said)


def _tag(answer: httpx.Response) -> str:
    """Return a text that changes with the file."""
    tag: str = answer.headers.get("etag") or answer.headers.get("last-modified") or ""
    return tag


def _retry_after_s(text: str) -> float:
    """Return the seconds that a `Retry-After` asks for, as a number or as a date; 0 if it says neither."""
    if text.strip().isdecimal():
        return float(text)
    try:
        then = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _blocks(answer: httpx.Response, where: str, max_bytes: int | None) -> Iterator[bytes]:
    """Yield a body; TooManyBytesError as soon as it is known to be too large."""
    refuse_more(int(answer.headers.get("content-length", 0)), max_bytes)
    ends, total = time.monotonic() + _MAX_TRANSFER_S, 0
    for block in answer.iter_bytes():  # as they arrive: blocks of one size would be waited for, whatever the time
        total += len(block)
        refuse_more(total, max_bytes)
        if time.monotonic() > ends:
            raise OSError(f"{where}: only {total:,} bytes arrived in {_MAX_TRANSFER_S:.0f} s")
        yield block


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
