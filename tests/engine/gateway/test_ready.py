"""Ready while anything can be answered; on SIGTERM not ready, but answering for a while."""

import contextlib
import signal
import threading

import httpx
import pytest

from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.following import Pending
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.draining import DELAY_S, DRAIN_S, DRAINING, Drain
from hashlight.engine.service.door.http_server import Address, HttpServer
from hashlight.engine.service.routing.router import ClusterRouter
from tests import serving
from tests.engine.service.conftest import Cable, eventually
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


def test_readiness_asks_no_server_and_completeness_asks_every_shard(collection):
    with shard_servers(collection.path) as (servers, cluster):
        first = cluster.groups[0].replicas
        # Connected, but with shards of another group: only a search can tell.
        with gateway_of(cluster.with_replicas([first, first, first])) as http:
            before = servers[0][0].describe()["groups"]
            answer = http.get("/health/ready")
            assert (answer.status_code, answer.json()["missing"]) == (200, [])
            assert servers[0][0].describe()["groups"] == before
            answer = http.get("/health/complete")
            missing = {shard for group in cluster.groups[1:] for shard in group.shards}
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "incomplete")
            assert set(answer.json()["error"]["missing"]) == missing
            assert "127.0.0.1" not in answer.text
        with gateway_of(cluster) as http:
            assert http.get("/health/complete").json()["missing"] == []


def test_a_gateway_whose_servers_are_all_cut_off_is_not_ready_until_one_is_back(collection):
    with shard_servers(collection.path) as (servers, cluster), contextlib.ExitStack() as stack:
        cables = [Cable(group[0].port) for group in servers]
        for cable in cables:
            stack.callback(cable.close)
        with gateway_of(cluster.with_replicas([[cable.address] for cable in cables])) as http:
            assert http.get("/health/ready").status_code == 200
            for cable in cables:
                cable.cut()
            eventually(lambda: http.get("/health/ready").status_code == 503)
            refused = http.get("/health/ready")
            assert refused.json()["error"]["type"] == "not_ready"
            assert "127.0.0.1" not in refused.text
            assert "hashlight_coverage_ratio 0.0" in http.get("/metrics").text
            cables[1].mend()
            eventually(lambda: http.get("/health/ready").status_code == 200)
            missing = {shard for group in (cluster.groups[0], cluster.groups[2]) for shard in group.shards}
            assert set(http.get("/health/ready").json()["missing"]) == missing
            assert http.get("/health/complete").status_code == 503
            for cable in cables:
                cable.mend()


def test_a_version_that_cannot_be_served_can_be_seen(searcher):
    pending = Pending(version=7, attempts=3, retry_s=5.96, error="/secret/place is damaged")
    with serving.running(create_app(searcher, pending=lambda: pending)) as url:
        told = httpx.get(f"{url}/health/ready")
        assert told.json()["pending"] == {"version": 7, "attempts": 3, "retry_s": 6.0}
        assert "secret" not in told.text
        assert "hashlight_pending_attempts 3.0" in httpx.get(f"{url}/metrics").text


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


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
    """A server with one radius search in progress: its searcher, the server, its thread, the search, and its clock."""
    searcher = Held(collection)
    server = HttpServer(create_app(searcher), Address(port=0))
    server._drain._clock = clock = Clock()
    thread = threading.Thread(target=server.run)
    thread.start()
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{server.url}/v1/range_search", json=QUERY, timeout=240))
    )
    asking.start()
    try:
        assert searcher.arrived.acquire(timeout=240)
        yield searcher, server, thread, asking, answers, clock
    finally:
        searcher.open.set()
        server.stop()
        asking.join()
        thread.join()


def test_on_sigterm_a_server_stops_being_ready_and_answers_until_it_closes(collection):
    with held_server(collection) as (searcher, server, thread, asking, answers, clock):
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
        clock.now_s += DELAY_S
        eventually(lambda: not thread.is_alive())
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health/live")


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_an_impatient_signal_closes_the_socket_and_finishes_what_is_in_progress(collection, signals):
    with held_server(collection) as (searcher, server, thread, asking, answers, _):
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


def test_a_drain_lets_requests_arrive_for_a_while_and_then_gives_them_time_to_end():
    clock, seen = Clock(), []

    async def app(scope, receive, send):
        seen.append(scope[DRAINING])

    def ask():
        with pytest.raises(StopIteration):
            drain({"type": "http", "path": "/v1/search"}, None, None).send(None)

    drain = Drain(app, clock=clock)
    ask()
    clock.now_s += 3600
    assert (drain.over, drain.left_s) == (False, float("inf"))
    drain.begin()
    ask()
    clock.now_s += DELAY_S - 1
    drain.begin()  # again: the time is not counted anew
    assert (drain.over, drain.left_s) == (False, DRAIN_S + 1)
    clock.now_s += 1
    assert (drain.over, drain.left_s) == (True, DRAIN_S)
    clock.now_s += DRAIN_S
    assert drain.left_s == 0
    assert seen == [False, True]
    assert Drain(app, delay_s=0.0).over is False
