"""Where a server listens, and what is said if it cannot."""

from __future__ import annotations

import errno
import socket

import pytest

from hashlight.engine.service.door.http_server import Address, HttpServer


async def nothing(_scope, _receive, _send):
    raise AssertionError("never called")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_named(host):
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        port = taken.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        with pytest.raises(OSError, match="another process listens there: stop it, or choose another port") as caught:
            HttpServer(nothing, Address(host=host, port=port))
    assert str(caught.value).startswith(f"cannot listen at {shown}:{port}: ")
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.7", "cannot listen at 192.0.2.7:0: no network interface of this machine has this address"),
        ("nowhere.invalid", r"cannot listen at nowhere.invalid:0: the host has no address \(.*\): choose another host"),
    ],
)
def test_a_host_that_is_not_this_machine_is_named(host, message):
    with pytest.raises(OSError, match=message):
        HttpServer(nothing, Address(host=host, port=0))
