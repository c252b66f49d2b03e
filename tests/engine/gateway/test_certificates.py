"""Certificates of a running server: renewed without a restart, and asked of clients."""

from __future__ import annotations

import os
import socket
import ssl

import httpx
import pytest

from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.door.certificates import FollowedCertificates
from hashlight.engine.service.door.http_server import Address, HttpServer, check_exposure
from hashlight.engine.service.door.keys import Keys
from tests import serving
from tests.certificates import issue
from tests.engine.service.conftest import eventually


def served_by(url):
    """The certificate that a server shows, whatever it is."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    parts = httpx.URL(url)
    with (
        socket.create_connection((parts.host, parts.port), timeout=60) as plain,
        context.wrap_socket(plain) as connection,
    ):
        return connection.getpeercert(binary_form=True)


def trusting(*authorities, shows=None):
    context = ssl.create_default_context(cadata="".join(one.pem.decode() for one in authorities))
    if shows is not None:
        context.load_cert_chain(*shows)
    return context


def replace(path, data):
    """Put another file in the place of one."""
    aside = path.with_suffix(".new")
    aside.write_bytes(data)
    os.replace(aside, path)


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_a_running_server_shows_the_certificate_that_its_files_have(searcher, tmp_path, caplog, kind):
    """With a key of the same and of another kind, and the two files replaced one after the other."""
    first, second = issue("first"), issue("second", kind=kind)
    certificate, key = first.write(tmp_path, "server")
    with (
        serving.running(create_app(searcher), certificate=certificate, private_key=key, head_s=600) as url,
        httpx.Client(base_url=url, verify=trusting(first)) as http,
    ):
        assert http.get("/health/live").status_code == 200
        assert served_by(url) == first.der
        replace(certificate, second.pem)
        eventually(lambda: served_by(url) == first.der and "stays the one that was read before" in caplog.text)
        assert f"{certificate} and {key} must be a certificate and its private key" in caplog.text
        replace(key, second.key_pem())
        eventually(lambda: served_by(url) == second.der)
        assert served_by(url) == second.der
        assert httpx.get(f"{url}/health/live", verify=trusting(second)).status_code == 200
        assert http.get("/health/live").status_code == 200  # over its open connection: a new one it would not trust


def test_only_clients_with_a_certificate_of_the_authority_that_is_in_force_can_connect(searcher, tmp_path):
    server, clients, others = issue("server"), issue("clients"), issue("others")
    certificate, key = server.write(tmp_path, "server")
    (tmp_path / "clients.pem").write_bytes(clients.pem)
    one = issue("one", by=clients).write(tmp_path, "one")
    other = issue("other", by=others).write(tmp_path, "other")
    more = {"certificate": certificate, "private_key": key, "client_authority": tmp_path / "clients.pem"}
    with serving.running(create_app(searcher), **more) as url:

        def is_let_in(shows):
            try:
                return httpx.get(f"{url}/health/live", verify=trusting(server, shows=shows)).status_code == 200
            except httpx.TransportError:
                return False

        assert [is_let_in(None), is_let_in(one), is_let_in(other)] == [False, True, False]
        replace(tmp_path / "clients.pem", others.pem)
        eventually(lambda: is_let_in(other))
        assert [is_let_in(None), is_let_in(one), is_let_in(other)] == [False, False, True]


def test_a_server_that_asks_for_certificates_may_be_reached_from_other_machines(tmp_path):
    certificate, key = issue("server").write(tmp_path, "server")
    with pytest.raises(ValueError, match="ask clients for certificates"):
        check_exposure(Address(host="0.0.0.0", certificate=certificate, private_key=key), Keys(), insecure=False)
    address = Address(host="0.0.0.0", certificate=certificate, private_key=key, client_authority=certificate)
    check_exposure(address, Keys(), insecure=False)
    with pytest.raises(ValueError, match="`client_authority` goes with `certificate`"):
        Address(client_authority=certificate)


def test_files_that_cannot_be_used_are_refused_before_the_server_listens(searcher, tmp_path):
    one, other = issue("one"), issue("other")
    certificate, key = one.write(tmp_path, "one")
    _, wrong_key = other.write(tmp_path, "other")
    (tmp_path / "locked.pem").write_bytes(one.key_pem(b"a password"))
    (tmp_path / "text.pem").write_text("not a certificate\n")
    text = tmp_path / "text.pem"
    cases = [
        ((certificate, wrong_key), ValueError, "one.pem and .*other-key.pem must be a certificate and its private key"),
        ((certificate, tmp_path / "locked.pem"), ValueError, "the private key is encrypted"),
        ((text, key), ValueError, "text.pem and .*one-key.pem must be"),
        ((tmp_path / "none.pem", key), OSError, "none.pem"),
        ((certificate, key, text), ValueError, "text.pem must have certificates"),
        ((certificate, key, tmp_path / "none.pem"), OSError, "none.pem"),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for files, kind, message in cases:
        address = Address(
            port=port, **dict(zip(("certificate", "private_key", "client_authority"), files, strict=False))
        )
        with pytest.raises(kind, match=message):
            HttpServer(create_app(searcher), address)
    with socket.create_server(("127.0.0.1", port)):  # nothing listens there
        pass


def test_files_that_did_not_change_are_not_read_again(tmp_path):
    certificate, key = issue("server").write(tmp_path, "server")
    followed = FollowedCertificates(certificate, key)
    assert not followed.renew()
    replace(certificate, certificate.read_bytes())
    assert followed.renew()
    key.unlink()
    assert [followed.renew(), followed.renew()] == [False, False]
