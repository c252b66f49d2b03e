"""After a power failure during a write, a collection is complete, in the old version or the new one."""

import os
import shutil

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CollectionNotFoundError
from tests.engine.power_loss import Disk, restore

BITS = 48
OLD, NEW = 50, 30


def codes_of(rows, seed):
    return np.random.default_rng(seed).integers(2**BITS, size=(rows, 1), dtype=np.uint64)


@pytest.fixture
def encoder(tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in ("config.json", "weights.safetensors"):
        (folder / name).write_text(f"{name} of an encoder")
    return folder


def create(path, encoder, **options):
    attributes = {"label": np.arange(NEW)}
    features = np.ones((NEW, 3), np.float16)
    Collection.create(
        path, codes_of(NEW, 1), ids=np.arange(NEW) + 1000, attributes=attributes, features=features, bits=BITS,
        shards=2, encoder=encoder, fingerprint="f", **options,
    )  # fmt: skip


def replace(path, encoder):
    create(path, encoder, overwrite=True)


def append(path, encoder):
    Collection.open(path).add(codes_of(NEW, 1), ids=np.arange(NEW) + 1000, shards=2)


def found_in(path):
    """Return how many codes the collection has, None if there is none, and check that it is complete."""
    try:
        collection = Collection.open(path, verify=True)
    except CollectionNotFoundError:
        return None
    if collection.fingerprint is not None:
        assert sorted(file.read_text() for file in collection.encoder_path.iterdir()) == [
            "config.json of an encoder",
            "weights.safetensors of an encoder",
        ]
    return len(collection)


@pytest.mark.parametrize(
    ("write", "before", "after"),
    [(create, None, NEW), (replace, OLD, NEW), (append, OLD, OLD + NEW)],
    ids=["create", "replace", "append"],
)
def test_power_may_fail_at_any_step_of_a_write(tmp_path, monkeypatch, encoder, write, before, after):
    disk_root = tmp_path / "disk"
    disk_root.mkdir()
    path = disk_root / "c"
    if before is not None:
        Collection.create(path, codes_of(OLD, 0), bits=BITS)
    disk = Disk(disk_root)
    trees = {}

    def note(step):
        for tree in disk.after_power_loss():
            trees.setdefault(tuple(tree.items()), step)

    with monkeypatch.context() as patch:
        disk.watch(patch, note)
        write(path, encoder)

    found = []
    for number, tree in enumerate(trees):
        restore(dict(tree), tmp_path / f"{number}")
        found.append(found_in(tmp_path / f"{number}" / "c"))
    assert set(found) == {before, after}
    assert len(trees) > 20
    # After the write has returned, the new version survives in every state of the disk.
    for number, tree in enumerate(disk.after_power_loss()):
        restore(tree, tmp_path / f"after-{number}")
        assert found_in(tmp_path / f"after-{number}" / "c") == after


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_the_simulated_disk_forgets_what_was_not_fsynced(tmp_path, monkeypatch, forgotten):
    disk_root = tmp_path / "disk"
    disk_root.mkdir()
    (disk_root / "kept").write_bytes(b"old")
    disk = Disk(disk_root)
    steps = []
    with monkeypatch.context() as patch:
        disk.watch(patch, steps.append)
        with (disk_root / "aside").open("wb") as file:
            file.write(b"new")
            file.flush()
            if forgotten != "file":
                os.fsync(file.fileno())
        os.replace(disk_root / "aside", disk_root / "kept")
        if forgotten != "folder":
            folder = os.open(disk_root, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    assert {tree["kept"] for tree in disk.after_power_loss()} == ({b""} if forgotten == "file" else {b"old", b"new"})
    assert steps == (["replace", "fsync"] if forgotten == "file" else ["fsync", "replace"])
    shutil.rmtree(disk_root)
