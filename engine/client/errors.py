"""The exceptions of a client.

Servers and collections opened in this process raise the same types::

    HashlightError
    ├── ClientError                 raised by the client itself
    │   ├── ConnectionFailedError   the server cannot be reached, or disconnected; also a ConnectionError
    │   ├── InvalidRequestError     the server refuses the request; also a ValueError, as from a local collection
    │   ├── AuthenticationError     no key, or an unknown one
    │   ├── PermissionDeniedError   the key may not do this
    │   └── ServerError             the server failed, or its answer cannot be read
    ├── IdNotFoundError             the collection has no such item
    ├── IdExistsError               an id to add is there already; also a ValueError
    ├── VersionGoneError            the version to go on in is not served any more
    ├── DeadlineExceededError       no answer within `timeout_s`; also a TimeoutError
    ├── OverloadedError             the server is overloaded; retried before it is raised
    ├── NotReadyError               the server cannot answer yet; retried before it is raised
    └── IncompleteError             shards are missing from an answer that must be complete
        └── NoShardError            no shard answered
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hashlight.engine.errors import (
    DeadlineExceededError,
    HashlightError,
    IdExistsError,
    IdNotFoundError,
    IncompleteError,
    NoShardError,
    NotReadyError,
    OverloadedError,
    VersionGoneError,
)

__all__ = [
    "AuthenticationError",
    "ClientError",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "HashlightError",
    "IdExistsError",
    "IdNotFoundError",
    "IncompleteError",
    "InvalidRequestError",
    "NoShardError",
    "NotReadyError",
    "OverloadedError",
    "PermissionDeniedError",
    "ServerError",
    "VersionGoneError",
    "error_of",
]


class ClientError(HashlightError):
    """Raised by the client itself."""


class ConnectionFailedError(ClientError, ConnectionError):
    """The server cannot be reached, or disconnected before it answered."""


class InvalidRequestError(ClientError, ValueError):
    """The server refuses the request.

    Attributes
    ----------
    status : int
        HTTP status.
    type : str
        For programs, such as "invalid_request" or "too_large".
    field : str or None
        The field at fault, such as `queries.0.code`.
    """

    def __init__(self, message: str, *, status: int, type: str, field: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.field = field


class AuthenticationError(ClientError):
    """The request has no key, or an unknown one."""


class PermissionDeniedError(ClientError):
    """The key may not do this."""


class ServerError(ClientError):
    """The server failed, or its answer cannot be read."""


_BY_TYPE: dict[str, type[HashlightError]] = {
    "unauthenticated": AuthenticationError,
    "forbidden": PermissionDeniedError,
    "id_exists": IdExistsError,
    "id_not_found": IdNotFoundError,
    "read_only": PermissionDeniedError,
    "deadline_exceeded": DeadlineExceededError,
    "not_ready": NotReadyError,
    "version_gone": VersionGoneError,
}


def error_of(status: int, document: Any, headers: Mapping[str, str]) -> HashlightError:
    """Return the exception for a server's error response.

    Parameters
    ----------
    status : int
    document : object
        The body, if it was JSON.
    headers : mapping
    """
    told = document.get("error") if isinstance(document, dict) else None
    if not isinstance(told, dict) or not {"type", "message"} <= told.keys():
        if status == 503:
            return OverloadedError("the server accepts no more connections", retry_after_s=retry_after_s(headers))
        return ServerError(f"the server returned status {status} without a reason: is it a Hashlight gateway?")
    kind, message = str(told["type"]), str(told["message"])
    if kind == "overloaded":
        return OverloadedError(message, retry_after_s=retry_after_s(headers))
    if kind in ("incomplete", "no_shard"):
        return (NoShardError if kind == "no_shard" else IncompleteError)(message, missing=told.get("missing", {}))
    if kind in _BY_TYPE:
        return _BY_TYPE[kind](message)
    if status >= 500:
        return ServerError(message)
    return InvalidRequestError(message, status=status, type=kind, field=told.get("field"))


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Return the seconds in a Retry-After header, 1 without one."""
    text = headers.get("retry-after", "1")
    return float(text) if text.isdecimal() else 1.0
