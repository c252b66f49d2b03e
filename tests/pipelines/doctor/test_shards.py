"""Findings about shard servers, which run here, in the situation they are in."""

from __future__ import annotations

import json
import shutil
import socket

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.protocol.security import TOKEN_VARIABLE, Security
from hashlight.pipelines.doctor import shards
from hashlight.pipelines.doctor.findings import Asked
from tests.engine.service.conftest import Fleet, eventually

CODES = np.arange(300, dtype=np.uint64)[:, None]


@pytest.fixture
def folder(tmp_path):
    Collection.create(tmp_path / "c", CODES, bits=16, shards=4)
    return tmp_path / "c"


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setattr(shards, "_WAIT_S", 1.0)


def ask(path, groups, *, until):
    """Ask the servers at these addresses, by group, as a map has them, until the findings have these states.

    A busy machine may need several attempts.
    """
    path.write_text(json.dumps({"groups": groups}))
    found = []

    def is_found():
        found[:] = shards.shards(Asked(map=str(path)))
        return [finding.state for finding in found] == until

    eventually(is_found)
    return found


def addresses(fleet):
    return [
        [address for (number, _), address in fleet.addresses.items() if number == group]
        for group in range(1, fleet.groups + 1)
    ]


def test_servers_that_are_well(folder, tmp_path):
    with Fleet(folder, groups=2, replicas=2) as fleet:
        fleet.take_up()
        [finding] = ask(tmp_path / "map", addresses(fleet), until=["ok"])
    assert finding.found == "4 servers of 2 groups, at version 1"


def test_a_server_that_is_gone(folder, tmp_path):
    with Fleet(folder, groups=2, replicas=2) as fleet:
        fleet.take_up()
        gone = fleet.addresses[1, 0]
        fleet.end((1, 0))
        found = ask(tmp_path / "map", addresses(fleet), until=["ok", "warning"])
        assert gone in found[1].found
        fleet.end((1, 1))
        found = ask(tmp_path / "map", addresses(fleet), until=["ok", "problem", "problem"])
        assert "its group has no other" in found[-1].advice


def test_a_server_of_another_group_and_a_group_without_servers(folder, tmp_path):
    with Fleet(folder, groups=2) as fleet:
        fleet.take_up()
        _, [other] = addresses(fleet)
        missing, wrong = ask(tmp_path / "map", [[other], []], until=["problem", "problem"])
    assert missing.found == "no server of group 2 is known"
    assert "is of group 2/2, expected 1/2" in wrong.found


def test_a_server_that_lags_behind(folder, tmp_path):
    with Fleet(folder, groups=1, replicas=2) as fleet:
        fleet.take_up()
        Collection.open(folder).delete(np.arange(5))
        fleet.take_up((1, 0))
        found = ask(tmp_path / "map", addresses(fleet), until=["ok", "warning"])
        assert f"{fleet.addresses[1, 1]} of group 1 does not have version 2" in found[1].found


def test_the_wrong_token(folder, tmp_path, monkeypatch):
    with Fleet(folder, groups=1, security=Security(token="right")) as fleet:
        fleet.take_up()
        found = ask(tmp_path / "map", addresses(fleet), until=["problem"])
        assert "requires a token" in found[0].found
        assert TOKEN_VARIABLE in found[0].advice
        monkeypatch.setenv(TOKEN_VARIABLE, "right")
        ask(tmp_path / "map", addresses(fleet), until=["ok"])


def test_nobody_there(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ask(tmp_path / "map", [[f"127.0.0.1:{free.getsockname()[1]}"]], until=["problem"])


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (Asked(shards="grpc://host:1", groups=2), "must be `dns:///HOST:PORT`"),
        (Asked(shards="ray://"), "ray://NAME"),
        (Asked(map="nowhere"), "nowhere"),
    ],
)
def test_what_names_no_servers(asked, found):
    [finding] = shards.shards(asked)
    assert finding.state == "problem"
    assert found in finding.found


def test_a_removed_collection_is_not_needed_to_ask(folder, tmp_path):
    with Fleet(folder, groups=1) as fleet:
        fleet.take_up()
        shutil.move(folder, tmp_path / "elsewhere")
        ask(tmp_path / "map", addresses(fleet), until=["ok"])
