"""Everything about an encoder except its weights: what it takes, and how that becomes bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hashlight.encoders.checks import check_number, check_whole
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.fits.hashers import HEADS, KERNEL, LINEAR, MEDIAN

if TYPE_CHECKING:
    # Pillow is not there where only embeddings are encoded.
    from hashlight.encoders.data.preprocessing import Preprocessing
    from hashlight.encoders.networks.backbone import Backbone

# Stands for the method that suits what is known about the images, the bits and the number of images.
AUTO = "auto"

FORMAT = "hashlight-encoder"
# Version 2 has an exported network, version 3 one that is built from what a library or a file says of it.
FORMAT_VERSIONS = (1, 2, 3)
MAX_BATCH = 1024
MAX_ANCHORS = 1_000_000
MAX_DIMS = 65_536


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """The exported network of an encoder, and what a comparison of its codes with torch's has shown.

    Attributes
    ----------
    sha256 : str
        Of `model.onnx`.
    images, bits : int
        Number of images that were compared, and of their bits.
    near_zero : int
        Bits that differ, all with outputs next to zero.
    """

    sha256: str
    images: int
    bits: int
    near_zero: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """The input of an encoder that takes images.

    Attributes
    ----------
    backbone : str
    batch_size : int
        The fixed batch size that the model runs at in torch on a processor.
    preprocessing : Preprocessing
    architecture : mapping
        What builds the backbone again, if its name does not say all (`encoders.networks.backbone.Backbone`).
    onnx : Export or None
        The exported network, by which ONNX Runtime computes the codes; without it, torch does.
    """

    backbone: str
    batch_size: int
    preprocessing: Preprocessing
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    onnx: Export | None = None

    def __post_init__(self) -> None:
        check_whole(self.batch_size, "batch_size", 1, MAX_BATCH)
        if not isinstance(self.architecture, Mapping):
            raise TypeError(f"`architecture` must be a mapping, got {self.architecture!r}")

    @classmethod
    def of(cls, backbone: Backbone) -> Pictures:
        """Return the input of an encoder with this backbone."""
        return cls(
            backbone=backbone.name,
            batch_size=backbone.batch_size,
            preprocessing=backbone.preprocessing,
            architecture=backbone.architecture,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Embeddings:
    """The input of an encoder that takes embeddings.

    Attributes
    ----------
    dims : int
        Numbers in an embedding.
    normalise : bool
        Whether an embedding is scaled to length 1 first, so that its direction alone counts, as for cosines.
    """

    dims: int
    normalise: bool

    def __post_init__(self) -> None:
        check_whole(self.dims, "dims", 1, MAX_DIMS)
        if type(self.normalise) is not bool:
            raise TypeError(f"`normalise` must be True or False, got {self.normalise!r}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Everything about an encoder except its weights.

    Attributes
    ----------
    bits : int
    beta : float
        The sharpness of the relaxed codes.
    input : Pictures or Embeddings
        What the encoder takes.
    head : str
        Kind of the hash layer: "linear", "kernel" or "spectral", or that of copy codes, "median", whose `backbone` is
        their name.
    anchors : int
        Number of anchors of a kernel head; 0 for the others.
    training : mapping
        How the encoder was made: method, settings. For the record only; no code depends on it.
    """

    bits: int
    beta: float
    input: Pictures | Embeddings
    head: str = LINEAR
    anchors: int = 0
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_whole(self.bits, "bits", 1, 1024)
        check_whole(self.anchors, "anchors", 0, MAX_ANCHORS)
        check_number(self.beta, "beta", above=0.0)
        if not isinstance(self.input, Pictures | Embeddings):
            raise TypeError(f"`input` must be Pictures or Embeddings, got {self.input!r}")
        if not isinstance(self.training, Mapping):
            raise TypeError(f"`training` must be a mapping, got {self.training!r}")
        if self.head not in HEADS:
            raise ValueError(f"`head` must be one of {', '.join(HEADS)}, got {self.head!r}")
        if (self.anchors > 0) != (self.head == KERNEL):
            raise ValueError(f"`anchors` must be above 0 for a kernel head and 0 for others, got {self.anchors}")
        if isinstance(self.input, Embeddings) and self.head in (KERNEL, MEDIAN):
            raise ValueError(f"`head` of an encoder of embeddings must be linear or spectral, got {self.head}")

    @property
    def method(self) -> str:
        """The method that made the encoder, or "encoder" if it is not recorded."""
        return str(self.training.get("method", "encoder"))

    @property
    def pictures(self) -> Pictures:
        """The input of an encoder of images.

        Raises
        ------
        EncoderError
            If the encoder takes embeddings.
        """
        if isinstance(self.input, Embeddings):
            raise not_for_images(self)
        return self.input

    @property
    def embeddings(self) -> Embeddings:
        """The input of an encoder of embeddings.

        Raises
        ------
        EncoderError
            If the encoder takes images.
        """
        if isinstance(self.input, Pictures):
            raise not_for_embeddings(self)
        return self.input

    @property
    def backbone(self) -> str:
        """The network of an encoder of images."""
        return self.pictures.backbone

    @property
    def batch_size(self) -> int:
        """The fixed batch size that the network runs at in torch on a processor."""
        return self.pictures.batch_size

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the network's input."""
        return self.pictures.preprocessing

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the artifact's JSON."""
        head = {"kind": self.head, "beta": self.beta} | ({"anchors": self.anchors} if self.anchors else {})
        exported = self.input.onnx if isinstance(self.input, Pictures) else None
        architecture = dict(self.input.architecture) if isinstance(self.input, Pictures) else {}
        version = 3 if architecture else 1 if exported is None else 2
        common = {"format": FORMAT, "format_version": version, "bits": self.bits, "head": head}
        if isinstance(self.input, Embeddings):
            return {**common, "embeddings": dataclasses.asdict(self.input), "training": dict(self.training)}
        return {
            **common,
            "backbone": self.input.backbone,
            "batch_size": self.input.batch_size,
            "preprocessing": self.input.preprocessing.to_dict(),
            **({"architecture": architecture} if architecture else {}),
            "training": dict(self.training),
            **({} if exported is None else {"onnx": dataclasses.asdict(exported)}),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> EncoderConfig:
        """Undo `to_dict`."""
        return cls(
            bits=plain["bits"],
            beta=plain["head"]["beta"],
            input=_input_of(plain),
            head=plain["head"]["kind"],
            anchors=plain["head"].get("anchors", 0),
            training=plain["training"],
        )


def _input_of(plain: Mapping[str, Any]) -> Pictures | Embeddings:
    if "embeddings" in plain:
        return Embeddings(**plain["embeddings"])
    from hashlight.encoders.data.preprocessing import Preprocessing

    return Pictures(
        backbone=plain["backbone"],
        batch_size=plain["batch_size"],
        preprocessing=Preprocessing.from_dict(plain["preprocessing"]),
        architecture=plain.get("architecture", {}),
        onnx=Export(**plain["onnx"]) if "onnx" in plain else None,
    )


def not_for_images(config: EncoderConfig) -> EncoderError:
    """Return the refusal of images by an encoder of embeddings."""
    return EncoderError(
        f"this encoder ({config.method}, {config.bits} bits) takes embeddings of {config.embeddings.dims} numbers, not "
        "images: give it embeddings by the network that made the others (`encode_embeddings`, `hashlight encode "
        "--embeddings`, `hashlight search --vector`)"
    )


def not_for_embeddings(config: EncoderConfig) -> EncoderError:
    """Return the refusal of embeddings by an encoder of images."""
    return EncoderError(
        f"this encoder ({config.method} on {config.backbone}, {config.bits} bits) takes images, not embeddings: give "
        "it images, or fit an encoder to embeddings (`HashEncoder.fit_embeddings`, `hashlight train --embeddings`)"
    )
