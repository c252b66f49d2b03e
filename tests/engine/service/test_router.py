"""The router over real shard servers: the collection's answers, deadlines, hedges, refusals, missing shards."""

import contextlib
import datetime
import ipaddress
import os
import re
import socket
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.errors import (
    DeadlineExceededError,
    HashlightError,
    IdNotFoundError,
    IncompleteError,
    NoShardError,
    NotReadyError,
    OverloadedError,
)
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.protocol.security import TOKEN_VARIABLE, Security
from hashlight.engine.service.routing import router as routing
from hashlight.engine.service.routing.hedging import Delays, HedgeBudget
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.engine.service.shards.server import ShardServer
from tests.engine.collection.by_hand import Part, assemble
from tests.engine.service.conftest import BITS, Cable, Load, eventually, serving
from tests.engine.storage.forging import forge_manifest
from tests.oracles import knn, within_radius
from tests.pipelines.cli.test_cli import run


@pytest.fixture(scope="module")
def searchers(corpus):
    """The same collection embedded, behind one group, and behind three groups of two replicas."""
    with (
        serving(corpus.path, groups=1) as (_, single),
        serving(corpus.path, groups=3, replicas=2) as (_, spread),
    ):
        routers = [ClusterRouter(single), ClusterRouter(spread)]
        yield {"embedded": CollectionSearcher(corpus.path), "one group": routers[0], "three groups": routers[1]}
        for router in routers:
            router.close()


@pytest.fixture(params=["embedded", "one group", "three groups"])
def searcher(request, searchers):
    return searchers[request.param]


def assert_same(result, other):
    for name in {"lims", "distances", "ids", "truncated"} & set(result._fields):
        one, two = getattr(result, name), getattr(other, name)
        assert one.dtype == two.dtype
        assert one.shape == two.shape
        assert (one == two).all(), name


@pytest.mark.parametrize("k", [1, 10, 4000])
def test_nearest_equal_the_oracle(corpus, searcher, k):
    result = searcher.search(corpus.queries, k)
    distances, ids = knn(corpus.queries, corpus.codes, corpus.ids, k)
    assert (result.distances == distances).all()
    assert (result.ids == ids).all()
    assert result.coverage.complete
    assert (result.coverage.shards, result.coverage.searched) == (6, len(corpus.codes))


def test_more_answers_than_a_group_has_codes(corpus, searcher, monkeypatch):
    monkeypatch.setattr("hashlight.engine.codes.MAX_PADDED", 100)
    monkeypatch.setattr("hashlight.engine.service.shards.answering.MAX_PADDED", 100)
    rows = len(corpus.codes)
    result = searcher.search(corpus.queries, rows)
    distances, ids = knn(corpus.queries, corpus.codes, corpus.ids, rows)
    assert (result.distances == distances).all()
    assert (result.ids == ids).all()
    with pytest.raises(ValueError, match=rf"at most {rows} .there are {rows} codes; short answers are padded., got"):
        searcher.search(corpus.queries, rows + 1)
    features = np.random.default_rng(1).normal(size=(len(corpus.queries), 8)).astype(np.float32)
    asked = {"rerank": Rerank(pool=rows + 1), "features": features}
    assert_same(searcher.search(corpus.queries, 7, **asked), corpus.collection.search(corpus.queries, 7, **asked))


@pytest.mark.parametrize(("radius", "limit"), [(0, None), (4, None), (9, 5), (BITS, None), (BITS, 100)])
def test_codes_within_a_radius_equal_the_oracle(corpus, searcher, radius, limit):
    result = searcher.range_search(corpus.queries, radius, limit)
    answers, cut = within_radius(corpus.queries, corpus.codes, corpus.ids, radius, limit)
    for q, expected in enumerate(answers):
        here = slice(result.lims[q], result.lims[q + 1])
        assert list(zip(result.distances[here].tolist(), result.ids[here].tolist(), strict=True)) == expected
    assert result.truncated.tolist() == cut
    assert result.coverage.complete


@pytest.mark.parametrize(("radius", "limit"), [(9, 7), (BITS, 700)])
def test_a_radius_is_read_page_by_page(corpus, searcher, radius, limit):
    expected = within_radius(corpus.queries[:1], corpus.codes, corpus.ids, radius)[0][0]
    read, after, truncated = [], None, True
    while truncated:
        page = searcher.range_search(corpus.queries[:1], radius, limit, after=after)
        read += zip(page.distances.tolist(), page.ids.tolist(), strict=True)
        (truncated,), after = page.truncated.tolist(), read[-1]
        assert len(page.ids) == limit or not truncated
    assert read == expected
    assert len(read) > limit


@pytest.mark.parametrize("rerank", [Rerank(pool=50), Rerank(radius=6), Rerank(pool=20, metric="cosine")])
def test_reranked_answers_equal_the_collections(corpus, searcher, rerank):
    features = np.random.default_rng(1).normal(size=(len(corpus.queries), 8)).astype(np.float32)
    result = searcher.search(corpus.queries, 7, rerank=rerank, features=features)
    assert_same(result, corpus.collection.search(corpus.queries, 7, rerank=rerank, features=features))
    assert result.coverage.complete


@pytest.mark.parametrize("how", [{"pool": 50}, {"radius": 9}])
def test_asymmetric_order_is_the_collections(corpus, searcher, how):
    projections = np.random.default_rng(2).normal(size=(len(corpus.queries), searcher.bits)).astype(np.float32)
    rerank = Rerank(**how, metric="asymmetric")
    result = searcher.search(corpus.queries, 7, rerank=rerank, features=projections)
    expected = corpus.collection.search(corpus.queries, 7, rerank=rerank, projections=projections)
    assert_same(result, expected)
    assert result.distances.dtype == np.int32
    assert (result.ids != corpus.collection.search(corpus.queries, 7).ids).any()


def test_items_come_in_the_requested_order(corpus, searcher):
    asked = np.array([corpus.ids[5], corpus.ids[77], corpus.ids[5]])
    rows = [5, 77, 5]
    table = searcher.get(asked)
    assert table["id"].to_pylist() == asked.tolist()
    assert table["label"].to_pylist() == corpus.labels[rows].tolist()
    assert table["code"].to_pylist() == [corpus.codes[row].tobytes() for row in rows]
    assert (searcher.features_of(asked) == corpus.features[rows]).all()
    assert searcher.thumbnail(int(asked[0])) is None
    assert len(searcher.get([])) == 0


def test_every_searcher_refuses_wrong_arguments(corpus, searcher):
    queries = corpus.queries
    with pytest.raises(ValueError, match="72-bit codes"):
        searcher.search(queries[:, :1].copy(), 3)
    with pytest.raises(TypeError, match="uint64"):
        searcher.search(queries.astype(np.int64), 3)
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        searcher.search(queries, 0)
    with pytest.raises(ValueError, match="0 to 72"):
        searcher.range_search(queries, 73)
    with pytest.raises(IdNotFoundError, match="1 of 2 ids was not found: 123456789"):
        searcher.get([int(corpus.ids[0]), 123456789])
    with pytest.raises(IdNotFoundError, match="123456789"):
        searcher.thumbnail(123456789)
    with pytest.raises(DeadlineExceededError):
        searcher.search(queries, 3, timeout_s=0.0)


def test_every_searcher_describes_the_collection(corpus, searcher):
    assert searcher.describe() == {
        "bits": BITS,
        "rows": len(corpus.codes),
        "shards": 6,
        "version": 1,
        "encoder": None,
        "attributes": {"label": "int64", "uri": "string"},
        "features": True,
    }
    assert (searcher.bits, searcher.version, searcher.fingerprint) == (BITS, 1, None)
    searcher.ready()


def test_an_explanation_adds_up(corpus, searchers):
    embedded, spread = (
        searchers[name].search(corpus.queries, 5, explain=True) for name in ("embedded", "three groups")
    )
    assert len(spread.explain.plans) == len(corpus.queries)
    assert (spread.explain.candidates > 0).all()
    assert embedded.explain.probes.shape == spread.explain.probes.shape


def test_an_answer_of_many_pages_is_complete(corpus, searchers):
    queries = np.repeat(corpus.queries, 10, axis=0)  # 600,000 answers, 7 MB
    expected = searchers["embedded"].range_search(queries, BITS)
    assert len(expected.ids) == 200 * len(corpus.codes)
    assert_same(searchers["one group"].range_search(queries, BITS), expected)


def test_a_slow_group_makes_nearest_partial_and_fails_a_radius_search(corpus):
    with serving(corpus.path, groups=3, faults=True) as (servers, cluster):
        router = ClusterRouter(cluster)
        servers[1][0]._fault(delay_s=6.0)
        result = router.search(corpus.queries, 10, timeout_s=2.0)
        slow = set(cluster.groups[1].shards)
        assert set(result.coverage.degraded) == slow
        assert "within " in next(iter(result.coverage.degraded.values()))
        assert result.coverage.answered == 4
        assert result.coverage.searched == len(corpus.codes) - cluster.groups[1].rows
        held = np.isin(corpus.ids, router_ids(servers[0][0], servers[2][0]))
        distances, ids = knn(corpus.queries, corpus.codes[held], corpus.ids[held], 10)
        assert (result.ids == ids).all()
        assert (result.distances == distances).all()
        for ask in (
            lambda: router.range_search(corpus.queries, 4, timeout_s=2.0),
            lambda: router.search(corpus.queries, 10, timeout_s=2.0, allow_partial=False),
        ):
            with pytest.raises(DeadlineExceededError, match="2 of 6 shards") as caught:
                ask()
            assert all(shard in str(caught.value) for shard in slow)
        partial = router.range_search(corpus.queries, 4, timeout_s=2.0, allow_partial=True)
        assert set(partial.coverage.degraded) == slow
        servers[1][0]._fault(delay_s=0.0)
        eventually(lambda: router.range_search(corpus.queries, 4).coverage.complete)
        router.close()


def router_ids(*servers):
    return np.concatenate(
        [shard.ids_N for server in servers for served in server._served.values() for shard in served.group.shards]
    )


def test_a_slow_replica_is_hedged_within_the_budget(corpus):
    with (
        serving(corpus.path, groups=1, replicas=2, faults=True) as (servers, cluster),
        contextlib.closing(ClusterRouter(cluster)) as router,
    ):
        for _ in range(250):
            router.range_search(corpus.queries[:1], 2)
        normal = router.stats()
        assert normal["hedges"] <= 0.05 * normal["calls"]
        router.budget.earn(400)  # enough for every hedge
        servers[0][0]._fault(delay_s=40.0)
        # Half of these go to the slow one first, which would not answer in time.
        for _ in range(15):
            router.range_search(corpus.queries[:1], 2, timeout_s=30.0)
        assert router.stats()["hedges"] > normal["hedges"]


def test_hedges_are_a_share_of_the_calls_and_saved_up_to_a_few():
    budget = HedgeBudget(budget=0.05, burst=3)
    assert not budget.spend()
    budget.earn(20)
    assert budget.spend()
    assert not budget.spend()
    budget.earn(10_000)
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]
    assert (budget.calls, budget.hedges) == (10_020, 4)


def test_a_call_is_late_after_the_97th_percentile_of_its_kind():
    delays = Delays()
    delays.add((1, 1), [0.001 * number for number in range(1, 200)])
    assert delays.late_s((1, 1)) == float("inf")
    delays.add((1, 1), [0.2])
    assert delays.late_s((1, 1)) == pytest.approx(np.quantile(np.arange(1, 201) / 1000, 0.97))
    assert delays.late_s((2, 1)) == float("inf")


def test_a_full_queue_refuses_at_once(corpus):
    with (
        serving(corpus.path, groups=1, faults=True, workers=1, queue_size=2) as ((group,), cluster),
        contextlib.closing(ClusterRouter(cluster)) as router,
    ):
        answered = []
        group[0]._fault(delay_s=20.0)

        def ask():
            with contextlib.suppress(HashlightError):
                answered.append(router.search(corpus.queries[:1], 3))

        for waiting in (0, 1, 2):  # one is running, then one waits, then two
            threading.Thread(target=ask, daemon=True).start()
            eventually(
                lambda waiting=waiting: (
                    (told := group[0].describe())["taken"] == waiting + 1 and told["waiting"] == waiting
                )
            )
        with pytest.raises(OverloadedError, match="2 requests waiting"):
            router.search(corpus.queries[:1], 3)
        assert answered == []


def test_a_full_queue_says_when_to_retry_and_drains(corpus):
    with serving(corpus.path, groups=1, faults=True, workers=1, queue_size=2) as (servers, cluster):
        router = ClusterRouter(cluster)
        servers[0][0]._fault(delay_s=0.3)
        refused = []

        def ask():
            try:
                router.search(corpus.queries[:1], 3)
            except OverloadedError as error:
                refused.append(error)

        with Load(ask, threads=8) as load:
            load.wait_for(12)
        assert load.errors == []
        assert refused
        assert all("requests waiting" in str(error) and error.retry_after_s > 0 for error in refused)
        servers[0][0]._fault(delay_s=0.0)
        assert router.search(corpus.queries[:1], 3).coverage.complete
        router.close()


def test_a_draining_replica_fails_no_query(corpus):
    with serving(corpus.path, groups=2, replicas=2) as (servers, cluster):
        router = ClusterRouter(cluster)
        expected = router.search(corpus.queries, 10)
        with Load(lambda: assert_same(router.search(corpus.queries, 10), expected)) as load:
            load.wait_for(20)
            assert servers[0][1].drain()
            load.wait_for(20)
        assert load.errors == []
        assert [replica["state"] for replica in router.stats()["replicas"]].count("leaving") == 1
        with pytest.raises(NotReadyError):
            servers[0][1].ready()
        router.close()


def test_a_token_is_required(corpus):
    with serving(corpus.path, groups=1, security=Security(token="right")) as (_, cluster):
        router = ClusterRouter(cluster, security=Security(token="right"))
        assert router.search(corpus.queries, 3).coverage.complete
        router.close()
        for wrong in (Security(), Security(token="wrong")):
            with pytest.raises(NoShardError, match="requires a token"):
                ClusterRouter(cluster, security=wrong, connect_s=2.0)


def test_a_cut_network_delays_no_query_past_its_deadline(corpus):
    with serving(corpus.path, groups=1, replicas=2) as (servers, cluster):
        cable = Cable(servers[0][0].port)
        router = ClusterRouter(cluster.with_replicas([[cable.address, servers[0][1].address]]))
        expected = router.search(corpus.queries, 5)
        eventually(lambda: all(replica["state"] == "connected" for replica in router.stats()["replicas"]))
        with Load(lambda: assert_same(router.search(corpus.queries, 5, timeout_s=10.0), expected)) as load:
            load.wait_for(10)
            cable.cut()
            load.wait_for(10)
            eventually(lambda: router.stats()["replicas"][0]["state"] == "silent")
            load.wait_for(10)
            cable.mend()
            eventually(lambda: router.stats()["replicas"][0]["state"] == "connected")
            load.wait_for(10)
        assert load.errors == []
        router.close()
        cable.close()


@pytest.fixture(scope="module")
def certificates():
    """A self-signed certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hashlight test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem), private


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_a_token_servers_only_listen_on_loopback(corpus, host):
    with pytest.raises(ValueError, match=f"{host} can be reached from other machines, and there is no token"):
        ShardServer(corpus.path, host=host, security=Security())


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--listen", "0.0.0.0:0"], 1, "there is no token: give one (HASHLIGHT_SHARD_TOKEN)"),
        (["--group", "3/2"], 2, "groups count from 1 to their number, got 3/2"),
        (["--group", "0/2"], 2, "groups count from 1 to their number, got 0/2"),
        (["--group", "2"], 2, "expected a group and the number of groups, such as 2/8, got '2'"),
        (["--listen", "8815"], 2, "expected HOST:PORT with a port of 0 to 65535, got '8815'"),
        (["--advertise", "here"], 2, "expected HOST:PORT with a port of 0 to 65535, got 'here'"),
    ],
)
def test_a_shard_server_says_why_it_does_not_start(corpus, monkeypatch, options, code, said):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    result = run("shard-server", corpus.path, "--group", "1/2", "--listen", "127.0.0.1:0", *options)
    assert result.exit_code == code
    assert said in " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())


def test_a_shard_server_that_cannot_reach_its_store_says_so_in_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        port = free.getsockname()[1]
        command = [sys.executable, "-P", "-m", "hashlight", "shard-server", f"s3://bucket-{port}/nothing"]
        store = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a"}
        environment = {**os.environ, **store, "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        done = subprocess.run(
            [*command, "--group", "1/1", "--listen", "127.0.0.1:0", "--poll", "0.1"],
            env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"error: s3://bucket-{port}/nothing" in done.stderr
    assert "Traceback" not in done.stderr


def test_tls_requires_the_right_authority_and_a_client_certificate(corpus, certificates):
    certificate, key = certificates
    both = Security(certificate=certificate, key=key, authority=certificate)
    with serving(corpus.path, groups=1, security=both) as (_, cluster):
        assert cluster.groups[0].replicas[0].startswith("grpc+tls://")
        router = ClusterRouter(cluster, security=both)
        assert router.search(corpus.queries, 3).coverage.complete
        router.close()
        for wrong in (Security(), Security(authority=certificate)):
            with pytest.raises(NoShardError):
                ClusterRouter(cluster, security=wrong, connect_s=1.0)
    with pytest.raises(ValueError, match="certificate and its key"):
        Security(certificate=certificate)


def test_no_server_at_all_is_an_error(corpus):
    with serving(corpus.path, groups=2) as (_, cluster):
        pass
    with pytest.raises(NoShardError, match="no shard server can be reached"):
        ClusterRouter(cluster, connect_s=2.0)


def test_refusals_name_the_missing_group(corpus):
    with serving(corpus.path, groups=2) as (_, cluster):
        missing = set(cluster.groups[1].shards)
        gone = cluster.with_replicas([cluster.groups[0].replicas, []])
        with contextlib.closing(ClusterRouter(gone)) as router:
            assert set(router.search(corpus.queries, 3).coverage.degraded) == missing
            with pytest.raises(IncompleteError) as caught:
                router.range_search(corpus.queries, 3)
            assert set(caught.value.missing) == missing
            assert set(router.ready().degraded) == missing
            shards = corpus.collection.shards
            here = next(shard.ids_N for shard in shards if shard.name not in missing)[:5]
            there = next(shard.ids_N for shard in shards if shard.name in missing)[:1]
            assert router.get(here)["id"].to_pylist() == here.tolist()
            with pytest.raises(IncompleteError):
                router.get([*here, *there])


def test_no_thread_outlives_a_router(corpus):
    """One within gRPC when the interpreter ends would abort the process."""
    with serving(corpus.path, groups=2) as (servers, cluster):
        away = Cable(int(servers[1][0].address.rpartition(":")[2]))
        own = set(threading.enumerate())
        router = ClusterRouter(cluster.with_replicas([cluster.groups[0].replicas, [away.address]]))
        assert router.search(corpus.queries, 3).coverage.complete
        away.cut()  # its server never closes its side
        router.close()
        left = [thread.name for thread in set(threading.enumerate()) - own]
        assert [name for name in left if "hashlight-router" in name or "grpc://" in name] == []
        away.mend()
        away.close()


def test_no_thread_stays_of_a_server_that_has_left_the_map(corpus, monkeypatch):
    monkeypatch.setattr(routing, "_KEPT_S", 0.0)
    with serving(corpus.path, groups=2) as (servers, cluster):
        away = Cable(int(servers[1][0].address.rpartition(":")[2]))
        maps = [cluster.with_replicas([cluster.groups[0].replicas, [away.address]])]
        with contextlib.closing(ClusterRouter(lambda: maps[-1])) as router:
            assert router.search(corpus.queries, 3).coverage.complete

            def of_the_server():
                return [thread.name for thread in threading.enumerate() if away.address in thread.name]

            assert of_the_server()
            away.cut()  # its server never closes its side
            maps.append(cluster)
            router.renew()
            eventually(lambda: of_the_server() == [])
            assert router.search(corpus.queries, 3).coverage.complete
        away.mend()
        away.close()


def test_servers_answer_from_what_is_alive(tmp_path):
    """Several versions at once: one with deleted rows and a moved id, and one without any shard."""
    schema = pa.schema({"label": pa.int64(), "later": pa.string()})
    later = {"later": (pa.string(), dict.fromkeys(range(10), "yes"))}
    ids = np.arange(10)
    codes = np.stack([ids, np.zeros(10)], axis=1)
    features = ids[:, None].astype(np.float16)
    first = Part(codes, ids, {"label": ids}, features, {1: b"a", 2: b"b"}, dead={1, 2, 3}, columns=later)
    second = Part([[1, 0], [20, 0]], [2, 20], {"label": [200, 20]}, np.array([[50], [60]], np.float16), {2: b"c"})
    path = assemble(tmp_path / "c", [first, second], bits=BITS, schema=schema)
    query = np.array([[0, 0]], np.uint64)
    with serving(path, groups=2) as (_, directory), contextlib.closing(ClusterRouter(directory)) as router:
        coverage = router.ready()
        assert (coverage.codes, coverage.searched, router.describe()["rows"]) == (9, 9, 9)
        assert router.search(query, 4).ids.tolist() == [[0, 2, 4, 8]]
        assert router.search(query, 4, filter="later is null").ids.tolist() == [[2, 20, -1, -1]]
        assert router.get([2, 4])["label"].to_pylist() == [200, 4]
        assert router.features_of(np.array([2, 4])).tolist() == [[50], [4]]
        assert router.thumbnail(2) == b"c"
        with pytest.raises(IdNotFoundError, match="id 1 was not found"):
            router.get([1])
    forge_manifest(path, lambda document: document.update(shards=[]))
    with serving(path, groups=1) as (_, directory), contextlib.closing(ClusterRouter(directory)) as router:
        router.ready()
        found = router.search(query, 2)
        assert (found.ids.tolist(), found.coverage.codes, found.coverage.complete) == ([[-1, -1]], 0, True)
        assert router.range_search(query, 3).lims.tolist() == [0, 0]
        with pytest.raises(IdNotFoundError):
            router.get([1])
