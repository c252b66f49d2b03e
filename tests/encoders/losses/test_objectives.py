import math

import numpy as np
import pytest
import torch

from hashlight.encoders.data.supervision.labels import LabelSupervision
from hashlight.encoders.losses.straight_through import StraightHashNet
from hashlight.encoders.methods import METHODS, ObjectiveSettings
from tests.encoders.losses.test_class_losses import loop_cross_entropy
from tests.encoders.losses.test_losses import dot, loop_dhn, loop_exponentiated, loop_loss

LABELS = np.array([0, 1, 2, 0, 1, 0, 2, 2])
SEVERAL = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 1, 1]])


def softplus(value):
    return max(value, 0) + math.log1p(math.exp(-abs(value)))


def loop(code, classes, weight, bias):
    """Weighted negative log likelihood of pairs and cross-entropy of the classifier, one pair and image at a time."""
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
    # The gradient at the signs, by differences of the loop, times 1 - tanh(z)^2, as if they were tanh(z).
    for i, k in [(0, 0), (3, 4), (7, 2)]:
        moved = [[[*row] for row in signs] for _ in range(2)]
        moved[0][i][k] += 1e-5
        moved[1][i][k] -= 1e-5
        slope = (loop(moved[0], classes, weight, bias) - loop(moved[1], classes, weight, bias)) / 2e-5
        assert z.grad[i, k].item() == pytest.approx(slope * (1 - math.tanh(z[i, k].item()) ** 2), abs=1e-8)


def tanh(z, beta=1.0):
    return [[math.tanh(beta * value) for value in row] for row in z]


def signs(z):
    return [[1.0 if value > 0 else -1.0 for value in row] for row in z]


def similarities(classes):
    return [[any(a and b for a, b in zip(left, right, strict=True)) for right in classes] for left in classes]


def jaccard(classes):
    def one(left, right):
        shared = sum(a and b for a, b in zip(left, right, strict=True))
        return shared / sum(a or b for a, b in zip(left, right, strict=True))

    return [[one(left, right) for right in classes] for left in classes]


def loop_csq(z, centres):
    total = 0.0
    for row, centre in zip(z, centres, strict=True):
        for value, aim in zip(row, centre, strict=True):
            share, wanted = (math.tanh(value) + 1) / 2, (aim + 1) / 2
            total -= wanted * math.log(share) + (1 - wanted) * math.log(1 - share)
            total += 1e-4 * math.log(math.cosh(abs(math.tanh(value)) - 1))
    return total / (len(z) * len(z[0]))


def loop_orthohash(z, classes, centres):
    logits = [
        [
            8 * (dot(row, centre) / math.sqrt(dot(row, row) * dot(centre, centre)) - 0.2 * has)
            for centre, has in zip(centres, target, strict=True)
        ]
        for row, target in zip(z, classes, strict=True)
    ]
    return loop_cross_entropy(logits, classes)


def loop_latent(z, classes, classifier):
    sigmoids = [[1 / (1 + math.exp(-value)) for value in row] for row in z]
    weights, biases = classifier.weight.tolist(), classifier.bias.tolist()
    logits = [[dot(row, weight) + bias for weight, bias in zip(weights, biases, strict=True)] for row in sigmoids]
    return loop_cross_entropy(logits, classes)


def loop_straight(z, classes, classifier):
    return loop(signs(z), classes, classifier.weight.tolist(), classifier.bias.tolist())


ALL_KNOWN = [[True] * 8] * 8
BETA = 3.0


def loop_pairs(code, classes, *, weighted=True, affinity=None):
    return loop_loss(code, similarities(classes), ALL_KNOWN, 10 / 5, weighted, affinity)


# The loss of each method's paper, as a function of outputs z, classes, and what the objective has drawn.
LOOPS = {
    "hashnet": lambda z, c, _: loop_pairs(tanh(z, BETA), c),
    "hashnet-c": lambda z, c, _: loop_pairs(tanh(z, BETA), c, affinity=jaccard(c)),
    "hashnet-w": lambda z, c, _: loop_pairs(tanh(z, BETA), c, weighted=False),
    "hashnet-ste": lambda z, c, _: loop_pairs(signs(z), c),
    "hashnet-sgn": lambda z, c, _: loop_pairs(tanh(z), c),
    "hashnet-sharp": lambda z, c, _: loop_pairs(tanh(z, BETA), c),
    "hashnet-st": lambda z, c, drawn: loop_straight(z, c, drawn.classifier),
    "dhn": lambda z, c, _: loop_dhn(tanh(z), similarities(c), ALL_KNOWN, 10 / 5, 0.1),
    "latent": lambda z, c, drawn: loop_latent(z, c, drawn.classifier),
    "joint": lambda z, c, _: loop_exponentiated(tanh(z), similarities(c), ALL_KNOWN),
    "csq": lambda z, c, drawn: loop_csq(z, [drawn.centre_CK[row.index(1)].tolist() for row in c]),
    "orthohash": lambda z, c, drawn: loop_orthohash(z, c, drawn.centre_CK.tolist()),
}


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.objective is not None])
def test_each_method_minimises_the_loss_of_its_name(name):
    torch.manual_seed(0)
    method = METHODS[name]
    objective = method.objective(ObjectiveSettings(bits=5, num_classes=3, seed=0, alpha=None)).double()
    # With several labels per image CSQ takes the majority of centres, which has its own test.
    labels = LABELS if name == "csq" else SEVERAL
    z = torch.randn(8, 5, dtype=torch.float64)
    # The sharpness of the method itself, or else a value from the middle of continuation.
    beta = BETA if method.continues or method.beta is None else method.beta
    loss = objective(z, beta, LabelSupervision(labels, 8), torch.arange(8))
    classes = LabelSupervision(labels, 8).classes_of(torch.arange(8)).int().tolist()
    # Jaccard indices are float32, which cannot represent a third exactly.
    digits = 1e-6 if name == "hashnet-c" else 1e-10
    assert loss.item() == pytest.approx(LOOPS[name](z.tolist(), classes, objective), abs=digits)


def test_all_losses_of_the_table_differ():
    torch.manual_seed(1)
    z = torch.randn(8, 5, dtype=torch.float64).tolist()
    pairwise = [name for name in LOOPS if name.startswith("hashnet") and name not in ("hashnet-st", "hashnet-sharp")]
    values = [LOOPS[name](z, SEVERAL.tolist(), None) for name in [*pairwise, "dhn", "joint"]]
    assert len({round(value, 6) for value in values}) == len(values) == 7


def test_the_gradient_of_signs_is_that_of_tanh():
    torch.manual_seed(0)
    objective = METHODS["hashnet-ste"].objective(ObjectiveSettings(bits=5, num_classes=0, seed=0, alpha=None))
    z = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    objective(z, 1.0, LabelSupervision(LABELS, 8), torch.arange(8)).backward()
    classes = LabelSupervision(LABELS, 8).classes_of(torch.arange(8)).int().tolist()
    for i, k in [(0, 0), (3, 4), (7, 2)]:
        up, down = signs(z.tolist()), signs(z.tolist())
        up[i][k] += 1e-5
        down[i][k] -= 1e-5
        slope = (loop_pairs(up, classes) - loop_pairs(down, classes)) / 2e-5
        assert z.grad[i, k].item() == pytest.approx(slope * (1 - math.tanh(z[i, k].item()) ** 2), abs=1e-8)


@pytest.mark.parametrize("bits", [8, 64])
def test_the_latent_classifier_starts_with_logits_that_can_learn(bits):
    torch.manual_seed(0)
    settings = ObjectiveSettings(bits=bits, num_classes=60, seed=0, alpha=None)
    weight = METHODS["latent"].objective(settings).classifier.weight.detach().numpy() * math.sqrt(bits)
    # Uniform from -4 / sqrt(K) to 4 / sqrt(K); torch's own bound is a quarter of that.
    assert 3.9 < np.abs(weight).max() <= 4.0
    assert weight.std() == pytest.approx(8 / math.sqrt(12), rel=0.1)
    assert abs(weight.mean()) < 0.4
