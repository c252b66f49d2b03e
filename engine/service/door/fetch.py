"""Fetching an image from a URL that a client names, without exposing our own network (SSRF).

Only https on port 443 and only hosts of an allow-list. The name is resolved once, all of its addresses must be public,
and the connection goes to the checked address, so that a later DNS answer changes nothing. No redirect is followed, no
proxy is used, nothing is decompressed, and the size is limited while the data arrives.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import httpx

from hashlight.engine.service.problems import RequestError, invalid

Resolve = Callable[[str], Awaitable[list[str]]]

_TIMEOUT_S = 10.0


async def resolve(host: str) -> list[str]:
    """Return all addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_public(address: str) -> bool:
    """Return whether an address, and any IPv4 address embedded in it, is on the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner: list[ipaddress.IPv4Address | ipaddress.IPv6Address | None] = [ip]
    if isinstance(ip, ipaddress.IPv6Address):
        inner += [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return all(one is None or (one.is_global and not one.is_multicast) for one in inner)


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
            transport=transport, follow_redirects=False, trust_env=False, timeout=_TIMEOUT_S
        )

    async def fetch(self, url: str, field: str, *, left_bytes: int | None = None) -> bytes:
        """Return the bytes at `url`.

        Parameters
        ----------
        url, field : str
        left_bytes : int, optional
            How much the request that names it may still bring.

        Raises
        ------
        RequestError
            422 for `field` if the URL is not allowed or cannot be fetched, 413 if the image is too large.
        """
        host, target = self._split(url, field)
        address = await self._address(host, field)
        pinned = f"https://[{address}]{target}" if ":" in address else f"https://{address}{target}"
        request = self._client.build_request(
            "GET",
            pinned,
            headers={"Host": host, "Accept": "image/*", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": host},
        )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._download(request, field, left_bytes)
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
            raise invalid(f"`{field}` must be an https URL on port 443 without a user name", field)
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

    async def _download(self, request: httpx.Request, field: str, left_bytes: int | None) -> bytes:
        response = await self._client.send(request, stream=True)
        try:
            if response.status_code != 200:
                raise invalid(f"`{field}` returned status {response.status_code}, expected 200", field)
            data = bytearray()
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > self._max_bytes:
                    raise _too_large(f"`{field}` is over {self._max_bytes} bytes", field)
                if left_bytes is not None and len(data) > left_bytes:
                    message = f"`{field}` exceeds the {left_bytes} bytes left for this request"
                    raise _too_large(f"{message}: split it into several requests", field)
            return bytes(data)
        finally:
            await response.aclose()


def _too_large(message: str, field: str) -> RequestError:
    return RequestError(413, "too_large", message, field=field)
