"""Metrics of codes on labelled images, and the records behind a report.

Shapes: Q queries, N database items, D = bits + 1 distances, C classes, L levels (numbers of shared labels).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from hashlight.encoders.encoder import EncoderOutput
from hashlight.encoders.methods import METHODS
from hashlight.encoders.metrics import (
    average_precision_of_scores,
    bit_balance,
    bit_correlation,
    distinct_codes,
    largest_bucket,
    mean_average_precision,
    ndcg,
    precision_at,
    precision_within_radius,
)
from hashlight.engine.indexes.histogram import DistanceHistogram, LabelSets, distance_histogram, graded_histogram
from hashlight.pipelines.evaluation.label_free import Coded, LabelFree

PRECISION_RADIUS = 2
CUT_OFFS = (10, 100, 1000)

# One for each image, (N,) int64, or several, (N, C) bool.
Labels: TypeAlias = np.ndarray | sparse.csr_array

# Ranking relaxed codes needs sorting, a second for 1,000 queries of 9,000 items; more queries would add little.
RELAXED_QUERIES = 1000
_SORTED_AT_ONCE = 50_000_000


class Histograms(NamedTuple):
    """Counts of items by distance, for each query.

    Attributes
    ----------
    total, relevant : ndarray of int64, shape (Q, D)
    graded : ndarray of int64, shape (Q, D, L), or None
        By the number of shared labels; None with one label per image.
    seconds : float
        Time spent counting.
    """

    total: np.ndarray
    relevant: np.ndarray
    graded: np.ndarray | None
    seconds: float


@dataclass(frozen=True, slots=True)
class MethodReport:
    """Quality of one method's codes. Every number is the expected value over all orders of tied items.

    Attributes
    ----------
    map_all : float
        Mean average precision over the whole database.
    map_at, map_at_found : dict of str to float
        With a cut-off, normalised by the largest possible number of relevant items, and by the number found (the rule
        of HashNet's code and of most published tables).
    precision_at : dict of str to float
        Share of relevant items among the first N, over all queries; a query with no relevant item counts as 0. Means
        of average precision and NDCG are over queries that have a relevant item.
    ndcg_at : dict of str to float or None
        With several labels per image; the gain is 2**shared - 1.
    precision_radius_2 : float
        Mean precision within radius 2; a query that finds nothing counts as 0.
    distinct_codes, largest_bucket : int
        Of the database.
    bit_balance : float
        Mean over bits of the share of the rarer value; 0.5 is best.
    bit_correlation : float or None
        Mean absolute correlation of two bits, 0 is best; None with fewer than two bits that vary.
    ms_a_query : float
        Time to compare a query with the whole database and count, on one core.
    """

    map_all: float
    map_at: dict[str, float]
    map_at_found: dict[str, float]
    precision_at: dict[str, float]
    ndcg_at: dict[str, float] | None
    precision_radius_2: float
    distinct_codes: int
    largest_bucket: int
    bit_balance: float
    bit_correlation: float | None
    ms_a_query: float


@dataclass(frozen=True, slots=True)
class Report:
    """The results of `evaluate_encoder`, with their protocol.

    Attributes
    ----------
    title : str
        Printable name of the method that made the encoder.
    protocol : dict
        Corpora, tie rule, cut-off, epoch, and the training data of encoder and baselines.
    map_relaxed, map_signs_of_those : float or None
        Mean average precision of the real-valued codes tanh(beta z), ranked by inner product, and of their signs, on
        the same queries (at most 1,000); None without labels.
    methods : dict of str to MethodReport
        The encoder, under its method's name, then each baseline; empty without labels.
    label_free : dict of str to LabelFree
        What needs no labels, of the same methods.
    attacks : dict of str to dict of str to float
        Share of images that the encoder finds again within each radius, by how they were distorted.
    """

    bits: int
    encoder: str
    backbone: str
    title: str
    protocol: dict[str, str | int]
    map_relaxed: float | None
    map_signs_of_those: float | None
    methods: dict[str, MethodReport]
    label_free: dict[str, LabelFree] = field(default_factory=dict)
    attacks: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def relaxed_gap(self) -> float | None:
        """Mean average precision that relaxed codes lose as signs, negative if they gain; None without labels."""
        if self.map_relaxed is None or self.map_signs_of_those is None:
            return None
        return self.map_relaxed - self.map_signs_of_those

    def titles(self) -> dict[str, str]:
        """Return the printable name of each method."""
        own, *baselines = self.methods or self.label_free
        return {own: self.title, **{name: METHODS[name].title for name in baselines}}


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the comparison.

    Attributes
    ----------
    entries : pyarrow.Table
        The corpus listing, without images that could not be decoded.
    labels : ndarray of int64, shape (N,), or scipy.sparse.csr_array of bool, shape (N, C)
        (N, 0) without labels.
    output : EncoderOutput
    """

    entries: pa.Table
    labels: Labels
    output: EncoderOutput

    @property
    def first_labels(self) -> NDArray[np.int64]:
        """The first label of each image, (N,)."""
        if isinstance(self.labels, np.ndarray):
            return self.labels
        sets = _sets(self.labels)
        return sets.labels[sets.starts[:-1]]

    def labels_of(self, row: int) -> list[int]:
        """Return the labels of an image."""
        if isinstance(self.labels, np.ndarray):
            return [int(self.labels[row])]
        starts, labels = _sets(self.labels)
        return list(map(int, labels[starts[row] : starts[row + 1]]))


@dataclass(slots=True)
class Comparison:
    """The data behind a report.

    Attributes
    ----------
    classes : list of str
        Names by label number or column.
    codes : dict of str to Coded
        By method.
    histograms : dict of str to Histograms
    """

    queries: Side
    database: Side
    classes: list[str]
    codes: dict[str, Coded] = field(default_factory=dict)
    histograms: dict[str, Histograms] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool(self.classes)


def _sets(labels: sparse.csr_array) -> LabelSets:
    if not labels.has_canonical_format:
        labels = labels.copy()
        labels.sum_duplicates()  # and sort them
    return LabelSets(labels.indptr.astype(np.int64), labels.indices.astype(np.int64))


def count_distances(
    queries: np.ndarray, codes: np.ndarray, query_labels: Labels, code_labels: Labels, bits: int
) -> Histograms:
    """Count all items, and those that share a label, by distance from each query.

    Parameters
    ----------
    queries, codes : ndarray of uint64, shapes (Q, W) and (N, W)
    query_labels, code_labels : ndarray of int64, shapes (Q,) and (N,), or csr_array, shapes (Q, C) and (N, C)
    bits : int
    """

    def count(num_queries: int) -> DistanceHistogram | NDArray[np.int64]:
        some = queries[:num_queries]
        if isinstance(query_labels, np.ndarray):
            labels = {"query_labels": query_labels[:num_queries], "code_labels": code_labels}
            return distance_histogram(some, codes, **labels, bits=bits)
        sets = {"query_labels": _sets(query_labels[:num_queries]), "code_labels": _sets(code_labels)}
        return graded_histogram(some, codes, **sets, bits=bits)

    count(1)  # loads the kernel, which does not count as query time
    start = time.perf_counter()
    counts = count(len(queries))
    seconds = time.perf_counter() - start
    if isinstance(counts, DistanceHistogram):
        return Histograms(*counts, None, seconds)
    return Histograms(counts.sum(axis=2), counts[:, :, 1:].sum(axis=2), counts, seconds)


def method_report(histograms: Histograms, codes: np.ndarray, bits: int) -> MethodReport:
    """Compute the metrics of one method; `codes` (N, W) are those of the database."""
    total, relevant, graded, seconds = histograms
    share_set = bit_balance(codes, bits)
    correlation = bit_correlation(codes, bits)
    gains = 2.0 ** np.arange(0 if graded is None else graded.shape[2]) - 1
    cut_offs = [n for n in CUT_OFFS if n <= len(codes)]
    return MethodReport(
        map_all=mean_average_precision(total, relevant),
        map_at={str(n): mean_average_precision(total, relevant, n) for n in cut_offs},
        map_at_found={str(n): mean_average_precision(total, relevant, n, normalisation="found") for n in cut_offs},
        precision_at={str(n): float(precision_at(total, relevant, n).mean()) for n in cut_offs},
        ndcg_at=None if graded is None else {str(n): float(np.nanmean(ndcg(graded, gains, n))) for n in cut_offs},
        precision_radius_2=float(np.mean(precision_within_radius(total, relevant, min(PRECISION_RADIUS, bits)))),
        distinct_codes=distinct_codes(codes),
        largest_bucket=largest_bucket(codes),
        bit_balance=float(np.mean(np.minimum(share_set, 1 - share_set))),
        bit_correlation=None if np.isnan(correlation) else correlation,
        ms_a_query=1000 * seconds / max(len(total), 1),
    )


def relaxed_maps(queries: Side, database: Side, found: Histograms) -> tuple[float, float]:
    """Mean average precision by inner products of relaxed codes, and by their signs, on the same queries.

    These are at most 1,000 evenly spaced queries among those that have a relevant item.

    Parameters
    ----------
    found : Histograms
        Histograms of the signs.

    Returns
    -------
    tuple of float
        For relaxed codes and for signs; nan if no query has a relevant item.
    """
    answered = np.flatnonzero(found.relevant.any(axis=1))
    if not len(answered):
        return float("nan"), float("nan")
    chosen = answered[np.linspace(0, len(answered) - 1, min(RELAXED_QUERIES, len(answered))).astype(np.int64)]
    values = []
    for rows in np.array_split(chosen, -(-len(chosen) * database.labels.shape[0] // _SORTED_AT_ONCE)):
        scores = queries.output.relaxed[rows] @ database.output.relaxed.T
        values.append(average_precision_of_scores(scores, _relevant(queries.labels[rows], database.labels)))
    return float(np.concatenate(values).mean()), mean_average_precision(found.total[chosen], found.relevant[chosen])


def _relevant(query_labels: Labels, code_labels: Labels) -> NDArray[np.bool_]:
    if isinstance(query_labels, np.ndarray):
        relevant: NDArray[np.bool_] = query_labels[:, None] == code_labels
    else:
        relevant = (query_labels.astype(np.int32) @ code_labels.T.astype(np.int32)).toarray() > 0
    return relevant
