"""Refusals and failures: a status, a type, a message, the field at fault.

======  ====================================================================================
400     `malformed`: the body cannot be read at all
401     `unauthenticated`: no key, or an unknown one
403     `forbidden`: the key may not do this; `read_only`: this server does not write
404     `not_found`, `id_not_found`
405     `method_not_allowed`
408     `body_timeout`: the body took too long to arrive
409     `conflict`: the server has no replicas to change; `id_exists`: an id is stored already;
        `several_collections`: the path names none of them
410     `version_gone`: the version that was asked for is not served any more
413     `too_large`: the body, or an image that was fetched
415     `unsupported_media_type`
422     `invalid_request`: a field is wrong; `no_encoder`: images cannot be encoded here
429     `overloaded`, with Retry-After
500     `internal`: a server error, logged under the `request_id`
503     `not_ready`, `not_written` (a full disk), `incomplete` (`missing` names the missing shards), `no_shard`
504     `deadline_exceeded`
======  ====================================================================================
"""

from __future__ import annotations

import logging
import math
import re
import secrets
from collections.abc import Mapping
from typing import Any

from hashlight.engine.errors import (
    CollectionBusyError,
    DeadlineExceededError,
    EncoderMismatchError,
    HashlightError,
    IdExistsError,
    IdNotFoundError,
    IncompleteError,
    NoShardError,
    NotReadyError,
    OverloadedError,
    VersionGoneError,
)
from hashlight.engine.service.telemetry.requests import request_id

logger = logging.getLogger(__name__)


class RequestError(Exception):
    """A refused request.

    Attributes
    ----------
    status : int
        HTTP status.
    type : str
        For programs; see the table above.
    field : str or None
        The field at fault, with dots: `queries.0.code`.
    headers : mapping
        To send with the answer.
    details : mapping
        Further fields for programs, besides `type`, `message` and `field`.
    """

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.field = field
        self.headers = dict(headers or {})
        self.details = dict(details or {})

    def document(self) -> dict[str, Any]:
        """Return the body of the answer, with the id of the request that is being handled, if there is one."""
        id_ = request_id()
        handled = {"request_id": id_} if id_ else {}
        return {"error": {"type": self.type, "message": str(self), "field": self.field, **handled, **self.details}}


def invalid(message: str, field: str | None) -> RequestError:
    """Return the refusal of a wrong field."""
    return RequestError(422, "invalid_request", message, field=field)


def named(error: ValueError) -> ValueError | RequestError:
    """Return the refusal of the argument that the searcher's message begins with, in our own words for it."""
    field = re.match(r"`(\w+)", str(error))
    return invalid(str(error), field[1] if field else None)


def refusal_of(error: Exception) -> RequestError:
    """Return the answer to a request that `error` ended.

    Errors from outside the engine are logged, and the answer gives only the id of the log entry.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, HashlightError):
        return _refusal_of_engine(error)
    id_ = request_id() or secrets.token_hex(16)
    logger.error("request %s failed", id_, exc_info=error)
    message = f"internal server error: see the server's log for request_id {id_}"
    return RequestError(500, "internal", message, details={"request_id": id_})


def _refusal_of_engine(error: HashlightError) -> RequestError:
    message = str(error)
    if isinstance(error, IdNotFoundError):
        return RequestError(404, "id_not_found", message)
    if isinstance(error, IdExistsError):
        return RequestError(409, "id_exists", message)
    if isinstance(error, CollectionBusyError):
        return RequestError(503, "not_ready", message)
    if isinstance(error, VersionGoneError):
        return RequestError(410, "version_gone", message)
    if isinstance(error, EncoderMismatchError):
        return invalid(message, "queries")
    if isinstance(error, OverloadedError):
        headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
        return RequestError(429, "overloaded", message, headers=headers)
    if isinstance(error, DeadlineExceededError):
        return RequestError(504, "deadline_exceeded", message, field="timeout_ms")
    if isinstance(error, IncompleteError):
        kind = "no_shard" if isinstance(error, NoShardError) else "incomplete"
        return RequestError(503, kind, message, details={"missing": error.missing})
    if isinstance(error, NotReadyError):
        return RequestError(503, "not_ready", message)
    logger.error("the collection cannot answer", exc_info=error)
    return RequestError(503, "not_ready", message)
