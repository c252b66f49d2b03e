"""Where the addresses of shard servers come from: names that are resolved again and again, or a watched file."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from hashlight.engine.service.protocol.exposure import split_address

RESOLVE_S = 1.0  # that a look waits for names; later answers are used by the next one
_DNS = "dns:///"

# Returns the addresses `HOST:PORT` of the servers of each group, one `HOST:PORT#NAME` where NAME is in the certificate.
Source = Callable[[], Sequence[Sequence[str]]]


class NamedServers:
    """Servers by the names of their groups: every address of a name is a server.

    A name that cannot be resolved keeps the addresses that it had.

    Parameters
    ----------
    pattern : str
        `dns:///HOST:PORT` with `{group}` in the place of the group's number, of which the first is 1.
    groups : int

    Raises
    ------
    ValueError
        If the pattern is not one.
    """

    def __init__(self, pattern: str, groups: int) -> None:
        if groups < 1:
            raise ValueError(f"`groups` must be at least 1, got {groups}")
        named = pattern.removeprefix(_DNS)
        if not pattern.startswith(_DNS) or ("{group}" not in named and groups > 1):
            raise ValueError(
                "the servers' names must be `dns:///HOST:PORT` with `{group}` for the number of the group, such as "
                f"dns:///shard-{{group}}.shards.svc:8815, got {pattern!r}"
            )
        self.groups = groups
        self._names = [split_address(named.replace("{group}", str(group))) for group in range(1, groups + 1)]
        self._known: list[Sequence[str]] = [()] * groups
        self._asked: dict[int, Future[Sequence[str]]] = {}
        self._pool = ThreadPoolExecutor(min(groups, 16), thread_name_prefix="hashlight-names")

    def __repr__(self) -> str:
        """Show the names."""
        return f"NamedServers({self._names[0][0]}:{self._names[0][1]}, {self.groups} groups)"

    def __call__(self) -> Sequence[Sequence[str]]:
        """Resolve all names, as far as that takes no longer than `RESOLVE_S`."""
        for group, name in enumerate(self._names):
            if group not in self._asked:
                self._asked[group] = self._pool.submit(resolve, *name)
        wait(self._asked.values(), RESOLVE_S)
        for group, asked in list(self._asked.items()):
            if asked.done():
                del self._asked[group]
                if asked.exception() is None:
                    self._known[group] = asked.result()
        return list(self._known)


def resolve(host: str, port: int) -> Sequence[str]:
    """Return every address of a name, `IP:PORT#NAME`; OSError if it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = {str(entry[4][0]) for entry in found}
    return [f"{f'[{one}]' if ':' in one else one}:{port}#{host}" for one in sorted(addresses)]


class MapFile:
    """Servers as a file lists them, `{"groups": [["HOST:PORT", ...], ...]}`, read again when it changes.

    Parameters
    ----------
    path : Path
    groups : int, optional
        How many groups it must have.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is not such a list.
    """

    def __init__(self, path: Path, groups: int | None = None) -> None:
        self._path, self._groups = path, groups
        self._stamp: object = None
        self._known: Sequence[Sequence[str]] = ()
        self()

    def __repr__(self) -> str:
        """Name the file."""
        return f"MapFile({str(self._path)!r})"

    def __call__(self) -> Sequence[Sequence[str]]:
        """Return the addresses; errors as when it is made, then those that were read before are still good."""
        found = self._path.stat()
        stamp = found.st_mtime_ns, found.st_ino, found.st_size
        if stamp != self._stamp:
            self._known = parse_map(self._path.read_bytes(), what=str(self._path))
            if self._groups not in (None, len(self._known)):
                raise ValueError(f"{self._path} has {len(self._known)} groups, expected {self._groups}")
            self._stamp = stamp
        return self._known


def parse_map(data: bytes, *, what: str) -> Sequence[Sequence[str]]:
    """Return the addresses of a map; ValueError that names `what` if it is not one."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from error
    groups: Any = document.get("groups") if isinstance(document, dict) else None
    if not isinstance(groups, list) or not groups or not all(isinstance(group, list) for group in groups):
        raise ValueError(f'{what} must be {{"groups": [["HOST:PORT", ...], ...]}}, got {data[:100]!r}')
    for group in groups:
        for address in group:
            if not isinstance(address, str):
                raise ValueError(f"{what} must have addresses `HOST:PORT`, got {address!r}")
            split_address(address.partition("#")[0])
    return groups
