"""What does a filter cost, new and known, at every selectivity? One thread, answers checked, LanceDB in the same run.

    python -m venv /tmp/lance && /tmp/lance/bin/pip install lancedb
    python -m benchmarks.filters --lance /tmp/lance/bin/python --out benchmarks/results/filters_NAME_DATE

Three tables: a new filter over `--filtered` rows (the columns of a shard, nothing cached); searches of `--rows` codes
with a filter that was asked before, by the planner's choice and by each plan it chooses from; and whole questions with
a filter that is new, against LanceDB's prefilter, with a scalar index on the column and without. Answers are compared
with those of numpy over the allowed codes.

*Scan then filter* is the cheaper of a scan with a mask and the tables with a mask; *filter then gather* goes to every
allowed row. The worst ratio of the planner's time to the better of the two is the number that counts. Times are of the
processor, of all threads, and minima over repeats, because other programs share the machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BITS = 64
SHARES = (0.5, 0.1, 0.03, 0.01, 0.001, 0.0001, 0.00001)
QUESTIONS = (("k", 10), ("k", 100), ("radius", 4), ("radius", 12))
BATCHES = (1, 64)
PLANS = ("tables", "scan", "gather")
CELL_S = 0.05
WINDOW_S = 0.0005  # of calls that are measured together
MIN_WINDOWS = 3
LONGEST_S = 0.5  # a plan whose batch would take longer is left out: it is not the best
LANCE_QUERIES = 8
MILLION = 1_000_000


def min_s(run: Callable[[], object], seconds: float = CELL_S) -> float:
    """Return the least processor time of a call, over as many as fit into a time."""
    before = time.process_time()
    run()
    calls = max(1, int(WINDOW_S / max(time.process_time() - before, 1e-9)))
    times: list[float] = []
    while len(times) < MIN_WINDOWS or sum(times) * calls < seconds:
        before = time.process_time()
        for _ in range(calls):
            run()
        times.append((time.process_time() - before) / calls)
    return min(times)


def make_codes(kind: str, rows: int) -> np.ndarray:
    """Codes whose bits are fair coins, or codes that crowd around centres as learned ones do."""
    rng = np.random.default_rng(0)
    if kind == "uniform":
        return rng.integers(2**64, size=(rows, 1), dtype=np.uint64)
    centres = rng.integers(2**64, size=4000, dtype=np.uint64)
    flips = rng.integers(2**64, size=(4, rows), dtype=np.uint64)
    return (centres[rng.integers(len(centres), size=rows)] ^ np.bitwise_and.reduce(flips))[:, None]


def make_columns(rows: int) -> dict[str, Any]:
    """`rank` is a permutation, so that `rank < n` allows exactly n rows, anywhere."""
    import pyarrow as pa

    rng = np.random.default_rng(1)
    kinds = np.array(["bag", "boot", "coat", "dress", "shirt", "shoe", "sneaker", "trouser"])
    price = rng.random(rows) * 100
    return {
        "rank": pa.array(rng.permutation(rows)),
        "label": pa.array(rng.integers(10, size=rows), pa.int32()),
        "price": pa.array(price, mask=rng.random(rows) < 0.1),
        "sold": pa.array(rng.random(rows) < 0.5),
        "kind": pa.array(kinds[rng.integers(8, size=rows)]),
        "day": pa.array(rng.integers(19_000, 20_000, size=rows).astype(np.int32), pa.int32()).cast(pa.date32()),
        "cost": pa.array(rng.integers(10_000, size=rows)).cast(pa.decimal128(19, 0)).cast(pa.decimal128(18, 0)),
    }


FILTERS = (
    "label == 3",
    "label in (1, 3, 8)",
    "price < 25.5",
    "price >= 20 and price < 40 and label != 3",
    "sold == true",
    "kind == 'shoe'",
    "kind like 's%' or kind is null",
    "day >= '2023-01-01'",
    "cost <= 2500",
    "rank < 20",
    "rank < -1",
)


def time_new_filters(folder: Path, rows: int) -> list[dict[str, Any]]:
    """Time the evaluation of filters over the columns of one shard, from plain arrays and from the attributes."""
    import pyarrow as pa

    from hashlight.engine.filters.filter import Filter
    from hashlight.engine.storage.attributes import AttributeFile, Attributes, write_attributes
    from hashlight.engine.storage.scalars import ScalarFile, ShardColumns, write_scalars

    table = pa.table(make_columns(rows))
    write_attributes(folder / "attributes.arrow", [table], np.arange(rows))
    start = time.perf_counter()
    write_scalars(folder, rows)
    written_s = time.perf_counter() - start
    file, scalars = AttributeFile(folder / "attributes.arrow"), ScalarFile(folder / "scalars.arrow")
    attributes = Attributes(file.schema, rows, file, {})
    found = [{"filter": "writing scalars.arrow", "plain_ms": written_s * 1e3, "attributes_ms": None, "share": None}]
    for text in FILTERS:
        parsed = Filter(text, attributes.schema)
        sources = [ShardColumns(attributes, source, rows) for source in (scalars, None)]
        masks = [parsed.mask(source) for source in sources]
        assert (masks[0] == masks[1]).all(), text
        plain_s, attributes_s = (min_s(functools.partial(parsed.mask, source)) for source in sources)
        share = float(np.bitwise_count(masks[0]).sum()) / rows
        found.append({"filter": text, "plain_ms": plain_s * 1e3, "attributes_ms": attributes_s * 1e3, "share": share})
    return found


def time_plans(kind: str, codes: np.ndarray) -> list[dict[str, Any]]:
    """Time every plan and the planner's choice with a mask that is at hand."""
    from hashlight.engine.indexes.masks import RowMask
    from hashlight.engine.indexes.multi_index.index import MultiIndex

    index = MultiIndex.build(codes, np.arange(len(codes)), bits=BITS, threads=1)
    rng = np.random.default_rng(2)
    cells = []
    for share in SHARES:
        may = np.zeros(len(codes), np.bool_)
        may[rng.choice(len(codes), round(share * len(codes)), replace=False)] = True
        mask = RowMask.of(may)
        alone_s: dict[str, float] = {}
        for batch in BATCHES:
            queries = index.codes_NW[rng.integers(len(codes), size=batch)] ^ np.uint64(0b10101)
            for what, size in QUESTIONS:
                ask = functools.partial(index.search if what == "k" else index.range_search, queries, size, mask=mask)
                check(index, may, queries[:2], ask(threads=1), what, size)
                cell: dict[str, Any] = {"kind": kind, "share": share, "batch": batch, "question": f"{what} {size}"}
                for plan in (*PLANS, "auto"):
                    if batch * alone_s.get(f"{what} {size} {plan}", 0.0) > LONGEST_S:
                        continue
                    assert same(ask(threads=1, plan=plan), ask(threads=1))
                    took_s = min_s(functools.partial(ask, threads=1, plan=plan))
                    alone_s.setdefault(f"{what} {size} {plan}", took_s)
                    cell[plan] = took_s / batch * 1e6
                explained = ask(threads=1, explain=True).explain
                assert explained is not None, "it was asked for"
                cell["chosen"] = explained.plans[0]
                cell["ratio"] = cell["auto"] / min(cell[plan] for plan in PLANS if plan in cell)
                cells.append(cell)
                print(json.dumps(cell), file=sys.stderr, flush=True)
    return cells


def same(answer: Any, other: Any) -> bool:
    return bool((answer.ids == other.ids).all() and (answer.distances == other.distances).all())


def check(index: Any, may: np.ndarray, queries: np.ndarray, answer: Any, what: str, size: int) -> None:
    """Compare an answer with numpy's over the allowed codes."""
    codes, ids = index.codes_NW[may], index.ids_N[may]
    for number, query in enumerate(queries):
        apart = np.bitwise_count(codes[:, 0] ^ query[0]).astype(np.int64)
        order = np.lexsort((ids, apart))
        order = order[:size] if what == "k" else order[apart[order] <= size]
        got = answer.ids[number] if what == "k" else answer.ids[answer.lims[number] : answer.lims[number + 1]]
        assert got[: len(order)].tolist() == ids[order].tolist(), (what, size)


def time_questions(codes: np.ndarray, folder: Path) -> list[dict[str, Any]]:
    """Time whole questions through a collection, each with a filter never asked before, and with the same again."""
    import pyarrow as pa

    from hashlight.engine.collection.collection import Collection

    rows = len(codes)
    attributes = pa.table({"rank": make_columns(rows)["rank"]})
    collection = Collection.create(folder / "collection", codes, ids=np.arange(rows), attributes=attributes, bits=BITS)
    queries = codes[:LANCE_QUERIES] ^ np.uint64(0b10101)
    found = []
    for share in SHARES:
        limit = round(share * rows)
        texts = iter(f"rank < {limit} and rank >= -{number}" for number in range(1, 10**6))

        def new(number: int = 0, texts=texts) -> Any:
            return collection.search(queries[number : number + 1], 10, filter=next(texts), threads=1)

        def again(number: int = 0, limit: int = limit) -> Any:
            return collection.search(queries[number : number + 1], 10, filter=f"rank < {limit}", threads=1)

        ids = [again(number).ids[0].tolist() for number in range(LANCE_QUERIES)]
        distances = [again(number).distances[0].tolist() for number in range(LANCE_QUERIES)]
        assert new().ids[0].tolist() == ids[0]
        found.append(
            {
                "share": share,
                "new_ms": min_s(new) * 1e3,
                "again_ms": min_s(again) * 1e3,
                "ids": ids,
                "distances": distances,
            }
        )
    return found


def time_lance(folder: Path, indexed: bool) -> list[dict[str, Any]]:
    """Time LanceDB's prefilter on the same questions, on one thread; run by the interpreter that has LanceDB."""
    import lancedb
    import pyarrow as pa

    codes = np.load(folder / "codes.npy")
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(codes.view(np.uint8).reshape(-1)), BITS // 8)
    data = pa.table({"id": np.arange(len(codes)), "rank": np.load(folder / "rank.npy"), "vector": vectors})
    table = lancedb.connect(folder / "lance").create_table("codes", data, mode="overwrite")
    if indexed:
        table.create_scalar_index("rank", index_type="BTREE")
    queries = np.ascontiguousarray(codes[:LANCE_QUERIES] ^ np.uint64(0b10101)).view(np.uint8)

    def ask(query: np.ndarray, limit: int) -> Any:
        asked = table.search(query).distance_type("hamming").where(f"rank < {limit}", prefilter=True).limit(10)
        return asked.select(["id", "_distance"]).to_arrow()

    found = []
    for share in SHARES:
        limit = round(share * len(codes))
        answers = [ask(query, limit) for query in queries]
        took_s = min_s(lambda limit=limit: ask(queries[0], limit))
        distances = [sorted(map(int, answer["_distance"].to_pylist())) for answer in answers]
        found.append({"share": share, "ms": took_s * 1e3, "distances": distances})
    return found


def run_lance(python: Path, folder: Path, indexed: bool) -> list[dict[str, Any]]:
    environment = {**os.environ, "LANCE_CPU_THREADS": "1", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    command = [str(python), __file__, "--measure-lance", str(folder), *(["--indexed"] if indexed else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare_with_lance(python: Path, folder: Path, rows: int) -> list[dict[str, Any]]:
    codes = make_codes("uniform", rows)
    np.save(folder / "codes.npy", codes)
    np.save(folder / "rank.npy", make_columns(rows)["rank"].to_numpy())
    ours = time_questions(codes, folder)
    lances = {name: run_lance(python, folder, indexed) for name, indexed in (("lance", False), ("lance_indexed", True))}
    for number, cell in enumerate(ours):
        distances = [[distance for distance in row if distance < 2**31 - 1] for row in cell.pop("distances")]
        cell.pop("ids")
        for name, lance in lances.items():
            cell[f"{name}_ms"] = lance[number]["ms"]
            cell[f"{name}_exact"] = lance[number]["distances"] == distances
    return ours


def markdown(report: dict[str, Any]) -> str:
    lines = [f"# Filters\n\n{report['machine']}, load average {report['load']}.\n"]
    lines.append(f"## A new filter over {report['filtered']:,} rows\n")
    lines.append("| filter | rows that match | from plain arrays, ms | from the attributes, ms |\n|---|---|---|---|")
    for cell in report["new"]:
        share = "" if cell["share"] is None else f"{cell['share']:.4%}"
        other = "" if cell["attributes_ms"] is None else f"{cell['attributes_ms']:.1f}"
        lines.append(f"| `{cell['filter']}` | {share} | {cell['plain_ms']:.2f} | {other} |")
    worst = max(cell["ratio"] for cell in report["plans"])
    lines.append(f"\n## A known filter over {report['rows']:,} codes: us a query, one thread\n")
    lines.append(f"The planner's time is at most {worst:.2f} times that of the best plan.\n")
    lines.append("| codes | question | batch | allowed | tables | scan | gather | planner | chosen | ratio |")
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for cell in report["plans"]:
        times = " | ".join(f"{cell[plan]:,.1f}" if plan in cell else "" for plan in (*PLANS, "auto"))
        asked = f"{cell['kind']} | {cell['question']} | {cell['batch']} | {cell['share']:.3%}"
        lines.append(f"| {asked} | {times} | {cell['chosen']} | {cell['ratio']:.2f} |")
    if report["lance"]:
        lines.append(f"\n## 10 nearest of {report['rows']:,} codes, one query: ms, LanceDB {report['lance_version']}\n")
        lines.append("| allowed | new filter | known filter | LanceDB | LanceDB, indexed column | LanceDB exact |")
        lines.append("|---|---|---|---|---|---|")
        for cell in report["lance"]:
            exact = "yes" if cell["lance_exact"] and cell["lance_indexed_exact"] else "no"
            lines.append(
                f"| {cell['share']:.3%} | {cell['new_ms']:.2f} | {cell['again_ms']:.3f} | {cell['lance_ms']:.1f} | "
                f"{cell['lance_indexed_ms']:.1f} | {exact} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=5 * MILLION)
    parser.add_argument("--filtered", type=int, default=2 * MILLION)
    parser.add_argument("--lance", type=Path, help="an interpreter that has LanceDB; left out without")
    parser.add_argument("--kinds", nargs="*", default=["uniform", "clustered"])
    parser.add_argument("--measure-lance", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--indexed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_lance:
        print(json.dumps(time_lance(options.measure_lance, options.indexed)))
        return
    from benchmarks.reporting import environment, save_report

    report = {**environment("numba", "numpy", "pyarrow"), "rows": options.rows, "filtered": options.filtered}
    report["load"] = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        report["new"] = time_new_filters(Path(folder), options.filtered)
    report["plans"] = [cell for kind in options.kinds for cell in time_plans(kind, make_codes(kind, options.rows))]
    report["lance"], report["lance_version"] = [], None
    if options.lance:
        say = "from importlib.metadata import version; print(version('lancedb'))"
        report["lance_version"] = subprocess.check_output([options.lance, "-c", say], text=True).strip()
        with tempfile.TemporaryDirectory() as folder:
            report["lance"] = compare_with_lance(options.lance, Path(folder), options.rows)
    save_report(options.out, report, markdown(report))


if __name__ == "__main__":
    main()
