"""The speed of a machine, measured by `pipelines.capacity.calibrate`, and the size and work of shards by design."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from hashlight.engine.codes import num_words
from hashlight.engine.indexes.multi_index.planner import machine_file
from hashlight.engine.indexes.multi_index.tables import choose_widths
from hashlight.pipelines.corpora.work import INDEX_BYTES
from hashlight.pipelines.jobs.errors import PipelineError

CAPACITY = "capacity"

# What a process of a job holds in memory beside the unit or shard it works on; tests measure them. Rejects and ids are
# streamed through files, so that nothing is held for them.
ENCODE_ACTOR_UNIT_BYTES = INDEX_BYTES
ENCODE_DRIVER_UNIT_BYTES = 450  # the size of its part, and whether it is done
BUILD_DRIVER_UNIT_BYTES = 450  # its part's path and digest, and the rows that a shard takes of it
BUILD_DRIVER_SHARD_BYTES = 6_000  # the names, sizes and digests of its files


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """The measured speed of one machine.

    Attributes
    ----------
    cores : int
    memory_bytes : int
    encoder : str
        The encoder that was measured.
    image_core_s : float
        Core seconds to decode and encode one image.
    build_core_s : float
        Core seconds to sort, index and hash one code.
    disk_bytes_s : float
        Write speed, including fsync.
    query_s, lookup_s, candidate_s : float
        Cost of a query to one shard, one query at a time: for the query, for each bucket, for each candidate in it.
    scan_word_s : float
        Cost of comparing a query with one word of a code in a scan.
    rows : int
        Number of rows of the largest measured shard.
    call_s : float
        Median time of an empty Arrow Flight call on this machine.
    merge_s : float
        Cost of merging ten answers of one shard with those of the others.
    """

    cores: int
    memory_bytes: int
    encoder: str
    image_core_s: float
    build_core_s: float
    disk_bytes_s: float
    query_s: float
    lookup_s: float
    candidate_s: float
    scan_word_s: float
    rows: int
    call_s: float
    merge_s: float


class Work(NamedTuple):
    """The work of a query in one shard's tables: buckets looked up, and candidates found in them."""

    lookups: float
    candidates: float


def work_of_radius(bits: int, rows: int, radius: int) -> Work:
    """Return the work of a radius query in a shard of uniform codes; learned codes cluster and have more candidates.

    With m tables and radius r = m q + a, the first a + 1 tables are probed at radius q, the others at q - 1.

    Examples
    --------
    >>> work_of_radius(64, 2**21, 4)
    Work(lookups=20, candidates=640.0)
    """
    widths = choose_widths(bits, rows)
    each, more = divmod(radius, len(widths))
    lookups, candidates = 0, 0.0
    for table, width in enumerate(widths):
        reach = min(each - (table > more), width)
        buckets = sum(math.comb(width, ones) for ones in range(reach + 1))
        lookups += buckets
        candidates += buckets * rows / 2**width
    return Work(lookups, candidates)


def bytes_per_code(bits: int, rows: int) -> float:
    """Return the bytes of a code on disk, without attributes, if all codes differ.

    They are the code and its id, its row in the order of ids, an entry in every table but the first (rows are sorted in
    its order, so it needs none), and its share of the tables' offsets.

    Examples
    --------
    >>> round(bytes_per_code(64, 62_500_000), 2)
    36.54
    """
    widths = choose_widths(bits, rows)
    offsets = 4 * sum((1 << width) + 1 for width in widths) / rows
    return 8 * num_words(bits) + 8 + 4 + 8 * (len(widths) - 1) + offsets


def load_constants() -> Constants:
    """Return what `hashlight calibrate` stored.

    Raises
    ------
    PipelineError
        If nothing usable is stored.
    """
    path = machine_file(CAPACITY)
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        constants = Constants(**stored)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise PipelineError(
            f"this machine has not been measured ({path} has no constants): run `hashlight calibrate`"
        ) from error
    numbers = [getattr(constants, field.name) for field in fields(constants) if field.name != "encoder"]
    if not all(isinstance(number, int | float) and math.isfinite(number) and number >= 0 for number in numbers):
        raise PipelineError(f"{path} is damaged: run `hashlight calibrate` again")
    return constants
