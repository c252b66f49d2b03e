import math

import numpy as np
import pytest
import torch

from encoders.objectives import StraightHashNet
from encoders.supervision import LabelSupervision

LABELS = np.array([0, 1, 2, 0, 1, 0, 2, 2])
SEVERAL = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 1]])


def softplus(value):
    return max(value, 0) + math.log1p(math.exp(-abs(value)))


def loop(code, classes, weight, bias):
    """Weighted likelihood of the pairs, and cross-entropy of the classifier, one pair and one image at a time."""
    count, bits = len(code), len(code[0])
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    similar = {(i, j): any(a and b for a, b in zip(classes[i], classes[j], strict=True)) for i, j in pairs}
    num_similar = sum(similar.values())
    total = 0.0
    for i, j in pairs:
        logit = 10 / bits * sum(a * b for a, b in zip(code[i], code[j], strict=True))
        weight_ij = len(pairs) / (num_similar if similar[i, j] else len(pairs) - num_similar)
        total += weight_ij * (softplus(logit) - similar[i, j] * logit) / len(pairs)
    for row, target in zip(code, classes, strict=True):
        logits = [sum(w * h for w, h in zip(ws, row, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]
        log_sum = math.log(sum(math.exp(value) for value in logits))
        total -= sum(t * (v - log_sum) for t, v in zip(target, logits, strict=True)) / sum(target) / count
    return total


@pytest.mark.parametrize("labels", [LABELS, SEVERAL], ids=["one", "several"])
def test_the_straight_hashnet_equals_the_loop(labels):
    torch.manual_seed(0)
    objective = StraightHashNet(None, bits=5, num_classes=3).double()
    z = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    supervision = LabelSupervision(labels, 8)
    loss = objective(z, 1.0, supervision, torch.arange(8))
    classes = supervision.classes_of(torch.arange(8)).tolist()
    signs = [[1.0 if value > 0 else -1.0 for value in row] for row in z.tolist()]
    weight, bias = objective.classifier.weight.tolist(), objective.classifier.bias.tolist()
    assert loss.item() == pytest.approx(loop(signs, classes, weight, bias), abs=1e-10)
    loss.backward()
    assert objective.classifier.weight.grad.abs().sum() > 0
    # The gradient is that at the signs, as if they were tanh(z): by differences of the loop, times 1 - tanh(z)^2.
    for i, k in [(0, 0), (3, 4), (7, 2)]:
        moved = [[[*row] for row in signs] for _ in range(2)]
        moved[0][i][k] += 1e-5
        moved[1][i][k] -= 1e-5
        slope = (loop(moved[0], classes, weight, bias) - loop(moved[1], classes, weight, bias)) / 2e-5
        assert z.grad[i, k].item() == pytest.approx(slope * (1 - math.tanh(z[i, k].item()) ** 2), abs=1e-8)
