"""The peer's loss against a loop over its pairs, and the comparison at a size that says nothing about quality."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
import torch

from benchmarks import hashnet_peer
from hashlight.encoders.data.supervision.labels import LabelSupervision
from hashlight.encoders.methods import METHODS


@pytest.fixture(autouse=True)
def _one_thread_and_no_peer_afterwards():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    METHODS.pop(hashnet_peer.PEER, None)


def loop_loss(batch, bank, similar, slope):
    """The mean over pairs, similar ones weighted by all over similar, the others by all over dissimilar."""
    pairs = [(i, j) for i in range(len(batch)) for j in range(len(bank))]
    count = {kind: sum(similar[i][j] is kind for i, j in pairs) for kind in (True, False)}
    total = 0.0
    for i, j in pairs:
        product = slope * sum(a * b for a, b in zip(batch[i], bank[j], strict=True))
        weight = len(pairs) / count[similar[i][j]]
        total += weight * (math.log1p(math.exp(-abs(product))) + max(product, 0) - similar[i][j] * product)
    return total / len(pairs)


def test_the_peers_loss_equals_the_loop():
    labels = np.array([0, 1, 0, 2, 1, 2])
    supervision = LabelSupervision(labels, 6)
    objective = hashnet_peer.PeerHashNet(6, 4, 3).double()
    generator = torch.Generator().manual_seed(0)
    bank, known = [[0.0] * 4 for _ in range(6)], [None] * 6
    for beta, index in ((1.0, [4, 0, 3]), (2.0, [2, 0, 5])):
        output = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        codes = [[math.tanh(beta * value) for value in row] for row in output.tolist()]
        for row, image in zip(codes, index, strict=True):
            bank[image], known[image] = row, labels[image]
        similar = [[bool(labels[image] == other) if other is not None else False for other in known] for image in index]
        expected = loop_loss(codes, bank, similar, 10 / 4)
        assert objective(output, beta, supervision, torch.tensor(index)).item() == pytest.approx(expected, abs=1e-12)


def test_rows_are_compared_with_ours_by_seed_and_query():
    ours, peer = [[0.9, 0.5, 0.7], [0.8, 0.6, 0.4]], [[0.8, 0.5, 0.5], [0.8, 0.4, 0.5]]
    (entry,) = hashnet_peer.compared({hashnet_peer.OURS: np.array(ours), "peer": np.array(peer)})
    gains = [0.05, 0.1, 0.05]
    assert entry["by_seed"] == pytest.approx([0.1, 1 / 30])
    assert entry["standard_error"] == pytest.approx(statistics.stdev(gains) / 3**0.5)


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)

    def part(count):
        return hashnet_peer.Part(rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count) % 3)

    parts = {"train": part(16), "database": part(20), "queries": part(6)}
    monkeypatch.setattr(hashnet_peer, "parts_of_demo", lambda: parts)
    arguments = ["--out", str(tmp_path / "peer"), "--bits", "8"]
    hashnet_peer.main([*arguments, "--seeds", "0"])
    assert capsys.readouterr().out.count("seed 0, ") == 3
    hashnet_peer.main([*arguments, "--seeds", "0", "1"])
    shown = capsys.readouterr().out
    assert (shown.count("seed 0, "), shown.count("seed 1, ")) == (0, 3)
    document = json.loads((tmp_path / "peer.json").read_text())
    assert [len(values) for values in document["map"].values()] == [2, 2, 2]
    assert all(0 < value < 1 for values in document["map"].values() for value in values)
    assert (tmp_path / "peer.md").read_text().count("- hashnet less ") == 2
