"""Opening a collection of many shards within the limits that a process has."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np

from hashlight.engine.collection.collection import Collection
from tests.engine.storage.forging import forge_manifest

SHARDS = 140

OPEN_AND_ASK = """
import resource, sys
import numpy as np
from hashlight.engine.collection.collection import Collection
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
opened = [Collection.open(sys.argv[1]) for _ in range(2)]
for collection in opened:
    assert collection.range_search(np.array([[5]], np.uint64), 0).ids.tolist() == [5] * len(collection.shards)
    for shard in collection.shards:
        assert shard.attributes.take(np.array([3, 0]))["label"].to_pylist() == [6, 0]
        assert shard.features[[3]].tolist() == [[3.0, 1.0]]
print(len(collection.shards))
"""


def test_many_shards_open_under_the_usual_limit_of_descriptors(tmp_path):
    path, ids = tmp_path / "c", np.arange(8)
    features = np.stack([ids, np.ones(8)], axis=1).astype(np.float16)
    Collection.create(path, ids.astype(np.uint64)[:, None], attributes={"label": ids * 2}, features=features)
    forge_manifest(path, lambda document: repeat(path / "shards", document))
    done = subprocess.run([sys.executable, "-c", OPEN_AND_ASK, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{SHARDS}\n"), done.stderr


def repeat(folder, document):
    """Copy the only shard of a collection, which is much faster than writing as many."""
    (shard,) = document["shards"]
    names = [shard["name"], *(f"copy{number}" for number in range(1, SHARDS))]
    for name in names[1:]:
        shutil.copytree(folder / shard["name"], folder / name)
    document["shards"] = [shard | {"name": name} for name in names]
