"""Clusters of hosts on this machine, by the commands of deploy/. Run by `test_hosts`, which names a function below.

    python -m tests.pipelines.serving.on_hosts kubernetes HIDDEN CORPUS ENCODER

runs in namespaces of its own, as `network.isolated` says.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import boto3
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import hashlight
from hashlight.engine.collection.collection import Collection
from hashlight.engine.indexes.multi_index.planner import machine_file
from tests import oracles
from tests.deploy.files import compose
from tests.deploy.files import kubernetes as documents
from tests.deploy.processes import on_kubernetes
from tests.engine.service.conftest import Load
from tests.pipelines.serving.network import WAIT_S, Network, until

HASHLIGHT = [sys.executable, "-P", "-m", "hashlight"]
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
       "--object-store-memory=80000000"]  # fmt: skip
RAY_ENVIRONMENT = {
    "RAY_worker_niceness": "0",
    "RAY_raylet_start_wait_time_s": str(WAIT_S),
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
}
KEY = "of-these-tests-0001"
BUCKET, COLLECTION = "hashlight", "s3://hashlight/collection"
TIMEOUT_S = 60


def say(*what, sep=" "):
    """Name the step that begins: the last one is the one that failed."""
    print(*what, sep=sep, flush=True)  # noqa: T201


class Oracle:
    """What the collection must hold: id -> code."""

    def __init__(self, codes):
        self.codes = codes

    def nearest(self, queries_QW, k):
        codes_NW = np.array(list(self.codes.values()), np.uint64).reshape(-1, 1)
        distances, ids = oracles.knn(queries_QW, codes_NW, np.array(list(self.codes)), k)
        return [list(zip(*row, strict=True)) for row in zip(distances.tolist(), ids.tolist(), strict=True)]

    def some(self, count):
        """Return codes near to those that there are, (Q, 1)."""
        rng = np.random.default_rng(len(self.codes))
        chosen = rng.choice(list(self.codes.values()), count).astype(np.uint64)
        return (chosen ^ rng.integers(8, size=count).astype(np.uint64))[:, None]


def told(answer):
    """Return what a client was answered as the oracle says it."""
    return [list(zip(hits.distances.tolist(), hits.ids.tolist(), strict=True)) for hits in answer]


class Cluster:
    """The servers of deploy/kubernetes, a host for each, behind the names of their services."""

    def __init__(self, network, where):
        self.network = network
        self.environment = {**where, "HASHLIGHT_SHARD_TOKEN": "of these tests"}
        [gateway, *servers] = sorted(on_kubernetes(), key=lambda process: process.words[0])
        self._gateway, self._servers = gateway.words, {self._group(one.words): one for one in servers}
        self.gateways, self.shards = {}, {}

    @staticmethod
    def _group(words):
        return int(re.search(r"--group=(\d+)/", " ".join(words))[1])

    def _host(self, name, *aliases):
        host = self.network.host(name, *aliases)
        # What planning a query takes was measured for all tests once.
        costs = self.network.folder / "disks" / name / "cache" / "hashlight"
        costs.mkdir(exist_ok=True)
        (costs / machine_file("costs").name).write_bytes(machine_file("costs").read_bytes())
        (self.network.folder / "disks" / name / "keys").write_text(f"web search,write {KEY}\n")
        return host

    def shard(self, group, name):
        """Start a shard server of a group on a host."""
        process = self._servers[group]
        host = self.shards[group, name] = self._host(f"shard-{group}{name}", *sorted(process.hosts))
        host.start(*HASHLIGHT, *process.words, **self.environment)
        return host

    def gateway(self, name, *more):
        """Start a gateway on a host."""
        host = self.gateways[name] = self._host(f"gateway-{name}")
        words = [word.replace("/etc/hashlight/keys/keys", f"{host.disk}/keys") for word in self._gateway]
        host.server = host.start(*HASHLIGHT, *words, *more, **self.environment)
        return host

    def client(self, *names):
        urls = [f"http://{self.gateways[name].address}:8000" for name in names or self.gateways]
        return hashlight.SearchClient(urls, api_key=KEY, timeout_s=TIMEOUT_S)

    def check(self, oracle, *names):
        """Ask every gateway, or some: each gives the oracle's answer, of all shards."""
        queries = oracle.some(5)
        for name in names or self.gateways:
            with self.client(name) as client:
                found = client.search(queries, 10, allow_partial=False)
                assert found.coverage.complete
                assert told(found) == oracle.nearest(queries, 10), name


def status(host, path):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://{host.address}:9090{path}", timeout=10).status_code


def metric(host, name):
    """Return a metric of a server; None if it does not answer, or has none."""
    with contextlib.suppress(httpx.HTTPError):
        text = httpx.get(f"http://{host.address}:9090/metrics", timeout=10).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else None


def connected(host):
    labels = 'collection="collection",state="connected"'
    return metric(host, f"hashlight_router_replicas{{{labels}}}")


def served(host):
    return metric(host, 'hashlight_served_version{collection="collection"}')


def entrypoint(name):
    """Return the command of a RayJob, without `hashlight`."""
    [job] = [one for file, one in documents() if one["kind"] == "RayJob" and one["metadata"]["name"].endswith(name)]
    return shlex.split(job["spec"]["entrypoint"])[1:]


def compaction():
    """Return the command of the CronJob, without `hashlight`."""
    [job] = [one for _, one in documents() if one["kind"] == "CronJob"]
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return container["args"]


def storage(network):
    """Start a bucket on a host; return what tells others of it, as compose does, and a client."""
    host = network.host("s3")
    host.start(sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "9000")
    where = {**compose()["x-storage"], "AWS_SECRET_ACCESS_KEY": "of these tests", "AWS_EC2_METADATA_DISABLED": "true"}
    os.environ.update(where)
    bucket = boto3.client("s3", endpoint_url=where["AWS_ENDPOINT_URL"])
    until(lambda: _answers(where["AWS_ENDPOINT_URL"]), "the bucket")
    bucket.create_bucket(Bucket=BUCKET)
    return where, bucket


def _answers(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code


def start_head(host, environment):
    host.start(*_head(host), **environment)


def start_head_again(host, environment):
    """Start the head of a cluster whose head is gone.

    Hosts here see each other's processes: by those of the others Ray takes the head that is gone for one that still
    runs, unless it has forgotten where that was, which whoever looks for it reminds it of.
    """
    forget = "rm -f $TMPDIR/ray/ray_current_cluster"
    host.start("sh", "-c", f"until {forget}; {shlex.join(_head(host))}; do sleep 1; done", **environment)


def _head(host):
    return [*RAY, "--head", "--port=6379", "--num-cpus=0", f"--node-ip-address={host.address}",
            "--include-dashboard=false"]  # fmt: skip


def start_worker(host, head, environment, *, cpus):
    """Start a node that joins a cluster as soon as that has a head."""
    start = [*RAY, f"--address={head.address}:6379", f"--num-cpus={cpus}", f"--node-ip-address={host.address}"]
    host.start("sh", "-c", f"until {shlex.join(start)}; do sleep 1; done", **environment)


def has_joined(host):
    return "Ray runtime started" in host.log


def encode_and_build(network, where, bucket, corpus, encoder):
    """Make the collection on a cluster of two Ray nodes; return what it must hold."""
    for number, row in enumerate(pq.read_table(corpus)["image"].to_pylist()):
        bucket.put_object(Bucket=BUCKET, Key=f"images/{number:03}.png", Body=row)
    for file in encoder.iterdir():
        bucket.put_object(Bucket=BUCKET, Key=f"encoder/{file.name}", Body=file.read_bytes())
    environment = {**where, **RAY_ENVIRONMENT}
    head, worker = network.host("ray-1"), network.host("ray-2")
    start_head(head, environment)
    start_worker(worker, head, environment, cpus=2)
    until(lambda: has_joined(worker), "joining")
    for name in ("encode", "build"):
        say(name)
        head.run(*HASHLIGHT, *entrypoint(name), **environment, RAY_ADDRESS=f"{head.address}:6379")
    for host in (head, worker):
        network.off(host)
    keys = [one["Key"] for one in bucket.list_objects_v2(Bucket=BUCKET, Prefix="codes/parts/")["Contents"]]
    parts = [pq.read_table(pa.BufferReader(bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read()))
             for key in keys if key.endswith(".parquet")]  # fmt: skip
    rows = pa.concat_tables(parts)
    codes = [int.from_bytes(code, "little") for code in rows["code"].to_pylist()]
    assert len(set(rows["id"].to_pylist())) == 300
    return Oracle(dict(zip(rows["id"].to_pylist(), codes, strict=True)))


def kubernetes(hidden, corpus, encoder):
    """Encode, build, serve, write, replace a gateway, cut the network, lose a host, compact."""
    with on_a_network(hidden) as network:
        where, bucket = storage(network)
        oracle = encode_and_build(network, where, bucket, corpus, encoder)
        cluster = Cluster(network, where)
        for step in (begin, write, replace_a_gateway, cut_any_two, cut_a_group, cut_the_bucket, lose_a_host, compact):
            say(step.__name__)
            step(cluster, oracle)


@contextlib.contextmanager
def on_a_network(hidden):
    """Yield a network; if what is done there fails, print what its hosts wrote."""
    with tempfile.TemporaryDirectory(dir=hidden) as folder, tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        try:
            yield Network(Path(folder), hidden, Path(scratch))
        except BaseException:
            for log in sorted((Path(folder) / "logs").iterdir()):
                lines = [
                    line for line in log.read_text(errors="replace").splitlines() if "hashlight.access" not in line
                ]
                say(f"--- {log.name}", *(line[:500] for line in lines[-20:]), sep="\n")
            raise


def begin(cluster, oracle):
    """Start gateways before there is anything to ask, and all servers at once."""
    cluster.gateway("1", "--writable", "--no-compact", f"--write-log={cluster.network.hidden}/log")
    cluster.gateway("2")
    until(lambda: {status(one, "/health/ready") for one in cluster.gateways.values()} == {503}, "listening")
    for place in itertools.product((1, 2), "ab"):
        cluster.shard(*place)
    until(lambda: all(connected(one) == 4 for one in cluster.gateways.values()), "finding all servers")
    for host in [*cluster.gateways.values(), *cluster.shards.values()]:
        assert status(host, "/health/complete") == 200, host.name
    cluster.check(oracle)


def write(cluster, oracle):
    """Add and delete items by one gateway; the other one answers with them as soon as it has the version."""
    new = np.arange(10**6, 10**6 + 20)
    codes = oracle.some(20)
    gone = list(oracle.codes)[:30]
    with cluster.client("1") as client:
        client.add(codes, ids=new)
        version = client.delete(gone, visible=True)
        version = client.describe()["version"]
    oracle.codes.update(zip(new.tolist(), codes[:, 0].tolist(), strict=True))
    for id_ in gone:
        del oracle.codes[id_]
    until(lambda: all(served(one) == version for one in cluster.gateways.values()), "agreeing")
    cluster.check(oracle)


def asking(cluster, oracle, *names):
    """Return a load on some gateways, by one client, of answers that are checked."""
    queries = oracle.some(5)
    expected = oracle.nearest(queries, 10)
    client = cluster.client(*names)

    def ask():
        found = client.search(queries, 10, allow_partial=False)
        assert found.coverage.complete
        assert told(found) == expected

    return Load(ask, threads=2)


def compact(cluster, oracle):
    """Publish a version by the nightly command, while queries go on; it has one shard, so that one group is idle."""
    before = served(cluster.gateways["1"])
    host = cluster.network.host("job")
    with asking(cluster, oracle) as load:
        host.run(*HASHLIGHT, *compaction(), **cluster.environment)
        until(lambda: all((served(one) or 0) > before for one in cluster.gateways.values()), "serving the new version")
        load.wait_for(10)
    assert load.errors == [], load.errors
    cluster.check(oracle)


def replace_a_gateway(cluster, oracle):
    """Start another gateway and end one: a client that knows all of them sees no failure."""
    cluster.gateway("3")
    with asking(cluster, oracle, "1", "2", "3") as load:
        until(lambda: connected(cluster.gateways["3"]) == 4, "finding all servers")
        load.wait_for(10)
        going = cluster.gateways.pop("2")
        going.server.send_signal(signal.SIGTERM)
        assert going.server.wait(WAIT_S) == 0
        load.wait_for(10)
    assert load.errors == [], load.errors
    cluster.check(oracle)


def cut_any_two(cluster, oracle):
    """Cut the network between any two hosts: every gateway still gives whole answers."""
    for one, other in itertools.combinations([*cluster.gateways.values(), *cluster.shards.values()], 2):
        cluster.network.cut(one, other)
        cluster.check(oracle)
        cluster.network.mend(one, other)
    until(lambda: all(connected(one) == 4 for one in cluster.gateways.values()), "finding all servers again")


def cut_a_group(cluster, oracle):
    """Cut one gateway off both servers of a group: it says what is missing, and the other one knows nothing of it."""
    name, gateway = max(cluster.gateways.items())
    cut = [cluster.shards[1, one] for one in "ab"]
    for host in cut:
        cluster.network.cut(gateway, host)
    queries = oracle.some(5)
    with cluster.client(name) as client:
        until(lambda: not client.search(queries, 10).coverage.complete, "a partial answer")
        found = client.search(queries, 10)
        assert 0 < found.coverage.answered < found.coverage.shards
        rest = set(itertools.chain.from_iterable(told(found)))
        assert all(pair in rest or pair[1] not in {id_ for _, id_ in rest}
                   for pair in itertools.chain.from_iterable(oracle.nearest(queries, 10)))  # fmt: skip
        for refuse in (
            lambda: client.search(queries, 10, allow_partial=False),
            lambda: client.range_search(queries, 6),
        ):
            with contextlib.suppress(hashlight.IncompleteError, hashlight.DeadlineExceededError):
                refuse()
                raise AssertionError("an incomplete answer was not refused")
    assert status(gateway, "/health/ready") == 200
    assert metric(gateway, 'hashlight_coverage_ratio{collection="collection"}') < 1
    cluster.check(oracle, "1")
    for host in cut:
        cluster.network.mend(gateway, host)
    until(lambda: connected(gateway) == 4, "finding all servers again")
    cluster.check(oracle)


def cut_the_bucket(cluster, oracle):
    """Cut one server off the bucket: the others serve the next version, and it catches up."""
    host, bucket = cluster.shards[1, "a"], cluster.network.hosts["s3"]
    cluster.network.cut(host, bucket)
    gone = list(oracle.codes)[:10]
    with cluster.client("1") as client:
        client.delete(gone, visible=True)
        version = client.describe()["version"]
    for id_ in gone:
        del oracle.codes[id_]
    until(lambda: all(served(one) == version for one in cluster.gateways.values()), "serving the new version")
    cluster.check(oracle)
    assert metric(host, "hashlight_shard_served_version") < version
    cluster.network.mend(host, bucket)
    until(lambda: metric(host, "hashlight_shard_served_version") == version, "catching up")
    until(lambda: all(connected(one) == 4 for one in cluster.gateways.values()), "using it again")


def lose_a_host(cluster, oracle):
    """Lose a host: no answer is wrong or silently partial; another one in its place, at another address, is found."""
    with asking(cluster, oracle) as load:
        load.wait_for(10)
        cluster.network.off(cluster.shards[2, "a"])
        load.wait_for(10)
        until(lambda: all(connected(one) == 3 for one in cluster.gateways.values()), "missing it")
        cluster.shard(2, "a")
        until(lambda: all(connected(one) == 4 for one in cluster.gateways.values()), "finding it again")
        load.wait_for(10)
    refused = (hashlight.IncompleteError, hashlight.DeadlineExceededError)
    assert all(isinstance(error, refused) for error in load.errors), load.errors
    cluster.check(oracle)


def ray(hidden):
    """Servers on Ray, whose head is lost: queries go on; it comes back: there can be more servers."""
    with on_a_network(hidden) as network:
        where, _ = storage(network)
        codes = oracles.clustered_codes(np.random.default_rng(2), 500, 48)
        Collection.create(COLLECTION, codes, bits=48, shards=4)
        oracle = Oracle(dict(enumerate(codes[:, 0].tolist())))
        tables = network.host("redis")
        # The program that checks tables of Redis is its server, too: Debian's package redis-tools starts none itself.
        program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
        tables.start("bash", "-c", f"exec -a redis-server {program} --save '' --protected-mode no")
        head, *workers = (network.host(f"ray-{number}") for number in range(3))
        environment = {
            **where, **RAY_ENVIRONMENT, "HASHLIGHT_SHARD_TOKEN": "of these tests",
            "RAY_ADDRESS": f"{head.address}:6379",
            "RAY_REDIS_ADDRESS": f"{tables.address}:6379", "RAY_external_storage_namespace": "hashlight",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
        }  # fmt: skip
        say("begin")
        start_head(head, environment)
        for worker in workers:
            start_worker(worker, head, environment, cpus=3)
        until(lambda: all(map(has_joined, workers)), "joining")
        launcher = head.start(
            *HASHLIGHT, "serve", COLLECTION, "--ray", "--address", "auto", "--name", "photos", "--groups", 2,
            "--replicas", 2, "--port", 8001, **environment,
        )  # fmt: skip
        gateway = head.start(
            *HASHLIGHT, "gateway", "--shards", "ray://photos", "--host", "0.0.0.0", "--insecure", "--metrics-listen",
            "0.0.0.0:9090", **environment,
        )  # fmt: skip
        until(lambda: connected(head) == 4, "finding all servers")
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(WAIT_S)
        lose_the_head(head, gateway, oracle, environment)


def lose_the_head(head, gateway, oracle, environment):
    queries = oracle.some(5)
    expected = oracle.nearest(queries, 10)
    with hashlight.SearchClient(f"http://{head.address}:8000", timeout_s=TIMEOUT_S) as client:

        def ask():
            found = client.search(queries, 10, allow_partial=False)
            assert told(found) == expected
            time.sleep(0.05)  # leaves the processors to those who have to start

        with Load(ask, threads=1) as load:
            load.wait_for(10)
            say("kill the head")
            [gcs] = [pid for pid in head.pids() if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            os.kill(gcs, signal.SIGKILL)
            time.sleep(float(os.environ.get("HASHLIGHT_TEST_HEADLESS_S", "20")))
            load.wait_for(10)
            assert connected(head) == 4
            say("start it again")
            start_head_again(head, environment)
            until(lambda: head.log.count("Ray runtime started") == 2, "starting")
            head.run(*HASHLIGHT, "scale", "ray://photos", "--replicas", 3, **environment)
            until(lambda: connected(head) == 6, "finding the new servers")
            load.wait_for(10)
        assert load.errors == [], load.errors
    assert gateway.poll() is None


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    globals()[name](*map(Path, rest))
