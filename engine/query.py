"""The query: the k nearest, or all within a radius. Every layer from client to index passes it on."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hashlight.engine.codes import MAX_ANSWERS, as_integer, check_k, check_limit, check_radius

Kind = Literal["nearest", "within"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """The search to make for each code of a batch.

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
    threads : int or None
        Maximum number of threads for a batch; None: one for a single code, one for each core for a batch.
    explain : bool
        Whether the answer includes an `engine.results.Explanation`.

    Raises
    ------
    ValueError
        If not exactly one of `k` and `radius` is given, or `limit` without `radius`. The ranges depend on the codes;
        `checked` checks them.
    """

    k: int | None = None
    radius: int | None = None
    limit: int | None = None
    filter: str | None = None
    threads: int | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        if (self.k is None) == (self.radius is None):
            raise ValueError(f"give exactly one of `k` and `radius`, got k {self.k} and radius {self.radius}")
        if self.limit is not None and self.radius is None:
            raise ValueError("`limit` goes with `radius`: `k` is a limit itself")

    @property
    def kind(self) -> Kind:
        """Whether the query is for the nearest, or for all within a radius."""
        return "within" if self.k is None else "nearest"

    def checked(self, *, bits: int, rows: int = MAX_ANSWERS) -> Query:
        """Return the query with plain integers, checked for `rows` codes of `bits` bits.

        Raises
        ------
        TypeError
            If `k`, `radius`, `limit` or `threads` is not a whole number.
        ValueError
            If one is out of its range.
        """
        k = None if self.k is None else check_k(self.k, rows=rows)
        radius = None if self.radius is None else check_radius(self.radius, bits=bits)
        limit, threads = check_limit(self.limit), check_threads(self.threads)
        if k is self.k and radius is self.radius and limit is self.limit and threads is self.threads:
            return self
        return dataclasses.replace(self, k=k, radius=radius, limit=limit, threads=threads)


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
