"""Power that fails at any step of any operation leaves the collection as it was before, or as it is after."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.places.folder import Folder
from hashlight.engine.storage.manifest import parse_manifest
from hashlight.engine.storage.versions import list_versions
from tests.engine.collection.contents import contents
from tests.engine.living.operations import OPERATIONS, described, make, reader
from tests.engine.power_loss import Disk, restore


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "c"
    make(path)
    return path


def checked(tree):
    """Return what a surviving disk holds, all files that the live version names being whole."""
    read = lambda name: tree[f"c/{name}"]  # noqa: E731
    found = described(read)
    for shard in json.loads(read(f"manifests/{read('CURRENT').decode().strip()}"))["shards"]:
        files = {f"shards/{shard['name']}/{name}": file for name, file in shard["files"].items()}
        files |= {f"columns/{file['name']}": file for file in shard["columns"].values()}
        files |= {f"deletions/{shard['dead']['name']}": shard["dead"]} if shard["dead"] else {}
        for name, file in files.items():
            assert hashlib.sha256(read(name)).hexdigest() == file["sha256"], name
    return found


def opened(path):
    """Open a collection and all its versions, check them, and return their contents by number."""
    assert Collection.open(path, verify=True).version == list_versions(Folder(path))[0].version
    found = {}
    for version in list_versions(Folder(path)):
        number = version.version
        rows = Collection.open(path, version=number, verify=True).scan(["thumbnail"]).read_all()
        found[number] = contents(reader(path), version.file_name)
        assert rows["id"].to_pylist() == sorted(found[number])
    return found


def leftovers(path):
    """Return the files that no manifest names, and that nobody may be writing.

    A manifest that did not become live goes when others of its age do, a half-written announcement when it is old.
    """
    named = {".lock/", "CURRENT/", "intents/."}
    for file in path.glob("manifests/[0-9]*"):
        names = parse_manifest(str(file), file.read_bytes()).names
        named |= {f"manifests/{file.name}/", *(f"{name}/" for name in names)}
    files = [str(file.relative_to(path)) + "/" for file in path.rglob("*") if file.is_file()]
    return {file for file in files if not any(file.startswith(name) for name in named)}


def states(path, name, tmp_path, monkeypatch, samples):
    """Run an operation on a simulated disk; return the states it may leave, and those after it has returned."""
    root = tmp_path / "disk"
    root.mkdir()
    shutil.copytree(path, root / "c")
    disk = Disk(root)
    trees = {}

    def note(_step):
        for tree in disk.after_power_loss(samples=samples):
            trees.setdefault(tuple(tree.items()), tree)

    with monkeypatch.context() as patch:
        disk.watch(patch, note)
        OPERATIONS[name](root / "c")
    return root / "c", list(trees.values()), list(disk.after_power_loss(samples=samples))


def check_power_loss(start, name, tmp_path, monkeypatch, *, samples, opened_every):
    before = described(reader(start))
    path, during, afterwards = states(start, name, tmp_path, monkeypatch, samples)
    after = described(reader(path))
    found = [checked(tree) for tree in during]
    assert all(state in (before, after) for state in found)
    assert before in found
    assert after in found
    assert len(during) > 5
    # After the operation has returned, no failure takes it back.
    assert all(checked(tree) == after for tree in afterwards)
    for number, tree in enumerate(during[::opened_every]):
        copy = tmp_path / f"{number}"
        restore(tree, copy)
        assert opened(copy / "c") == checked(tree)[0]
        Collection.open(copy / "c").tag("next")
        assert leftovers(copy / "c") == set()
        shutil.rmtree(copy)
    return len(during)


@pytest.mark.parametrize("name", ["delete", "several", "prune", "compact"])
def test_power_may_fail_at_any_step(start, name, tmp_path, monkeypatch):
    check_power_loss(start, name, tmp_path, monkeypatch, samples=2, opened_every=40)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_power_may_fail_at_any_step_and_lose_any_entries(start, name, tmp_path, monkeypatch):
    check_power_loss(start, name, tmp_path, monkeypatch, samples=16, opened_every=5)
