"""The encoder that training produces and a collection stores: images or embeddings in, codes out, a folder on disk.

An encoder of embeddings is a linear map, and needs neither torch nor Pillow: they are imported where images are. One of
images whose network is exported needs no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from hashlight.encoders.config import (
    AUTO,
    FORMAT,
    FORMAT_VERSIONS,
    Embeddings,
    EncoderConfig,
    Export,
    Pictures,
    not_for_embeddings,
    not_for_images,
)
from hashlight.encoders.errors import EncoderError, ImageError
from hashlight.encoders.fits.hashers import MEDIAN, Features
from hashlight.encoders.fits.streaming import Stream, count_up_to
from hashlight.encoders.packing import CodeArray, pack_bits
from hashlight.encoders.runtimes.protocol import Outputs, PixelsOf, Runtime
from hashlight.encoders.vectors import EmbeddingHead, EmbeddingStream, check_embeddings, check_usable

if TYPE_CHECKING:
    from PIL import Image

    from hashlight.encoders.data.images import ImageLike
    from hashlight.encoders.data.preprocessing import Preprocessing
    from hashlight.encoders.networks.model import HashModel
    from hashlight.encoders.runtimes.with_torch import TorchRuntime

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
NETWORK_FILE = "model.onnx"
# Named here too, because their room needs Pillow.
COPY_CODE_NAMES = ("pdq", "phash")


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
    projections : ndarray of float32, shape (N, B)
        z, the real numbers whose signs are the bits; a query's order answers that its code cannot tell apart
        (`engine.collection.rerank`).
    """

    codes: CodeArray
    relaxed: NDArray[np.float32]
    features: NDArray[np.float32]
    projections: NDArray[np.float32]


class HashEncoder:
    """Turns images, or embeddings that some network made, into binary codes; `config.input` says which.

    A code does not depend on the rest of the batch, nor on the number of threads. For images, another kind of
    processor may round differently; the codes of embeddings are the same everywhere (`encoders.vectors`). Threads may
    share an encoder.

    Parameters
    ----------
    config : EncoderConfig
    model : HashModel or EmbeddingHead
        The encoder takes ownership of a network and puts it in evaluation mode.
    """

    def __init__(self, config: EncoderConfig, model: HashModel | EmbeddingHead):
        if isinstance(model, EmbeddingHead):
            _check_head(config, model)
            self._open(config, save_arrays({"weight": model.weight, "bias": model.bias}), head=model)
            return
        from hashlight.encoders.runtimes.with_torch import TorchRuntime, weights_of

        weights = weights_of(model)
        self._open(config, weights, runtime=TorchRuntime(model, config.preprocessing, config.batch_size))

    def _open(
        self,
        config: EncoderConfig,
        weights: bytes,
        *,
        head: EmbeddingHead | None = None,
        network: bytes = b"",
        runtime: Runtime | None = None,
    ) -> None:
        self.config = config
        self._weights, self._network = weights, network
        self._head = head
        # On a processor, and where it runs now.
        self._on_processor = self._running = runtime
        self.fingerprint = _fingerprint(config.to_dict(), weights)

    @classmethod
    def _of(cls, config: EncoderConfig, weights: bytes, network: bytes) -> HashEncoder:
        """Return the encoder that files describe."""
        encoder = cls.__new__(cls)
        if isinstance(config.input, Embeddings):
            encoder._open(config, weights, head=_build_head(config, weights))
        elif config.head == MEDIAN:
            encoder._open(config, weights, runtime=_dct_runtime(config, weights))
        elif config.input.onnx is not None:
            encoder._open(config, weights, network=network, runtime=_onnx_runtime(config, network))
        else:
            encoder._open(config, weights, runtime=_torch_runtime(config, weights, "cpu"))
        return encoder

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what the files hold; a runtime is of its process."""
        return HashEncoder._of, (self.config, self._weights, self._network)

    @classmethod
    def fit_embeddings(
        cls,
        embeddings: Features | Stream,
        *,
        bits: int,
        method: str = AUTO,
        normalise: bool = True,
        seed: int = 0,
    ) -> HashEncoder:
        """Fit an encoder to embeddings, in a pass over them (two for "sh"), so that they need not fit in memory.

        Parameters
        ----------
        embeddings : ndarray of float, shape (N, D), or Stream
            An array may be mapped from a file (`numpy.load(..., mmap_mode="r")`). A stream gives usable embeddings in
            batches, the same at every pass.
        bits : int
            1 to 1024; at most D for "itq" and "neighbours".
        method : {"auto", "itq", "neighbours", "lsh", "sh"}
            "auto" is "neighbours" up to 64 bits from 2,000 embeddings on, and otherwise "itq". Of embeddings drawn at
            random, "itq" fits its rotation to `encoders.fits.itq.ROTATION_ROWS`, and "neighbours" learns from
            `encoders.fits.neighbours.LEARNED_ROWS`.
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
        from hashlight.encoders.methods import NEIGHBOURS_ROWS, label_free_method, streaming_method

        stream = EmbeddingStream(embeddings, normalise=normalise)
        if method == AUTO:
            method = label_free_method(bits, count_up_to(stream, NEIGHBOURS_ROWS))
        chosen = streaming_method(method)
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

    @classmethod
    def copy_code(cls, name: str) -> HashEncoder:
        """Return the encoder of a copy code, which finds copies of images and needs no training.

        Parameters
        ----------
        name : {"pdq", "phash"}
            As in `encoders.runtimes.with_dct`. Bit i is that of value 2^i in PDQ's 256-bit number, and the ith in
            ImageHash's flattened array.

        Raises
        ------
        ValueError
            If there is no such code.
        """
        if name not in COPY_CODE_NAMES:
            raise ValueError(f"`name` must be one of {', '.join(COPY_CODE_NAMES)}, got {name!r}")
        from hashlight.encoders.runtimes.with_dct import COPY_CODES

        code = COPY_CODES[name]
        rows_FS = code.rows()
        config = EncoderConfig(
            bits=len(rows_FS) ** 2,
            # Frequencies are sums of grey values: some hundreds.
            beta=0.01,
            input=Pictures(backbone=name, batch_size=1, preprocessing=code.preprocessing),
            head=MEDIAN,
            training={"method": name, "title": code.title, "supervision": "nothing", "settings": {}},
        )
        return cls._of(config, save_arrays({"rows": rows_FS}), b"")

    @property
    def is_copy_code(self) -> bool:
        """Whether it finds copies of images, and has no network."""
        return self.config.head == MEDIAN

    @property
    def bits(self) -> int:
        """Number of bits in a code."""
        return self.config.bits

    @property
    def feature_dim(self) -> int:
        """Number of features that enter the hash layer."""
        return self.head.dims if self._head else self._runtime.feature_dim

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
        rule = self.config.preprocessing
        _check_sequence(images)

        def pixels_of(rows: slice) -> NDArray[np.uint8]:
            return np.stack([rule.pixels(_open_image(rule, images[row], row)) for row in range(rows.start, rows.stop)])

        return self._encode(len(images), pixels_of)

    def encode_pixels(self, pixels_NHWC: NDArray[np.uint8]) -> EncoderOutput:
        """Like `encode_all`, for images already prepared by `config.preprocessing.pixels`.

        Parameters
        ----------
        pixels_NHWC : ndarray of uint8, shape (N, size, size, channels)
        """
        return self._encode(len(pixels_NHWC), pixels_NHWC.__getitem__)

    @property
    def takes_texts(self) -> bool:
        """Whether `encode_texts` can be used."""
        of = self.config.input
        return not isinstance(of, Embeddings) and of.architecture.get("text") is not None

    def encode_texts(self, texts: Sequence[str]) -> EncoderOutput:
        """Encode texts by what they have in common with images; torch and the network's library are needed.

        Parameters
        ----------
        texts : sequence of str

        Raises
        ------
        EncoderError
            If the network embeds no texts, or was trained since, so that images and texts can no longer be compared.
        TypeError
            If `texts` is not a sequence of str.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"`texts` must be a sequence of str, got {type(texts).__name__}: put one text in a list")
        if not self.takes_texts:
            raise EncoderError(
                f"this encoder ({self!r}) takes no texts: fit one (`--method itq`, neighbours or lsh) to a network "
                "that embeds images and texts, such as `--backbone open_clip:ViT-B-32/laion2b_s34b_b79k` or "
                "`hf:openai/clip-vit-base-patch32`"
            )
        return self._output(self._of_texts.run_texts(texts))

    @functools.cached_property
    def _of_texts(self) -> TorchRuntime:
        return _torch_runtime(self.config, self._weights, "cpu")

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
        z_NB = self.head.project(embeddings)
        relaxed_NB = np.tanh(np.float32(self.config.beta) * z_NB)
        return EncoderOutput(codes_NW, relaxed_NB, self.head.features(embeddings), z_NB)

    @property
    def head(self) -> EmbeddingHead:
        """The hash layer of an encoder of embeddings; EncoderError if the encoder takes images."""
        if self._head is None:
            raise not_for_embeddings(self.config)
        return self._head

    @property
    def _runtime(self) -> Runtime:
        if self._running is None:
            raise not_for_images(self.config)
        return self._running

    @property
    def _network_of(self) -> EncoderConfig:
        """The configuration of an encoder that has a network."""
        if self.is_copy_code:
            raise EncoderError(f"{self.config.method} is a copy code and has no network: train an encoder for that")
        return self.config

    @property
    def images_at_once(self) -> int:
        """How many images are computed at a time: so many take hardly longer than one."""
        return self._runtime.images_at_once

    def to(self, device: str) -> HashEncoder:
        """Move the model to a device, such as "cuda"; returns this encoder. Another device may round differently."""
        runtime = self._on_processor
        if runtime is None:
            raise not_for_images(self.config)
        self._running = (
            runtime if device == "cpu" or self.is_copy_code else _torch_runtime(self.config, self._weights, device)
        )
        return self

    def exported(self, pixels_NHWC: NDArray[np.uint8]) -> HashEncoder:
        """Return this encoder with an exported network, by which ONNX Runtime computes its codes on processors.

        Its fingerprint is another, because a bit whose output is next to zero may be.

        Parameters
        ----------
        pixels_NHWC : ndarray of uint8, shape (N, size, size, channels)
            Sample images, for which the codes are compared.

        Raises
        ------
        EncoderError
            If the network cannot be exported, a code differs by more than such bits, or the encoder takes embeddings.
        """
        from hashlight.encoders.runtimes.exporting import compare, export

        pictures = self._network_of.pictures
        original = _torch_runtime(self.config, self._weights, "cpu")
        network = export(original.model, pictures.preprocessing)
        compared = compare(_onnx_runtime(self.config, network), original, pixels_NHWC)
        exported = dataclasses.replace(pictures, onnx=Export(sha256=_sha256(network), **compared._asdict()))
        return HashEncoder._of(dataclasses.replace(self.config, input=exported), self._weights, network)

    def with_fit(self, fit: str) -> HashEncoder:
        """Return an encoder with another `Preprocessing.fit`, hence another fingerprint: "stretch", "crop" or "pad".

        Raises
        ------
        EncoderError
            If the encoder takes embeddings.
        ValueError
            If it is none of these.
        """
        pictures = self.config.pictures
        fitted = dataclasses.replace(pictures, preprocessing=pictures.preprocessing.with_fit(fit))
        return HashEncoder._of(dataclasses.replace(self.config, input=fitted), self._weights, self._network)

    def _encode(self, num_images: int, pixels_of: PixelsOf) -> EncoderOutput:
        return self._output(self._runtime.run(num_images, pixels_of))

    def _output(self, outputs: Outputs) -> EncoderOutput:
        feature_ND, z_NB = outputs
        return EncoderOutput(pack_bits(z_NB > 0), np.tanh(np.float32(self.config.beta) * z_NB), feature_ND, z_NB)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json`, `model.safetensors` and, if exported, `model.onnx`; creates the folder if necessary."""
        target = _local(folder)
        target.mkdir(parents=True, exist_ok=True)
        config = self.config.to_dict() | {"fingerprint": self.fingerprint}
        # The configuration is written last: it has hashes of the others, so a half-written folder is refused.
        write_whole(target / WEIGHTS_FILE, self._weights)
        if self._network:
            write_whole(target / NETWORK_FILE, self._network)
        write_whole(target / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that `save` writes, in that order."""
        return (WEIGHTS_FILE, NETWORK_FILE, CONFIG_FILE) if self._network else (WEIGHTS_FILE, CONFIG_FILE)

    def save_backbone(self, path: str | os.PathLike[str]) -> None:
        """Write the weights of the backbone alone (.safetensors), for another training to start from."""
        from hashlight.encoders.runtimes.with_torch import weights_of

        self._network_of.pictures  # noqa: B018 - refuses encoders of embeddings
        write_whole(_local(path), weights_of(_torch_runtime(self.config, self._weights, "cpu").model.backbone))

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
            return cls._of(config, weights, _read_network(config, source))
        except _DamagedError:
            raise
        except (EncoderError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as exc:
            raise EncoderError(
                f"the encoder in {source} cannot be built ({type(exc).__name__}: {_first(exc)}): "
                "use the version of hashlight that wrote it, or train it again within what this one allows"
            ) from exc


class _DamagedError(EncoderError):
    """A file of an encoder is not the one that its configuration names."""


def _check_head(config: EncoderConfig, head: EmbeddingHead) -> None:
    expected = (config.head, config.embeddings.dims, config.bits, config.embeddings.normalise)
    if (got := (head.kind, head.dims, head.bits, head.normalise)) != expected:
        raise ValueError(f"the hash layer must be what the configuration says, {expected}, got {got}")


def _local(path: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(path):
        raise EncoderError(f"{path} is a URI: an encoder is saved to, and loaded from, a folder of this machine")
    return Path(path)


def _open_image(rule: Preprocessing, image: ImageLike, position: int) -> Image.Image:
    try:
        return rule.open(image)
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


def _build_head(config: EncoderConfig, weights: bytes) -> EmbeddingHead:
    """Return the hash layer of an encoder of embeddings."""
    tensors = load_arrays(weights)
    if set(tensors) != {"weight", "bias"} or any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise ValueError(f"expected the tensors weight and bias as float32, got {sorted(tensors)}")
    return EmbeddingHead(config.head, **tensors, normalise=config.embeddings.normalise)


def _dct_runtime(config: EncoderConfig, weights: bytes) -> Runtime:
    """Return what computes a copy code."""
    from hashlight.encoders.runtimes.with_dct import DctRuntime

    tensors, rule = load_arrays(weights), config.preprocessing
    rows_FS = tensors.get("rows", np.empty(0))
    expected = (len(rows_FS), rule.size)
    if set(tensors) != {"rows"} or rows_FS.dtype != np.float64 or rows_FS.shape != expected or rule.channels != 1:
        raise ValueError(f"expected the matrix of a copy code for {rule.size} pixels, got {sorted(tensors)}")
    if len(rows_FS) ** 2 != config.bits:
        raise ValueError(f"a copy code of {len(rows_FS)} frequencies has {len(rows_FS) ** 2} bits, got {config.bits}")
    return DctRuntime(rows_FS)


def _torch_runtime(config: EncoderConfig, weights: bytes, device: str) -> TorchRuntime:
    from hashlight.encoders.runtimes.with_torch import TorchRuntime, build_model

    try:
        pictures = config.pictures
        model = build_model(pictures.backbone, pictures.architecture, config.head, config.bits, config.anchors, weights)
    except (LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as exc:
        raise EncoderError(f"the weights do not fit the configuration: {_first(exc)}") from exc
    return TorchRuntime(model, config.preprocessing, config.batch_size, device)


def _onnx_runtime(config: EncoderConfig, network: bytes) -> Runtime:
    from hashlight.encoders.runtimes.with_onnx import OnnxRuntime

    rule = config.preprocessing
    return OnnxRuntime(network, size=rule.size, channels=rule.channels, bits=config.bits)


def _read_network(config: EncoderConfig, source: Path) -> bytes:
    """Return the exported network of an encoder that has one."""
    export = None if isinstance(config.input, Embeddings) else config.input.onnx
    if export is None:
        return b""
    network = _read(source / NETWORK_FILE)
    if (got := _sha256(network)) != export.sha256:
        raise _DamagedError(
            f"the encoder in {source} is damaged: {CONFIG_FILE} says SHA-256 {str(export.sha256)[:12]} of "
            f"{NETWORK_FILE}, which has {got[:12]}; copy or train it again"
        )
    return network


def _first(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
    if plain.get("format_version") not in FORMAT_VERSIONS:
        raise EncoderError(
            f"the encoder in {source} has format version {plain.get('format_version')!r}, this hashlight reads "
            f"{' and '.join(map(str, FORMAT_VERSIONS))}: use the version that wrote it"
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
