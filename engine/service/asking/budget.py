"""How many bytes of answers one gateway holds at once.

A question of a few bytes may have an answer of many megabytes, and who asks may be slow to read it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from hashlight.engine.errors import OverloadedError
from hashlight.engine.service.problems import invalid


class Budget:
    """Bytes for all answers that have not been sent. Thread-safe.

    Parameters
    ----------
    each_bytes, total_bytes : int
        Limits of one answer and of all together.
    """

    def __init__(self, *, each_bytes: int, total_bytes: int) -> None:
        self._each_bytes = each_bytes
        self._total_bytes = total_bytes
        self._lock = threading.Lock()
        self.held = 0

    @contextlib.contextmanager
    def account(self) -> Iterator[Account]:
        """Yield the account of one answer; what it holds is given back at the end."""
        account = Account(self)
        try:
            yield account
        finally:
            account.close()

    def change(self, before: int, after: int) -> None:
        """Hold `after` bytes for an answer that held `before`, or raise as `Account.hold` does."""
        if after > self._each_bytes:
            raise invalid(
                f"the answer has about {after} bytes, at most {self._each_bytes} are sent at once: ask for fewer "
                "queries or answers at a time, or for their attributes afterwards",
                None,
            )
        with self._lock:
            if after > before and self.held + after - before > self._total_bytes:
                message = f"answers of {self._total_bytes} bytes are being sent: try again"
                raise OverloadedError(message, retry_after_s=1)
            self.held += after - before


class Account:
    """Bytes that one answer holds; see `Budget.account`. Thread-safe."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._held = 0
        self._closed = False

    def hold(self, size: int) -> None:
        """Hold `size` bytes in all from now on; after the end, when only a thread that was left behind asks, nothing.

        Raises
        ------
        RequestError
            If that is more than one answer may have.
        OverloadedError
            If it is more than is left.
        """
        with self._lock:
            if not self._closed:
                self._budget.change(self._held, size)
                self._held = size

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            self._budget.change(self._held, 0)
            self._held, self._closed = 0, True
