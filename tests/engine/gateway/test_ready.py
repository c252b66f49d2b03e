"""Ready while anything can be answered; on SIGTERM not ready, but answering until it is quiet."""

import contextlib
import signal
import threading

import httpx
import pytest

from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.following import Pending
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.draining import DRAIN_S, DRAINING, QUIET_S, Drain
from hashlight.engine.service.door.http_server import Address, HttpServer
from hashlight.engine.service.routing.router import ClusterRouter
from tests import serving
from tests.engine.service.conftest import eventually
from tests.engine.service.conftest import serving as shard_servers

QUERY = {"queries": [{"code": "0" * 16}], "radius": 60, "limit": 3}


@contextlib.contextmanager
def gateway_of(cluster_map, **options):
    with (
        contextlib.closing(ClusterRouter(cluster_map)) as router,
        serving.running(create_app(router, **options)) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield http


def test_a_gateway_that_lacks_a_group_is_ready_and_says_what_is_missing(collection):
    with shard_servers(collection.path) as (_, cluster):
        lost = cluster.with_replicas([*(group.replicas for group in cluster.groups[:2]), []])
        with gateway_of(lost) as http:
            answer = http.get("/health/ready")
            assert answer.status_code == 200
            assert answer.json() == {
                "status": "ready", "version": 1, "shards": 3, "missing": sorted(cluster.groups[2].shards),
                "pending": None,
            }  # fmt: skip
            assert "127.0.0.1" not in answer.text  # no addresses, since no key is asked
            assert http.post("/v1/search", json={"queries": QUERY["queries"]}).json()["coverage"]["degraded"]
            assert "hashlight_missing_shards 1.0" in http.get("/metrics").text


def test_a_gateway_is_ready_while_a_group_has_other_shards(collection):
    with shard_servers(collection.path) as (_, cluster):
        first = cluster.groups[0].replicas
        with gateway_of(cluster.with_replicas([first, first, first])) as http:
            answer = http.get("/health/ready")
            assert answer.status_code == 200
            missing = [shard for group in cluster.groups[1:] for shard in group.shards]
            assert answer.json()["missing"] == sorted(missing)


def test_a_gateway_without_any_shard_is_not_ready(collection):
    with shard_servers(collection.path) as (servers, cluster), gateway_of(cluster) as http:
        for group in servers:
            group[0].drop(cluster.manifest)
        answer = http.get("/health/ready")
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "not_ready")


def test_a_version_that_cannot_be_served_can_be_seen(searcher):
    pending = Pending(version=7, attempts=3, retry_s=5.96, error="/secret/place is damaged")
    with serving.running(create_app(searcher, pending=lambda: pending)) as url:
        told = httpx.get(f"{url}/health/ready")
        assert told.json()["pending"] == {"version": 7, "attempts": 3, "retry_s": 6.0}
        assert "secret" not in told.text
        assert "hashlight_pending_attempts 3.0" in httpx.get(f"{url}/metrics").text


class Held(CollectionSearcher):
    """A searcher whose radius searches wait until the test lets them go."""

    def __init__(self, collection):
        super().__init__(collection)
        self.arrived, self.open = threading.Semaphore(0), threading.Event()

    def answer(self, queries, query, **options):
        if query.kind == "within":
            self.arrived.release()
            self.open.wait(240)
        return super().answer(queries, query, **options)


@contextlib.contextmanager
def held_server(collection):
    """A server with one radius search in progress: its searcher, what was sent the signal, its URL, the search."""
    searcher = Held(collection)
    server = HttpServer(create_app(searcher), Address(port=0))
    thread = threading.Thread(target=server.run)
    thread.start()
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{server.url}/v1/range_search", json=QUERY, timeout=240))
    )
    asking.start()
    try:
        assert searcher.arrived.acquire(timeout=240)
        yield searcher, server, thread, asking, answers
    finally:
        searcher.open.set()
        server.stop()
        asking.join()
        thread.join()


def test_on_sigterm_a_server_stops_being_ready_and_answers_until_it_closes(collection):
    with held_server(collection) as (searcher, server, thread, asking, answers):
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        server._server.handle_exit(signal.SIGTERM, None)
        answer = httpx.get(f"{server.url}/health/ready")
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "not_ready")
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        # What a load balancer still sends is answered, and its connection closed.
        late = httpx.post(f"{server.url}/v1/search", json={"queries": QUERY["queries"], "k": 1})
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        assert answers == []
        searcher.open.set()
        asking.join()
        assert answers[0].status_code == 200
        eventually(lambda: not thread.is_alive())
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health/live")


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_an_impatient_signal_closes_the_socket_and_finishes_what_is_in_progress(collection, signals):
    with held_server(collection) as (searcher, server, thread, asking, answers):
        for number in signals:
            server._server.handle_exit(number, None)

        def refused():
            try:
                return httpx.get(f"{server.url}/health/live").status_code == 0
            except httpx.TransportError:  # refused, or accepted by the system and closed unread
                return True

        eventually(refused)
        searcher.open.set()
        asking.join()
        assert answers[0].status_code == 200
        eventually(lambda: not thread.is_alive())


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


class Requests:
    """An application whose requests the test begins and ends, by stepping their coroutines."""

    def __init__(self):
        self.clock = Clock()
        self.drain = Drain(self._answer, clock=self.clock)
        self.seen = []

    async def _answer(self, scope, receive, send):
        self.seen.append(scope[DRAINING])
        await receive()

    def begin(self, path):
        request = self.drain({"type": "http", "path": path}, _Pause, None)
        request.send(None)
        return request


class _Pause:
    def __await__(self):
        yield


def end(request):
    with pytest.raises(StopIteration):
        request.send(None)


def test_a_drain_is_over_once_nothing_is_in_progress_and_nothing_has_arrived_for_a_while():
    app = Requests()
    first = app.begin("/v1/search")
    app.clock.now_s += 3600
    assert not app.drain.over
    app.drain.begin()
    app.clock.now_s += QUIET_S
    assert not app.drain.over  # the first is in progress
    end(first)
    assert not app.drain.over  # a load balancer may send more
    app.clock.now_s += QUIET_S / 2
    end(app.begin("/v1/items/3"))
    app.clock.now_s += QUIET_S / 2
    assert not app.drain.over
    end(app.begin("/health/ready"))  # probes do not count
    end(app.begin("/metrics"))
    app.clock.now_s += QUIET_S / 2
    assert app.drain.over
    assert app.seen == [False, True, True, True]


def test_a_drain_ends_in_the_end():
    app = Requests()
    request = app.begin("/v1/search")
    app.drain.begin()
    app.clock.now_s += DRAIN_S - 1
    app.drain.begin()  # again: the time is not counted anew
    assert (app.drain.over, app.drain.left_s) == (False, 1)
    app.clock.now_s += 1
    assert app.drain.over
    end(request)
