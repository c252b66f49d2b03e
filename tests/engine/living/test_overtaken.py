"""A writer in a bucket, which cannot hold the version that it reads, begins again when others have removed it."""

from __future__ import annotations

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.rows import Reader
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.places.opening import open_place
from tests.engine.collection.contents import contents

CODES = np.arange(8, dtype=np.uint64)[:, None]


def test_what_a_writer_reads_goes_while_it_commits(bucket, monkeypatch):
    location = bucket.uri("c")
    Collection.create(location, CODES, bits=16, tables=False)
    real, left = Reader.rows_of, [True]

    def overtaken(self, spec, ids):
        if left:
            left.clear()
            other = Collection.open(location).delete([0]).compact(full=True)
            other.delete([1]).prune(keep=1).prune(keep=1)
            assert not bucket.keys(f"c/shards/{spec.name}")
        return real(self, spec, ids)

    monkeypatch.setattr(Reader, "rows_of", overtaken)
    with Transaction(location, tables=False) as change:
        change.delete([2])
        assert change.commit().deleted == 1
    assert not left
    assert set(contents(lambda name: bucket.get(f"c/{name}"))) == {3, 4, 5, 6, 7}


def test_what_is_missing_from_the_live_version_is_an_error(bucket):
    location = bucket.uri("c")
    (shard,) = Collection.create(location, CODES, bits=16, tables=False).manifest.shards
    with Transaction(location, tables=False) as change:
        change.delete([2])
        open_place(location).remove(f"shards/{shard.name}/ids.npy")
        with pytest.raises(CorruptDataError, match=r"ids\.npy is missing"):
            change.commit()
