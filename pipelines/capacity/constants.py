"""What a machine does, as `pipelines.capacity.calibrate` measured it, and what shards and queries take by design."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from hashlight.engine.codes import num_words
from hashlight.engine.indexes.multi_index.tables import choose_widths
from hashlight.engine.indexes.planner import machine_file
from hashlight.pipelines.jobs.errors import PipelineError

CAPACITY = "capacity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What one machine does.

    Attributes
    ----------
    cores : int
    memory_bytes : int
    encoder : str
        What was measured to encode with.
    image_core_s : float
        To decode and encode one image, in seconds of one core.
    build_core_s : float
        To sort, index and hash one code, in seconds of one core.
    disk_bytes_s : float
        Written and forced to the disk.
    query_s, lookup_s, candidate_s : float
        Of a query to one shard, one query at a time: each query, each bucket looked up, each candidate in it.
    scan_word_s : float
        To compare a query with one word of a code, in a scan.
    rows : int
        Of the largest shard that was asked.
    call_s : float
        An empty Arrow Flight call on this machine, median.
    merge_s : float
        To merge one shard's ten answers with those of the others.
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
    """What a query takes of one shard's tables: buckets looked up, and candidates met in them."""

    lookups: float
    candidates: float


def work_of_radius(bits: int, rows: int, radius: int) -> Work:
    """Return what a radius query takes of a shard of uniform codes; learned codes crowd, and have more candidates.

    With m tables and radius r = m q + a, the first a + 1 tables are asked at radius q, the others at q - 1.

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


def bytes_a_code(bits: int, rows: int) -> float:
    """Return what a code of a shard takes on disk, attributes aside, if all codes differ.

    The code and its id, its row in the order of ids, an entry in every table but the first, which needs none as the
    rows stand in its order, and its part of the tables' offsets.

    Examples
    --------
    >>> round(bytes_a_code(64, 62_500_000), 2)
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
        If nothing is stored, or nothing usable.
    """
    path = machine_file(CAPACITY)
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        constants = Constants(**stored)
    except (OSError, ValueError, TypeError) as error:
        raise PipelineError(
            f"this machine was not measured yet ({path} has no constants): run `hashlight calibrate`"
        ) from error
    numbers = [getattr(constants, field.name) for field in fields(constants) if field.name != "encoder"]
    if not all(isinstance(number, int | float) and math.isfinite(number) and number >= 0 for number in numbers):
        raise PipelineError(f"{path} is damaged: run `hashlight calibrate` again")
    return constants
