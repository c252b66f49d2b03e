"""A shard: an immutable folder of rows, sorted by (code, id), mapped into memory.

::

    codes.faiss        the codes, as a FAISS IndexBinaryFlat
    ids.npy            int64 per row
    rows_by_id.npy     uint32: the rows in ascending order of their ids, for finding an id by binary search
    tables/            optional, the multi-index; a shard without it answers by scan
    attributes.arrow   optional, the user's attributes
    scalars.arrow      optional, scalar attributes as plain arrays, for filters
    features.npy       optional, fine features for re-ranking; see `engine.features`
    thumbnails.arrow   optional, small encoded pictures
"""

from __future__ import annotations

import bisect
import copy
import errno
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.features import FLOAT16, FeatureKind, Features, map_features, parse_kind, write_features
from hashlight.engine.filters.cache import FilterCache
from hashlight.engine.filters.filter import Filter
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.ids import find_rows
from hashlight.engine.indexes.base import MAX_ROWS, Index
from hashlight.engine.indexes.choice import IndexChoice, check_index, faiss_kind
from hashlight.engine.indexes.histogram import Countable
from hashlight.engine.indexes.masks import RowMask
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.multi_index.tables import Tables
from hashlight.engine.indexes.order import sort_rows
from hashlight.engine.indexes.scan import ScanIndex
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.places.arrays import (
    HEADER_BYTES,
    map_array,
    parse_array,
    write_array,
)
from hashlight.engine.places.files import sync_file, sync_folder
from hashlight.engine.places.integrity import check_bytes, describe_files, remember_verified
from hashlight.engine.places.place import Place
from hashlight.engine.query import Query
from hashlight.engine.results import Result
from hashlight.engine.storage.attributes import AttributeFile, Attributes, write_attributes
from hashlight.engine.storage.checking import read_dead_rows, verify_column, verify_shard
from hashlight.engine.storage.columns import (
    FEATURES,
    THUMBNAIL,
    code_column,
    features_column,
    item_schema,
    stored_schema,
)
from hashlight.engine.storage.faiss_file import map_faiss_flat, write_faiss_flat
from hashlight.engine.storage.manifest import REQUIRED_FILES, ShardSpec
from hashlight.engine.storage.scalars import SCALARS, ScalarFile, ShardColumns, shard_statistics, write_scalars

FEATURES_FILE = "features.npy"
SCANNED_ROWS = 65_536  # of a batch that is read for somebody else

# Filters repeat (the next radius on the page, the next batch); a mask takes one bit per row, or two.
_masks: FilterCache[RowMask] = FilterCache(256 * 2**20)


def write_shard(
    folder: Path,
    codes_NW: CodeArray,
    ids_N: IdArray,
    attributes: pa.Table | Iterable[pa.Table] | None,
    *,
    bits: int,
    tables: bool = True,
    features: Features | None = None,
    thumbnails: Iterable[pa.Table] | None = None,
) -> ShardSpec:
    """Write one shard into the new folder `folder` and fsync it.

    Parameters
    ----------
    folder : Path
        Must not exist; its name becomes the shard's.
    codes_NW : ndarray of uint64, shape (N, W)
    ids_N : ndarray of int64, shape (N,)
    attributes : pyarrow.Table, iterable of pyarrow.Table, or None
        N rows in all, in the order of the codes.
    bits : int
        True number of bits of a code.
    tables : bool
        Whether to build the multi-index.
    features : Features, optional
        Fine features of N rows, in the order of the codes.
    thumbnails : iterable of pyarrow.Table, optional
        N rows in all, in the order of the codes; see `write_thumbnails`.

    Raises
    ------
    ValueError
        If N is 0 or over 2**32 - 1.
    """
    order_N = order_rows(codes_NW, ids_N)
    folder.mkdir(parents=True)
    write_ids(folder, ids_N[order_N])
    write_codes(folder, codes_NW[order_N], bits=bits, tables=tables)
    if attributes is not None:
        parts = [attributes] if isinstance(attributes, pa.Table) else attributes
        write_attributes(folder / "attributes.arrow", parts, order_N)
    if features is not None:
        write_features(folder / FEATURES_FILE, features, order_N)
    if thumbnails is not None:
        write_thumbnails(folder, thumbnails, order_N)
    return finish_shard(folder, len(order_N))


# If memory is short, a shard can be written in these steps, with one kind of data in memory at a time.


def order_rows(codes_NW: CodeArray, ids_N: IdArray) -> NDArray[np.int64]:
    """Return the order (N,) in which a shard keeps its rows.

    Raises
    ------
    ValueError
        If there are too many rows for a shard.
    """
    if not 0 < len(codes_NW) <= MAX_ROWS:
        raise ValueError(f"a shard must have 1 to {MAX_ROWS} codes, got {len(codes_NW)}: use more shards")
    return sort_rows(codes_NW, ids_N)


def write_ids(folder: Path, ids_N: IdArray) -> None:
    """Write the ids of a shard, given in its order."""
    write_array(folder / "ids.npy", ids_N)
    write_array(folder / "rows_by_id.npy", np.argsort(ids_N).astype(np.uint32))


def write_codes(
    folder: Path, codes_NW: CodeArray, *, bits: int, tables: bool = True, threads: int | None = None
) -> None:
    """Write the codes of a shard, given in its order, and tables built by `threads` threads (None: one per core)."""
    write_faiss_flat(folder / "codes.faiss", codes_NW)
    if tables:
        Tables.build(codes_NW, bits=bits, threads=threads or usable_cores()).save(folder / "tables")


def write_thumbnails(folder: Path, tables: Iterable[pa.Table], order_N: NDArray[np.integer[Any]]) -> None:
    """Write encoded pictures, a column `thumbnail` of binary, null if missing; order and tables as for attributes."""
    write_attributes(folder / "thumbnails.arrow", tables, order_N, compressed=False)


def finish_shard(folder: Path, rows: int) -> ShardSpec:
    """Write what filters read of the attributes, fsync a shard's files and describe them.

    Raises
    ------
    FileNotFoundError
        If another process removed the folder while it was written.
    """
    if (folder / "attributes.arrow").exists():
        write_scalars(folder, rows)
    files = describe_files(folder)
    if missing := REQUIRED_FILES - files.keys():
        raise FileNotFoundError(errno.ENOENT, f"another process removed {', '.join(sorted(missing))} from", str(folder))
    for name in files:
        sync_file(folder / name)
    for inner in {(folder / name).parent for name in files}:
        sync_folder(inner)
    remember_verified(folder, files)
    ids_N: IdArray = map_array(folder / "ids.npy", np.int64, (rows,), at_random=True)
    rows_by_id_N: NDArray[np.uint32] = map_array(folder / "rows_by_id.npy", np.uint32, (rows,), at_random=True)
    lowest, highest = ids_N[rows_by_id_N[0]], ids_N[rows_by_id_N[-1]]
    return ShardSpec(
        name=folder.name,
        rows=rows,
        files=files,
        ids=(int(lowest), int(highest)),
        statistics=shard_statistics(folder, rows),
    )


def read_ids(place: Place, spec: ShardSpec) -> IdArray:
    """Read only the ids (N,) of a shard, local or in a bucket.

    Raises
    ------
    CorruptDataError
        If the file is missing or damaged.
    """
    found = place.find(f"shards/{spec.name}/ids.npy")
    name, data = f"{place}/shards/{spec.name}/ids.npy", None if found is None else found.data
    check_bytes(name, data, spec.files["ids.npy"])
    ids: IdArray = parse_array(name, data or b"", np.int64, (spec.rows,))
    return ids


@dataclass(frozen=True, slots=True)
class Layout:
    """What a shard stores besides codes and ids, the same in all shards of a collection.

    Attributes
    ----------
    schema : pyarrow.Schema or None
        Of the attributes.
    features : int or None
        Dimensions of the fine features.
    thumbnails : bool
    features_as : {"float16", "bfloat16", "int8"}
        As what they are kept.
    """

    schema: pa.Schema | None
    features: int | None
    thumbnails: bool
    features_as: FeatureKind = FLOAT16

    def __str__(self) -> str:
        """Describe it, for messages."""
        fields = ", ".join(f"{field.name} ({field.type})" for field in self.schema or ())
        parts = [f"attributes {fields}"] if fields else []
        parts += [f"features of {self.features} dimensions as {self.features_as}"] if self.features is not None else []
        return "; ".join([*parts, "thumbnails"] if self.thumbnails else parts) or "nothing"


def read_layout(place: Place, spec: ShardSpec) -> Layout:
    """Read what a shard, local or in a bucket, stores besides codes and ids.

    Raises
    ------
    CorruptDataError
        If a file does not begin as its name promises.
    """
    schema, features, kind = None, None, FLOAT16
    if "attributes.arrow" in spec.files:
        name = f"shards/{spec.name}/attributes.arrow"
        try:
            with place.open(name) as file:
                schema = stored_schema(pyarrow.ipc.open_file(file).schema)
        except (pa.ArrowException, ValueError) as error:
            raise CorruptDataError(f"{place}/{name} is not readable as attributes: {error}") from error
    if FEATURES_FILE in spec.files:
        name = f"shards/{spec.name}/{FEATURES_FILE}"
        with place.open(name) as file:
            kind, features = parse_kind(f"{place}/{name}", file.read(HEADER_BYTES))
    return Layout(schema, features, "thumbnails.arrow" in spec.files, kind)


class Shard:
    """An open shard, as one version of its collection shows it. Several threads may search one shard at once.

    Opening maps files without reading them, except for the deleted rows, and that a FAISS index is filled with the
    codes.

    Parameters
    ----------
    root : Path
        The collection's folder: the shard is in `shards/NAME`, what has changed in `deletions` and `columns`.
    spec : ShardSpec
    bits : int
    schema : pyarrow.Schema, optional
        Of the attributes that the collection shows; the shard's own by default.
    verify_all : bool
        Hash and check every file again, even those verified on this machine and not written since.
    index : {"auto", "multi", "scan", "faiss-flat", "faiss-multi-hash"}
        The index that answers; see `engine.collection.collection.Collection.open`.

    Attributes
    ----------
    rows : int
        Of its files, deleted ones included; `len` is the number of rows alive.
    codes_NW, ids_N
        Of all rows, deleted ones included.
    alive : RowMask or None
        Which rows are alive; None if all are.
    attributes : Attributes
        As the collection shows them, of all rows, deleted ones included.

    Raises
    ------
    CorruptDataError
        If a file is missing or damaged, or contradicts another.
    MissingDependencyError
        If a FAISS index is chosen and FAISS is not installed.
    ValueError
        If `index` is "multi" and the shard has no tables.
    """

    def __init__(
        self,
        root: Path,
        spec: ShardSpec,
        *,
        bits: int,
        schema: pa.Schema | None = None,
        verify_all: bool = False,
        index: IndexChoice = "auto",
    ) -> None:
        folder = root / "shards" / spec.name
        verify_shard(folder, spec, bits=bits, full=verify_all)
        self._folder = folder.resolve()
        self._choice = check_index(index)
        self.name, self.rows = spec.name, spec.rows
        self.codes_NW: CodeArray = map_faiss_flat(folder / "codes.faiss", bits=bits, rows=spec.rows)
        self.ids_N: IdArray = map_array(folder / "ids.npy", np.int64, (spec.rows,), at_random=True)
        self._rows_by_id_N: NDArray[np.uint32] = map_array(
            folder / "rows_by_id.npy", np.uint32, (spec.rows,), at_random=True
        )
        has_attributes = "attributes.arrow" in spec.files
        self._own = AttributeFile(folder / "attributes.arrow") if has_attributes else None
        self._has_scalars = SCALARS in spec.files
        has_thumbnails = "thumbnails.arrow" in spec.files
        self.thumbnails = AttributeFile(folder / "thumbnails.arrow") if has_thumbnails else None
        has_features = FEATURES_FILE in spec.files
        self.features = map_features(folder / FEATURES_FILE, spec.rows) if has_features else None
        self._bits = bits
        if index == "multi" and not spec.has_tables:
            raise ValueError(
                f'shard {self.name} was built without tables, which `index` "multi" needs: open the collection with '
                '"auto" or "scan", or build it again with tables'
            )
        self._hidden_of: Shard | None = None
        self._change(root, spec, schema, verify_all=verify_all)
        if faiss_kind(index) is not None:  # filled now, because that takes long
            self.index  # noqa: B018

    def _change(self, root: Path, spec: ShardSpec, schema: pa.Schema | None, *, verify_all: bool = False) -> None:
        """Read what has changed since the shard was written."""
        self.spec, self._schema, self._hidden_of = spec, schema, None
        self.alive: RowMask | None = None
        if spec.dead is not None:
            dead_D = read_dead_rows(root / "deletions" / spec.dead.name, spec.dead, spec.rows)
            alive_N = np.ones(spec.rows, np.bool_)
            alive_N[dead_D] = False
            self.alive = RowMask.of(alive_N)
        columns = {}
        for attribute, file in spec.columns.items():
            path = root / "columns" / file.name
            verify_column(path, file, attribute, spec.rows, full=verify_all)
            columns[attribute] = AttributeFile(path)
        if schema is None:
            schema = pa.schema([]) if self._own is None else self._own.schema
        self.attributes = Attributes(schema, spec.rows, self._own, columns)
        # Whatever decides which rows a filter selects.
        changes = [spec.dead.name if spec.dead else "", *(f"{name}={columns[name]!r}" for name in sorted(columns))]
        self._state = "\0".join([str(self._folder), *changes, schema.to_string()])

    @classmethod
    def in_memory(
        cls,
        name: str,
        codes_NW: CodeArray,
        ids_N: IdArray,
        attributes: pa.Table | None,
        *,
        bits: int,
        schema: pa.Schema,
        features: Features | None = None,
        thumbnails: pa.Array | None = None,
    ) -> Shard:
        """Return a shard that has no files, and answers by scan.

        Parameters
        ----------
        name : str
            Of no other shard in this process.
        codes_NW : ndarray of uint64, shape (N, W)
        ids_N : ndarray of int64, shape (N,)
            Distinct.
        attributes : pyarrow.Table or None
            N rows with all columns of `schema`.
        bits : int
        schema : pyarrow.Schema
            Of the attributes that the collection shows.
        features : Features, optional
            Of N rows.
        thumbnails : pyarrow.Array of binary, length N, optional
        """
        order_N = order_rows(codes_NW, ids_N)
        shard, taken = cls.__new__(cls), pa.array(order_N)
        shard.name, shard.rows, shard._bits, shard._choice = name, len(order_N), bits, "scan"
        shard._folder, shard._has_scalars = Path(name), False
        shard.codes_NW, shard.ids_N = codes_NW[order_N], ids_N[order_N]
        shard._rows_by_id_N = np.argsort(shard.ids_N).astype(np.uint32)
        shard.features = None if features is None else features.take(order_N)
        held = None if attributes is None else AttributeFile.in_memory(f"{name}/attributes", attributes.take(taken))
        shard._own = held
        pictures = None if thumbnails is None else pa.table({THUMBNAIL: thumbnails.take(taken)})
        shard.thumbnails = None if pictures is None else AttributeFile.in_memory(f"{name}/thumbnails", pictures)
        spec = ShardSpec(name, shard.rows, {}, ids=(int(ids_N.min()), int(ids_N.max())))
        shard._change(Path(name), spec, schema)
        return shard

    def hiding(self, spec: ShardSpec, rows_M: NDArray[np.int64]) -> Shard:
        """Return the shard without some rows, which may be deleted already; `spec` counts those that are.

        What is open is shared, and filters are not evaluated again.
        """
        self.index  # noqa: B018 - opened once, for both
        other = copy.copy(self)
        other.spec, other._hidden_of = spec, self
        other.alive = RowMask.without(self.alive, rows_M, self.rows)
        assert spec.dead is not None, "rows were hidden"
        other._state = f"{self._state}\0{spec.dead.name}"
        return other

    def as_of(self, root: Path, spec: ShardSpec, *, schema: pa.Schema | None) -> Shard:
        """Return the same shard as another version of the collection shows it. What is open is shared.

        Raises
        ------
        CorruptDataError
            If what has changed is damaged.
        """
        if (spec.dead, spec.columns) == (self.spec.dead, self.spec.columns) and schema == self._schema:
            return self
        other = copy.copy(self)
        other._change(root, spec, schema)
        return other

    def is_of(self, spec: ShardSpec, index: IndexChoice) -> bool:
        """Whether `as_of` can give the shard of another version's manifest, answered by that index."""
        return (spec.name, spec.files, index) == (self.name, self.spec.files, self._choice)

    @functools.cached_property
    def index(self) -> Index:
        """What answers from this shard; opened when it is first used, because many shards are read and not searched."""
        index, spec, bits = self._choice, self.spec, self._bits
        kind = faiss_kind(index)
        if kind is not None:
            return kind.fill(self.codes_NW, self.ids_N, bits=bits)
        if index == "scan" or not spec.has_tables:
            return ScanIndex(codes_NW=self.codes_NW, ids_N=self.ids_N, bits=bits)
        probed_NW = map_faiss_flat(self._folder / "codes.faiss", bits=bits, rows=spec.rows, at_random=True)
        opened = MultiIndex.open(
            self._folder / "tables", codes_NW=probed_NW, scanned_NW=self.codes_NW, ids_N=self.ids_N, bits=bits
        )
        opened.plan = "tables" if index == "multi" else "auto"
        return opened

    def __len__(self) -> int:
        """Return the number of rows alive."""
        return self.spec.alive

    def __repr__(self) -> str:
        """Name the shard, count its deleted rows, and describe its index."""
        deleted = self.rows - len(self)
        return f"Shard({self.name[:8]}, {f'{deleted:,} deleted, ' if deleted else ''}{self.index!r})"

    def answer(self, queries_QW: CodeArray, query: Query, *, farthest_Q: NDArray[np.int32] | None = None) -> Result:
        """Answer from the rows alive that satisfy `query.filter`; see `engine.indexes.base.Index.answer_checked`.

        Queries and query were checked by whoever asks all shards.

        Raises
        ------
        FilterError
            If the filter is not a condition on these attributes and parameters.
        """
        mask = self.mask_of(query.filter, query.parameters)
        return self.index.answer_checked(queries_QW, query, mask=mask, farthest_Q=farthest_Q)

    def countable(self, query: Query) -> Countable:
        """Return all rows, and which of them are alive and satisfy `query.filter`; errors as in `answer`."""
        return Countable(self.codes_NW, self.ids_N, self.mask_of(query.filter, query.parameters))

    def mask_of(self, filter: str | None, parameters: Parameters | None = None) -> RowMask | None:
        """Return which rows are alive and satisfy `filter`, in the shard's row order; None if every row may answer.

        Raises
        ------
        FilterError
            If the filter is not a condition on these attributes and parameters.
        """
        if filter is None:
            return self.alive
        key = self._state, filter, None if parameters is None else parameters.digest
        return _masks.get(key, functools.partial(self._find_mask, filter, parameters))

    def _find_mask(self, text: str, parameters: Parameters | None) -> RowMask:
        if self._hidden_of is not None:
            found, alive = self._hidden_of.mask_of(text, parameters), self.alive
            assert found is not None, "of a filter"
            assert alive is not None, "rows were hidden"
            return found & alive
        parsed = Filter(text, self.attributes.schema, parameters)
        columns = ShardColumns(self.attributes, self._scalars if parsed.columns else None, self.rows)
        matching = RowMask(parsed.mask(columns, self), self.rows)
        return matching if self.alive is None else matching & self.alive

    @functools.cached_property
    def _scalars(self) -> ScalarFile | None:
        return ScalarFile(self._folder / SCALARS) if self._has_scalars else None

    def count(self, filter: str | None = None, parameters: Parameters | None = None) -> int:
        """Return how many rows are alive and satisfy `filter`; errors as in `mask_of`."""
        mask = self.mask_of(filter, parameters)
        return self.rows if mask is None else mask.count

    def rows_of(self, ids_M: IdArray) -> NDArray[np.int64]:
        """Return the row of each id, -1 for those that are not in this shard, or were deleted from it."""
        row_M = find_rows(self.ids_N, self._rows_by_id_N, ids_M)
        return row_M if self.alive is None else np.where(self.alive.allows(row_M), row_M, -1)

    def rows_by_id(self, part: slice) -> NDArray[np.uint32]:
        """Return a part of all rows, deleted ones included, in ascending order of their ids."""
        return self._rows_by_id_N[part]

    def count_up_to(self, id: int) -> int:
        """Return how many rows, deleted ones included, have an id of at most `id`."""
        return bisect.bisect_right(range(self.rows), id, key=lambda place: int(self.ids_N[self._rows_by_id_N[place]]))

    def take(self, rows_M: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """Return what is stored of some rows, in that order, as a table of M rows.

        Parameters
        ----------
        rows_M : ndarray of int64, shape (M,)
            Whether they are alive is not checked.
        columns : sequence of str, optional
            As in `engine.storage.columns.item_schema`, which has the columns of the table.

        Raises
        ------
        ValueError
            If there is no such column.
        """
        schema = self._item_schema(columns)
        attributes = self.attributes.take(
            rows_M, [name for name in schema.names if name in self.attributes.schema.names]
        )
        taken = {name: attributes[name] for name in attributes.schema.names}
        taken |= {"id": pa.array(self.ids_N[rows_M]), "code": code_column(self.codes_NW[rows_M])}
        if self.features is not None and FEATURES in schema.names:
            taken.setdefault(FEATURES, features_column(self.features[rows_M]))
        if self.thumbnails is not None and THUMBNAIL in schema.names:
            taken.setdefault(THUMBNAIL, self.thumbnails.take(rows_M)[THUMBNAIL].cast(pa.binary()))
        arrays = [taken[field.name] if field.name in taken else pa.nulls(len(rows_M), field.type) for field in schema]
        return pa.table(arrays, schema=schema)

    def _item_schema(self, columns: Sequence[str] | None) -> pa.Schema:
        dims, kind = (None, FLOAT16) if self.features is None else (self.features.shape[1], self.features.kind)
        words = self.codes_NW.shape[1]
        return item_schema(self.attributes.schema, columns, words=words, features=dims, features_as=kind)

    def scan(
        self,
        columns: Sequence[str] | None = None,
        filter: str | None = None,
        parameters: Parameters | None = None,
        *,
        batch_rows: int = SCANNED_ROWS,
    ) -> pa.RecordBatchReader:
        """Read the rows alive that satisfy `filter`, in the shard's order, by (code, id).

        Parameters
        ----------
        columns : sequence of str, optional
            As in `engine.storage.columns.item_schema`, which has the columns of the batches.
        filter, parameters
            As in `mask_of`.
        batch_rows : int
            Maximum rows of a batch.

        Raises
        ------
        FilterError, ValueError
            If the filter is not a condition on these attributes and parameters, or there is no such column.
        """
        schema, mask = self._item_schema(columns), self.mask_of(filter, parameters)

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, self.rows, batch_rows):
                rows_M = np.arange(start, min(start + batch_rows, self.rows))
                rows_M = rows_M if mask is None else rows_M[mask.allows(rows_M)]
                yield from self.take(rows_M, columns).combine_chunks().to_batches()

        return pa.RecordBatchReader.from_batches(schema, batches())
