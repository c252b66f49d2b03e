"""The encoder that training produces and a collection stores: images or embeddings in, codes out, a folder on disk.

An encoder of embeddings is a linear map, and needs neither torch nor Pillow: they are imported where images are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from hashlight.encoders.config import (
    FORMAT,
    FORMAT_VERSION,
    Embeddings,
    EncoderConfig,
    not_for_embeddings,
    not_for_images,
)
from hashlight.encoders.errors import EncoderError, ImageError
from hashlight.encoders.fits.hashers import Features
from hashlight.encoders.fits.streaming import Stream
from hashlight.encoders.packing import CodeArray, pack_bits
from hashlight.encoders.vectors import EmbeddingHead, EmbeddingStream, check_embeddings, check_usable

if TYPE_CHECKING:
    from PIL import Image

    from hashlight.encoders.data.images import ImageLike
    from hashlight.encoders.networks.model import HashModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class EncoderOutput(NamedTuple):
    """What an encoder returns for N images or embeddings.

    Attributes
    ----------
    codes : ndarray of uint64, shape (N, W)
        Packed bits, W = ceil(bits / 64).
    relaxed : ndarray of float32, shape (N, B)
        tanh(beta z), in [-1, 1], with the final beta of training; its sign is the code.
    features : ndarray of float32, shape (N, D)
        The layer before the hash layer; of embeddings, the embeddings, normalised if that is asked.
    """

    codes: CodeArray
    relaxed: NDArray[np.float32]
    features: NDArray[np.float32]


class HashEncoder:
    """Turns images, or embeddings that some network made, into binary codes; `config.input` says which.

    A code does not depend on the rest of the batch, nor on the number of threads. For images, another kind of
    processor may round differently; the codes of embeddings are the same everywhere (`encoders.vectors`). Threads may
    share an encoder; their calls with images run one after another.

    Parameters
    ----------
    config : EncoderConfig
    model : HashModel or EmbeddingHead
        The encoder takes ownership of a network and puts it in evaluation mode.
    """

    def __init__(self, config: EncoderConfig, model: HashModel | EmbeddingHead):
        self.config = config
        self._head: EmbeddingHead | None = None
        self._model: HashModel | None = None
        if isinstance(model, EmbeddingHead):
            _check_head(config, model)
            self._head = model
            self._feature_dim = model.dims
            self._weights = save_arrays({"weight": model.weight, "bias": model.bias})
        else:
            self._take(model)
        self.fingerprint = _fingerprint(config.to_dict(), self._weights)

    def _take(self, model: HashModel) -> None:
        import torch
        from safetensors.torch import save as save_tensors

        self._feature_dim = model.feature_dim
        self._device = torch.device("cpu")
        self._model = model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._weights = save_tensors({name: value.contiguous() for name, value in model.state_dict().items()})

    @classmethod
    def fit_embeddings(
        cls,
        embeddings: Features | Stream,
        *,
        bits: int,
        method: str = "itq",
        normalise: bool = True,
        seed: int = 0,
    ) -> HashEncoder:
        """Fit an encoder to embeddings, in one pass over them (two for "sh"), so that they need not fit in memory.

        Parameters
        ----------
        embeddings : ndarray of float, shape (N, D), or Stream
            An array may be mapped from a file (`numpy.load(..., mmap_mode="r")`). A stream gives usable embeddings in
            batches, the same at every pass.
        bits : int
            1 to 1024; at most D for "itq".
        method : {"itq", "lsh", "sh"}
            Of "itq", the rotation is fitted to `encoders.fits.itq.ROTATION_ROWS` embeddings drawn at random.
        normalise : bool
            Scale embeddings to length 1 first, so that their direction alone counts.
        seed : int
            Of what is drawn at random.

        Raises
        ------
        ValueError
            If the method cannot be fitted to embeddings or cannot make so many bits of them, or an embedding of an
            array has no code: a number in it is not finite, or it has no direction.
        """
        from hashlight.encoders.methods import streaming_method

        chosen = streaming_method(method)
        stream = EmbeddingStream(embeddings, normalise=normalise)
        expected = Embeddings(dims=stream.dims, normalise=normalise)
        chosen.check_bits(bits, stream.dims, 0)
        assert chosen.fit_stream is not None, "`streaming_method` returns no other"
        hasher = chosen.fit_stream(stream, bits, seed)
        head = EmbeddingHead.of(hasher, normalise=normalise)
        # A sharpness at which relaxed codes are neither all near 0 nor all near 1.
        beta = 1.0 / max(float(np.abs(hasher.project(stream.examples)).mean()), 1e-12)
        settings = {"bits": bits, "normalise": normalise, "seed": seed, "rows": stream.rows}
        training = {"method": method, "title": chosen.title, "supervision": "nothing", "settings": settings}
        return cls(EncoderConfig(bits=bits, beta=beta, input=expected, head=head.kind, training=training), head)

    @property
    def bits(self) -> int:
        """Number of bits in a code."""
        return self.config.bits

    @property
    def feature_dim(self) -> int:
        """Number of features that enter the hash layer."""
        return self._feature_dim

    def __repr__(self) -> str:
        method, of = self.config.method, self.config.input
        what = f"embeddings of {of.dims} numbers" if isinstance(of, Embeddings) else of.backbone
        return f"HashEncoder({method} on {what}, {self.bits} bits, fingerprint {self.fingerprint[:12]})"

    def encode(self, images: Sequence[ImageLike] | NDArray[np.uint8]) -> CodeArray:
        """Return the codes of a sequence of images, from an encoder that takes images.

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
        EncoderError
            If the encoder takes embeddings.
        ImageError
            If an image cannot be decoded; its reason names the position.
        TypeError
            If `images` is a single image, or holds anything but images.
        """
        return self.encode_all(images).codes

    def encode_all(self, images: Sequence[ImageLike] | NDArray[np.uint8]) -> EncoderOutput:
        """Return codes, relaxed codes and features of a sequence of images; see `encode`."""
        pixels = self.config.preprocessing.pixels
        _check_sequence(images)

        def pixels_of(rows: slice) -> NDArray[np.uint8]:
            return np.stack([pixels(_open_image(images[row], row)) for row in range(rows.start, rows.stop)])

        return self._encode(len(images), pixels_of)

    def encode_pixels(self, pixels_NHWC: NDArray[np.uint8]) -> EncoderOutput:
        """Like `encode_all`, for images already prepared by `config.preprocessing.pixels`.

        Parameters
        ----------
        pixels_NHWC : ndarray of uint8, shape (N, size, size, channels)
        """
        return self._encode(len(pixels_NHWC), pixels_NHWC.__getitem__)

    def encode_embeddings(self, embeddings: Features) -> CodeArray:
        """Return the codes of embeddings, from an encoder that takes embeddings.

        Parameters
        ----------
        embeddings : ndarray of float, shape (N, D)
            float16, float32 or float64, which is rounded to float32; it may be mapped from a file.

        Returns
        -------
        ndarray of uint64, shape (N, ceil(bits / 64))

        Raises
        ------
        EncoderError
            If the encoder takes images.
        TypeError, ValueError
            If they are no such array, have another number of dimensions, or one of them has no code: a number in it is
            not finite, or its length is 0 and it is to be normalised.
        """
        return self.head.encode(check_usable(self.head, check_embeddings(embeddings, self.head.dims)))

    def encode_embeddings_all(self, embeddings: Features) -> EncoderOutput:
        """Return codes, relaxed codes and features of embeddings; see `encode_embeddings`."""
        codes_NW = self.encode_embeddings(embeddings)
        relaxed_NB = np.tanh(np.float32(self.config.beta) * self.head.project(embeddings))
        return EncoderOutput(codes_NW, relaxed_NB, self.head.features(embeddings))

    @property
    def head(self) -> EmbeddingHead:
        """The hash layer of an encoder of embeddings; EncoderError if the encoder takes images."""
        if self._head is None:
            raise not_for_embeddings(self.config)
        return self._head

    @property
    def _network(self) -> HashModel:
        if self._model is None:
            raise not_for_images(self.config)
        return self._model

    def to(self, device: str) -> HashEncoder:
        """Move the model to a device, such as "cuda"; returns this encoder. Another device may round differently."""
        import torch

        network = self._network
        self._device = torch.device(device)
        network.to(self._device)
        return self

    def _encode(self, num_images: int, pixels_of: Callable[[slice], NDArray[np.uint8]]) -> EncoderOutput:
        from hashlight.encoders.networks.inference import run_batches

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
        from safetensors.torch import save as save_tensors

        state = self._network.backbone.state_dict()
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
            return cls(config, _build_head(config, weights) or _build_model(config, weights))
        except (EncoderError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as exc:
            raise EncoderError(
                f"the encoder in {source} cannot be built ({type(exc).__name__}: {' '.join(str(exc).split())[:300]}): "
                "use the version of hashlight that wrote it, or train it again within what this one allows"
            ) from exc

    def _run_batch(
        self, pixels_RHWC: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return features, z and relaxed codes of some images, padded with zeros to the fixed batch size."""
        import torch

        count = len(pixels_RHWC)
        pixels_NHWC = np.zeros((self.config.batch_size, *pixels_RHWC.shape[1:]), np.uint8)
        pixels_NHWC[:count] = pixels_RHWC
        with torch.inference_mode():
            batch_NCHW = self.config.preprocessing.normalise(torch.from_numpy(pixels_NHWC))
            batch_NCHW = batch_NCHW.contiguous(memory_format=torch.channels_last).to(self._device)
            feature_ND, z_NB = self._network(batch_NCHW)
            relaxed_NB = torch.tanh(self.config.beta * z_NB)
        return tuple(part[:count].cpu().numpy() for part in (feature_ND, z_NB, relaxed_NB))  # type: ignore[return-value]


def _check_head(config: EncoderConfig, head: EmbeddingHead) -> None:
    expected = (config.head, config.embeddings.dims, config.bits, config.embeddings.normalise)
    if (got := (head.kind, head.dims, head.bits, head.normalise)) != expected:
        raise ValueError(f"the hash layer must be what the configuration says, {expected}, got {got}")


def _local(path: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(path):
        raise EncoderError(f"{path} is a URI: an encoder is saved to, and loaded from, a folder of this machine")
    return Path(path)


def _open_image(image: ImageLike, position: int) -> Image.Image:
    from hashlight.encoders.data.images import open_image

    try:
        return open_image(image)
    except ImageError as exc:
        raise ImageError(f"image {position}: {exc.reason}") from exc


def _check_sequence(images: object) -> None:
    from PIL import Image

    one_image = isinstance(images, Image.Image | bytes | bytearray | str | os.PathLike)
    if (
        one_image
        or not hasattr(images, "__len__")
        or (isinstance(images, np.ndarray) and (images.ndim < 3 or images.shape[2:] in ((1,), (3,))))
    ):
        raise TypeError(f"`images` must be a sequence of images, got {type(images).__name__}: put one image in a list")


def _build_head(config: EncoderConfig, weights: bytes) -> EmbeddingHead | None:
    """Return the hash layer of an encoder of embeddings; None if the encoder takes images."""
    if not isinstance(config.input, Embeddings):
        return None
    tensors = load_arrays(weights)
    if set(tensors) != {"weight", "bias"} or any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise ValueError(f"expected the tensors weight and bias as float32, got {sorted(tensors)}")
    return EmbeddingHead(config.head, **tensors, normalise=config.input.normalise)


def _build_model(config: EncoderConfig, weights: bytes) -> HashModel:
    import torch
    from safetensors.torch import load as load_tensors

    from hashlight.encoders.networks.backbones import build_backbone
    from hashlight.encoders.networks.heads import build_head
    from hashlight.encoders.networks.model import HashModel

    # The random initial weights are discarded at once, and must not advance the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        backbone = build_backbone(config.backbone)
        head = build_head(config.head, backbone.feature_dim, config.bits, config.anchors)
        model = HashModel(backbone, config.bits, head)
    # Copies into the model's own memory: matrix products depend on the alignment of their operands, which a mapped
    # or sliced buffer does not guarantee.
    model.load_state_dict(load_tensors(weights))
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
