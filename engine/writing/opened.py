"""The log of a server and its idempotency keys, opened together."""

from __future__ import annotations

import copy
import datetime
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from hashlight.engine.collection.writing.replacing import KEPT_DAYS
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import PlaceError
from hashlight.engine.places.opening import open_target
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import read_current
from hashlight.engine.writing.keys import Keys
from hashlight.engine.writing.log import WriteLog
from hashlight.engine.writing.records import Logged, decode

logger = logging.getLogger(__name__)


def logs_folder() -> Path:
    """Return where logs are unless another place is named: with the user's state, as they are no cache."""
    return Path(platformdirs.user_state_path("hashlight")) / "logs"


class Opened:
    """The log of a collection, and the keys of its writes.

    Parameters
    ----------
    location : str or Path
        The collection. One of format 1 gets a version of format 2: only that has an id.
    folder : Path, optional
        Where the logs of collections are, each in a folder that is named by its id; by default `logs_folder`.

    Attributes
    ----------
    log : WriteLog
    keys : Keys
    logged : list of Logged
        What the log had, until it is taken.

    Raises
    ------
    CollectionNotFoundError, CorruptDataError
        If the collection, or the log, cannot be read.
    CollectionBusyError
        If another server has the log.
    PlaceError
        If it is another collection's, or the folder cannot be written.
    """

    def __init__(self, location: str | Path, folder: Path | None = None) -> None:
        live = read_current(open_target(location))
        if live.format_version == 1:
            with Transaction(location) as change:
                change.commit()
            live = read_current(open_target(location))
        self._folder = logs_folder() if folder is None else folder
        self._open(live.collection)

    def _open(self, collection: str) -> None:
        try:
            log = WriteLog(self._folder / collection, collection=collection)
            try:
                logged = [decode(number, data) for number, data in log.recovered]
                log.recovered.clear()
                keys = Keys(log.folder)
            except BaseException:
                log.close()
                raise
        except OSError as error:
            raise PlaceError(
                f"the write log cannot be kept in {self._folder} ({error.strerror or error}): name a folder that can "
                "be written, and that stays (`--write-log`)"
            ) from error
        self.log, self.keys, self.logged = log, keys, logged

    def of_other(self, collection: str) -> Opened:
        """Open the log of another collection, which has taken the place of this one; errors as when it is made."""
        other = copy.copy(self)
        other._open(collection)
        return other

    def through(self, live: Manifest) -> int:
        """Return the number of the last record that a version has; 0 if it has none."""
        mark = live.logs.get(self.log.id)
        return 0 if mark is None else mark.through

    def take(self, live: Manifest) -> list[Logged]:
        """Return what the log had and the live version has not; the records and keys of the rest are settled.

        Raises
        ------
        PlaceError
            If the collection may have forgotten that it has them.
        OSError
            If the log or the keys cannot be written.
        """
        through, (logged, self.logged) = self.through(live), (self.logged, [])
        left = [one for one in logged if one.number > through]
        if left:
            _refuse_expired(left, live, self.log)
            logger.info("%d writes were logged and not committed before the server was ended", len(left))
        self.keys.note(one for one in logged if one.number <= through)
        self.keys.settle(through, live.version)
        self.log.begin_after(through)
        self.log.trim(through)
        return left

    def close(self) -> None:
        """Close both."""
        self.keys.close()
        self.log.close()

    def leave(self) -> None:
        """Close both, and remove them unless there are records: their collection may be served again elsewhere."""
        is_empty = self.log.is_empty
        self.close()
        if is_empty:
            shutil.rmtree(self.log.folder, ignore_errors=True)


def _refuse_expired(left: Sequence[Logged], live: Manifest, log: WriteLog) -> None:
    """Raise PlaceError if writes are so old that the collection may have forgotten that it has them."""
    days = (time.time() - left[0].written_s) / 86400
    if log.id not in live.logs and days > KEPT_DAYS - 1:
        when = datetime.datetime.fromtimestamp(left[0].written_s, datetime.UTC).date()
        raise PlaceError(
            f"the write log {log.folder} has {len(left)} writes of {when} on, and after {KEPT_DAYS} days the "
            "collection no longer tells whether it has them: look for them, write what is missing again, and remove "
            "the folder"
        )
