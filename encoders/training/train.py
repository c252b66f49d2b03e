"""Training: an optional classification warm-up of the backbone, then the method's own objective or fit.

`encoders.methods` names each method's paper. Networks are trained by AdamW with a one-cycle rate instead of the papers'
SGD.

Shapes: N images, K bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from hashlight.encoders.config import AUTO, EncoderConfig, Pictures
from hashlight.encoders.data.pixels import PixelSource
from hashlight.encoders.data.prepared import PreparedImages
from hashlight.encoders.data.supervision.labels import LabelSupervision
from hashlight.encoders.data.supervision.pairs import PairList, PairSupervision
from hashlight.encoders.data.supervision.protocol import NOTHING, Supervision
from hashlight.encoders.data.supervision.views import NoSupervision, ViewSupervision
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.losses.classification import Classification
from hashlight.encoders.methods import METHODS, Method, ObjectiveSettings, label_free_method
from hashlight.encoders.networks.backbone import Backbone
from hashlight.encoders.networks.backbones import SMALL_CNN, build_backbone
from hashlight.encoders.networks.model import HashModel
from hashlight.encoders.networks.stages import stages_of
from hashlight.encoders.runtimes.threads import usable_threads
from hashlight.encoders.training.checkpoints import Files, TrainingFolder
from hashlight.encoders.training.fitting import exported, with_hasher
from hashlight.encoders.training.loop import HASHING, WARM_UP, Loop, LoopSettings, Outcome, Phase, Progress
from hashlight.encoders.training.schedules import FINAL_BETAS, SCHEDULES
from hashlight.encoders.training.validation import hold_out
from hashlight.encoders.training.workers import ALONE, Workers, forked_random

__all__ = ["ImageDataset", "Progress", "TrainConfig", "train"]

PRECISIONS = ("float32", "bfloat16", "float64")
DEVICES = ("cpu", "cuda")
ALL = "all"
# From random weights most epochs go to classifying, which teaches more. The last epochs show images as they will be
# encoded, since what is trained on is often searched. 27 epochs as 12 and 15 gave a mean average precision of 0.849, as
# 20 and 7 0.861, and with all 7 of them plain 0.865 (the split that `TrainConfig` names, bfloat16, seed 0).
WARMUP_EPOCHS, EPOCHS_AFTER_WARM_UP = 20, 7
_EPOCHS = 15
_WARMUP_OF_TRAINED = 12
# Images whose codes are compared when a network is exported.
_COMPARED_IMAGES = 32


@dataclasses.dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Settings of a training run.

    The defaults suit small-cnn from random weights on a few thousand 28x28 images. Measured on Fashion-MNIST's test
    split (1,000 queries, 9,000 images in the database, 5,000 of them for training; 48 bits, seed 0, bfloat16, all
    epochs, mean average precision of signs over all 9,000 with ties averaged): 0.864, in 89 s of one core.

    Attributes
    ----------
    bits : int
    method : str
        A name of `encoders.methods.METHODS`, or "auto": "hashnet" with labels, pairs or views, and without them
        "neighbours" up to 64 bits from 2,000 images on, else "itq".
    backbone : str
        "small-cnn", "efficientnet-lite0", a torchvision classification model, "timm:NAME", "open_clip:NAME/PRETRAINED",
        "hf:NAME", "onnx:FILE" or "python:MODULE:FACTORY".
    weights : str or None
        Initial weights of the backbone: random or its source's own (None), a local file, or a name that the backbone
        knows.
    epochs : int or None
        Epochs of the method's objective; fitted methods have none. None is 7 after a warm-up from random weights and
        else 15.
    warmup_epochs : int or None
        Epochs of classification before it, with a classifier that is then discarded. This replaces the paper's ImageNet
        weights, because a random network learns slowly from pairs alone. None is 20 for labels with random weights, 12
        for a method that starts with classification from trained ones, and otherwise 0.
    batch_size : int
        Number of images whose pairs the loss compares.
    chunk_size : int or None
        Number of images that pass through the network at a time if a batch does not fit into memory; the gradient is
        still that of all pairs of the batch. None is the whole batch.
    learning_rate : float or None
        Peak rate of the backbone under the method's objective (AdamW, one cycle). None is 1e-4 for a backbone that is
        already trained, by the warm-up or by its weights, and 5e-4 for a random one.
    warmup_learning_rate : float
        Peak rate of the warm-up.
    hash_multiplier : float or None
        Ratio of the hash layer's rate to the backbone's. None is 50 for a backbone that is already trained and, as in
        the paper, 10 for a random one. The slower backbone rate preserves more of what was learned: on another split of
        5,000 and 9,000 images of Fashion-MNIST, signs reach 0.854 with 1e-4 and 50, and 0.849 with 5e-4 and 10.
    weight_decay : float
        Of matrices and filters; biases and normalisation have none.
    frozen_stages : int or "all"
        So many stages of the backbone (`encoders.networks.stages`), counted from the image, keep the weights and
        statistics that they start with, which must be those of `weights`.
    stage_decay : float
        Ratio of a stage's rate to that of the next one: below 1, early stages change less than late ones.
    final_beta : float or None
        Last beta of the continuation. None is the schedule's own: 7.07 for "released", 30 for the others.
    schedule : str
        "stages" (ten of equal length), "released" (square root) or "constant" (no continuation).
    alpha : float or None
        Slope of the pairwise likelihood; None is 10 / bits.
    validation_images : int
        Number of images held out of training to choose the epoch, by the mean average precision of their codes among
        themselves. 0 keeps the last epoch.
    patience : int or None
        Stop after this many epochs without improvement on the validation images. With continuation this may happen
        while beta is still low and relaxed codes are far from their signs; the encoder keeps the beta of its best
        epoch.
    precision : str
        "float32", "bfloat16" for automatic mixed precision, or "float64" to compare runs: training amplifies rounding,
        so that in float32 the losses of one thread and of two differ in the second digit after some thirty steps.
    compile : bool
        Compile the network with `torch.compile`.
    device : str
        Where to train: "cpu" or "cuda".
    seed : int
    augment : bool
        Mirror and shift the training images, except in the last 7 epochs after a warm-up from random weights. Views are
        always augmented.
    """

    bits: int = 48
    method: str = "hashnet"
    backbone: str = SMALL_CNN
    weights: str | None = None
    epochs: int | None = None
    warmup_epochs: int | None = None
    batch_size: int = 64
    chunk_size: int | None = None
    learning_rate: float | None = None
    warmup_learning_rate: float = 3e-3
    hash_multiplier: float | None = None
    weight_decay: float = 0.01
    frozen_stages: int | str = 0
    stage_decay: float = 1.0
    final_beta: float | None = None
    schedule: str = "stages"
    alpha: float | None = None
    validation_images: int = 0
    patience: int | None = None
    precision: str = "float32"
    compile: bool = False
    device: str = "cpu"
    seed: int = 0
    augment: bool = True

    def __post_init__(self) -> None:
        _require(1 <= self.bits <= 1024, "bits", "1 to 1024, as collections store", self.bits)
        _require(self.method in (AUTO, *METHODS), "method", f"one of {', '.join((AUTO, *METHODS))}", self.method)
        _require(self.epochs is None or self.epochs >= 1, "epochs", "at least 1, or None", self.epochs)
        _require(
            self.warmup_epochs is None or self.warmup_epochs >= 0, "warmup_epochs", "0 or more", self.warmup_epochs
        )
        _require(self.batch_size >= 4, "batch_size", "at least 4, so that a batch has pairs", self.batch_size)
        _require(self.chunk_size is None or self.chunk_size >= 2, "chunk_size", "at least 2", self.chunk_size)
        for name in ("learning_rate", "hash_multiplier"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, "above 0, or None", value)
        _require(self.warmup_learning_rate > 0, "warmup_learning_rate", "above 0", self.warmup_learning_rate)
        _require(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        _require(0 < self.stage_decay <= 1, "stage_decay", "above 0 and at most 1", self.stage_decay)
        self._check_frozen()
        _require(self.schedule in SCHEDULES, "schedule", f"one of {', '.join(SCHEDULES)}", self.schedule)
        _require(self.last_beta >= 1, "final_beta", "None, or at least 1, where continuation starts", self.final_beta)
        _require(self.alpha is None or self.alpha > 0, "alpha", "above 0, or None for 10 / bits", self.alpha)
        _require(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        _require(0 <= self.seed < 2**32, "seed", "0 to 4,294,967,295", self.seed)
        _require(self.device in DEVICES, "device", f"one of {', '.join(DEVICES)}", self.device)
        self._check_validation()

    @property
    def last_beta(self) -> float:
        """Last beta of the continuation: `final_beta`, or the schedule's own."""
        return FINAL_BETAS[self.schedule] if self.final_beta is None else self.final_beta

    def _check_frozen(self) -> None:
        count = self.frozen_stages
        known = count == ALL if isinstance(count, str) else count >= 0
        _require(known, "frozen_stages", f"0 or more, or {ALL!r}", count)

    def _check_validation(self) -> None:
        fits = self.method != AUTO and METHODS[self.method].fit is not None
        count, patience = self.validation_images, self.patience
        _require(count == 0 or count >= 2, "validation_images", "0, or at least 2", count)
        _require(count == 0 or not fits, "validation_images", f"0 for {self.method}, which has no epochs", count)
        _require(
            patience is None or (patience >= 1 and count > 0),
            "patience",
            "None, or at least 1 with `validation_images` to judge epochs by",
            patience,
        )


class ImageDataset(Protocol):
    """Anything with a length that gives decoded images by position, such as a torch Dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def train(
    images: NDArray[np.uint8] | torch.Tensor | ImageDataset | PreparedImages | Sequence[Any],
    labels: ArrayLike | sparse.sparray | None = None,
    config: TrainConfig | None = None,
    *,
    pairs: PairList | None = None,
    views: bool = False,
    folder: Path | Files | None = None,
    progress: Callable[[Progress], None] | None = None,
    workers: Workers = ALONE,
) -> HashEncoder:
    """Train an encoder. The same inputs, seed and thread count give the same weights on a CPU.

    Parameters
    ----------
    images : uint8 array or tensor of shape (N, H, W) or (N, H, W, C), a dataset of N images, or PreparedImages
        A dataset gives PIL images, uint8 arrays, encoded bytes or paths by position. Each is decoded once, and its
        resized pixels are kept: in memory up to 250 MB of all, else in a temporary file.
    labels : int array of shape (N,), or 0/1 array or scipy.sparse array of shape (N, C), optional
        One label for each image, or several. Images that share a label are similar, all others are not.
    config : TrainConfig, optional
    pairs : PairList, optional
        Instead of labels: only these pairs count in the loss.
    views : bool
        Instead of labels: two augmented views of an image are similar, so the encoder learns to find copies.
    folder : Path or Files, optional
        Where the run keeps its checkpoint and log (`encoders.training.checkpoints`). A run that finds the checkpoint of
        an interrupted one resumes from it, to the same weights.
    progress : callable, optional
        Called after every step.
    workers : Workers
        The processes that share every batch, including this one. All call `train` with the same arguments and get the
        same encoder, which equals that of a single process except for rounding. The first one writes to `folder`.

    Returns
    -------
    HashEncoder

    Raises
    ------
    ValueError
        If there are no images, or the method cannot learn from the given supervision or images.
    EncoderError
        If the backbone cannot be built, `folder` belongs to another run, or the device is not available.
    ImageError
        If an image cannot be decoded.
    """
    config = config or TrainConfig()
    _check_device(config.device)
    supervision = _supervise(len(images), labels, pairs, views)
    if config.method == AUTO:
        config = dataclasses.replace(config, method=_suited_method(supervision, config.bits, len(images)))
    method = METHODS[config.method]
    method.check(supervision)
    run = {"config": dataclasses.asdict(config), "supervision": supervision.digest(), "images": len(images)}
    with forked_random(torch.device(config.device)):
        trainer = _build_trainer(config, method, supervision, workers)
        return trainer.train(images, TrainingFolder(folder if workers.is_first else None, run), progress)


def _suited_method(supervision: Supervision, bits: int, num_images: int) -> str:
    """Return the method that "auto" stands for."""
    return label_free_method(bits, num_images) if supervision.kind == NOTHING else "hashnet"


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise EncoderError(
            f"`device` must be available, got cuda, but torch {torch.__version__} finds no GPU: train on cpu, or "
            "install torch and a driver for CUDA"
        )


def _build_trainer(config: TrainConfig, method: Method, supervision: Supervision, workers: Workers) -> _Trainer:
    torch.manual_seed(config.seed)
    backbone = build_backbone(config.backbone, config.weights)
    warmup_epochs = _warmup_epochs(config, method, supervision, pretrained=backbone.pretrained)
    if method.fit is None or warmup_epochs:
        backbone = backbone.without_text()
    if config.compile:
        _refuse_compile(method, warmup_epochs, workers)
    method.check_bits(config.bits, backbone.feature_dim, supervision.num_classes)
    model = HashModel(backbone, config.bits).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stages = stages_of(model.backbone)
    model.freeze(stages[: _frozen_stages(config, len(stages), warmup_epochs, pretrained=backbone.pretrained)])
    return _Trainer(config, method, backbone, model, supervision, warmup_epochs, workers)


class _Trainer:
    """The phases of one method on one model."""

    def __init__(
        self,
        config: TrainConfig,
        method: Method,
        backbone: Backbone,
        model: HashModel,
        supervision: Supervision,
        warmup_epochs: int,
        workers: Workers,
    ):
        self._config = config
        self._method = method
        self._backbone = backbone
        self._model = model
        self._supervision = supervision
        self._warmup_epochs = warmup_epochs
        self._workers = workers

    def train(self, images: Any, folder: TrainingFolder, progress: Callable[[Progress], None] | None) -> HashEncoder:
        """Run the phases and return the encoder."""
        config, supervision = self._config, self._supervision
        held_out_V = torch.arange(0)
        if config.validation_images:
            supervision, held_out_V = hold_out(supervision, config.validation_images, config.seed)
        # What else is given by position may not be read by several threads at once.
        num_threads = usable_threads() if isinstance(images, list | tuple | np.ndarray | torch.Tensor) else 1
        pixels = PixelSource(images, self._backbone.preprocessing, num_threads=num_threads)
        loop = Loop(
            self._model,
            pixels,
            supervision,
            self._loop_settings(),
            folder=folder,
            held_out_V=held_out_V,
            progress=progress if self._workers.is_first else None,
            workers=self._workers,
        )
        if self._warmup_epochs and not loop.is_done(WARM_UP):
            loop.run(self._warm_up())
        if self._method.fit is not None:
            return self._exported(self._fit(pixels), pixels)
        outcome = loop.run(self._hashing())
        self._model.to("cpu", torch.float32)
        encoder = HashEncoder(self._encoder_config(outcome.beta, self._epoch_rule(outcome)), self._model)
        return self._exported(encoder, pixels)

    def _warm_up(self) -> Phase:
        """Train the backbone to classify the labels, with a classifier that is then discarded."""
        classifier = Classification(self._model.feature_dim, self._supervision.num_classes)
        rate = self._config.warmup_learning_rate
        return Phase(
            name=WARM_UP,
            epochs=self._warmup_epochs,
            part=self._model.backbone,
            objective=classifier,
            groups=[*self._backbone_groups(rate), {"params": list(classifier.parameters()), "lr": rate}],
            beta_at=lambda _: 0.0,
        )

    def _hashing(self) -> Phase:
        """Train backbone and hash layer on the method's objective, with rising beta if the method uses continuation."""
        config, model = self._config, self._model
        assert self._method.objective is not None
        objective = self._method.objective(
            ObjectiveSettings(
                bits=config.bits, num_classes=self._supervision.num_classes, seed=config.seed, alpha=config.alpha
            )
        )
        fast = [*model.hash_layer.parameters(), *objective.parameters()]
        rate, multiplier = _rates(config, has_learned=self._warmup_epochs > 0 or self._backbone.pretrained)
        return Phase(
            name=HASHING,
            epochs=self._epochs,
            part=model,
            objective=objective,
            groups=[
                *self._backbone_groups(rate),
                {"params": fast, "lr": rate * multiplier},
            ],
            beta_at=self._beta_at,
            plain_epochs=EPOCHS_AFTER_WARM_UP if self._teaches_first else 0,
            compares=self._method.compares,
        )

    @property
    def _epochs(self) -> int:
        """Epochs of the method's objective."""
        if self._method.fit is not None:
            return 0
        if self._config.epochs is not None:
            return self._config.epochs
        return EPOCHS_AFTER_WARM_UP if self._teaches_first else _EPOCHS

    @property
    def _teaches_first(self) -> bool:
        """Whether a warm-up teaches a random network."""
        return self._warmup_epochs > 0 and not self._backbone.pretrained

    def _backbone_groups(self, rate: float) -> list[dict[str, Any]]:
        """Return the backbone's weights and their peak rates; `rate` is that of the last stage."""
        decay = self._config.stage_decay
        if decay == 1:
            return [{"params": list(self._model.backbone.parameters()), "lr": rate}]
        stages = stages_of(self._model.backbone)
        return [
            {"params": stage.weights, "lr": rate * decay ** (len(stages) - number)}
            for number, stage in enumerate(stages, start=1)
        ]

    def _beta_at(self, share: float) -> float:
        if self._method.continues:
            return SCHEDULES[self._config.schedule](share, self._config.last_beta)
        return self._config.last_beta if self._method.beta is None else self._method.beta

    def _fit(self, pixels: PixelSource) -> HashEncoder:
        """Fit the method's hasher to the features of the unaugmented images, and use it as the hash layer."""
        assert self._method.fit is not None
        config = self._config
        unfitted = HashEncoder(self._encoder_config(1.0, "none"), self._model.to("cpu", torch.float32))
        unfitted = self._exported(unfitted, pixels) if config.device == "cpu" else unfitted.to(config.device)
        feature_ND = unfitted.encode_pixels(pixels.pixels).features
        class_NC = None
        if self._method.reads_classes:
            assert isinstance(self._supervision, LabelSupervision), "`Method.check` lets no other through"
            class_NC = self._supervision.classes
        hasher = self._method.fit(feature_ND, config.bits, config.seed, class_NC)
        return with_hasher(self._encoder_config(1.0, "none: fitted to features"), self._backbone, hasher, feature_ND)

    def _exported(self, encoder: HashEncoder, pixels: PixelSource) -> HashEncoder:
        """Export the network, so that processors encode faster; if that cannot be done, torch encodes."""
        return exported(encoder, pixels.sample(_COMPARED_IMAGES))

    def _loop_settings(self) -> LoopSettings:
        config = self._config
        names = {field.name for field in dataclasses.fields(LoopSettings)}
        settings = {name: value for name, value in dataclasses.asdict(config).items() if name in names}
        return LoopSettings(**settings)

    def _epoch_rule(self, outcome: Outcome) -> str:
        if outcome.validation_map is None:
            return f"last, {outcome.epoch}"
        return (
            f"{outcome.epoch}, best on {self._config.validation_images} validation images, "
            f"mAP {outcome.validation_map:.4f} among themselves"
        )

    def _encoder_config(self, beta: float, epoch: str) -> EncoderConfig:
        chosen = {
            "epochs": self._epochs,
            "warmup_epochs": self._warmup_epochs,
            "final_beta": self._config.last_beta,
        }
        settings = dataclasses.asdict(self._config) | chosen
        return EncoderConfig(
            bits=self._config.bits,
            beta=beta,
            input=Pictures.of(self._backbone),
            training={
                "method": self._method.name,
                "title": self._method.title,
                "supervision": self._supervision.describe(),
                "epoch": epoch,
                "settings": settings,
            },
        )


def _supervise(
    num_images: int, labels: ArrayLike | sparse.sparray | None, pairs: PairList | None, views: bool
) -> Supervision:
    if num_images < 2:
        raise ValueError(f"`images` must hold at least 2 images to make a pair, got {num_images}")
    given = {"labels": labels is not None, "pairs": pairs is not None, "views": views}
    if sum(given.values()) > 1:
        names = " and ".join(f"`{name}`" for name, there in given.items() if there)
        raise ValueError(f"pass one of `labels`, `pairs` and `views`, got {names}")
    if pairs is not None:
        return PairSupervision(pairs, num_images)
    if labels is not None:
        return LabelSupervision(labels if sparse.issparse(labels) else np.asarray(labels), num_images)
    return ViewSupervision(num_images) if views else NoSupervision(num_images)


def _refuse_compile(method: Method, warmup_epochs: int, workers: Workers) -> None:
    if workers.size > 1:
        raise ValueError(f"`compile` must be False with several workers, got True with {workers.size}: see `Workers`")
    if method.fit is not None and not warmup_epochs:
        raise ValueError(
            f"`compile` must be False if no network is trained, got True: {method.name} is fitted to the features "
            "of `weights`"
        )


def _warmup_epochs(config: TrainConfig, method: Method, supervision: Supervision, *, pretrained: bool) -> int:
    if config.warmup_epochs and not supervision.num_classes:
        raise ValueError(
            f"`warmup_epochs` must be 0 or None when training on {supervision.kind}, got {config.warmup_epochs}: "
            "the warm-up classifies, which needs labels"
        )
    epochs = config.warmup_epochs
    if epochs is None:
        needed = supervision.num_classes > 0 and (not pretrained or method.pretrains)
        epochs = (_WARMUP_OF_TRAINED if pretrained else WARMUP_EPOCHS) if needed else 0
    if epochs == 0 and not pretrained and (method.fit is not None or method.pretrains):
        raise ValueError(
            f"`method` {method.name} needs a trained backbone, got one with random weights and no "
            "warm-up: pass `weights` (a file or a name that the backbone knows), or label the images and leave "
            "`warmup_epochs` to its default"
        )
    return epochs


def _frozen_stages(config: TrainConfig, num_stages: int, warmup_epochs: int, *, pretrained: bool) -> int:
    """Return how many stages are frozen; ValueError if there are fewer, or nothing is left for a warm-up to train."""
    count = num_stages if isinstance(config.frozen_stages, str) else config.frozen_stages
    if count and not pretrained:
        raise ValueError(
            f"`frozen_stages` must be 0 for a backbone with random weights, got {config.frozen_stages}: pass `weights`"
        )
    if count > num_stages:
        raise ValueError(f"`frozen_stages` must be at most {num_stages} for {config.backbone}, got {count}")
    if count == num_stages and warmup_epochs:
        raise ValueError(
            f"`frozen_stages` must be below {num_stages} with a warm-up of {warmup_epochs} epochs, got "
            f"{config.frozen_stages}: it trains the backbone alone"
        )
    return count


def _rates(config: TrainConfig, *, has_learned: bool) -> tuple[float, float]:
    """Return the backbone's rate and the hash layer's multiple of it."""
    rate, multiplier = (1e-4, 50.0) if has_learned else (5e-4, 10.0)
    given_rate, given_multiplier = config.learning_rate, config.hash_multiplier
    return given_rate or rate, given_multiplier or multiplier


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"`{name}` must be {expected}, got {got!r}")
