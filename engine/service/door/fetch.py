"""Fetching an image from a URL that a client names, without exposing our own network (SSRF).

Only https on port 443 and only hosts of an allow-list. The name is resolved once, all of its addresses must be public,
and the connection goes to the checked address, so that a later DNS answer changes nothing. No connection is used twice,
no redirect is followed, no proxy is used, nothing is decompressed, and the size is limited while the data arrives.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import urlsplit

import httpx

from hashlight.engine.errors import OverloadedError
from hashlight.engine.service.problems import RequestError, invalid

Resolve = Callable[[str], Awaitable[list[str]]]

_TIMEOUT_S = 10.0
_TIMEOUT = httpx.Timeout(_TIMEOUT_S, pool=_TIMEOUT_S / 2)  # of each step
_AT_ONCE = 8  # for one request

# A connection belongs to an address, while the certificate that was checked on it is that of one host: none is kept for
# a request that may be to another.
_CONNECTIONS = httpx.Limits(max_connections=64, max_keepalive_connections=0)

# What an IPv6 address may be: global unicast, which IANA assigns addresses from, or an IPv4 address in one of the forms
# that systems connect to as such. All else is local, historic or reserved, whatever it is called.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


async def resolve(host: str) -> list[str]:
    """Return all addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_public(address: str) -> bool:
    """Return whether an address, and any IPv4 address embedded in it, is on the public internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    if ip.scope_id is not None:
        return False
    if ip.ipv4_mapped is not None or ip in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    inner = [embedded for embedded in (ip.sixtofour, *(ip.teredo or ())) if embedded is not None]
    return ip in _GLOBAL_UNICAST and ip.is_global and all(is_public(str(embedded)) for embedded in inner)


class ImageFetcher:
    """Fetches images from allowed hosts.

    Parameters
    ----------
    allow : sequence of str
        Hosts, such as `images.example.com`; `.example.com` allows all of its subdomains.
    max_bytes : int
        Limit for one image.
    resolve : callable
        Name -> addresses.
    transport : httpx.AsyncBaseTransport, optional
        Replaces the network.
    """

    def __init__(
        self,
        allow: Sequence[str],
        *,
        max_bytes: int,
        resolve: Resolve = resolve,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._allow = tuple(host.lower().rstrip(".") for host in allow)
        self._max_bytes = max_bytes
        self._resolve = resolve
        self._client = httpx.AsyncClient(
            transport=transport, limits=_CONNECTIONS, follow_redirects=False, trust_env=False, timeout=_TIMEOUT
        )

    async def fetch_all(self, urls: Mapping[str, str], *, max_bytes: int) -> dict[str, bytes]:
        """Return the bytes at several URLs, a few at a time.

        Parameters
        ----------
        urls : mapping of str to str
            Field of the request -> URL.
        max_bytes : int
            Limit for all of them together.

        Returns
        -------
        dict of str to bytes
            Field -> image.

        Raises
        ------
        RequestError
            422 for the field of a URL that is not allowed or cannot be fetched, 413 if an image is too large or all are
            together. The first to fail ends the others.
        OverloadedError
            If too many images are being fetched.
        """
        room, turns = _Room(max_bytes), asyncio.Semaphore(_AT_ONCE)

        async def fetch(field: str, url: str) -> bytes:
            async with turns:
                return await self._fetch(url, field, room)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {field: group.create_task(fetch(field, url)) for field, url in urls.items()}
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {field: task.result() for field, task in tasks.items()}

    async def _fetch(self, url: str, field: str, room: _Room) -> bytes:
        host, target = self._split(url, field)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                address = await self._address(host, field)
                pinned = f"https://[{address}]{target}" if ":" in address else f"https://{address}{target}"
                request = self._client.build_request(
                    "GET",
                    pinned,
                    headers={"Host": host, "Accept": "image/*", "Accept-Encoding": "identity"},
                    extensions={"sni_hostname": host},
                )
                return await self._download(request, field, room)
        except httpx.PoolTimeout as error:
            raise OverloadedError("too many images are being fetched: try again", retry_after_s=1) from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise invalid(f"`{field}` cannot be fetched: {type(error).__name__}", field) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _split(self, url: str, field: str) -> tuple[str, str]:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise invalid(f"`{field}` is not a valid URL: {error}", field) from error
        if parts.scheme != "https" or port not in (None, 443) or parts.username is not None or "\\" in url:
            named = f"{parts.scheme}://{(parts.hostname or '')[:100]}{f':{port}' if port else ''}"
            got = named if parts.username is None else f"{named} with one"
            raise invalid(f"`{field}` must be an https URL on port 443 without a user name, got {got}", field)
        host = (parts.hostname or "").lower().rstrip(".")
        if not any(host == one or (one.startswith(".") and host.endswith(one)) for one in self._allow):
            raise invalid(f"`{field}`: images of host {host[:100]!r} are not allowed here", field)
        return host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    async def _address(self, host: str, field: str) -> str:
        try:
            addresses = await self._resolve(host)
        except (OSError, UnicodeError) as error:
            raise invalid(f"`{field}`: host {host} cannot be resolved", field) from error
        if not addresses or not all(is_public(address) for address in addresses):
            raise invalid(f"`{field}`: host {host} has an address that is not public", field)
        return addresses[0]

    async def _download(self, request: httpx.Request, field: str, room: _Room) -> bytes:
        response = await self._client.send(request, stream=True)
        try:
            if response.status_code != 200:
                raise invalid(f"`{field}` returned status {response.status_code}, expected 200", field)
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > self._max_bytes:
                    raise _too_large(f"`{field}` is over {self._max_bytes} bytes", field)
                room.left_bytes -= len(chunk)
                if room.left_bytes < 0:
                    message = f"the images to fetch are over {room.max_bytes} bytes together"
                    raise _too_large(f"{message}: split them into several requests", field)
            return bytes(data)
        finally:
            await response.aclose()


class _Room:
    """How much the images of one request may still bring."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = self.left_bytes = max_bytes


def _too_large(message: str, field: str) -> RequestError:
    return RequestError(413, "too_large", message, field=field)
