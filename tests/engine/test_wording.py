"""A number in a message agrees with its noun."""

from __future__ import annotations

import pytest

from hashlight.engine.wording import counted


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "shard", "0 shards"),
        (1, "shard", "1 shard"),
        (2, "shard", "2 shards"),
        (1, "query", "1 query"),
        (1_234_567, "query", "1,234,567 queries"),
    ],
)
def test_a_number_agrees_with_its_noun(count, noun, text):
    assert counted(count, noun) == text
