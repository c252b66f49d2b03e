"""Servers that freeze, or send what cannot be read: no thread ends for it, and no query waits longer than it must."""

import contextlib
import gc
import logging
import threading

import numpy as np
import pytest

from hashlight.engine.errors import DeadlineExceededError, HashlightError, IncompleteError
from hashlight.engine.results import SearchResult
from hashlight.engine.service.protocol.cluster_map import Assignment, ClusterMap, Group
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.protocol.wire import Kind, ProtocolError, Request, Status, encode_result, pages
from hashlight.engine.service.routing import replica as replica_module
from hashlight.engine.service.routing import router as router_module
from hashlight.engine.service.routing.replica import LOST_LOOKS, OPENING_LOOKS, Replica, ReplicaLostError, next_id
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.engine.service.shards.server import ShardServer
from tests.engine.service.conftest import Cable, eventually, serving, shut_down
from tests.oracles import knn


class Garbling(ShardServer):
    """A server that sends the frames of `garbled` instead of its next answers."""

    def __init__(self, *arguments, **options):
        self.garbled = []  # of functions: the request's id -> frame
        super().__init__(*arguments, **options)

    def _answer(self, job):
        if not self.garbled:
            super()._answer(job)
            return
        job.stream.waiting.pop(job.request.id, None)
        frame = self.garbled.pop()(job.request.id)
        with job.stream._writing:  # gRPC does not bear two writers
            job.stream._write(frame)


@contextlib.contextmanager
def garbling(corpus):
    manifest = corpus.collection.manifest
    wanted = Assignment(manifest.version, manifest.digest, tuple(spec.name for spec in manifest.shards))
    server = Garbling(corpus.path, workers=1)
    told = server.load(*wanted)["groups"][wanted.identity]
    cluster = ClusterMap(told["about"], (Group(manifest.digest, told["shards"], (server.address,)),))
    try:
        with contextlib.closing(ClusterRouter(cluster)) as router:
            yield server, router
    finally:
        shut_down(server)


def changed(at, value):
    def frame(id_):
        whole = bytearray(next(pages(Status.OK, id_, 1, b"an answer")))
        whole[at] = value
        return bytes(whole)

    return frame


def second_page_first(id_):
    return list(pages(Status.OK, id_, 1, bytes(2**20 + 9)))[1]


@pytest.mark.parametrize(
    "frame",
    [changed(3, 77), changed(2, 9), changed(0, 0), second_page_first, lambda id_: b"HL\2"],
    ids=["unknown status", "other protocol", "other magic", "pages out of order", "cut"],
)
def test_what_cannot_be_read_breaks_one_connection_and_no_more(corpus, frame):
    expected = knn(corpus.queries, corpus.codes, corpus.ids, 5)[1]
    with garbling(corpus) as (server, router):
        server.garbled.append(frame)
        with pytest.raises(HashlightError, match="sent what cannot be read"):
            router.search(corpus.queries, 5, timeout_s=120.0)
        eventually(lambda: router.stats()["replicas"][0]["state"] in ("connected", "shut"))
        assert (router.search(corpus.queries, 5).ids == expected).all()


def announcing_too_much(id_):
    """A page of an answer of 4 EiB."""
    whole = bytearray(next(pages(Status.OK, id_, 1, b"an answer")))
    whole[20:28] = (2**62).to_bytes(8, "little")
    return bytes(whole)


def failing(id_):
    raise ZeroDivisionError("a fault of the server")


@pytest.mark.parametrize("frame", [announcing_too_much, failing])
def test_an_answer_that_never_ends_costs_one_query(corpus, frame, caplog):
    caplog.set_level(logging.CRITICAL)
    expected = knn(corpus.queries, corpus.codes, corpus.ids, 5)[1]
    with garbling(corpus) as (server, router):
        server.garbled.append(frame)
        with pytest.raises(DeadlineExceededError):
            router.search(corpus.queries, 5, timeout_s=1.0)
        assert (router.search(corpus.queries, 5, timeout_s=120.0).ids == expected).all()


def truncated(id_):
    """An answer whose last numbers are missing, in a page that is whole."""
    body = encode_result(SearchResult(np.zeros((1, 5), np.int32), np.zeros((1, 5), np.int64)))
    return next(pages(Status.OK, id_, 1, body[:-20]))


def test_an_answer_that_is_cut_in_the_middle_is_an_error_and_no_answer(corpus):
    expected = knn(corpus.queries, corpus.codes, corpus.ids, 5)[1]
    with garbling(corpus) as (server, router):
        server.garbled.append(truncated)
        with pytest.raises(ProtocolError, match="expected 40 bytes of 5 values, got 20"):
            router.search(corpus.queries[:1], 5, timeout_s=120.0)
        assert (router.search(corpus.queries, 5, timeout_s=120.0).ids == expected).all()


def test_a_server_that_left_and_was_started_again_is_asked_again(corpus):
    with serving(corpus.path, groups=2) as (servers, cluster), contextlib.closing(ClusterRouter(cluster)) as router:
        gone, group = servers[1][0], cluster.groups[1]
        expected = router.search(corpus.queries, 5).ids
        gone.drain()
        eventually(lambda: router.stats()["replicas"][1]["state"] == "leaving")
        ending = threading.Thread(target=gone.shutdown)
        ending.start()  # takes no new streams, and waits for those that are open
        router._replicas[gone.address]._stream.break_off("the server has ended")
        ending.join()
        eventually(lambda: router.stats()["replicas"][1]["state"] == "lost")
        again = ShardServer(corpus.path, port=gone.port)
        try:
            again.load(cluster.version, cluster.manifest, tuple(group.shards))
            eventually(lambda: router.stats()["replicas"][1]["state"] == "connected")
            found = router.search(corpus.queries, 5)
            assert found.coverage.complete
            assert (found.ids == expected).all()
        finally:
            router.close()
            shut_down(again)


def test_a_frozen_server_without_another_replica_is_counted_as_lost(corpus):
    with serving(corpus.path, groups=2) as (servers, cluster):
        cable = Cable(servers[1][0].port)
        frozen = cluster.with_replicas([cluster.groups[0].replicas, [cable.address]])
        missing = set(frozen.groups[1].shards)
        with contextlib.closing(ClusterRouter(frozen)) as router:
            expected = router.search(corpus.queries, 5).ids
            cable.cut()
            found = router.search(corpus.queries, 5, timeout_s=12.0)
            assert set(found.coverage.degraded) == missing
            # Given up, not waited for until the deadline.
            assert all("not answered a heartbeat for 3 s" in reason for reason in found.coverage.degraded.values())
            assert router.stats()["replicas"][1]["state"] == "lost"
            for _ in range(30):  # and not waited for by any other query
                found = router.search(corpus.queries, 5, timeout_s=240.0)
                assert set(found.coverage.degraded) == missing
                with pytest.raises(IncompleteError):
                    router.range_search(corpus.queries, 5, timeout_s=240.0)
            cable.mend()
            eventually(lambda: router.search(corpus.queries, 5).coverage.complete)
            assert (router.search(corpus.queries, 5).ids == expected).all()
        cable.close()


@contextlib.contextmanager
def replica_behind_a_cable(corpus):
    with serving(corpus.path, groups=1) as (servers, _):
        cable = Cable(servers[0][0].port)
        replica = Replica(cable.address, Security(), lambda: None)  # nothing looks after it but the test
        eventually(lambda: replica.connected)
        try:
            yield cable, replica
        finally:
            cable.mend()
            replica.close()
            cable.close()


def test_a_router_that_was_stopped_itself_does_not_blame_its_servers(corpus):
    with replica_behind_a_cable(corpus) as (cable, replica):
        cable.cut()
        replica.check()  # sends a heartbeat
        replica._stream._due_s -= 3600.0  # an hour ago, as after a suspended machine
        for _ in range(LOST_LOOKS - 1):
            replica.check()
        assert (replica.connected, replica.state) == (True, "silent")
        replica.check()
        eventually(lambda: replica.state == "lost")
        assert "has not answered a heartbeat" in replica.reason


def test_closing_does_not_wait_for_a_frozen_server(corpus):
    with replica_behind_a_cable(corpus) as (cable, replica):
        cable.cut()
        replica.check()
        eventually(lambda: replica.silent)
        replica.close()
        eventually(lambda: not replica._thread.is_alive())
        gc.collect()  # so that the connection ends now


class Mute(ShardServer):
    """A server that accepts streams, and reads none until it is told to."""

    def __init__(self, *arguments, **options):
        self.speaks, self.streams = threading.Event(), 0
        super().__init__(*arguments, **options)

    def do_exchange(self, *arguments):
        self.streams += 1
        self.speaks.wait(240)
        super().do_exchange(*arguments)


@pytest.fixture
def mute(corpus):
    server = Mute(corpus.path)
    replica = Replica(server.address, Security(), lambda: None)
    eventually(lambda: server.streams == 1)
    yield server, replica
    server.speaks.set()
    replica.close()
    shut_down(server)


def test_a_stream_that_never_answers_is_given_up_and_another_opened(mute):
    server, replica = mute
    for _ in range(OPENING_LOOKS):
        assert server.streams == 1
        replica.check()
    eventually(lambda: server.streams == 2)
    assert "has not answered a heartbeat" in replica.reason
    server.speaks.set()
    eventually(lambda: replica.connected)


def test_closing_does_not_wait_for_a_stream_that_never_answers(mute):
    _, replica = mute
    replica.close()
    eventually(lambda: not replica._thread.is_alive())


def test_a_test_search_names_the_groups_that_do_not_answer_promptly(corpus, monkeypatch):
    monkeypatch.setattr(router_module, "_PROMPT_S", 4.0)  # within which the others answer on a busy machine, too
    with (
        serving(corpus.path, groups=3, faults=True) as (servers, cluster),
        contextlib.closing(ClusterRouter(cluster)) as router,
    ):
        assert router.ready().complete
        servers[1][0]._fault(delay_s=30.0)
        found = router.ready()
        assert set(found.degraded) == set(cluster.groups[1].shards)
        assert (found.shards, found.answered) == (6, 6 - len(cluster.groups[1].shards))
        assert found.searched == len(corpus.codes) - cluster.groups[1].rows
        servers[1][0]._fault(delay_s=0.0)


def test_a_busy_group_is_ready(corpus):
    with (
        serving(corpus.path, groups=2, queue_size=0) as (_, cluster),  # every request finds the queue full
        contextlib.closing(ClusterRouter(cluster)) as router,
    ):
        with pytest.raises(HashlightError, match="requests waiting"):
            router.search(corpus.queries, 3)
        assert router.ready().complete
        assert np.sum([group.rows for group in cluster.groups]) == router.ready().searched


def test_what_a_lost_server_was_asked_is_told_before_its_stream_is_closed(corpus, monkeypatch):
    """Closing may wait for a host that is gone; who has asked it must be able to ask another one meanwhile."""
    may_close = threading.Event()
    with serving(corpus.path, groups=1) as ([[server]], _):
        cable = Cable(server.port)
        replica = Replica(cable.address, Security(), lambda: None)
        eventually(lambda: replica.connected)
        cable.cut()
        monkeypatch.setattr(replica_module._Stream, "_finish", lambda stream, finish: may_close.wait())
        told, number = [], next_id()
        nothing = np.zeros((0, 1), np.uint64)
        replica.send(number, lambda protocol: Request(Kind.PING, number, 0, 0.0, nothing).encode(protocol), told.append)
        try:
            replica.break_off()
            eventually(lambda: told)
            assert isinstance(told[0], ReplicaLostError)
        finally:
            may_close.set()
            monkeypatch.undo()
            cable.mend()
            replica.close()
            cable.close()


def test_a_request_that_is_cancelled_while_its_stream_is_lost_ends_no_thread(corpus):
    """Whoever cancels and whoever tells the receivers take requests from one table."""

    class Emptied(dict):
        def popitem(self):
            self.clear()  # as by another thread, between the look and this
            return super().popitem()

    with serving(corpus.path, groups=1) as ([[server]], _):
        replica = Replica(server.address, Security(), lambda: None)
        eventually(lambda: replica.connected)
        stream = replica._stream
        stream.waiting = Emptied({1: None})
        stream.break_off("as if its host were gone")
        eventually(lambda: replica.connected and replica._stream is not stream)
        replica.close()
