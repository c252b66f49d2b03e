"""API keys: who may do what.

Keys are given one a line in a file or in the environment variable `HASHLIGHT_API_KEYS`::

    # name   scopes         key                      limits
    page     search         5VQ3N0TjZk0mXo2mQwq1rA   rate=50/s in-flight=8
    loader   search,write   sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    scraper  metrics        Zk93uXgB1rPq0mVdWc5yTA
    ops      admin          _8Hn2tYp4XbJrLq7uCwZ1g

A key has at least 16 characters (`python -c "import secrets; print(secrets.token_urlsafe())"` makes one), all of them
printable ASCII, as a header carries no others safely, or is given as the hex SHA-256 of one, so that the file need not
hold the secret itself. A comment begins with a `#` at the start of a line or after a space; inside a key `#` is a
character like any other. Only hashes are kept in memory. A request sends its key as `Authorization: Bearer KEY` or as
`X-API-Key: KEY`.

A key may have limits: `rate`, requests a second, and `in-flight`, requests at once. What exceeds them is refused with
429 (`engine.service.door.allowances`). A batch is one request.

A file is read again when it changes. While it cannot be read or has a wrong line, the keys that were read last stay.

`engine.service.door.access` says which scope a path requires.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import hmac
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from hashlight.engine.places.files import stamp_of
from hashlight.engine.service.door.allowances import Allowance

SCOPES = ("search", "write", "metrics", "admin")
ENVIRONMENT = "HASHLIGHT_API_KEYS"
MIN_LENGTH = 16

_RENEW_EVERY_S = 1.0
_FORM = "`NAME SCOPES KEY [rate=N/s] [in-flight=N]`"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """A key: its owner, its scopes, its SHA-256, and its limits.

    Attributes
    ----------
    name : str
    scopes : frozenset of str
    digest : bytes
    rate : float or None
        Requests a second; None for any number.
    in_flight : int or None
        Requests at once; None for any number.
    """

    name: str
    scopes: frozenset[str]
    digest: bytes = dataclasses.field(repr=False)
    rate: float | None = None
    in_flight: int | None = None


class Keys:
    """The keys that a server knows, what each has taken of its limits, and how many requests were refused. Thread-safe.

    One object serves all collections of a server, since limits are those of a key, whatever it asks.

    Parameters
    ----------
    keys : iterable of Key
        If empty, anyone who reaches the server may do anything.

    Attributes
    ----------
    refusals : Counter of str
        Requests that were refused for their key, by reason: "missing", "unknown", "scope", "rate", "in_flight".
    """

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = tuple(keys)
        self._path: Path | None = None
        self._stamp: tuple[int, ...] | None = None
        self._renewed_s = time.monotonic()
        self._is_stale = False
        self._allowances: dict[bytes, Allowance] = {}
        self._changing = threading.Lock()  # metrics are read, and the file with them, in threads of their own
        self.refusals: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._keys)

    def __repr__(self) -> str:
        """List the keys without their secrets."""
        named = [f"{key.name}: {'+'.join(sorted(key.scopes))}" for key in self._keys]
        return f"Keys({', '.join(named) or 'none'})"

    @classmethod
    def load(cls, path: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the keys from a file, which is then followed, or from the environment if no file is given.

        Raises
        ------
        ValueError
            If a line is not a key; the message gives its number, never its contents.
        OSError
            If the file cannot be read.
        """
        if path is None:
            return cls(_parse(environment.get(ENVIRONMENT, ""), ENVIRONMENT))
        keys = cls()
        keys._path, keys._stamp = Path(path), stamp_of(Path(path))
        keys._keys = _read(keys._path)
        return keys

    @property
    def is_stale(self) -> bool:
        """Whether the file has changed and cannot be used, so that the keys are those that were read before."""
        self._look()
        return self._is_stale

    def find(self, secret: str) -> Key | None:
        """Return the key with that secret, in a time that reveals nothing about the keys."""
        self._look()
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def request(self, key: Key) -> contextlib.AbstractContextManager[None]:
        """Count a request as one of the key; RequestError 429 on entry if its limits are reached."""
        with self._changing:
            allowance = self._allowances.setdefault(key.digest, Allowance())
        return allowance.request(key.name, rate=key.rate, in_flight=key.in_flight)

    def _look(self) -> None:
        if self._path is not None and time.monotonic() - self._renewed_s > _RENEW_EVERY_S:
            self.renew()

    def renew(self) -> bool:
        """Read the file again if it has changed; return whether its keys are in use now.

        One that cannot be read, or has a wrong line, is logged once and leaves the keys as they are.
        """
        with self._changing:
            return self._renew()

    def _renew(self) -> bool:
        self._renewed_s = time.monotonic()
        if self._path is None:
            return False
        stamp = stamp_of(self._path)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self._keys = _read(self._path)
        except (OSError, ValueError) as error:
            self._is_stale = True
            logger.warning("the API keys stay those that were read before: %s", error)
            return False
        self._is_stale = False
        known = {key.digest for key in self._keys}
        self._allowances = {digest: one for digest, one in self._allowances.items() if digest in known}
        logger.info("%d API keys were read from %s", len(self._keys), self._path)
        return True


def _read(path: Path) -> tuple[Key, ...]:
    keys = _parse(path.read_text("utf-8-sig"), str(path))
    if not keys:
        raise ValueError(f"{path} has no keys: expected lines {_FORM}")
    return keys


def _parse(text: str, source: str) -> tuple[Key, ...]:
    lines: dict[bytes, int] = {}  # digest -> number of the line
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if not words:
            continue
        key = _key_of(words, f"{source}, line {number}")
        if key.digest in lines:
            raise ValueError(f"{source}, line {number}: it has the key of line {lines[key.digest]}: give each its own")
        lines[key.digest] = number
        keys.append(key)
    return tuple(keys)


def _key_of(words: list[str], where: str) -> Key:
    if len(words) < 3:
        raise ValueError(f"{where}: expected {_FORM}, got {len(words)} words (a word that begins with # is a comment)")
    name, scopes, secret, *limits = words
    if not set(scopes.split(",")) <= set(SCOPES):
        raise ValueError(f"{where}: scopes must be {', '.join(SCOPES)}, joined by commas, got {scopes!r}")
    rate, in_flight = _limits_of(limits, where)
    return Key(name, frozenset(scopes.split(",")), _digest_of(secret, where), rate, in_flight)


def _digest_of(secret: str, where: str) -> bytes:
    if secret.startswith("sha256:"):
        if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", secret):
            raise ValueError(f"{where}: expected sha256: and 64 hex digits, got {len(secret) - 7} characters after it")
        return bytes.fromhex(secret[7:])
    if len(secret) < MIN_LENGTH:
        raise ValueError(f"{where}: a key must have at least {MIN_LENGTH} characters, got {len(secret)}")
    if not (secret.isascii() and secret.isprintable()):
        raise ValueError(f"{where}: a key must consist of printable ASCII characters: make another, or give its sha256")
    return hashlib.sha256(secret.encode()).digest()


def _limits_of(words: list[str], where: str) -> tuple[float | None, int | None]:
    """Return requests a second and requests in flight, each None if there is no limit.

    Messages do not show a word that is not understood: it may be a part of a key.
    """
    given: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("rate", "in-flight") or not equals:
            got = f"{len(words)} words after the key, of which one is neither"
            raise ValueError(f"{where}: expected {_FORM}, got {got} (a word that begins with # is a comment)")
        if name in given:
            raise ValueError(f"{where}: `{name}` is given twice: give it once")
        given[name] = value
    rate, in_flight = given.get("rate"), given.get("in-flight")
    if rate is not None and not (re.fullmatch(r"[0-9]+(\.[0-9]+)?/s", rate) and 0 < float(rate[:-2]) < math.inf):
        raise ValueError(f"{where}: `rate` must be a number above 0 of requests a second, as in rate=50/s")
    if in_flight is not None and not re.fullmatch(r"0*[1-9][0-9]{0,8}", in_flight):
        raise ValueError(f"{where}: `in-flight` must be a number of requests from 1, as in in-flight=8")
    return None if rate is None else float(rate[:-2]), None if in_flight is None else int(in_flight)
