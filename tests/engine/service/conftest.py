from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.control.finding import Finder
from hashlight.engine.service.protocol.cluster_map import (
    Assignment,
    ClusterMap,
    Group,
    assign_groups,
    describe_whole,
)
from hashlight.engine.service.shards.keeping import Keeper
from hashlight.engine.service.shards.server import ShardServer
from hashlight.engine.storage.versions import read_current
from tests.oracles import clustered_codes

ROWS, BITS = 3000, 72


class Corpus:
    """A collection and the plain arrays it was made from."""

    def __init__(self, folder, rng, *, rows=ROWS, shards=6, overwrite=False, **more):
        self.codes = clustered_codes(rng, rows, BITS)
        self.ids = rng.permutation(10 * rows)[:rows].astype(np.int64)
        self.labels = rng.integers(5, size=rows)
        self.features = rng.normal(size=(rows, 8)).astype(np.float16)
        self.collection = Collection.create(
            folder, self.codes, ids=self.ids, bits=BITS, shards=shards, features=self.features,
            attributes={"label": self.labels, "uri": [f"{id_}.jpg" for id_ in self.ids]}, overwrite=overwrite, **more,
        )  # fmt: skip
        self.queries = self.codes[rng.integers(rows, size=20)].copy()
        self.queries[:, 0] ^= rng.integers(8, size=20).astype(np.uint64)
        self.path = self.collection.path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("served") / "collection", np.random.default_rng(6))


@contextlib.contextmanager
def serving(path, *, groups=3, replicas=1, **options):
    """Shard servers in this process; yields them by group, and their map."""
    manifest = read_current(open_place(path))
    servers = [[ShardServer(path, **options) for _ in range(replicas)] for _ in range(groups)]
    found, about = [], []
    for names, group in zip(assign_groups(manifest, groups), servers, strict=True):
        wanted = Assignment(manifest.version, manifest.digest, tuple(names))
        told = [server.load(*wanted)["groups"][wanted.identity] for server in group]
        found.append(Group(manifest.digest, told[0]["shards"], tuple(server.address for server in group)))
        about.append(told[0]["about"])
    try:
        yield servers, ClusterMap(describe_whole(about), tuple(found))
    finally:
        for server in (server for group in servers for server in group):
            shut_down(server)


class Fleet:
    """Shard servers in this process that keep to a collection, by group and number, and where they are.

    They take a version up when they are told to, and may listen anywhere: `addresses` says where they are looked for.
    """

    def __init__(self, path, *, groups=2, replicas=1, **options):
        self.path, self.groups, self._options = path, groups, options
        self.servers, self.keepers = {}, {}
        self.addresses = {}
        self.finders = []
        for place in itertools.product(range(1, groups + 1), range(replicas)):
            self.start(place)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for finder in self.finders:
            finder.close()
        for server in self.servers.values():
            shut_down(server)

    def start(self, place, *, path=None, group=None, groups=None, port=0):
        """Start a server in a place, in which there may have been another."""
        if port:
            eventually(lambda: is_free(port))  # its last server is on its way out
        server = ShardServer(path or self.path, port=port, **self._options)
        keeper = Keeper(server, path or self.path, group=group or place[0], groups=groups or self.groups)
        self.servers[place], self.keepers[place] = server, keeper
        self.addresses[place] = server.address.rpartition("/")[2]
        return keeper

    def end(self, place):
        """End a server; it is still looked for. Routers that hold a stream to it are refused."""
        server = self.servers.pop(place)
        server.drain()
        threading.Thread(target=server.shutdown, daemon=True).start()
        del self.keepers[place]

    def take_up(self, *places):
        """Have servers take the live version up, all by default."""
        for place in places or list(self.keepers):
            self.keepers[place].take_up()

    def source(self):
        listed = [[] for _ in range(self.groups)]
        for (group, _), address in sorted(self.addresses.items()):
            listed[group - 1].append(address)
        return listed

    def finder(self, **options):
        finder = Finder(self.source, **options)
        self.finders.append(finder)
        return finder

    def versions(self, place):
        return [one.layout.version for one in self.keepers[place]._kept]


def is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def shut_down(server):
    """Stop a server, unless the router of a failed test still holds its streams open; then it ends with the process."""
    ending = threading.Thread(target=server.shutdown, daemon=True)
    ending.start()
    ending.join(10)


class Load:
    """Threads that repeat the same request until the block ends; every answer is checked."""

    def __init__(self, ask, *, threads=3):
        self._ask = ask
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        self.answers = 0
        self.seconds, self.errors = [], []

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more, timeout_s=240):
        """Wait for `more` answers."""
        wanted, until_s = self.answers + more, time.monotonic() + timeout_s
        while self.answers < wanted and not self.errors:
            assert time.monotonic() < until_s, f"{wanted - self.answers} of {more} answers missing"
            time.sleep(0.01)

    def _run(self):
        while not self._stop.is_set():
            started_s = time.monotonic()
            try:
                self._ask()
            except Exception as error:
                self.errors.append(error)
                return
            self.seconds.append(time.monotonic() - started_s)
            self.answers += 1


def eventually(true, timeout_s=240.0):
    """Wait until `true()` is true."""
    until_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until_s, "the condition did not become true in time"
        time.sleep(0.02)


class Cable:
    """A TCP proxy that can be cut: bytes are held back, and neither side is notified."""

    def __init__(self, port):
        self._port = port
        self._whole = threading.Event()
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        self._whole.clear()

    def mend(self):
        self._whole.set()

    def close(self):
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, far = self._listener.accept()[0], socket.create_connection(("127.0.0.1", self._port))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, target):
        with source, target, contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._whole.wait()
                target.sendall(data)
