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
from hashlight.engine.writing.opened import Opened, refuse_expired
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
        self._opened, self._log, self._keys = opened, opened.log, opened.keys
        self._committed = committed
        self._flushes = self._failures = 0
        try:
            self._replay()
        except BaseException:
            opened.close()
            raise

    def _replay(self) -> None:
        live = self.live()
        mark = live.logs.get(self._log.id)
        self._through = 0 if mark is None else mark.through
        logged = self._opened.logged
        self._collection = live.collection
        self._keys.note(one for one in logged if one.number <= self._through)
        self._keys.settle(self._through, live.version)
        left = [one for one in logged if one.number > self._through]
        if left:
            refuse_expired(left, live, self._log)
            logger.info("committing %d writes that were logged before this server was ended", len(left))
            outcomes = self._outcomes([_Numbered(one.number, one.write) for one in left])
            self._settle_keys(left, outcomes)
            for outcome in outcomes:
                if isinstance(outcome, Exception) and not is_refusal(outcome):
                    raise outcome
        self._log.begin_after(self._through)
        self._log.trim(self._log.last)

    def live(self) -> Manifest:
        """Return the live version."""
        return upgraded(self._place, read_current(self._place))

    def find(self, key: Key) -> Made | None:
        """Return what was made under a key."""
        return self._keys.find(key)

    def settle(self, ready: Sequence[Waiting]) -> None:
        """Log and commit writes; the log is empty again when they are answered."""
        live = self.live()
        if live.collection != self._collection:
            logger.warning("%s was replaced by another collection", self._place)
            self._log, self._keys = self._opened.reopen(live.collection)
            self._collection, self._through = live.collection, 0
        codes = live.bits, live.encoder
        logged = [
            Logged(number, waiting.write, codes, key=waiting.key)
            for number, waiting in enumerate(ready, self._log.last + 1)
        ]
        self._log.append([encode(one) for one in logged])
        outcomes = self._outcomes([_Numbered(one.number, one.write) for one in logged])
        self._settle_keys(logged, outcomes)
        # Before anything is answered: what was refused must not be made when the log is read again.
        self._log.trim(self._log.last)
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
            self._keys.note(one for one, of in made if of == version)
            self._keys.settle(logged[-1].number, version)

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
                change.mark_log(self._log.id, through, after=self._through)
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
