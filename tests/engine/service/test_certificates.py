"""Certificates of shard servers and of those that ask them, replaced while they run."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.service.protocol.actions import Caller, UnreachableError, control
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.engine.service.shards.renewing import renewing
from hashlight.engine.service.shards.running import shard_server
from tests.certificates import issue
from tests.engine.service.conftest import Load, eventually, serving


class Files:
    """Certificates of both sides in one place, which an authority has signed; another may replace it."""

    def __init__(self, folder):
        self.paths = {name: folder / f"{name}.pem" for name in ("certificate", "key", "authority")}
        self.authority, self.pair = None, None
        self.replace(issue("first"))

    def replace(self, authority, *names):
        """Sign anew, and replace the files with these names, by default all of them."""
        if authority is not self.authority:
            self.authority, self.pair = authority, issue("server", by=authority)
        data = {"certificate": self.pair.pem, "key": self.pair.key_pem(), "authority": authority.pem}
        for name in names or self.paths:
            aside = self.paths[name].with_suffix(".new")
            aside.write_bytes(data[name])
            os.replace(aside, self.paths[name])

    def security(self):
        return Security.from_files(**self.paths)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def is_answered(address, security):
    try:
        return control(address, "health", security, timeout_s=60)["status"] == "serving"
    except UnreachableError:
        return False


def copied(security):
    """The same as it goes to another machine, where its files are not."""
    return pickle.loads(pickle.dumps(security))


def test_new_connections_get_the_new_certificate_and_no_query_fails(corpus, files):
    before = files.security()
    with serving(corpus.path, groups=2, security=before) as (servers, cluster):
        [[one], [other]] = servers
        router = ClusterRouter(cluster, security=before)
        expected = router.search(corpus.queries, 5)

        def ask():
            found = router.search(corpus.queries, 5)
            assert found.coverage.complete
            assert np.array_equal(found.ids, expected.ids)

        caller = Caller(one.address, before)
        with renewing(one, before, look_s=0.05), renewing(other, before, look_s=0.05), Load(ask) as load:
            load.wait_for(20)
            files.replace(issue("second"))
            after = files.security()
            eventually(lambda: is_answered(one.address, copied(after)) and is_answered(other.address, copied(after)))
            assert not is_answered(one.address, copied(before))  # which trusts the first authority alone
            load.wait_for(20)
        assert not load.errors
        newcomer = ClusterRouter(cluster, security=before)  # whose files have been replaced, too
        assert np.array_equal(newcomer.search(corpus.queries, 5).ids, expected.ids)
        eventually(lambda: called(caller))
        router.close()
        newcomer.close()
        caller.close()


def called(caller):
    try:
        return caller.call("health", timeout_s=60)["status"] == "serving"
    except UnreachableError:
        return False


def test_files_that_do_not_fit_change_nothing_until_they_do(corpus, files, caplog):
    before = files.security()
    with serving(corpus.path, groups=1, security=before) as ([[server]], _), renewing(server, before, look_s=0.05):
        second = issue("second")
        files.replace(second, "certificate")
        eventually(lambda: "stays the one that was read before" in caplog.text)
        assert "must be a certificate and its private key" in caplog.text
        assert is_answered(server.address, copied(before))
        files.replace(second, "key", "authority")
        eventually(lambda: is_answered(server.address, copied(files.security())))
        assert not is_answered(server.address, copied(before))


def test_a_server_may_change_its_certificates_again_and_again_and_ends(corpus, files):
    with serving(corpus.path, groups=1, security=files.security()) as ([[server]], _):
        for name in ("second", "third", "fourth"):
            files.replace(issue(name))
            server.renew(files.security())
            assert is_answered(server.address, copied(files.security()))
        server.shutdown()
        assert not is_answered(server.address, copied(files.security()))


def test_certificates_that_grpc_refuses_leave_the_server_as_it_was(corpus, files):
    before = files.security()
    with serving(corpus.path, groups=1, security=before) as ([[server]], _):
        other = issue("other")
        with pytest.raises(pa.ArrowException):
            server.renew(Security(certificate=files.pair.pem, key=other.key_pem(), authority=files.authority.pem))
        assert is_answered(server.address, before)


def test_what_goes_to_another_machine_has_no_files(files):
    security = files.security()
    assert copied(security) == security
    assert copied(security).files == ()
    assert copied(security).renewed() is not None
    assert Security(token="right").renewed() == Security(token="right")


def test_a_shard_server_that_runs_follows_its_files(corpus, files):
    before = files.security()
    with shard_server(corpus.path, group=1, groups=1, security=before) as server:
        assert is_answered(server.address, copied(before))
        files.replace(issue("second"))
        eventually(lambda: is_answered(server.address, copied(files.security())))
        assert not is_answered(server.address, copied(before))
        server.shutdown()
