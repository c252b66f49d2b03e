"""A filter on batches in memory."""

from __future__ import annotations

import numpy as np

from hashlight.engine.filters.filter import Filter


def matching(text, batches, parameters=None):
    """Return whether each row of all batches matches (N,)."""
    parsed = Filter(text, batches[0].schema, parameters)
    outcomes = [parsed.outcome(batch).fill_null(False).to_numpy(zero_copy_only=False) for batch in batches]
    return np.concatenate(outcomes).astype(np.bool_)
