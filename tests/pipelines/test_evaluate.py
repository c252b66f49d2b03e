"""Reports: right numbers, by the oracles, for one label an image and for several."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.metrics import mean_average_precision, ndcg
from pipelines.errors import PipelineError
from pipelines.evaluate import BASELINES, evaluate_encoder
from pipelines.measure import CUT_OFFS, count_distances
from tests import oracles

PICTURES = {"precision_recall", "precision_at", "precision_radius", "sharpness", "tsne", "results"}


def test_one_label_an_image(tmp_path, corpus, encoder):
    report = evaluate_encoder(encoder, database=corpus, queries=corpus, output=tmp_path, baselines=BASELINES)
    assert set(report.methods) == {"hashnet", *BASELINES}
    written = json.loads((tmp_path / "report.json").read_bytes())
    assert written["methods"]["itq"]["map_all"] == report.methods["itq"].map_all
    assert {path.stem for path in tmp_path.glob("*.png")} == PICTURES
    page = (tmp_path / "report.md").read_text()
    assert f"| itq | {report.methods['itq'].map_all:.4f} |" in page
    assert all(f"({name}.png)" in page for name in PICTURES)
    for method in report.methods.values():
        assert set(method.map_at) == set(method.precision_at) == {"10", "100"}
        assert method.ndcg_at is None
        assert method.map_at_found["10"] >= method.map_at["10"]
        assert method.bit_correlation is None or 0 <= method.bit_correlation <= 1
    assert report.protocol["epoch"] == "last, 1"


def test_several_labels_an_image(tmp_path, corpus, encoder):
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


@pytest.mark.parametrize("bits", [12, 64, 100])
def test_shared_labels_are_counted_as_the_oracle_counts_them(bits):
    rng = np.random.default_rng(bits)
    codes, queries = oracles.clustered_codes(rng, 80, bits), oracles.clustered_codes(rng, 9, bits)
    labels, query_labels = rng.random((80, 5)) < 0.4, rng.random((9, 5)) < 0.4
    got = count_distances(queries, codes, query_labels, labels, bits)
    shared = query_labels.astype(int) @ labels.T.astype(int)
    total, relevant = oracles.distance_histograms(queries, codes, shared > 0, bits)
    assert (got.total == total).all()
    assert (got.relevant == relevant).all()
    for level in range(got.graded.shape[2]):
        assert (got.graded[:, :, level] == oracles.distance_histograms(queries, codes, shared == level, bits)[1]).all()
    assert 0 < np.nanmean(ndcg(got.graded, 2.0 ** np.arange(got.graded.shape[2]) - 1, CUT_OFFS[0])) <= 1
    assert 0 < mean_average_precision(got.total, got.relevant) < 1
