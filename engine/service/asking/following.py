"""Following a collection: its live version is taken up, and one that cannot be is tried again ever less often."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hashlight.engine.places.opening import open_place
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import read_current

logger = logging.getLogger(__name__)

LOOK_S = 2.0  # between looks at the live version
LONGEST_PAUSE_S = 300.0

Clock = Callable[[], float]


class Backoff:
    """When to try again what failed: after pauses that double. Anything else may be tried at once.

    Parameters
    ----------
    first_s, longest_s : float
        Pauses.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self, *, first_s: float = LOOK_S, longest_s: float = LONGEST_PAUSE_S, clock: Clock = time.monotonic
    ) -> None:
        self.attempts = 0  # failed ones in a row
        self._first_s, self._longest_s, self._clock = first_s, longest_s, clock
        self._what: object = None
        self._until_s = 0.0

    @property
    def left_s(self) -> float:
        """Seconds until the next attempt at what failed."""
        return max(0.0, self._until_s - self._clock())

    def allows(self, what: object) -> bool:
        """Return whether something may be tried now."""
        return self.attempts == 0 or what != self._what or self.left_s == 0

    def failed(self, what: object) -> None:
        """Record a failed attempt."""
        self.attempts = self.attempts + 1 if what == self._what else 1
        self._what = what
        pause_s = min(self._longest_s, self._first_s * 2.0 ** min(self.attempts - 1, 60))
        self._until_s = self._clock() + pause_s

    def succeeded(self) -> None:
        """Forget the failures."""
        self.attempts, self._what = 0, None


@dataclasses.dataclass(frozen=True, slots=True)
class Pending:
    """The live version, while it cannot be served.

    Attributes
    ----------
    version : int or None
        None if its manifest cannot be read.
    attempts : int
        Failed ones so far.
    retry_s : float
        Seconds until the next attempt.
    error : str
        The last one.
    """

    version: int | None
    attempts: int
    retry_s: float
    error: str


class Follower:
    """Takes up the live version of a collection, again and again.

    Parameters
    ----------
    location : str or Path
        Of the collection.
    take_up : callable
        Serves the live version and returns whether that is another one than before; if it raises, the old version
        must still be in service.
    look_s : float
        Between looks.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self,
        location: str | Path,
        take_up: Callable[[], bool],
        *,
        look_s: float = LOOK_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self._place = open_place(location)
        self._take_up = take_up
        self.look_s = look_s
        self._looking = threading.Lock()
        self._backoff = Backoff(clock=clock)
        self._failed: tuple[Manifest | None, str] | None = None
        self._hurried = threading.Event()

    @property
    def pending(self) -> Pending | None:
        """The live version, if it could not be taken up."""
        failed = self._failed
        if failed is None:
            return None
        live, error = failed
        return Pending(None if live is None else live.version, self._backoff.attempts, self._backoff.left_s, error)

    def look(self) -> None:
        """Take up the live version if there is a new one, unless it has failed and its pause is not over."""
        with self._looking:
            self._look()

    def _look(self) -> None:
        if self._failed is not None and not self._backoff.allows(self._live()):
            return
        try:
            changed = self._take_up()
        except Exception as error:  # whatever it is, the old version is in service, and a later one may be well
            live = self._live()
            self._backoff.failed(live)
            self._failed = live, str(error) or type(error).__name__
            logger.warning(
                "the new version cannot be served, the old one still is; next attempt in %.0f s: %s",
                self._backoff.left_s,
                error,
            )
            return
        self._failed = None
        self._backoff.succeeded()
        if changed:
            logger.info("serving a new version of %s", self._place)

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follow in a thread of its own as long as the context is open."""
        ending = threading.Event()
        thread = threading.Thread(target=self.follow, args=(ending,), name="hashlight-follow", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            self.hurry()
            thread.join()

    def follow(self, ending: threading.Event) -> None:
        """Look again and again, and whenever `hurry` is called, until `ending` is set."""
        while not ending.is_set():
            self._hurried.wait(self.look_s)
            self._hurried.clear()
            if not ending.is_set():
                self.look()

    def hurry(self) -> None:
        """Have `follow` look at once: there is a new version, or it is to end."""
        self._hurried.set()

    def _live(self) -> Manifest | None:
        """Return the live manifest, None if it cannot be read."""
        try:
            return read_current(self._place)
        except Exception as error:  # reported by `take_up`, which reads it, too
            logger.debug("the live version of %s cannot be read: %s", self._place, error)
            return None
