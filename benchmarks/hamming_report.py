"""Tables and a plot from the JSON that benchmarks.hamming wrote.

python benchmarks/hamming_report.py benchmarks/results/hamming_NAME_DATE.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TypeGuard

from matplotlib.figure import Figure

from benchmarks.hamming import BATCHES, KS, RADII

OURS = "hashlight multi-index"


def cell(measured: dict, operation: str, value: int, batch: int) -> dict | None:
    for one in measured["cells"]:
        if (one["operation"], one["value"], one["batch"]) == (operation, value, batch):
            return one
    return None


def shown(one: dict | None) -> str:
    if one is None:
        return ""
    text = f"{one['us_a_query']:,.1f}" if one["us_a_query"] < 1000 else f"{one['us_a_query']:,.0f}"
    text = f"~{text}" if one.get("repeated") else text
    return text if one["recall"] > 0.9999 else f"{text} ({100 * one['recall']:.1f} %)"


def complete(one: dict | None) -> TypeGuard[dict]:
    return one is not None and one["recall"] > 0.9999


def table(data_set: dict, batch: int) -> list[str]:
    columns = [("radius", radius) for radius in RADII] + [("knn", k) for k in KS]
    heads = [f"r {value}" if operation == "radius" else f"k {value}" for operation, value in columns]
    lines = [f"\nBatch of {batch}, us a query:\n", "| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    best = dict.fromkeys(columns, float("inf"))
    for name, measured in data_set["peers"].items():
        cells = [cell(measured, *column, batch) for column in columns]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(map(shown, cells)) + " |")
        # An approximate peer may be complete on the few checked queries but not on others.
        if measured.get("exact") and not name.startswith("hashlight"):
            for column, one in zip(columns, cells, strict=True):
                if complete(one):
                    best[column] = min(best[column], one["us_a_query"])
    ours = [cell(data_set["peers"][OURS], *column, batch) for column in columns]
    ratios = [
        "" if one is None or best[column] == float("inf") else f"{best[column] / one['us_a_query']:,.2f}"
        for column, one in zip(columns, ours, strict=True)
    ]
    lines.append("| *fastest exact peer / multi-index* | " + " | ".join(ratios) + " |")
    return lines


def sizes(data_set: dict) -> list[str]:
    heads = "| | build, s | memory, bytes a code | disk, bytes a code | open to the first answer, ms |"
    lines = ["\n" + heads, "|---" * 5 + "|"]
    for name, measured in data_set["peers"].items():
        if measured.get("error"):
            lines.append(f"| {name} | failed: {measured['error'][0][:80]} | | | |")
            continue
        size = measured["bytes_a_code"]
        growth = measured.get("growth_bytes_a_code")
        held = f"{size:.1f}" if size else "" if growth is None else f"{growth:.1f} (growth of the process)"
        disk = f"{measured['disk_bytes'] / measured['rows']:.1f}" if "disk_bytes" in measured else "no file format"
        opened = f"{1000 * measured['open_s']:,.1f}" if "open_s" in measured else ""
        lines.append(f"| {name} | {measured['build_s']:.2f} | {held} | {disk} | {opened} |")
    return lines


def plot(results: dict, path: Path) -> None:
    """Time against rows at radius 8, uniform 64-bit codes, batch of 64."""
    points: dict[str, list[tuple[int, float]]] = {}
    for data_set in results["data_sets"].values():
        if (data_set["kind"], data_set["bits"]) == ("uniform", 64):
            for name, measured in data_set["peers"].items():
                one = cell(measured, "radius", 8, 64)
                if complete(one):
                    rows = int(measured["rows"])
                    points.setdefault(name, []).append((rows, one["us_a_query"]))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, line in points.items():
        axis.loglog(*zip(*sorted(line), strict=True), marker="o", label=name)
    axis.set(
        xlabel="codes", ylabel="microseconds a query", title="Radius 8, uniform 64-bit codes, one thread, batch of 64"
    )
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    path = parser.parse_args().results
    results = json.loads(path.read_bytes())
    machine = results["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    lines = [
        "# Hamming search against its peers\n",
        f"`python -m benchmarks.hamming`: {machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, "
        f"{packages}. One process a peer, one thread; medians. A number in brackets is the recall of an answer that is "
        "not complete; ~ repeats a smaller batch, where this one would have taken over 4 s a call; an empty cell was "
        "not reached in the time, or the peer has no such search. Queries: stored "
        "codes with three bits flipped; of learned codes, those of other images. Hashlight's memory is "
        "without ids, its files are with them; opened in a fresh process, files in the page cache.",
    ]
    if "note" in results:
        lines.append("\n" + results["note"])
    for name, data_set in results["data_sets"].items():
        lines.append(f"\n## {name}\n")
        for batch in BATCHES:
            lines += table(data_set, batch)
        lines += sizes(data_set)
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    plot(results, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
