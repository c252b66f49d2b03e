"""The shards of a version as they are searched: small ones gathered in memory, others one by one."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray, num_words
from hashlight.engine.collection.gathered import Gathered, gather, plan_groups
from hashlight.engine.collection.opening import OpenedShards
from hashlight.engine.collection.outcomes import Outcomes, OutcomesOf
from hashlight.engine.collection.shard_set import CountableShard
from hashlight.engine.errors import IdNotFoundError
from hashlight.engine.filters.cache import FilterCache
from hashlight.engine.filters.outcomes import TRUE
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.indexes.histogram import Countable
from hashlight.engine.indexes.masks import RowMask
from hashlight.engine.places.arrays import map_array
from hashlight.engine.query import Query
from hashlight.engine.results import Result
from hashlight.engine.storage.faiss_file import map_faiss_flat
from hashlight.engine.storage.manifest import Manifest

# A call of a shard costs some 50 microseconds: a few small shards are searched one by one, from their files.
FEW_SHARDS = 8
SMALL_ROWS = 65_536
# In all, smallest shards first: codes, ids, places, and tables.
MAX_GATHERED_BYTES = 2**29

_PLANS: dict[IndexChoice, str] = {"auto": "auto", "scan": "scan", "multi": "tables"}
_GONE = "gone"

_masks: FilterCache[RowMask] = FilterCache(128 * 2**20)
_numbers = itertools.count()


class GatheredPart:
    """Gathered rows as one version sees them. Thread-safe.

    Parameters
    ----------
    gathered : Gathered
    number_of : dict of str to int
        By name, each shard's number in the version.
    manifest : Manifest
        Of the version.
    shards : OpenedShards
        They know their deleted rows and their attributes.
    outcomes : callable
        `Outcomes.of` of the version.
    before : GatheredPart, optional
        The same rows as another version sees them: only shards that differ are looked at.
    """

    def __init__(
        self,
        gathered: Gathered,
        number_of: dict[str, int],
        manifest: Manifest,
        shards: OpenedShards,
        outcomes: OutcomesOf,
        *,
        before: GatheredPart | None = None,
    ) -> None:
        self.gathered = gathered
        self._shards, self._outcomes = shards, outcomes
        self._number_S = np.array([number_of.get(member.name, -1) for member in gathered.members], np.int64)
        specs = [manifest.shards[number] if number >= 0 else None for number in self._number_S.tolist()]
        self._states = [_GONE if spec is None else spec.dead.name if spec.dead else "" for spec in specs]
        self._alive_N = self._find_alive(before)
        self._alive = None if self._alive_N is None else RowMask.of(self._alive_N)
        # Whatever decides which rows a filter selects.
        columns = [{name: file.name for name, file in spec.columns.items()} if spec else {} for spec in specs]
        self._facts = self._states, columns, str(manifest.schema)
        same = before is not None and before._facts == self._facts
        self._key: int = before._key if before is not None and same else next(_numbers)

    def _find_alive(self, before: GatheredPart | None) -> NDArray[np.bool_] | None:
        """Return which rows are alive, in the index's order; None if all are."""
        states = before._states if before is not None else [""] * len(self._states)
        changed = [number for number, state in enumerate(self._states) if state != states[number]]
        alive_N = None if before is None else before._alive_N
        if not changed:
            return alive_N
        alive_N = np.ones(len(self.gathered), np.bool_) if alive_N is None else alive_N.copy()
        self._shards.open(int(self._number_S[number]) for number in changed if self._states[number] not in ("", _GONE))
        for number in changed:
            place_R, state = self.gathered.place_N[self.gathered.members[number].span], self._states[number]
            mask = self._shards[int(self._number_S[number])].mask_of(None) if state not in ("", _GONE) else None
            alive_N[place_R] = state != _GONE if mask is None else mask.bools()
        alive_N.setflags(write=False)
        return None if alive_N.all() else alive_N

    def __len__(self) -> int:
        """Return the number of rows alive."""
        return len(self.gathered) if self._alive is None else self._alive.count

    def answer(self, queries_QW: CodeArray, query: Query, *, farthest_Q: NDArray[np.int32] | None = None) -> Result:
        """See `engine.storage.shard.Shard.answer`."""
        mask = self._mask_of(query.filter, query.parameters)
        return self.gathered.index.answer_checked(queries_QW, query, mask=mask, farthest_Q=farthest_Q)

    def countable(self, query: Query) -> Countable:
        """See `engine.storage.shard.Shard.countable`."""
        return self.gathered.countable(self._mask_of(query.filter, query.parameters))

    def outcome(self, outcomes_S: NDArray[np.uint8]) -> int:
        """Return what a filter can come to in its shards together, of what it can in each shard of the version."""
        return int(np.bitwise_or.reduce(outcomes_S[self._number_S[self._number_S >= 0]], initial=0))

    def locate(self, ids_M: IdArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shard of each id, by its number in the version, and the row there; -1 for ids not found."""
        found_M = self.gathered.find(ids_M, self._alive_N)
        member_M, row_M = self.gathered.split(found_M)
        return np.where(found_M >= 0, self._number_S[member_M], -1), np.where(found_M >= 0, row_M, -1)

    def _mask_of(self, filter: str | None, parameters: Parameters | None) -> RowMask | None:
        if filter is None:
            return self._alive
        key = self._key, filter, None if parameters is None else parameters.digest
        return _masks.get(key, functools.partial(self._find_mask, filter, parameters))

    def _find_mask(self, filter: str, parameters: Parameters | None) -> RowMask:
        # Not in the pool's threads: they may be waiting for this mask.
        mask_N = np.zeros(len(self.gathered), np.bool_)
        outcomes_S = self._outcomes(filter, parameters)
        for member, number in zip(self.gathered.members, self._number_S.tolist(), strict=True):
            if number >= 0 and outcomes_S[number] & TRUE:
                place_R = self.gathered.place_N[member.span]
                if outcomes_S[number] == TRUE:
                    mask_N[place_R] = True if self._alive_N is None else self._alive_N[place_R]
                else:
                    mask_R = self._shards[number].mask_of(filter, parameters)
                    mask_N[place_R] = True if mask_R is None else mask_R.bools()
        return RowMask.of(mask_N)


class _Unfiltered:
    """A part all of whose rows satisfy the filter of a query: it need not be evaluated."""

    def __init__(self, part: CountableShard) -> None:
        self._part = part

    def __len__(self) -> int:
        return len(self._part)

    def answer(self, queries_QW: CodeArray, query: Query, *, farthest_Q: NDArray[np.int32] | None = None) -> Result:
        return self._part.answer(queries_QW, _without_filter(query), farthest_Q=farthest_Q)

    def countable(self, query: Query) -> Countable:
        return self._part.countable(_without_filter(query))


def _without_filter(query: Query) -> Query:
    return query._replace(filter=None, parameters=None)


class Parts:
    """What a search of one version asks: gathered shards first, then each of the others. Thread-safe.

    Nothing is opened or gathered before it is first needed.

    Parameters
    ----------
    folder : Path
        Of the collection.
    manifest : Manifest
    shards : OpenedShards
        Of the manifest.
    index : IndexChoice
        With one of FAISS's, nothing is gathered.
    reuse : Parts, optional
        Of another version: what it has gathered is used again.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, shards: OpenedShards, *, index: IndexChoice, reuse: Parts | None = None
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._shards = shards
        self._index: IndexChoice = index
        # What that version has gathered, and not the version, which would keep all before it.
        self._known: tuple[GatheredPart, ...] = ()
        if reuse is not None and (reuse._folder, reuse._index) == (folder, index):
            self._known = reuse._known if reuse._gathered is None else reuse._gathered
        self._small = _small_shards(manifest) if index in _PLANS else []
        small = set(self._small)
        self._single = [number for number in range(len(manifest.shards)) if number not in small]
        self._gathered: tuple[GatheredPart, ...] | None = None if self._small else ()
        self._outcomes = Outcomes(manifest, where=folder)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self.gathered) + len(self._single)

    def asked(self, query: Query) -> list[CountableShard]:
        """Return the parts in which a query may have answers, opened; others stay closed.

        Raises
        ------
        CorruptDataError
            If a file is missing or damaged.
        FilterError
            If the filter is not a condition on the attributes and parameters.
        """
        if query.filter is None:
            return [*self.gathered, *self._shards.open(self._single)]
        outcomes_S = self._outcomes.of(query.filter, query.parameters)
        parts: list[tuple[CountableShard, int]] = [(part, part.outcome(outcomes_S)) for part in self.gathered]
        single = [number for number in self._single if outcomes_S[number] & TRUE]
        parts += zip(self._shards.open(single), outcomes_S[single].tolist(), strict=True)
        return [_Unfiltered(part) if outcome == TRUE else part for part, outcome in parts if outcome & TRUE]

    def matching(self, filter: str | None, parameters: Parameters | None) -> Iterator[tuple[int, str | None]]:
        """Yield the numbers of the shards in which rows may satisfy a filter, with None where all of them do.

        Errors as in `asked`.
        """
        if filter is None:
            yield from ((number, None) for number in range(len(self._shards)))
            return
        for number, outcome in enumerate(self._outcomes.of(filter, parameters).tolist()):
            if outcome & TRUE:
                yield number, None if outcome == TRUE else filter

    @property
    def gathered(self) -> tuple[GatheredPart, ...]:
        """Shards that were gathered.

        Raises
        ------
        CorruptDataError
            If a file is missing or damaged.
        """
        if self._gathered is None:
            with self._lock:
                if self._gathered is None:
                    self._gathered, self._known = self._gather(), ()
        return self._gathered

    def locate(self, ids_M: IdArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shard of each id, by its number in the manifest, and the row there; -1 for ids not found."""
        shard_M, row_M = np.full(len(ids_M), -1), np.full(len(ids_M), -1)
        for part in self.gathered:
            left = np.flatnonzero(shard_M < 0)
            shard_M[left], row_M[left] = part.locate(ids_M[left])
        for number in self._single:
            low, high = self._manifest.shards[number].ids or (0, np.iinfo(np.int64).max)
            left = np.flatnonzero((shard_M < 0) & (ids_M >= low) & (ids_M <= high))
            if len(left):
                row_M[left] = self._shards[number].rows_of(ids_M[left])
                shard_M[left] = np.where(row_M[left] >= 0, number, -1)
        return shard_M, row_M

    def locate_all(self, ids_M: IdArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return shards and rows as `locate` does.

        Raises
        ------
        IdNotFoundError
            If one of the ids is not found.
        """
        shard_M, row_M = self.locate(ids_M)
        if (shard_M < 0).any():
            raise IdNotFoundError.of(ids_M[shard_M < 0].tolist(), wanted=len(ids_M))
        return shard_M, row_M

    def _gather(self) -> tuple[GatheredPart, ...]:
        specs = self._manifest.shards
        number_of = {specs[number].name: number for number in self._small}
        before = {part.gathered: part for part in self._known}
        rows = {name: specs[number].rows for name, number in number_of.items()}
        kept, new = plan_groups(rows, list(before))
        known = {member.name: (group, member) for group in before for member in group.members}

        def read(name: str) -> tuple[CodeArray, IdArray]:
            if name in known:
                group, member = known[name]
                return group.rows_of(member)
            return self._read(number_of[name])

        unread = [number_of[name] for names in new for name in names if name not in known]
        with self._shards.at_hand(unread):
            kept += self._gather_groups(new, rows, read)
        return tuple(
            GatheredPart(group, number_of, self._manifest, self._shards, self._outcomes.of, before=before.get(group))
            for group in kept
        )

    def _gather_groups(
        self, new: Sequence[Sequence[str]], rows: dict[str, int], read: Callable[[str], tuple[CodeArray, IdArray]]
    ) -> list[Gathered]:
        tables = {spec.name for spec in self._manifest.shards if spec.has_tables}
        return [
            gather(
                names,
                [rows[name] for name in names],
                read,
                words=num_words(self._manifest.bits),
                bits=self._manifest.bits,
                tables=not tables.isdisjoint(names),
                plan=_PLANS[self._index],
            )
            for names in new
        ]

    def _read(self, number: int) -> tuple[CodeArray, IdArray]:
        if self._shards.is_open(number):
            return self._shards[number].codes_NW, self._shards[number].ids_N
        spec = self._manifest.shards[number]
        folder = self._folder / "shards" / spec.name
        codes_NW = map_faiss_flat(folder / "codes.faiss", bits=self._manifest.bits, rows=spec.rows)
        return codes_NW, map_array(folder / "ids.npy", np.int64, (spec.rows,))


def _small_shards(manifest: Manifest) -> list[int]:
    """Return the numbers of the shards to be gathered, in the manifest's order: not those without files, in memory."""
    small = [number for number, spec in enumerate(manifest.shards) if spec.files and spec.rows <= SMALL_ROWS]
    if len(small) <= FEW_SHARDS:
        return []
    words = num_words(manifest.bits)
    # Codes; two arrays of ids, two of row numbers, a mask; and an entry in each of five tables a word.
    row_bytes = 8 * words + 8 + 8 + 4 + 4 + 1 + 8 * 5 * words
    small.sort(key=lambda number: manifest.shards[number].rows)
    bytes_S = row_bytes * np.cumsum([manifest.shards[number].rows for number in small])
    return sorted(small[: int(np.searchsorted(bytes_S, MAX_GATHERED_BYTES, side="right"))])
