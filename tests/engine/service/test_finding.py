"""Shard servers are found by asking them, and the newest version that every group has is served."""

import contextlib
import dataclasses
import json
import logging
import re
import shutil
import socket

import numpy as np
import pytest

from hashlight.engine.errors import CorruptDataError, NotReadyError
from hashlight.engine.places.integrity import describe_files
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.control import sources
from hashlight.engine.service.control.sources import MapFile, NamedServers, parse_map
from hashlight.engine.service.protocol.actions import UnreachableError, control
from hashlight.engine.service.protocol.offers import Layout, Offer
from hashlight.engine.service.protocol.wire import ProtocolError, VersionNotServedError
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.engine.service.shards import keeping
from hashlight.engine.storage.versions import publish, read_current
from hashlight.pipelines.serving.cluster import routing
from tests.engine.service.conftest import Corpus, Fleet, eventually
from tests.oracles import knn

ROWS = 600


@pytest.fixture
def own(tmp_path):
    return Corpus(tmp_path / "collection", np.random.default_rng(21), rows=ROWS, shards=4)


def another(corpus, seed, **more):
    """The next version of a collection, of other images."""
    return Corpus(corpus.path, np.random.default_rng(seed), rows=ROWS - 50, shards=4, overwrite=True, **more)


def nearest(corpus):
    return knn(corpus.queries, corpus.codes, corpus.ids, 5)[1].tolist()


def ask(router, corpus):
    return router.search(corpus.queries, 5, allow_partial=False).ids.tolist()


@contextlib.contextmanager
def routed(finder):
    with contextlib.closing(ClusterRouter(finder.map, security=finder.security, refresh_s=0.1)) as router:
        yield router


def replicas_of(found):
    return [list(group.replicas) for group in found.groups]


def test_a_version_is_served_when_every_group_has_it_and_all_gateways_agree(own):
    with Fleet(own.path, replicas=2) as fleet:
        first, second = fleet.finder(), fleet.finder()
        with pytest.raises(NotReadyError, match="has a version of the collection"):
            first.map()
        fleet.take_up()
        with routed(first) as one, routed(second) as other:
            assert ask(one, own) == ask(other, own) == nearest(own)
            new = another(own, 22)
            fleet.take_up((1, 0), (1, 1))
            assert first.map().version == second.map().version == 1
            assert ask(one, own) == nearest(own)
            fleet.take_up((2, 1))
            found = first.map()
            assert found == second.map()
            assert found.version == new.collection.version == 2
            assert [len(group.replicas) for group in found.groups] == [2, 1]
            eventually(lambda: one.version == other.version == 2)
            assert ask(one, new) == ask(other, new) == nearest(new)
            fleet.take_up((2, 0))
            assert [len(group.replicas) for group in second.map().groups] == [2, 2]


def test_the_last_two_versions_are_kept_and_those_that_a_gateway_serves(own, monkeypatch):
    monkeypatch.setattr(keeping, "IDLE_S", 0.0)
    with Fleet(own.path) as fleet:
        fleet.take_up()
        finder = fleet.finder()
        for seed in range(3):
            another(own, seed)
            fleet.take_up((1, 0))
        assert fleet.versions((1, 0)) == [3, 4]  # nobody has said that version 1 is served
        assert fleet.versions((2, 0)) == [1]
    with Fleet(own.path) as fleet:
        fleet.take_up()
        finder = fleet.finder()
        with routed(finder) as router:
            expected = ask(router, own)
            finder.map()  # says what it serves
            for seed in range(3):
                another(own, seed)
                fleet.take_up((1, 0))
                finder.map()
            assert fleet.versions((1, 0)) == [4, 6, 7]
            assert ask(router, own) == expected
            fleet.take_up((2, 0))
            eventually(lambda: router.version == 7)
            finder.map()
            fleet.take_up()
            eventually(lambda: (finder.map(), fleet.take_up(), fleet.versions((1, 0)) == [6, 7])[-1])


def test_a_server_that_is_started_again_opens_what_gateways_serve(own):
    with Fleet(own.path) as fleet:
        fleet.take_up()
        with routed(fleet.finder()) as router:
            expected = ask(router, own)
            new = another(own, 22)
            fleet.take_up((1, 0))
            fleet.end((1, 0))
            fleet.start((1, 0))
            fleet.take_up((1, 0))
            eventually(lambda: (fleet.take_up((1, 0)), fleet.versions((1, 0)) == [1, 2])[-1])
            eventually(lambda: router.search(own.queries, 5).coverage.complete)
            assert (router.version, ask(router, own)) == (1, expected)
            fleet.take_up((2, 0))
            eventually(lambda: router.version == 2)
            assert ask(router, new) == nearest(new)


def publish_with_wrong_tables(path):
    """Publish a version in which one shard has the tables of another, with correct checksums for all files."""
    store = open_place(path)
    live = read_current(store)
    wrong, other = live.shards[0], live.shards[1]
    folder = path / "shards" / wrong.name
    fresh = path / "shards" / ("f" * 32)
    shutil.copytree(folder, fresh)
    shutil.rmtree(fresh / "tables")
    shutil.copytree(path / "shards" / other.name / "tables", fresh / "tables")
    spec = dataclasses.replace(wrong, name=fresh.name, files=describe_files(fresh))
    manifest = dataclasses.replace(
        live, version=live.version + 1, parent=live.file_name, shards=(spec, *live.shards[1:])
    )
    assert publish(store, manifest, store.find("CURRENT"), in_doubt=lambda: None)
    return manifest.version


def test_a_version_that_does_not_find_its_own_codes_is_not_served_and_is_told(tmp_path):
    # With several thousand rows in a shard, k-nearest queries use the tables.
    own = Corpus(tmp_path / "collection", np.random.default_rng(21), rows=40_000, shards=4)
    with Fleet(own.path, replicas=2) as fleet:
        fleet.take_up()
        finder = fleet.finder()
        with routed(finder) as router:
            assert finder.pending is None
            new = publish_with_wrong_tables(own.path)
            before = [fleet.versions(place) for place in fleet.keepers]
            for keeper in fleet.keepers.values():
                keeper.follower.look()
            assert before == [[1]] * 4
            assert sorted(fleet.versions(place) for place in fleet.keepers) == [[1], [1], [1, new], [1, new]]
            wrong = next(keeper for place, keeper in fleet.keepers.items() if fleet.versions(place) == [1])
            with pytest.raises(CorruptDataError, match="do not belong to"):
                wrong.take_up()
            assert finder.map().version == new - 1
            assert (finder.pending.version, finder.pending.attempts) == (new, 1)
            assert "do not belong to" in finder.pending.error
            assert ask(router, own) == nearest(own)


def test_servers_that_cannot_be_reached_do_not_hold_up_others(own):
    with Fleet(own.path, replicas=2) as fleet:
        fleet.take_up()
        nobody = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
        fleet.addresses[1, 2] = f"127.0.0.1:{nobody.getsockname()[1]}"
        fleet.addresses[2, 2] = "127.0.0.1:1"
        fleet.addresses[2, 3] = "no host has a space:8815"
        finder = fleet.finder()
        found = finder.map()
        assert [len(group.replicas) for group in found.groups] == [2, 2]
        eventually(lambda: sum(one["fault"] is not None for one in finder.servers()) == 3)
        new = another(own, 22)
        fleet.take_up()
        assert finder.map().version == new.collection.version
        nobody.close()


def test_a_server_at_a_new_address_is_found(own):
    with Fleet(own.path) as fleet:
        fleet.take_up()
        with routed(fleet.finder()) as router:
            fleet.end((2, 0))
            found = router.search(own.queries, 5)
            assert not found.coverage.complete
            fleet.start((2, 0))
            fleet.take_up((2, 0))
            eventually(lambda: router.search(own.queries, 5).coverage.complete)
            assert ask(router, own) == nearest(own)


def test_an_address_that_another_group_has_taken_over_is_not_asked(own, caplog):
    with Fleet(own.path, replicas=2) as fleet:
        fleet.take_up()
        finder = fleet.finder()
        before = replicas_of(finder.map())
        port = fleet.servers[1, 0].port
        fleet.end((1, 0))
        fleet.start((1, 0), group=2, port=port).take_up()
        left = [fleet.servers[1, 1].address]
        with caplog.at_level(logging.WARNING):
            eventually(lambda: replicas_of(finder.map()) == [left, before[1]])
        assert "is of group 2/2, expected 1/2" in caplog.text
        told = {one["address"]: one["fault"] for one in finder.servers()}
        assert told[f"grpc://127.0.0.1:{port}"] == "is of group 2/2, expected 1/2"


def test_an_address_that_another_collection_has_taken_over_changes_nothing(own, tmp_path):
    other = Corpus(tmp_path / "other", np.random.default_rng(5), rows=300, shards=2)
    for seed in range(3):  # whose versions have higher numbers
        other = another(other, seed)
    with Fleet(own.path, groups=1, replicas=2) as fleet:
        fleet.take_up()
        finder = fleet.finder()
        with routed(finder) as router:
            port = fleet.servers[1, 0].port
            fleet.end((1, 0))
            fleet.start((1, 0), path=other.path, port=port).take_up()
            eventually(lambda: [len(group.replicas) for group in finder.map().groups] == [1])
            assert (router.version, ask(router, own)) == (1, nearest(own))
            fleet.end((1, 1))  # nobody has the collection any more, but it may come back
            assert finder.map().version == 1


def test_a_gateway_that_is_given_the_collection_is_not_misled_from_the_start(own, tmp_path):
    other = another(Corpus(tmp_path / "other", np.random.default_rng(5), rows=300, shards=2), 6)
    with Fleet(own.path, groups=1, replicas=2) as fleet:
        fleet.end((1, 0))
        fleet.start((1, 0), path=other.path)
        fleet.take_up()
        assert fleet.finder().map().version == 2
        assert fleet.finder(collection=own.collection.manifest.collection).map().version == 1


def test_a_collection_that_was_built_again_is_served_under_the_same_number(own):
    with Fleet(own.path, replicas=2) as fleet:
        fleet.take_up()
        finder = fleet.finder()
        with routed(finder) as router:
            assert ask(router, own) == nearest(own)
            shutil.rmtree(own.path)
            new = Corpus(own.path, np.random.default_rng(22), rows=500, shards=4)
            fleet.take_up((1, 0), (2, 1))
            eventually(lambda: router.describe()["rows"] == 500)
            assert router.version == new.collection.version == 1
            assert ask(router, new) == nearest(new)
        # Another one, from servers that were all started anew.
        shutil.rmtree(own.path)
        last = Corpus(own.path, np.random.default_rng(23), rows=400, shards=4)
        for place in list(fleet.servers):
            fleet.end(place)
            fleet.start(place)
            fleet.take_up(place)
        with routed(finder) as router:
            eventually(lambda: router.describe()["rows"] == 400)
            assert ask(router, last) == nearest(last)


def test_a_server_that_drains_is_asked_only_if_there_is_no_other(own):
    with Fleet(own.path, replicas=2) as fleet:
        fleet.take_up()
        finder = fleet.finder()
        before = replicas_of(finder.map())
        with routed(finder) as router:
            draining = fleet.servers[1, 0]
            draining._draining.set()
            assert replicas_of(finder.map()) == [[fleet.servers[1, 1].address], before[1]]
            fleet.servers[1, 1]._draining.set()
            assert replicas_of(finder.map()) == before
            assert ask(router, own) == nearest(own)


def test_groups_without_servers_are_missing_and_not_forgotten(own):
    with Fleet(own.path) as fleet:
        fleet.take_up((2, 0))
        finder = fleet.finder()
        found = finder.wait(0.0)
        assert [len(group.replicas) for group in found.groups] == [0, 1]
        with routed(finder) as router:
            partial = router.search(own.queries, 5)
            assert set(partial.coverage.degraded) == set(found.groups[0].shards)
            assert partial.coverage.codes == ROWS
            fleet.take_up((1, 0))
            eventually(lambda: router.search(own.queries, 5).coverage.complete)


def test_a_list_that_cannot_be_read_leaves_the_known_servers(own, caplog):
    with Fleet(own.path) as fleet:
        fleet.take_up()
        broken, now = [], [0.0]

        def source():
            if broken:
                raise ValueError("the list is broken")
            return fleet.source()

        finder = fleet.finder(clock=lambda: now[0])
        finder._source = source
        with routing(finder) as router:
            found = finder.map()
            broken.append(True)
            now[0] += 100
            assert finder.map() == finder.map() == found
            assert caplog.text.count("the list is broken") == 1
            assert router.stats()["map_age_s"] >= 100, "those that are asked may not be those on the list"
            broken.clear()
            finder.map()
            assert router.stats()["map_age_s"] < 100


def test_urged_servers_take_up_what_was_published(own):
    with Fleet(own.path) as fleet:
        fleet.take_up()
        finder = fleet.finder()
        finder.map()
        new = another(own, 22)
        finder.urge()
        assert [fleet.versions(place) for place in fleet.servers] == [[1, 2], [1, 2]]
        assert finder.map().version == new.collection.version


def test_a_keeper_refuses_a_group_that_there_is_not(own):
    with Fleet(own.path) as fleet:
        for group in (0, 3):
            with pytest.raises(ValueError, match=f"`group` must be 1 to 2, the number of groups, got {group}"):
                keeping.Keeper(fleet.servers[1, 0], own.path, group=group, groups=2)
        with pytest.raises(VersionNotServedError, match="does not have the version of manifest abc"):
            control(fleet.servers[1, 0].address, "layout", manifest="abc")


def test_unreachable_and_refusing_servers_raise_different_errors(own):
    with pytest.raises(UnreachableError, match="cannot be reached"):
        control("grpc://127.0.0.1:1", "health", timeout_s=5.0)
    with Fleet(own.path) as fleet:
        fleet.take_up()
        fleet.servers[1, 0].drain()
        with pytest.raises(NotReadyError, match="is shutting down") as caught:
            control(fleet.servers[1, 0].address, "ready")
        assert not isinstance(caught.value, UnreachableError)


def test_offers_and_layouts_are_read_as_they_were_written_and_from_newer_releases(own):
    with Fleet(own.path) as fleet:
        fleet.take_up()
        told = fleet.keepers[2, 0].offers()
        offer = Offer.parse(json.loads(json.dumps(told)))
        assert (offer.group, offer.groups, offer.draining) == (2, 2, False)
        assert [one.version for one in offer.versions] == [1]
        assert json.loads(json.dumps(offer.document())) == json.loads(json.dumps(told))
        newer = json.loads(json.dumps({**told, "more": 1, "versions": [{**told["versions"][0], "more": 2}]}))
        assert Offer.parse(newer) == offer
        manifest = offer.versions[0].manifest
        layout = Layout.parse(json.loads(json.dumps(fleet.keepers[2, 0].layout(manifest))))
        assert {name for group in layout.groups for name in group} == {one.name for one in own.collection.shards}
        assert layout.identity(1) == offer.versions[0].identity
        for name, wrong in (
            ("group", "second"), ("groups", None), ("protocols", 5), ("pending", {"version": 1}), ("versions", [[1]]),
            ("versions", [{"version": 1}]), ("versions", [{**told["versions"][0], "version": "1"}]),
        ):  # fmt: skip
            with pytest.raises(ProtocolError, match="expected what a shard server has"):
                Offer.parse({**told, name: wrong})
        with pytest.raises(ProtocolError, match="expected the groups of a version"):
            Layout.parse({**layout._asdict(), "groups": [["a"]]})


def test_a_map_file_is_read_again_when_it_changes(tmp_path):
    file = tmp_path / "map.json"
    with pytest.raises(FileNotFoundError):
        MapFile(file)
    file.write_text('{"groups": [["a:1", "b:2"], ["[::1]:3"]]}')
    source = MapFile(file)
    assert source() == [["a:1", "b:2"], ["[::1]:3"]]
    file.write_text('{"groups": [["a:1"], ["c:4", "d:5"]]}')
    assert source() == [["a:1"], ["c:4", "d:5"]]
    file.write_text('{"groups": [["a:1"]')
    with pytest.raises(ValueError, match="is not valid JSON"):
        source()
    file.write_text('{"groups": [["a:1"], ["e:6"]]}')
    assert source() == [["a:1"], ["e:6"]]
    with pytest.raises(ValueError, match="has 2 groups, expected 3"):
        MapFile(file, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "must be"),
        ("[" * 10**5, "is not valid JSON"),
        ('{"groups": []}', "must be"),
        ('{"groups": ["a:1"]}', "must be"),
        ('{"groups": [[7]]}', "must have addresses `HOST:PORT`, got 7"),
        ('{"groups": [["a"]]}', "expected HOST:PORT with a port of 0 to 65535, got 'a'"),
        ('{"groups": [["a:70000"]]}', "expected HOST:PORT with a port of 0 to 65535, got 'a:70000'"),
        ('{"groups": [["::1:80"]]}', "expected an address of IPv6 in brackets, as in [::1]:9090, got '::1:80'"),
    ],
)
def test_what_is_not_a_map_is_refused(text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_map(text.encode(), what="the map")


def test_every_address_of_a_name_is_a_server(monkeypatch):
    names = {"shard-1.svc": ["10.0.0.1", "10.0.0.2"], "shard-2.svc": ["fd00::7"]}

    def getaddrinfo(host, port, **_):
        if host not in names:
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (address, port)) for address in [*names[host], *names[host]]]

    monkeypatch.setattr(sources.socket, "getaddrinfo", getaddrinfo)
    source = NamedServers("dns:///shard-{group}.svc:8815", 2)
    assert source() == [["10.0.0.1:8815#shard-1.svc", "10.0.0.2:8815#shard-1.svc"], ["[fd00::7]:8815#shard-2.svc"]]
    names["shard-1.svc"] = ["10.0.0.9"]
    del names["shard-2.svc"]  # what cannot be resolved keeps what it had
    assert source() == [["10.0.0.9:8815#shard-1.svc"], ["[fd00::7]:8815#shard-2.svc"]]


@pytest.mark.parametrize("pattern", ["shard-{group}:8815", "dns:///shard:8815", "dns:///shard-{group}", "dns:///:1"])
def test_what_names_no_servers_is_refused(pattern):
    with pytest.raises(ValueError, match=r"dns:///|HOST:PORT"):
        NamedServers(pattern, 2)


def test_servers_are_found_by_a_real_name(own):
    with Fleet(own.path, groups=1) as fleet:
        fleet.take_up()
        finder = fleet.finder()
        finder._source = NamedServers(f"dns:///localhost:{fleet.servers[1, 0].port}", 1)
        with routed(finder) as router:
            assert ask(router, own) == nearest(own)
