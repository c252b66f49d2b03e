"""The load generator, against a server: every query is counted, and a fault is told."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.keys import Keys
from tests import serving

from .files import DEPLOY

KEYS = "# NAME SCOPES KEY\nops metrics reading-metrics-0001\nload search searching-is-all-0002 rate=5000/s\n"


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("load", DEPLOY / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    codes = np.arange(500, dtype=np.uint64)[:, None]
    collection = Collection.create(tmp_path_factory.mktemp("load") / "c", codes, bits=60)
    collection.search(codes[:1], 5)  # compiles what a query needs
    return CollectionSearcher(collection)


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEYS.replace(" rate=5000/s", ""))
    return path


def run(*arguments):
    command = [sys.executable, str(DEPLOY / "load.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def counts(text):
    lines = [json.loads(line) for line in text.splitlines()]
    return sum(line["queries"] for line in lines), sum(line.get("answered", 0) for line in lines)


def test_every_query_is_sent_and_counted(searcher, keys):
    with serving.running(create_app(searcher, keys=Keys.load(keys))) as url:
        done = run(url, "--keys", keys, "--name", "load", "--rate", 40, "--seconds", 2, "-k", 5)
    assert done.returncode == 0, done.stderr
    assert counts(done.stdout) == (80, 80)
    assert {"p50_ms", "p99_ms"} <= json.loads(done.stdout.splitlines()[-1]).keys()


def test_queries_that_fail_are_counted_by_their_error(searcher, generator, capsys):
    client = generator.SearchClient(searcher)

    class Failing:
        sent = 0

        def describe(self):
            return client.describe()

        def search(self, code, k):
            self.sent += 1
            if self.sent % 4 == 0:
                raise generator.HashlightError("no shard answered")
            return client.search(code, k=k)

    assert generator.run(Failing(), rate=200, seconds=0.2, threads=1, k=3) == 10
    lines = capsys.readouterr().out
    assert counts(lines) == (40, 30)
    assert '"HashlightError": 10' in lines


def test_codes_use_all_bits_and_no_more(generator, monkeypatch):
    seen = []

    class Seeing:
        def search(self, code, k):
            seen.append(code)
            raise generator.HashlightError("it was seen")

    monkeypatch.setattr(generator.random, "getrandbits", lambda bits: (1 << bits) - 1)
    generator.ask(Seeing(), 60, 1, 0.0, generator.Tally())
    assert seen == ["ff" * 7 + "0f"]


def test_a_key_is_found_by_name(generator, tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEYS)
    assert generator.secret_of(path, "load") == "searching-is-all-0002"
    assert generator.secret_of(path, None) == "reading-metrics-0001"
    assert generator.secret_of(None, None) is None
    with pytest.raises(SystemExit, match="has no key web: it has ops, load"):
        generator.secret_of(path, "web")


def test_a_rate_of_nothing_is_refused():
    done = run("http://127.0.0.1:9", "--rate", 0)
    assert done.returncode == 2
    assert "must be above 0" in done.stderr
