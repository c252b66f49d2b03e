"""A collection: a versioned set of shards in a folder, opened in this process."""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine.codes import (
    WORD_BITS,
    CodeArray,
    IdArray,
    check_bits,
    check_codes,
    check_ids,
    check_k,
    check_limit,
    check_radius,
)
from engine.errors import CollectionExistsError, CollectionNotFoundError, CorruptDataError, IdNotFoundError
from engine.indexes.threads import check_threads
from engine.rerank import Rerank, RerankResult, check_query_features, pools_of_range, rerank_ids
from engine.results import PAD_ID, RangeResult, SearchResult
from engine.router import Router
from engine.storage.files import sync_file, sync_folder, writer_lock
from engine.storage.manifest import Manifest, ShardSpec, publish, read_current
from engine.storage.shard import Shard, write_shard

logger = logging.getLogger(__name__)

_OWN_ENTRIES = {".lock", "CURRENT", "encoder", "manifests", "shards"}
_MARKS = {".lock", "CURRENT", "manifests"}


class Collection:
    """Codes on disk that answer exact Hamming queries.

    A collection keeps the version it was opened at, also while another process writes a newer one. Several threads may
    use one collection at once.

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

    def __init__(self, path: Path, manifest: Manifest, shards: Sequence[Shard]) -> None:
        self.path = path
        self._manifest = manifest
        self._shards = tuple(shards)
        self._router = Router(self._shards, version=manifest.version)

    @classmethod
    def create(
        cls,
        path: str | Path,
        codes: CodeArray,
        *,
        ids: IdArray | None = None,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        bits: int | None = None,
        features: NDArray[np.float16] | None = None,
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
            A folder that is not there, is empty, or (with `overwrite`) is a collection.
        codes : ndarray of uint64, shape (N, W)
            N of at least 1, `W = ceil(bits / 64)`.
        ids : ndarray of int64, shape (N,), optional
            Distinct, 0 or more; the row numbers if left out.
        attributes : pyarrow.Table or mapping of columns, optional
            N rows to be given back with the answers.
        bits : int, optional
            True number of bits of a code; `64 * W` if left out.
        features : ndarray of float16, shape (N, F), optional
            Fine features to re-rank answers by; see `engine.rerank`.
        shards : int
            Number of shards, 1 to N.
        encoder : str or Path, optional
            Folder of the encoder that made the codes; a copy is kept in the collection.
        fingerprint : str, optional
            The encoder's fingerprint.
        tables : bool
            Build the multi-index of each shard. Without it every answer is a scan, and the shard half the size.
        overwrite : bool
            Replace a collection that is there. Readers of the old one keep it until they close it.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong in itself.
        CollectionExistsError
            If there is something at `path` and `overwrite` is false, or it is not a collection.
        CollectionBusyError
            If another process is writing there.
        """
        if bits is None:
            bits = WORD_BITS * codes.shape[-1] if isinstance(codes, np.ndarray) and codes.ndim else WORD_BITS
        bits = check_bits(bits)
        codes = check_codes(codes, bits=bits, name="codes")
        ids = check_ids(np.arange(len(codes)) if ids is None else ids, rows=len(codes))
        table = _as_table(attributes, rows=len(codes))
        features = None if features is None else _check_features(features, rows=len(codes))
        with CollectionWriter(path, bits=bits, fingerprint=fingerprint, tables=tables, overwrite=overwrite) as writer:
            if encoder is not None:
                writer.add_encoder(Path(encoder))
            for part in split_rows(len(codes), shards):
                part_table = None if table is None else table.slice(part.start, part.stop - part.start)
                part_features = None if features is None else features[part]
                writer.add_shard(codes[part], ids[part], part_table, part_features)
            writer.commit()
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> Self:
        """Open the live version of a collection.

        Parameters
        ----------
        path : str or Path
        verify : bool
            Hash every file again, also those that were verified on this machine and not written since.

        Raises
        ------
        CollectionNotFoundError
            If there is none at `path`.
        CorruptDataError
            If a file is missing or damaged.
        """
        path = Path(path)
        manifest = read_current(path)
        shards = [
            Shard(path / "shards" / spec.name, spec, bits=manifest.bits, verify_all=verify) for spec in manifest.shards
        ]
        return cls(path, manifest, shards)

    @property
    def bits(self) -> int:
        """True number of bits of a code."""
        return self._manifest.bits

    @property
    def version(self) -> int:
        """The version that is open."""
        return self._manifest.version

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the encoder that made the codes, if one did."""
        return self._manifest.encoder

    @property
    def encoder_path(self) -> Path | None:
        """Folder of the encoder that made the codes, if it was kept."""
        folder = self.path / "encoder" / (self.fingerprint or "")
        return folder if self.fingerprint and folder.is_dir() else None

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, in the manifest's order."""
        return self._shards

    @property
    def num_bytes(self) -> int:
        """Bytes of all shard files."""
        return sum(spec.bytes for shard in self._manifest.shards for spec in shard.files.values())

    def __len__(self) -> int:
        """Return the number of codes."""
        return self._manifest.rows

    def __repr__(self) -> str:
        """Answer what an operator asks first."""
        return (
            f"Collection({str(self.path)!r}, version {self.version}: {len(self):,} codes of {self.bits} bits in "
            f"{len(self._shards)} shards, {self.num_bytes / 1e6:,.1f} MB)"
        )

    @overload
    def search(
        self,
        queries: CodeArray,
        k: int = 10,
        *,
        filter: str | None = None,
        rerank: None = None,
        features: None = None,
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
        rerank: Rerank,
        features: NDArray[np.floating[Any]],
        threads: int | None = None,
        explain: bool = False,
    ) -> RerankResult: ...

    def search(
        self,
        queries: CodeArray,
        k: int = 10,
        *,
        filter: str | None = None,
        rerank: Rerank | None = None,
        features: NDArray[np.floating[Any]] | None = None,
        threads: int | None = None,
        explain: bool = False,
    ) -> SearchResult | RerankResult:
        """Find the k nearest codes of each query, or the k nearest by fine features among the nearest codes.

        Parameters
        ----------
        queries : ndarray of uint64, shape (Q, W)
        k : int
            At least 1; more than there are codes gives padded rows.
        filter : str, optional
            Search only rows whose attributes satisfy it, such as `'label == 3 and price < 5.5'`; see `engine.filters`.
        rerank : Rerank, optional
            Take a pool of codes, of a size or within a radius, and order it by fine features.
        features : ndarray of float, shape (Q, F), with `rerank` only
            The queries' own fine features, from the encoder that made the collection's.
        threads : int, optional
            At most this many for one call; one a core if left out. All calls of a process share one pool.
        explain : bool
            Say in `explain` how each query was answered: plan, probes, candidates, seconds.

        Returns
        -------
        SearchResult or, with `rerank`, RerankResult
            distances (Q, k) and ids (Q, k) int64, ascending by (distance, id), with coverage. Distances are Hamming,
            int32, or those of features, float32.

        Raises
        ------
        TypeError, ValueError
            If codes, features or filter do not fit the collection, or it has no features to order by.
        """
        check_codes(queries, bits=self.bits, name="queries")
        check_query_features(features, rerank, num_queries=len(queries))
        k, threads = check_k(k), check_threads(threads)
        if rerank is None or features is None:
            return self._router.search(queries, k, filter=filter, threads=threads, explain=explain)
        if rerank.radius is not None:
            found = self.range_search(queries, rerank.radius, filter=filter, threads=threads, explain=explain)
            pool_ids, coverage, explanation = pools_of_range(found), found.coverage, found.explain
        else:
            nearest = self._router.search(queries, rerank.pool or k, filter=filter, threads=threads, explain=explain)
            pool_ids, coverage, explanation = nearest.ids, nearest.coverage, nearest.explain
        ordered = rerank_ids(features, pool_ids, self.features_of, k, metric=rerank.metric)
        return ordered._replace(coverage=coverage, explain=explanation)

    def range_search(
        self,
        queries: CodeArray,
        radius: int = 4,
        limit: int | None = None,
        *,
        filter: str | None = None,
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
            Keep at most this many answers a query, the nearest, and say in `truncated` where more were found.
        filter, threads, explain
            As in `search`.

        Returns
        -------
        RangeResult
        """
        check_codes(queries, bits=self.bits, name="queries")
        radius, limit = check_radius(radius, bits=self.bits), check_limit(limit)
        return self._router.range_search(
            queries, radius, limit, filter=filter, threads=check_threads(threads), explain=explain
        )

    def get(self, ids: IdArray | Sequence[int]) -> pa.Table:
        """Return what is stored of some ids, in the order asked.

        Parameters
        ----------
        ids : ndarray of int64 or sequence of int, shape (M,)

        Returns
        -------
        pyarrow.Table
            M rows: `id` (int64), `code` (binary of `8 * W` bytes, little-endian words), and the attributes.

        Raises
        ------
        IdNotFoundError
            If the collection lacks one of them.
        """
        wanted_M = np.asarray(ids, np.int64).reshape(-1)
        place_M = np.full(len(wanted_M), -1)
        tables, offset = [self._items(self._shards[0], wanted_M[:0], wanted_M[:0])], 0
        for shard in self._shards:
            row_M = shard.rows_of(wanted_M)
            found = np.flatnonzero(row_M >= 0)
            if len(found):
                tables.append(self._items(shard, wanted_M[found], row_M[found]))
                place_M[found] = offset + np.arange(len(found))
                offset += len(found)
        if (place_M < 0).any():
            missing = wanted_M[place_M < 0]
            hint = " (-1 pads short answers: drop it)" if (missing == PAD_ID).any() else ""
            raise IdNotFoundError(f"{len(missing)} of {len(wanted_M)} ids are not here, first {missing[0]}{hint}")
        return pa.concat_tables(tables).take(place_M)

    def features_of(self, ids: IdArray) -> NDArray[np.float16]:
        """Return the fine features of some ids, (M, F) float16, in the order asked.

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
        stored = [shard.features_NF for shard in self._shards]
        if stored[0] is None:
            raise ValueError(
                f"{self.path} has no fine features: encode with `--features`, or give `Collection.create` some"
            )
        features_MF = np.empty((len(ids), stored[0].shape[1]), np.float16)
        found_M = np.zeros(len(ids), np.bool_)
        for shard, shard_features in zip(self._shards, stored, strict=True):
            row_M = shard.rows_of(ids)
            here_M = row_M >= 0
            assert shard_features is not None, "a collection is written with features in all shards or none"
            features_MF[here_M] = shard_features[row_M[here_M]]
            found_M |= here_M
        if not found_M.all():
            raise IdNotFoundError(f"{int((~found_M).sum())} of {len(ids)} ids are not here, first {ids[~found_M][0]}")
        return features_MF

    @staticmethod
    def _items(shard: Shard, ids_M: IdArray, row_M: IdArray) -> pa.Table:
        code_type = pa.binary(8 * shard.codes_NW.shape[1])
        codes = [code.tobytes() for code in shard.codes_NW[row_M]]
        table = pa.table({"id": pa.array(ids_M), "code": pa.array(codes, code_type)})
        if shard.attributes is None:
            return table
        for name, column in zip(shard.attributes.schema.names, shard.attributes.take(row_M).columns, strict=True):
            table = table.append_column(name, column)
        return table


class CollectionWriter:
    """Writes one new version of a collection; nothing is seen of it until `commit`.

    Use it as a context manager: it holds the collection's writer lock, and what was not committed is removed.

    Parameters
    ----------
    path : str or Path
    bits : int
    fingerprint : str or None
        Of the encoder that made the codes.
    tables : bool
        Whether shards get a multi-index.
    overwrite : bool
        Whether a collection that is there may be replaced.
    """

    def __init__(
        self, path: str | Path, *, bits: int, fingerprint: str | None, tables: bool = True, overwrite: bool
    ) -> None:
        self._path = Path(path)
        self._bits = check_bits(bits)
        self._fingerprint = fingerprint
        self._tables = tables
        self._overwrite = overwrite
        self._previous: Manifest | None = None
        self._specs: list[ShardSpec] = []
        self._uncommitted: list[Path] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Take the writer lock and check that a collection may be written here."""
        refuse_foreign_folder(self._path)
        self._path.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(writer_lock(self._path))
        try:
            self._previous = self._replaceable()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Remove what was not committed and let go of the lock."""
        with self._stack:
            for folder in self._uncommitted:
                shutil.rmtree(folder, ignore_errors=True)

    def _replaceable(self) -> Manifest | None:
        """Return the live manifest that this write will replace; a damaged one may be replaced too."""
        try:
            live = read_current(self._path)
        except (CollectionNotFoundError, CorruptDataError) as error:
            if self._overwrite or not _entries(self._path / "manifests"):
                return None
            raise CorruptDataError(
                f"{self._path} holds a collection that cannot be read ({error}); it can be replaced "
                "(`overwrite=True`, `--overwrite`)"
            ) from error
        if not self._overwrite:
            raise CollectionExistsError(
                f"{self._path} is a collection (version {live.version}, {live.rows:,} codes): choose another path, "
                "or say that it may be replaced (`overwrite=True`, `--overwrite`)"
            )
        return live

    def add_shard(
        self,
        codes_NW: CodeArray,
        ids_N: IdArray,
        attributes: pa.Table | None,
        features_NF: NDArray[np.float16] | None = None,
    ) -> None:
        """Write one shard; arguments as in `write_shard`."""
        folder = self._path / "shards" / uuid.uuid4().hex
        self._uncommitted.append(folder)
        spec = write_shard(
            folder, codes_NW, ids_N, attributes, bits=self._bits, tables=self._tables, features_NF=features_NF
        )
        self._specs.append(spec)

    def add_encoder(self, folder: Path) -> None:
        """Keep a copy of the encoder that made the codes."""
        if self._fingerprint is None:
            raise ValueError("an encoder is kept under its fingerprint: give `fingerprint` with `encoder`")
        target = self._path / "encoder" / self._fingerprint
        if target.is_dir():
            if _contents(target) == _contents(folder):
                return
            shutil.rmtree(target)
        aside = target.with_name(f"{target.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(folder, aside)
        for file in _entries(aside):
            sync_file(file)
        sync_folder(aside)
        aside.rename(target)
        sync_folder(target.parent)

    def commit(self) -> Manifest:
        """Publish the shards as the collection's new version, in one step."""
        sync_folder(self._path / "shards")
        last = max((int(path.stem) for path in self._path.glob("manifests/[0-9]*.json")), default=0)
        manifest = Manifest(version=last + 1, bits=self._bits, encoder=self._fingerprint, shards=tuple(self._specs))
        # From here on the new version may be live, whatever happens: what dies before that is swept by the next write.
        self._uncommitted.clear()
        publish(self._path, manifest)
        self._sweep(manifest)
        return manifest

    def _sweep(self, live: Manifest) -> None:
        """Remove what neither the live version nor the one before it names.

        The one before stays for readers that have read CURRENT and not yet opened its files. The lock is held, so
        whatever else lies here was left by a writer that died, or is two versions old.
        """
        kept = [live] if self._previous is None else [live, self._previous]
        names: dict[str, set[str | None]] = {
            "shards": {shard.name for manifest in kept for shard in manifest.shards},
            "manifests": {manifest.file_name for manifest in kept},
            "encoder": {manifest.encoder for manifest in kept},
        }
        for folder, keep in names.items():
            for entry in _entries(self._path / folder):
                if entry.name not in keep:
                    logger.info("removing %s, which no live version names", entry)
                    _remove(entry)


def split_rows(rows: int, shards: int) -> Iterator[slice]:
    """Cut `rows` rows into `shards` runs whose lengths differ by at most one.

    Raises
    ------
    ValueError
        If there are no rows, or `shards` is not within 1 to `rows`.
    """
    if rows == 0:
        raise ValueError("a collection holds at least 1 code, got 0")
    if not 1 <= shards <= rows:
        raise ValueError(f"`shards` must be 1 to {rows} (the number of codes), got {shards}")
    edges = [rows * number // shards for number in range(shards + 1)]
    return (slice(start, stop) for start, stop in itertools.pairwise(edges))


def refuse_foreign_folder(path: Path) -> None:
    """Raise CollectionExistsError if `path` holds anything that is not a collection's."""
    if path.exists() and not path.is_dir():
        raise CollectionExistsError(f"{path} is a file, expected a folder for the collection: choose another path")
    names = {entry.name for entry in _entries(path)}
    foreign = sorted(name for name in names - _OWN_ENTRIES if not name.endswith(".tmp"))
    if foreign or (names and not names & _MARKS):
        raise CollectionExistsError(
            f"{path} is not a collection and not empty (it has {', '.join(sorted(names)[:3])}): choose another path"
        )


def _remove(entry: Path) -> None:
    """Remove what is no longer used; that it cannot be removed takes nothing from the version that was published."""
    try:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    except OSError as error:
        logger.warning("cannot remove %s (%s): the next write tries again", entry, error)


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in _entries(folder)}


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _check_features(features: NDArray[np.float16], *, rows: int) -> NDArray[np.float16]:
    if features.dtype != np.float16 or features.ndim != 2 or len(features) != rows:
        raise ValueError(
            f"`features` must be float16 of shape ({rows}, F), one row a code, got {features.dtype} of shape "
            f"{features.shape}"
        )
    return features


def _as_table(attributes: pa.Table | Mapping[str, Any] | None, *, rows: int) -> pa.Table | None:
    if attributes is None:
        return None
    table = attributes if isinstance(attributes, pa.Table) else pa.table(dict(attributes))
    if len(table) != rows:
        raise ValueError(f"`attributes` must have {rows} rows, one a code, got {len(table)}")
    reserved = {"id", "code"} & set(table.column_names)
    if reserved:
        raise ValueError(f"`attributes` must not be named {sorted(reserved)}: these come from the collection itself")
    return table
