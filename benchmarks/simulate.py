"""A discrete-event simulator of the fan-out: how a router's policy affects tail latency.

A query asks one replica of every group and is answered when the last group has answered. A replica is a first-come,
first-served queue with as many servers as it has cores. If there are gateways, each query goes through one of them, a
queue with one server, because an interpreter runs one thread at a time: before it asks, and after the answers. Queries
arrive at random, independently of the answers (open loop), so that a slow system is not flattered. Times are in
seconds. The same arguments and seed give the same numbers.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ServiceTimes = Callable[[np.random.Generator, int], NDArray[np.float64]]

# The percentile of recent calls is recomputed after this many answers.
_WINDOW_CALLS = 2000
_RENEW_CALLS = 200
_WARMING = 0.1  # fraction of the queries that fill the queues and are not counted


def _no_time(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    return np.zeros(count)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """The system and its load.

    Attributes
    ----------
    groups : int
        A query needs an answer from each.
    replicas : int
        Number in each group.
    cores : int
        Calls that a replica processes in parallel.
    service : callable
        Maps (generator, n) to n service times, in seconds.
    refusing : int
        Groups whose first replica refuses every call, as a dead one does.
    refusal_s : float
        Time until a refusal is noticed.
    gateways : int
        0: queries cost nothing before and after they ask.
    before, after : callable
        Maps as `service` does, for a gateway's work on a query before it asks and after the last answer.
    """

    groups: int
    replicas: int
    cores: int = 1
    service: ServiceTimes
    refusing: int = 0
    refusal_s: float = 0.5e-3
    gateways: int = 0
    before: ServiceTimes = _no_time
    after: ServiceTimes = _no_time

    def __post_init__(self) -> None:
        if min(self.groups, self.replicas, self.cores) < 1:
            raise ValueError(
                f"`groups`, `replicas` and `cores` must be at least 1, got {self.groups}, {self.replicas}, {self.cores}"
            )
        if self.gateways < 0:
            raise ValueError(f"`gateways` must be at least 0, got {self.gateways}")
        if not 0 <= self.refusing <= self.groups:
            raise ValueError(f"`refusing` must be 0 to {self.groups}, the groups, got {self.refusing}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The router's policy.

    Attributes
    ----------
    choice : str
        "random", or "power-of-two": of two replicas at random, the one with fewer calls in progress.
    hedge_quantile : float or None
        Call another replica when a call takes longer than this quantile of earlier calls; None never hedges.
    hedge_after_s : float or None
        A fixed delay instead of the observed quantile.
    budget : float
        Maximum share of calls that are hedged.
    burst : float
        Maximum number of unused hedges that accumulate.
    retry : bool
        Whether to call another replica at once when one refuses.
    breaker_s : float
        How long a replica is not chosen after a refusal.
    cancel : bool
        Whether a call still waiting at one replica is removed from its queue once another has answered it.
    """

    choice: str = "power-of-two"
    hedge_quantile: float | None = None
    hedge_after_s: float | None = None
    budget: float = 0.05
    burst: float = 20.0
    retry: bool = True
    breaker_s: float = 1.0
    cancel: bool = True

    def __post_init__(self) -> None:
        if self.choice not in ("random", "power-of-two"):
            raise ValueError(f"`choice` must be random or power-of-two, got {self.choice!r}")
        if self.hedge_quantile is not None and not 0 < self.hedge_quantile < 1:
            raise ValueError(f"`hedge_quantile` must be between 0 and 1, got {self.hedge_quantile}")


class Outcome(NamedTuple):
    """The result of a simulation.

    Attributes
    ----------
    latency_s : ndarray of float64
        Of each complete query after the warm-up.
    failed : int
        Queries for which a group did not answer.
    hedges, calls : int
        Second calls to late groups, and first calls.
    busy : float
        Utilisation of the cores.
    """

    latency_s: NDArray[np.float64]
    failed: int
    hedges: int
    calls: int
    busy: float

    def quantile(self, share: float) -> float:
        """Return a quantile of the latency, in seconds."""
        return float(np.quantile(self.latency_s, share))


def simulate(system: System, policy: Policy, *, qps: float, queries: int, seed: int = 0) -> Outcome:
    """Let queries arrive at random, `qps` a second on average, until all of `queries` are answered.

    Raises
    ------
    ValueError
        If `qps` or `queries` is not positive.
    """
    if qps <= 0 or queries < 1:
        raise ValueError(f"`qps` must be above 0 and `queries` at least 1, got {qps} and {queries}")
    return _Simulation(system, policy, qps, queries, seed).run()


class _Call:
    """One query's call to one group."""

    __slots__ = ("answered", "group", "query", "replica", "sent_s", "tried")

    def __init__(self, query: int, group: int, sent_s: float):
        self.query, self.group, self.sent_s = query, group, sent_s
        self.answered = False
        self.replica = -1
        self.tried: list[int] = []


class _Replica:
    """A queue and its cores. `load` counts calls waiting or in progress."""

    __slots__ = ("busy", "load", "refuses", "shut_until_s", "waiting")

    def __init__(self, refuses: bool):
        self.waiting: deque[_Call] = deque()
        self.busy = self.load = 0
        self.refuses = refuses
        self.shut_until_s = 0.0


class _Gateway:
    """A queue with one server."""

    __slots__ = ("busy", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, Callable[[float], None]]] = deque()
        self.busy = False


class _Simulation:
    def __init__(self, system: System, policy: Policy, qps: float, queries: int, seed: int):
        self._system, self._policy, self._queries = system, policy, queries
        self._rng = np.random.default_rng(seed)
        self._arrival_s = np.cumsum(self._rng.exponential(1 / qps, queries))
        self._finish_s = np.full(queries, np.nan)
        self._left = np.full(queries, system.groups)
        self._groups = [
            [_Replica(refuses=replica == 0 and group < system.refusing) for replica in range(system.replicas)]
            for group in range(system.groups)
        ]
        self._gateways = [_Gateway() for _ in range(system.gateways)]
        self._gateway_of = self._rng.integers(system.gateways, size=queries) if system.gateways else None
        self._before = _Stream(lambda count: system.before(self._rng, count))
        self._after = _Stream(lambda count: system.after(self._rng, count))
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0
        self._service = _Stream(lambda count: system.service(self._rng, count))
        self._uniform = _Stream(self._rng.random)
        self._recent: deque[float] = deque(maxlen=_WINDOW_CALLS)
        self._delay_s = np.inf if policy.hedge_after_s is None else policy.hedge_after_s
        self._tokens = 0.0
        self._answers = self._hedges = self._calls = 0
        self._worked_s = 0.0

    def run(self) -> Outcome:
        """Process all events."""
        for query in range(self._queries):
            self._work_off(float(self._arrival_s[query]))
            self._arrive(query)
        end_s = self._work_off(np.inf)
        latency_s = (self._finish_s - self._arrival_s)[int(_WARMING * self._queries) :]
        whole_s = latency_s[~np.isnan(latency_s)]
        cores = self._system.groups * self._system.replicas * self._system.cores
        busy = self._worked_s / (max(end_s, float(self._arrival_s[-1])) * cores)
        return Outcome(whole_s, len(latency_s) - len(whole_s), self._hedges, self._calls, busy)

    def _work_off(self, until_s: float) -> float:
        now_s = 0.0
        while self._events and self._events[0][0] <= until_s:
            now_s, _, event = heapq.heappop(self._events)
            event(now_s)
        return now_s

    def _at(self, when_s: float, event: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when_s, self._number, event))

    def _arrive(self, query: int) -> None:
        now_s = float(self._arrival_s[query])
        if self._gateways:
            self._work_at_gateway(query, self._before.next(), lambda now_s: self._fan_out(query, now_s), now_s)
        else:
            self._fan_out(query, now_s)

    def _work_at_gateway(self, query: int, work_s: float, then: Callable[[float], None], now_s: float) -> None:
        assert self._gateway_of is not None, "there are gateways"
        gateway = self._gateways[self._gateway_of[query]]
        gateway.waiting.append((work_s, then))
        if not gateway.busy:
            self._next_at_gateway(gateway, now_s)

    def _next_at_gateway(self, gateway: _Gateway, now_s: float) -> None:
        gateway.busy = bool(gateway.waiting)
        if not gateway.busy:
            return
        work_s, then = gateway.waiting.popleft()

        def done(now_s: float) -> None:
            then(now_s)
            self._next_at_gateway(gateway, now_s)

        self._at(now_s + work_s, done)

    def _fan_out(self, query: int, now_s: float) -> None:
        for group in range(self._system.groups):
            call = _Call(query, group, now_s)
            self._calls += 1
            self._tokens = min(self._tokens + self._policy.budget, self._policy.burst)
            self._send(call, now_s)
            if self._hedges_at_all():
                self._at(now_s + self._delay_s, lambda now_s, call=call: self._hedge(call, now_s))

    def _hedges_at_all(self) -> bool:
        return self._delay_s < np.inf and self._system.replicas > 1

    def _hedge(self, call: _Call, now_s: float) -> None:
        if call.answered or self._tokens < 1:
            return
        self._tokens -= 1
        self._hedges += 1
        self._send(call, now_s)

    def _send(self, call: _Call, now_s: float) -> None:
        chosen = self._choose(call, now_s)
        if chosen is None:
            return
        call.tried.append(chosen)
        replica = self._groups[call.group][chosen]
        if replica.refuses:
            self._at(now_s + self._system.refusal_s, lambda now_s: self._refused(call, replica, now_s))
            return
        replica.load += 1
        if replica.busy < self._system.cores:
            self._start(call, replica, now_s)
        else:
            replica.waiting.append(call)

    def _choose(self, call: _Call, now_s: float) -> int | None:
        """Return a replica that this call has not tried; None if there is none."""
        group = self._groups[call.group]
        left = [number for number in range(len(group)) if number not in call.tried]
        # An open breaker is ignored if no other replica is left.
        open_ones = [number for number in left if group[number].shut_until_s <= now_s] or left
        if len(open_ones) < 2:
            return open_ones[0] if open_ones else None
        first = int(self._uniform.next() * len(open_ones))
        if self._policy.choice == "random":
            return open_ones[first]
        second = (first + 1 + int(self._uniform.next() * (len(open_ones) - 1))) % len(open_ones)
        return min(open_ones[first], open_ones[second], key=lambda number: group[number].load)

    def _refused(self, call: _Call, replica: _Replica, now_s: float) -> None:
        replica.shut_until_s = now_s + self._policy.breaker_s
        if self._policy.retry and not call.answered:
            self._send(call, now_s)

    def _start(self, call: _Call, replica: _Replica, now_s: float) -> None:
        service_s = self._service.next()
        replica.busy += 1
        self._worked_s += service_s
        self._at(now_s + service_s, lambda now_s: self._finish(call, replica, now_s))

    def _finish(self, call: _Call, replica: _Replica, now_s: float) -> None:
        replica.busy -= 1
        replica.load -= 1
        if not call.answered:
            self._answer(call, now_s)
        while replica.waiting:
            following = replica.waiting.popleft()
            if not (following.answered and self._policy.cancel):
                self._start(following, replica, now_s)
                return
            # Cancelled while waiting, because the other replica was faster.
            replica.load -= 1

    def _end(self, query: int, now_s: float) -> None:
        if not self._gateways:
            self._finish_s[query] = now_s
            return

        def done(now_s: float) -> None:
            self._finish_s[query] = now_s

        self._work_at_gateway(query, self._after.next(), done, now_s)

    def _answer(self, call: _Call, now_s: float) -> None:
        call.answered = True
        self._left[call.query] -= 1
        if self._left[call.query] == 0:
            self._end(call.query, now_s)
        if self._policy.hedge_quantile is None:
            return
        self._recent.append(now_s - call.sent_s)
        self._answers += 1
        if self._answers % _RENEW_CALLS == 0:
            self._delay_s = float(np.quantile(np.array(self._recent), self._policy.hedge_quantile))


class _Stream:
    """Random numbers drawn in blocks and handed out one by one."""

    def __init__(self, draw: Callable[[int], NDArray[np.float64]]):
        self._draw = draw
        self._drawn: list[float] = []

    def next(self) -> float:
        if not self._drawn:
            self._drawn = np.asarray(self._draw(4096)).tolist()
        return self._drawn.pop()


def exponential(mean_s: float) -> ServiceTimes:
    """Exponential service times."""
    return lambda rng, count: rng.exponential(mean_s, count)


def measured(times_s: NDArray[np.float64]) -> ServiceTimes:
    """Service times drawn from measured ones."""
    times_s = np.array(times_s, np.float64)
    return lambda rng, count: rng.choice(times_s, count)


def with_stalls(service: ServiceTimes, *, share: float, stall_s: float) -> ServiceTimes:
    """Add an exponential stall with mean `stall_s` to a share of the times, as for a page fault or a paused process."""

    def draw(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        return service(rng, count) + (rng.random(count) < share) * rng.exponential(stall_s, count)

    return draw
