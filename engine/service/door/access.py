"""Who may do what: the key of a request is checked before anything else of the request is looked at."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.types import Scope

from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.problems import RequestError
from hashlight.engine.service.telemetry.requests import note

METRICS_PATH = "/metrics"
REPLICAS_PATH = "/v1/replicas"
ITEMS_PATH = "/v1/items"
ADMIN_PATH = "/v1/admin"

_READING = ("GET", "HEAD", "OPTIONS")

_LOG_EVERY_S = 1.0

logger = logging.getLogger(__name__)


def scopes_of(path: str, method: str) -> tuple[str, ...]:
    """Return the scopes of which a key needs one for a path, which need not exist; none if the path is open."""
    if path.startswith(METRICS_PATH):
        return "metrics", "admin"
    if path in (REPLICAS_PATH, ADMIN_PATH) or path.startswith(f"{ADMIN_PATH}/"):
        return ("admin",)
    if path == ITEMS_PATH and method not in _READING:
        return ("write",)
    return ("search",) if path.startswith("/v1") else ()


class Access:
    """Checks keys and their limits, and counts and logs failures, without the key. Belongs to one event loop.

    Parameters
    ----------
    keys : Keys
        If there are none, everyone may do anything.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._logged_s = float("-inf")
        self._unlogged = 0

    def check(self, scope: Scope, until_sent: ExitStack) -> None:
        """Let a request in if it has a key for its path or needs none; it counts as one of its key until it is sent.

        Raises
        ------
        RequestError
            401, 403 without a key for the path, 429 if the key has reached one of its limits.
        """
        needed = scopes_of(scope["path"], scope["method"])
        if not needed or not self._keys:
            return
        headers = Headers(scope=scope)
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        secret = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        key = self._keys.find(secret)
        if key is None:
            got = "an unknown one" if secret else "none"
            self._note(scope, "unknown" if secret else "missing", f"expected a key, got {got}")
            message = f"expected a key as `Authorization: Bearer KEY`, got {got}"
            raise RequestError(401, "unauthenticated", message, headers={"WWW-Authenticate": "Bearer"})
        note(key=key.name)
        if key.scopes.isdisjoint(needed):
            lacks = f"key {key.name} lacks the scope {needed[0]}"
            self._note(scope, "scope", lacks)
            raise RequestError(403, "forbidden", lacks)
        try:
            until_sent.enter_context(self._keys.request(key))
        except RequestError as refusal:
            self._note(scope, refusal.details["limit"], str(refusal))
            raise

    def _note(self, scope: Scope, reason: str, text: str) -> None:
        """Count a failure, and log it, at most one a second, so that whoever tries keys does not fill the disk."""
        self._keys.refusals[reason] += 1
        now_s = time.monotonic()
        if now_s - self._logged_s < _LOG_EVERY_S:
            self._unlogged += 1
            return
        client = (scope.get("client") or ("unknown",))[0]
        more = f" ({self._unlogged} more since the last line)" if self._unlogged else ""
        logger.warning("refused %s %.200r of %s: %s%s", scope["method"], scope["path"], client, text, more)
        self._logged_s, self._unlogged = now_s, 0
