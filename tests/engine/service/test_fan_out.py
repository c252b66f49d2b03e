"""One request to several replicas: which is asked, which is next, and the error if none answers."""

import threading
import time

import numpy as np
import pytest

from hashlight.engine.errors import DeadlineExceededError, HashlightError, OverloadedError
from hashlight.engine.service.protocol.wire import Kind, Request, Status, encode_error
from hashlight.engine.service.routing.fan_out import FanOut
from hashlight.engine.service.routing.hedging import Delays, HedgeBudget
from hashlight.engine.service.routing.replica import ReplicaLostError, Reply

REQUEST = Request(Kind.READY, 0, 1, 0.0, np.zeros((0, 1), np.uint64))
NEVER = float("inf")
# Longer than any test takes unless it hangs.
PATIENCE_S = 120.0


def answer(number=1):
    return Reply(Status.OK, number, 0.0, memoryview(b""))


def refusal(error):
    return Reply(Status.ERROR, 1, 0.0, memoryview(encode_error(error)))


class Far:
    """A remote replica: the test gives the reply to each call, None for no reply."""

    def __init__(self, address, *replies, load=0, connected=True, trusted=True, silent=False, reason=""):
        self.address, self.reason, self.load = address, reason, load
        self.connected, self.trusted, self.silent = connected, trusted, silent
        self.replies = list(replies)
        self.receivers, self.cancelled, self.marks = [], [], []

    def send(self, id_, frame, receiver):
        self.receivers.append(receiver)
        reply = self.replies.pop(0) if self.replies else None
        if isinstance(reply, ReplicaLostError):
            raise reply
        if reply is not None:
            receiver(reply)

    def cancel(self, id_):
        self.cancelled.append(id_)

    def succeeded(self):
        self.marks.append("succeeded")

    def failed(self):
        self.marks.append("failed")


def ask(*groups, within_s=PATIENCE_S, late_s=NEVER, budget=None):
    """Return the parts, and the fan-out."""
    budget = budget or HedgeBudget()
    named = {f"{number:032x}": replicas for number, replicas in enumerate(groups)}
    fan_out = FanOut(named, REQUEST, deadline_s=time.monotonic() + within_s, late_s=late_s, budget=budget)
    return fan_out.run(), fan_out


def asked(*replicas):
    return [len(replica.receivers) for replica in replicas]


def test_an_answer_after_the_deadline_is_ignored():
    replica = Far("late")
    (part,), _ = ask([replica], within_s=0.5)
    assert isinstance(part.error, DeadlineExceededError)
    assert "no answer from late within " in str(part.error)
    assert len(replica.cancelled) == 1
    (receiver,) = replica.receivers
    receiver(answer())
    assert part.answer is None
    assert replica.marks == []


def test_each_group_is_asked_once():
    replicas = [Far(str(number), answer(number)) for number in range(3)]
    budget = HedgeBudget()
    parts, fan_out = ask(*([replica] for replica in replicas), budget=budget)
    assert [part.answer.version for part in parts] == [0, 1, 2]
    assert [part.error for part in parts] == [None] * 3
    assert all(0 <= part.answered_s < PATIENCE_S for part in parts)
    assert asked(*replicas) == [1, 1, 1]
    assert (budget.calls, budget.hedges, fan_out.retries) == (3, 0, 0)


def test_the_least_loaded_replica_is_asked():
    for _ in range(20):
        busy, idle = Far("busy", answer(), load=3), Far("idle", answer(), load=2)
        ask([busy, idle])
        assert asked(busy, idle) == [0, 1]


def test_trusted_replicas_come_before_idle_ones_and_lost_ones_are_skipped():
    for _ in range(20):
        doubtful, trusted = Far("doubtful", answer(), trusted=False), Far("trusted", answer(), load=9)
        lost = Far("lost", answer(), connected=False)
        ask([doubtful, trusted, lost])
        assert asked(doubtful, trusted, lost) == [0, 1, 0]
    doubtful = Far("doubtful", answer(), trusted=False)
    (part,), _ = ask([doubtful])
    assert part.answer is not None


def test_if_no_replica_is_left_the_error_gives_the_reasons():
    (first, second, empty), _ = ask(
        [Far("a", answer())],
        [Far("b", connected=False, reason="b is cut off"), Far("c", connected=False, reason="c is full")],
        [],
    )
    assert first.answer is not None
    assert isinstance(second.error, ReplicaLostError)
    assert str(second.error) == "b is cut off; c is full"
    assert str(empty.error) == "no server has it"


@pytest.mark.parametrize(
    ("error", "marks"),
    [(HashlightError("broken"), ["failed"]), (OverloadedError("full"), []), (DeadlineExceededError("late"), [])],
)
def test_another_replica_is_asked_if_one_fails(error, marks):
    failing, well = Far("failing", refusal(error)), Far("well", answer(7), load=1)
    (part,), fan_out = ask([failing, well])
    assert part.answer.version == 7
    assert asked(failing, well) == [1, 1]
    assert fan_out.retries == 1
    # Being full or late is not a failure of the replica.
    assert failing.marks == marks
    assert well.marks == ["succeeded"]


def test_a_replica_that_cannot_be_sent_to_is_skipped_at_once():
    gone, well = Far("gone", ReplicaLostError("its connection is closed")), Far("well", answer(), load=1)
    (part,), _ = ask([gone, well])
    assert part.answer is not None
    (part,), _ = ask([Far("gone", ReplicaLostError("its connection is closed"))])
    assert str(part.error) == "its connection is closed"


def test_after_failures_the_last_error_is_reported():
    replicas = [Far("1", refusal(HashlightError("first"))), Far("2", refusal(HashlightError("second")), load=1)]
    (part,), fan_out = ask(replicas)
    assert part.answer is None
    assert (str(part.error), fan_out.retries) == ("second", 2)
    assert asked(*replicas) == [1, 1]


def test_a_wrong_request_raises_and_cancels_calls_in_flight():
    other = Far("other")
    with pytest.raises(ValueError, match="`k` is wrong"):
        ask([other], [Far("1", refusal(ValueError("`k` is wrong"))), Far("2", answer(), load=1)])
    assert len(other.cancelled) == 1


def test_a_late_part_is_hedged_only_within_the_budget():
    def late(saved):
        budget = HedgeBudget(budget=0.0)
        budget._saved = saved
        slow, other = Far("slow"), Far("other", answer(5), load=1)
        (part, quick), _ = ask([slow, other], [Far("quick", answer())], within_s=2.0, late_s=0.0, budget=budget)
        assert quick.answer is not None
        return part, budget, asked(slow, other), len(slow.cancelled)

    part, budget, calls, cancelled = late(2.0)
    assert (part.answer.version, budget.hedges, calls, cancelled) == (5, 1, [1, 1], 1)
    part, budget, calls, cancelled = late(0.5)
    assert (part.answer, budget.hedges, calls, cancelled) == (None, 0, [1, 0], 1)


def test_a_silent_replica_is_replaced_without_a_budget():
    silent, other = Far("silent", silent=True), Far("other", answer(5), load=1)
    budget = HedgeBudget()
    (part,), _ = ask([silent, other], budget=budget)
    assert part.answer.version == 5
    assert budget.hedges == 0


def test_an_answer_from_another_thread_wakes_the_caller():
    replicas = [Far("a"), Far("b")]

    def reply():
        while asked(*replicas) != [1, 1]:
            time.sleep(0.001)
        for replica in replicas:
            replica.receivers[0](answer())
            replica.receivers[0](answer(9))

    threading.Thread(target=reply, daemon=True).start()
    parts, _ = ask(*([replica] for replica in replicas))
    assert [part.answer.version for part in parts] == [1, 1]
    assert [replica.marks for replica in replicas] == [["succeeded"]] * 2


def test_delays_are_those_of_the_last_2000_calls_and_renewed_every_200():
    delays = Delays(quantile=0.5)
    delays.add((1,), [9.0] * 2000)
    assert delays.late_s((1,)) == 9.0
    delays.add((1,), [1.0] * 199)
    assert delays.late_s((1,)) == 9.0
    delays.add((1,), [1.0] * 1601)
    assert delays.late_s((1,)) == 1.0


def test_the_kinds_of_calls_least_recently_seen_are_forgotten():
    delays = Delays()
    for kind in range(256):
        delays.add((kind,), [float(kind)] * 200)
    delays.add((0,), [0.0])
    delays.add((256,), [256.0] * 200)
    assert [delays.late_s((kind,)) for kind in (0, 1, 2, 255, 256)] == [0.0, NEVER, 2.0, 255.0, 256.0]
