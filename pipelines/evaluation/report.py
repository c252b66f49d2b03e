"""Write the results of an evaluation: numbers for programs, a page for people, and pictures.

::

    report.json             every number, with its protocol
    report.md               the same as a table, with the pictures
    coverage.png            share of queries with an answer, by radius
    precision_recall.png    precision against recall, by radius
    precision_at.png        share of relevant items among the first N
    precision_radius.png    precision within each radius, radius 2 marked
    sharpness.png           histogram of |h|: whether relaxed codes have become binary
    tsne.png                a map of codes, one colour for each label; needs at least 4
    results.png             queries and their nearest images

Without labels, the three about precision and the map are missing.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hashlight.encoders.metrics import precision_at, precision_recall_curve, precision_within_radius
from hashlight.encoders.packing import unpack_bits
from hashlight.engine.indexes.choice import IndexChoice, build_index
from hashlight.engine.places.files import write_atomically
from hashlight.pipelines.corpora.corpus import read_images
from hashlight.pipelines.evaluation.label_free import LabelFree
from hashlight.pipelines.evaluation.measure import PRECISION_RADIUS, Comparison, MethodReport, Report, Side
from hashlight.pipelines.evaluation.pictures import Tile, save_grid, save_lines, save_map, save_sharpness

# Number of codes on the map; t-SNE takes a few seconds for these.
_MAP_CODES = 1000
_MAP_PERPLEXITY = 30.0
_LEAST_MAP_CODES = 4
_WIDEST_RADIUS = 12
_GRID_QUERIES = 8
_GRID_ANSWERS = 10

REPORT_FILES = (
    "report.json",
    "report.md",
    "coverage.png",
    "precision_recall.png",
    "precision_at.png",
    "precision_radius.png",
    "sharpness.png",
    "tsne.png",
    "results.png",
)


def write_report(report: Report, compared: Comparison, folder: Path, *, index: IndexChoice = "auto") -> None:
    """Write the files listed in the module's docstring into `folder`.

    Parameters
    ----------
    report : Report
    compared : Comparison
        The data behind the report; its first method is the encoder's.
    folder : Path
        Created if necessary.
    index : str
        The index that finds the nearest images shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.json", (json.dumps(asdict(report), indent=1) + "\n").encode())
    title = f"{report.bits} bits, {report.backbone}"
    save_lines(
        {
            name: (np.array(list(map(int, found.found_within))), np.array(list(found.found_within.values())))
            for name, found in zip(report.titles().values(), report.label_free.values(), strict=True)
        },
        folder / "coverage.png",
        title=title,
        x="radius",
        y="share of queries with an answer",
    )
    pictures = ["coverage.png"] + (_draw_curves(report, compared, folder, title) if compared.labelled else [])
    save_sharpness(compared.database.output.relaxed, folder / "sharpness.png", title=report.title)
    pictures.append("sharpness.png")
    if compared.labelled and len(compared.database.entries) >= _LEAST_MAP_CODES:
        _draw_map(compared, folder / "tsne.png", f"{report.title}, {title}", report.bits)
        pictures.append("tsne.png")
    _draw_results(compared, report.bits, index, folder / "results.png")
    pictures.append("results.png")
    write_atomically(folder / "report.md", _page(report, pictures).encode())


def _draw_curves(report: Report, compared: Comparison, folder: Path, title: str) -> list[str]:
    """Draw three pictures with a curve for each method; return their names."""
    named = {
        f"{name}, mAP {report.methods[key].map_all:.3f}": compared.histograms[key]
        for key, name in report.titles().items()
    }
    curves = {name: precision_recall_curve(counts.total, counts.relevant) for name, counts in named.items()}
    save_lines(
        {name: (curve.recall, curve.precision) for name, curve in curves.items()},
        folder / "precision_recall.png",
        title=title,
        x="recall",
        y="precision",
    )
    cut_offs = np.unique(np.geomspace(1, min(1000, len(compared.database.entries)), 30).astype(np.int64))
    save_lines(
        {
            name: (cut_offs, np.array([precision_at(counts.total, counts.relevant, n).mean() for n in cut_offs]))
            for name, counts in named.items()
        },
        folder / "precision_at.png",
        title=title,
        x="N",
        y="precision of the first N",
        log=True,
    )
    radii = range(min(_WIDEST_RADIUS, report.bits) + 1)
    save_lines(
        {
            name: (
                np.array(radii),
                np.array([precision_within_radius(counts.total, counts.relevant, r).mean() for r in radii]),
            )
            for name, counts in named.items()
        },
        folder / "precision_radius.png",
        title=title,
        x="radius",
        y="precision within the radius",
        mark=PRECISION_RADIUS,
    )
    return ["precision_recall.png", "precision_at.png", "precision_radius.png"]


def _draw_map(compared: Comparison, path: Path, title: str, bits: int) -> None:
    """Draw a map of the database's codes. An image with several labels gets the colour of the first."""
    # Slow to import, and only needed here.
    from sklearn.manifold import TSNE

    groups = compared.database.first_labels
    rows = np.linspace(0, len(groups) - 1, min(_MAP_CODES, len(groups))).astype(np.int64)
    bit_NB = unpack_bits(next(iter(compared.codes.values())).database[rows], bits).astype(np.float32)
    # Equal codes would overlap and hide their number.
    bit_NB += np.random.default_rng(0).normal(0.0, 0.01, bit_NB.shape).astype(np.float32)
    layout = TSNE(perplexity=min(_MAP_PERPLEXITY, (len(rows) - 1) / 3), init="random", random_state=0)
    save_map(layout.fit_transform(bit_NB), groups[rows], compared.classes, path, title=title)


def _draw_results(compared: Comparison, bits: int, index: IndexChoice, path: Path) -> None:
    """Show evenly spaced queries and their nearest images of the database, ties in database order."""
    coded = next(iter(compared.codes.values()))
    query_codes, codes = coded.queries, coded.database
    rows = np.linspace(0, len(query_codes) - 1, min(_GRID_QUERIES, len(query_codes))).astype(np.int64)
    database = build_index(index, codes, np.arange(len(codes)), bits=bits)
    found = database.search(query_codes[rows], min(_GRID_ANSWERS, len(codes)))
    grid = []
    for row, nearest, distances in zip(rows.tolist(), found.ids.tolist(), found.distances.tolist(), strict=True):
        query = _tiles(compared.queries, [row], compared.classes, None)
        grid.append(query + _tiles(compared.database, nearest, compared.classes, distances))
    save_grid(grid, path)


def _tiles(side: Side, rows: list[int], classes: list[str], distances: list[int] | None) -> list[Tile]:
    ascending = np.unique(rows)
    images = dict(zip(ascending.tolist(), read_images(side.entries.take(ascending)), strict=True))
    tiles = []
    for place, row in enumerate(rows):
        name = ", ".join(classes[label] for label in side.labels_of(row))
        data = images[row]
        caption = name if distances is None else f"{distances[place]}: {name}"
        tiles.append(Tile(data if isinstance(data, bytes) else None, caption))
    return tiles


def _page(report: Report, pictures: list[str]) -> str:
    titles = report.titles()
    lines = [
        f"# {report.title}, {report.bits} bits on {report.backbone}",
        "",
        *(f"- {name.replace('_', ' ')}: {value}" for name, value in report.protocol.items()),
        f"- encoder: {report.encoder}",
    ]
    if report.map_relaxed is not None and report.map_signs_of_those is not None:
        lines += [
            f"- mAP of the relaxed codes: {report.map_relaxed:.4f}; of their signs, by the same queries: "
            f"{report.map_signs_of_those:.4f}; gap: {report.relaxed_gap:+.4f}",
            "",
            *_table("method", {name: _row(report.methods[key]) for key, name in titles.items()}),
        ]
    found = {name: report.label_free[key] for key, name in titles.items()}
    lines += [
        "",
        "## Without labels",
        "",
        "Share of the 10 nearest by features among the first 10 answers, and with the first 100 re-ranked by features:",
        "",
        *_table("method", {name: _recall_row(one) for name, one in found.items()}),
        "",
        "Share of queries with an answer within a radius, and mean number of answers:",
        "",
        *_table("method", {name: _coverage_row(one) for name, one in found.items()}),
    ]
    if report.attacks:
        shares = {
            name: {f"radius {radius}": f"{share:.2f}" for radius, share in of.items()}
            for name, of in report.attacks.items()
        }
        lines += ["", "Share of distorted images whose code is within a radius of their own:", "", *_table("", shares)]
    lines += [
        "",
        *(f"![{Path(picture).stem}]({picture})" for picture in pictures),
    ]
    return "\n".join(lines) + "\n"


def _table(corner: str, rows: dict[str, dict[str, str]]) -> list[str]:
    """Return a table in Markdown: rows by name, of the same columns."""
    columns = list(next(iter(rows.values())))
    return [
        f"| {corner} | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(row.values())} |" for name, row in rows.items()),
    ]


def _recall_row(found: LabelFree) -> dict[str, str]:
    return {
        "Hamming order": f"{found.recall:.4f}",
        "asymmetric order": f"{found.recall_asymmetric:.4f}",
        "Hamming, re-ranked": f"{found.recall_reranked:.4f}",
        "asymmetric, re-ranked": f"{found.recall_asymmetric_reranked:.4f}",
        "distinct codes": f"{found.distinct_codes:,}",
    }


def _coverage_row(found: LabelFree) -> dict[str, str]:
    return {
        f"radius {radius}": f"{share:.2f}, {found.answers_within[radius]:,.1f}"
        for radius, share in found.found_within.items()
    }


def _row(method: MethodReport) -> dict[str, str]:
    graded = method.ndcg_at or {}
    return {
        "mAP": f"{method.map_all:.4f}",
        **{f"mAP@{n}": f"{value:.4f}" for n, value in method.map_at.items()},
        **{f"mAP@{n}, of found": f"{value:.4f}" for n, value in method.map_at_found.items()},
        **{f"P@{n}": f"{value:.4f}" for n, value in method.precision_at.items()},
        **{f"NDCG@{n}": f"{value:.4f}" for n, value in graded.items()},
        "P, radius 2": f"{method.precision_radius_2:.4f}",
        "distinct codes": f"{method.distinct_codes:,}",
        "largest bucket": f"{method.largest_bucket:,}",
        "bit balance": f"{method.bit_balance:.3f}",
        "bit correlation": "-" if method.bit_correlation is None else f"{method.bit_correlation:.3f}",
        "ms a query": f"{method.ms_a_query:.3f}",
    }
