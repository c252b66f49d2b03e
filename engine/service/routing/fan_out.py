"""One request to one replica of every group, retried at once if a replica fails and hedged if it is late."""

from __future__ import annotations

import functools
import queue
import random
import threading
import time
from collections.abc import Mapping, Sequence

from hashlight.engine.errors import DeadlineExceededError, HashlightError, NotReadyError, OverloadedError
from hashlight.engine.service.protocol.wire import ProtocolError, Request, Status, VersionNotServedError, decode_error
from hashlight.engine.service.routing.hedging import HedgeBudget
from hashlight.engine.service.routing.replica import Replica, ReplicaLostError, Reply, next_id

# Refusals of a healthy server: it is full, shutting down, or has another version.
_NO_FAULT = (OverloadedError, DeadlineExceededError, NotReadyError, VersionNotServedError)

# Interval at which a waiting query checks that its replicas are still alive.
_LOOK_S = 0.25


class Part:
    """One group's part of a request: an answer, or the last error when no replica is left."""

    __slots__ = ("answer", "answered_s", "error", "identity", "replicas", "settled", "tried", "under_way")

    def __init__(self, identity: str, replicas: Sequence[Replica]) -> None:
        self.identity = identity
        self.replicas = replicas
        self.answer: Reply | None = None
        self.answered_s = 0.0
        self.error: HashlightError | None = None
        self.settled = False
        self.tried: list[Replica] = []
        self.under_way: dict[int, Replica] = {}

    @property
    def open(self) -> bool:
        """Whether an answer may still arrive."""
        return self.answer is None and bool(self.under_way)

    def choose(self) -> Replica | None:
        """Return an untried replica: the less loaded of two at random, trusted ones first."""
        left = [replica for replica in self.replicas if replica.connected and replica not in self.tried]
        left = [replica for replica in left if replica.trusted] or left
        if len(left) > 1:
            return min(random.sample(left, 2), key=lambda replica: replica.load)
        return left[0] if left else None


class FanOut:
    """A request on its way through a cluster. Used once, by one thread.

    Parameters
    ----------
    groups : mapping of str to sequence of Replica
        Identity of each group's shards -> its replicas.
    request : Request
        Its id, remaining time and identity are filled in for each call.
    deadline_s : float
        On the clock of `time.monotonic`.
    late_s : float
        After this time another replica is asked.
    budget : HedgeBudget
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[Replica]],
        request: Request,
        *,
        deadline_s: float,
        late_s: float,
        budget: HedgeBudget,
    ) -> None:
        self.parts = [Part(identity, replicas) for identity, replicas in groups.items()]
        self.retries = 0
        self._request = request
        self._frames: dict[int, bytes] = {}  # by protocol
        self._deadline_s = deadline_s
        self._budget = budget
        self._started_s = time.monotonic()
        self._late_s = self._started_s + late_s
        self._heard: queue.SimpleQueue[tuple[Part, int, Reply | ReplicaLostError] | None] = queue.SimpleQueue()
        self._counting = threading.Lock()
        self._unsettled = len(groups)

    def run(self) -> list[Part]:
        """Return every group's part once all are settled or time is up.

        Raises
        ------
        TypeError, ValueError
            If a shard server reports that the request is invalid.
        """
        self._budget.earn(len(self.parts))
        try:
            for part in self.parts:
                self._send(part)
            while any(part.open for part in self.parts):
                now_s = time.monotonic()
                if now_s >= self._deadline_s:
                    break
                self._wait(min(self._deadline_s, self._late_s, now_s + _LOOK_S) - now_s)
        finally:
            for part in self.parts:
                self._settle(part)
        return self.parts

    def _wait(self, seconds: float) -> None:
        try:
            news = self._heard.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            self._ask_others()
            return
        if news is not None:
            part, id_, outcome = news
            replica = part.under_way.pop(id_, None)
            if replica is not None and part.answer is None:
                self._failed(part, replica, outcome)

    def _ask_others(self) -> None:
        """Ask one more replica for each part that is late or whose replicas show no sign of life."""
        late = time.monotonic() >= self._late_s
        if late:
            self._late_s = float("inf")
        for part in self.parts:
            if not part.open:
                continue
            silent = all(replica.silent for replica in part.under_way.values())
            if silent or (late and part.choose() is not None and self._budget.spend()):
                self._send(part)

    def _send(self, part: Part) -> None:
        """Ask the next replica; leave the part as it is if there is none."""
        while (replica := part.choose()) is not None:
            part.tried.append(replica)
            id_ = next_id()
            part.under_way[id_] = replica
            try:
                replica.send(
                    id_, functools.partial(self._frame_of, part.identity, id_), functools.partial(self._tell, part, id_)
                )
                return
            except (ReplicaLostError, ProtocolError) as error:
                del part.under_way[id_]
                part.error = error
        if part.under_way:
            return
        if not part.tried:
            reasons = "; ".join(replica.reason for replica in part.replicas)
            part.error = ReplicaLostError(reasons or "no server has it")
        with self._counting:
            self._count_off()

    def _frame_of(self, identity: str, id_: int, protocol: int) -> bytes:
        frame = self._frames.get(protocol)
        if frame is None:
            frame = self._frames[protocol] = self._request.encode(protocol)
        return Request.stamp(frame, id_, self._deadline_s - time.monotonic(), identity)

    def _tell(self, part: Part, id_: int, outcome: Reply | ReplicaLostError) -> None:
        """Receive a result from a replica's thread; wake the caller for failures, and once all parts are settled."""
        if isinstance(outcome, ReplicaLostError) or outcome.status is not Status.OK:
            self._heard.put((part, id_, outcome))
            return
        with self._counting:
            if part.answer is not None or part.settled:
                return
            part.answer, part.answered_s = outcome, time.monotonic() - self._started_s
            self._count_off()
        replica = part.under_way.get(id_)
        if replica is not None:
            replica.succeeded()

    def _count_off(self) -> None:
        """Wake the caller when the last part is settled."""
        self._unsettled -= 1
        if self._unsettled == 0:
            self._heard.put(None)

    def _failed(self, part: Part, replica: Replica, outcome: Reply | ReplicaLostError) -> None:
        """Ask the next replica, unless the request itself is invalid."""
        error = outcome if isinstance(outcome, ReplicaLostError) else decode_error(outcome.body)
        if not isinstance(error, HashlightError):
            raise error
        if not isinstance(error, _NO_FAULT):
            replica.failed()
        part.error = error
        self.retries += 1
        self._send(part)

    def _settle(self, part: Part) -> None:
        """Accept no more answers, cancel calls in progress, and give each part without an answer its error."""
        with self._counting:
            part.settled = True
        if part.answer is None and part.under_way:
            waited_s = time.monotonic() - self._started_s
            asked = ", ".join(replica.address for replica in part.under_way.values())
            part.error = DeadlineExceededError(f"no answer from {asked} within {waited_s:.3g} s")
        for id_, replica in part.under_way.items():
            replica.cancel(id_)  # has no effect on the replica that answered
        part.under_way = {}
