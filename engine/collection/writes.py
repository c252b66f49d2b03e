"""The methods of a collection that write its next version, each a transaction of its own."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
from numpy.typing import ArrayLike

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.collection.writing.compaction import compact
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.features import FeaturesLike
from hashlight.engine.places.opening import open_place
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import list_versions


class Writes:
    """What `Collection` can change. A collection that is open stays as it is; each method returns one that is newer.

    Every method raises what `Transaction.commit` does: `CollectionBusyError`, for instance, if other processes write
    without a pause.
    """

    location: str

    def _reopened(self) -> Self:
        """Open the live version."""
        raise NotImplementedError

    def transaction(self, *, tables: bool = True) -> Transaction:
        """Return a transaction, for several changes in one step.

        Parameters
        ----------
        tables : bool
            Whether new shards get a multi-index.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> from hashlight import Collection
        >>> codes = np.arange(4, dtype=np.uint64)[:, None]
        >>> collection = Collection.create(tempfile.mkdtemp() + "/c", codes, bits=16)
        >>> with collection.transaction() as change:
        ...     change.delete([0, 1, 7])
        ...     change.add(codes[:1])
        ...     change.commit()
        Commit(version=2, added=1, deleted=2)
        """
        return Transaction(self.location, tables=tables)

    @contextlib.contextmanager
    def _committing(self, *, tables: bool = True) -> Iterator[Transaction]:
        with self.transaction(tables=tables) as change:
            yield change
            change.commit()

    def add(
        self,
        codes: CodeArray,
        *,
        ids: IdArray | None = None,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        features: FeaturesLike | None = None,
        thumbnails: Sequence[bytes | None] | pa.Array | None = None,
        shards: int = 1,
        tables: bool = True,
    ) -> Self:
        """Add rows, and open the version that has them.

        Parameters
        ----------
        codes : ndarray of uint64, shape (N, W)
            From the encoder that made the stored ones.
        ids : ndarray of int64, shape (N,), optional
            0 or more, and in no row; by default the next ones, in the order of the codes. Ids of deleted rows are not
            given again.
        attributes : pyarrow.Table or mapping of columns, optional
            N rows; attributes of the collection that are missing are null.
        features : ndarray of float16 or float32, shape (N, F), or Features, optional
            Needed if the collection has fine features; they are rounded to what it keeps.
        thumbnails : sequence of bytes or None, or pyarrow.Array of binary, length N, optional
            Small encoded pictures.
        shards : int
            Number of new shards, 1 to N; old shards do not change.
        tables : bool
            As in `create`.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, an id is there already, or the collection does not have an attribute (see
            `set_column`).
        """
        with self._committing(tables=tables) as change:
            change.add(codes, ids, attributes, features, thumbnails, shards)
        return self._reopened()

    def upsert(
        self,
        codes: CodeArray,
        *,
        ids: IdArray,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        features: FeaturesLike | None = None,
        thumbnails: Sequence[bytes | None] | pa.Array | None = None,
        shards: int = 1,
        tables: bool = True,
    ) -> Self:
        """Add rows, in place of those that have their ids; otherwise as `add`."""
        with self._committing(tables=tables) as change:
            change.upsert(codes, ids, attributes, features, thumbnails, shards)
        return self._reopened()

    def delete(self, ids: IdArray | Sequence[int]) -> Self:
        """Delete the rows that have some ids, as far as they are there, and open the version without them.

        Parameters
        ----------
        ids : ndarray of int64 or sequence of int, shape (M,)
        """
        with self._committing() as change:
            change.delete(ids)
        return self._reopened()

    def delete_where(self, filter: str, parameters: Mapping[str, ArrayLike] | None = None) -> Self:
        """Delete the rows of the live version that satisfy a filter, and open the version without them.

        Parameters
        ----------
        filter : str
            See `engine.filters.filter`.
        parameters : mapping of str to sequence of int, optional
            Lists of ids that `filter` names.

        Raises
        ------
        FilterError
            If the filter is not a condition on these attributes and parameters.
        """
        with self._committing() as change:
            change.delete_where(filter, parameters)
        return self._reopened()

    def update(self, ids: IdArray | Sequence[int], attributes: pa.Table | Mapping[str, Any]) -> Self:
        """Give rows other attributes, and open the version that has them. All else that they have stays.

        Parameters
        ----------
        ids : ndarray of int64 or sequence of int, shape (M,)
            Distinct.
        attributes : pyarrow.Table or mapping of columns
            M rows, with the attributes that change.

        Raises
        ------
        IdNotFoundError
            If there is no row of an id.
        TypeError, ValueError
            If an argument is invalid, or the collection does not have an attribute (see `set_column`).
        """
        with self._committing() as change:
            change.update(ids, attributes)
        return self._reopened()

    def set_column(
        self, name: str, values: Any, *, ids: IdArray | Sequence[int], type: pa.DataType | None = None
    ) -> Self:
        """Give rows values of one attribute, which the collection has or gets, and open the version that has them.

        No code is written again: for a column of all rows this is cheaper than `update`.

        Parameters
        ----------
        name : str
        values : sequence, ndarray or pyarrow.Array, length M
        ids : ndarray of int64 or sequence of int, shape (M,)
            Distinct. Other rows keep their values, or are null. None at all only make the attribute.
        type : pyarrow.DataType, optional
            That of `values` by default. An attribute that has another becomes this one.

        Raises
        ------
        IdNotFoundError
            If there is no row of an id.
        TypeError, ValueError
            If an argument is invalid, or values that stay cannot become this type.
        """
        with self._committing() as change:
            change.set_column(name, values, ids=ids, type=type)
        return self._reopened()

    def drop_column(self, name: str) -> Self:
        """Drop an attribute, and open the version without it.

        Raises
        ------
        ValueError
            If there is no such attribute.
        """
        with self._committing() as change:
            change.drop_column(name)
        return self._reopened()

    def compact(self, *, full: bool = False) -> Self:
        """Merge shards that are small or have many deleted rows, and open the version that has the result.

        Answers stay the same. Which shards are worth it, and why, is in `engine.collection.writing.policy`.

        Parameters
        ----------
        full : bool
            Merge all of them, so that nothing of deleted rows is left in the live version. What versions before it
            still have goes with them; see `prune`.
        """
        compact(self.location, full=full)
        return self._reopened()

    # Versions.

    def versions(self) -> list[Manifest]:
        """Return the versions that can be opened (`Collection.open(path, version=...)`), the latest first."""
        return list_versions(open_place(self.location))

    def tag(self, name: str, version: int | None = None) -> Self:
        """Keep a version under a name, by which it can be opened, until `untag`; return the live version.

        Parameters
        ----------
        name : str
            Letters, digits, and any of `. _ + -`.
        version : int, optional
            The one that this object has open by default.

        Raises
        ------
        ValueError
            If another version has that name.
        CollectionNotFoundError
            If the version is gone.
        """
        with self._committing() as change:
            change.tag(name, self._open_version if version is None else version)
        return self._reopened()

    @property
    def _open_version(self) -> int:
        raise NotImplementedError

    def untag(self, name: str) -> Self:
        """Remove a name that `tag` gave; return the live version.

        Raises
        ------
        ValueError
            If there is no such tag.
        """
        with self._committing() as change:
            change.untag(name)
        return self._reopened()

    def rollback(self, version: int | str) -> Self:
        """Write a version that is what an earlier one was, and open it. The versions between stay as they are.

        Parameters
        ----------
        version : int or str
            Its number or its tag.

        Raises
        ------
        CollectionNotFoundError
            If the version is gone.
        """
        with self._committing() as change:
            change.rollback(version)
        return self._reopened()

    def prune(self, *, keep: int | None = None, older_than: datetime.timedelta | None = None) -> Self:
        """Let versions go that are neither tagged nor open anywhere, with what only they consist of.

        Parameters
        ----------
        keep : int, optional
            How many stay, the one that this call makes included; the one before it stays in any case.
        older_than : datetime.timedelta, optional
            Younger ones stay, too.

        Raises
        ------
        ValueError
            If neither is given, or `keep` is less than 1.
        """
        with self._committing() as change:
            change.prune(keep=keep, older_than=older_than)
        return self._reopened()
