"""API keys: who may do what.

Keys are given one a line in a file or in the environment variable `HASHLIGHT_API_KEYS`::

    # name   scopes         key
    page     search         5VQ3N0TjZk0mXo2mQwq1rA
    loader   search,write   sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    ops      admin          _8Hn2tYp4XbJrLq7uCwZ1g

A key has at least 16 characters (`python -c "import secrets; print(secrets.token_urlsafe())"` makes one), or is given
as the hex SHA-256 of one, so that the file need not hold the secret itself. Only hashes are kept in memory. A request
sends its key as `Authorization: Bearer KEY` or as `X-API-Key: KEY`.

Routes require the scope `search` or `admin`; none requires `write` yet.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

SCOPES = ("search", "write", "admin")
ENVIRONMENT = "HASHLIGHT_API_KEYS"
MIN_LENGTH = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """A key: its owner, its scopes and its SHA-256."""

    name: str
    scopes: frozenset[str]
    digest: bytes = dataclasses.field(repr=False)


class Keys:
    """The keys that a server knows.

    Parameters
    ----------
    keys : iterable of Key
        If empty, anyone who reaches the server may do anything.
    """

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._keys)

    def __repr__(self) -> str:
        """List the keys without their secrets."""
        named = [f"{key.name}: {'+'.join(sorted(key.scopes))}" for key in self._keys]
        return f"Keys({', '.join(named) or 'none'})"

    @classmethod
    def load(cls, path: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the keys from a file, or from the environment if no file is given.

        Raises
        ------
        ValueError
            If a line is not a key; the message gives its number, never its contents.
        OSError
            If the file cannot be read.
        """
        source = f"{path}" if path is not None else ENVIRONMENT
        text = Path(path).read_text() if path is not None else environment.get(ENVIRONMENT, "")
        lines = ((number, line.split("#")[0].split()) for number, line in enumerate(text.splitlines(), 1))
        keys = [_parse(words, f"{source}, line {number}") for number, words in lines if words]
        if path is not None and not keys:
            raise ValueError(f"{path} has no keys: expected lines `NAME SCOPES KEY`")
        return cls(keys)

    def find(self, secret: str) -> Key | None:
        """Return the key with that secret, in a time that reveals nothing about the keys."""
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _parse(words: list[str], where: str) -> Key:
    if len(words) != 3:
        raise ValueError(f"{where}: expected `NAME SCOPES KEY`, got {len(words)} words")
    name, scopes, secret = words[0], frozenset(words[1].split(",")), words[2]
    if not scopes <= set(SCOPES):
        raise ValueError(f"{where}: scopes must be {', '.join(SCOPES)}, joined by commas, got {words[1]!r}")
    hashed = re.fullmatch(r"sha256:([0-9a-fA-F]{64})", secret)
    if hashed is None and len(secret) < MIN_LENGTH:
        raise ValueError(f"{where}: a key must have at least {MIN_LENGTH} characters, got {len(secret)}")
    return Key(name, scopes, bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(secret.encode()).digest())
