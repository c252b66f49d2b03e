"""The rows of shards as a version has them, read for writing: without deleted rows, with the columns set since."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.features import Features, map_features
from hashlight.engine.ids import find_rows
from hashlight.engine.places.arrays import map_array
from hashlight.engine.places.files import sha256_of
from hashlight.engine.places.integrity import FileSpec
from hashlight.engine.places.place import Place
from hashlight.engine.storage.attributes import BATCH_ROWS, AttributeFile, check_attributes
from hashlight.engine.storage.checking import parse_dead_rows, verify_column, verify_shard
from hashlight.engine.storage.faiss_file import map_faiss_flat
from hashlight.engine.storage.manifest import ShardSpec
from hashlight.engine.storage.shard import FEATURES_FILE, read_ids, read_layout

# Bisection costs some 25 random reads an id, sorting the shard's ids about one a row.
_MANY = 16

_REMEDY = "restore it from a copy, or build the collection again"

_NO_ROWS = np.zeros(0, np.uint32)


class Reader:
    """Reads the shards of one collection. Whatever it has read it keeps, because files do not change.

    From a bucket it fetches the files that it needs, into temporary space of its own: a writer on another machine than
    the readers needs no copy of the collection.

    Parameters
    ----------
    place : Place
    bits : int
        True number of bits of a code.
    """

    def __init__(self, place: Place, *, bits: int) -> None:
        self.place = place
        self.bits = bits
        self._ids: dict[str, tuple[IdArray, NDArray[np.uint32]]] = {}
        self._dead: dict[str, NDArray[np.uint32]] = {}
        self._files: dict[str, AttributeFile] = {}
        self._own: dict[str, pa.Schema] = {}
        self._scratch: Path | None = None

    def forget(self, spec: ShardSpec) -> None:
        """Read the ids of a shard again, which no version has yet."""
        self._ids.pop(spec.name, None)

    # Ids and deleted rows.

    def ids(self, spec: ShardSpec) -> IdArray:
        """Return the ids (N,) of all rows."""
        return self._numbered(spec)[0]

    def rows_of(self, spec: ShardSpec, ids_M: IdArray) -> NDArray[np.int64]:
        """Return the row of each id, deleted or not, and -1 for those that are not in the shard."""
        ids_N, rows_by_id_N = self._numbered(spec)
        if len(ids_M) * _MANY < len(ids_N):
            return find_rows(ids_N, rows_by_id_N, ids_M)
        order_M = np.argsort(ids_M)
        place_M = np.searchsorted(ids_N[rows_by_id_N], ids_M[order_M])
        rows_M = np.empty(len(ids_M), np.int64)
        rows_M[order_M] = rows_by_id_N[np.minimum(place_M, len(ids_N) - 1)]
        return np.where(ids_N[rows_M] == ids_M, rows_M, -1)

    def _numbered(self, spec: ShardSpec) -> tuple[IdArray, NDArray[np.uint32]]:
        if spec.name not in self._ids:
            if self.place.local is None:
                ids_N = read_ids(self.place, spec)
                rows_by_id_N = np.argsort(ids_N).astype(np.uint32)
            else:
                ids_N = map_array(self.path(spec, "ids.npy"), np.int64, (spec.rows,), at_random=True)
                rows_by_id = self.path(spec, "rows_by_id.npy")
                rows_by_id_N = map_array(rows_by_id, np.uint32, (spec.rows,), at_random=True)
            self._ids[spec.name] = ids_N, rows_by_id_N
        return self._ids[spec.name]

    def dead(self, spec: ShardSpec) -> NDArray[np.uint32]:
        """Return the deleted rows, ascending.

        Raises
        ------
        CorruptDataError
            If the file is missing or damaged, or makes no sense.
        """
        if spec.dead is None:
            return _NO_ROWS
        if spec.dead.name not in self._dead:
            name = f"deletions/{spec.dead.name}"
            found = self.place.find(name)
            data = None if found is None else found.data
            self._dead[spec.dead.name] = parse_dead_rows(self.place.path(name), data, spec.dead, spec.rows)
        return self._dead[spec.dead.name]

    # What is stored beside.

    def path(self, spec: ShardSpec, name: str) -> Path:
        """Return the path of a file of a shard, checked."""
        if self.place.local is not None:
            folder = self.place.local / "shards" / spec.name
            verify_shard(folder, spec, bits=self.bits)
            return folder / name
        return self._fetched(f"shards/{spec.name}/{name}", spec.files[name])

    def _column_path(self, spec: ShardSpec, attribute: str) -> Path:
        """Return the path of an attribute that was set later, checked."""
        file = spec.columns[attribute]
        if self.place.local is not None:
            path = self.place.local / "columns" / file.name
            verify_column(path, file, attribute, spec.rows)
            return path
        path = self._fetched(f"columns/{file.name}", FileSpec(file.bytes, file.sha256))
        if check_attributes(path, spec.rows).names != [attribute]:
            raise CorruptDataError(f"{self.place}/columns/{file.name}: expected one attribute, {attribute}: {_REMEDY}")
        return path

    def _fetched(self, name: str, expected: FileSpec) -> Path:
        """Return a copy of one file in a bucket, checked; it goes with this object."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="hashlight-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        path = self._scratch / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.place.download(name, path)
            except BaseException as error:
                path.unlink(missing_ok=True)  # what is here counts as whole
                if isinstance(error, FileNotFoundError):
                    raise CorruptDataError(f"{self.place.path(name)} is missing: {_REMEDY}") from error
                raise
            if (got := sha256_of(path)) != expected.sha256:
                size = path.stat().st_size
                path.unlink()
                raise CorruptDataError(
                    f"{self.place.path(name)} is damaged: expected {expected.bytes} bytes with SHA-256 "
                    f"{expected.sha256:.16}…, got {size} with {got:.16}…: {_REMEDY}"
                )
        return path

    def codes(self, spec: ShardSpec) -> CodeArray:
        """Return the codes (N, W)."""
        return map_faiss_flat(self.path(spec, "codes.faiss"), bits=self.bits, rows=spec.rows)

    def features(self, spec: ShardSpec) -> Features | None:
        """Return the fine features of all rows, None if there are none."""
        return map_features(self.path(spec, FEATURES_FILE), spec.rows) if FEATURES_FILE in spec.files else None

    def thumbnails(self, spec: ShardSpec) -> AttributeFile | None:
        """Return the thumbnails, None if no row has one."""
        return self._file(spec, "thumbnails.arrow")

    def own_columns(self, spec: ShardSpec) -> pa.Schema:
        """Return the attributes that a shard was written with."""
        if spec.name not in self._own:
            self._own[spec.name] = read_layout(self.place, spec).schema or pa.schema([])
        return self._own[spec.name]

    def _file(self, spec: ShardSpec, name: str) -> AttributeFile | None:
        if name not in spec.files:
            return None
        key = f"{spec.name}/{name}"
        if key not in self._files:
            path = self.path(spec, name)
            if self.place.local is None:
                check_attributes(path, spec.rows)
            self._files[key] = AttributeFile(path)
        return self._files[key]

    def _source(self, spec: ShardSpec, field: pa.Field) -> AttributeFile | None:
        """Return the file that an attribute of a shard is in; None if it is null in all rows."""
        if (changed := spec.columns.get(field.name)) is not None:
            if changed.name not in self._files:
                self._files[changed.name] = AttributeFile(self._column_path(spec, field.name))
            source: AttributeFile | None = self._files[changed.name]
        else:
            own = self._file(spec, "attributes.arrow")
            source = own if own is not None and field.name in own.schema.names else None
        if source is not None and source.schema.field(field.name).type != field.type:
            raise CorruptDataError(
                f"{self.place}: attribute {field.name} of shard {spec.name} is {source.schema.field(field.name).type}, "
                f"the collection's is {field.type}: restore the collection from a copy"
            )
        return source

    def batches(self, spec: ShardSpec, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield some attributes of all rows, 1,024 rows at a time."""
        sources = [self._source(spec, field) for field in columns]
        for start in range(0, spec.rows, BATCH_ROWS):
            rows = min(BATCH_ROWS, spec.rows - start)
            arrays = [
                pa.nulls(rows, field.type) if source is None else column_of(source, field.name, start, start + rows)
                for source, field in zip(sources, columns, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=columns)

    def take(self, spec: ShardSpec, columns: pa.Schema, rows_M: NDArray[np.int64]) -> pa.Table:
        """Return some attributes of some rows, in the order of `rows_M`."""
        taken: dict[int, pa.Table] = {}
        arrays = []
        for field in columns:
            source = self._source(spec, field)
            if source is None:
                arrays.append(pa.chunked_array([pa.nulls(len(rows_M), field.type)]))
                continue
            if id(source) not in taken:
                taken[id(source)] = source.take(rows_M)
            arrays.append(taken[id(source)][field.name])
        return pa.table(arrays, schema=columns)


def column_of(file: AttributeFile, name: str, start: int, stop: int) -> pa.Array:
    """Return one attribute of a batch of at most 1,024 rows."""
    (batch,) = file.rows([name], start, stop)
    return batch.column(0)


def live_rows(rows: int, dead_D: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the rows (L,) that are not deleted, ascending."""
    alive_N = np.ones(rows, np.bool_)
    alive_N[dead_D] = False
    return np.flatnonzero(alive_N)
