"""Actions of a shard server: orders and questions as JSON, each a `DoAction` call."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from hashlight.engine.errors import NotReadyError
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.protocol.wire import decode_error

ACTION_S = 600.0  # a machine hashes a large version when it first opens it

_UNREACHABLE = (flight.FlightError, pa.ArrowException, OSError)


class UnreachableError(NotReadyError):
    """A server does not answer, so it may or may not be alive."""


class Caller:
    """Sends actions to whichever server has an address, over one connection. Thread-safe.

    Parameters
    ----------
    address : str
        As of `Security.connect`.
    security : Security, optional
        As the server's.
    """

    def __init__(self, address: str, security: Security | None = None) -> None:
        self.address = address
        self._security = security or Security()
        self._client = self._security.connect(address)

    def call(self, action: str, *, timeout_s: float = ACTION_S, **arguments: Any) -> dict[str, Any]:
        """Send an action (see `engine.service.shards.server`) and return its reply.

        With the argument `instance`, only the server of that name obeys.

        Raises
        ------
        UnreachableError
            If it does not answer.
        OtherServerError
            If another server has the address by now.
        HashlightError, TypeError, ValueError
            If it fails.
        """
        try:
            order = flight.Action(action, json.dumps(arguments).encode())
            outcome, body = self._client.do_action(order, self._security.call_options(timeout_s=timeout_s))
        except _UNREACHABLE as error:
            # Its own attempts to connect again would use the certificates that it began with.
            if self._security.files:
                self._client = self._security.connect(self.address)
            raise UnreachableError(f"{self.address} cannot be reached: {error}") from error
        if outcome.body.to_pybytes() == b"error":
            raise decode_error(memoryview(body.body))
        told: dict[str, Any] = json.loads(body.body.to_pybytes())
        return told

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def control(
    address: str, action: str, security: Security | None = None, *, timeout_s: float = ACTION_S, **arguments: Any
) -> dict[str, Any]:
    """Send one action over a connection of its own; see `Caller.call`."""
    try:
        caller = Caller(address, security)
    except _UNREACHABLE as error:
        raise UnreachableError(f"{address} cannot be reached: {error}") from error
    try:
        return caller.call(action, timeout_s=timeout_s, **arguments)
    finally:
        caller.close()
