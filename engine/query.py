"""The query: the k nearest, or all within a radius. Every layer from client to index passes it on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from hashlight.engine.codes import MAX_ANSWERS, as_integer, check_k, check_limit, check_radius
from hashlight.engine.filters.parameters import Parameters, check_named
from hashlight.engine.filters.tokens import check_unicode
from hashlight.engine.ids import MAX_ID

Kind = Literal["nearest", "within"]


class Query(NamedTuple):
    """The search to make for each code of a batch.

    A named tuple, because building one is a visible part of a search that takes microseconds. It is checked where it
    arrives: by `checked`.

    Attributes
    ----------
    k : int or None
        Find the `k` nearest; or
    radius : int or None
        find all within this Hamming distance, inclusive. Exactly one of the two is given.
    limit : int or None
        With `radius`: keep at most this many nearest answers.
    filter : str or None
        Search only rows whose attributes match; see `engine.filters.filter`.
    parameters : Parameters or None
        The lists of ids that `filter` names.
    threads : int or None
        Maximum number of threads for a batch; None: one for a single code, one for each core for a batch.
    explain : bool
        Whether the answer includes an `engine.results.Explanation`.
    after : tuple of int, int, or None
        With `radius`: only answers that come after this (distance, id) in the order of answers. With that of the last
        answer of a truncated result, the same search gives those that follow it.
    """

    k: int | None = None
    radius: int | None = None
    limit: int | None = None
    filter: str | None = None
    parameters: Parameters | None = None
    threads: int | None = None
    explain: bool = False
    after: tuple[int, int] | None = None

    @property
    def kind(self) -> Kind:
        """Whether the query is for the nearest, or for all within a radius."""
        return "within" if self.k is None else "nearest"

    def checked(self, *, bits: int, rows: int = MAX_ANSWERS) -> Query:
        """Return the query with plain integers, checked for `rows` codes of `bits` bits.

        Raises
        ------
        TypeError
            If `k`, `radius`, `limit` or `threads` is not a whole number, or `after` is not two of them.
        ValueError
            If one is out of its range, not exactly one of `k` and `radius` is given, `limit` or `after` without
            `radius`, or `parameters` without `filter`.
        FilterError
            If `filter` has half of a surrogate pair.
        """
        k, radius, limit, filter, parameters, threads, explain, after = self
        if (k is None) == (radius is None):
            raise ValueError(f"give exactly one of `k` and `radius`, got k {k} and radius {radius}")
        if k is not None:
            if limit is not None:
                raise ValueError("`limit` goes with `radius`: `k` is a limit itself")
            if after is not None:
                raise ValueError("`after` goes with `radius`: for more of the nearest, ask for a larger `k`")
            k = check_k(k, rows=rows)
        else:
            radius, limit = check_radius(radius, bits=bits), check_limit(limit)
        if isinstance(filter, str):
            check_unicode(filter)
        check_named(filter, parameters)
        threads = check_threads(threads)
        if after is not None:
            after = check_after(after, bits=bits)
        # Plain integers stay the objects that they are: then there is nothing to build.
        same = k is self.k and radius is self.radius and limit is self.limit and after is self.after
        if same and threads is self.threads:
            return self
        return Query(k, radius, limit, filter, parameters, threads, explain, after)


def check_after(after: object, *, bits: int) -> tuple[int, int]:
    """Return `after` as a distance and an id of plain integers.

    Raises
    ------
    TypeError
        If it is not two whole numbers.
    ValueError
        If one is out of its range.
    """
    if not isinstance(after, Sequence) or len(after) != 2:
        raise TypeError(f"`after` must be a (distance, id), those of the last answer, got {after!r}")
    distance, id = as_integer(after[0], "after[0]"), as_integer(after[1], "after[1]")
    if not 0 <= distance <= bits or not 0 <= id <= MAX_ID:
        raise ValueError(
            f"`after` must be a distance of 0 to {bits} and an id of 0 to {MAX_ID}, those of the last answer, got "
            f"({distance}, {id})"
        )
    return distance, id


def check_threads(threads: object) -> int | None:
    """Return `threads` if it is None or a whole number of at least 1.

    Raises
    ------
    TypeError
        If it is anything else.
    ValueError
        If it is below 1.
    """
    if threads is None:
        return None
    value = as_integer(threads, "threads")
    if value < 1:
        raise ValueError(f"`threads` must be at least 1 or None, got {value}")
    return value


class Text(NamedTuple):
    """A query that is a text."""

    words: str
