"""A collection from what other programs hold, and for them to read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray, as_integer
from hashlight.engine.collection.importing import import_rows
from hashlight.engine.exchange.arrow import open_batches
from hashlight.engine.exchange.codes import pack_array, pack_bytes
from hashlight.engine.exchange.columns import Columns, outgoing_batch, outgoing_schema, read_batches
from hashlight.engine.exchange.faiss_indexes import load_index, make_index, read_index, write_index
from hashlight.engine.exchange.parquet import open_parquet, write_parquet
from hashlight.engine.exchange.rows import Incoming, Rows, cut_rows
from hashlight.engine.features import FeatureKind, FeatureValues
from hashlight.engine.ids import check_ids
from hashlight.engine.storage.columns import check_columns
from hashlight.engine.storage.shard import Shard

BATCH_ROWS = 65_536


class Interchange(Protocol):
    """The part of `Collection` that makes collections from other things, and other things from collections."""

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """See `Collection.open`."""
        ...

    @property
    def bits(self) -> int:
        """See `Collection.bits`."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """See `Collection.fingerprint`."""
        ...

    @property
    def shards(self) -> Sequence[Shard]:
        """See `Collection.shards`."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """See `Collection.schema`."""
        ...

    @property
    def num_features(self) -> int | None:
        """See `Collection.num_features`."""
        ...

    def thumbnails_of(self, ids: IdArray) -> list[bytes | None]:
        """See `Collection.thumbnails_of`."""
        ...

    @property
    def features_as(self) -> FeatureKind:
        """See `Collection.features_as`."""
        ...

    def features_of(self, ids: IdArray) -> FeatureValues:
        """See `Collection.features_of`."""
        ...

    @classmethod
    def from_numpy(
        cls,
        codes: NDArray[np.uint8] | CodeArray,
        path: str | Path,
        *,
        ids: IdArray | None = None,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        bits: int | None = None,
        shard_rows: int | None = None,
        tables: bool = True,
        overwrite: bool = False,
    ) -> Self:
        """Write a new collection of packed codes and open it.

        Parameters
        ----------
        codes : ndarray of uint8, shape (N, B), or of uint64, shape (N, W)
            Packed bytes as FAISS has them (bit i is bit `i % 8` of byte `i // 8`), or words.
        path : str or Path
            Of the new collection, as in `create`.
        ids : ndarray of int64, shape (N,), optional
            Distinct, 0 or more; the row numbers by default.
        attributes : pyarrow.Table or mapping of columns, optional
            N rows.
        bits : int, optional
            True number of bits in a code; all of the bytes or words by default.
        shard_rows : int, optional
            Maximum rows of a shard; 5 million by default.
        tables, overwrite
            As in `create`.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid.
        """
        codes_NW, bits = pack_array(codes, bits=bits, name="codes")
        ids = check_ids(np.arange(len(codes_NW)) if ids is None else ids, rows=len(codes_NW))
        source = Incoming(bits, None, _rows_of(codes_NW, ids, attributes))
        import_rows(path, source, shard_rows=shard_rows, tables=tables, overwrite=overwrite)
        return cls.open(path)

    @classmethod
    def from_faiss(
        cls,
        index: object,
        path: str | Path,
        *,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        bits: int | None = None,
        shard_rows: int | None = None,
        tables: bool = True,
        overwrite: bool = False,
    ) -> Self:
        """Write the codes and ids of a binary index of FAISS as a new collection and open it.

        Parameters
        ----------
        index : faiss.IndexBinary, or str or Path
            Flat, IVF, Hash, MultiHash or HNSW, or an IDMap or IDMap2 over one of them; or the place of its file.
            FAISS's reader trusts a file, and a hostile one may crash the process or worse: read only files whose
            origin you trust.
        path : str or Path
            Of the new collection, as in `create`.
        attributes : pyarrow.Table or mapping of columns, optional
            N rows, in the order of an IDMap's `id_map`; in ascending order of ids for an index without one.
        bits : int, optional
            True number of bits in a code; the index's `d` by default.
        shard_rows : int, optional
            Maximum rows of a shard; 5 million by default.
        tables, overwrite
            As in `create`.

        Raises
        ------
        TypeError
            If it is another kind of index.
        ValueError
            If an id is negative or occurs more than once, or another argument is invalid.
        CorruptDataError
            If FAISS cannot read the file.
        MissingDependencyError
            If FAISS is not installed.
        """
        loaded = load_index(index)
        bytes_NB, ids_N = read_index(loaded)
        bits = int(loaded.d) if bits is None else bits
        ids_N = check_ids(ids_N, rows=len(bytes_NB))
        codes_NW = pack_bytes(bytes_NB, bits=bits, name="codes")
        del loaded, bytes_NB
        source = Incoming(bits, None, _rows_of(codes_NW, ids_N, attributes))
        import_rows(path, source, shard_rows=shard_rows, tables=tables, overwrite=overwrite)
        return cls.open(path)

    @classmethod
    def from_arrow(
        cls,
        source: object,
        path: str | Path,
        *,
        code_column: str = "code",
        id_column: str | None = "id",
        features_column: str | None = None,
        thumbnail_column: str | None = None,
        bits: int | None = None,
        fingerprint: str | None = None,
        shard_rows: int | None = None,
        tables: bool = True,
        overwrite: bool = False,
    ) -> Self:
        """Write record batches as a new collection and open it; one shard at a time is in memory.

        Parameters
        ----------
        source : pyarrow.RecordBatchReader, Table or RecordBatch, iterable of RecordBatch, or str or Path
            Or any object with `__arrow_c_stream__`. Text is the place of an Arrow IPC file or stream.
        path : str or Path
            Of the new collection, as in `create`.
        code_column : str
            Codes as fixed-size or variable-size binary, as lists of uint8 (all of one length), or as fixed-size lists
            of uint64 (words). Bit i of a code is bit `i % 8` of byte `i // 8`.
        id_column : str or None
            Whole numbers of 0 or more, distinct. None numbers the rows.
        features_column, thumbnail_column : str, optional
            Fixed-size lists of float16 or float32; binary. By default those that `to_arrow` wrote, if any. Features
            that it wrote are kept as they were, others as float16. All other columns are attributes.
        bits : int, optional
            True number of bits in a code; by default what `to_arrow` wrote, or all bits of the bytes.
        fingerprint : str, optional
            Of the encoder that made the codes; by default what `to_arrow` wrote.
        shard_rows : int, optional
            Maximum rows of a shard; 5 million by default.
        tables, overwrite
            As in `create`.

        Raises
        ------
        TypeError, ValueError
            If a column is missing or does not hold what it should, an id occurs more than once, or there are no rows.
        """
        columns = Columns(code_column, id_column, features_column, thumbnail_column)
        with open_batches(source) as (schema, batches):
            incoming = read_batches(schema, batches, columns, bits=bits, fingerprint=fingerprint)
            import_rows(path, incoming, shard_rows=shard_rows, tables=tables, overwrite=overwrite)
        return cls.open(path)

    @classmethod
    def from_parquet(
        cls,
        source: str | Path,
        path: str | Path,
        *,
        code_column: str = "code",
        id_column: str | None = "id",
        features_column: str | None = None,
        thumbnail_column: str | None = None,
        bits: int | None = None,
        fingerprint: str | None = None,
        shard_rows: int | None = None,
        tables: bool = True,
        overwrite: bool = False,
    ) -> Self:
        """Write the rows of Parquet files as a new collection and open it; one shard at a time is in memory.

        Parameters
        ----------
        source : str or Path
            The place of a file, or of a folder, of which all files whose names end in `.parquet` are read.
        path, code_column, id_column, features_column, thumbnail_column
            As in `from_arrow`.
        bits, fingerprint, shard_rows, tables, overwrite
            As in `from_arrow`.

        Raises
        ------
        ValueError
            As in `from_arrow`, and if the files of a folder have different columns.
        CorruptDataError
            If a file is not readable.
        """
        columns = Columns(code_column, id_column, features_column, thumbnail_column)
        with open_parquet(source) as (schema, batches):
            incoming = read_batches(schema, batches, columns, bits=bits, fingerprint=fingerprint)
            import_rows(path, incoming, shard_rows=shard_rows, tables=tables, overwrite=overwrite)
        return cls.open(path)

    def to_faiss(self, path: str | Path | None = None, *, overwrite: bool = False) -> Any:
        """Return the codes and ids as an index of FAISS, in memory.

        Parameters
        ----------
        path : str or Path, optional
            Where the index is also written to: a path, or a URI in a bucket.
        overwrite : bool
            Replace an existing file.

        Returns
        -------
        faiss.IndexBinaryIDMap2
            Over an `IndexBinaryFlat` of `8 * ceil(bits / 8)` bits, because FAISS knows only whole bytes; those beyond
            `bits` are zero. `from_faiss` takes all of them for a code's, unless it is given `bits`.

        Raises
        ------
        MissingDependencyError
            If FAISS is not installed.
        FileExistsError
            If there is a file at `path` and `overwrite` is false.
        """
        index = make_index(_codes_and_ids(self), bits=self.bits)
        if path is not None:
            write_index(index, path, overwrite=overwrite)
        return index

    def to_arrow(self, *, batch_rows: int = BATCH_ROWS) -> pa.RecordBatchReader:
        """Return all rows as record batches, which are read as they are asked for.

        Parameters
        ----------
        batch_rows : int
            Maximum rows of a batch.

        Returns
        -------
        pyarrow.RecordBatchReader
            `id` (int64), `code` (fixed-size binary of `8 * W` bytes: words in little-endian order), the attributes,
            and `features` (fixed-size lists, as `features_of` gives them) and `thumbnail` (binary) if they are stored;
            in no particular order. The metadata of the schema says the rest, so that `from_arrow` makes the same
            collection.
        """
        batch_rows = as_integer(batch_rows, "batch_rows")
        if batch_rows < 1:
            raise ValueError(f"`batch_rows` must be at least 1, got {batch_rows}")
        dimensions, pictures = self.num_features, any(shard.thumbnails is not None for shard in self.shards)
        schema = outgoing_schema(
            self.schema,
            bits=self.bits,
            fingerprint=self.fingerprint,
            features=dimensions,
            features_as=self.features_as,
            thumbnails=pictures,
        )

        def batches() -> Iterator[pa.RecordBatch]:
            for items in _scan(self, batch_rows):
                ids_N = items["id"].to_numpy()
                features_NF = None if dimensions is None else self.features_of(ids_N)
                yield outgoing_batch(items, schema, features_NF, self.thumbnails_of(ids_N) if pictures else None)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def to_parquet(self, target: str | Path, *, batch_rows: int = BATCH_ROWS, overwrite: bool = False) -> None:
        """Write all rows as a Parquet file, with the columns of `to_arrow`.

        Types that Parquet does not have are written as it can hold them; `from_parquet` reads them as they were.

        Parameters
        ----------
        target : str or Path
            A path, or a URI in a bucket.
        batch_rows : int
            Maximum rows of a row group.
        overwrite : bool
            Replace an existing file.

        Raises
        ------
        FileExistsError
            If there is a file at `target` and `overwrite` is false.
        ValueError
            If a time is beyond what Parquet can hold.
        """
        write_parquet(self.to_arrow(batch_rows=batch_rows), target, overwrite=overwrite)


def _scan(collection: Interchange, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield `id`, `code` and the attributes of all rows, without deleted ones."""
    for shard in collection.shards:
        yield from shard.scan(batch_rows=batch_rows)


def _codes_and_ids(collection: Interchange) -> Iterator[tuple[CodeArray, IdArray]]:
    for shard in collection.shards:
        for start in range(0, shard.rows, BATCH_ROWS):
            rows_M = np.arange(start, min(start + BATCH_ROWS, shard.rows))
            rows_M = rows_M if shard.alive is None else rows_M[shard.alive.allows(rows_M)]
            yield shard.codes_NW[rows_M], shard.ids_N[rows_M]


def _rows_of(codes_NW: CodeArray, ids_N: IdArray, attributes: pa.Table | Mapping[str, Any] | None) -> Iterator[Rows]:
    """Return arrays as batches of rows, checked before the first."""
    if attributes is None:
        return cut_rows(Rows(codes_NW, ids_N), BATCH_ROWS)
    table = attributes if isinstance(attributes, pa.Table) else pa.table(dict(attributes))
    if len(table) != len(ids_N):
        raise ValueError(f"`attributes` must have {len(ids_N)} rows, one per code, got {len(table)}")
    check_columns(table.schema)
    batches = table.to_batches(max_chunksize=BATCH_ROWS)
    edges = itertools.pairwise(itertools.accumulate(map(len, batches), initial=0))
    return (
        Rows(codes_NW[start:stop], ids_N[start:stop], batch)
        for (start, stop), batch in zip(edges, batches, strict=True)
    )
