"""Networks of timm: "timm:NAME", with timm's tags ("timm:vit_small_patch14_dinov2.lvd142m")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hashlight.encoders.data.preprocessing import INTERPOLATIONS, Preprocessing
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbone import Backbone, probe
from hashlight.encoders.networks.compat import load_torchvision
from hashlight.encoders.networks.packages import import_package
from hashlight.encoders.networks.sources.hub import from_hub, not_to_be_had
from hashlight.encoders.networks.weights import load_weights


def build(what: str, weights: str | None) -> Backbone:
    """Return a model with timm's weights or those of a file; see `Source`."""
    name = f"timm:{what}"
    timm = _timm(name)
    if not timm.is_model(what):
        raise EncoderError(f"timm {timm.__version__} has no model {what}: `timm.list_models()` lists them")
    network = _network(timm, what, pretrained=weights is None)
    if weights is not None:
        load_weights(network, Path(weights), name, without=_classifiers(network))
    rule = _preprocessing(timm.data.resolve_model_data_config(network), name)
    return _backbone(name, network, rule, probe(network, rule, name))


def rebuild(what: str, architecture: Mapping[str, Any]) -> Backbone:
    """Return the model with random weights; see `Source`."""
    name = f"timm:{what}"
    network = _timm(name).create_model(what, pretrained=False, num_classes=0)
    rule = Preprocessing.from_dict(architecture["preprocessing"])
    return _backbone(name, network, rule, architecture["feature_dim"])


def _timm(name: str) -> Any:
    # timm imports torchvision.
    load_torchvision()
    timm = import_package("timm", name, "timm")
    import_package("timm.data", name, "timm")
    return timm


def _backbone(name: str, network: nn.Module, rule: Preprocessing, feature_dim: int) -> Backbone:
    return Backbone(
        name=name,
        network=network,
        feature_dim=feature_dim,
        preprocessing=rule,
        pretrained=True,
        architecture={"feature_dim": feature_dim, "preprocessing": rule.to_dict()},
    )


def _network(timm: Any, what: str, *, pretrained: bool) -> Any:
    def create() -> Any:
        return timm.create_model(what, pretrained=pretrained, num_classes=0)

    try:
        return from_hub(create) if pretrained else create()
    except Exception as error:  # Of the hub's client, of the HTTP client, or timm's own RuntimeError.
        if not pretrained:
            raise EncoderError(f"timm cannot build {what}: {error}") from error
        repository = timm.get_pretrained_cfg_value(what, "hf_hub_id") or what
        remedy = "pass a file of them as `weights`"
        raise not_to_be_had(f"timm:{what}", "the weights", f"the repository {repository}", remedy, error) from error


def _classifiers(network: Any) -> tuple[str, ...]:
    """Return the paths of the layers that `num_classes=0` leaves out."""
    found = network.pretrained_cfg.get("classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _preprocessing(config: Mapping[str, Any], name: str) -> Preprocessing:
    """Translate timm's evaluation transform."""
    channels, height, width = config["input_size"]
    mode, interpolation = config["crop_mode"], config["interpolation"]
    resize = math.floor(height / config["crop_pct"])
    is_known = mode == "center" or (mode == "squash" and resize == height)
    if height != width or interpolation not in INTERPOLATIONS or not is_known:
        raise EncoderError(
            f"{name} prepares images in a way that is not supported: {height} x {width} pixels, {interpolation}, crop "
            f"{mode} of {config['crop_pct']}; expected a square, one of {', '.join(INTERPOLATIONS)}, and a central crop"
        )
    return Preprocessing(
        size=height,
        channels=channels,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fit="crop" if mode == "center" else "stretch",
        resize=resize if mode == "center" else 0,
        interpolation=interpolation,
        draft=2,
    )
