"""Reading what is stored of many rows: all of them by their ids, and how often each value of an attribute occurs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashlight.engine.codes import IdArray, as_integer
from hashlight.engine.filters.kinds import is_list, is_text, kind_of
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.ids import MAX_ID, spread_ids
from hashlight.engine.indexes.histogram import Countable
from hashlight.engine.indexes.masks import RowMask
from hashlight.engine.indexes.stopping import current
from hashlight.engine.storage.columns import code_column
from hashlight.engine.storage.shard import Shard

# Ids read at a time, of all shards and of one.
_READ_IDS, _READ_IDS_OF_ONE = 2**20, 2**16
_COUNTED_VALUES = 2**20  # gathered before they are counted
_SAMPLED_AT_ONCE = 2**16  # ids looked at, which stay in the L2 cache

FindMask = Callable[[], RowMask | None]

# Ids (M,), ascending, and for each the number of its shard and its row there.
_Places = tuple[IdArray, NDArray[np.int64], NDArray[np.int64]]


def check_batch_rows(batch_rows: object) -> int:
    """Return `batch_rows` if it is a whole number of at least 1.

    Raises
    ------
    TypeError, ValueError
        If it is not.
    """
    value = as_integer(batch_rows, "batch_rows")
    if value < 1:
        raise ValueError(f"`batch_rows` must be at least 1, got {value}")
    return value


def by_shard(shard_M: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield the number of each shard, and which of the ids that were located are there; -1 is no shard."""
    order_M = np.argsort(shard_M, kind="stable")
    for here_H in np.split(order_M, np.flatnonzero(np.diff(shard_M[order_M])) + 1):
        if len(here_H) and shard_M[here_H[0]] >= 0:
            yield int(shard_M[here_H[0]]), here_H


def sample_ids(parts: Iterable[Countable], count: int) -> IdArray:
    """Return up to `count` ids of rows that may answer: those of the lowest `spread_ids`, in that order.

    All ids are read once. It ends early, with an error, when what it is computed for is stopped.
    """
    ids_M, spread_M = np.empty(0, np.int64), np.empty(0, np.uint64)
    for ids_N, mask in ((part.ids, part.mask) for part in parts):
        for begin in range(0, len(ids_N), _SAMPLED_AT_ONCE):
            current().check()
            some_N = ids_N[begin : begin + _SAMPLED_AT_ONCE]
            spread_N = spread_ids(some_N)
            row_R = np.flatnonzero(spread_N < spread_M[-1]) if len(spread_M) == count else np.arange(len(some_N))
            if mask is not None:
                row_R = row_R[mask.allows(begin + row_R)]
            ids_M, spread_M = np.append(ids_M, some_N[row_R]), np.append(spread_M, spread_N[row_R])
            lowest = np.argsort(spread_M)[:count]
            ids_M, spread_M = ids_M[lowest], spread_M[lowest]
    return ids_M


def take_items(
    shards: Sequence[Shard], shard_M: NDArray[np.int64], row_M: NDArray[np.int64], ids_M: IdArray, schema: pa.Schema
) -> pa.Table:
    """Return items that were located, in that order, with the columns of `schema`: `id`, `code` and all attributes."""
    codes_MW = np.empty((len(ids_M), schema.field("code").type.byte_width // 8), np.uint64)
    tables, place_M, offset = [], np.empty(len(ids_M), np.int64), 0
    for number, here_H in by_shard(shard_M):
        shard = shards[number]
        codes_MW[here_H] = shard.codes_NW[row_M[here_H]]
        tables.append(shard.attributes.take(row_M[here_H]))
        place_M[here_H] = offset + np.arange(len(here_H))
        offset += len(here_H)
    if not tables:
        return schema.empty_table()
    attributes = pa.concat_tables(tables).take(pa.array(place_M))
    return pa.table([pa.array(ids_M), code_column(codes_MW), *attributes.columns], schema=schema)


def scan_by_id(
    shards: Sequence[Shard],
    columns: Sequence[str] | None,
    find_masks: Sequence[FindMask],
    *,
    batch_rows: int,
    after: int | None,
) -> Iterator[pa.RecordBatch]:
    """Yield what is stored of the rows that may answer, in ascending order of their ids.

    Parameters
    ----------
    shards : sequence of Shard
    columns : sequence of str, optional
        As in `engine.storage.columns.item_schema`, which has the columns of the batches.
    find_masks : sequence of callable
        Return which rows of each shard may answer; called when its first id is reached.
    batch_rows : int
        Of every batch but the last.
    after : int or None
        Only ids above this one.
    """
    for ids_M, number_M, row_M in _batched(_merged(shards, find_masks, after), batch_rows):
        tables, place_M, offset = [], np.empty(len(ids_M), np.int64), 0
        for number in np.unique(number_M):
            here = np.flatnonzero(number_M == number)
            tables.append(shards[number].take(row_M[here], columns))
            place_M[here] = offset + np.arange(len(here))
            offset += len(here)
        yield from pa.concat_tables(tables).take(pa.array(place_M)).combine_chunks().to_batches()


def _batched(parts: Iterator[_Places], batch_rows: int) -> Iterator[_Places]:
    """Cut consecutive parts into batches of `batch_rows`, and a shorter one at the end."""
    waiting: list[_Places] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part[0])
        if size >= batch_rows:
            joined = tuple(np.concatenate(arrays) for arrays in zip(*waiting, strict=True))
            whole = size - size % batch_rows
            for start in range(0, whole, batch_rows):
                yield _slice(joined, slice(start, start + batch_rows))
            waiting, size = [_slice(joined, slice(whole, size))], size - whole
    if size:
        yield _slice(tuple(np.concatenate(arrays) for arrays in zip(*waiting, strict=True)), slice(None))


def _slice(places: tuple[NDArray[np.int64], ...], part: slice) -> _Places:
    ids_M, number_M, row_M = places
    return ids_M[part], number_M[part], row_M[part]


def _merged(shards: Sequence[Shard], find_masks: Sequence[FindMask], after: int | None) -> Iterator[_Places]:
    """Yield the places of all rows that may answer, some at a time, in ascending order of their ids."""
    at_once = min(max(1024, _READ_IDS // max(1, len(shards))), _READ_IDS_OF_ONE)
    open_S = [
        _ByIds(number, shard, find_mask, after, at_once)
        for number, (shard, find_mask) in enumerate(zip(shards, find_masks, strict=True))
    ]
    while open_S := [one for one in open_S if one.lowest is not None]:
        bound, reading = MAX_ID, []
        for one in sorted(open_S, key=lambda one: one.lowest or 0):
            if one.lowest is not None and one.lowest > bound:
                break
            bound = min(bound, one.read())
            reading.append(one)
        ids_M, number_M, row_M = (
            np.concatenate(arrays) for arrays in zip(*(one.take(bound) for one in reading), strict=True)
        )
        order_M = np.argsort(ids_M)
        yield ids_M[order_M], number_M[order_M], row_M[order_M]


class _ByIds:
    """The rows of one shard, read in ascending order of their ids.

    Attributes
    ----------
    lowest : int or None
        The lowest id that was not taken yet, be its row deleted or not; None if all were taken.
    """

    def __init__(self, number: int, shard: Shard, find_mask: FindMask, after: int | None, at_once: int) -> None:
        self._number, self._shard, self._find_mask, self._at_once = number, shard, find_mask, at_once
        self._mask: RowMask | None = None
        self._is_masked = False
        self._row_B: NDArray[np.uint32] = np.empty(0, np.uint32)  # read, but not taken yet, with their ids
        self._ids_B: IdArray = np.empty(0, np.int64)
        self._next = 0 if after is None else shard.count_up_to(after)  # place of the next row to read
        self.lowest = self._find_lowest()

    def _find_lowest(self) -> int | None:
        if len(self._ids_B):
            return int(self._ids_B[0])
        if self._next >= self._shard.rows:
            return None
        return int(self._shard.ids_N[self._shard.rows_by_id(slice(self._next, self._next + 1))[0]])

    def read(self) -> int:
        """Read some rows unless there are some that were not taken; return the highest of their ids."""
        if not len(self._ids_B):
            self._row_B = self._shard.rows_by_id(slice(self._next, self._next + self._at_once))
            self._ids_B = self._shard.ids_N[self._row_B]
            self._next += len(self._row_B)
        return int(self._ids_B[-1])

    def take(self, bound: int) -> _Places:
        """Take the rows read whose ids are at most `bound`; return the places of those that may answer."""
        if not self._is_masked:
            self._mask, self._is_masked = self._find_mask(), True
        count = int(np.searchsorted(self._ids_B, bound, side="right"))
        ids_M, row_M = self._ids_B[:count], self._row_B[:count]
        self._ids_B, self._row_B = self._ids_B[count:], self._row_B[count:]
        self.lowest = self._find_lowest()
        if self._mask is not None:
            may_M = self._mask.allows(row_M)
            ids_M, row_M = ids_M[may_M], row_M[may_M]
        return ids_M, np.full(len(ids_M), self._number), row_M.astype(np.int64)


def count_values(
    matching: Iterable[tuple[Shard, str | None]],
    field: pa.Field,
    parameters: Parameters | None,
    *,
    limit: int | None,
) -> pa.Table:
    """Count how often each value of an attribute occurs in the rows alive that satisfy a filter.

    Parameters
    ----------
    matching : iterable of (Shard, str or None)
        Shards, with the filter that their rows have to satisfy.
    field : pyarrow.Field
    parameters : Parameters or None
        Of the filters.
    limit : int or None

    Returns
    -------
    pyarrow.Table
        `value` and `count` (int64) of the `limit` most frequent values (None: of all), the most frequent first, and
        the lowest of equally frequent ones first; null comes after all other values.

    Raises
    ------
    ValueError
        If values of this type have no order.
    """
    kind = field.type.value_type if is_list(field.type) else field.type
    if kind_of(kind) is None:
        raise ValueError(
            f"`{field.name}` is {field.type}, whose values have no order: count an attribute of text, numbers, times, "
            "true and false, or lists of them"
        )
    counted = _Counts(kind)
    for shard, filter in matching:
        mask, start = shard.mask_of(filter, parameters), 0
        for batch in shard.attributes.rows([field.name], 0, shard.rows):
            column = batch.column(0)
            part = None if mask is None else mask.allows(np.arange(start, start + len(column)))
            if part is None or part.any():
                counted.add(column if part is None else column.filter(pa.array(part)))
            start += len(column)
    return counted.table(limit)


def merge_counts(tables: Sequence[pa.Table], *, limit: int | None) -> pa.Table:
    """Return the counts of all values in several tables of `count_values`, which must be whole, as it would itself."""
    counted = _Counts(tables[0]["value"].type)
    for table in tables:
        counted.add_counted(table["value"].combine_chunks(), table["count"].to_numpy())
    return counted.table(limit)


class _Counts:
    """How often each value has occurred: gathered, and counted when there are many."""

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        self._waiting: list[pa.Array] = []
        self._num_waiting = 0
        self._nulls = 0
        self._values: pa.Array = pa.array([], _countable(kind))
        self._counts_V: NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, column: pa.Array) -> None:
        """Count the values of a column; of a list, each value that it holds once."""
        self._nulls += column.null_count
        values = column.drop_null()
        if is_list(column.type):
            values = _distinct_in_lists(values)
        self._waiting.append(_as_countable(values))
        self._num_waiting += len(values)
        if self._num_waiting >= _COUNTED_VALUES:
            self._count()

    def add_counted(self, values: pa.Array, counts_V: NDArray[np.int64]) -> None:
        """Add values that were counted elsewhere."""
        is_null_V = np.asarray(values.is_null())
        self._nulls += int(counts_V[is_null_V].sum())
        known = _as_countable(values.filter(pa.array(~is_null_V)))
        self._combine(pa.concat_arrays([self._values, known]), np.concatenate([self._counts_V, counts_V[~is_null_V]]))

    def table(self, limit: int | None) -> pa.Table:
        """Return the values and their counts; see `count_values`."""
        self._count()
        by_value = pc.array_sort_indices(self._values).to_numpy()
        values, counts_V = self._values.take(pa.array(by_value)), self._counts_V[by_value]
        if self._nulls:
            values = pa.concat_arrays([values, pa.nulls(1, values.type)])
            counts_V = np.append(counts_V, self._nulls)
        order = np.argsort(-counts_V, kind="stable")[:limit]
        found = values.take(pa.array(order)).cast(self._kind)
        return pa.table({"value": found, "count": pa.array(counts_V[order])})

    def _count(self) -> None:
        if not self._waiting:
            return
        values = pa.concat_arrays([self._values, *self._waiting])
        self._combine(values, np.concatenate([self._counts_V, np.ones(self._num_waiting, np.int64)]))
        self._waiting, self._num_waiting = [], 0

    def _combine(self, values: pa.Array, weights_H: NDArray[np.int64]) -> None:
        """Hold these values, each once, with the sums of their weights."""
        encoded = values.dictionary_encode()
        counts_V = np.zeros(len(encoded.dictionary), np.int64)
        np.add.at(counts_V, encoded.indices.to_numpy(), weights_H)
        self._values, self._counts_V = encoded.dictionary, counts_V


def _distinct_in_lists(lists: pa.Array) -> pa.Array:
    """Return the values in some lists, each once for every list that holds it, without nulls."""
    values = pc.list_flatten(lists)
    parents_H = pc.list_parent_indices(lists).to_numpy()
    encoded = _as_countable(values).dictionary_encode()
    valid_H = np.asarray(encoded.indices.is_valid())
    place_H = np.flatnonzero(valid_H)
    code_H = encoded.indices.filter(pa.array(valid_H)).to_numpy().astype(np.int64)
    pairs_H = parents_H[place_H].astype(np.int64) * max(1, len(encoded.dictionary)) + code_H
    return values.take(pa.array(place_H[np.unique(pairs_H, return_index=True)[1]]))


def _countable(kind: pa.DataType) -> pa.DataType:
    """Return the type in which Arrow counts and sorts values of a type: it does so for few of them.

    Of text, the distinct values of many shards may be longer than the 2 GiB that `string` can address.
    """
    if is_text(kind):
        return pa.large_string()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_decimal(kind):
        return pa.decimal256(76, max(kind.scale, 0))
    return kind


def _as_countable(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        # Equal numbers are one value: 0.0 and -0.0, and whatever is not a number.
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False) + 0.0
        numbers[np.isnan(numbers)] = np.nan
        return pa.array(numbers, mask=np.asarray(values.is_null()))
    return values.cast(_countable(values.type))
