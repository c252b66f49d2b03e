"""Evaluate an encoder: how well its codes find images like the query, by labels and without, and as baselines do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from hashlight.encoders.encoder import EncoderOutput, HashEncoder
from hashlight.encoders.methods import METHODS
from hashlight.engine.extras import import_faiss
from hashlight.engine.indexes.choice import IndexChoice, check_index, faiss_kind
from hashlight.engine.places.opening import open_target
from hashlight.engine.places.place import Place
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.codes.encoder import load_encoder
from hashlight.pipelines.corpora.corpus import list_corpus, read_images
from hashlight.pipelines.corpora.labels import has_labels, labels_of
from hashlight.pipelines.corpora.options import NO_OPTIONS, CorpusOptions
from hashlight.pipelines.decoding.images import encode_entries
from hashlight.pipelines.evaluation.label_free import (
    ATTACKED,
    NEIGHBOURS,
    Coded,
    attacks_report,
    can_be_opened,
    label_free_report,
    nearest_by_features,
)
from hashlight.pipelines.evaluation.measure import (
    RELAXED_QUERIES,
    Comparison,
    Histograms,
    Labels,
    Report,
    Side,
    count_distances,
    method_report,
    relaxed_maps,
)
from hashlight.pipelines.evaluation.report import write_report
from hashlight.pipelines.jobs.errors import PipelineError

# Queries that are held out of a database: every fifth image, so many at most.
_EVERY, _MAX_HELD_OUT = 5, 500

BASELINES = tuple(name for name, method in METHODS.items() if method.fit is not None)

Progress = Callable[[str], None]


def evaluate_encoder(
    encoder: str | Path,
    *,
    database: str | Path,
    queries: str | Path | None = None,
    output: str | Path,
    train: str | Path | None = None,
    baselines: Sequence[str] | None = None,
    seed: int = 0,
    index: IndexChoice = "auto",
    options: CorpusOptions = NO_OPTIONS,
    progress: Progress | None = None,
) -> Report:
    """Rank the database for every query and write a report; see `pipelines.evaluation.report.write_report`.

    Parameters
    ----------
    encoder : str or Path
    database : str or Path
        A corpus. If it has labels, an image is relevant to a query if they share one. Without, the report has what
        needs none (`pipelines.evaluation.label_free`).
    queries : str or Path, optional
        A corpus, with labels if the database has them. By default every fifth image of the database, but at most 500,
        which are left out of it.
    output : str or Path
        Folder of the report, local or in a bucket.
    train : str or Path, optional
        The corpus that baselines are fitted to; by default the database.
    baselines : sequence of str, optional
        Methods fitted to the features that enter the encoder's hash layer. The encoder's own method is left out. By
        default LSH and, unless the encoder has more bits than features, ITQ.
    seed : int
        Seed of the baselines.
    index : str
        The index that finds the nearest images shown in the report, as in `Collection.open`. The measures rank the
        whole database without an index.
    options : CorpusOptions
        What is known of all these corpora.
    progress : callable, optional
        Called with the name of each step.

    Raises
    ------
    PipelineError
        If a baseline is unknown, cannot produce that many bits or learns from labels that are not there, a corpus has
        no decodable image, one has labels and another none, or no query shares a label with any image of the database.
    """
    target = open_target(output)
    _refuse_late_failures(target, index)
    say = progress or (lambda _step: None)
    model = load_encoder(encoder)
    baselines = _chosen_baselines(baselines, model)
    given = {"database": database, "queries": queries, "train": train if baselines else None}
    corpora = {name: corpus for name, corpus in given.items() if corpus is not None}
    report, compared = _measured(model, corpora, options, baselines, seed, index, say)
    say("drawing")
    _publish(report, compared, target, index)
    return report


def _measured(
    model: HashEncoder,
    corpora: dict[str, str | Path],
    options: CorpusOptions,
    baselines: Sequence[str],
    seed: int,
    index: IndexChoice,
    say: Progress,
) -> tuple[Report, Comparison]:
    """Encode the corpora and measure; without queries, some of the database are held out."""
    places = {name: without_credentials(str(corpus)) for name, corpus in corpora.items()}
    sides, classes = _encode_sides(model, corpora, options, say)
    if "queries" not in sides:
        sides["queries"], sides["database"] = _held_out(sides["database"])
        places["queries"] = f"{places['database']}, held out"
    compared = Comparison(sides["queries"], sides["database"], classes)
    teacher = sides.get("train", compared.database)
    _fill_codes(compared, model, baselines, teacher, seed, say)
    say("ranking")
    report = _report(model, compared, places, len(teacher.entries), index)
    say("distorting")
    return replace(report, attacks=_attacks(model, compared.database)), compared


def _refuse_late_failures(output: Place, index: IndexChoice) -> None:
    """Refuse, before hours of work, a place where no report can be written and an index whose package is missing."""
    entry = output.entry()
    if entry is not None and not entry.is_folder:
        raise PipelineError(f"{output} is a file, expected a folder for the report: choose another --output")
    if faiss_kind(check_index(index)) is not None:
        import_faiss()


def _fill_codes(
    compared: Comparison, model: HashEncoder, baselines: Sequence[str], teacher: Side, seed: int, say: Progress
) -> None:
    """Add the codes of both sides by the encoder and by every baseline other than its own method."""
    _refuse_classless(baselines, compared)
    output = compared.queries.output
    compared.codes[model.config.method] = Coded(output.codes, output.projections, compared.database.output.codes)
    for name in baselines:
        if name == model.config.method:
            continue
        say(f"fitting {name}")
        compared.codes[name] = _baseline_codes(name, teacher, compared, model.bits, seed)


def _fill_histograms(compared: Comparison, bits: int) -> None:
    for name, coded in compared.codes.items():
        compared.histograms[name] = count_distances(
            coded.queries, coded.database, compared.queries.labels, compared.database.labels, bits
        )


def _publish(report: Report, compared: Comparison, output: Place, index: IndexChoice) -> None:
    """Write the report into its folder; for a bucket it is drawn on this machine and then copied."""
    if output.local:
        write_report(report, compared, output.local, index=index)
        return
    with tempfile.TemporaryDirectory(prefix="hashlight-report-") as folder:
        write_report(report, compared, Path(folder), index=index)
        for file in sorted(Path(folder).iterdir()):
            output.put_file(file.name, file)


def _misfit(baseline: str, model: HashEncoder) -> str:
    """Return why a baseline cannot produce the encoder's bits from its features, or an empty string."""
    try:
        METHODS[baseline].check_bits(model.bits, model.feature_dim, 0)
    except ValueError as error:
        return str(error)
    return ""


def _chosen_baselines(baselines: Sequence[str] | None, model: HashEncoder) -> Sequence[str]:
    if baselines is None:
        return [name for name in ("itq", "lsh") if not _misfit(name, model)]
    unknown = set(baselines) - set(BASELINES)
    if unknown:
        raise PipelineError(f"unknown baselines {sorted(unknown)}: choose from {', '.join(BASELINES)}")
    for name in baselines:
        if misfit := _misfit(name, model):
            raise PipelineError(f"the baseline {name} does not fit this encoder: {misfit}")
    return baselines


def _encode_sides(
    model: HashEncoder, corpora: dict[str, str | Path], options: CorpusOptions, say: Progress
) -> tuple[dict[str, Side], list[str]]:
    """Encode corpora, with one numbering of the labels for all of them."""
    listed: dict[str, tuple[pa.Table, EncoderOutput, np.ndarray | sparse.csr_array, list[str]]] = {}
    all_entries = {side: list_corpus(corpus, options) for side, corpus in corpora.items()}
    labelled = any(map(has_labels, all_entries.values()))
    for side, listing in all_entries.items():
        say(f"encoding {side}")
        entries, output = encode_entries(model, listing)
        labels = labels_of(entries) if labelled else (sparse.csr_array((len(entries), 0), dtype=np.bool_), [])
        listed[side] = (entries, output, *labels)
    dimensions = {labels.ndim for _, _, labels, _ in listed.values()}
    if len(dimensions) > 1:
        raise PipelineError("some corpora have one label per image and some have lists: give all of one kind")
    classes = sorted({name for *_, names in listed.values() for name in names})
    return {
        side: Side(entries, _renumbered(labels, names, classes), output)
        for side, (entries, output, labels, names) in listed.items()
    }, classes


def _renumbered(labels: np.ndarray | sparse.csr_array, names: list[str], classes: list[str]) -> Labels:
    number_of = {name: number for number, name in enumerate(classes)}
    number = np.array([number_of[name] for name in names], np.int64)
    if isinstance(labels, np.ndarray):
        renumbered: NDArray[np.int64] = number[labels]
        return renumbered
    parts = labels.data, number[labels.indices], labels.indptr
    matrix = sparse.csr_array(parts, shape=(labels.shape[0], len(classes)))
    matrix.sort_indices()
    return matrix


def _baseline_codes(name: str, teacher: Side, compared: Comparison, bits: int, seed: int) -> Coded:
    fit = METHODS[name].fit
    assert fit is not None, "BASELINES has only methods that are fitted"
    labels = teacher.labels
    if isinstance(labels, np.ndarray):
        parts = np.ones(len(labels)), (np.arange(len(labels)), labels)
        classes = sparse.csr_array(parts, shape=(len(labels), len(compared.classes)))
    else:
        classes = labels.astype(np.float64)
    hasher = fit(teacher.output.features, bits, seed, classes)
    features = compared.queries.output.features
    return Coded(hasher.encode(features), hasher.project(features), hasher.encode(compared.database.output.features))


def _held_out(side: Side) -> tuple[Side, Side]:
    """Split a side into queries and a database."""
    count = min(_MAX_HELD_OUT, len(side.entries) // _EVERY)
    if not count:
        raise PipelineError(f"{len(side.entries)} images are too few to hold out queries: give `queries`, or {_EVERY}")
    chosen = np.zeros(len(side.entries), np.bool_)
    chosen[np.arange(count) * _EVERY * max(1, len(chosen) // (_EVERY * count))] = True

    def take(rows: NDArray[np.intp]) -> Side:
        codes, relaxed, features, projections = side.output
        output = EncoderOutput(codes[rows], relaxed[rows], features[rows], projections[rows])
        return Side(side.entries.take(pa.array(rows)), side.labels[rows], output)

    return take(np.flatnonzero(chosen)), take(np.flatnonzero(~chosen))


def _refuse_classless(baselines: Sequence[str], compared: Comparison) -> None:
    if compared.labelled:
        return
    if readers := [name for name in baselines if METHODS[name].reads_classes]:
        raise PipelineError(f"{', '.join(readers)} learn from labels, and these images have none: leave them out")


def _attacks(model: HashEncoder, database: Side) -> dict[str, dict[str, float]]:
    """Distort evenly spaced images of the database."""
    rows = np.linspace(0, len(database.entries) - 1, min(ATTACKED, len(database.entries))).astype(np.int64)
    read = read_images(database.entries.take(pa.array(rows)))
    # What was decoded before may be gone or changed since.
    good = {row: data for row, data in zip(rows.tolist(), read, strict=True) if can_be_opened(data)}
    images = [data for data in good.values() if isinstance(data, bytes)]
    return attacks_report(model, images, database.output.codes[list(good)]) if images else {}


def _answered(compared: Comparison) -> Histograms:
    """Return the histograms of the encoder; PipelineError if no query has a relevant image."""
    found = next(iter(compared.histograms.values()))
    if not found.relevant.any():
        raise PipelineError(
            f"none of the {len(compared.queries.entries)} queries shares a label with any of the "
            f"{len(compared.database.entries)} images of the database: do both corpora name their labels alike?"
        )
    return found


def _report(
    model: HashEncoder, compared: Comparison, corpora: dict[str, str], num_taught: int, index: IndexChoice
) -> Report:
    training, relaxed, signs, found = model.config.training, None, None, None
    if compared.labelled:
        _fill_histograms(compared, model.bits)
        found = _answered(compared)
        relaxed, signs = relaxed_maps(compared.queries, compared.database, found)
    nearest = nearest_by_features(compared.queries.output, compared.database.output)
    return Report(
        bits=model.bits,
        encoder=model.fingerprint,
        backbone=model.config.backbone,
        title=str(training.get("title", model.config.method)),
        protocol=_protocol(model, compared, found, corpora, num_taught),
        map_relaxed=relaxed,
        map_signs_of_those=signs,
        methods={
            name: method_report(histograms, compared.codes[name].database, model.bits)
            for name, histograms in compared.histograms.items()
        },
        label_free={
            name: label_free_report(coded, nearest, bits=model.bits, index=index)
            for name, coded in compared.codes.items()
        },
    )


def _protocol(
    model: HashEncoder, compared: Comparison, found: Histograms | None, corpora: dict[str, str], num_taught: int
) -> dict[str, str | int]:
    """Describe what was compared, and what encoder and baselines were trained on."""
    training = model.config.training
    queries, database = compared.queries.entries, compared.database.entries
    by_labels: dict[str, str | int] = {"relevant": "there are no labels"}
    if found is not None:
        by_labels = {
            "relevant": "shares a label with the query",
            "queries_with_an_answer": int(found.relevant.any(axis=1).sum()),
            "queries_without_an_answer": "left out of mAP and NDCG, 0 in P@N and precision within a radius",
            "cut_off": "all of the database where none is named",
            "ties": "expected value over the orders of equal distances",
            "relaxed_codes": f"at most {RELAXED_QUERIES} of the queries with an answer",
        }
    return {
        "queries": len(queries),
        "queries_from": corpora["queries"],
        "database": len(database),
        "database_from": corpora["database"],
        "uris_on_both_sides": _in_common(queries, database, "uri"),
        "ids_on_both_sides": _in_common(queries, database, "id"),
        "an_image_on_both_sides": "counts as a hit of its own",
        **by_labels,
        "neighbours": f"the {NEIGHBOURS} nearest by cosine of the features of the encoder's hash layer",
        "epoch": str(training.get("epoch", "unknown")),
        "encoder_learned_from": str(training.get("supervision", "unknown")),
        "baselines_learn_from": f"{num_taught} images, by the features of the encoder's hash layer",
        "baselines_learn_from_corpus": corpora.get("train", corpora["database"]),
    }


def _in_common(queries: pa.Table, database: pa.Table, column: str) -> int:
    return int(pc.sum(pc.is_in(queries[column], database[column].combine_chunks())).as_py() or 0)
