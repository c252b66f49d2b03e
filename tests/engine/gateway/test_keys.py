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
        ("page search", "line 2: expected `NAME SCOPES KEY .*, got 2 words"),
        ("page search,fly searching-is-all-0001", "line 2: scopes must be search, write, metrics, admin"),
        ("page search tooshort", "line 2: a key must have at least 16 characters, got 8"),
        (
            "page search #begins-with-a-hash-0001",
            "line 2: expected `NAME SCOPES KEY .*, got 2 words .a word that begins",
        ),
        ("page search sha256:9f86d081884c7d659a2f", "line 2: expected sha256: and 64 hex digits, got 20 characters"),
        ("page search clé-de-la-recherche-1", "line 2: a key must consist of printable ASCII characters"),
        ("page search one-key-for-them-01\nops admin one-key-for-them-01", "line 3: it has the key of line 2"),
        ("page search one-key-for-them-01 recherche", "2: expected `NAME SCOPES KEY .*, got 1 words after the key"),
        ("page search one-key-for-them-01 rate", "line 2: expected `NAME SCOPES KEY .rate=N/s. .in-flight=N.`, got 1"),
        ("page search one-key-for-them-01 rate=5/s rate=6/s", "line 2: `rate` is given twice"),
        *(
            (f"page search one-key-for-them-01 rate={rate}", "line 2: `rate` must be a number above 0 of requests")
            for rate in ("5", "0/s", "-1/s", "nan/s", "inf/s", "1e5/s", "5/m", "/s", "9" * 400 + "/s")
        ),
        *(
            (f"page search one-key-for-them-01 in-flight={most}", "line 2: `in-flight` must be a number of requests")
            for most in ("", "0", "-1", "1.5", "8/s", "٣")
        ),
    ],
)
def test_an_invalid_line_is_named_by_number(tmp_path, line, message):
    (tmp_path / "keys").write_text("# keys\n" + line)
    with pytest.raises(ValueError, match=message) as caught:
        Keys.load(tmp_path / "keys")
    for secret in ("tooshort", "with-a-hash", "9f86d0", "recherche", "one-key"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "rate", "in_flight"),
    [
        ("", None, None),
        ("rate=50/s", 50.0, None),
        ("in-flight=8", None, 8),
        ("in-flight=1 rate=0.25/s", 0.25, 1),
        ("rate=2.5/s in-flight=100 # a comment", 2.5, 100),
    ],
)
def test_a_key_may_have_limits(tmp_path, more, rate, in_flight):
    (tmp_path / "keys").write_text(f"page search searching-is-all-0001 {more}\nops admin administering-0002")
    keys = Keys.load(tmp_path / "keys")
    key = keys.find("searching-is-all-0001")
    assert (key.name, key.rate, key.in_flight) == ("page", rate, in_flight)
    assert (keys.find("administering-0002").rate, keys.find("administering-0002").in_flight) == (None, None)


@pytest.mark.parametrize(
    "secret", ["searching#is-all-0001", "searching-is-all-0001#", "a-long-enough-beginning#and-then-the-end-of-it"]
)
def test_a_hash_inside_a_key_is_part_of_it(tmp_path, secret):
    (tmp_path / "keys").write_text(f"page search {secret} # kept on the server\n  # another comment\n#none")
    keys = Keys.load(tmp_path / "keys")
    assert len(keys) == 1
    assert keys.find(secret).name == "page"
    assert keys.find(secret.partition("#")[0]) is None


def replace(path, text):
    """Put another file in the place of one, as an editor or a mounted secret does."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def test_keys_follow_their_file(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "keys"
    path.write_text("page search searching-is-all-0001\n")
    keys = Keys.load(path)
    assert not keys.renew()
    replace(path, "page search searching-is-all-0001\npage search the-key-after-it-0002\n")
    assert keys.renew()
    assert [keys.find(one).name for one in ("searching-is-all-0001", "the-key-after-it-0002")] == ["page", "page"]
    with path.open("w") as file:
        file.write("page search the-key-after-it-0002\n")
    assert keys.renew()
    assert keys.find("searching-is-all-0001") is None
    assert not keys.renew()
    assert f"1 API keys were read from {path}" in caplog.text
    assert "the-key" not in caplog.text


@pytest.mark.parametrize(
    "text", ["", "# all withdrawn\n", "page search\n", "page search tooshort\n", b"\xff\xfe", None]
)
def test_a_file_that_has_become_wrong_leaves_the_keys_as_they_were(tmp_path, caplog, text):
    path = tmp_path / "keys"
    path.write_text("page search searching-is-all-0001\n")
    keys = Keys.load(path)
    if text is None:
        path.unlink()
    elif isinstance(text, bytes):
        path.write_bytes(text)
    else:
        replace(path, text)
    assert not keys.is_stale
    assert [keys.renew(), keys.renew()] == [False, False]
    assert keys.is_stale
    assert keys.find("searching-is-all-0001").name == "page"
    assert caplog.text.count("the API keys stay those that were read before") == 1
    assert "tooshort" not in caplog.text
    replace(path, "page search the-key-after-it-0002\n")
    assert keys.renew()
    assert not keys.is_stale
    assert keys.find("searching-is-all-0001") is None


def test_a_file_with_the_mark_of_its_encoding_is_read(tmp_path):
    (tmp_path / "keys").write_text("page search searching-is-all-0001\n", encoding="utf-8-sig")
    assert Keys.load(tmp_path / "keys").find("searching-is-all-0001").name == "page"


@pytest.mark.parametrize("name", ["queries", "images"])
def test_limits_of_lists_have_a_largest_value(name):
    largest = getattr(Limits(), name)
    with pytest.raises(ValueError, match=f"`{name}` must be 1 to {largest}, got {largest + 1}"):
        Limits(**{name: largest + 1})


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
