"""Addresses `HOST:PORT`, and whether they can be reached from other machines."""

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


def split_address(text: str) -> tuple[str, int]:
    """Return the host and the port of `HOST:PORT`; ValueError if it is something else."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"expected HOST:PORT with a port of 0 to 65535, got {text!r}")
    if ":" in host and not text.startswith("["):
        raise ValueError(f"expected an address of IPv6 in brackets, as in [::1]:9090, got {text!r}")
    return host, int(port)
