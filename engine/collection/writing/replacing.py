"""Parts of a version that are replaced: shards by others that hold the same rows, the encoder, marks of write logs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from hashlight.engine.collection.writing.draft import Draft
from hashlight.engine.errors import CollectionBusyError
from hashlight.engine.places.files import sync_file, sync_folder
from hashlight.engine.places.place import Place
from hashlight.engine.storage.leftovers import Intent, utc_now
from hashlight.engine.storage.manifest import LogMark, ShardSpec

# A log that has committed nothing for so long is that of a server that is gone. If there are more than so many, those
# that committed last stay.
KEPT_DAYS = 30
_MAX_LOGS = 1000


class Replace:
    """Replaces shards. What was deleted from the old ones meanwhile is deleted from the new ones.

    Parameters
    ----------
    old : list of ShardSpec
        As they were when the new ones were made of their rows.
    new : list of ShardSpec
    schema : pyarrow.Schema or None
        The attributes that the new ones have.
    """

    def __init__(self, old: list[ShardSpec], new: list[ShardSpec], schema: pa.Schema | None) -> None:
        self._old, self._new, self._names = old, new, frozenset(schema.names if schema is not None else ())

    def apply(self, draft: Draft) -> None:
        """Replace them in a draft.

        Raises
        ------
        CollectionBusyError
            If an old shard is gone, as by another compaction, or one of its columns was replaced, or a rollback has
            brought back what the new ones lack.
        """
        killed = []
        for old in self._old:
            now = draft.shards.get(old.name)
            if now is None or now.columns != old.columns or self._lacks(draft, old, now):
                raise CollectionBusyError(
                    f"another process has replaced shard {old.name} of {draft.place}, or one of its columns, or rolled "
                    "back: this compaction was discarded; what remains to be done, the next one does"
                )
            rows_M = np.setdiff1d(draft.dead(now), draft.reader.dead(old))
            killed.append(draft.reader.ids(now)[rows_M])
            draft.remove(old.name)
        for new in self._new:
            draft.add(new)
        ids_M = np.concatenate([np.zeros(0, np.int64), *killed])
        draft.kill([(new, rows_M) for new, rows_M in draft.find(ids_M) if new in self._new])

    def _lacks(self, draft: Draft, old: ShardSpec, now: ShardSpec) -> bool:
        """Whether a row of an old shard is alive again, or one of its own attributes is shown again."""
        shown = set(draft.schema.names) - self._names
        return bool(
            len(np.setdiff1d(draft.reader.dead(old), draft.dead(now)))
            or (shown and shown & set(draft.reader.own_columns(now).names))
        )


class ReserveIds:
    """Raises the next id."""

    def __init__(self, next_id: int) -> None:
        self._next_id = next_id

    def apply(self, draft: Draft) -> None:
        """Raise that of a draft."""
        draft.change(next_id=max(draft.manifest.next_id, self._next_id))


class KeepEncoder:
    """Names the copy of the encoder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def apply(self, draft: Draft) -> None:
        """Name it in a draft."""
        draft.change(encoder_folder=self._folder)


class AlreadyCommittedError(Exception):
    """The live version has records of a log that were to be committed.

    Attributes
    ----------
    through : int
        The last record that it has.
    """

    def __init__(self, through: int) -> None:
        super().__init__(f"records through {through} of the log are committed")
        self.through = through


class MarkLog:
    """Says that a version has the records of a log from `after`, which the live version must have, through `through`.

    Marks of logs that are no longer used go.
    """

    def __init__(self, log: str, through: int, after: int) -> None:
        self._log, self._through, self._after = log, through, after

    def apply(self, draft: Draft) -> None:
        """Say so in a draft.

        Raises
        ------
        AlreadyCommittedError
            If the live version has more.
        """
        known = draft.manifest.logs.get(self._log)
        if known is not None and known.through > self._after:
            raise AlreadyCommittedError(known.through)
        since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=KEPT_DAYS)
        others = {
            log: mark
            for log, mark in draft.manifest.logs.items()
            if log != self._log and datetime.datetime.fromisoformat(mark.written) >= since
        }
        latest = sorted(others, key=lambda log: others[log].written)[-(_MAX_LOGS - 1) :]
        kept = {log: mark for log, mark in others.items() if log in set(latest)}
        draft.change(logs={**kept, self._log: LogMark(self._through, utc_now())})


def is_stored(place: Place, folder: str, files: Mapping[str, bytes]) -> bool:
    """Whether a copy of an encoder has exactly these files."""
    name = f"encoder/{folder}"
    return files == {file: place.read(f"{name}/{file}") for file in place.names(name, hidden=True)}


def store_encoder(place: Place, intent: Intent, files: Mapping[str, bytes]) -> str:
    """Write a copy of an encoder, and return its folder's name."""
    folder = intent.new_name("encoder")
    with place.new_folder(f"encoder/{folder}") as target:
        target.mkdir()
        for name, data in files.items():
            (target / name).write_bytes(data)
            sync_file(target / name)
        sync_folder(target)
    return folder
