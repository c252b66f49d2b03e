"""The encoder that training produces and a collection stores: images in, codes out, and a folder on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hashlight.encoders.checks import check_number, check_whole
from hashlight.encoders.data.images import ImageLike, open_image
from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import EncoderError, ImageError
from hashlight.encoders.networks.backbones import build_backbone
from hashlight.encoders.networks.heads import HEADS, KERNEL, LINEAR, build_head
from hashlight.encoders.networks.inference import run_batches
from hashlight.encoders.networks.model import HashModel
from hashlight.encoders.packing import CodeArray, pack_bits

FORMAT = "hashlight-encoder"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_BATCH = 1024
MAX_ANCHORS = 1_000_000


class EncoderOutput(NamedTuple):
    """What an encoder returns for N images.

    Attributes
    ----------
    codes : ndarray of uint64, shape (N, W)
        Packed bits, W = ceil(bits / 64).
    relaxed : ndarray of float32, shape (N, B)
        tanh(beta z), in [-1, 1], with the final beta of training; its sign is the code.
    features : ndarray of float32, shape (N, D)
        The layer before the hash layer.
    """

    codes: CodeArray
    relaxed: NDArray[np.float32]
    features: NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """Everything about an encoder except its weights.

    Attributes
    ----------
    bits : int
    backbone : str
    beta : float
        The sharpness of the relaxed codes.
    batch_size : int
        The fixed batch size that the model runs at.
    preprocessing : Preprocessing
    head : str
        Kind of the hash layer: "linear", "kernel" or "spectral".
    anchors : int
        Number of anchors of a kernel head; 0 for the others.
    training : mapping
        How the encoder was made: method, settings. For the record only; no code depends on it.
    """

    bits: int
    backbone: str
    beta: float
    batch_size: int
    preprocessing: Preprocessing
    head: str = LINEAR
    anchors: int = 0
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_whole(self.bits, "bits", 1, 1024)
        check_whole(self.batch_size, "batch_size", 1, MAX_BATCH)
        check_whole(self.anchors, "anchors", 0, MAX_ANCHORS)
        check_number(self.beta, "beta", above=0.0)
        if not isinstance(self.training, Mapping):
            raise TypeError(f"`training` must be a mapping, got {self.training!r}")
        if self.head not in HEADS:
            raise ValueError(f"`head` must be one of {', '.join(HEADS)}, got {self.head!r}")
        if (self.anchors > 0) != (self.head == KERNEL):
            raise ValueError(f"`anchors` must be above 0 for a kernel head and 0 for others, got {self.anchors}")

    @property
    def method(self) -> str:
        """The method that made the encoder, or "encoder" if it is not recorded."""
        return str(self.training.get("method", "encoder"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the artifact's JSON."""
        head = {"kind": self.head, "beta": self.beta} | ({"anchors": self.anchors} if self.anchors else {})
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "bits": self.bits,
            "backbone": self.backbone,
            "head": head,
            "batch_size": self.batch_size,
            "preprocessing": self.preprocessing.to_dict(),
            "training": dict(self.training),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> EncoderConfig:
        """Undo `to_dict`."""
        return cls(
            bits=plain["bits"],
            backbone=plain["backbone"],
            beta=plain["head"]["beta"],
            batch_size=plain["batch_size"],
            preprocessing=Preprocessing.from_dict(plain["preprocessing"]),
            head=plain["head"]["kind"],
            anchors=plain["head"].get("anchors", 0),
            training=plain["training"],
        )


class HashEncoder:
    """Turns images into binary codes.

    An image's code does not depend on the rest of the batch, nor on the number of torch threads. Another kind of
    processor may round differently. Threads may share an encoder; their calls run one after another.

    Parameters
    ----------
    config : EncoderConfig
    model : HashModel
        The encoder takes ownership and puts it in evaluation mode.
    """

    def __init__(self, config: EncoderConfig, model: HashModel):
        self.config = config
        self._feature_dim = model.feature_dim
        self._device = torch.device("cpu")
        self._model = model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._weights = save_tensors({name: value.contiguous() for name, value in model.state_dict().items()})
        self.fingerprint = _fingerprint(config.to_dict(), self._weights)

    @property
    def bits(self) -> int:
        """Number of bits in a code."""
        return self.config.bits

    @property
    def feature_dim(self) -> int:
        """Number of features that enter the hash layer."""
        return self._feature_dim

    def __repr__(self) -> str:
        method, backbone = self.config.method, self.config.backbone
        return f"HashEncoder({method} on {backbone}, {self.bits} bits, fingerprint {self.fingerprint[:12]})"

    def encode(self, images: Sequence[ImageLike] | NDArray[np.uint8]) -> CodeArray:
        """Return the codes of a sequence of images.

        Parameters
        ----------
        images : sequence of PIL images, encoded bytes, paths or uint8 arrays
            Arrays have shape (H, W), (H, W, 1) or (H, W, 3). One array of shape (N, H, W) or (N, H, W, C) is also a
            sequence.

        Returns
        -------
        ndarray of uint64, shape (N, ceil(bits / 64))

        Raises
        ------
        ImageError
            If an image cannot be decoded; its reason names the position.
        TypeError
            If `images` is a single image, or holds anything but images.
        """
        return self.encode_all(images).codes

    def encode_all(self, images: Sequence[ImageLike] | NDArray[np.uint8]) -> EncoderOutput:
        """Return codes, relaxed codes and features of a sequence of images; see `encode`."""
        _check_sequence(images)
        return self._encode(len(images), lambda rows: self._open_pixels(images, rows))

    def encode_pixels(self, pixels_NHWC: NDArray[np.uint8]) -> EncoderOutput:
        """Like `encode_all`, for images already prepared by `config.preprocessing.pixels`.

        Parameters
        ----------
        pixels_NHWC : ndarray of uint8, shape (N, size, size, channels)
        """
        return self._encode(len(pixels_NHWC), pixels_NHWC.__getitem__)

    def to(self, device: str) -> HashEncoder:
        """Move the model to a device, such as "cuda"; returns this encoder. Another device may round differently."""
        self._device = torch.device(device)
        self._model.to(self._device)
        return self

    def _encode(self, num_images: int, pixels_of: Callable[[slice], NDArray[np.uint8]]) -> EncoderOutput:
        relaxed_NB = np.empty((num_images, self.bits), np.float32)
        feature_ND = np.empty((num_images, self.feature_dim), np.float32)
        bit_NB = np.empty((num_images, self.bits), np.bool_)
        size = self.config.batch_size

        def run(index: int) -> None:
            rows = slice(index * size, min((index + 1) * size, num_images))
            feature_ND[rows], z_NB, relaxed_NB[rows] = self._run_batch(pixels_of(rows))
            bit_NB[rows] = z_NB > 0

        run_batches(run, -(-num_images // size))
        return EncoderOutput(pack_bits(bit_NB), relaxed_NB, feature_ND)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` into a folder, creating it if necessary."""
        target = _local(folder)
        target.mkdir(parents=True, exist_ok=True)
        config = self.config.to_dict() | {"fingerprint": self.fingerprint}
        # The configuration is written last: its fingerprint covers the weights, so a half-written folder is refused.
        write_whole(target / WEIGHTS_FILE, self._weights)
        write_whole(target / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())

    def save_backbone(self, path: str | os.PathLike[str]) -> None:
        """Write the weights of the backbone alone (.safetensors), for another training to start from."""
        state = self._model.backbone.state_dict()
        write_whole(_local(path), save_tensors({name: value.contiguous() for name, value in state.items()}))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> HashEncoder:
        """Open an encoder that `save` wrote.

        Raises
        ------
        EncoderError
            If the folder is not an encoder, is damaged, or was written by a newer version.
        """
        source = _local(folder)
        plain = _read_config(source)
        weights = _read(source / WEIGHTS_FILE)
        expected = plain.pop("fingerprint", None)
        if (got := _fingerprint(plain, weights)) != expected:
            raise EncoderError(
                f"the encoder in {source} is damaged: {CONFIG_FILE} says fingerprint {str(expected)[:12]}, its "
                f"configuration and weights give {got[:12]}; copy or train it again"
            )
        try:
            config = EncoderConfig.from_dict(plain)
            return cls(config, _build_model(config, load_tensors(weights)))
        except (EncoderError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as exc:
            raise EncoderError(
                f"the encoder in {source} cannot be built ({type(exc).__name__}: {' '.join(str(exc).split())[:300]}): "
                "use the version of hashlight that wrote it, or train it again within what this one allows"
            ) from exc

    def _open_pixels(self, images: Sequence[ImageLike] | NDArray[np.uint8], rows: slice) -> NDArray[np.uint8]:
        pixels = self.config.preprocessing.pixels
        return np.stack([pixels(_open_image(images[row], row)) for row in range(rows.start, rows.stop)])

    def _run_batch(
        self, pixels_RHWC: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return features, z and relaxed codes of some images, padded with zeros to the fixed batch size."""
        count = len(pixels_RHWC)
        pixels_NHWC = np.zeros((self.config.batch_size, *pixels_RHWC.shape[1:]), np.uint8)
        pixels_NHWC[:count] = pixels_RHWC
        with torch.inference_mode():
            batch_NCHW = self.config.preprocessing.normalise(torch.from_numpy(pixels_NHWC))
            batch_NCHW = batch_NCHW.contiguous(memory_format=torch.channels_last).to(self._device)
            feature_ND, z_NB = self._model(batch_NCHW)
            relaxed_NB = torch.tanh(self.config.beta * z_NB)
        return tuple(part[:count].cpu().numpy() for part in (feature_ND, z_NB, relaxed_NB))  # type: ignore[return-value]


def _local(path: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(path):
        raise EncoderError(f"{path} is a URI: an encoder is saved to, and loaded from, a folder of this machine")
    return Path(path)


def _open_image(image: ImageLike, position: int) -> Image.Image:
    try:
        return open_image(image)
    except ImageError as exc:
        raise ImageError(f"image {position}: {exc.reason}") from exc


def _check_sequence(images: object) -> None:
    one_image = isinstance(images, Image.Image | bytes | bytearray | str | os.PathLike)
    if (
        one_image
        or not hasattr(images, "__len__")
        or (isinstance(images, np.ndarray) and (images.ndim < 3 or images.shape[2:] in ((1,), (3,))))
    ):
        raise TypeError(f"`images` must be a sequence of images, got {type(images).__name__}: put one image in a list")


def _build_model(config: EncoderConfig, weights: dict[str, torch.Tensor]) -> HashModel:
    # The random initial weights are discarded at once, and must not advance the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        backbone = build_backbone(config.backbone)
        head = build_head(config.head, backbone.feature_dim, config.bits, config.anchors)
        model = HashModel(backbone, config.bits, head)
    # Copies into the model's own memory: matrix products depend on the alignment of their operands, which a mapped
    # or sliced buffer does not guarantee.
    model.load_state_dict(weights)
    return model


def _fingerprint(plain: Mapping[str, Any], weights: bytes) -> str:
    """Return the SHA-256 of the configuration, as canonical JSON, and the weights file."""
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(hashlib.sha256(canonical).digest() + hashlib.sha256(weights).digest()).hexdigest()


def _read_config(source: Path) -> dict[str, Any]:
    if not (source / CONFIG_FILE).is_file():
        raise EncoderError(
            f"{source} is not an encoder: expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}; "
            "`hashlight train` writes one"
        )
    try:
        plain = json.loads(_read(source / CONFIG_FILE))
    except (ValueError, RecursionError) as exc:
        raise EncoderError(f"{source / CONFIG_FILE} is damaged, expected JSON: {exc}; copy or train it again") from exc
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        got = plain.get("format") if isinstance(plain, dict) else type(plain).__name__
        raise EncoderError(f"{source} is not an encoder: {CONFIG_FILE} must have format {FORMAT!r}, got {got!r}")
    if plain.get("format_version") != FORMAT_VERSION:
        raise EncoderError(
            f"the encoder in {source} has format version {plain.get('format_version')!r}, this hashlight reads "
            f"{FORMAT_VERSION}: use the version that wrote it"
        )
    return plain


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise EncoderError(f"{path} cannot be read: {exc.strerror or exc}; copy or train the encoder again") from exc


def write_whole(path: Path, data: bytes) -> None:
    """Write to a temporary file and rename it: a reader never sees half a file, and a crash does not undo it."""
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
