"""Which encoder suits the images of a corpus, and why."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.data.supervision.protocol import LABELS
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.methods import METHODS, label_free_method
from hashlight.encoders.networks.backbones import EFFICIENTNET_LITE0, IMAGENET, SMALL_CNN
from hashlight.encoders.training.features import FeatureFit, untrained
from hashlight.encoders.training.train import EPOCHS_AFTER_WARM_UP, WARMUP_EPOCHS, TrainConfig
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.codes.encoder import load_encoder
from hashlight.pipelines.corpora.work import WorkSummary
from hashlight.pipelines.decoding.pool import DecodePool
from hashlight.pipelines.indexing.sample import Look, read_sample
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.training.material import Material, gather
from hashlight.pipelines.training.train import publish_encoder, train_on

AUTO = "auto"
BITS = 256
# Images that a fit without labels learns from; more of them change it little.
FITTED_IMAGES = 5000
_FIT_S = 10.0
# Training holds them in memory.
_TRAINED_IMAGES = 200_000
_BATCH = 16


class NoEncoderError(PipelineError):
    """The network that suits the images is not there."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What an image takes on one core, in seconds: decoding, and the network."""

    decode_s: float
    encode_s: float


class Chosen:
    """An encoder that is there.

    Attributes
    ----------
    probe : HashEncoder
        As fast as the encoder, and with as many bits and features.
    why : str
        Which encoder it is, and why.
    keeps_features : bool
        Whether its features are of use for re-ranking.
    fits : bool
        Whether it is yet to be fitted; `probe` is the encoder otherwise.
    """

    fits = False

    def __init__(self, probe: HashEncoder, why: str, *, keeps_features: bool = True) -> None:
        self.probe, self.why, self.keeps_features = probe, why, keeps_features

    def fit_s(self, images: int, speed: Speed) -> float:
        """Return about how many seconds the fit takes."""
        return 0.0

    def make(self, work: Path, output: Path) -> HashEncoder:
        """Return the encoder; if it is yet to be fitted, fit it to images of a work list, and save it to a folder."""
        return self.probe


class Fit(Chosen):
    """A hash layer on the features of a network that was trained before, fitted without labels."""

    fits = True

    def __init__(self, look: Look, images: int | None) -> None:
        num_fitted = FITTED_IMAGES if images is None else min(images, FITTED_IMAGES)
        method = label_free_method(BITS, num_fitted)
        self._fit = FeatureFit(TrainConfig(bits=BITS, method=method, backbone=EFFICIENTNET_LITE0, weights=IMAGENET))
        self._pixels = decoded(self._fit.preprocessing, look.images)
        why = (
            f"{EFFICIENTNET_LITE0}, which learned from ImageNet what photographs show, and {METHODS[method].title}, "
            "fitted to these images without labels"
        )
        super().__init__(self._fit.extractor(self._pixels), why)

    def fit_s(self, images: int, speed: Speed) -> float:
        """Return about how many seconds the fit takes."""
        return _FIT_S + min(images, FITTED_IMAGES) * max(speed.decode_s, speed.encode_s / usable_cores())

    def make(self, work: Path, output: Path) -> HashEncoder:
        """Fit to a sample of a work list; PipelineError if fewer than two of its images can be decoded."""
        features: list[NDArray[np.float32]] = []
        with DecodePool(self._fit.preprocessing, batch_size=_BATCH) as pool:
            for batch in pool.decode(read_sample(work, FITTED_IMAGES)):
                if len(batch.good):
                    features.append(self.probe.encode_pixels(batch.pixels).features)
        if (good := sum(map(len, features))) < 2:
            raise PipelineError(
                f"a fit needs at least 2 images that can be decoded, got {good}: add images, or give a trained encoder "
                "by --encoder"
            )
        encoder = self._fit.fit(np.concatenate(features), self._pixels)
        publish_encoder(encoder, open_place(output))
        return encoder


class Trained(Chosen):
    """The small network, trained on the labels of the corpus."""

    fits = True

    def __init__(self, material: Material) -> None:
        self._material, self._config = material, TrainConfig()
        why = (
            f"{SMALL_CNN} and HashNet, trained on {len(material.classes):,} classes "
            f"({', '.join(list(material.classes)[:3])}...), as the images are small, grey and labelled"
        )
        super().__init__(untrained(self._config), why)

    def fit_s(self, images: int, speed: Speed) -> float:
        """Return about how many seconds the training takes: a step costs as much as encoding its images thrice."""
        return _FIT_S + 3 * speed.encode_s * images * (WARMUP_EPOCHS + EPOCHS_AFTER_WARM_UP)

    def make(self, work: Path, output: Path) -> HashEncoder:
        """Train on all images; an interrupted training goes on."""
        return train_on(self._material, output, self._config)


def choose(asked: str, look: Look, work: WorkSummary, corpus: str | Path) -> Chosen:
    """Return the encoder that was asked for, or that suits the images.

    Parameters
    ----------
    asked : str
        "auto", the name of a copy code, or the folder of an encoder.
    look : Look
    work : WorkSummary
    corpus : str or Path
        What is listed there.

    Raises
    ------
    NoEncoderError
        If a package that it needs is not installed.
    EncoderError
        If the folder has no encoder of images.
    """
    if asked != AUTO:
        encoder = load_encoder(asked)
        encoder.config.pictures  # noqa: B018 - refuses encoders of embeddings
        if encoder.is_copy_code:
            why = f"{encoder.config.training['title']}, which finds copies of an image, whatever it shows"
            return Chosen(encoder, why, keeps_features=False)
        return Chosen(encoder, f"{without_credentials(asked)}, as asked: {encoder.config.method}")
    if look.is_small_grey and 2 <= (work.images or 0) <= _TRAINED_IMAGES and "label" in work.columns:
        material = gather(corpus)
        if material.supervision == LABELS:
            return Trained(material)
    try:
        return Fit(look, work.images)
    except EncoderError as error:
        raise NoEncoderError(f"{error}; or give a trained encoder by --encoder") from error


def measure(encoder: HashEncoder, images: Iterable[bytes]) -> Speed:
    """Measure what images take, one after another."""
    start = time.perf_counter()
    pixels_NHWC = decoded(encoder.config.preprocessing, images)
    decode_s = (time.perf_counter() - start) / len(pixels_NHWC)
    encoder.encode_pixels(pixels_NHWC[:1])
    start = time.perf_counter()
    for row in range(len(pixels_NHWC)):
        encoder.encode_pixels(pixels_NHWC[row : row + 1])
    return Speed(decode_s, (time.perf_counter() - start) / len(pixels_NHWC))


def decoded(rule: Preprocessing, images: Iterable[bytes]) -> NDArray[np.uint8]:
    """Return the prepared pixels (N, size, size, channels) of images that can be decoded."""
    with DecodePool(rule, batch_size=_BATCH) as pool:
        return np.concatenate([batch.pixels.copy() for batch in pool.decode(images)])
