"""Faults of real processes raise the alerts that are about them: what the processes export is told to promtool."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.soak import free_ports
from hashlight import IncompleteError, SearchClient
from hashlight.engine.collection.collection import Collection
from tests.engine.service.conftest import eventually
from tests.pipelines.serving.test_gateway import kill, start

from .test_monitoring import alerts, firing, promtool, rules

pytestmark = pytest.mark.slow

KEY = "searching-is-all-0001"
HEALTHY_MINUTES, MINUTES = 5, 30
DURATIONS = "hashlight_request_seconds_"


class Watch:
    """Scrapes processes as Prometheus does, and tells promtool what it has seen.

    A scrape stands for each minute of a scenario. After the last one counters go on as if the last two were a minute
    apart, what has aged between them by all the time goes on to age, and all else stays.
    """

    def __init__(self, targets):
        self._targets = targets  # instance -> (component, URL of its metrics)
        self._named = set(
            re.findall(r"\b(?:hashlight|process)_\w+", " ".join(rule["expr"] for rule in alerts().values()))
        )
        self.healthy = self.scrape()

    def scrape(self, named=None):
        """Return series -> value, and when that was: those that alerts are about, or some."""
        named, found = named or self._named, {}
        for instance, (component, url) in self._targets.items():
            own = {"component": component, "instance": instance}
            text = None
            with contextlib.suppress(httpx.HTTPError):
                text = httpx.get(url, timeout=10).text
            found["up", tuple(sorted(own.items()))] = float(text is not None)
            for family in text_string_to_metric_families(text or ""):
                for sample in family.samples:
                    if sample.name in named:
                        found[sample.name, tuple(sorted({**sample.labels, **own}.items()))] = sample.value
        return found, time.monotonic()

    def value(self, wanted, **labels):
        """Return the largest value that any process has now."""
        found, _ = self.scrape(frozenset([wanted]))
        return max(
            value for (name, own), value in found.items() if name == wanted and labels.items() <= dict(own).items()
        )

    def timeline(self, before, after):
        """Return the series of a scenario: well for some minutes, then ill to the end."""
        (healthy, _), (first, first_s), (last, last_s) = self.healthy, before, after
        lines = {}
        for name, labels in {**healthy, **last}:
            key = name, labels
            text = f"{name}{{{', '.join(f'{label}={value!r}' for label, value in labels)}}}".replace("'", '"')
            well = f"{healthy[key]}x{HEALTHY_MINUTES - 1}" if key in healthy else f"_x{HEALTHY_MINUTES - 1}"
            step = 0.0
            if name.endswith(("_total", "_bucket")):
                step = last.get(key, 0) - first.get(key, 0)
            elif name.endswith("_age_seconds") and last_s - first_s > 1:
                aged_s = last.get(key, 0) - first.get(key, 0)
                step = 60.0 if aged_s > 0.8 * (last_s - first_s) else 0.0
            ill = f"{last[key]}{step:+}x{2 * MINUTES}" if key in last else f"_x{2 * MINUTES}"
            lines[text] = f"{well} {ill}"
        return lines

    def expect(self, names, folder, before=None):
        """Check that exactly some alerts fire some time after what is seen now has begun.

        How long requests take is left out unless an alert is to fire for it: this machine may be slow by itself.
        """
        after = self.scrape()
        lines = self.timeline(before or after, after)
        if "HashlightSlow" not in names:
            lines = {name: values for name, values in lines.items() if not name.startswith(DURATIONS)}
        done = firing(rules(), folder, [(lines, MINUTES, names)], healthy={})
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def own(tmp_path):
    codes = np.random.default_rng(1).integers(1 << 12, size=(400, 1), dtype=np.uint64)
    made = Collection.create(tmp_path / "c", codes, bits=48, shards=4)
    made.search(codes[:1], 5)
    return made.path, codes


@pytest.fixture
def machine(own, tmp_path):
    """Two shard servers and a gateway that writes, each with a port for what watches it, by their names."""
    promtool()
    path, _ = own
    names = ("shard-1", "shard-2", "gateway")
    ports = dict(zip(names, zip(*[iter(free_ports(6))] * 2, strict=True), strict=True))
    (tmp_path / "keys").write_text(f"web search,write {KEY}\n")
    servers = [[f"127.0.0.1:{ports[name][0]}"] for name in names[:2]]
    (tmp_path / "map.json").write_text(json.dumps({"groups": servers}))
    processes = {}
    try:
        for name, (port, watched) in ports.items():
            words = ("gateway", path, "--map", tmp_path / "map.json", "--port", port, "--keys", tmp_path / "keys")
            if name != "gateway":
                words = ("shard-server", path, "--group", f"{name[-1]}/2", "--listen", f"127.0.0.1:{port}")
            processes[name] = start(*words, "--poll", 0.2, "--metrics-listen", f"127.0.0.1:{watched}")[0]
        ready = f"http://127.0.0.1:{ports['gateway'][1]}/health/complete"
        eventually(lambda: httpx.get(ready, timeout=60).status_code == 200)
        yield processes, ports
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGCONT)
            kill(process)


@pytest.fixture
def watch(machine):
    _, ports = machine
    return Watch({
        name: ("hashlight-gateway" if name == "gateway" else "hashlight-shard-server", f"http://127.0.0.1:{port}/metrics")
        for name, (_, port) in ports.items()
    })  # fmt: skip


def test_a_lost_server(own, machine, watch, tmp_path):
    """A frozen one, then a killed one, then queries that need it; then the gateway is gone, too."""
    processes, ports = machine
    watch.expect([], tmp_path)
    processes["shard-2"].send_signal(signal.SIGSTOP)
    eventually(lambda: watch.value("hashlight_coverage_ratio") < 1)
    eventually(lambda: watch.value("hashlight_router_replicas", state="lost") == 1)
    kill(processes["shard-2"])
    lost = ["HashlightProcessDown", "HashlightReplicasSilent", "HashlightShardsMissing"]
    watch.expect(lost, tmp_path)
    before = watch.scrape()
    with SearchClient(f"http://127.0.0.1:{ports['gateway'][0]}", api_key=KEY, max_retries=0) as client:
        for _ in range(20):
            assert not client.search(own[1][:1], 5).coverage.complete
            with pytest.raises(IncompleteError):
                client.search(own[1][:1], 5, allow_partial=False)
    watch.expect([*lost, "HashlightErrors", "HashlightPartialAnswers"], tmp_path, before)
    kill(processes["gateway"])
    watch.expect(["HashlightGatewaysGone", "HashlightProcessDown"], tmp_path)


def test_a_version_that_cannot_be_served(own, machine, watch, tmp_path):
    path, codes = own
    shutil.copytree(path, tmp_path / "next")
    Collection.open(tmp_path / "next").add(codes[:8], ids=np.arange(1000, 1008))
    [fresh] = {one.name for one in (tmp_path / "next" / "shards").iterdir()} - {
        one.name for one in (path / "shards").iterdir()
    }
    (tmp_path / "next" / "shards" / fresh / "codes.faiss").write_bytes(b"damaged")
    for folder in ("shards", "manifests"):
        shutil.copytree(tmp_path / "next" / folder, path / folder, dirs_exist_ok=True)
    shutil.copy(tmp_path / "next" / "CURRENT", path / "new")
    (path / "new").replace(path / "CURRENT")
    eventually(lambda: watch.value("hashlight_pending_attempts") > 0)
    watch.expect(["HashlightVersionNotServed"], tmp_path)


def test_a_list_of_servers_that_is_gone(own, machine, watch, tmp_path):
    """The servers that were on it are still asked, and answer."""
    _, ports = machine
    (tmp_path / "map.json").unlink()
    eventually(lambda: watch.value("hashlight_router_map_age_seconds") > 2)
    before = watch.scrape()
    eventually(lambda: watch.value("hashlight_router_map_age_seconds") > 5)
    with SearchClient(f"http://127.0.0.1:{ports['gateway'][0]}", api_key=KEY) as client:
        assert client.search(own[1][:1], 5).coverage.complete
    watch.expect(["HashlightMapOld"], tmp_path, before)


def test_keys_that_are_wrong(machine, watch, tmp_path):
    """A file of keys that cannot be used, and requests without one."""
    _, ports = machine
    (tmp_path / "keys").write_text("nonsense\n")
    eventually(lambda: watch.value("hashlight_keys_stale") == 1)
    watch.expect(["HashlightKeysStale"], tmp_path)
    before = watch.scrape()
    with httpx.Client() as http:
        for _ in range(100):
            assert http.post(f"http://127.0.0.1:{ports['gateway'][0]}/v1/search", json={}).status_code == 401
    watch.expect(["HashlightKeysRefused", "HashlightKeysStale"], tmp_path, before)


def test_more_requests_than_a_key_may_make(machine, watch, tmp_path):
    _, ports = machine
    (tmp_path / "keys").write_text(f"web search,write {KEY} rate=0.1/s\n")
    with httpx.Client(headers={"X-API-Key": KEY}) as http:

        def ask():
            return http.get(f"http://127.0.0.1:{ports['gateway'][0]}/v1/collection", timeout=60).status_code

        eventually(lambda: ask() == 429)
        before = watch.scrape()
        assert [ask() for _ in range(40)].count(429) > 4
    watch.expect(["HashlightOverloaded"], tmp_path, before)


def test_queries_that_a_server_holds_up(own, machine, watch, tmp_path):
    processes, ports = machine

    def is_asked():  # by the gateway alone: the other one does not answer
        text = httpx.get(f"http://127.0.0.1:{ports['gateway'][1]}/metrics", timeout=60).text
        return float(re.search(r"^hashlight_router_in_flight_calls\S* (\S+)$", text, re.MULTILINE)[1]) > 0

    with SearchClient(f"http://127.0.0.1:{ports['gateway'][0]}", api_key=KEY) as client, ThreadPoolExecutor() as pool:
        for _ in range(5):
            before = watch.scrape()
            processes["shard-2"].send_signal(signal.SIGSTOP)
            asked = [pool.submit(client.search, own[1][:1], 5) for _ in range(4)]
            eventually(is_asked)
            time.sleep(0.7)  # longer than the alert allows
            processes["shard-2"].send_signal(signal.SIGCONT)
            is_whole = all(one.result().coverage.complete for one in asked)
            eventually(lambda: watch.value("hashlight_router_replicas", state="connected") == 2)
            if is_whole:  # else this machine took so long that the server counted as lost
                break
    watch.expect(["HashlightSlow"], tmp_path, before)


def test_a_gateway_that_stays_behind(own, machine, watch, tmp_path):
    path, codes = own
    _, ports = machine
    port = free_ports(1)[0]
    words = ("gateway", path, "--map", tmp_path / "map.json", "--poll", 3600, "--port", 0, "--metrics-listen")
    late, _ = start(*words, f"127.0.0.1:{port}")
    try:
        eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/health/complete", timeout=60).status_code == 200)
        own_target = {name: ("hashlight-gateway", f"http://127.0.0.1:{one[1]}/metrics") for name, one in ports.items()}
        both = Watch(
            {"gateway": own_target["gateway"], "late": ("hashlight-gateway", f"http://127.0.0.1:{port}/metrics")}
        )
        Collection.open(path).add(codes[:8], ids=np.arange(1000, 1008))
        eventually(lambda: both.value("hashlight_served_version") == 2)
        before = both.scrape()
        time.sleep(1.5)  # in which what does not look for versions ages
        both.expect(["HashlightMapOld", "HashlightVersionsApart"], tmp_path, before)
    finally:
        kill(late)


def test_descriptors_that_run_out(machine, watch, tmp_path):
    processes, _ = machine
    pid = processes["gateway"].pid
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (int(taken / 0.9), most))
    watch.expect(["HashlightDescriptorsRunOut"], tmp_path)


def test_shards_that_cannot_be_merged(tmp_path):
    """A file of one of many small shards is gone; what serves them has it open."""
    codes = np.random.default_rng(1).integers(1 << 12, size=(400, 1), dtype=np.uint64)
    path = Collection.create(tmp_path / "c", codes, bits=48, shards=8).path
    process, url = start("serve", path, "--writable", "--port", 0, "--write-log", tmp_path / "log")
    try:
        watch = Watch({"gateway": ("hashlight-gateway", f"{url}/metrics")})
        watch.expect([], tmp_path)
        with SearchClient(url) as client:
            client.search(codes[:1], 5)
            for one in (path / "shards").iterdir():
                (one / "codes.faiss").unlink()
            before = watch.scrape()
            client.add(codes[:1], ids=[1000])
        eventually(lambda: watch.value("hashlight_compaction_failures_total") > 0)
        watch.expect(["HashlightCompactionFails"], tmp_path, before)
    finally:
        kill(process)


def test_writes_that_cannot_be_committed(own, tmp_path):
    """A disk that takes the log, and no shard."""
    path, codes = own
    process, url = start("serve", path, "--writable", "--no-compact", "--port", 0, "--write-log", tmp_path / "log")
    try:
        watch = Watch({"gateway": ("hashlight-gateway", f"{url}/metrics")})
        watch.expect([], tmp_path)
        (path / "shards").rename(tmp_path / "shards")
        (path / "shards").write_bytes(b"")
        with SearchClient(url) as client:
            client.add(codes[:1], ids=[1000])
        eventually(lambda: watch.value("hashlight_log_age_seconds") > 0)
        before = watch.scrape()
        eventually(lambda: watch.value("hashlight_log_flush_failures_total") > 0)
        watch.expect(["HashlightWritesNotCommitted"], tmp_path, before)
    finally:
        kill(process)
