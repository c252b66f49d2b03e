"""Compaction in the background of a server that writes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from hashlight.engine.collection.writing.compaction import compact
from hashlight.engine.collection.writing.policy import groups_to_merge
from hashlight.engine.places.opening import open_target
from hashlight.engine.storage.versions import read_current

logger = logging.getLogger(__name__)

# After a write, so that one of many does not begin what the next makes worth more.
_PAUSE_S = 1.0


class Compactor:
    """Merges shards that are worth it, by `engine.collection.writing.policy`, after writes.

    Parameters
    ----------
    location : str or Path
        The collection.
    compacted : callable
        Called after a compaction.
    """

    def __init__(self, location: str | Path, compacted: Callable[[], object]) -> None:
        self._location = location
        self._compacted = compacted
        self._written = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="hashlight-compact", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look soon whether shards are worth merging."""
        self._written.set()

    def close(self) -> None:
        """Begin no more compactions, and wait for the one that may be in progress."""
        self._ending.set()
        self._written.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ending.is_set():
            self._written.wait()
            if self._ending.wait(_PAUSE_S):
                return
            self._written.clear()
            try:
                if groups_to_merge(read_current(open_target(self._location)).shards):
                    compact(self._location)
                    self._compacted()
            except Exception:  # whatever it is, shards stay as they are, and writes go on
                logger.warning(
                    "shards of %s were not merged; the next write tries again", self._location, exc_info=True
                )
