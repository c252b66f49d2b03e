"""Evaluate an encoder: how well its codes find images of the query's labels, beside baselines on the same features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from encoders.encoder import EncoderOutput, HashEncoder
from encoders.methods import METHODS
from pipelines.corpora import labels_of, list_corpus
from pipelines.errors import PipelineError
from pipelines.images import encode_entries
from pipelines.measure import RELAXED_QUERIES, Comparison, Report, Side, count_distances, method_report, relaxed_map
from pipelines.report import write_report

BASELINES = tuple(name for name, method in METHODS.items() if method.fit is not None)

Progress = Callable[[str], None]


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
    """Rank the database for every query and write a report, as `pipelines.report.write_report` says.

    Parameters
    ----------
    encoder : str or Path
    database, queries : str or Path
        Labelled corpora. An image is relevant to a query if they share a label.
    output : str or Path
        Folder of the report.
    train : str or Path, optional
        The corpus that baselines learn from; the database if left out.
    baselines : sequence of str
        Methods that are fitted to features, learned on those that the encoder's hash layer reads. The encoder's own
        is left out.
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
        raise PipelineError(f"unknown baselines {sorted(unknown)}: choose from {', '.join(BASELINES)}")
    if Path(output).exists() and not Path(output).is_dir():
        raise PipelineError(f"{output} is a file, expected a folder for the report: choose another --output")
    say = progress or (lambda _step: None)
    model = HashEncoder.load(encoder)
    corpora = {"database": database, "queries": queries}
    if train is not None and baselines:
        corpora["train"] = train
    sides, classes = _encode_sides(model, corpora, say)
    compared = Comparison(sides["queries"], sides["database"], classes)
    compared.codes[model.config.method] = (compared.queries.output.codes, compared.database.output.codes)
    teacher = sides.get("train", compared.database)
    for name in baselines:
        if name == model.config.method:
            continue
        say(f"fitting {name}")
        compared.codes[name] = _baseline_codes(name, teacher, compared, model.bits, seed)
    say("ranking")
    for name, (query_codes, codes) in compared.codes.items():
        compared.histograms[name] = count_distances(
            query_codes, codes, compared.queries.labels, compared.database.labels, model.bits
        )
    report = _report(model, compared, teacher)
    say("drawing")
    write_report(report, compared, Path(output))
    return report


def _encode_sides(
    model: HashEncoder, corpora: dict[str, str | Path], say: Progress
) -> tuple[dict[str, Side], list[str]]:
    """Encode labelled corpora; number their labels alike, whichever of them has which."""
    listed: dict[str, tuple[pa.Table, EncoderOutput, np.ndarray, list[str]]] = {}
    for side, corpus in corpora.items():
        say(f"encoding {side}")
        entries, output = encode_entries(model, list_corpus(corpus))
        listed[side] = (entries, output, *labels_of(entries))
    dimensions = {labels.ndim for _, _, labels, _ in listed.values()}
    if len(dimensions) > 1:
        raise PipelineError("some corpora have one label an image and some have lists: give all of one kind")
    classes = sorted({name for *_, names in listed.values() for name in names})
    return {
        side: Side(entries, _renumbered(labels, names, classes), output)
        for side, (entries, output, labels, names) in listed.items()
    }, classes


def _renumbered(labels: np.ndarray, names: list[str], classes: list[str]) -> np.ndarray:
    number = np.array([classes.index(name) for name in names], np.int64)
    if labels.ndim == 1:
        return number[labels]
    matrix = np.zeros((len(labels), len(classes)), np.bool_)
    matrix[:, number] = labels
    return matrix


def _baseline_codes(
    name: str, teacher: Side, compared: Comparison, bits: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    fit = METHODS[name].fit
    assert fit is not None, "BASELINES has only methods that are fitted"
    labels = teacher.labels
    matrix = labels if labels.ndim == 2 else labels[:, None] == np.unique(labels)
    hasher = fit(teacher.output.features, bits, seed, matrix)
    return hasher.encode(compared.queries.output.features), hasher.encode(compared.database.output.features)


def _report(model: HashEncoder, compared: Comparison, teacher: Side) -> Report:
    training = model.config.training
    return Report(
        bits=model.bits,
        encoder=model.fingerprint,
        backbone=model.config.backbone,
        title=str(training.get("title", model.config.method)),
        protocol={
            "queries": len(compared.queries.labels),
            "database": len(compared.database.labels),
            "relevant": "shares a label with the query",
            "cut_off": "all of the database where none is named",
            "ties": "expected value over the orders of equal distances",
            "epoch": str(training.get("epoch", "unknown")),
            "baselines_learn_from": f"{len(teacher.labels)} images, by the features of the encoder's hash layer",
            "relaxed_codes": f"at most {RELAXED_QUERIES} of the queries",
        },
        map_relaxed=relaxed_map(compared.queries, compared.database),
        methods={
            name: method_report(histograms, compared.codes[name][1], model.bits)
            for name, histograms in compared.histograms.items()
        },
    )
