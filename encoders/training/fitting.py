"""What is fitted, not trained: a hash layer on the features of a backbone, and its encoder.

Shapes: N images, D features.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.config import EncoderConfig
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.fits.hashers import Features, Hasher
from hashlight.encoders.networks.backbone import Backbone
from hashlight.encoders.networks.heads import KernelHead, head_of
from hashlight.encoders.networks.model import HashModel

logger = logging.getLogger(__name__)

_EXAMPLES = 1000


def with_hasher(config: EncoderConfig, backbone: Backbone, hasher: Hasher, feature_ND: Features) -> HashEncoder:
    """Return the encoder whose hash layer is a hasher that was fitted to these features of the backbone."""
    kind, head = head_of(hasher)
    # A sharpness at which relaxed codes are neither all near 0 nor all near 1.
    beta = 1.0 / max(float(np.abs(hasher.project(feature_ND[:_EXAMPLES])).mean()), 1e-12)
    anchors = len(head.anchors) if isinstance(head, KernelHead) else 0
    fitted = dataclasses.replace(config, beta=beta, head=kind, anchors=anchors)
    return HashEncoder(fitted, HashModel(backbone, config.bits, head))


def exported(encoder: HashEncoder, pixels_NHWC: NDArray[np.uint8]) -> HashEncoder:
    """Export the network, so that processors encode faster; if that cannot be done, torch encodes."""
    try:
        return encoder.exported(pixels_NHWC)
    except EncoderError as error:
        logger.warning("the encoder will run in torch, which is slower on processors: %s", error)
        return encoder
