"""Writes that are answered when they are logged, searched at once, and committed together later.

Whatever is logged can no longer be refused: what a filter selects is told when it is logged, and so are conflicts of
ids. Until a version has the writes they are shown on top of the one that is served, and if that moves, whoever wrote
it, they are put on top of the new one.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import pyarrow as pa

from hashlight.engine.codes import IdArray
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.replacing import AlreadyCommittedError
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import (
    CollectionBusyError,
    HashlightError,
    IdExistsError,
    IdNotFoundError,
    NotReadyError,
    OverloadedError,
)
from hashlight.engine.places.files import report_step
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import Place
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import read_current
from hashlight.engine.writing.committing import State, Waiting, is_refusal
from hashlight.engine.writing.keys import Made
from hashlight.engine.writing.opened import Opened
from hashlight.engine.writing.pending import Pending, Sum, fitted
from hashlight.engine.writing.records import Change, Key, Logged, encode
from hashlight.engine.writing.views import Views
from hashlight.engine.writing.writes import Delete, DeleteWhere, Put, Update

logger = logging.getLogger(__name__)

# Versions remembered, so that it can be told which was the first with a write.
_MOST_FLUSHES = 1000
# Versions whose views can be made again for those who read page after page, and views that are kept for them.
_MOST_EARLIER, _MOST_RECALLED = 4, 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Gathering:
    """How much gathers before it is committed.

    Attributes
    ----------
    items : int
        Each view of pending writes is made anew: of so many rows in some milliseconds.
    num_bytes : int
    age_s : float
        Other servers see it then. A commit costs some tens of milliseconds.
    """

    items: int = 8192
    num_bytes: int = 32 * 2**20
    age_s: float = 5.0

    @property
    def most(self) -> tuple[int, int]:
        """Items and bytes beyond which writes are refused, because commits fail."""
        return 16 * self.items, 16 * self.num_bytes


class Buffer:
    """Gathers writes in a log and in memory. Thread-safe. See `engine.writing.committing.Store`.

    Parameters
    ----------
    collection : Collection
        The live version.
    opened : Opened
        Its log. Closed here. What it has that the collection has not is pending again.
    show : callable
        Called with every version to be served, on top of which pending writes are; the first time before this returns.
    gathering : Gathering
    """

    commits_first = False

    def __init__(
        self,
        collection: Collection,
        opened: Opened,
        show: Callable[[Collection], None],
        *,
        gathering: Gathering | None = None,
    ) -> None:
        self._location, self._place = collection.location, open_place(collection.location)
        self._opened = opened
        self._gathering = gathering or Gathering()
        self._show = show
        self._lock = threading.RLock()  # of what is pending, and shown
        self._renewing, self._recalling = threading.Lock(), threading.Lock()
        self._earlier: deque[tuple[Collection, tuple[Logged, ...]]] = deque(maxlen=_MOST_EARLIER)
        self._recalled: OrderedDict[tuple[Collection, int], Collection] = OrderedDict()
        self._flushed: deque[tuple[int, int]] = deque(maxlen=_MOST_FLUSHES)  # last record, version
        self._asked: list[tuple[int, Future[int]]] = []
        self._flushes = self._failures = 0
        self._failing = 0  # in a row
        self._not_before_s = 0.0
        self._wake, self._ending, self._has_ended = threading.Event(), False, False
        self._pending: Pending
        try:
            self._take_up(Views(collection), self._taken(opened, collection.manifest))
        except BaseException:
            opened.close()
            raise
        self._thread = threading.Thread(target=self._flush_when_due, name="hashlight-flush", daemon=True)
        self._thread.start()

    @staticmethod
    def _taken(opened: Opened, live: Manifest) -> list[Logged]:
        """Return what is pending of a log that was just opened."""
        left = opened.take(live)
        opened.keys.note(left)
        return left

    # Writes.

    def live(self) -> Manifest:
        """Return the version on top of which pending writes are: the live one, unless that cannot be taken up now."""
        try:
            found = self._place.find("CURRENT")
            if found is not None and found.data != f"{self._manifest.file_name}\n".encode():
                self.renew()
        except Exception as error:  # reported by who follows the collection, and writes are accepted all the same
            logger.debug("the live version of %s cannot be taken up: %s", self._place, error)
        return self._manifest

    @property
    def _manifest(self) -> Manifest:
        return self._views.base.manifest

    def find(self, key: Key) -> Made | None:
        """Return what was made under a key."""
        return self._opened.keys.find(key)

    def settle(self, ready: Sequence[Waiting]) -> None:
        """Log some writes, and show them."""
        with self._lock:
            self._refuse_more()
            before, made = list(self._pending.logged), list[tuple[Waiting, Logged]]()
            try:
                for waiting in ready:
                    if (logged := self._add(waiting)) is not None:
                        made.append((waiting, logged))
                if not made:
                    return
                self._opened.log.append([encode(one) for _, one in made])
            except BaseException:
                self._pending = Pending(self._manifest, before)
                raise
            self._opened.keys.note(one for _, one in made)
            if self._is_full():
                self._wake.set()
            try:
                self._show(self._views.make(self._pending))
            except Exception as error:
                logger.exception("%d writes are logged, but cannot be shown", len(made))
                raise NotReadyError(
                    "the write is stored, and will be made, but this server cannot show it now: see its log"
                ) from error
            if not before:
                self._wake.set()
        for waiting, one in made:
            waiting.made.set_result(Made(one.number, None, one.deleted))

    def _refuse_more(self) -> None:
        items, num_bytes = self._gathering.most
        if self._pending.num_items > items or self._pending.num_bytes > num_bytes:
            raise OverloadedError(
                f"{len(self._pending)} writes wait to be committed, which fails at present: see the server's log, and "
                "try again later",
                retry_after_s=10,
            )

    def _add(self, waiting: Waiting) -> Logged | None:
        """Add a write to what is pending, and return it; None if it is refused."""
        live = self._manifest
        try:
            waiting.write.check(live)
            change = self._resolved(waiting.write)
            deleted = self._count_there(change.ids) if isinstance(change, Delete) else None
        except Exception as error:
            if not is_refusal(error) and not isinstance(error, HashlightError):
                raise
            waiting.made.set_exception(error)
            return None
        number, codes = max(self._pending.last, self._opened.log.last) + 1, (live.bits, live.encoder)
        logged = Logged(number, change, codes, key=waiting.key, deleted=deleted)
        self._pending.add(logged)
        return logged

    def _count_there(self, ids_M: IdArray) -> int:
        return int(self._views.has(np.unique(ids_M), self._pending).sum())

    def _resolved(self, write: Change) -> Change:
        """Return a write that cannot be refused any more, and does the same.

        Raises
        ------
        IdExistsError, IdNotFoundError
            If it is refused.
        """
        match write:
            case DeleteWhere():
                found = self._views.make(self._pending).scan([], write.filter, write.parameters).read_all()
                return Delete(np.array(found["id"].to_numpy(), np.int64))
            case Put(replaces=False):
                if (there_N := self._views.has(write.ids, self._pending)).any():
                    known = np.sort(write.ids[there_N])
                    raise IdExistsError.of(known.tolist(), wanted=len(write.ids), where="the collection")
                return dataclasses.replace(write, replaces=True)
            case Update():
                ids_M = np.concatenate([ids for ids, _ in write.parts])
                if not (there_M := self._views.has(ids_M, self._pending)).all():
                    raise IdNotFoundError.of(np.sort(ids_M[~there_M]).tolist(), wanted=len(ids_M))
                return write
            case Put() | Delete():
                return write

    # Versions.

    def renew(self) -> bool:
        """Take up the live version if it has changed, with what is pending on top; return whether it had.

        Raises
        ------
        CollectionNotFoundError, CorruptDataError, OSError
            If it cannot be opened; what is shown stays.
        """
        with self._renewing:
            base = self._views.base
            if read_current(self._place) == base.manifest:
                return False
            found = Collection.open(self._location, index=base.index, reuse=base)
            with self._lock:
                if found.manifest.collection != base.manifest.collection:
                    self._go_over(found)
                else:
                    shown, through = tuple(self._pending.logged), self._opened.through(found.manifest)
                    self._take_up(Views(found), [one for one in shown if one.number > through])
                    self._earlier.append((base, shown))
            return True

    def _go_over(self, found: Collection) -> None:
        """Take up another collection that has taken the place of this one, with what its own log has."""
        opened = self._opened.of_other(found.manifest.collection)
        try:
            lost = len(self._pending)
            self._take_up(Views(found), self._taken(opened, found.manifest))
        except BaseException:
            opened.close()
            raise
        former, self._opened = self._opened, opened
        logger.warning(
            "%s was replaced by another collection: %d pending writes are not committed, and stay in %s",
            self._place, lost, former.log.folder,
        )  # fmt: skip
        # Records are numbered anew.
        self._flushed.clear()
        self._earlier.clear()
        self._recalled.clear()
        self._answer(_dropped(self._place))
        former.leave()

    def recall(self, version: int, sequence: int) -> Collection | None:
        """Return what was shown after a write on top of a version; None if that cannot be told any more."""
        with self._lock:
            known = [*self._earlier, (self._views.base, tuple(self._pending.logged))]
        for base, logged in reversed(known):
            if base.version == version and any(one.number == sequence for one in logged):
                with self._recalling:
                    if (found := self._recalled.pop((base, sequence), None)) is None:
                        pending = Pending(base.manifest, [one for one in logged if one.number <= sequence])
                        found = Views(base).make(pending)
                    self._recalled[base, sequence] = found  # the last one asked for comes last
                    while len(self._recalled) > _MOST_RECALLED:
                        self._recalled.popitem(last=False)
                    return found
        return None

    def _take_up(self, views: Views, left: Sequence[Logged]) -> None:
        """Show a version with these writes pending on top; if that fails, all stays as it is."""
        manifest = views.base.manifest
        codes = manifest.bits, manifest.encoder
        kept = [one for one in left if one.codes == codes or not isinstance(one.write, Put)]
        if len(kept) < len(left):
            logger.error(
                "%d pending writes of items have codes of another encoder than version %d of %s, and are left out",
                len(left) - len(kept), manifest.version, self._place,
            )  # fmt: skip
        pending = Pending(manifest, kept)
        self._show(views.make(pending))
        self._views, self._pending = views, pending

    # Commits.

    def visible(self, made: Made) -> Future[int]:
        """Have a write committed now."""
        future: Future[int] = Future()
        if made.version is not None:
            future.set_result(made.version)
            return future
        with self._lock:
            self._asked.append((made.number, future))
            if self._has_ended:
                self._answer(_ending())
            elif any(through >= made.number for through, _ in self._flushed):
                self._answer(None)
            self._wake.set()
        return future

    def state(self) -> State:
        """Return what is pending."""
        pending = self._pending
        oldest_s = time.time() - pending.logged[0].written_s if len(pending) else 0.0
        return State(len(pending), pending.num_bytes, max(0.0, oldest_s), self._flushes, self._failures)

    def close(self) -> None:
        """Commit what is pending, and end; what cannot be committed stays in the log."""
        self._ending = True
        self._wake.set()
        self._thread.join()
        with self._lock:
            self._has_ended = True
            self._answer(_ending())
        self._opened.close()

    def _is_full(self) -> bool:
        pending, most = self._pending, self._gathering
        return pending.num_items >= most.items or pending.num_bytes >= most.num_bytes

    def _due_in_s(self) -> float | None:
        """Return when to commit; None if nothing is pending."""
        with self._lock:
            pending = self._pending
            if not len(pending) and not self._asked:
                return None
            now_s = time.monotonic()
            if self._asked or self._ending or self._is_full():
                wait_s = 0.0
            else:
                wait_s = self._gathering.age_s - (time.time() - pending.logged[0].written_s)
            held_s = 0.0 if self._ending else self._not_before_s - now_s
            return max(0.0, held_s, min(wait_s, self._gathering.age_s))

    def _flush_when_due(self) -> None:
        while True:
            due_s = self._due_in_s()
            if self._ending:
                if due_s is not None:
                    self._flush()
                return
            if due_s != 0.0:
                self._wake.wait(due_s)
                self._wake.clear()
            else:
                self._flush()

    def _flush(self) -> None:
        """Commit what is pending; a failure is logged, and followed by a pause."""
        try:
            with self._lock:
                taken, opened, shown = len(self._pending), self._opened, self._manifest
                through, come_to = self._pending.last, self._pending.sum()
                opened.log.rotate()
            if taken:
                version = self._commit(come_to, through, opened, shown)
                self.renew()
                self._note_flushed(opened, version)
        except Exception as error:  # whatever it is, the writes are in the log, and a later attempt may succeed
            self._note_failure(error)
            self._answer(error)
            return
        self._failing, self._not_before_s = 0, 0.0
        self._flushes += bool(taken)
        self._answer(None)

    def _note_flushed(self, opened: Opened, version: int) -> None:
        """Remove the records that are in a version now, unless another collection has taken the place of theirs."""
        with self._lock:
            if opened is not self._opened:
                return
            through = opened.through(self._manifest)
            self._flushed.append((through, version))
        opened.keys.settle(through, version)
        opened.log.trim(through)

    def _answer(self, error: Exception | None) -> None:
        """Answer who waits for versions that there are, or all if there is an error."""
        with self._lock:
            asked, self._asked = self._asked, []
            through, waiting = self._opened.through(self._manifest), {one.number for one in self._pending.logged}
            for number, future in asked:
                version = next((version for last, version in self._flushed if last >= number), None)
                if version is None and error is None and number <= through:
                    version = self._manifest.version
                if version is None and error is None and number in waiting:
                    self._asked.append((number, future))
                elif not future.set_running_or_notify_cancel():
                    continue
                elif version is not None:
                    future.set_result(version)
                else:
                    future.set_exception(error or _dropped(self._place))

    def _commit(self, come_to: Sum, through: int, opened: Opened, shown: Manifest) -> int:
        """Commit what the pending writes of a log come to on top of the version that was shown; return the new one."""
        report_step("flushing", str(through))
        try:
            with Transaction(self._location) as change:
                live = change.live
                assert live is not None, "there is a live version, or beginning would have failed"
                self._check_same(live, shown)
                change.mark_log(opened.log.id, through, after=opened.through(shown))
                _record(come_to, change, live)
                version = change.commit().version
        except AlreadyCommittedError:
            # Of an earlier attempt that seemed to fail: which of them are left, the version says that is taken up now.
            version = read_current(self._place).version
        report_step("flushed", str(through))
        return version

    def _check_same(self, live: Manifest, shown: Manifest) -> None:
        """Raise CollectionBusyError if a version cannot have what is pending on another; the next look drops it."""
        if (live.collection, live.bits, live.encoder) != (shown.collection, shown.bits, shown.encoder):
            self.renew()
            raise CollectionBusyError(
                f"{self._place} was replaced, or rolled back to codes of another encoder, while writes were pending"
            )

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._failing, 60))
        self._failing += 1
        self._not_before_s = time.monotonic() + pause_s
        told = str(error) or type(error).__name__
        logger.warning(
            "%d writes of the log were not committed, next attempt in %.0f s: %s", len(self._pending), pause_s, told
        )


def _ending() -> NotReadyError:
    return NotReadyError("this server is about to end: the write is logged, and not lost")


def _dropped(place: Place) -> CollectionBusyError:
    return CollectionBusyError(
        f"{place} was replaced, or rolled back to codes of another encoder, before the write was committed: look at "
        "what is there now, and write it again if it is missing"
    )


def _record(come_to: Sum, change: Transaction, live: Manifest) -> None:
    """Record in a transaction what pending writes come to, as the live version stores it."""
    schema = live.schema if live.schema is not None else pa.schema([])
    if len(come_to.gone):
        change.delete(come_to.gone)
    for ids, table in come_to.changed:
        kept = pa.schema([schema.field(name) for name in table.schema.names if name in schema.names])
        if (attributes := fitted(table, kept, rows=len(ids))) is not None:
            change.update(ids, attributes, skip_missing=True)
    if (put := come_to.put) is not None:
        thumbnails = None if put.thumbnails.null_count == len(put.thumbnails) else put.thumbnails.combine_chunks()
        attributes = fitted(put.attributes, schema, rows=len(put.ids))
        change.upsert(put.codes, put.ids, attributes, put.features, thumbnails)
