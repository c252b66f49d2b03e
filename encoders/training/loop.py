"""The training loop: phases of epochs of steps; a run interrupted anywhere resumes to the same weights.

Shapes: B images of a batch, D features, K bits, V validation images.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from hashlight.encoders.data.augment import flip_and_shift, random_view
from hashlight.encoders.data.pixels import PixelSource
from hashlight.encoders.data.supervision.protocol import VIEWS, Supervision
from hashlight.encoders.losses.objective import Objective
from hashlight.encoders.networks.model import HashModel
from hashlight.encoders.training.checkpoints import TrainingFolder
from hashlight.encoders.training.gradients import backward
from hashlight.encoders.training.validation import validation_map
from hashlight.encoders.training.workers import ALONE, Share, Workers, forked_random, random_state, set_random_state

WARM_UP = "warm-up"
HASHING = "hashing"

# Fraction of the one-cycle schedule in which the rate rises.
_RISING_SHARE = 0.2
# torch's schedule divides by zero if the rising part is a single step.
_MIN_CYCLE = 6


class Progress(NamedTuple):
    """Where a training run stands after one step.

    Attributes
    ----------
    phase : str
        "warm-up" or "hashing".
    epoch, epochs, step, steps : int
        Done and total, of this phase; steps count over all its epochs.
    loss : float
    beta : float
        0 in the warm-up.
    images_per_s : float
        Since the phase started or resumed.
    imbalance : float
        Dissimilar pairs for each similar pair of the batch, inf without similar pairs; nan in the warm-up.
    bit_balance : float
        Mean over bits of the share of the rarer value in the batch: 0.5 is balanced, 0 constant; nan in the warm-up.
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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """Settings of all phases; `encoders.training.train.TrainConfig` documents them under the same names."""

    batch_size: int
    chunk_size: int | None
    precision: str
    device: str
    compile: bool
    weight_decay: float
    augment: bool
    seed: int
    patience: int | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and inputs."""
        return torch.float64 if self.precision == "float64" else torch.float32


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One part of a training run.

    Attributes
    ----------
    name : str
    epochs : int
    part : nn.Module
        The module that is trained: the backbone, or backbone and hash layer.
    objective : Objective
    groups : list of dict
        Parameter groups of the optimizer: weights and their peak rates.
    beta_at : callable
        Beta as a function of the share of the phase that is done.
    plain_epochs : int
        The last so many epochs see images as they will be encoded, neither mirrored nor shifted.
    compares : bool
        Whether the images of a batch need similar ones in it.
    """

    name: str
    epochs: int
    part: nn.Module
    objective: Objective
    groups: list[dict[str, Any]]
    beta_at: Callable[[float], float]
    plain_epochs: int = 0
    compares: bool = False


class Outcome(NamedTuple):
    """How a phase ended.

    Attributes
    ----------
    epoch : int
        The epoch whose weights the model has now.
    beta : float
        In that epoch.
    validation_map : float or None
        In that epoch; None without validation images.
    """

    epoch: int
    beta: float
    validation_map: float | None


@dataclasses.dataclass(slots=True)
class _Position:
    """Position in a phase. `batch` of the epoch's batches are done; their order was drawn from `order_state`."""

    epoch: int = 1
    batch: int = 0
    step: int = 0
    order_state: torch.Tensor = dataclasses.field(default_factory=torch.get_rng_state)
    # Sums over the batches done: loss, bit balance, dissimilar pairs, similar pairs.
    sums: list[float] = dataclasses.field(default_factory=lambda: [0.0] * 4)


class Loop:
    """Runs the phases of one training.

    Parameters
    ----------
    model : HashModel
    pixels : PixelSource
    supervision : Supervision
    settings : LoopSettings
    folder : TrainingFolder
    held_out_V : Tensor of int64, shape (V,)
        Validation images to choose the epoch by; if empty, the last epoch is kept.
    progress : callable, optional
        Called after every step.
    workers : Workers
        The processes that share the batches.
    """

    def __init__(
        self,
        model: HashModel,
        pixels: PixelSource,
        supervision: Supervision,
        settings: LoopSettings,
        *,
        folder: TrainingFolder,
        held_out_V: torch.Tensor,
        progress: Callable[[Progress], None] | None,
        workers: Workers = ALONE,
    ):
        self._model = model
        self._pixels = pixels
        self._supervision = supervision
        self._settings = settings
        self._device = torch.device(settings.device)
        self._folder = folder
        self._held_out_V = held_out_V
        self._progress = progress
        self._workers = workers
        self._saved = workers.from_first(folder.read())

    def is_done(self, phase: str) -> bool:
        """Whether the checkpoint is from a later phase."""
        return self._saved is not None and phase == WARM_UP and self._saved["phase"] == HASHING

    def run(self, phase: Phase) -> Outcome:
        """Train one phase, starting at the checkpoint if it is from this phase."""
        phase.part.to(self._settings.device, self._settings.dtype)
        phase.objective.to(self._settings.device, self._settings.dtype)
        supervision = self._supervision
        if phase.compares:
            supervision = supervision.with_similar(self._settings.batch_size)
        steps = phase.epochs * supervision.batches_per_epoch(self._settings.batch_size)
        optimizer, rate = _one_cycle(phase.groups, steps, self._settings.weight_decay)
        run = _PhaseRun(self, phase, supervision, steps, optimizer, rate)
        if self._saved is not None:
            run.restore(self._saved)
            self._saved = None
        self._workers.copy_first(phase.part, phase.objective)
        return run.train()

    def inputs(self, index_B: torch.Tensor, *, augment: bool) -> torch.Tensor:
        """Return the network's input for images, on the device."""
        pixels_BHWC = self._pixels.batch(index_B)
        if self._device.type == "cuda":
            pixels_BHWC = pixels_BHWC.pin_memory()
        # A quarter of the bytes that the normalised numbers have, which are made where they are needed.
        image_BCHW = self._pixels.preprocessing.normalise(pixels_BHWC.to(self._device, non_blocking=True))
        if augment:
            image_BCHW = (random_view if self._supervision.kind == VIEWS else flip_and_shift)(image_BCHW)
        return image_BCHW.contiguous(memory_format=torch.channels_last).to(self._settings.dtype)

    def read_ahead(self, index_B: torch.Tensor) -> None:
        """Begin to read the images of the next call of `inputs`."""
        self._pixels.read_ahead(index_B)

    def validate(self) -> float:
        """Return the mean average precision of the validation images' codes."""
        self._model.eval()
        views = self._supervision.kind == VIEWS
        with forked_random(torch.device(self._settings.device)), torch.inference_mode():
            torch.manual_seed(self._settings.seed)
            parts = torch.split(self._held_out_V, self._settings.batch_size)
            outputs = [self._model(self.inputs(part, augment=views))[1].float().cpu() for part in parts]
        self._model.train()
        return validation_map(torch.cat(outputs), self._supervision, self._held_out_V)


class _PhaseRun:
    """One phase in progress."""

    def __init__(
        self,
        loop: Loop,
        phase: Phase,
        supervision: Supervision,
        steps: int,
        optimizer: torch.optim.Optimizer,
        rate: torch.optim.lr_scheduler.LRScheduler,
    ):
        self._loop, self._phase, self._supervision, self._steps = loop, phase, supervision, steps
        self._optimizer, self._rate = optimizer, rate
        self._settings = loop._settings
        self._place = _Position()
        self._best: dict[str, Any] | None = None
        self._chooses = phase.name == HASHING and len(loop._held_out_V) > 0
        self._network = self._build_network()
        self._started, self._done_before = time.perf_counter(), 0

    def train(self) -> Outcome:
        """Run the remaining epochs."""
        self._loop._model.train()
        while self._place.epoch <= self._phase.epochs and not self._has_stalled():
            self._train_epoch()
        if self._best is None:
            return Outcome(self._phase.epochs, self._phase.beta_at(1.0), None)
        self._loop._model.load_state_dict(self._best["model"])
        return Outcome(self._best["epoch"], self._best["beta"], self._best["map"])

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        assert saved["phase"] == self._phase.name, "the phases of a run have a fixed order"
        self._loop._model.load_state_dict(saved["model"])
        self._phase.objective.load_state_dict(saved["objective"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._rate.load_state_dict(saved["rate"])
        self._place = _Position(**saved["place"])
        self._best = saved["best"]
        self._done_before = self._place.step
        set_random_state(saved["random"], torch.device(self._settings.device))

    def _state(self) -> dict[str, Any]:
        return {
            "phase": self._phase.name,
            "model": self._loop._model.state_dict(),
            "objective": self._phase.objective.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rate": self._rate.state_dict(),
            "place": dataclasses.asdict(self._place),
            "best": self._best,
            "random": random_state(torch.device(self._settings.device)),
        }

    def _has_stalled(self) -> bool:
        patience = self._settings.patience
        return (
            patience is not None and self._best is not None and self._place.epoch - 1 - self._best["epoch"] >= patience
        )

    def _build_network(self) -> Callable[[torch.Tensor], torch.Tensor]:
        part = torch.compile(self._phase.part) if self._settings.compile else self._phase.part
        kind = torch.device(self._settings.device).type
        half = self._settings.precision == "bfloat16"

        def network(image_BCHW: torch.Tensor) -> torch.Tensor:
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
                output = part(image_BCHW)
            result: torch.Tensor = output[1] if isinstance(output, tuple) else output
            return result

        return network

    def _train_epoch(self) -> None:
        """Run the rest of an epoch, log it and save a checkpoint."""
        place, beta = self._place, 0.0
        batches = self._batches()
        while place.batch < len(batches):
            beta = self._step(batches, place.batch)
            place.batch += 1
            if self._loop._folder.due():
                self._loop._folder.save(self._state())
        self._finish_epoch(beta)

    def _batches(self) -> list[torch.Tensor]:
        """Draw the epoch's batches; after an interruption, draw the same ones again."""
        place, now = self._place, torch.get_rng_state()
        if place.batch:
            torch.set_rng_state(place.order_state)
        else:
            place.order_state = now
        batches = list(self._supervision.batches(self._settings.batch_size))
        if place.batch:
            torch.set_rng_state(now)
        return batches

    def _share(self, index_B: torch.Tensor) -> Share:
        return self._loop._workers.share(len(index_B), self._settings.chunk_size)

    def _step(self, batches: list[torch.Tensor], number: int) -> float:
        place, supervision, objective = self._place, self._supervision, self._phase.objective
        index_B = batches[number]
        beta = self._phase.beta_at(place.step / self._steps)
        self._optimizer.zero_grad()
        share = self._share(index_B)
        with share.draws():
            image_bCHW = self._loop.inputs(index_B[share.own_b], augment=self._augments())
        for following in batches[number + 1 : number + 2]:
            self._loop.read_ahead(following[self._share(following).own_b])
        loss, output_BK = backward(
            self._network,
            image_bCHW,
            lambda output_BK: objective(output_BK, beta, supervision, index_B),
            owner=self._phase.part,
            share=share,
        )
        self._loop._workers.add_gradients(self._phase.part, objective)
        self._optimizer.step()
        self._rate.step()
        place.step += 1
        self._report(float(loss), beta, output_BK, index_B)
        return beta

    def _augments(self) -> bool:
        # Without augmentation the two views of an image would be one.
        if self._supervision.kind == VIEWS:
            return True
        return self._settings.augment and self._place.epoch <= self._phase.epochs - self._phase.plain_epochs

    def _report(self, loss: float, beta: float, output_BK: torch.Tensor, index_B: torch.Tensor) -> None:
        phase, place = self._phase, self._place
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} in {phase.name} step {place.step} of {self._steps}: lower the learning rate"
            )
        balance, dissimilar, similar = float("nan"), float("nan"), float("nan")
        if phase.name == HASHING:
            balance = _bit_balance(output_BK)
            dissimilar, similar = _count_pairs(*self._supervision.pairs_within(index_B))
        batch = (loss, balance, dissimilar, similar)
        place.sums = [total + value for total, value in zip(place.sums, batch, strict=True)]
        if self._loop._progress is not None:
            speed = self._images_per_s()
            imbalance = dissimilar / similar if similar else float("inf")
            count = (place.epoch, phase.epochs, place.step, self._steps)
            self._loop._progress(Progress(phase.name, *count, loss, beta, speed, imbalance, balance))

    def _images_per_s(self) -> float:
        images = (self._place.step - self._done_before) * self._settings.batch_size
        return images / max(time.perf_counter() - self._started, 1e-9)

    def _finish_epoch(self, beta: float) -> None:
        place, phase = self._place, self._phase
        loss, balance, dissimilar, similar = place.sums
        line: dict[str, Any] = {"phase": phase.name, "epoch": place.epoch, "epochs": phase.epochs}
        line |= {"loss": loss / place.batch, "beta": beta}
        if phase.name == HASHING:
            # JSON has no infinity, so an epoch without similar pairs has no imbalance.
            line["imbalance"] = dissimilar / similar if similar else None
            line["bit_balance"] = balance / place.batch
        if self._chooses:
            line["validation_map"] = self._choose(beta)
        self._loop._folder.log(line | {"images_per_s": round(self._images_per_s(), 1)})
        self._place = _Position(epoch=place.epoch + 1, step=place.step)
        self._loop._folder.save(self._state())

    def _choose(self, beta: float) -> float:
        """Keep this epoch's weights if they are the best so far on the validation images."""
        value = self._loop.validate()
        if self._best is None or value > self._best["map"]:
            model = {name: tensor.clone() for name, tensor in self._loop._model.state_dict().items()}
            self._best = {"map": value, "epoch": self._place.epoch, "beta": beta, "model": model}
        return value


def _one_cycle(
    groups: list[dict[str, Any]], steps: int, weight_decay: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    groups = [part for group in groups for part in _split_by_decay(group, weight_decay)]
    optimizer = torch.optim.AdamW(groups)
    peaks = [float(group["lr"]) for group in groups]
    total = max(steps + 1, _MIN_CYCLE)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=total, pct_start=_RISING_SHARE)
    return optimizer, rate


def _split_by_decay(group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    """Split weights that learn into those that decay, and biases and the scales of normalisation, which do not."""
    parts = []
    for decays in (True, False):
        weights = [weight for weight in group["params"] if weight.requires_grad and (weight.ndim > 1) is decays]
        if weights:
            parts.append({**group, "params": weights, "weight_decay": weight_decay if decays else 0.0})
    return parts


def _count_pairs(similar_BB: torch.Tensor, known_BB: torch.Tensor) -> tuple[int, int]:
    """Return the numbers of known dissimilar and known similar pairs."""
    known_BB = known_BB & ~torch.eye(len(known_BB), dtype=torch.bool)
    num_similar = int((similar_BB & known_BB).sum())
    return int(known_BB.sum()) - num_similar, num_similar


def _bit_balance(z_BK: torch.Tensor) -> float:
    share_K = (z_BK > 0).float().mean(dim=0)
    return float(torch.minimum(share_K, 1 - share_K).mean())
