"""Reports: the oracles' numbers, for one label per image and for several."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from typer.testing import CliRunner

from hashlight.encoders.encoder import EncoderOutput, HashEncoder
from hashlight.encoders.metrics import mean_average_precision, ndcg
from hashlight.encoders.packing import pack_bits
from hashlight.encoders.training.train import TrainConfig, train
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.evaluation import label_free, measure
from hashlight.pipelines.evaluation.evaluate import BASELINES, evaluate_encoder
from hashlight.pipelines.evaluation.label_free import ATTACKS
from hashlight.pipelines.evaluation.measure import CUT_OFFS, Report, Side, count_distances, method_report, relaxed_maps
from hashlight.pipelines.jobs.errors import PipelineError
from tests import oracles
from tests.serving import png

PICTURES = {"coverage", "precision_recall", "precision_at", "precision_radius", "sharpness", "tsne", "results"}


def test_one_label_per_image(tmp_path, corpus, encoder, pictures):
    (tmp_path / "foreign.png").write_bytes(b"of somebody else")
    report = evaluate_encoder(encoder, database=corpus, queries=corpus, output=tmp_path, baselines=BASELINES)
    assert set(report.methods) == {"hashnet", *BASELINES}
    assert (report.protocol["uris_on_both_sides"], report.protocol["ids_on_both_sides"]) == (300, 300)
    written = json.loads((tmp_path / "report.json").read_bytes())
    assert written["methods"]["itq"]["map_all"] == report.methods["itq"].map_all
    page = (tmp_path / "report.md").read_text()
    assert f"| ITQ | {report.methods['itq'].map_all:.4f} |" in page
    assert set(re.findall(r"!\[.*\]\((.*)\.png\)", page)) == PICTURES
    assert all((tmp_path / f"{name}.png").is_file() for name in PICTURES)
    images, labels = pictures[0][:300], pictures[1][:300]
    codes = HashEncoder.load(encoder).encode(images)
    counts = oracles.distance_histograms(codes, codes, labels[:, None] == labels, 48)
    assert report.methods["hashnet"].map_all == pytest.approx(mean_average_precision(*counts), abs=1e-12)
    for method in report.methods.values():
        assert set(method.map_at) == set(method.precision_at) == {"10", "100"}
        assert method.ndcg_at is None
    assert abs(report.map_relaxed - report.map_signs_of_those) < 0.2
    assert report.map_signs_of_those == pytest.approx(report.methods["hashnet"].map_all, abs=1e-12)


def test_the_protocol_describes_queries_and_database(tmp_path, corpus, encoder):
    table = pq.read_table(corpus)
    label = table["label"].to_numpy()
    few = table.filter(pa.array(label != label[0])).slice(0, 200)
    pq.write_table(few, tmp_path / "few.parquet")
    report = evaluate_encoder(
        encoder, database=tmp_path / "few.parquet", queries=corpus, output=tmp_path / "report", baselines=["itq"]
    )
    protocol = report.protocol
    assert (protocol["queries"], protocol["database"]) == (300, 200)
    assert (protocol["queries_from"], protocol["database_from"]) == (str(corpus), str(tmp_path / "few.parquet"))
    assert protocol["queries_with_an_answer"] == (label != label[0]).sum() < 300
    assert (protocol["uris_on_both_sides"], protocol["ids_on_both_sides"]) == (0, 200)
    assert protocol["encoder_learned_from"] == "10 labels"
    assert protocol["baselines_learn_from"].startswith("200 images")
    assert protocol["epoch"] == "last, 1"
    page = (tmp_path / "report" / "report.md").read_text()
    assert "- queries without an answer: left out of mAP and NDCG, 0 in P@N" in page


def test_labels_that_never_meet_are_refused(tmp_path, corpus, encoder):
    table = pq.read_table(corpus)
    other = pa.array([f"other {label}" for label in table["label"].to_pylist()])
    pq.write_table(table.drop("label").append_column("label", other), tmp_path / "other.parquet")
    strings = pa.array([str(label) for label in table["label"].to_pylist()])
    pq.write_table(table.drop("label").append_column("label", strings), tmp_path / "strings.parquet")
    with pytest.raises(PipelineError, match="none of the 300 queries shares a label with any of the 300 images"):
        evaluate_encoder(
            encoder,
            database=tmp_path / "strings.parquet",
            queries=tmp_path / "other.parquet",
            output=tmp_path / "report",
            baselines=[],
        )
    assert not (tmp_path / "report").exists()


def test_methods_are_printed_by_their_titles():
    report = Report(48, "f", "small-cnn", "Joint (Mu & Liu 2016, a reconstruction)", {}, 0.5, 0.5, {"joint": None})
    assert report.titles() == {"joint": "Joint (Mu & Liu 2016, a reconstruction)"}
    report.methods["ksh"] = None
    assert list(report.titles().values()) == ["Joint (Mu & Liu 2016, a reconstruction)", "KSH"]


def test_several_labels_per_image(tmp_path, corpus, encoder):
    table = pq.read_table(corpus)
    lists = pa.array([[f"c{label}", f"half{label % 2}"] for label in table["label"].to_pylist()])
    path = tmp_path / "several.parquet"
    pq.write_table(table.drop("label").append_column("label", lists), path)
    report = evaluate_encoder(
        encoder, database=path, queries=path, output=tmp_path / "report", baselines=["itq-cca", "ksh"]
    )
    for method in report.methods.values():
        assert set(method.ndcg_at) == {"10", "100"}
        assert 0.3 < method.ndcg_at["100"] < 1
    assert report.methods["itq-cca"].map_all > 0.5
    assert "NDCG@10" in (tmp_path / "report" / "report.md").read_text()
    with pytest.raises(PipelineError, match="give all of one kind"):
        evaluate_encoder(encoder, database=path, queries=corpus, output=tmp_path / "report")
    with pytest.raises(PipelineError, match=r"unknown baselines \['luck'\]: choose from lsh, sh, itq"):
        evaluate_encoder(encoder, database=path, queries=path, output=tmp_path / "report", baselines=["luck"])


def test_a_baseline_that_cannot_give_the_bits_is_left_out_or_refused(tmp_path, corpus, pictures):
    wide = train(*(part[:128] for part in pictures), TrainConfig(bits=300, epochs=1, warmup_epochs=0))
    wide.save(tmp_path / "encoder")
    asked = {"database": corpus, "queries": corpus, "output": tmp_path / "report"}
    assert set(evaluate_encoder(tmp_path / "encoder", **asked).methods) == {"hashnet", "lsh"}
    with pytest.raises(PipelineError, match="the baseline itq does not fit this encoder: `bits` must be at most"):
        evaluate_encoder(tmp_path / "encoder", **asked, baselines=["itq"])


def test_columns_are_named_as_for_training(tmp_path, corpus, encoder):
    table = pq.read_table(corpus).rename_columns({"label": "genre"})
    pq.write_table(table, tmp_path / "named.parquet")
    command = ["evaluate", "--encoder", encoder, "--database", tmp_path / "named.parquet", "--baseline", "lsh"]
    maps = []
    for place, more in (("without", []), ("with", ["--label-column", "genre", "--kind", "parquet"])):
        asked = [*command, "--output", tmp_path / place, *more]
        result = CliRunner().invoke(app, [str(word) for word in asked])
        assert result.exit_code == 0, result.output
        maps.append(json.loads((tmp_path / place / "report.json").read_text())["methods"])
    plain = evaluate_encoder(encoder, database=corpus, output=tmp_path / "plain", baselines=["lsh"])
    assert maps[0] == {}
    assert maps[1]["hashnet"]["map_all"] == plain.methods["hashnet"].map_all
    result = CliRunner().invoke(app, [str(word) for word in [*asked, "--keep", "colour"]])
    assert (result.exit_code, "no column ['colour']" in result.output) == (1, True)


def several(labels):
    return sparse.csr_array(labels)


def test_memory_grows_with_the_labels_of_images_and_not_with_the_names_of_labels():
    """As a dense matrix these would be 20 GB."""
    rng = np.random.default_rng(3)
    codes = oracles.clustered_codes(rng, 2000, 16)
    names = rng.choice(10**7, 40, replace=False)
    lists = [rng.choice(40, 3, replace=False) for _ in codes]
    parts = np.ones(6000, np.bool_), names[np.concatenate(lists)], np.arange(0, 6001, 3)  # in no order
    labels = sparse.csr_array(parts, shape=(2000, 10**7))
    got = count_distances(codes[:9], codes, labels[:9], labels, 16)
    shared = np.array([[len(np.intersect1d(one, other)) for other in lists] for one in lists[:9]])
    assert got.graded.shape == (9, 17, 4)
    for level in range(4):
        assert (got.graded[:, :, level] == oracles.distance_histograms(codes[:9], codes, shared == level, 16)[1]).all()


@pytest.mark.parametrize("bits", [12, 64, 100])
def test_shared_labels_are_counted_as_the_oracle_counts_them(bits):
    rng = np.random.default_rng(bits)
    codes, queries = oracles.clustered_codes(rng, 80, bits), oracles.clustered_codes(rng, 9, bits)
    labels, query_labels = rng.random((80, 5)) < 0.4, rng.random((9, 5)) < 0.4
    got = count_distances(queries, codes, several(query_labels), several(labels), bits)
    shared = query_labels.astype(int) @ labels.T.astype(int)
    total, relevant = oracles.distance_histograms(queries, codes, shared > 0, bits)
    assert (got.total == total).all()
    assert (got.relevant == relevant).all()
    for level in range(got.graded.shape[2]):
        assert (got.graded[:, :, level] == oracles.distance_histograms(queries, codes, shared == level, bits)[1]).all()
    assert 0 < np.nanmean(ndcg(got.graded, 2.0 ** np.arange(got.graded.shape[2]) - 1, CUT_OFFS[0])) <= 1
    assert 0 < mean_average_precision(got.total, got.relevant) < 1


@pytest.mark.parametrize("bits", [12, 64, 100])
def test_equal_labels_are_counted_as_the_oracle_counts_them(bits):
    rng = np.random.default_rng(bits)
    codes, queries = oracles.clustered_codes(rng, 300, bits), oracles.clustered_codes(rng, 9, bits)
    labels, query_labels = rng.integers(4, size=300), rng.integers(5, size=9)
    got = count_distances(queries, codes, query_labels, labels, bits)
    total, relevant = oracles.distance_histograms(queries, codes, query_labels[:, None] == labels, bits)
    assert (got.total == total).all()
    assert (got.relevant == relevant).all()
    assert got.graded is None
    assert 0 < relevant.sum() < total.sum() == 9 * 300


def test_many_labels_are_counted_as_the_oracle_counts_them():
    rng = np.random.default_rng(0)
    codes = oracles.clustered_codes(rng, 50, 16)
    labels = rng.random((50, 130)) < 0.3
    got = count_distances(codes[:7], codes, several(labels[:7]), several(labels), 16)
    shared = labels[:7].astype(int) @ labels.T.astype(int)
    for level in range(got.graded.shape[2]):
        expected = oracles.distance_histograms(codes[:7], codes, shared == level, 16)[1]
        assert (got.graded[:, :, level] == expected).all()
    assert got.graded.sum() == 7 * 50


def thermometer(levels):
    """12-bit codes with this many ones, from the lowest bit on: distances to all zeros or all ones differ."""
    return np.array([[2**level - 1] for level in levels], np.uint64)


# Two items have one code, and one label: whichever comes first, every measure is the same.
LEVELS = [0, 1, 2, 3, 3, 5, 6, 8, 9, 11, 12]
ITEM_LABELS = [0, 1, 0, 2, 2, 1, 0, 0, 2, 1, 0]
QUERY_LEVELS, QUERY_LABELS = [0, 12, 0, 12], [0, 0, 1, 7]


def ranked_hits(query_level, query_label):
    distances = [abs(level - query_level) for level in LEVELS]
    order = sorted(range(len(LEVELS)), key=lambda i: distances[i])
    return [ITEM_LABELS[i] == query_label for i in order], [distances[i] for i in order]


def average_precision_by_hand(hits, possible):
    found = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
    return sum(found) / possible if possible else 0.0


def test_a_methods_report_is_what_loops_over_the_ranking_give():
    codes, labels = thermometer(LEVELS), np.array(ITEM_LABELS)
    histograms = count_distances(thermometer(QUERY_LEVELS), codes, np.array(QUERY_LABELS), labels, 12)
    report = method_report(histograms, codes, 12)
    ranked = [ranked_hits(*query) for query in zip(QUERY_LEVELS, QUERY_LABELS, strict=True)]
    # The last query has nothing relevant: it is left out of average precision, and counts as 0 in precision.
    defined = [hits for hits, _ in ranked if any(hits)]
    assert len(defined) == 3
    whole = [average_precision_by_hand(hits, sum(hits)) for hits in defined]
    assert report.map_all == pytest.approx(np.mean(whole), abs=1e-12)
    cut = [average_precision_by_hand(hits[:10], min(sum(hits), 10)) for hits in defined]
    of_found = [average_precision_by_hand(hits[:10], sum(hits[:10])) for hits in defined]
    assert report.map_at == pytest.approx({"10": np.mean(cut)}, abs=1e-12)
    assert report.map_at_found == pytest.approx({"10": np.mean(of_found)}, abs=1e-12)
    assert report.map_at != report.map_at_found
    assert report.precision_at == pytest.approx({"10": np.mean([sum(hits[:10]) / 10 for hits, _ in ranked])})
    within = [[hit for hit, distance in zip(*rows, strict=True) if distance <= 2] for rows in ranked]
    assert report.precision_radius_2 == pytest.approx(np.mean([sum(hits) / len(hits) for hits in within]))
    assert (report.distinct_codes, report.largest_bucket) == (10, 2)
    share = [sum(level > bit for level in LEVELS) / len(LEVELS) for bit in range(12)]
    assert report.bit_balance == pytest.approx(np.mean([min(one, 1 - one) for one in share]))
    columns = [[level > bit for level in LEVELS] for bit in range(12)]
    assert report.bit_correlation == pytest.approx(mean_correlation(columns))


def mean_correlation(columns):
    def one(left, right):
        both = sum(a and b for a, b in zip(left, right, strict=True)) / len(left)
        p, q = sum(left) / len(left), sum(right) / len(right)
        return abs(both - p * q) / (p * (1 - p) * q * (1 - q)) ** 0.5

    varied = [column for column in columns if 0 < sum(column) < len(column)]
    return np.mean([one(a, b) for i, a in enumerate(varied) for j, b in enumerate(varied) if i != j])


def test_graded_relevance_is_what_a_loop_over_the_ranking_gives():
    rng = np.random.default_rng(5)
    levels = list(range(11))
    labels, query_labels = rng.random((11, 4)) < 0.5, rng.random((2, 4)) < 0.7
    histograms = count_distances(thermometer([0, 12]), thermometer(levels), several(query_labels), several(labels), 12)
    report = method_report(histograms, thermometer(levels), 12)
    expected = []
    for query_level, wanted in zip([0, 12], query_labels, strict=True):
        order = sorted(range(11), key=lambda i: abs(levels[i] - query_level))
        gains = [2.0 ** sum(wanted & labels[i]) - 1 for i in order]
        found, best = (
            sum(gain / np.log2(rank + 2) for rank, gain in enumerate(some[:10]))
            for some in (gains, sorted(gains, reverse=True))
        )
        expected.append(found / best)
    assert report.ndcg_at == pytest.approx({"10": np.mean(expected)}, abs=1e-12)


def test_relaxed_codes_and_signs_are_compared_on_the_same_queries(monkeypatch):
    monkeypatch.setattr(measure, "RELAXED_QUERIES", 3)
    monkeypatch.setattr(measure, "_SORTED_AT_ONCE", 40)
    rng = np.random.default_rng(2)
    relaxed, query_relaxed = rng.normal(size=(20, 6)).astype(np.float32), rng.normal(size=(8, 6)).astype(np.float32)
    labels, query_labels = rng.integers(3, size=20), np.array([0, 9, 1, 2, 9, 0, 1, 2])
    sides = [
        Side(None, own, EncoderOutput(pack_bits(values > 0), values, None, values))
        for own, values in ((query_labels, query_relaxed), (labels, relaxed))
    ]
    found = count_distances(sides[0].output.codes, sides[1].output.codes, query_labels, labels, 6)
    by_relaxed, by_signs = relaxed_maps(*sides, found)
    # Of the six queries with an answer (rows 0, 2, 3, 5, 6, 7): the first, the third, the last.
    rows = [0, 3, 7]
    hits = [labels[np.argsort(-(relaxed @ query_relaxed[row]))] == query_labels[row] for row in rows]
    assert by_relaxed == pytest.approx(np.mean([average_precision_by_hand(list(h), sum(h)) for h in hits]), abs=1e-12)
    relevant = query_labels[rows, None] == labels
    counts = oracles.distance_histograms(sides[0].output.codes[rows], sides[1].output.codes, relevant, 6)
    assert by_signs == pytest.approx(mean_average_precision(*counts), abs=1e-12)


def nearest_rows(scores_QN, k):
    return [set(row.tolist()) for row in np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]]


def test_images_without_labels_are_measured_by_their_neighbours(tmp_path, corpus, encoder):
    table = pq.read_table(corpus).drop("label")
    pq.write_table(table, tmp_path / "bare.parquet")
    report = evaluate_encoder(
        encoder, database=tmp_path / "bare.parquet", output=tmp_path / "report", baselines=["itq"]
    )
    assert (report.methods, report.map_relaxed) == ({}, None)
    assert (report.protocol["queries"], report.protocol["database"]) == (60, 240)
    page = (tmp_path / "report" / "report.md").read_text()
    assert set(re.findall(r"!\[.*\]\((.*)\.png\)", page)) == {"coverage", "sharpness", "results"}
    # The oracle encodes by itself: every fifth image is a query.
    model = HashEncoder.load(encoder)
    output = model.encode_all(table["image"].to_pylist())
    is_query = np.arange(300) % 5 == 0
    queries, rows = ([part[mask] for part in output] for mask in (is_query, ~is_query))
    cosines = [part[2] / np.linalg.norm(part[2], axis=1)[:, None] for part in (queries, rows)]
    wanted = nearest_rows(cosines[0] @ cosines[1].T, 10)
    bit_Q, bit_N = (
        np.unpackbits(part[0].view(np.uint8), axis=1, bitorder="little")[:, :48] for part in (queries, rows)
    )
    sign_N = np.where(bit_N, 1.0, -1.0)
    distances = (bit_Q[:, None] != bit_N).sum(axis=2)
    order = np.argsort(distances, axis=1, kind="stable")
    products = np.take_along_axis(queries[3].astype(float) @ sign_N.T, order, axis=1)
    finer = np.take_along_axis(order, np.argsort(-products[:, :100], axis=1, kind="stable"), axis=1)
    share = lambda found: np.mean([len(one & set(row.tolist())) / 10 for one, row in zip(wanted, found, strict=True)])  # noqa: E731
    own = report.label_free["hashnet"]
    assert own.recall == pytest.approx(share(order[:, :10]))
    assert own.recall_asymmetric == pytest.approx(share(finer[:, :10]), abs=0.004)
    assert own.recall_reranked == pytest.approx(share(order[:, :100]))
    assert own.recall_asymmetric_reranked > 0
    assert own.found_within["2"] == pytest.approx((distances.min(axis=1) <= 2).mean())
    assert own.answers_within["4"] == pytest.approx((distances <= 4).sum(axis=1).mean())
    assert own.distinct_codes == len(np.unique(rows[0], axis=0))
    assert f"{report.label_free['itq'].recall:.4f}" in page
    assert set(report.attacks) == set(ATTACKS)
    for shares in report.attacks.values():
        assert list(shares.values()) == sorted(shares.values())
        assert shares["12"] > shares["0"] - 1e-9
    assert report.attacks["JPEG, quality 75"]["12"] > report.attacks["rotated by 5 degrees"]["0"]


def test_what_needs_labels_is_refused_without(tmp_path, corpus, encoder):
    bare = tmp_path / "bare.parquet"
    pq.write_table(pq.read_table(corpus).drop("label").slice(0, 20), bare)
    with pytest.raises(PipelineError, match="ksh learn from labels, and these images have none"):
        evaluate_encoder(encoder, database=bare, output=tmp_path / "report", baselines=["itq", "ksh"])
    with pytest.raises(PipelineError, match="label"):
        evaluate_encoder(encoder, database=bare, queries=corpus, output=tmp_path / "report")
    pq.write_table(pq.read_table(bare).slice(0, 4), tmp_path / "few.parquet")
    with pytest.raises(PipelineError, match="4 images are too few to hold out queries"):
        evaluate_encoder(encoder, database=tmp_path / "few.parquet", output=tmp_path / "report", baselines=[])


def test_attacks_that_change_nothing_find_every_image(pictures, encoder, monkeypatch):
    monkeypatch.setattr(
        label_free, "ATTACKS", {"none": lambda image: image, "black": lambda image: image.point(lambda _: 0)}
    )
    model = HashEncoder.load(encoder)
    files = [png(picture) for picture in pictures[0][:12]]
    found = label_free.attacks_report(model, files, model.encode(files))
    assert found["none"]["0"] == 1.0
    assert found["black"]["0"] < 0.5
