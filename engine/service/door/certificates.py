"""The certificates of a server over https, read again when their files change."""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path

from hashlight.engine.places.files import stamp_of
from hashlight.engine.service.protocol.certificates import server_context

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


class FollowedCertificates:
    """A TLS context that uses what its files hold by the time a client connects.

    Whoever renews certificates replaces the files; connections that are open go on. While the files cannot be used, as
    between the replacement of a certificate and that of its key, what was read last stays in use.

    Parameters
    ----------
    certificate, private_key : Path
        PEM files; the certificate with those that link it to its authority.
    client_authority : Path, optional
        PEM file of authorities: only clients with a certificate that one of them has signed can connect.

    Attributes
    ----------
    context : ssl.SSLContext
        For the server, for good.

    Raises
    ------
    ValueError
        If the files cannot be used together.
    OSError
        If one cannot be read.
    """

    def __init__(self, certificate: Path, private_key: Path, client_authority: Path | None = None) -> None:
        self._certificate, self._private_key, self._client_authority = certificate, private_key, client_authority
        self._stamps = self._stamps_now()
        self._looked_s = time.monotonic()
        self._current = self._read()
        # Loading into a context that is in use would keep the old certificate beside one with another kind of key, and
        # leave none if the new key is not that of the certificate.
        self.context = self._read()
        self.context.sni_callback = self._choose

    def renew(self) -> bool:
        """Read the files again if they have changed; return whether what they hold is in use now.

        Files that cannot be used are logged once and change nothing.
        """
        self._looked_s = time.monotonic()
        stamps = self._stamps_now()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            self._current = self._read()
        except (OSError, ValueError) as error:
            logger.warning("the certificate for https stays the one that was read before: %s", error)
            return False
        logger.info("the certificate for https was read from %s", self._certificate)
        return True

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Give a connection the certificates in use; called for every one, also if it does not name a server."""
        if time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self.renew()
        connection.context = self._current

    def _stamps_now(self) -> tuple[object, ...]:
        return tuple(stamp_of(path) for path in self._files())

    def _files(self) -> list[Path]:
        files = [self._certificate, self._private_key, self._client_authority]
        return [path for path in files if path is not None]

    def _read(self) -> ssl.SSLContext:
        return server_context(self._certificate, self._private_key, self._client_authority)
