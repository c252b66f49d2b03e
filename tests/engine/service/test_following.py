"""New versions are taken up at once, and one that cannot be is tried again ever less often."""

import numpy as np
import pytest

from hashlight.engine.service.asking.following import LONGEST_PAUSE_S, LOOK_S, Backoff, Follower
from hashlight.engine.service.asking.searcher import CollectionSearcher
from tests.engine.service.conftest import Corpus
from tests.oracles import knn


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class Counted:
    """Counts the calls of a function."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self):
        self.calls += 1
        return self.function()


@pytest.fixture
def own(tmp_path):
    return Corpus(tmp_path / "collection", np.random.default_rng(71), rows=300, shards=2)


@pytest.fixture
def following(own):
    """A follower that looks as often as it would, on a clock that the test moves."""
    searcher, clock = CollectionSearcher(own.path), Clock()
    take_up = Counted(searcher.renew)
    follower = Follower(own.path, take_up, clock=clock)

    def pass_time(seconds):
        for _ in range(int(seconds / LOOK_S)):
            clock.now_s += LOOK_S
            follower.look()

    return searcher, take_up, follower, pass_time


def damage(own):
    """Flip a bit of the codes of a version; return what restores them."""
    codes = own.path / "shards" / own.collection.shards[0].name / "codes.faiss"
    whole = codes.read_bytes()
    codes.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    return lambda: codes.write_bytes(whole)


def test_a_version_that_cannot_be_opened_is_tried_ever_less_often(own, following):
    searcher, take_up, follower, pass_time = following
    before = searcher.search(own.queries, 5).ids
    restore = damage(Corpus(own.path, np.random.default_rng(72), rows=300, shards=2, overwrite=True))
    pass_time(1800)
    # After 0, 2, 6, 14, 30, 62, 126, 254 and 510 s, then every 300 s: 13 attempts at 900 looks.
    assert take_up.calls == 13
    pending = follower.pending
    assert (pending.version, pending.attempts) == (2, take_up.calls)
    assert 0 < pending.retry_s <= LONGEST_PAUSE_S
    assert "codes.faiss" in pending.error
    assert searcher.version == 1
    assert (searcher.search(own.queries, 5).ids == before).all()
    restore()
    pass_time(LONGEST_PAUSE_S + LOOK_S)
    assert (follower.pending, searcher.version) == (None, 2)


def test_another_version_does_not_wait_for_the_pause_of_a_failed_one(own, following):
    searcher, _, follower, pass_time = following
    damage(Corpus(own.path, np.random.default_rng(73), rows=300, shards=2, overwrite=True))
    pass_time(300)
    assert follower.pending.attempts > 5
    new = Corpus(own.path, np.random.default_rng(74), rows=300, shards=2, overwrite=True)
    pass_time(LOOK_S)
    assert (follower.pending, searcher.version) == (None, 3)
    assert (searcher.search(new.queries, 5).ids == knn(new.queries, new.codes, new.ids, 5)[1]).all()


def test_a_live_version_that_cannot_even_be_read_is_pending_without_a_number(own, following):
    searcher, take_up, follower, pass_time = following
    current = own.path / "CURRENT"
    whole = current.read_bytes()
    current.write_bytes(b"nonsense")
    pass_time(300)
    assert follower.pending.version is None
    assert take_up.calls < 10
    assert len(searcher.search(own.queries, 5).ids) == len(own.queries)
    current.write_bytes(whole)
    pass_time(LOOK_S)
    assert follower.pending is None


@pytest.mark.parametrize("error", [RuntimeError("the directory is gone"), MemoryError(), KeyError("shard")])
def test_no_error_ends_the_following(own, error):
    def fail():
        raise error

    clock, take_up = Clock(), Counted(fail)
    follower = Follower(own.path, take_up, clock=clock)
    follower.look()
    assert follower.pending.error
    take_up.function = lambda: True
    clock.now_s += LOOK_S
    follower.look()
    assert (follower.pending, take_up.calls) == (None, 2)


def test_pauses_double_up_to_the_longest():
    clock = Clock()
    backoff = Backoff(first_s=1.0, longest_s=10.0, clock=clock)
    assert backoff.allows("a")
    pauses = []
    for _ in range(6):
        backoff.failed("a")
        pauses.append(backoff.left_s)
        assert (backoff.allows("a"), backoff.allows("b")) == (False, True)
        clock.now_s += backoff.left_s
        assert backoff.allows("a")
    assert pauses == [1, 2, 4, 8, 10, 10]
    backoff.failed("b")
    assert (backoff.attempts, backoff.left_s) == (1, 1)
    backoff.succeeded()
    assert (backoff.attempts, backoff.allows("b")) == (0, True)
