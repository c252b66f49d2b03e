"""What comes after a request's time is no answer, whoever looks."""

import time

import numpy as np

from hashlight.engine.errors import DeadlineExceededError
from hashlight.engine.service.protocol.wire import Kind, Request, Status
from hashlight.engine.service.routing.fan_out import FanOut
from hashlight.engine.service.routing.hedging import HedgeBudget
from hashlight.engine.service.routing.replica import Reply


class LateReplica:
    """Keeps what it is asked; the test answers."""

    address, reason, load = "late", "", 0
    connected = trusted = True
    silent = False

    def __init__(self):
        self.receivers = []

    def send(self, id_, frame, receiver):
        self.receivers.append(receiver)

    def cancel(self, id_):
        pass

    def succeeded(self):
        pass


def test_an_answer_after_the_deadline_changes_nothing():
    replica = LateReplica()
    request = Request(Kind.READY, 0, 1, 0.0, np.zeros((0, 1), np.uint64))
    deadline_s = time.monotonic() + 0.5
    fan_out = FanOut([[replica]], request, deadline_s=deadline_s, late_s=float("inf"), budget=HedgeBudget())
    (part,) = fan_out.run()
    assert isinstance(part.error, DeadlineExceededError)
    (receiver,) = replica.receivers
    receiver(Reply(Status.OK, 1, 0.0, memoryview(b"")))
    assert part.answer is None
