"""The end of a server: it stops being ready, answers for a while what still arrives, and closes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DELAY_S = 5.0  # in which load balancers notice
DRAIN_S = 30.0  # for what is in progress after that

# In the scope of a request: whether the server is about to end, and is no longer ready.
DRAINING = "hashlight.draining"


class Drain:
    """ASGI middleware that after `begin` tells the application, and asks clients to connect elsewhere.

    Requests are still answered then, because a load balancer sends some until it has looked again; each answer closes
    its connection.

    Parameters
    ----------
    app : ASGI application
    delay_s : float
        How long requests are answered after `begin`.
    clock : callable
        Returns seconds.
    """

    def __init__(self, app: ASGIApp, *, delay_s: float = DELAY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._delay_s = delay_s
        self._clock = clock
        self._begun_s: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start" and self.begun:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        scope[DRAINING] = self.begun
        await self._app(scope, receive, send_on)

    @property
    def begun(self) -> bool:
        """Whether the server is to end."""
        return self._begun_s is not None

    @property
    def left_s(self) -> float:
        """Seconds until the server closes whatever is in progress; infinite before `begin`."""
        return (
            float("inf") if self._begun_s is None else max(0.0, self._begun_s + self._delay_s + DRAIN_S - self._clock())
        )

    @property
    def over(self) -> bool:
        """Whether the server may close its socket, and finish what is in progress."""
        return self._begun_s is not None and self._clock() >= self._begun_s + self._delay_s

    def begin(self) -> None:
        """Stop being ready."""
        if self._begun_s is None:
            self._begun_s = self._clock()


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which would close its socket at once, with a drain before that."""

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or end at once."""
        if sig != signal.SIGTERM or self._drain.begun:
            super().handle_exit(sig, frame)
        self._drain.begin()

    async def on_tick(self, counter: int) -> bool:
        """End when the drain is over; called every 0.1 s."""
        if self._drain.over and not self.should_exit:
            self.config.timeout_graceful_shutdown = int(self._drain.left_s) + 1
            super().handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)
