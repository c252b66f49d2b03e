"""A cache of what filters select: bounded in bytes, evaluating equal filters that arrive at once only once."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

_REMEMBERED = 10_000  # requests after which what is known of their frequency is halved


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=_Sized)


class FilterCache(Generic[Value]):
    """Values by key. Thread-safe.

    When it is full, a new value takes the place of the least recently used ones only if it was asked for more often
    than each of them (Einziger, Friedman and Manes, "TinyLFU", ACM ToS 2017). So neither filters that are used once,
    nor a cycle of more filters than there is room for, drive out those that repeat.

    Parameters
    ----------
    max_bytes : int
        Values beyond it are not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._making: dict[Hashable, Future[Value]] = {}
        self._requests: Counter[Hashable] = Counter()
        self._num_requests = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of `key`, from `make` if it is neither kept nor being made; errors of `make` are raised."""
        with self._lock:
            self._count(key)
            if (value := self._values.get(key)) is not None:
                self._values.move_to_end(key)
                return value
            if (making := self._making.get(key)) is None:
                mine = self._making[key] = Future()
        if making is not None:
            return making.result()
        try:
            made = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            self._keep(key, made)
        mine.set_result(made)
        return made

    def _count(self, key: Hashable) -> None:
        self._requests[key] += 1
        self._num_requests += 1
        if self._num_requests == _REMEMBERED:
            self._requests = Counter({each: count // 2 for each, count in self._requests.items() if count > 1})
            self._num_requests = 0

    def _keep(self, key: Hashable, value: Value) -> None:
        """Keep a value, unless one that would have to go was asked for as often."""
        wanted = self._bytes + value.nbytes - self._max_bytes
        victims: list[Hashable] = []
        for other, kept in self._values.items():
            if wanted <= 0:
                break
            if self._requests[other] >= self._requests[key]:
                return
            victims.append(other)
            wanted -= kept.nbytes
        if wanted > 0:
            return
        for other in victims:
            self._bytes -= self._values.pop(other).nbytes
        self._values[key] = value
        self._bytes += value.nbytes
