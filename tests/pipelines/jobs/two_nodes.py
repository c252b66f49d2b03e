"""Ray clusters of two unlike nodes, in a process of their own. Run by `test_nodes`, which names a function below."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from hashlight.pipelines.building.build import build_collection
from hashlight.pipelines.dedup.dedup import find_duplicates
from hashlight.pipelines.encoding.encode import encode_corpus
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.searching.batch import search_codes
from hashlight.pipelines.serving.cluster import shard_servers

MEMORY = {"object_store_memory": 80_000_000}
WAIT_S = 240  # a safety net


@contextlib.contextmanager
def cluster(**head):
    """A cluster of one node; the caller adds others."""
    os.environ |= {"RAY_worker_niceness": "0", "RAY_raylet_start_wait_time_s": str(WAIT_S)}
    nodes = Cluster(initialize_head=True, head_node_args={**MEMORY, "include_dashboard": False, **head})
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def refused(job, *arguments, **options):
    """The message of a job that does not begin."""
    with pytest.raises(PipelineError) as raised:
        job(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def a_gpu_on_one_node(corpus, encoder, scratch):
    """The GPU is Ray's invention: the actor is placed beside it and says that there is none, instead of waiting."""
    faults(scratch, {"step": "start", "do": "log"})
    with cluster(num_cpus=3) as nodes:
        nodes.add_node(num_cpus=1, num_gpus=1, **MEMORY)
        ray.init(address=nodes.address, log_to_driver=False)
        said = refused(encode_corpus, corpus, encoder, scratch / "codes", unit_images=100, actors=2)
    assert "CUDA" in said, said
    assert len(passed(scratch, "start")) == 4, "three starts may fail for each actor that there is room for"


def actors_start_when_nodes_join(corpus, encoder, scratch):
    """Units wait for the second actor, for which there is no node at first."""
    folder = faults(scratch, {"step": "unit", "do": "wait", "times": 100})
    with cluster(num_cpus=1) as nodes:
        ray.init(address=nodes.address, log_to_driver=False)
        done = []
        work = threading.Thread(
            target=lambda: done.append(encode_corpus(corpus, encoder, scratch / "codes", unit_images=10, actors=2))
        )
        work.start()
        until(lambda: len(passed(scratch, "unit")) == 1)
        nodes.add_node(num_cpus=1, **MEMORY)
        try:
            until(lambda: len(passed(scratch, "unit")) == 2)
        finally:
            (folder / "go").touch()
            work.join()
    assert done[0].codes == 300


def disks_that_are_not_shared(corpus, encoder, codes, collection, scratch):
    """The second node is a process of its own, with an empty disk where the first has everything."""
    shared = Path(os.path.commonpath([corpus, encoder, codes, collection, scratch]))
    mount = ("unshare", "--mount", "sh", "-c", f"mount -t tmpfs none '{shared}' && exec \"$@\"", "sh")
    with cluster(num_cpus=1) as nodes, another_node(nodes.address, *mount):
        for option, job in (
            ("--output", lambda: encode_corpus(corpus, encoder, scratch / "codes", actors=1)),
            ("--input", lambda: encode_corpus(corpus, encoder, scratch / "codes", actors=1)),
            ("--codes", lambda: build_collection(codes, scratch / "collection")),
            ("COLLECTION", lambda: search_codes(collection, codes, scratch / "found.parquet", k=3)),
            ("COLLECTION", lambda: shard_servers(collection, groups=1, replicas=1, ray=True).__enter__()),
        ):
            said = refused(job)
            assert re.search(rf"\([0-9a-f]{{6}}\) does not see {option} {re.escape(str(shared))}", said), said
            assert "mount at the same path, or a bucket" in said
            assert not list((scratch / "codes").glob("parts/*"))


def bucket_to_bucket(there, hidden):
    """Only the second node works; of the driver's disk it sees nothing. `there` is a URI with a place for the name."""
    names = ("corpus.parquet", "encoder", "codes", "c", "found.parquet", "pairs")
    corpus, encoder, codes, collection, found, pairs = map(there.format, names)
    mount = ("unshare", "--mount", "sh", "-c", f"mount -t tmpfs none '{hidden}' && exec \"$@\"", "sh")
    with cluster(num_cpus=0) as nodes, another_node(nodes.address, *mount):
        assert encode_corpus(corpus, encoder, codes, unit_images=100).codes == 300
        assert build_collection(codes, collection, shards=2).added == 300
        assert search_codes(collection, codes, found, k=3).queries == 300
        assert find_duplicates(collection, pairs, radius=6).codes == 300


@contextlib.contextmanager
def another_node(address, *prefix, **environment):
    """A node with one CPU, started by a command of its own, in its own environment."""
    start = "-m ray.scripts.scripts start --num-cpus=1 --object-store-memory=80000000 --block --disable-usage-stats"
    process = subprocess.Popen(
        [*prefix, sys.executable, *start.split(), f"--address={address}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | environment,
    )
    try:
        ray.init(address=address, log_to_driver=False)
        until(lambda: sum(node["Alive"] for node in ray.nodes()) == 2)
        yield
    finally:
        process.terminate()
        process.wait(WAIT_S)


def faults(scratch, *rules):
    folder = scratch / "faults"
    folder.mkdir()
    (folder / "rules.json").write_text(json.dumps(rules))
    os.environ[chaos.VARIABLE] = str(folder)
    return folder


def passed(scratch, step):
    log = scratch / "faults" / "steps.log"
    return [line for line in log.read_text().splitlines() if line.split()[0] == step] if log.exists() else []


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    globals()[name](*(Path(text) if text.startswith("/") else text for text in rest))
