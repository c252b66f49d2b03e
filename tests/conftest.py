from __future__ import annotations

import gc
import os
import uuid
import warnings
from dataclasses import asdict

# Before anything loads BLAS or torch: the tests run in several processes, whose threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from hashlight.engine.indexes.multi_index import planner
from hashlight.engine.kernels.compiling import cache_folder
from tests.costs import FIXED_COSTS


def pytest_collection_modifyitems(items):
    """Begin with the file that has the longest test, for which the other processes would wait at the end."""
    items.sort(key=lambda item: item.path.name != "test_package.py")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keep the stamps of verified shards away from the user's own, and plans away from this machine's clock.

    Processes that tests start find the same costs there: only the tests of measuring measure anything. They share this
    process's compiled kernels.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", str(cache_folder().parent))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        planner.write_machine_file(planner.machine_file("costs"), asdict(FIXED_COSTS))
        yield


@pytest.fixture(scope="session")
def s3_credentials():
    """Credentials, which the server below ignores but the clients require."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def ray_session(s3_credentials):
    """One small Ray for all tests that need one."""
    import ray

    # The workers' default niceness, 15, lets other work on the machine starve them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with warnings.catch_warnings():
        # Nobody waits for the processes of an attempt that failed: they end with this one.
        warnings.simplefilter("ignore", ResourceWarning)
        for attempts_left in reversed(range(10)):
            try:
                ray.init(
                    address="local",
                    num_cpus=2,
                    include_dashboard=False,
                    object_store_memory=100_000_000,
                    log_to_driver=False,
                )
                break
            except Exception as error:  # Ray gives its processes 30 seconds to start, which a busy machine exceeds
                ray.shutdown()
                if "timed out during startup" not in str(error) or not attempts_left:
                    raise
        gc.collect()
    yield
    ray.shutdown()


class Bucket:
    """A bucket of a server on this machine that speaks S3's protocol."""

    def __init__(self, client, name, endpoint):
        self._client, self.name, self._endpoint = client, name, endpoint

    def uri(self, key):
        return f"s3://{self.name}/{key}?endpoint_override={self._endpoint}&scheme=http&region=us-east-1"

    def put(self, key, data):
        self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def keys(self, prefix=""):
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def get(self, key):
        return self._client.get_object(Bucket=self.name, Key=key)["Body"].read()


@pytest.fixture(scope="session")
def s3_server(s3_credentials):
    """The host and port of a server that speaks S3's protocol."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3_server):
    """An empty bucket."""
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1")
    name = f"bucket-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return Bucket(client, name, s3_server)
