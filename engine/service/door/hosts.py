"""Which names a server may be asked by."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hashlight.engine.service.problems import RequestError


class KnownHosts:
    """ASGI middleware that refuses requests whose Host header is none of some names.

    Starlette's middleware decides; its own refusal is plain text, without what all other errors have.

    Parameters
    ----------
    app : ASGI application
    allowed_hosts : sequence of str
        As `TrustedHostMiddleware` takes them.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._allowed = list(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or await self._is_known(scope, receive):
            await self._app(scope, receive, send)
            return
        message = f"this server answers to {', '.join(self._allowed)}, and the request is for another host"
        refusal = RequestError(400, "malformed", message)
        await JSONResponse(refusal.document(), refusal.status)(scope, receive, send)

    async def _is_known(self, scope: Scope, receive: Receive) -> bool:
        known = False

        async def accept(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal known
            known = True

        async def drop(message: Message) -> None:
            """Leave out the refusal."""

        await TrustedHostMiddleware(accept, self._allowed, www_redirect=False)(scope, receive, drop)
        return known
