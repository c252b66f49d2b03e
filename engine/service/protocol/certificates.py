"""Certificates in files, checked before they are used."""

from __future__ import annotations

import ssl
from pathlib import Path


def server_context(certificate: Path, private_key: Path, client_authority: Path | None = None) -> ssl.SSLContext:
    """Return what a server needs for TLS.

    Parameters
    ----------
    certificate, private_key : Path
        PEM files; the certificate with those that link it to its authority.
    client_authority : Path, optional
        PEM file of authorities, one of which must have signed the certificate of a client.

    Raises
    ------
    ValueError
        If the files cannot be used together.
    OSError
        If one cannot be read.
    """
    for path in (certificate, private_key, client_authority):
        if path is not None:
            path.read_bytes()  # its errors name the file, which those of TLS do not
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, private_key, _refuse_password)
    except ssl.SSLError as error:
        raise ValueError(
            f"{certificate} and {private_key} must be a certificate and its private key (PEM): {error}"
        ) from error
    if client_authority is not None:
        try:
            context.load_verify_locations(client_authority)
        except ssl.SSLError as error:
            raise ValueError(f"{client_authority} must have certificates (PEM): {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _refuse_password() -> str:
    """Refuse an encrypted key, for which OpenSSL would ask at the terminal."""
    raise ValueError("the private key is encrypted: give one that is not, readable by the server alone")
