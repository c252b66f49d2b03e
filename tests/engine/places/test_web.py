"""Files of web servers: what every answer means, how often and how many at once a server is asked."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from hashlight.engine.errors import MissingDependencyError, PlaceError, ReadFailedError
from hashlight.engine.places import elsewhere, failures, web
from hashlight.engine.places.failures import NoFileError, RefusedError, TooManyBytesError
from hashlight.engine.places.opening import open_place, open_target
from tests.web import WebServer


class Clock:
    """Stands for `time`: sleeping takes no time, and is kept."""

    def __init__(self):
        self.now, self.slept = 1000.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    web._cached_server.cache_clear()
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:  # its own: a test may undo what it has patched itself
        patch.setattr(web, "time", clock)
        patch.setattr(failures, "_FIRST_WAIT_S", 0.001)
        yield clock


@pytest.fixture
def server(clock):
    server = WebServer()
    yield server
    server.close()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, FileNotFoundError), (410, FileNotFoundError), (401, PermissionError), (403, PermissionError),
        (451, PermissionError), (400, RefusedError), (414, RefusedError), (501, RefusedError), (304, RefusedError),
    ],
)  # fmt: skip
def test_what_is_for_good_is_asked_once(server, status, error):
    url = server.put("/a.png", status)
    with pytest.raises(error, match=f"the server answered {status}") as raised:
        open_place(url).read()
    assert not isinstance(raised.value, ReadFailedError)
    assert server.requests["/a.png"] == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
def test_what_is_of_the_moment_is_tried_again(server, status):
    assert open_place(server.put("/twice.png", status, status, b"image")).read() == b"image"
    with pytest.raises(ReadFailedError, match=f"after 3 tries: .*the server answered {status}"):
        open_place(server.put("/ever.png", status)).read()
    assert server.requests == {"/twice.png": 3, "/ever.png": 3}


def test_a_transfer_that_breaks_is_tried_again(server):
    cut = (200, {"Content-Length": "100"}, b"half")
    assert open_place(server.put("/once.png", cut, b"whole")).read() == b"whole"
    with pytest.raises(ReadFailedError, match="RemoteProtocolError"):
        open_place(server.put("/ever.png", cut)).read()


def test_a_redirect_is_followed_and_a_circle_refused(server):
    server.put("/there.png", b"image")
    assert open_place(server.put("/here.png", (302, {"Location": "/there.png"}, b""))).read() == b"image"
    with pytest.raises(RefusedError, match="redirects"):
        open_place(server.put("/circle.png", (302, {"Location": "/circle.png"}, b""))).read()


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_server_that_cannot_be_reached_is_left_alone_for_a_while(clock, monkeypatch):
    port = closed_port()
    with pytest.raises(ReadFailedError, match="ConnectError"):
        open_place(f"http://127.0.0.1:{port}/a.png").read()
    asked = []
    monkeypatch.setattr(web, "_client", lambda: asked.append(1))
    for name in ("b", "c"):
        with pytest.raises(ReadFailedError, match="could not be reached a moment ago"):
            open_place(f"http://127.0.0.1:{port}/{name}.png").read()
    assert not asked
    clock.now += 1.01 * web.UNREACHABLE_S  # sums of floats may be a little less
    monkeypatch.undo()
    with pytest.raises(ReadFailedError, match="ConnectError"):
        open_place(f"http://127.0.0.1:{port}/d.png").read()


def read_all(place, folder):
    with place.open() as file:
        return file.read()


WAYS = {
    "read": lambda place, folder: place.read(),
    "open": read_all,
    "entry": lambda place, folder: place.entry(),
    "find": lambda place, folder: place.find(""),
    "download": lambda place, folder: place.download("", folder / "copy"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_server_is_left_alone_whatever_was_asked_of_it(clock, monkeypatch, tmp_path, way):
    place = open_place(f"http://127.0.0.1:{closed_port()}/a.png")
    with pytest.raises(ReadFailedError, match="ConnectError"):
        WAYS[way](place, tmp_path)
    monkeypatch.setattr(web, "_client", lambda: pytest.fail("the server was asked again"))
    for other in WAYS.values():
        with pytest.raises(ReadFailedError, match="could not be reached a moment ago"):
            other(place, tmp_path)


@pytest.mark.parametrize("size", [100, -1])
def test_a_server_that_goes_while_a_file_is_read_is_left_alone(clock, monkeypatch, size):
    server = WebServer()
    with open_place(server.put("/a.bin", (200, {"Accept-Ranges": "bytes", "ETag": "1"}, b"x" * 200))).open() as file:
        assert file.read(10) == b"x" * 10
        server.close()
        web._cached_client().close()  # with the connection that was open
        web._cached_client.cache_clear()
        with pytest.raises(ReadFailedError, match="ConnectError"):
            file.read(size)
        monkeypatch.setattr(web, "_client", lambda: pytest.fail("the server was asked again"))
        with pytest.raises(ReadFailedError, match="could not be reached a moment ago"):
            file.read(size)


@pytest.mark.usefixtures("clock")
def test_a_host_without_an_address_is_of_the_moment():
    with pytest.raises(ReadFailedError, match=r"http://no-such-host\.invalid/a\.png: ConnectError"):
        open_place("http://no-such-host.invalid/a.png").read()


@pytest.mark.parametrize("as_date", [False, True])
@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_is_kept_by_all_requests_to_the_server(server, clock, status, as_date):
    then = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    url = server.put("/a.png", (status, {"Retry-After": then if as_date else "20"}, b""), b"image")
    server.put("/b.png", b"other")
    assert open_place(url).read() == b"image"
    [slept] = clock.slept
    assert 15 < slept <= 20
    server.put("/c.png", (status, {"Retry-After": then if as_date else "20"}, b""))
    with pytest.raises(ReadFailedError):
        open_place(server.url("/c.png")).read()
    before = len(clock.slept)
    assert open_place(server.url("/b.png")).read() == b"other"
    assert len(clock.slept) == before + 1


def test_a_long_pause_is_not_waited_for(server, clock):
    server.put("/a.png", (429, {"Retry-After": "3600"}, b""))
    server.put("/b.png", b"image")
    for name in ("/a.png", "/b.png"):
        with pytest.raises(ReadFailedError, match=r"its server asks for a pause of 3600 s"):
            open_place(server.url(name)).read()
    assert server.requests == {"/a.png": 1}
    assert not clock.slept
    clock.now += 3600
    assert open_place(server.url("/b.png")).read() == b"image"


@pytest.mark.parametrize("said", ["soon", "", "-5", "Mon, 99 Foo", f"Mon, 01 Jan {10**20} 00:00:00 GMT"])
def test_a_pause_that_says_nothing_is_none(server, clock, said):
    assert open_place(server.put("/a.png", (503, {"Retry-After": said}, b""), b"image")).read() == b"image"
    assert not clock.slept


def test_a_transfer_that_never_ends_is_broken_off(monkeypatch):
    monkeypatch.setattr(web, "_MAX_TRANSFER_S", 0.2)
    monkeypatch.setattr(failures, "READ_TRIES", 1)
    ended = threading.Event()

    def drip(listener):
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not ended.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        with pytest.raises(ReadFailedError, match=r"only \d\d? bytes arrived"):
            open_place(f"http://127.0.0.1:{listener.getsockname()[1]}/a.png").read()
        ended.set()
        thread.join()


def test_a_server_is_asked_a_few_things_at_once(server):
    """Requests are held until as many as may come have come, or a while has passed."""
    full = threading.Event()

    def hold(_path):
        if server.most_at_once >= web.CONNECTIONS:
            full.set()
        full.wait(20)

    server.before_answer = hold
    urls = [server.put(f"/{number}.png", b"%d" % number) for number in range(40)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda url: open_place(url).read(), urls))
    assert found == [b"%d" % number for number in range(40)]
    assert server.most_at_once == web.CONNECTIONS


def test_too_many_bytes_are_not_read(server):
    with pytest.raises(TooManyBytesError):
        open_place(server.put("/a.png", b"12345")).read(max_bytes=4)
    assert open_place(server.url("/a.png")).read(max_bytes=5) == b"12345"
    assert server.requests["/a.png"] == 2


@pytest.mark.parametrize("url", ["http://[::1", "https://", "http://caf\udce9/x.png"])
@pytest.mark.usefixtures("clock")
def test_what_is_not_a_url_is_no_file(url):
    with pytest.raises(NoFileError, match="is not a valid URL"):
        open_place(url).read()


def test_a_key_in_a_url_is_used_and_not_shown(server):
    server.put("/a.png?signature=SECRET", 403)
    place = open_place(f"http://me:SECRET@{server.host}/a.png?signature=SECRET")
    with pytest.raises(PermissionError) as raised:
        place.read()
    assert "SECRET" not in f"{raised.value} {place}"
    assert server.headers["/a.png?signature=SECRET"]["Authorization"] == (
        f"Basic {base64.b64encode(b'me:SECRET').decode()}"
    )


@pytest.mark.parametrize("headers", [{"Accept-Ranges": "bytes", "ETag": '"1"'}, {}], ids=["ranges", "no ranges"])
def test_a_file_is_read_at_any_position(server, tmp_path, headers):
    data = bytes(range(256)) * 20
    place = open_place(server.put("/a.bin", (200, headers, data)))
    assert (place.entry().size, place.exists(), open_place(server.url("/none")).entry()) == (len(data), True, None)
    with place.open() as file:
        assert file.seek(1000) == 1000
        assert file.read(300) == data[1000:1300]
        file.seek(-5, 2)
        assert file.read() == data[-5:]
    place.download("", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


@pytest.mark.parametrize("headers", [{"Accept-Ranges": "bytes", "ETag": '"1"'}, {}], ids=["ranges", "no ranges"])
def test_an_empty_file_is_empty(server, tmp_path, headers):
    """A server with ranges has no first byte of it to send."""
    place = open_place(server.put("/a.bin", (200, headers, b"")))
    assert (place.entry().size, place.exists(), place.read()) == (0, True, b"")
    assert read_all(place, tmp_path) == b""
    with place.open() as file:
        assert (file.seek(0, 2), file.read(10)) == (0, b"")
    place.download("", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b""


def test_a_file_that_shrinks_while_it_is_read_is_noticed(server):
    first, empty = ((200, {"Accept-Ranges": "bytes", "ETag": '"1"'}, body) for body in (b"x" * 100, b""))
    with open_place(server.put("/a.bin", first, first, empty)).open() as file:
        assert file.read(10) == b"x" * 10
        with pytest.raises(OSError, match="has changed while it was read"):
            file.read(10)


def test_a_file_that_changes_while_it_is_read_is_noticed(server):
    first, second = ((200, {"Accept-Ranges": "bytes", "ETag": tag}, b"x" * 100) for tag in ('"1"', '"2"'))
    with open_place(server.put("/a.bin", first, first, second)).open() as file:
        assert file.read(10) == b"x" * 10
        with pytest.raises(OSError, match="has changed while it was read"):
            file.read(10)


def test_a_server_has_no_listing_and_takes_nothing(server):
    place = open_place(server.url("/photos"))
    with pytest.raises(PlaceError, match="does not list its files: name them in a text file"):
        list(place.walk())
    with pytest.raises(PlaceError, match="can only be read: write to a folder"):
        place.put("a", b"")
    with pytest.raises(PlaceError, match="can only be read: write to a folder"):
        open_target(server.url("/photos"))


def test_a_package_that_is_missing_is_named(monkeypatch):
    with pytest.raises(
        MissingDependencyError, match=r"reading sftp:// needs a package that is not installed: .*aramiko"
    ):
        open_place("sftp://host/photos/a.png")

    def gone(name):
        raise ModuleNotFoundError("no", name=name)

    monkeypatch.setattr(elsewhere.importlib, "import_module", gone)
    with pytest.raises(MissingDependencyError, match=r"reading memory:// needs fsspec.*pip install 'hashlight\[cpu\]'"):
        open_place("memory://photos")
