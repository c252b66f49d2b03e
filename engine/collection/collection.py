"""A collection: a versioned set of shards in a folder, opened in this process."""

from __future__ import annotations

import dataclasses
import functools
import uuid
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast, overload

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from hashlight.engine.cache.cache import Progress
from hashlight.engine.codes import (
    WORD_BITS,
    CodeArray,
    IdArray,
    as_integer,
    check_bits,
    check_codes,
    check_limit,
    num_words,
)
from hashlight.engine.collection.interchange import Interchange
from hashlight.engine.collection.opening import OpenedShards, open_shards, shown_schema
from hashlight.engine.collection.parts import Parts
from hashlight.engine.collection.rerank import (
    ASYMMETRIC,
    Rerank,
    as_rerank,
    check_query_features,
    find_pools,
    join_reranked,
    one_of,
    pool_query,
    rerank_ids,
)
from hashlight.engine.collection.rows import (
    by_shard,
    check_batch_rows,
    count_values,
    sample_ids,
    scan_by_id,
    take_items,
)
from hashlight.engine.collection.shard_set import ShardSet
from hashlight.engine.collection.verifying.repair import repair as repair_collection
from hashlight.engine.collection.verifying.report import Report
from hashlight.engine.collection.verifying.verify import verify as verify_collection
from hashlight.engine.collection.writes import Writes
from hashlight.engine.collection.writing.given import some_ids
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CollectionNotFoundError
from hashlight.engine.features import FeatureKind, FeaturesLike, FeatureValues, value_type
from hashlight.engine.filters.filter import Filter
from hashlight.engine.filters.parameters import Parameters, check_named
from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.indexes.histogram import count_by_distance
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import Place
from hashlight.engine.query import Query, check_threads
from hashlight.engine.results import Coverage, RangeResult, RerankResult, Result, SearchResult
from hashlight.engine.storage.columns import item_schema
from hashlight.engine.storage.copies import root_of
from hashlight.engine.storage.manifest import DeadRows, Manifest
from hashlight.engine.storage.shard import SCANNED_ROWS, Shard
from hashlight.engine.storage.versions import close_held, read_current, read_held


class Collection(Interchange, Writes):
    """Codes on disk that answer exact Hamming queries.

    A collection stays at the version it was opened at, whatever other processes write: writers keep what it needs for
    as long as it exists. Thread-safe.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> codes = np.array([[0b0000], [0b0001], [0b0111]], np.uint64)
    >>> folder = tempfile.mkdtemp()
    >>> collection = Collection.create(folder + "/c", codes, ids=np.array([7, 8, 9]), bits=16)
    >>> collection.search(codes[:1], k=2).ids.tolist()
    [[7, 8]]
    >>> collection.range_search(codes[:1], radius=3).ids.tolist()
    [7, 8, 9]
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        shards: OpenedShards,
        *,
        location: str | None = None,
        index: IndexChoice = "auto",
        held: int | None = None,
        reuse: Collection | None = None,
    ) -> None:
        self.path = path
        self.location = location or str(path)
        self.index: IndexChoice = index
        self._manifest = manifest
        self._shards = shards
        self._parts: Parts = Parts(path, manifest, shards, index=index, reuse=None if reuse is None else reuse._parts)
        codes, count = manifest.rows, len(shards)
        # Of its answers: all shards are here.
        self.coverage = Coverage(shards=count, answered=count, codes=codes, searched=codes, version=manifest.version)
        self._shard_set = ShardSet(self._parts.asked, self.coverage)
        self._under: Collection | None = None
        weakref.finalize(self, close_held, held)

    @classmethod
    def create(
        cls,
        path: str | Path,
        codes: CodeArray,
        *,
        ids: IdArray | None = None,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        bits: int | None = None,
        features: FeaturesLike | None = None,
        shards: int = 1,
        encoder: str | Path | None = None,
        fingerprint: str | None = None,
        tables: bool = True,
        overwrite: bool = False,
    ) -> Self:
        """Write a new collection and open it.

        Parameters
        ----------
        path : str or Path
            An unused folder or URI or, with `overwrite`, an existing collection.
        codes : ndarray of uint64, shape (N, W)
            `W = ceil(bits / 64)`. Without any (N = 0), `attributes` and `features` without rows still say what the
            collection stores beside codes.
        ids : ndarray of int64, shape (N,), optional
            Distinct, 0 or more; the row numbers by default.
        attributes : pyarrow.Table or mapping of columns, optional
            N rows, returned with the answers.
        bits : int, optional
            True number of bits in a code; `64 * W` by default.
        features : ndarray of float16 or float32, shape (N, F), or Features, optional
            For re-ranking answers. Arrays are kept as float16, `Features.of(values, "int8")` in half of the space.
        shards : int
            Number of shards, 1 to N.
        encoder : str or Path, optional
            Folder of the encoder that made the codes; a copy is kept in the collection.
        fingerprint : str, optional
            The encoder's fingerprint.
        tables : bool
            Build the multi-index of each shard. Without it every search is a scan, and shards are half the size.
        overwrite : bool
            Replace an existing collection. Readers of the old one keep it until they close it.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid.
        CollectionExistsError
            If `path` exists and `overwrite` is false, or it is not a collection.
        CollectionBusyError
            If another process has written there meanwhile.
        """
        codes, bits = _check_new_codes(codes, bits)
        with Transaction(path, fresh=Fresh(bits, fingerprint, overwrite), tables=tables) as change:
            if encoder is not None:
                files = (file for file in Path(encoder).iterdir() if file.is_file())
                change.add_encoder({file.name: file.read_bytes() for file in files})
            change.add(codes, ids, attributes, features, shards=shards)
            change.commit()
        return cls.open(path)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        version: int | str | None = None,
        verify: bool = False,
        index: IndexChoice = "auto",
        reuse: Collection | None = None,
        prefetch: bool = False,
        progress: Progress | None = None,
    ) -> Self:
        """Open a version of a collection, by default the live one.

        Parameters
        ----------
        path : str or Path
            A folder, or the URI of a collection in a bucket (`s3://BUCKET/PREFIX`). Of the latter only the manifest is
            read now; shards are fetched into the user's cache folder when they are first used. See `engine.cache`.
        version : int or str, optional
            The number of a version, or its tag.
        verify : bool
            Hash every file again, even those already verified on this machine and unchanged since.
        index : {"auto", "multi", "scan", "faiss-flat", "faiss-multi-hash"}
            Who answers; the answers are the same. "auto" plans each query, "multi" asks the tables alone, "scan"
            compares with every code, and the others are FAISS's indexes, filled with a copy of the codes.
        reuse : Collection, optional
            Another open version: what the two have in common is not opened again, unless `verify` or another `index`
            is given.
        prefetch : bool
            Open all shards now, and so fetch those that are not there.
        progress : callable, optional
            Called with the bytes that have been fetched from a bucket and those that are to be, in all so far.

        Raises
        ------
        CollectionNotFoundError
            If there is none at `path`, or it does not have that version. Whatever needs a shard in a bucket raises it,
            too, if the shard is gone because the version is no longer kept.
        CorruptDataError
            If a file is missing or damaged.
        ReadFailedError, OSError
            If a bucket cannot be read, or a copy not be written.
        MissingDependencyError
            If FAISS is to answer and is not installed.
        ValueError
            If tables are to answer and a shard was built without.
        """
        place = open_place(path)
        while True:
            manifest, held = read_held(place, version)
            try:
                return cls._open(place, manifest, held, verify, index, reuse, prefetch, progress)
            except CollectionNotFoundError:
                # Commits since the manifest was read may have removed from a bucket what it names.
                if version is not None or read_current(place).file_name == manifest.file_name:
                    raise

    @classmethod
    def _open(
        cls,
        place: Place,
        manifest: Manifest,
        held: int | None,
        verify: bool,
        index: IndexChoice,
        reuse: Collection | None,
        prefetch: bool,
        progress: Progress | None,
    ) -> Self:
        try:
            folder, copies = root_of(place, bits=manifest.bits, progress=progress)
            known = () if reuse is None else [reuse.shards]
            shards = open_shards(folder, manifest, index=index, held=held, verify=verify, reuse=known, copies=copies)
            if prefetch:
                shards.open(range(len(shards)))
        except BaseException:
            close_held(held)
            raise
        return cls(folder, manifest, shards, location=place.location, index=index, held=held, reuse=reuse)

    @classmethod
    def verify(cls, path: str | Path, *, live_only: bool = False, repair: bool = False) -> Report:
        """Hash and check everything that a collection consists of, and mend what can be mended.

        Parameters
        ----------
        path : str or Path
            As in `open`. Memory holds the ids of one shard at a time.
        live_only : bool
            Verify the live version; by default all that are kept.
        repair : bool
            Make again what can be made from codes, ids and attributes, as new shards of a new version; have CURRENT
            name the newest version that is whole, if it names none; and remove what no version has.

        Returns
        -------
        Report
            Every fault that is left, with what to do about it.

        Raises
        ------
        CollectionNotFoundError
            If there is none at `path`.
        CollectionBusyError, OSError, PlaceError
            If it is to be repaired and cannot be written.
        """
        return (repair_collection if repair else verify_collection)(path, live_only=live_only)

    def overlaid(
        self, added: Shard | None, hidden: IdArray, *, sequence: int, reuse: Collection | None = None
    ) -> Collection:
        """Return this version as it is with other rows in memory: nothing is written.

        Parameters
        ----------
        added : Shard or None
            Of `Shard.in_memory`; its ids are in no other row, or among `hidden`.
        hidden : ndarray of int64, shape (M,)
            Ids of rows that are left out, as far as they are there.
        sequence : int
            Number of the last write that this is the outcome of; see `Coverage.sequence`.
        reuse : Collection, optional
            Another that was made so of this version: what it has gathered is used again.
        """
        shard_M, row_M = self._parts.locate(hidden)
        specs, replaced = list(self._manifest.shards), dict[int, Shard]()
        for number, here_H in by_shard(shard_M):
            spec, rows_H = specs[number], row_M[here_H]
            count = spec.rows - spec.alive + len(np.unique(rows_H))
            specs[number] = dataclasses.replace(spec, dead=DeadRows(f"memory-{uuid.uuid4().hex}", count, 0, ""))
            replaced[number] = self._shards[number].hiding(specs[number], rows_H)
        more = [] if added is None else [added]
        manifest = dataclasses.replace(self._manifest, shards=(*specs, *(shard.spec for shard in more)))
        shards = self._shards.changed(replaced, more)
        found = Collection(self.path, manifest, shards, location=self.location, index=self.index, reuse=reuse or self)
        found._under = self  # keeps the version
        found.coverage = dataclasses.replace(found.coverage, sequence=sequence)
        found._shard_set.coverage = found.coverage
        return found

    @property
    def committed(self) -> Collection:
        """The version without what is on top in memory."""
        return self if self._under is None else self._under

    @property
    def bits(self) -> int:
        """True number of bits in a code."""
        return self._manifest.bits

    @property
    def manifest(self) -> Manifest:
        """The manifest of the open version."""
        return self._manifest

    @property
    def version(self) -> int:
        """The open version."""
        return self._manifest.version

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the encoder that made the codes, if known."""
        return self._manifest.encoder

    @property
    def encoder_path(self) -> Path | None:
        """Folder of the encoder that made the codes, if it was kept; it is fetched from a bucket when it is needed."""
        name, copies = self._manifest.encoder_folder, self._shards.copies
        if name is None:
            return None
        if copies is not None:
            return copies.encoder(name)
        folder = self.path / "encoder" / name
        return folder if folder.is_dir() else None

    @property
    def shards(self) -> OpenedShards:
        """The shards, in the manifest's order, each opened when it is first used."""
        return self._shards

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the attributes."""
        shown = shown_schema(self._manifest)
        if shown is None:
            return self._shards[0].attributes.schema if self._shards else pa.schema([])
        return shown

    @property
    def num_features(self) -> int | None:
        """Dimensions of the fine features; None without features."""
        if self._manifest.format_version > 1:
            return self._manifest.features
        features = self._shards[0].features if self._shards else None
        return None if features is None else features.shape[1]

    @property
    def features_as(self) -> FeatureKind:
        """As what the fine features are kept."""
        return self._manifest.features_as

    @property
    def has_tables(self) -> bool:
        """Whether every shard has tables, which `index="multi"` asks."""
        return all(spec.has_tables for spec in self._manifest.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files of the version, those of deleted rows included, without the encoder's."""
        return self._manifest.num_bytes

    def __len__(self) -> int:
        """Return the number of codes, without deleted ones."""
        return len(self._shard_set)

    def __repr__(self) -> str:
        """Show what an operator asks first."""
        deleted = sum(spec.rows - spec.alive for spec in self._manifest.shards)
        return (
            f"Collection({str(self.path)!r}, version {self.version}: {len(self):,} codes of {self.bits} bits in "
            f"{len(self._shards)} shards, {f'{deleted:,} deleted, ' if deleted else ''}{self.num_bytes / 1e6:,.1f} MB, "
            f"index {self.index})"
        )

    @overload
    def search(
        self,
        queries: CodeArray,
        k: int = 10,
        *,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        rerank: None = None,
        features: None = None,
        projections: None = None,
        threads: int | None = None,
        explain: bool = False,
    ) -> SearchResult: ...

    @overload
    def search(
        self,
        queries: CodeArray,
        k: int = 10,
        *,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        rerank: Rerank | Literal["asymmetric"],
        features: NDArray[np.floating[Any]] | None = None,
        projections: NDArray[np.floating[Any]] | None = None,
        threads: int | None = None,
        explain: bool = False,
    ) -> RerankResult: ...

    def search(
        self,
        queries: CodeArray,
        k: int = 10,
        *,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        rerank: Rerank | Literal["asymmetric"] | None = None,
        features: NDArray[np.floating[Any]] | None = None,
        projections: NDArray[np.floating[Any]] | None = None,
        threads: int | None = None,
        explain: bool = False,
    ) -> SearchResult | RerankResult:
        """Find the k nearest codes of each query, or among the nearest codes the k first in a finer order.

        Parameters
        ----------
        queries : ndarray of uint64, shape (Q, W)
        k : int
            At least 1. If it exceeds the number of codes, rows are padded; beyond 10,000 that is refused.
        filter : str, optional
            Search only rows whose attributes match, such as `'label == 3 and price < 5.5'`; see
            `engine.filters.filter`.
        parameters : mapping of str to sequence of int, optional
            Lists of ids that `filter` names, at most 250,000 numbers in all: `filter="id not in :seen"` with
            `parameters={"seen": ids}`.
        rerank : Rerank or "asymmetric", optional
            Take a pool of codes, by size or within a radius, and order it by fine features or by asymmetric distance;
            the pool is exact by Hamming distance. "asymmetric" stands for `Rerank.asymmetric(k)`, the 10 k nearest
            codes, at least 100.
        features : ndarray of float, shape (Q, F), with `rerank` by features only
            The queries' fine features, from the collection's encoder.
        projections : ndarray of float, shape (Q, B), with asymmetric `rerank` only
            The queries' `projections`, from the collection's encoder.
        threads : int, optional
            Maximum for this call; by default one for each core. All calls of a process share one pool.
        explain : bool
            Report in `explain` how each query was answered: plan, probes, candidates, seconds.

        Returns
        -------
        SearchResult or, with `rerank`, RerankResult
            distances (Q, k) and ids (Q, k) int64, ascending by (distance, id), with coverage. Distances are Hamming,
            int32, or those of features, float32. In asymmetric order they are Hamming, and need not ascend.

        Raises
        ------
        TypeError, ValueError
            If codes, features or filter do not fit the collection, or it has no features.
        """
        lists = Parameters.of(parameters)
        query = Query(k=k, filter=filter, parameters=lists, threads=threads, explain=explain)
        how = as_rerank(rerank, k)
        fine = one_of(features, projections, how)
        return cast(SearchResult | RerankResult, self.answer(queries, query, rerank=how, features=fine))

    def range_search(
        self,
        queries: CodeArray,
        radius: int = 4,
        limit: int | None = None,
        *,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        after: tuple[int, int] | None = None,
        threads: int | None = None,
        explain: bool = False,
    ) -> RangeResult:
        """Find every code within a Hamming radius of each query.

        Parameters
        ----------
        queries : ndarray of uint64, shape (Q, W)
        radius : int
            Inclusive, 0 to `bits`.
        limit : int, optional
            Keep at most this many nearest answers of each query; `truncated` says whether there were more.
        filter, parameters, threads, explain
            As in `search`.
        after : tuple of int, int, optional
            Only answers that come after this (distance, id) in their order. With a limit, the last answer of one
            result is where the next goes on, so that all can be read in bounded memory.

        Returns
        -------
        RangeResult
            Ascending by (distance, id), with coverage.
        """
        query = Query(
            radius=radius,
            limit=limit,
            filter=filter,
            parameters=Parameters.of(parameters),
            threads=threads,
            explain=explain,
            after=after,
        )
        return cast(RangeResult, self.answer(queries, query))

    @overload
    def answer(self, queries: CodeArray, query: Query) -> Result: ...

    @overload
    def answer(
        self,
        queries: CodeArray,
        query: Query,
        *,
        rerank: Rerank | None,
        features: NDArray[np.floating[Any]] | None,
    ) -> Result | RerankResult: ...

    def answer(
        self,
        queries: CodeArray,
        query: Query,
        *,
        rerank: Rerank | None = None,
        features: NDArray[np.floating[Any]] | None = None,
    ) -> Result | RerankResult:
        """Answer the same query for each of several codes, as `search` and `range_search` do.

        Parameters
        ----------
        queries : ndarray of uint64, shape (Q, W)
        query : Query
        rerank : Rerank, optional
        features : ndarray of float, shape (Q, F) or (Q, B), with `rerank` only
            The queries' fine features, or for the metric "asymmetric" their projections.

        Returns
        -------
        SearchResult, RangeResult or RerankResult
            Of `query.k`, `query.radius` or `rerank`.
        """
        check_codes(queries, bits=self.bits, name="queries")
        query = query.checked(bits=self.bits, rows=len(self))
        check_query_features(features, rerank, num_queries=len(queries), k=query.k, bits=self.bits)
        if not len(self):  # no shard checks it
            self._check_filter(query.filter, query.parameters)
        if rerank is None or features is None:
            return self._shard_set.answer(queries, query)
        assert query.k is not None, "re-ranking was refused without"
        pool = pool_query(query, rerank, rows=len(self)).checked(bits=self.bits)
        stored_of = self.codes_of if rerank.metric == ASYMMETRIC else self.features_of
        ordered = []
        for run, found in find_pools(self._shard_set.answer, queries, pool):
            part = rerank_ids(features[run], found, stored_of, query.k, metric=rerank.metric)
            ordered.append(part._replace(explain=found.explain))
        return join_reranked(ordered)._replace(coverage=self._shard_set.coverage)

    def histogram(
        self,
        codes: CodeArray,
        *,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        threads: int | None = None,
    ) -> NDArray[np.int64]:
        """Count how many items lie at each Hamming distance of each query, exactly.

        It compares every query with every code, whatever index answers searches.

        Parameters
        ----------
        codes : ndarray of uint64, shape (Q, W)
            The queries.
        filter, parameters, threads
            As in `search`.

        Returns
        -------
        ndarray of int64, shape (Q, bits + 1)
            Items at distance 0, 1, ... `bits`; each row sums to `count(filter, parameters)`.

        Raises
        ------
        TypeError, ValueError
            If codes or filter do not fit the collection.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> codes = np.array([[0b0000], [0b0001], [0b0111]], np.uint64)
        >>> Collection.create(tempfile.mkdtemp() + "/c", codes, bits=4).histogram(codes[:1]).tolist()
        [[1, 1, 0, 1, 0]]
        """
        check_codes(codes, bits=self.bits, name="codes")
        query = Query(filter=filter, parameters=Parameters.of(parameters), threads=check_threads(threads))
        self._check_filter(query.filter, query.parameters)
        parts = [part.countable(query) for part in self._parts.asked(query) if len(part)]
        return count_by_distance(parts, codes, bits=self.bits, threads=query.threads)

    def sample(
        self,
        count: int,
        *,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
    ) -> IdArray:
        """Return the ids of a random sample of the items that satisfy `filter`.

        It is the same whenever the items are: it depends on their ids alone, not on shards. All ids are read once.

        Parameters
        ----------
        count : int
            At least 1; if there are fewer items, all of them.
        filter, parameters
            As in `search`.

        Returns
        -------
        ndarray of int64, shape (M,)
            At random order; the first of them are themselves a smaller sample.

        Raises
        ------
        TypeError, ValueError
            If `count` is not a whole number of at least 1, or the filter does not fit the collection.
        """
        wanted = check_limit(count)
        if wanted is None:
            raise TypeError("`count` must be a whole number, got None")
        query = Query(filter=filter, parameters=Parameters.of(parameters))
        self._check_filter(query.filter, query.parameters)
        return sample_ids((part.countable(query) for part in self._parts.asked(query) if len(part)), wanted)

    def _reopened(self) -> Self:
        return type(self).open(self.location, index=self.index, reuse=self)

    @property
    def _open_version(self) -> int:
        return self.version

    def get(self, ids: IdArray | Sequence[int]) -> pa.Table:
        """Return the stored data of some ids, in the order requested.

        Parameters
        ----------
        ids : ndarray of int64 or sequence of int, shape (M,)

        Returns
        -------
        pyarrow.Table
            M rows: `id` (int64), `code` (binary of `8 * W` bytes, little-endian words), and the attributes.

        Raises
        ------
        TypeError, ValueError
            If they are not whole numbers, or have another shape.
        IdNotFoundError
            If the collection lacks one of them.
        """
        wanted_M = some_ids(ids)
        shard_M, row_M = self._parts.locate_all(wanted_M)
        return take_items(self._shards, shard_M, row_M, wanted_M, self._item_schema(None))

    def count(self, filter: str | None = None, parameters: Mapping[str, ArrayLike] | None = None) -> int:
        """Return the number of items that satisfy `filter`, or of all.

        Parameters
        ----------
        filter, parameters
            As in `search`.

        Raises
        ------
        FilterError
            If the filter is not a condition on these attributes and parameters.
        """
        lists = Parameters.of(parameters)
        self._check_filter(filter, lists)
        specs = self._manifest.shards
        return sum(
            specs[number].alive if left is None else self._shards[number].count(left, lists)
            for number, left in self._parts.matching(filter, lists)
        )

    def scan(
        self,
        columns: Sequence[str] | None = None,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        batch_rows: int = SCANNED_ROWS,
        after: int | None = None,
    ) -> pa.RecordBatchReader:
        """Read all items that satisfy `filter`, in ascending order of their ids, a batch in memory at a time.

        Parameters
        ----------
        columns : sequence of str, optional
            Attributes to read, and `features` and `thumbnail`; all attributes by default. `id` and `code` come first
            in any case. An attribute that is named `features` or `thumbnail` is meant by its name.
        filter, parameters
            As in `search`.
        batch_rows : int
            Of every batch but the last. Rows of neighbouring ids lie apart, so that small batches of attributes read
            the same blocks again and again.
        after : int, optional
            Only ids above this one, the last of an earlier scan.

        Returns
        -------
        pyarrow.RecordBatchReader
            Iterate over it, or read all. Columns: `id` (int64), `code` (binary of `8 * W` bytes, little-endian words),
            attributes, `features` (lists, as `features_of` gives them), `thumbnail` (binary, null without one).

        Raises
        ------
        FilterError
            If the filter is not a condition on these attributes and parameters.
        ValueError
            If there is no such column.
        """
        lists, schema = Parameters.of(parameters), self._item_schema(columns)
        self._check_filter(filter, lists)
        matching = [(self._shards[number], left) for number, left in self._parts.matching(filter, lists)]
        batches = scan_by_id(
            [shard for shard, _ in matching],
            columns,
            [functools.partial(shard.mask_of, left, lists) for shard, left in matching],
            batch_rows=check_batch_rows(batch_rows),
            after=None if after is None else as_integer(after, "after"),
        )
        return pa.RecordBatchReader.from_batches(schema, batches)

    def facets(
        self,
        column: str,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        limit: int | None = 100,
    ) -> pa.Table:
        """Count how often each value of an attribute occurs among the items that satisfy `filter`.

        Parameters
        ----------
        column : str
            An attribute of text, numbers, dates or times, true and false, or lists of them. An item with a list counts
            once for each value that it holds.
        filter, parameters
            As in `search`.
        limit : int, optional
            Return the most frequent values; all for None.

        Returns
        -------
        pyarrow.Table
            `value` and `count` (int64), the most frequent first, of equally frequent ones the lowest first. Items
            without a value are counted as null, which comes after values that are as frequent.

        Raises
        ------
        FilterError
            If the filter is not a condition on these attributes and parameters.
        ValueError
            If there is no such attribute, or its values have no order.
        """
        lists, schema = Parameters.of(parameters), self.schema
        if column not in schema.names:
            known = ", ".join(schema.names) or "none"
            raise ValueError(f"`column` must be an attribute, got {column!r}; there are: {known}")
        self._check_filter(filter, lists)
        matching = ((self._shards[number], left) for number, left in self._parts.matching(filter, lists))
        return count_values(matching, schema.field(column), lists, limit=check_limit(limit))

    def _check_filter(self, filter: str | None, parameters: Parameters | None) -> None:
        """Raise ValueError (FilterError) if a filter is not a condition on these attributes and parameters."""
        check_named(filter, parameters)
        if filter is not None:
            Filter(filter, self.schema, parameters)

    def _item_schema(self, columns: Sequence[str] | None) -> pa.Schema:
        words, dims = num_words(self.bits), self.num_features
        return item_schema(self.schema, columns, words=words, features=dims, features_as=self.features_as)

    def thumbnails_of(self, ids: IdArray) -> list[bytes | None]:
        """Return the thumbnails of some ids, in the order requested; None for those without one.

        Parameters
        ----------
        ids : ndarray of int64, shape (M,)
        """
        pictures: list[bytes | None] = [None] * len(ids)
        shard_M, row_M = self._parts.locate(ids)
        for number, here_H in by_shard(shard_M):
            if (stored := self._shards[number].thumbnails) is not None:
                found = stored.take(row_M[here_H])["thumbnail"].to_pylist()
                for place, picture in zip(here_H.tolist(), found, strict=True):
                    pictures[place] = picture
        return pictures

    def codes_of(self, ids: IdArray) -> CodeArray:
        """Return the codes of some ids, (M, W) uint64, in the order requested.

        Parameters
        ----------
        ids : ndarray of int64, shape (M,)

        Raises
        ------
        IdNotFoundError
            If the collection lacks one of them.
        """
        shard_M, row_M = self._parts.locate_all(ids)
        codes_MW = np.empty((len(ids), num_words(self.bits)), np.uint64)
        for number, here_H in by_shard(shard_M):
            codes_MW[here_H] = self._shards[number].codes_NW[row_M[here_H]]
        return codes_MW

    def features_of(self, ids: IdArray) -> FeatureValues:
        """Return the fine features of some ids, (M, F), in the order requested.

        They are float16, or float32 where they are kept as bfloat16 or int8.

        Parameters
        ----------
        ids : ndarray of int64, shape (M,)

        Raises
        ------
        ValueError
            If the collection has no features.
        IdNotFoundError
            If the collection lacks one of the ids.
        """
        width = self.num_features
        if width is None:
            raise ValueError(
                f"{self.path} has no fine features: encode with `--features`, or give `Collection.create` some"
            )
        features_MF: FeatureValues = np.empty((len(ids), width), value_type(self.features_as))
        shard_M, row_M = self._parts.locate_all(ids)
        for number, here_H in by_shard(shard_M):
            features = self._shards[number].features
            assert features is not None, "a collection is written with features in all shards or none"
            features_MF[here_H] = features[row_M[here_H]]
        return features_MF

    def has(self, ids: IdArray) -> NDArray[np.bool_]:
        """Return whether each of some ids, (M,), is in the collection."""
        return self._parts.locate(ids)[0] >= 0


def _check_new_codes(codes: CodeArray, bits: int | None) -> tuple[CodeArray, int]:
    """Return checked codes and their number of bits, by default all bits of their words."""
    if bits is None:
        bits = WORD_BITS * codes.shape[-1] if isinstance(codes, np.ndarray) and codes.ndim else WORD_BITS
    bits = check_bits(bits)
    return check_codes(codes, bits=bits, name="codes"), bits
