"""The curves of the pages, drawn from the results in `benchmarks/results`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

from svg import BLUE, ORANGE, PLUM, TEAL, Axis, Card, Chart, headed

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

BITS = {16: "16", 32: "32", 64: "64", 128: "128", 256: "256"}
SHARES = {0.2: "20 %", 0.4: "40 %", 0.6: "60 %", 0.8: "80 %", 1.0: "100 %"}


def bits_recall() -> Card:
    """Draw what codes of more bits keep of the nearest by the embeddings."""
    runs = _read("label_free_xeon-2core_2026-11-30.json")["drawings"]
    card = headed(
        760,
        470,
        "How much of the true ten nearest the codes keep",
        "6,786 drawings, EfficientNet-Lite0 features, no labels; mean of three seeds",
        "Share of the ten nearest by cosine among the first ten answers, against the number of bits, for four ways.",
    )
    chart = Chart(
        card,
        Axis(16, 256, BITS, log=True),
        Axis(0.1, 0.8, {0.2: "20 %", 0.4: "40 %", 0.6: "60 %", 0.8: "80 %"}),
        x_title="bits of a code",
        y_title="of the ten nearest",
        right=210,
    )
    ways = {
        "ITQ asymmetric": ("itq, asymmetric", BLUE),
        "neighbours asymmetric": ("neighbours, asymmetric", TEAL),
        "ITQ": ("itq, Hamming", BLUE),
        "neighbours": ("neighbours, Hamming", TEAL),
    }
    for way, (name, colour) in ways.items():
        method, *asymmetric = way.split()
        points = [(bits, mean(run[" ".join([method, str(bits), *asymmetric])][1] for run in runs)) for bits in BITS]
        chart.line(points, name, colour, dashed=not asymmetric)
    return chart.name_lines()


def bits_rerank() -> Card:
    """Draw what re-ranking by the stored features brings back."""
    rows = [
        [float(cell) for cell in line.strip("| ").split("|")[:3]]
        for line in (RESULTS / "embeddings_xeon-2core_2026-11-30.md").read_text().splitlines()
        if line.startswith("| ") and line.split("|")[1].strip().isdecimal()
    ]
    card = headed(
        760,
        400,
        "Codes choose, features order",
        "The same drawings, ITQ: the first ten by codes alone, and after ordering 100 by the stored features",
        "Share of the ten nearest, against the number of bits, by codes alone and after re-ranking 100.",
    )
    chart = Chart(
        card,
        Axis(64, 768, {64: "64", 128: "128", 256: "256", 512: "512", 768: "768"}, log=True),
        Axis(0.2, 1.0, SHARES),
        x_title="bits of a code",
        y_title="of the ten nearest",
    )
    chart.line([(bits, share) for bits, _, share in rows], "100 re-ranked", ORANGE)
    chart.line([(bits, share) for bits, share, _ in rows], "codes alone", BLUE)
    return chart.name_lines()


def labels() -> Card:
    """Draw where labels help, and where they hurt."""
    cells = _read("retrieval_xeon-2core_2026-11-21.json")["cells"]
    methods = {"hashnet": "HashNet", "itq-cca": "ITQ-CCA", "sdh": "SDH", "itq": "ITQ", "lsh": "LSH"}
    card = headed(
        760,
        360,
        "Labels help where you search what you trained on",
        "Fashion-MNIST, 64 bits, mean average precision; the backbone learned from the same labels",
        "Bars of mean average precision for five methods, for classes that were trained on and classes never seen.",
    )
    for row, (method, name) in enumerate(methods.items()):
        top = 74 + row * 52
        card.text(88, top + 25, name, anchor="end", bold=True)
        for line, (variant, colour) in enumerate({"full": TEAL, "unseen": ORANGE}.items()):
            score = mean(
                cell["map_all"]
                for cell in cells
                if (cell["variant"], cell["method"], cell["bits"]) == (variant, method, 64)
            )
            card.box(100, top + 19 * line, 560 * score, 16, fill=colour, radius=3)
            card.text(108 + 560 * score, top + 13 + 19 * line, f"{score:.3f}", size=13)
    for x, colour, name in ((100, TEAL, "classes that were trained on"), (320, ORANGE, "classes never seen")):
        card.box(x, 332, 12, 12, fill=colour, radius=3)
        card.text(x + 20, 343, name, size=13)
    return card


def radius_chance() -> Card:
    """Draw how many unrelated images lie within a radius, if their codes were uniform."""
    rows = 10_000_000
    card = headed(
        760,
        430,
        "Strangers within a radius, by chance",
        "Expected among 10 million images with uniform codes; learned codes crowd, and meet more",
        "Expected number of codes within a Hamming radius, against the radius, for 64, 128 and 256 bits.",
    )
    chart = Chart(
        card,
        Axis(0, 96, {0: "0", 16: "16", 32: "32", 48: "48", 64: "64", 80: "80", 96: "96"}),
        Axis(1e-3, 1e7, {1e-3: "0.001", 1e-1: "0.1", 1e1: "10", 1e3: "1,000", 1e5: "100,000", 1e7: "all"}, log=True),
        x_title="radius",
        y_title="images within it",
    )
    for bits, colour in {64: PLUM, 128: BLUE, 256: TEAL}.items():
        within = [rows * sum(math.comb(bits, d) for d in range(r + 1)) / 2**bits for r in range(97)]
        points = [(r, count) for r, count in enumerate(within) if 1e-3 <= count <= 0.5 * rows]
        chart.line(points[:: max(1, len(points) // 12)], f"{bits} bits", colour)
    return chart.name_lines()


def radius_time() -> Card:
    """Draw what a radius costs, beside FAISS."""
    measured = {row["what"]: row for row in _read("hamming_targets_xeon-2core_2026-11-21.json")}
    flat = [(r, measured[f"tables, radius {r}, batch 64, Flat"]["peer_us"]) for r in (4, 8, 12)]
    multi_hash = [(r, measured[f"tables, radius {r}, best MultiHash"]["peer_us"]) for r in (4, 8, 12)]
    ours = [(r, measured[f"tables, radius {r}, batch 64, Flat"]["ours_us"]) for r in (4, 8, 12)]
    scan = measured["scan, 64 bits, radius 8, batch 64, Flat"]["ours_us"]
    card = headed(
        760,
        430,
        "Microseconds a query, all answers within a radius",
        "10 million uniform 64-bit codes, batches of 64, one thread of a 2-core Xeon; every answer exact",
        "Time of a query against the radius for FAISS flat and multi-hash, and the scan and the tables of Hashlight.",
    )
    chart = Chart(
        card,
        Axis(4, 12, {4: "4", 8: "8", 12: "12"}),
        Axis(1, 300_000, {1: "1", 10: "10", 100: "100", 1e3: "1,000", 1e4: "10,000", 1e5: "100,000"}, log=True),
        x_title="radius",
        y_title="microseconds",
    )
    chart.line(multi_hash, "FAISS multi-hash", BLUE)
    chart.line(flat, "FAISS flat", PLUM)
    chart.line([(4, scan), (8, scan), (12, scan)], "Hashlight, scan", ORANGE, dashed=True)
    chart.line(ours, "Hashlight, tables", TEAL)
    return chart.name_lines()


CURVES = {
    "bits-recall.svg": bits_recall,
    "bits-rerank.svg": bits_rerank,
    "labels.svg": labels,
    "radius-chance.svg": radius_chance,
    "radius-time.svg": radius_time,
}


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())
