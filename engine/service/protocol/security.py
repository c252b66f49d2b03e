"""Authentication between routers and shard servers: a shared token, and certificates on untrusted networks."""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pyarrow.flight as flight

from hashlight.engine.service.protocol.certificates import server_context

TOKEN_VARIABLE = "HASHLIGHT_SHARD_TOKEN"


@dataclasses.dataclass(frozen=True, slots=True)
class Security:
    """How a Flight connection is protected; the same for both sides.

    Attributes
    ----------
    token : str or None
        Required in every call.
    certificate, key : bytes or None
        PEM files. A shard server that has them uses TLS.
    authority : bytes or None
        PEM of the certificates' issuer. A router verifies servers by it; a server that has it requires client
        certificates.
    files : tuple of Path or None
        Where `certificate`, `key` and `authority` were read, if they were, so that they can be read again. They are
        files of this machine, and are left out when this object goes to another.
    """

    token: str | None = dataclasses.field(default=None, repr=False)
    certificate: bytes | None = dataclasses.field(default=None, repr=False)
    key: bytes | None = dataclasses.field(default=None, repr=False)
    authority: bytes | None = None
    files: tuple[Path | None, ...] = dataclasses.field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a certificate and its key go together: give both, or neither")

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the files out."""
        return type(self), (self.token, self.certificate, self.key, self.authority)

    @classmethod
    def from_files(
        cls,
        *,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        authority: str | Path | None = None,
        fresh_token: bool = False,
    ) -> Self:
        """Read PEM files, and the token from the environment (`HASHLIGHT_SHARD_TOKEN`), else generate one."""
        files = tuple(None if path is None else Path(path) for path in (certificate, key, authority))
        token = os.environ.get(TOKEN_VARIABLE) or (secrets.token_urlsafe() if fresh_token else None)
        pems = _read(files)
        return cls(token, pems[0], pems[1], pems[2], files if any(files) else ())

    def renewed(self) -> Self:
        """Return it with what its files hold now; itself without files.

        Raises
        ------
        OSError
            If one cannot be read.
        ValueError
            If certificate and key do not fit, or are being replaced.
        """
        if not self.files:
            return self
        pems = _read(self.files)
        certificate, key, authority = self.files
        if certificate is not None and key is not None:
            server_context(certificate, key, authority)
        if _read(self.files) != pems:
            raise ValueError(f"{', '.join(str(path) for path in self.files if path)} are being replaced")
        return dataclasses.replace(self, certificate=pems[0], key=pems[1], authority=pems[2])

    @property
    def scheme(self) -> str:
        """Scheme of a server's address."""
        return "grpc" if self.certificate is None and self.authority is None else "grpc+tls"

    def url(self, address: str) -> str:
        """Return the address of a server, for `connect`, from `HOST:PORT` or `HOST:PORT#NAME`."""
        return f"{self.scheme}://{address if self.scheme == 'grpc+tls' else address.partition('#')[0]}"

    def connect(self, address: str, **options: Any) -> flight.FlightClient:
        """Return a client of a server's address, which may end in `#NAME`: the name in the server's certificate.

        Certificates are those that the files hold now, or were read last if those cannot be used.

        Parameters
        ----------
        address : str
            `grpc://HOST:PORT` or `grpc+tls://HOST:PORT`.
        **options
            Further keywords of `pyarrow.flight.FlightClient`.
        """
        location, _, name = address.partition("#")
        if name:
            options["override_hostname"] = name
        current = self
        with contextlib.suppress(OSError, ValueError):
            current = self.renewed()
        return flight.FlightClient(location, **current.client_options(), **options)

    def server_options(self) -> dict[str, Any]:
        """Return the keywords of `pyarrow.flight.FlightServerBase`."""
        options: dict[str, Any] = {}
        if self.token is not None:
            options["middleware"] = {"token": _TokenCheck(self.token)}
        if self.certificate is not None:
            options["tls_certificates"] = [(self.certificate, self.key)]
            if self.authority is not None:
                options |= {"verify_client": True, "root_certificates": self.authority}
        return options

    def client_options(self) -> dict[str, Any]:
        """Return the keywords of `pyarrow.flight.FlightClient`."""
        named = {"tls_root_certs": self.authority, "cert_chain": self.certificate, "private_key": self.key}
        return {name: value for name, value in named.items() if value is not None}

    def call_options(self, *, timeout_s: float | None = None) -> flight.FlightCallOptions:
        """Return the options of a call, which carry the token."""
        headers = [] if self.token is None else [(b"authorization", f"Bearer {self.token}".encode())]
        return flight.FlightCallOptions(timeout=timeout_s, headers=headers)


def _read(files: tuple[Path | None, ...]) -> list[bytes | None]:
    return [None if path is None else path.read_bytes() for path in files]


class _TokenCheck(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Refuses calls without the token, in constant time."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    def start_call(self, info: Any, headers: Mapping[str, list[str]]) -> None:
        given = headers.get("authorization") or [""]
        if not hmac.compare_digest(given[0].encode(), self._expected):
            raise flight.FlightUnauthenticatedError(
                "this shard server requires a token: give the one it was started with"
            )
