"""Fitting an encoder to the features of images that stream past, without labels.

Shapes: N images, D features.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.config import EncoderConfig, Pictures
from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.fits.hashers import Features
from hashlight.encoders.methods import METHODS
from hashlight.encoders.networks.backbones import build_backbone
from hashlight.encoders.networks.model import HashModel
from hashlight.encoders.training.fitting import exported, with_hasher
from hashlight.encoders.training.train import TrainConfig


def untrained(config: TrainConfig) -> HashEncoder:
    """Return an encoder with the weights that a training starts from, which is as fast as the trained one."""
    backbone = build_backbone(config.backbone, config.weights)
    pictures = Pictures(backbone=backbone.name, batch_size=backbone.batch_size, preprocessing=backbone.preprocessing)
    return HashEncoder(EncoderConfig(bits=config.bits, beta=1.0, input=pictures), HashModel(backbone, config.bits))


class FeatureFit:
    """A backbone that is trained already, and the method whose hash layer is fitted to its features.

    Parameters
    ----------
    config : TrainConfig
        With a fitted method that needs no labels, such as "itq", and the weights of the backbone.

    Attributes
    ----------
    config : TrainConfig

    Raises
    ------
    EncoderError
        If the backbone cannot be built.
    ValueError
        If the method cannot produce that many bits from its features.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._method = METHODS[config.method]
        assert self._method.fit is not None, "it is fitted"
        assert not self._method.reads_classes, "it needs no labels"
        self._backbone = build_backbone(config.backbone, config.weights)
        self._method.check_bits(config.bits, self._backbone.feature_dim, 0)

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the backbone's input."""
        return self._backbone.preprocessing

    def extractor(self, pixels_NHWC: NDArray[np.uint8]) -> HashEncoder:
        """Return an encoder that gives the features; its codes mean nothing yet.

        Parameters
        ----------
        pixels_NHWC : ndarray of uint8, shape (N, size, size, channels)
            Some prepared images, for which the exported network is compared with torch's.
        """
        return exported(HashEncoder(self._encoder_config(), HashModel(self._backbone, self.config.bits)), pixels_NHWC)

    def fit(self, feature_ND: Features, pixels_NHWC: NDArray[np.uint8]) -> HashEncoder:
        """Fit the hash layer.

        Parameters
        ----------
        feature_ND : ndarray of float, shape (N, D)
            Of at least two images.
        pixels_NHWC : ndarray of uint8, shape (M, size, size, channels)
            As for `extractor`.
        """
        assert self._method.fit is not None
        hasher = self._method.fit(feature_ND, self.config.bits, self.config.seed, None)
        return exported(with_hasher(self._encoder_config(), self._backbone, hasher, feature_ND), pixels_NHWC)

    def _encoder_config(self) -> EncoderConfig:
        config = self.config
        settings = dataclasses.asdict(config) | {"epochs": 0, "warmup_epochs": 0, "final_beta": config.last_beta}
        return EncoderConfig(
            bits=config.bits,
            beta=1.0,
            input=Pictures.of(self._backbone),
            training={
                "method": self._method.name,
                "title": self._method.title,
                "supervision": "nothing",
                "epoch": "none: fitted to features",
                "settings": settings,
            },
        )
