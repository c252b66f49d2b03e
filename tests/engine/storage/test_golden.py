"""Collections that each format's release wrote, once: this release reads them all, and finds every row as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.ipc
import pytest

from hashlight.engine.collection.collection import Collection

DATA = Path(__file__).parents[2] / "data"
GOLDEN = sorted(path.parent for path in DATA.glob("format*/*/expected.json"))


def expected_rows(golden, version):
    """The rows of one version, in the columns that it has."""
    said = json.loads((golden / "expected.json").read_text())
    table = pyarrow.ipc.open_file(str(golden / "expected.arrow")).read_all()
    rows = table.filter(pc.equal(table["version"], version)).drop_columns(["version"])
    names = said.get("attributes", {}).get(str(version))
    if names is None:
        return rows
    return rows.select(["id", "code", *(f"attribute {name}" for name in names)])


def test_every_format_has_its_collections():
    assert {golden.parent.name for golden in GOLDEN} >= {"format1"}
    assert len(GOLDEN) >= 4


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden.parent.name}-{golden.name}")
def test_the_live_version_of_a_golden_collection_is_read_whole(golden, tmp_path):
    said = json.loads((golden / "expected.json").read_text())
    shutil.copytree(golden / "collection", tmp_path / "c")
    opened = Collection.open(tmp_path / "c", verify=True)
    live = max(map(int, said["versions"]))
    assert (opened.version, opened.bits, opened.fingerprint) == (live, said["bits"], said["encoder"])
    assert len(opened.shards) == said["versions"][str(live)]["shards"]
    rows = expected_rows(golden, live)
    ids = rows["id"].to_numpy()
    assert len(opened) == len(ids)
    found = opened.get(ids)
    assert found["code"].combine_chunks() == rows["code"].combine_chunks()
    names = [name.removeprefix("attribute ") for name in rows.column_names if name.startswith("attribute ")]
    assert found.column_names == ["id", "code", *names]
    for name in names:
        assert found[name].combine_chunks() == rows[f"attribute {name}"].combine_chunks(), name
    if "features" in rows.column_names:
        assert opened.features_of(ids).tolist() == rows["features"].to_pylist()
        assert opened.thumbnails_of(ids) == rows["thumbnail"].to_pylist()
    codes = np.frombuffer(b"".join(rows["code"].to_pylist()), "<u8").reshape(len(ids), -1)
    assert opened.search(codes[:3], 1).distances.ravel().tolist() == [0, 0, 0]
    for name, data in said.get("encoder_files", {}).items():
        assert (opened.encoder_path / name).read_bytes().hex() == data
