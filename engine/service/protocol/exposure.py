"""Whether a listening host can be reached from other machines."""

from __future__ import annotations

import ipaddress
import socket


def is_loopback(host: str, port: int = 0) -> bool:
    """Return whether only this machine can reach every address of `host`.

    Raises
    ------
    ValueError
        If `host` cannot be resolved.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"`host` {host!r} cannot be resolved: {error}") from error
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)
