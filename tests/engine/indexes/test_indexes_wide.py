"""Answers with thousands of codes are sorted too."""

from __future__ import annotations

import numpy as np
import pytest

from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.scan import ScanIndex
from tests import oracles


@pytest.mark.parametrize("kind", [ScanIndex, MultiIndex])
@pytest.mark.parametrize("least_id", [0, 2**52 - 1000, 2**62])
@pytest.mark.parametrize(("bits", "radius"), [(64, 0), (64, 20), (64, 64), (1024, 1024)])
def test_wide_answers_are_in_order(kind, least_id, bits, radius):
    rng = np.random.default_rng(bits + radius)
    codes = oracles.clustered_codes(rng, 2500, bits, centres=3, flips=4)
    codes[:1200] = codes[0]
    ids = least_id + rng.permutation(2500).astype(np.int64)
    queries = np.concatenate([codes[:1], codes[:1], ~codes[:1], codes[2000:2001]])
    result = kind.build(codes, ids, bits=bits).range_search(queries, radius)
    expected, _ = oracles.within_radius(queries, codes, ids, radius)
    pairs = list(zip(result.distances.tolist(), result.ids.tolist(), strict=True))
    assert pairs == [pair for answers in expected for pair in answers]
    assert result.lims.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    assert len(pairs) > 250 * len(queries)
