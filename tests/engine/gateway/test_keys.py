from __future__ import annotations

import hashlib

import pytest

from hashlight.engine.service.door.http_server import Address, check_exposure
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.limits import Limits

LINES = """
# the page
page    search        searching-is-all-0001   # kept on the server
loader  search,write  sha256:{}
""".format(hashlib.sha256(b"loading-000000000002").hexdigest())


def test_keys_come_from_a_file_or_the_environment(tmp_path):
    (tmp_path / "keys").write_text(LINES)
    for keys in (Keys.load(tmp_path / "keys"), Keys.load(None, {"HASHLIGHT_API_KEYS": LINES})):
        assert len(keys) == 2
        assert keys.find("searching-is-all-0001").scopes == {"search"}
        assert keys.find("loading-000000000002").scopes == {"search", "write"}
        for wrong in ("", "searching-is-all-000", "loading-000000000002 ", "sha256:", "é", "\udcff"):
            assert keys.find(wrong) is None
        assert "searching" not in repr(keys)
        assert "searching" not in repr(keys.find("searching-is-all-0001"))
    assert len(Keys.load(None, {})) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("page search", "line 2: expected `NAME SCOPES KEY`, got 2 words"),
        ("page search,fly searching-is-all-0001", "line 2: scopes must be search, write, admin"),
        ("page search tooshort", "line 2: a key must have at least 16 characters, got 8"),
    ],
)
def test_an_invalid_line_is_named_by_number(tmp_path, line, message):
    (tmp_path / "keys").write_text("# keys\n" + line)
    with pytest.raises(ValueError, match=message) as caught:
        Keys.load(tmp_path / "keys")
    assert "tooshort" not in str(caught.value)


def test_a_file_without_keys_is_refused(tmp_path):
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(ValueError, match="has no keys"):
        Keys.load(tmp_path / "keys")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
def test_a_loopback_address_needs_no_keys(host):
    assert Address(host=host).is_loopback
    check_exposure(Address(host=host), Keys(), insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_any_other_address_needs_keys(host):
    with pytest.raises(ValueError, match="no API keys: give keys"):
        check_exposure(Address(host=host), Keys(), insecure=False)
    check_exposure(Address(host=host), Keys(), insecure=True)
    check_exposure(Address(host=host), Keys.load(None, {"HASHLIGHT_API_KEYS": LINES}), insecure=False)


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="`certificate` and `private_key` go together"):
        Address(certificate="a.pem")
    with pytest.raises(ValueError, match="`in_flight` must be above 0, got 0"):
        Limits(in_flight=0)
    with pytest.raises(ValueError, match="at least `body_bytes`"):
        Limits(buffered_bytes=5)
