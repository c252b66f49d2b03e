"""How much a key may still ask for: requests a second, and requests in flight."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Literal

from hashlight.engine.service.problems import RequestError

Limit = Literal["rate", "in_flight"]

_ROUNDING = 1e-9  # of a request, so that one that comes exactly when it may is not refused


class Allowance:
    """What one key has taken of its limits. Belongs to one event loop.

    A key with a rate may make as many requests at once as it may in a second, at least one, and then one as often as
    the rate says. The limits may change from one request to the next; what was taken before stays taken.

    Parameters
    ----------
    clock : callable
        Returns seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spent = 0.0  # requests that the rate has not made up for yet
        self._spent_s = clock()
        self.in_flight = 0

    @contextlib.contextmanager
    def request(self, name: str, *, rate: float | None, in_flight: int | None) -> Iterator[None]:
        """Count a request of the key called `name` as in flight within the context.

        Parameters
        ----------
        name : str
            For messages.
        rate : float or None
            Requests a second; None for any number.
        in_flight : int or None
            Requests at once; None for any number.

        Raises
        ------
        RequestError
            429 if one of the limits is reached; `details` says which, as `limit`.
        """
        if in_flight is not None and self.in_flight >= in_flight:
            requests = "request" if in_flight == 1 else "requests"
            message = f"key {name} may have {in_flight} {requests} in flight: wait for an answer before the next"
            raise _refusal(message, "in_flight", 1.0)
        if rate is not None:
            self._spend(name, rate)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def _spend(self, name: str, rate: float) -> None:
        now_s = self._clock()
        self._spent = max(0.0, self._spent - rate * (now_s - self._spent_s))
        self._spent_s = now_s
        excess = self._spent + 1 - max(1.0, rate)
        if excess > _ROUNDING:
            message = f"key {name} may make {rate:g} requests a second: try again in {excess / rate:.2g} s"
            raise _refusal(message, "rate", excess / rate)
        self._spent += 1


def _refusal(message: str, limit: Limit, wait_s: float) -> RequestError:
    headers = {"Retry-After": str(max(1, math.ceil(wait_s)))}
    return RequestError(429, "overloaded", message, headers=headers, details={"limit": limit})
