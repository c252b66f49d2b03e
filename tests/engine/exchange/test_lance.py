"""Lance stores what a collection hands out, and hands it back; it is tried where LanceDB is installed."""

from __future__ import annotations

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from tests.engine.exchange.test_round_trips import assert_equal, codes_of

pytestmark = pytest.mark.slow


def test_a_table_of_lance_has_the_codes_and_gives_them_back(tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="LanceDB is not installed")
    attributes = {"label": list(range(50)), "name": [None if n % 3 else f"{n}" for n in range(50)]}
    features = np.arange(100, dtype=np.float16).reshape(50, 2)
    made = Collection.create(
        tmp_path / "a", codes_of(100, 50), bits=100, attributes=attributes, features=features, tables=False
    )
    table = lancedb.connect(tmp_path / "lance").create_table("codes", made.to_arrow(batch_rows=7))
    stored = lancedb.connect(tmp_path / "lance").open_table("codes").to_arrow()
    assert table.count_rows() == 50
    assert stored.schema.field("code").type.byte_width == 16
    back = Collection.from_arrow(stored, tmp_path / "b", bits=100, features_column="features", tables=False)
    assert_equal(back.to_arrow().read_all(), made.to_arrow().read_all())
