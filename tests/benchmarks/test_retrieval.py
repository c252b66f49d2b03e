"""The retrieval benchmark at a size that says nothing about quality: its splits, its resuming, its tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import retrieval
from pipelines import fashion_mnist


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _few_images(monkeypatch):
    """Noise with the labels and sizes of Fashion-MNIST, so that no download is needed."""

    def load(split):
        count = {"train": 60_000, "test": 10_000}[split]
        rng = np.random.default_rng(count)
        return rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count) % 10

    monkeypatch.setattr(retrieval, "load_fashion_mnist", load)
    assert fashion_mnist.load_fashion_mnist is not load


def sizes(name):
    split = retrieval.split_of(retrieval.VARIANTS[name].split, None)
    return [len(part.labels) for part in (split.queries, split.train, split.database)]


def test_splits_are_those_of_their_titles():
    assert sizes("small") == sizes("imbalanced") == [1_000, 5_000, 69_000]
    assert sizes("full") == [10_000, 60_000, 60_000]
    assert sizes("unseen") == [3_000, 42_000, 60_000]
    unseen = retrieval.split_of("unseen", None)
    assert not set(unseen.train.labels) & set(unseen.queries.labels)
    small = retrieval.split_of("small", None)
    found, asked, taught = (
        {image.tobytes() for image in part.images} for part in (small.database, small.queries, small.train)
    )
    assert not asked & found
    assert taught < found


def test_known_pairs_are_many_and_hardly_any_similar():
    labels = np.arange(5_000) % 5
    pairs = retrieval.draw_pairs(labels, seed=3)
    assert len(pairs.similar) == 2_000_000
    assert pairs.similar.sum() == 20_000
    assert ((labels[pairs.index_a] == labels[pairs.index_b]) == pairs.similar).all()
    assert (pairs.index_a < pairs.index_b).all()
    assert len(np.unique(pairs.index_a * 5_000 + pairs.index_b)) == 2_000_000


def test_every_cell_runs_once_and_the_tables_have_it(tmp_path, capsys):
    out = tmp_path / "retrieval"
    arguments = ["--out", str(out), "--images", "60", "--bits", "8", "--seed", "0", "1"]
    retrieval.main([*arguments, "--method", "hashnet", "joint", "ksh", "dhn"])
    cells = tmp_path / "retrieval.trial-60.cells"
    names = {path.stem for path in cells.glob("*_8_*.json")}
    assert names == {
        *(f"{variant}_hashnet_8_{seed}" for variant in retrieval.VARIANTS for seed in (0, 1)),
        *(f"{variant}_{method}_8_0" for variant in ("small", "full", "unseen") for method in ("joint", "ksh")),
        *(f"{variant}_dhn_8_0" for variant in retrieval.VARIANTS),
    }
    document = json.loads((tmp_path / "retrieval.json").read_bytes())
    assert len(document["cells"]) == len(names)
    assert all(0 < cell["map_all"] < 1 for cell in document["cells"])
    text = (tmp_path / "retrieval.md").read_text()
    assert "trial: YES: 60 images of each part" in text
    assert "| Joint (Mu & Liu 2016, a reconstruction) |" in text
    assert " ± " in text
    assert "queries (the test split)" in text
    ran = len(capsys.readouterr().out.splitlines())
    assert ran == len(names)
    assert {path.name for path in cells.glob("backbone_*.json")} == {
        f"backbone_{split}_{seed}.json" for split in ("small", "full", "unseen") for seed in (0, 1)
    }
    assert (tmp_path / "retrieval.full.map_all.png").read_bytes().startswith(b"\x89PNG")
    (cells / "full_ksh_8_0.json").unlink()
    retrieval.main([*arguments, "--method", "hashnet", "joint", "ksh", "dhn"])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["full_ksh_8_0:"]
