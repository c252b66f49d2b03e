"""What a test reads of files: how often each is opened, and how many bytes are read."""

from __future__ import annotations

import threading
from collections import Counter

from hashlight.engine.places import folder
from hashlight.engine.places.bucket import Bucket
from hashlight.engine.places.reading import RetryingFile


class Reads:
    """Counts, by the last part of the name of a file; several threads may read."""

    def __init__(self, monkeypatch):
        self.opened, self.num_bytes, self.whole = Counter(), Counter(), Counter()
        self._lock = threading.Lock()
        opens, reads, local, bucket = RetryingFile._open, RetryingFile.read, folder.read_local, Bucket.read

        def open_(file):
            self._count(self.opened, file._where)
            return opens(file)

        def read(file, size=-1):
            data = reads(file, size)
            self._count(self.num_bytes, file._where, len(data))
            return data

        def read_local(path, max_bytes):
            self._count(self.whole, path)
            return local(path, max_bytes)

        def read_bucket(place, name="", **options):
            self._count(self.whole, place.path(name))
            return bucket(place, name, **options)

        monkeypatch.setattr(RetryingFile, "_open", open_)
        monkeypatch.setattr(RetryingFile, "read", read)
        monkeypatch.setattr(folder, "read_local", read_local)
        monkeypatch.setattr(Bucket, "read", read_bucket)

    def _count(self, counter, where, number=1):
        with self._lock:
            counter[str(where).rpartition("/")[2]] += number

    def clear(self):
        for counter in (self.opened, self.num_bytes, self.whole):
            counter.clear()
