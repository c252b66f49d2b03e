"""Writes that are committed before they are answered: where others answer searches, from committed versions alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hashlight.engine.collection.writing.draft import upgraded
from hashlight.engine.collection.writing.replacing import AlreadyCommittedError
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import HashlightError
from hashlight.engine.places.opening import open_target
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import read_current
from hashlight.engine.writing.committing import State, Waiting, is_refusal
from hashlight.engine.writing.keys import Made
from hashlight.engine.writing.opened import Opened
from hashlight.engine.writing.records import Key, Logged, encode
from hashlight.engine.writing.writes import Write, record_all

logger = logging.getLogger(__name__)


class _Numbered(NamedTuple):
    number: int
    write: Write


class _Committed(NamedTuple):
    """The version that has a write, and of a deletion the items that it found."""

    version: int
    deleted: int | None


class Direct:
    """Logs the writes that arrive together, and commits them as one version. See `engine.writing.committing.Store`.

    What was logged and not committed, because the process was killed, is committed when this is made.

    Parameters
    ----------
    location : str or Path
        The collection: a folder, or the URI of one in a bucket.
    opened : Opened
        Its log. Closed here.
    committed : callable
        Called with every version that a commit has made, before the writes in it are answered.
    """

    commits_first = True

    def __init__(
        self, location: str | Path, opened: Opened, *, committed: Callable[[int], None] = lambda version: None
    ) -> None:
        self._location, self._place = location, open_target(location)
        self._opened = opened
        self._committed = committed
        self._flushes = self._failures = 0
        try:
            self._take_up(self.live())
        except BaseException:
            self._opened.close()
            raise

    def _take_up(self, live: Manifest) -> None:
        """Commit what the log had and the live version of its collection has not."""
        self._collection, self._through = live.collection, self._opened.through(live)
        if left := self._opened.take(live):
            outcomes = self._outcomes([_Numbered(one.number, one.write) for one in left])
            self._settle_keys(left, outcomes)
            for outcome in outcomes:
                if isinstance(outcome, Exception) and not is_refusal(outcome):
                    raise outcome
        self._opened.log.trim(self._opened.log.last)

    def _go_over(self, live: Manifest) -> None:
        """Take up another collection that has taken the place of this one; if that fails, all stays as it is."""
        former = self._opened, self._collection, self._through
        opened = self._opened.of_other(live.collection)
        self._opened = opened
        try:
            self._take_up(live)
        except BaseException:
            self._opened, self._collection, self._through = former
            opened.close()
            raise
        logger.warning("%s was replaced by another collection", self._place)
        former[0].leave()

    def live(self) -> Manifest:
        """Return the live version."""
        return upgraded(self._place, read_current(self._place))

    def find(self, key: Key) -> Made | None:
        """Return what was made under a key."""
        return self._opened.keys.find(key)

    def settle(self, ready: Sequence[Waiting]) -> None:
        """Log and commit writes; the log is empty again when they are answered."""
        live = self.live()
        if live.collection != self._collection:
            self._go_over(live)
        codes, log = (live.bits, live.encoder), self._opened.log
        logged = [
            Logged(number, waiting.write, codes, key=waiting.key) for number, waiting in enumerate(ready, log.last + 1)
        ]
        log.append([encode(one) for one in logged])
        outcomes = self._outcomes([_Numbered(one.number, one.write) for one in logged])
        self._settle_keys(logged, outcomes)
        # Before anything is answered: what was refused must not be made when the log is read again.
        log.trim(log.last)
        for waiting, one, outcome in zip(ready, logged, outcomes, strict=True):
            if isinstance(outcome, Exception):
                waiting.made.set_exception(outcome)
            else:
                waiting.made.set_result(Made(one.number, outcome.version, outcome.deleted))

    def visible(self, made: Made) -> Future[int]:
        """Return the version at once."""
        assert made.version is not None, "it is committed"
        version: Future[int] = Future()
        version.set_result(made.version)
        return version

    def state(self) -> State:
        """Nothing is ever pending."""
        return State(flushes=self._flushes, failures=self._failures)

    def close(self) -> None:
        """Close the log."""
        self._opened.close()

    def _settle_keys(self, logged: Sequence[Logged], outcomes: Sequence[_Committed | Exception]) -> None:
        made = [
            (replace(one, deleted=outcome.deleted), outcome.version)
            for one, outcome in zip(logged, outcomes, strict=True)
            if isinstance(outcome, _Committed)
        ]
        for version in {version for _, version in made}:
            self._opened.keys.note(one for one, of in made if of == version)
            self._opened.keys.settle(logged[-1].number, version)

    def _outcomes(self, writes: Sequence[_Numbered]) -> list[_Committed | Exception]:
        """Commit some writes; return for each what became of it, or why there is nothing."""
        try:
            return [*self._commit(writes)]
        except Exception as error:
            if not is_refusal(error) or len(writes) == 1:
                self._failures += not is_refusal(error)
                if not is_refusal(error) and not isinstance(error, (HashlightError, OSError)):
                    logger.exception("%d writes were not committed", len(writes))
                return [error] * len(writes)
        # One of them is refused: halves are tried until it is alone, in the same order.
        middle = len(writes) // 2
        return self._outcomes(writes[:middle]) + self._outcomes(writes[middle:])

    def _commit(self, writes: Sequence[_Numbered]) -> list[_Committed]:
        through = writes[-1].number
        deleted: list[int | None] = [None] * len(writes)  # as far as it is known
        try:
            with Transaction(self._location) as change:
                live = change.live
                assert live is not None, "there is a live version, or beginning would have failed"
                for one in writes:
                    one.write.check(live)
                change.mark_log(self._opened.log.id, through, after=self._through)
                counts = record_all([one.write for one in writes], live, change)
                version = change.commit().version
                deleted = counts()
        except AlreadyCommittedError as error:
            # A commit whose answer came as an error was made.
            self._through = error.through
            if error.through < through:
                return self._commit(writes)
            version = self.live().version
        self._through = max(self._through, through)
        self._flushes += 1
        try:
            self._committed(version)
        except Exception:  # the write is made, whatever comes of it
            logger.exception("version %d was committed, but is not served yet", version)
        return [_Committed(version, number) for number in deleted]
