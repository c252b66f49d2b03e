"""The indexes that a user can choose between. They all give the same answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

# The command line names the choices in its help, and must not load numba for that: classes are imported when used.
if TYPE_CHECKING:
    from hashlight.engine.codes import CodeArray, IdArray
    from hashlight.engine.indexes.base import Index
    from hashlight.engine.indexes.faiss.base import FaissIndex

# "auto": the planner picks tables or a scan for each query; "multi": tables; "scan": a scan; the others: FAISS.
IndexChoice = Literal["auto", "multi", "scan", "faiss-flat", "faiss-multi-hash"]
INDEX_CHOICES: tuple[IndexChoice, ...] = get_args(IndexChoice)


def check_index(index: object) -> IndexChoice:
    """Return `index` if it is one of the choices.

    Raises
    ------
    ValueError
        If it is not.
    """
    if index not in INDEX_CHOICES:
        raise ValueError(f"`index` must be one of {', '.join(INDEX_CHOICES)}, got {index!r}")
    return index


def faiss_kind(index: IndexChoice) -> type[FaissIndex] | None:
    """Return the class of a FAISS index; None for one of our own."""
    from hashlight.engine.indexes.faiss.flat import FaissFlatIndex
    from hashlight.engine.indexes.faiss.multi_hash import FaissMultiHashIndex

    return next((kind for kind in (FaissFlatIndex, FaissMultiHashIndex) if kind.plan == index), None)


def build_index(index: IndexChoice, codes_NW: CodeArray, ids_N: IdArray, *, bits: int) -> Index:
    """Index codes (N, W) in memory; arguments and errors are those of `engine.indexes.base.Index.build`."""
    from hashlight.engine.indexes.multi_index.index import MultiIndex
    from hashlight.engine.indexes.scan import ScanIndex

    kind = faiss_kind(check_index(index))
    if kind is not None:
        return kind.build(codes_NW, ids_N, bits=bits)
    if index == "scan":
        return ScanIndex.build(codes_NW, ids_N, bits=bits)
    built = MultiIndex.build(codes_NW, ids_N, bits=bits)
    built.plan = "tables" if index == "multi" else "auto"
    return built
