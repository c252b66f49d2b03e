"""Evaluate an encoder: how well its codes find images of the query's class, beside baselines on the same features."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from encoders.baselines import ITQ, LSH
from encoders.encoder import EncoderOutput, HashEncoder
from encoders.metrics import (
    average_precision_of_scores,
    bit_balance,
    distinct_codes,
    largest_bucket,
    mean_average_precision,
    precision_recall_curve,
    precision_within_radius,
)
from engine.histogram import DistanceHistogram, distance_histogram
from engine.storage.files import write_atomically
from pipelines.corpora import labels_of, list_corpus
from pipelines.errors import PipelineError
from pipelines.images import encode_entries
from pipelines.pictures import save_precision_recall

BASELINES = {"itq": ITQ, "lsh": LSH}
PRECISION_RADIUS = 2

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class MethodReport:
    """Quality of one method's codes.

    Attributes
    ----------
    map_all : float
        Mean average precision over the whole database, the expected value over the orders of equal distances.
    precision_radius_2 : float
        Mean precision within radius 2; a query with nothing there counts as 0.
    distinct_codes, largest_bucket : int
        Of the database.
    bit_balance : float
        Mean over bits of the share of the rarer value, 0.5 at best.
    """

    map_all: float
    precision_radius_2: float
    distinct_codes: int
    largest_bucket: int
    bit_balance: float


@dataclass(frozen=True, slots=True)
class Report:
    """What `evaluate_encoder` found; every number stands beside its protocol.

    Attributes
    ----------
    protocol : dict
        Split, tie rule, cut-off and what the baselines learned from.
    map_relaxed : float
        Mean average precision of the real-valued codes tanh(beta z), ranked by inner product.
    methods : dict of str to MethodReport
        The encoder under its method's name, and each baseline.
    """

    bits: int
    encoder: str
    backbone: str
    protocol: dict[str, str | int]
    map_relaxed: float
    methods: dict[str, MethodReport]


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of the comparison: labels (N,) and what the encoder gives for the images."""

    labels: np.ndarray
    output: EncoderOutput


def evaluate_encoder(
    encoder: str | Path,
    *,
    database: str | Path,
    queries: str | Path,
    output: str | Path,
    train: str | Path | None = None,
    baselines: Sequence[str] = ("itq", "lsh"),
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Rank the database for every query and write `report.json` and `precision_recall.png`.

    Parameters
    ----------
    encoder : str or Path
    database, queries : str or Path
        Labelled corpora. An image is relevant to a query if their labels are equal.
    output : str or Path
        Folder of the report.
    train : str or Path, optional
        The corpus that baselines learn from; the database if left out.
    baselines : sequence of {"itq", "lsh"}
        Learned on the features that the encoder's hash layer reads.
    seed : int
        Of the baselines.
    progress : callable, optional
        Called with the name of each step.

    Raises
    ------
    PipelineError
        If a corpus has no labels, or none of its images can be decoded.
    """
    unknown = set(baselines) - set(BASELINES)
    if unknown:
        raise PipelineError(f"unknown baselines {sorted(unknown)}: choose from {sorted(BASELINES)}")
    say = progress or (lambda _step: None)
    model = HashEncoder.load(encoder)
    classes: list[str] = []
    say("encoding the database")
    database_side = _encode_side(model, database, classes)
    say("encoding the queries")
    query_side = _encode_side(model, queries, classes)
    train_side = database_side
    if train is not None and baselines:
        say("encoding the baselines' training images")
        train_side = _encode_side(model, train, classes)
    say("ranking")
    method = model.config.method
    histograms = {method: _histogram(query_side, database_side, model.bits)}
    methods = {method: _method_report(histograms[method], database_side.output.codes, model.bits)}
    for name in baselines:
        say(f"fitting {name}")
        sides = _baseline_sides(name, train_side, query_side, database_side, model.bits, seed)
        histograms[name] = _histogram(*sides, model.bits)
        methods[name] = _method_report(histograms[name], sides[1].output.codes, model.bits)
    report = Report(
        bits=model.bits,
        encoder=model.fingerprint,
        backbone=model.config.backbone,
        protocol={
            "queries": len(query_side.labels),
            "database": len(database_side.labels),
            "cut_off": "all of the database",
            "ties": "expected value over the orders of equal distances",
            "epoch": str(model.config.training.get("epoch", "unknown")),
            "baselines_learn_from": f"{len(train_side.labels)} images, by the features of the encoder's hash layer",
        },
        map_relaxed=_map_relaxed(query_side, database_side),
        methods=methods,
    )
    _write(report, histograms, Path(output))
    return report


def _encode_side(model: HashEncoder, corpus: str | Path, classes: list[str]) -> _Side:
    """Encode a labelled corpus; `classes` numbers the class names, and grows as corpora bring new ones."""
    entries, output = encode_entries(model, list_corpus(corpus))
    numbers, names = labels_of(entries)
    classes.extend(name for name in names if name not in classes)
    labels = np.array([classes.index(name) for name in names], np.int64)[numbers]
    return _Side(labels, output)


def _baseline_sides(
    name: str, train: _Side, queries: _Side, database: _Side, bits: int, seed: int
) -> tuple[_Side, _Side]:
    baseline = BASELINES[name].fit(train.output.features, bits, seed)
    query_codes, database_codes = (baseline.encode(side.output.features) for side in (queries, database))
    return (
        replace(queries, output=queries.output._replace(codes=query_codes)),
        replace(database, output=database.output._replace(codes=database_codes)),
    )


def _histogram(queries: _Side, database: _Side, bits: int) -> DistanceHistogram:
    return distance_histogram(
        queries.output.codes,
        database.output.codes,
        query_labels=queries.labels,
        code_labels=database.labels,
        bits=bits,
    )


def _method_report(histogram: DistanceHistogram, codes: np.ndarray, bits: int) -> MethodReport:
    set_share = bit_balance(codes, bits)
    return MethodReport(
        map_all=mean_average_precision(histogram.total, histogram.relevant),
        precision_radius_2=float(
            np.mean(precision_within_radius(histogram.total, histogram.relevant, min(PRECISION_RADIUS, bits)))
        ),
        distinct_codes=distinct_codes(codes),
        largest_bucket=largest_bucket(codes),
        bit_balance=float(np.mean(np.minimum(set_share, 1 - set_share))),
    )


def _map_relaxed(queries: _Side, database: _Side) -> float:
    scores = queries.output.relaxed @ database.output.relaxed.T
    relevant = queries.labels[:, None] == database.labels[None, :]
    return float(np.nanmean(average_precision_of_scores(scores, relevant)))


def _write(report: Report, histograms: dict[str, DistanceHistogram], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "report.json", (json.dumps(asdict(report), indent=1) + "\n").encode())
    curves = {
        f"{name}, mAP {report.methods[name].map_all:.3f}": precision_recall_curve(*histogram)
        for name, histogram in histograms.items()
    }
    save_precision_recall(curves, folder / "precision_recall.png", title=f"{report.bits} bits, {report.backbone}")
