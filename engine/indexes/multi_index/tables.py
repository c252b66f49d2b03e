"""The arrays of a multi-index: choosing the substring widths; building, saving and mapping the tables."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import WORD_BITS, CodeArray, num_words
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.indexes.arrays import bytes_of, read_only
from hashlight.engine.indexes.threads import run_parts
from hashlight.engine.kernels.arguments import TableArrays
from hashlight.engine.kernels.multi_index import build_first_table, build_table, mark_distinct
from hashlight.engine.places.arrays import map_array, write_array

FORMAT_VERSION = 1
MAX_WIDTH = 24  # 64 MiB of offsets per table
MAX_TABLES = 16
TABLES_PER_WORD = 5
PADDING_ENTRIES = 8  # after the last entry, because kernels read eight at a time


def choose_widths(bits: int, distinct: int) -> list[int]:
    """Return the widths of the substrings, the highest bits first; narrow ones come first, as their steps cost less.

    A substring has about log2(distinct) - 4 bits, sixteen codes per bucket: with shorter ones the additional candidates
    cost more than the lookups saved, with longer ones the reverse. This determines the number of tables; bits left over
    widen the substrings, down to four codes per bucket. Measured on 4 million codes, 4 tables of 16 bits against 3 of
    20: 1.2 to 2.3 times as fast. Bits that no substring covers cost candidates, never answers.

    Examples
    --------
    >>> choose_widths(64, 10_000_000)
    [21, 21, 21]
    >>> choose_widths(64, 1_000_000)
    [16, 16, 16, 16]
    >>> choose_widths(128, 1_000_000)
    [16, 16, 16, 16, 16, 16, 16, 16]
    """
    size = math.log2(max(distinct, 2))
    widest = min(max(round(size) - 2, 1), MAX_WIDTH)
    wanted = min(max(size - 4, 1.0), MAX_WIDTH)
    count = max(1, min(round(bits / wanted), TABLES_PER_WORD * num_words(bits), MAX_TABLES))
    return [min(bits // count + (table >= count - bits % count), widest) for table in range(count)]


def sketch_runs(bits: int, widths: list[int], sketch_bits: int) -> NDArray[np.int64]:
    """Return (low, width, low, width), shape (T, 4), of the two runs of bits that each table's sketches hold.

    Together they have `sketch_bits` bits, or as many as there are: first from above the substring, then from below it.

    Examples
    --------
    >>> sketch_runs(64, [21, 21, 22], 40).tolist()
    [[0, 0, 3, 40], [43, 21, 3, 19], [22, 40, 0, 0]]
    """
    runs_T4 = np.empty((len(widths), 4), np.int64)
    top = bits
    for table, width in enumerate(widths):
        low = top - width
        above = min(sketch_bits, bits - top)
        below = min(sketch_bits - above, low)
        runs_T4[table] = (top if above else 0), above, low - below, below
        top = low
    return runs_T4


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one index over N rows sorted by (code, id); see `engine.kernels.arguments` for the arrays.

    Attributes
    ----------
    bits, rows, distinct : int
        Bits, rows and distinct codes that the tables were built over.
    widths : tuple of int
        Width of each substring, from the highest bits down.
    largest : tuple of int
        Size of each table's largest bucket.
    offsets : ndarray of uint32, shape (sum of 2^width + 1,)
    entries : ndarray of uint64, shape ((T - 1) * distinct + 8,)
    starts : ndarray of uint32, shape (distinct,) or (0,)
        Empty if all codes are distinct.
    """

    bits: int
    rows: int
    distinct: int
    widths: tuple[int, ...]
    largest: tuple[int, ...]
    offsets: NDArray[np.uint32]
    entries: NDArray[np.uint64]
    starts: NDArray[np.uint32]

    @classmethod
    def build(cls, codes_NW: CodeArray, *, bits: int, widths: list[int] | None = None, threads: int = 1) -> Self:
        """Build the tables over sorted codes (uint64, shape (N, W)), each table in a thread."""
        code_bytes, words, rows = bytes_of(codes_NW), codes_NW.shape[1], len(codes_NW)
        starts = _distinct_rows(code_bytes, words, rows)
        distinct = len(starts) or rows
        widths = choose_widths(bits, distinct) if widths is None else widths
        lows = bits - np.cumsum(widths)
        begins = _begins(widths)
        row_bits = _row_bits(rows)
        runs_T4 = sketch_runs(bits, widths, WORD_BITS - row_bits)
        offsets = np.empty(begins[-1], np.uint32)
        entries = np.empty((len(widths) - 1) * distinct + PADDING_ENTRIES, np.uint64)
        entries[-PADDING_ENTRIES:] = 0
        largest = [0] * len(widths)

        def build_one(part: slice) -> None:
            for table in range(part.start, part.stop):
                common = code_bytes, words, starts, distinct, int(lows[table]), widths[table]
                offset_V = offsets[begins[table] : begins[table + 1]]
                if table == 0:
                    largest[0] = int(build_first_table(*common, offset_V))
                else:
                    entry_D = entries[(table - 1) * distinct : table * distinct]
                    largest[table] = int(build_table(*common, runs_T4[table], row_bits, offset_V, entry_D))

        for first in range(0, len(widths), threads):
            run_parts(build_one, [slice(t, t + 1) for t in range(first, min(first + threads, len(widths)))])
        return cls(bits, rows, distinct, tuple(widths), tuple(largest), offsets, entries, starts)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.offsets.nbytes + self.entries.nbytes + self.starts.nbytes

    @property
    def row_bits(self) -> int:
        """Low bits of an entry that hold the row; the rest holds the sketch."""
        return _row_bits(self.rows)

    def kernel_arrays(self) -> TableArrays:
        """Return the arrays as kernels take them."""
        low_T = self.bits - np.cumsum(self.widths)
        width_T = np.array(self.widths, np.int64)
        submask_TW = np.zeros((len(self.widths), num_words(self.bits)), np.uint64)
        for table, (low, width) in enumerate(zip(low_T.tolist(), self.widths, strict=True)):
            ones = ((1 << width) - 1) << low
            for word in range(submask_TW.shape[1]):
                submask_TW[table, word] = (ones >> (WORD_BITS * word)) & (2**WORD_BITS - 1)
        begin_T = np.array(_begins(list(self.widths))[:-1], np.int64)
        runs_T4 = sketch_runs(self.bits, list(self.widths), WORD_BITS - self.row_bits)
        entry_bytes = self.entries.view(np.uint8)
        return TableArrays(
            low_T=read_only(low_T),
            width_T=read_only(width_T),
            begin_T=read_only(begin_T),
            submask_TW=read_only(submask_TW),
            sketch_T4=read_only(runs_T4),
            offset_O=read_only(self.offsets),
            entry_bytes=read_only(entry_bytes),
            start_D=read_only(self.starts),
            num_distinct=self.distinct,
            row_bits=self.row_bits,
        )

    def save(self, folder: Path) -> None:
        """Write the tables into the new folder `folder`, in a folder that exists."""
        folder.mkdir()
        write_array(folder / "offsets.npy", self.offsets)
        write_array(folder / "entries.npy", self.entries)
        write_array(folder / "starts.npy", self.starts)
        head = {
            "format": FORMAT_VERSION,
            "bits": self.bits,
            "rows": self.rows,
            "distinct": self.distinct,
            "widths": self.widths,
            "largest": self.largest,
        }
        (folder / "tables.json").write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def open(cls, folder: Path, *, bits: int, rows: int) -> Self:
        """Map the tables in `folder`, reading only their sizes.

        Raises
        ------
        CorruptDataError
            If they are not tables of `rows` codes of `bits` bits, or are inconsistent.
        """
        head = _read_head(folder / "tables.json", bits=bits, rows=rows)
        distinct, widths = head["distinct"], head["widths"]

        def mapped(name: str, dtype: type[np.unsignedinteger[Any]], length: int) -> NDArray[Any]:
            return map_array(folder / name, dtype, (length,), at_random=True)

        return cls(
            bits=bits,
            rows=rows,
            distinct=distinct,
            widths=tuple(widths),
            largest=tuple(head["largest"]),
            offsets=mapped("offsets.npy", np.uint32, _begins(widths)[-1]),
            entries=mapped("entries.npy", np.uint64, (len(widths) - 1) * distinct + PADDING_ENTRIES),
            starts=mapped("starts.npy", np.uint32, distinct if distinct != rows else 0),
        )


def _read_head(path: Path, *, bits: int, rows: int) -> dict[str, Any]:
    """Read the sizes of tables of `rows` codes of `bits` bits; see `Tables.open`."""
    try:
        head = json.loads(path.read_bytes())
        found = (head["format"], head["bits"], head["rows"])
        distinct, widths, largest = head["distinct"], head["widths"], head["largest"]
        numbers = [*found, distinct, *widths, *largest]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptDataError(f"{path} is not readable ({error}): build the tables again") from error
    if found != (FORMAT_VERSION, bits, rows):
        raise CorruptDataError(
            f"{path}: expected tables of (format, bits, rows) {(FORMAT_VERSION, bits, rows)}, got {found}: "
            "build them again"
        )
    if not (
        all(type(number) is int for number in numbers)
        and min(rows, 1) <= distinct <= rows
        and 1 <= len(widths) <= MAX_TABLES
        and all(1 <= width <= MAX_WIDTH for width in widths)
        and sum(widths) <= bits
        and len(largest) == len(widths)
    ):
        raise CorruptDataError(
            f"{path}: expected 1 to {MAX_TABLES} tables of 1 to {MAX_WIDTH} bits each, at most {bits} together, over "
            f"at most {rows} distinct codes, got {distinct} codes, widths {widths}, largest buckets {largest}: "
            "build the tables again"
        )
    assert isinstance(head, dict), "it has keys"
    return head


def _distinct_rows(code_bytes: NDArray[np.uint8], words: int, rows: int) -> NDArray[np.uint32]:
    """Return the first row of each distinct code; an empty array if all are distinct."""
    distinct = mark_distinct(code_bytes, words, rows, np.empty(0, np.uint32))
    starts = np.empty(0 if distinct == rows else distinct, np.uint32)
    if len(starts):
        mark_distinct(code_bytes, words, rows, starts)
    return starts


def _row_bits(rows: int) -> int:
    return max(rows - 1, 1).bit_length()


def _begins(widths: list[int]) -> list[int]:
    return [0, *np.cumsum([2**width + 1 for width in widths]).tolist()]
