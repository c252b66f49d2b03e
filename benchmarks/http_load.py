"""An HTTP client over plain sockets; the CPU time of an ordinary client would slow the servers on the same machine."""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """One answer: its status, headers by lower-case name, and body."""

    status: int
    headers: dict[str, str]
    body: bytes


class HttpLoad:
    """Posts to one server over reusable connections, as many as there are concurrent requests."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._host, self._port = place.hostname, place.port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def request(self, path: str, content_type: str, body: bytes) -> bytes:
        """Return the bytes of a request."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: {content_type}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def send(self, request: bytes) -> Answer:
        """Send what `request` returned, and read the answer.

        Raises
        ------
        ConnectionError, asyncio.IncompleteReadError
            If the server ends a connection in the middle of an answer, or a fresh one without any.
        """
        while self._idle:
            connection = self._idle.pop()
            try:
                return await self._exchange(*connection, request)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                # A server may close an idle connection just as a request is sent on it.
                if isinstance(error, asyncio.IncompleteReadError) and error.partial:
                    raise
                connection[1].close()
        return await self._exchange(*await asyncio.open_connection(self._host, self._port), request)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Answer:
        writer.write(request)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        answer = Answer(int(first.split()[1]), headers, await _read_body(reader, headers))
        if headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return answer

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.close()


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers["content-length"]))
    chunks = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        chunks.append((await reader.readexactly(size + 2))[:-2])
    await reader.readexactly(2)
    return b"".join(chunks)
