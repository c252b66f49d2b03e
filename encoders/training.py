"""Training: an optional classification warm-up of the backbone, then HashNet's pairs under a rising beta.

Shapes: N images, P known pairs, B images of a batch, K bits.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.nn import functional

from encoders.augment import flip_and_shift
from encoders.backbones import SMALL_CNN, Backbone, build_backbone
from encoders.encoder import EncoderConfig, HashEncoder
from encoders.losses import HashNetLoss, HashNetLossConfig
from encoders.model import HashModel
from encoders.pixels import PixelSource
from encoders.schedules import SCHEDULES
from encoders.supervision import LabelSupervision, PairList, PairSupervision, Supervision

WARM_UP = "warm-up"
HASHING = "hashing"

# Share of a one-cycle schedule in which the rate rises.
_RISING_SHARE = 0.2


@dataclasses.dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Settings of a training run.

    The defaults are for small-cnn from random weights on a few thousand 28x28 images. Measured on Fashion-MNIST's
    test split (1,000 queries, 9,000 in the database, 5,000 of them to train on; 48 bits, seed 0, all epochs, mean
    average precision over all 9,000 with ties averaged): signs 0.827, relaxed codes 0.828, 99 % of |h| above 0.99,
    144 s of one core.

    Attributes
    ----------
    bits : int
    backbone : str
        "small-cnn" or a torchvision classification model.
    weights : str or None
        Where the backbone starts: random (None), a local file, or a name torchvision knows.
    epochs : int
        Of the hashing loss.
    warmup_epochs : int or None
        Of classification before it, with a classifier that is then thrown away. It stands where the paper starts
        from ImageNet weights: pairs alone teach a random network slowly. None is 12 for labels on random weights,
        else 0.
    batch_size : int
    learning_rate : float
        Peak rate of the backbone under the hashing loss (AdamW, one cycle).
    warmup_learning_rate : float
        Peak rate of the warm-up.
    hash_multiplier : float
        How much faster the hash layer learns than the backbone; 10 in the paper.
    weight_decay : float
    final_beta : float
        Where continuation ends.
    schedule : str
        "stages" (ten equal ones), "released" (square root) or "constant" (no continuation).
    loss : HashNetLossConfig
    seed : int
    augment : bool
        Mirror and shift the training images.
    """

    bits: int = 48
    backbone: str = SMALL_CNN
    weights: str | None = None
    epochs: int = 15
    warmup_epochs: int | None = None
    batch_size: int = 64
    learning_rate: float = 5e-4
    warmup_learning_rate: float = 3e-3
    hash_multiplier: float = 10.0
    weight_decay: float = 0.01
    final_beta: float = 30.0
    schedule: str = "stages"
    loss: HashNetLossConfig = dataclasses.field(default_factory=HashNetLossConfig)
    seed: int = 0
    augment: bool = True

    def __post_init__(self) -> None:
        _require(1 <= self.bits <= 1024, "bits", "1 to 1024, what a collection stores", self.bits)
        _require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        _require(
            self.warmup_epochs is None or self.warmup_epochs >= 0, "warmup_epochs", "0 or more", self.warmup_epochs
        )
        _require(self.batch_size >= 4, "batch_size", "at least 4, or a batch has hardly a pair", self.batch_size)
        _require(self.learning_rate > 0, "learning_rate", "above 0", self.learning_rate)
        _require(self.warmup_learning_rate > 0, "warmup_learning_rate", "above 0", self.warmup_learning_rate)
        _require(self.hash_multiplier > 0, "hash_multiplier", "above 0", self.hash_multiplier)
        _require(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        _require(self.final_beta >= 1, "final_beta", "at least 1, where continuation starts", self.final_beta)
        _require(self.schedule in SCHEDULES, "schedule", f"one of {', '.join(SCHEDULES)}", self.schedule)


class Progress(NamedTuple):
    """Where a training run stands after one step.

    Attributes
    ----------
    phase : str
        "warm-up" or "hashing".
    epoch, epochs, step, steps : int
        Done and in all, of this phase; steps count over all its epochs.
    loss : float
    beta : float
        0 in the warm-up.
    images_per_s : float
        Since the phase began.
    imbalance : float
        Dissimilar pairs for each similar pair of the batch; nan in the warm-up.
    bit_balance : float
        Mean over bits of twice the rarer value's share in the batch: 1 is balanced, 0 constant; nan in the warm-up.
    """

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    beta: float
    images_per_s: float
    imbalance: float
    bit_balance: float


class ImageDataset(Protocol):
    """Anything with a length that gives decoded images by position, such as a torch Dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def train(
    images: NDArray[np.uint8] | torch.Tensor | ImageDataset | Sequence[Any],
    labels: ArrayLike | None = None,
    config: TrainConfig | None = None,
    *,
    pairs: PairList | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> HashEncoder:
    """Train a HashNet encoder. The same inputs, seed and thread count give the same weights.

    Parameters
    ----------
    images : uint8 array or tensor of shape (N, H, W) or (N, H, W, C), or a dataset of N images
        A dataset gives PIL images, uint8 arrays, encoded bytes or paths by position.
    labels : int array of shape (N,), optional
        Images of one label are similar, all others are not.
    config : TrainConfig, optional
    pairs : PairList, optional
        Instead of labels: only these pairs count in the loss.
    progress : callable, optional
        Called after every step.

    Returns
    -------
    HashEncoder

    Raises
    ------
    ValueError
        If there are no images, not exactly one of `labels` and `pairs`, or they do not fit the images.
    EncoderError
        If the backbone cannot be built.
    ImageError
        If an image cannot be decoded.

    Notes
    -----
    HashNet (Cao et al., ICCV 2017, arXiv 1702.00758), with AdamW and a one-cycle rate in the place of the paper's
    SGD with inverse decay.
    """
    config = config or TrainConfig()
    supervision = _supervise(len(images), labels, pairs)
    warmup_epochs = _warmup_epochs(config, supervision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = build_backbone(config.backbone, config.weights)
        model = HashModel(backbone, config.bits).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        run = _Run(config, model, PixelSource(images, backbone.preprocessing), supervision, progress)
        if warmup_epochs:
            run.warm_up(warmup_epochs)
        run.learn_to_hash()
    return HashEncoder(_encoder_config(config, backbone, warmup_epochs, supervision), model)


class _Run:
    """One training run: what its two phases share."""

    def __init__(
        self,
        config: TrainConfig,
        model: HashModel,
        pixels: PixelSource,
        supervision: Supervision,
        progress: Callable[[Progress], None] | None,
    ):
        self._config = config
        self._model = model
        self._pixels = pixels
        self._supervision = supervision
        self._progress = progress
        self._loss = HashNetLoss(config.loss)

    def warm_up(self, epochs: int) -> None:
        """Train the backbone to tell the labels apart, with a classifier that is thrown away."""
        config = self._config
        label_N = torch.from_numpy(self._supervision.classes())
        classifier = nn.Linear(self._model.hash_layer.in_features, self._supervision.num_classes)
        groups = [
            {
                "params": [*self._model.backbone.parameters(), *classifier.parameters()],
                "lr": config.warmup_learning_rate,
            }
        ]
        steps = self._num_steps(epochs)
        optimizer, rate = _one_cycle(groups, steps, config.weight_decay)
        started = time.perf_counter()
        for step, (epoch, index_B) in enumerate(self._batches(epochs), 1):
            feature_BD = self._model.backbone(self._inputs(index_B))
            loss = functional.cross_entropy(classifier(feature_BD), label_N[index_B])
            _step(optimizer, rate, loss)
            self._report(WARM_UP, epoch, epochs, step, steps, loss, 0.0, started)

    def learn_to_hash(self) -> None:
        """Train on pairs while beta rises."""
        config = self._config
        groups = [
            {"params": list(self._model.backbone.parameters()), "lr": config.learning_rate},
            {
                "params": list(self._model.hash_layer.parameters()),
                "lr": config.learning_rate * config.hash_multiplier,
            },
        ]
        steps = self._num_steps(config.epochs)
        optimizer, rate = _one_cycle(groups, steps, config.weight_decay)
        started = time.perf_counter()
        for step, (epoch, index_B) in enumerate(self._batches(config.epochs), 1):
            beta = SCHEDULES[config.schedule]((step - 1) / steps, config.final_beta)
            similar_BB, known_BB = self._supervision.pairs_within(index_B)
            _, z_BK = self._model(self._inputs(index_B))
            loss = self._loss(torch.tanh(beta * z_BK), similar_BB, known_BB)
            _step(optimizer, rate, loss)
            shape = _imbalance(similar_BB, known_BB), _bit_balance(z_BK)
            self._report(HASHING, epoch, config.epochs, step, steps, loss, beta, started, *shape)

    def _num_steps(self, epochs: int) -> int:
        return epochs * self._supervision.batches_per_epoch(self._config.batch_size)

    def _batches(self, epochs: int) -> Iterator[tuple[int, torch.Tensor]]:
        self._model.train()
        for epoch in range(1, epochs + 1):
            for index_B in self._supervision.batches(self._config.batch_size):
                yield epoch, index_B

    def _inputs(self, index_B: torch.Tensor) -> torch.Tensor:
        image_BCHW = self._pixels.batch(index_B)
        image_BCHW = flip_and_shift(image_BCHW) if self._config.augment else image_BCHW
        return image_BCHW.contiguous(memory_format=torch.channels_last)

    def _report(
        self,
        phase: str,
        epoch: int,
        epochs: int,
        step: int,
        steps: int,
        loss: torch.Tensor,
        beta: float,
        started: float,
        imbalance: float = float("nan"),
        bit_balance: float = float("nan"),
    ) -> None:
        value = float(loss.detach())
        if not np.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} in {phase} step {step} of {steps}: lower the learning rate"
            )
        if self._progress is not None:
            speed = step * self._config.batch_size / max(time.perf_counter() - started, 1e-9)
            self._progress(Progress(phase, epoch, epochs, step, steps, value, beta, speed, imbalance, bit_balance))


def _supervise(num_images: int, labels: ArrayLike | None, pairs: PairList | None) -> Supervision:
    if num_images < 2:
        raise ValueError(f"`images` must hold at least 2 images to make a pair, got {num_images}")
    if (labels is None) == (pairs is None):
        raise ValueError(f"pass either `labels` or `pairs`, got {'neither' if labels is None else 'both'}")
    if pairs is not None:
        return PairSupervision(pairs, num_images)
    return LabelSupervision(np.asarray(labels), num_images)


def _warmup_epochs(config: TrainConfig, supervision: Supervision) -> int:
    if config.warmup_epochs and not supervision.num_classes:
        raise ValueError(
            f"`warmup_epochs` must be 0 or None when training on pairs, got {config.warmup_epochs}: "
            "the warm-up classifies, which needs labels"
        )
    if config.warmup_epochs is not None:
        return config.warmup_epochs
    return 12 if supervision.num_classes and config.weights is None else 0


def _one_cycle(
    groups: list[dict[str, Any]], steps: int, weight_decay: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
    peaks = [float(group["lr"]) for group in groups]
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=steps + 1, pct_start=_RISING_SHARE)
    return optimizer, rate


def _step(optimizer: torch.optim.Optimizer, rate: torch.optim.lr_scheduler.LRScheduler, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    rate.step()


def _imbalance(similar_BB: torch.Tensor, known_BB: torch.Tensor) -> float:
    """Dissimilar known pairs for each similar one."""
    known_BB = known_BB & ~torch.eye(len(known_BB), dtype=torch.bool)
    num_similar = int((similar_BB & known_BB).sum())
    num_dissimilar = int(known_BB.sum()) - num_similar
    return num_dissimilar / num_similar if num_similar else float("inf")


def _bit_balance(z_BK: torch.Tensor) -> float:
    share_K = (z_BK.detach() > 0).float().mean(dim=0)
    return float((2 * torch.minimum(share_K, 1 - share_K)).mean())


def _encoder_config(
    config: TrainConfig, backbone: Backbone, warmup_epochs: int, supervision: Supervision
) -> EncoderConfig:
    settings = dataclasses.asdict(config) | {"warmup_epochs": warmup_epochs}
    return EncoderConfig(
        bits=config.bits,
        backbone=backbone.name,
        beta=config.final_beta,
        batch_size=backbone.batch_size,
        preprocessing=backbone.preprocessing,
        training={"method": "hashnet", "supervision": supervision.describe(), "settings": settings},
    )


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"`{name}` must be {expected}, got {got!r}")
