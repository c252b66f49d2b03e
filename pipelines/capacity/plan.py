"""A capacity plan: shards, memory, disk, nodes and hours for a number of images, with its arithmetic.

Every line is a formula, its numbers and its result, so that a reader can redo it with numbers of their own. The
machine's constants are those of `pipelines.capacity.constants`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hashlight.engine.codes import num_words
from hashlight.engine.indexes.multi_index.planner import likely_radius
from hashlight.engine.indexes.multi_index.tables import choose_widths
from hashlight.engine.service.routing.hedging import BUDGET
from hashlight.pipelines.capacity.constants import (
    BUILD_DRIVER_SHARD_BYTES,
    BUILD_DRIVER_UNIT_BYTES,
    ENCODE_ACTOR_UNIT_BYTES,
    ENCODE_DRIVER_UNIT_BYTES,
    Constants,
    bytes_per_code,
    work_of_radius,
)
from hashlight.pipelines.corpora.work import UNIT_IMAGES

# Share of a node's memory that the system and the processes leave for mapped files.
MEMORY_SHARE = 0.8
# Above this utilisation, tail latency grows faster than the load; see docs/capacity.md.
CORE_SHARE = 0.6
# The previous version stays on disk for its readers.
VERSIONS = 2
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The requirements to plan for.

    Attributes
    ----------
    images : int
    bits : int
    qps : float
        Single queries per second.
    radius, k : int or None
        Exactly one of them.
    replicas : int
    shard_codes : int
        Number of codes in a shard.
    node_cores : int
    node_bytes : int
        Memory of a node.
    """

    images: int
    bits: int
    qps: float
    radius: int | None = None
    k: int | None = None
    replicas: int = 2
    shard_codes: int = 50_000_000
    node_cores: int
    node_bytes: int

    def __post_init__(self) -> None:
        if (self.radius is None) == (self.k is None):
            raise ValueError(f"give exactly one of `radius` and `k`, got {self.radius} and {self.k}")
        whole = ("images", "replicas", "shard_codes", "node_cores", "node_bytes")
        wrong = [f"{name} {getattr(self, name)}" for name in whole if getattr(self, name) < 1]
        if wrong or self.qps <= 0:
            raise ValueError(f"the numbers of a plan must be above 0, got {', '.join(wrong or [f'qps {self.qps}'])}")
        if not 1 <= self.bits <= 1024:
            raise ValueError(f"`bits` must be 1 to 1024, as collections store, got {self.bits}")


@dataclass(frozen=True, slots=True)
class Line:
    """One step of the arithmetic.

    Attributes
    ----------
    name : str
    formula : str
    numbers : str
        The formula with its numbers in it.
    value : float
    text : str
        The value with its unit.
    """

    name: str
    formula: str
    numbers: str
    value: float
    text: str


def plan(demand: Demand, constants: Constants) -> list[Line]:
    """Compute a plan line by line; each line uses the previous ones."""
    sheet = _Sheet()
    _storage(sheet, demand)
    _queries(sheet, demand, constants)
    _nodes(sheet, demand)
    _latency(sheet, demand, constants)
    _hours(sheet, demand, constants)
    _job_memory(sheet, demand)
    return sheet.lines


class _Sheet:
    """The lines so far, and their values by name."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def __getitem__(self, name: str) -> float:
        return next(line.value for line in self.lines if line.name == name)

    def add(self, name: str, formula: str, numbers: str, value: float, text: str) -> None:
        self.lines.append(Line(name, formula, numbers, value, text))


def _storage(sheet: _Sheet, demand: Demand) -> None:
    shards = math.ceil(demand.images / demand.shard_codes)
    sheet.add(
        "shards", "images / codes per shard", f"{demand.images:,} / {demand.shard_codes:,}", shards, f"{shards:,}"
    )
    rows = math.ceil(demand.images / shards)
    widths = choose_widths(demand.bits, rows)
    code = bytes_per_code(demand.bits, rows)
    sheet.add(
        "bytes per code",
        "8 x words + id + row by id + 8 x (tables - 1) + 4 x sum of 2^width of the tables / codes per shard",
        f"8 x {num_words(demand.bits)} + 8 + 4 + 8 x ({len(widths)} - 1) + "
        f"4 x {sum(2**width for width in widths):,} / {rows:,}",
        code,
        f"{code:.1f} bytes",
    )
    total = demand.images * code
    sheet.add("collection", "images x bytes per code", f"{demand.images:,} x {code:.1f}", total, _gib(total))
    memory = total * demand.replicas
    numbers = f"{_gib(total)} x {demand.replicas}"
    sheet.add("memory", "collection x replicas, all of it in the page cache", numbers, memory, _gib(memory))
    disk = memory * VERSIONS
    sheet.add("disk", "memory x versions kept", f"{_gib(memory)} x {VERSIONS}", disk, _gib(disk))


def _queries(sheet: _Sheet, demand: Demand, constants: Constants) -> None:
    rows = math.ceil(demand.images / sheet["shards"])
    radius = demand.radius if demand.radius is not None else likely_radius(demand.bits, rows, demand.k or 1)
    work = work_of_radius(demand.bits, rows, radius)
    tables_s = work.lookups * constants.lookup_s + work.candidates * constants.candidate_s
    words = num_words(demand.bits)
    seconds = constants.query_s + min(tables_s, rows * words * constants.scan_word_s)
    about = f"at radius {radius}" + ("" if demand.k is None else f", where the {demand.k} nearest of {rows:,} are")
    sheet.add(
        "query to a shard",
        f"a query + min(lookups x a lookup + candidates x a candidate, codes x words x a word scanned), {about}",
        f"{constants.query_s * 1e6:.1f} us + min({work.lookups:,} x {constants.lookup_s * 1e9:.1f} ns + "
        f"{work.candidates:,.0f} x {constants.candidate_s * 1e9:.2f} ns, "
        f"{rows:,} x {words} x {constants.scan_word_s * 1e9:.2f} ns)",
        seconds,
        f"{seconds * 1e6:,.1f} us",
    )
    total = sheet["shards"] * seconds
    numbers = f"{sheet['shards']:,.0f} x {seconds * 1e6:,.1f} us"
    sheet.add("query to all shards", "shards x query to a shard", numbers, total, f"{total * 1e3:,.2f} ms of a core")
    hedging = BUDGET
    busy = demand.qps * total * (1 + hedging)
    numbers = f"{demand.qps:g} x {total * 1e3:,.2f} ms x {1 + hedging:g}"
    sheet.add("busy cores", "queries/s x query to all shards x (1 + hedges)", numbers, busy, f"{busy:,.2f}")


def _nodes(sheet: _Sheet, demand: Demand) -> None:
    room = demand.node_bytes * MEMORY_SHARE
    by_memory = math.ceil(sheet["memory"] / room)
    numbers = f"{_gib(sheet['memory'])} / ({_gib(demand.node_bytes)} x {MEMORY_SHARE})"
    sheet.add("nodes by memory", "memory / (memory per node x usable share)", numbers, by_memory, f"{by_memory:,}")
    share = CORE_SHARE * max(demand.replicas - 1, 1) / demand.replicas
    by_cores = math.ceil(sheet["busy cores"] / (demand.node_cores * share))
    sheet.add(
        "nodes by cores",
        "busy cores / (cores per node x busy share x (replicas - 1) / replicas), as one may be lost",
        f"{sheet['busy cores']:,.2f} / ({demand.node_cores} x {share:.2f})",
        by_cores,
        f"{by_cores:,}",
    )
    groups = math.ceil(max(by_memory, by_cores, 1) / demand.replicas)
    numbers = f"max({by_memory:,}, {by_cores:,}) / {demand.replicas}"
    sheet.add("groups", "max(nodes by memory, nodes by cores) / replicas", numbers, groups, f"{groups:,}")
    nodes = groups * demand.replicas
    sheet.add("nodes", "groups x replicas", f"{groups:,} x {demand.replicas}", nodes, f"{nodes:,}")


def _latency(sheet: _Sheet, demand: Demand, constants: Constants) -> None:
    shards = math.ceil(sheet["shards"] / sheet["groups"])
    rounds = math.ceil(shards / demand.node_cores)
    seconds = constants.call_s + rounds * sheet["query to a shard"] + sheet["groups"] * constants.merge_s
    sheet.add(
        "latency, idle",
        "a call + shards per group / cores x query to a shard + groups x a merge",
        f"{constants.call_s * 1e3:.2f} ms + {rounds:,} x {sheet['query to a shard'] * 1e6:,.1f} us + "
        f"{sheet['groups']:,.0f} x {constants.merge_s * 1e6:.1f} us",
        seconds,
        f"{seconds * 1e3:,.2f} ms",
    )


def _hours(sheet: _Sheet, demand: Demand, constants: Constants) -> None:
    nodes, cores = sheet["nodes"], sheet["nodes"] * demand.node_cores
    encode = demand.images * constants.image_core_s / cores / 3600
    sheet.add(
        "hours to encode",
        f"images x core time of an image ({constants.encoder}) / cores",
        f"{demand.images:,} x {_short(constants.image_core_s)} / {cores:,.0f}",
        encode,
        f"{encode:,.2f} h",
    )
    work_s = demand.images * constants.build_core_s / cores
    build = (work_s + sheet["collection"] / constants.disk_bytes_s / nodes) / 3600
    sheet.add(
        "hours to build",
        "images x core time of a code / cores + collection / disk speed / nodes",
        f"{demand.images:,} x {_short(constants.build_core_s)} / {cores:,.0f} + {_gib(sheet['collection'])} / "
        f"{constants.disk_bytes_s / 2**20:,.0f} MiB/s / {nodes:,.0f}",
        build,
        f"{build:,.2f} h",
    )


def _job_memory(sheet: _Sheet, demand: Demand) -> None:
    units = math.ceil(demand.images / UNIT_IMAGES)
    sheet.add("units of work", "images / images per unit", f"{demand.images:,} / {UNIT_IMAGES:,}", units, f"{units:,}")
    for name, what, each in (
        ("encode, driver", "units x bytes held for one", ENCODE_DRIVER_UNIT_BYTES),
        ("encode, each actor", "units x bytes of the work list's index", ENCODE_ACTOR_UNIT_BYTES),
    ):
        sheet.add(name, f"{what}; rejects take none", f"{units:,} x {each}", units * each, _gib(units * each))
    shards, rows = sheet["shards"], demand.images / sheet["shards"]
    build = units * BUILD_DRIVER_UNIT_BYTES + shards * BUILD_DRIVER_SHARD_BYTES + 16 * rows
    sheet.add(
        "build, driver",
        "units x bytes held for one + shards x bytes held for one + ids of one shard, read and checked",
        f"{units:,} x {BUILD_DRIVER_UNIT_BYTES} + {shards:,.0f} x {BUILD_DRIVER_SHARD_BYTES:,} + {rows:,.0f} x 16",
        build,
        _gib(build),
    )


def _short(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.2f} us"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"
