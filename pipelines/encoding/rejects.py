"""Images that could not be encoded: why, how many are too many, and the table of them all."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hashlight.engine.wording import counted
from hashlight.pipelines.codes.parts import part_name
from hashlight.pipelines.jobs.folder import JobFolder, sidecar_name

# Where the number of images is not known beforehand, a share means nothing until this many have been seen.
_MIN_IMAGES_FOR_SHARE = 1000
_ROW_GROUP_ROWS = 10_000
_SCHEMA = pa.schema({"id": pa.int64(), "uri": pa.string(), "kind": pa.string(), "reason": pa.string()})


@dataclass(frozen=True, slots=True)
class RejectBudget:
    """How many images may be rejected: a number, a share of all, or any number.

    Attributes
    ----------
    count : int or None
    share : float or None
        0 to 1.
    """

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str | int | None) -> RejectBudget:
        """Read "1%" as a share, "100" as a number, None as no limit.

        Raises
        ------
        ValueError
            If it is neither.
        """
        if text is None:
            return cls()
        plain = str(text).strip()
        try:
            budget = cls(share=float(plain[:-1]) / 100) if plain.endswith("%") else cls(count=int(plain))
        except ValueError:
            budget = cls(count=-1)
        if not (0 <= (budget.share or 0) <= 1 and (budget.count or 0) >= 0):
            raise ValueError(f"--max-rejects must be a number of images or a share from 0% to 100%, got {plain!r}")
        return budget

    def __str__(self) -> str:
        """Return it as it is given on the command line."""
        if self.share is not None:
            return f"{100 * self.share:g}%"
        return "any" if self.count is None else str(self.count)

    def is_exceeded(self, rejects: int, images: int, images_total: int | None) -> bool:
        """Whether a job with these rejects among the images it saw cannot, or is unlikely to, end within the budget."""
        if self.count is not None:
            return rejects > self.count
        if self.share is None:
            return False
        if images_total is not None:
            return rejects > self.share * images_total
        return images >= _MIN_IMAGES_FOR_SHARE and rejects > self.share * images


@dataclass(slots=True)
class Gathered:
    """The sums over all sidecars: codes, rejects, how often each kind and reason occurs, and what was left out.

    Attributes
    ----------
    codes, rejects : int
    kinds, reasons : Counter
        Of the rejects.
    left_out : set of str
        Attributes.
    skipped : Counter
        Files in shards, by kind.
    orphans : set of str
        Files of codes that no sidecar names: of processes that were killed, or were not the first.
    """

    codes: int = 0
    rejects: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    left_out: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    orphans: set[str] = field(default_factory=set)


def write_rejects(job: JobFolder, units: Sequence[int]) -> Gathered:
    """Gather the rejects of finished units into `rejects.parquet`, in order.

    Raises
    ------
    PipelineError
        If a unit was finished by another job.
    """
    gathered = Gathered(orphans=set(job.place.names("parts")))
    rows = _gather(job, units, gathered)
    with job.place.scratch("rejects.parquet") as aside:
        with pq.ParquetWriter(aside, _SCHEMA) as table:
            while some := list(itertools.islice(rows, _ROW_GROUP_ROWS)):
                table.write_table(pa.Table.from_pylist(some, _SCHEMA))
        job.place.put_file("rejects.parquet", aside)
    return gathered


def _gather(job: JobFolder, units: Sequence[int], gathered: Gathered) -> Iterator[dict[str, Any]]:
    for unit, data in zip(units, job.place.read_many(map(sidecar_name, units)), strict=True):
        sidecar = job.parse(unit, data)
        gathered.codes += sidecar["codes"]
        gathered.rejects += sidecar["rejects"]
        gathered.orphans.discard(part_name(unit, sidecar["sha256"]).removeprefix("parts/"))
        gathered.left_out.update(sidecar["left_out"])
        gathered.skipped.update(sidecar["skipped"])
        gathered.kinds.update(row["kind"] for row in sidecar["rejected"])
        gathered.reasons.update(_shared(row["reason"]) for row in sidecar["rejected"])
        yield from sidecar["rejected"]


def units_to_retry(job: JobFolder, units: Sequence[int], kinds: Collection[str]) -> list[int]:
    """Return the finished units that have rejects of some kinds."""
    read = zip(units, job.place.read_many(map(sidecar_name, units)), strict=True)
    return [unit for unit, data in read if any(row["kind"] in kinds for row in job.parse(unit, data)["rejected"])]


def common_reasons(reasons: Counter[str]) -> str:
    """Name the three most common reasons and how often each occurs."""
    return "; ".join(f"{reason} ({counted(count, 'time')})" for reason, count in reasons.most_common(3))


def _shared(reason: str) -> str:
    """Return the part of a reason that many images share."""
    return reason.partition(":")[0]
