"""What a filter can come to in each shard of a version, told from the manifest: shards it cannot match stay closed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.collection.opening import shown_schema
from hashlight.engine.filters.cache import FilterCache
from hashlight.engine.filters.filter import Filter
from hashlight.engine.filters.outcomes import ANY
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.scalars import outcomes_in_shards

OutcomesOf = Callable[[str, Parameters | None], NDArray[np.uint8]]

_known: FilterCache[NDArray[np.uint8]] = FilterCache(16 * 2**20)
_numbers = itertools.count()


class Outcomes:
    """What filters can come to in the shards of a version. Thread-safe.

    Parameters
    ----------
    manifest : Manifest
    where : Path
        The collection's folder, for messages.
    """

    def __init__(self, manifest: Manifest, *, where: Path) -> None:
        self._where = where
        self._specs = manifest.shards
        # A manifest of format 1 has no statistics.
        self._schema = shown_schema(manifest)
        self._number = next(_numbers)

    def of(self, filter: str, parameters: Parameters | None) -> NDArray[np.uint8]:
        """Return the outcome set of a filter in the rows of each shard (S,); see `engine.filters.outcomes`.

        Raises
        ------
        CorruptDataError
            If statistics are not values of their attribute.
        FilterError
            If the filter is not a condition on the attributes and parameters.
        """
        key = self._number, filter, None if parameters is None else parameters.digest
        return _known.get(key, functools.partial(self._find, filter, parameters))

    def _find(self, filter: str, parameters: Parameters | None) -> NDArray[np.uint8]:
        if self._schema is None:
            return np.full(len(self._specs), ANY, np.uint8)
        parsed = Filter(filter, self._schema, parameters)
        return outcomes_in_shards(parsed, self._specs, self._schema, where=self._where)
