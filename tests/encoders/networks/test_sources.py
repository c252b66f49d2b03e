"""Networks that come from elsewhere: built, hashed, saved, and loaded where their source is gone."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbones import build_backbone
from hashlight.encoders.packing import unpack_bits
from hashlight.encoders.training.train import TrainConfig, train

RULE = {"size": 16, "channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
IMAGES = np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)

FACTORY = """
    import torch
    from torch import nn
    from hashlight import Backbone, Preprocessing

    def tiny() -> Backbone:
        network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Flatten())
        rule = Preprocessing(size=16, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
        return Backbone(network=network, feature_dim=64, preprocessing=rule, pretrained=True)

    def wrong() -> Backbone:
        return Backbone(network=nn.Flatten(), feature_dim=64, preprocessing=tiny().preprocessing)

    def failing() -> Backbone:
        raise OSError("no weights here")

    def unsaid():
        raise AssertionError("an encoder's folder may name any function")

    value = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_tiny_networks.py").write_text(textwrap.dedent(FACTORY))
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_tiny_networks"
    sys.modules.pop("my_tiny_networks", None)


def fitted(backbone, **settings):
    return train(IMAGES, config=TrainConfig(backbone=backbone, method="itq", bits=8, **settings))


def convolved(weight, bias, images_NHWC):
    """A convolution of 4 x 4 blocks of prepared images, its rectifier and a flattening, in plain numpy."""
    image = (images_NHWC / 255 - np.array(RULE["mean"])) / np.array(RULE["std"])
    block = image.reshape(len(image), 4, 4, 4, 4, 3)
    found = np.einsum("nyaxbc,fcab->nfyx", block, weight) + bias[None, :, None, None]
    return np.maximum(found, 0).reshape(len(image), -1)


def test_a_factory_gives_the_features_and_is_called_again_to_load(module, tmp_path):
    torch.manual_seed(1)
    state = nn.Conv2d(3, 4, 4, 4).state_dict()
    path = tmp_path / "weights.safetensors"
    save_file({f"0.{name}": value for name, value in state.items()}, path)
    encoder = fitted(f"python:{module}:tiny", weights=str(path))
    expected = convolved(*(state[name].double().numpy() for name in ("weight", "bias")), IMAGES)
    np.testing.assert_allclose(encoder.encode_all(IMAGES).features, expected, rtol=1e-4, atol=1e-4)
    encoder.save(tmp_path / "encoder")
    loaded = HashEncoder.load(tmp_path / "encoder")
    assert (loaded.encode(IMAGES) == encoder.encode(IMAGES)).all()
    assert loaded.fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("python:no_such_module_here:tiny", "cannot be imported.*PYTHONPATH"),
        ("python:{}", "must be python:MODULE:FACTORY"),
        ("python:{}:missing", "annotated `-> Backbone`.*got None"),
        ("python:{}:value", "annotated `-> Backbone`.*got 3"),
        ("python:{}:unsaid", "annotated `-> Backbone`"),
        ("python:os:abort", "annotated `-> Backbone`"),
        ("python:{}:failing", "OSError: no weights here"),
        ("python:{}:wrong", "says `feature_dim` 64, but gives 768"),
        ("pithon:{}:tiny", "begin with one of timm:, open_clip:, hf:, onnx:, python:"),
        ("python:", "begin with one of timm:, open_clip:, hf:, onnx:, python:"),
    ],
)
def test_factories_that_cannot_be_used_are_refused(module, name, message):
    with pytest.raises(EncoderError, match=message):
        build_backbone(name.format(module))


def wrapped(state, how):
    prefixed = {f"module.{name}": value for name, value in state.items()}
    twice = {f"module.model.{name}": value for name, value in state.items()}
    return {
        "plain": state,
        "state_dict": {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
        "model": {"model": prefixed, "epoch": 3},
        "module": prefixed,
        "twice": {"model": {"state_dict": twice}},
    }[how]


@pytest.mark.parametrize("how", ["plain", "state_dict", "model", "module", "twice"])
def test_weights_are_found_in_what_is_wrapped_around_them(module, tmp_path, how):
    torch.manual_seed(2)
    state = {f"0.{name}": value for name, value in nn.Conv2d(3, 4, 4, 4).state_dict().items()}
    torch.save(wrapped(state, how), tmp_path / "file.pth")
    backbone = build_backbone(f"python:{module}:tiny", str(tmp_path / "file.pth"))
    found = backbone.network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_checkpoint_without_weights_where_they_are_sought_is_refused(tmp_path):
    torch.save({"state": build_backbone("small-cnn").network.state_dict()}, tmp_path / "file.pth")
    with pytest.raises(EncoderError, match="by itself or as state_dict, model, model_state_dict, got dict with state"):
        build_backbone("small-cnn", str(tmp_path / "file.pth"))


def onnx_file(path, *, channels_last=False, images=None, size=16, opset=17, classes=True, second=False):
    """Write the same network by hand: a convolution of blocks, a rectifier, a flattening, and a layer of classes."""
    rng = np.random.default_rng(5)
    weight, bias = rng.normal(size=(4, 3, 4, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    last = rng.normal(size=(64, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "weight", "bias"], ["convolved"], strides=[4, 4]),
        helper.make_node("Relu", ["convolved"], ["positive"]),
        helper.make_node("Flatten", ["positive"], ["flat"]),
    ]
    shape = [images or "N", size, size, 3] if channels_last else [images or "N", 3, size, size]
    if channels_last:
        nodes.insert(0, helper.make_node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]))
    outputs = [helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 64])]
    if classes:
        nodes.append(helper.make_node("MatMul", ["flat", "last"], ["classes"]))
        found = helper.make_tensor_value_info("classes", TensorProto.FLOAT, ["N", 5])
        outputs = [*outputs, found] if second else [found]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image" if channels_last else "x", TensorProto.FLOAT, shape)],
        outputs,
        [numpy_helper.from_array(value, name) for value, name in ((weight, "weight"), (bias, "bias"), (last, "last"))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    path.with_suffix(".json").write_text(json.dumps(RULE))
    return weight.astype(np.float64), bias.astype(np.float64)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"channels_last": True},
        {"images": 1},
        {"opset": 13},
        {"size": None},
    ],
    ids=str,
)
def test_an_onnx_file_is_kept_in_the_encoder(tmp_path, monkeypatch, given):
    path = tmp_path / "network.onnx"
    weight, bias = onnx_file(path, **given)
    encoder = fitted(f"onnx:{path}#flat")
    assert encoder.config.backbone == "onnx:network.onnx#flat"
    expected = convolved(weight, bias, IMAGES)
    np.testing.assert_allclose(encoder.encode_all(IMAGES).features, expected, rtol=1e-4, atol=1e-4)
    z = encoder.encode_all(IMAGES).projections
    assert (unpack_bits(encoder.encode(IMAGES), 8) == (z > 0)).all()
    encoder.save(tmp_path / "encoder")
    path.unlink()
    loaded = HashEncoder.load(tmp_path / "encoder")
    assert (loaded.encode(IMAGES) == encoder.encode(IMAGES)).all()
    assert str(tmp_path) not in json.dumps(
        json.loads((tmp_path / "encoder" / "config.json").read_text())["architecture"]
    )


CAFFE = {"size": 16, "channels": 3, "mean": [104, 117, 123], "std": [1, 1, 1], "order": "bgr", "white": 255}


@pytest.mark.parametrize("given", [{}, {"channels_last": True}], ids=str)
def test_a_network_of_caffes_kind(tmp_path, given):
    path = tmp_path / "network.onnx"
    weight, bias = onnx_file(path, **given)
    usual = fitted(f"onnx:{path}#flat")
    path.with_suffix(".json").write_text(json.dumps(CAFFE))
    encoder = fitted(f"onnx:{path}#flat")
    assert encoder.config.pictures.onnx is not None, "it is exported"
    turned = IMAGES[..., ::-1] - np.array(CAFFE["mean"], float)
    block = turned.reshape(len(turned), 4, 4, 4, 4, 3)
    expected = np.einsum("nyaxbc,fcab->nfyx", block, weight) + bias[None, :, None, None]
    expected = np.maximum(expected, 0).reshape(len(turned), -1)
    np.testing.assert_allclose(encoder.encode_all(IMAGES).features, expected, rtol=1e-4, atol=1e-2)
    encoder.save(tmp_path / "encoder")
    loaded = HashEncoder.load(tmp_path / "encoder")
    assert loaded.config.preprocessing == Preprocessing.from_dict(CAFFE)
    assert (loaded.encode(IMAGES) == encoder.encode(IMAGES)).all()
    # In torch the same.
    in_torch = in_torch_of(encoder, tmp_path / "encoder")
    np.testing.assert_allclose(in_torch.encode_all(IMAGES).features, expected, rtol=1e-4, atol=1e-2)
    assert usual.fingerprint != encoder.fingerprint
    for other in ({"order": "rgb"}, {"white": 254}):
        rule = Preprocessing.from_dict({**CAFFE, **other})
        pictures = dataclasses.replace(encoder.config.pictures, preprocessing=rule)
        renewed = HashEncoder._of(dataclasses.replace(encoder.config, input=pictures), *files_of(tmp_path / "encoder"))
        assert renewed.fingerprint != encoder.fingerprint


def files_of(folder):
    return (folder / "model.safetensors").read_bytes(), (folder / "model.onnx").read_bytes()


def in_torch_of(encoder, folder):
    """Without the exported network, the file in the weights computes."""
    config = dataclasses.replace(encoder.config, input=dataclasses.replace(encoder.config.pictures, onnx=None))
    return HashEncoder._of(config, files_of(folder)[0], b"")


def test_the_joined_network_equals_the_one_in_torch(tmp_path):
    onnx_file(tmp_path / "network.onnx")
    encoder = fitted(f"onnx:{tmp_path / 'network.onnx'}#flat")
    assert encoder.config.pictures.onnx is not None
    encoder.save(tmp_path / "encoder")
    in_torch = in_torch_of(encoder, tmp_path / "encoder")
    np.testing.assert_allclose(
        in_torch.encode_all(IMAGES).projections, encoder.encode_all(IMAGES).projections, rtol=1e-4, atol=1e-5
    )


def test_a_hash_layer_is_trained_on_an_onnx_file(tmp_path):
    onnx_file(tmp_path / "network.onnx")
    labels = np.arange(40) % 2
    images = np.where(labels[:, None, None, None] == 1, IMAGES // 2, IMAGES // 2 + 128).astype(np.uint8)
    config = TrainConfig(backbone=f"onnx:{tmp_path / 'network.onnx'}#flat", bits=8, epochs=3, augment=False)
    codes = train(images, labels, config).encode(images)
    assert len({*codes[labels == 0, 0]} & {*codes[labels == 1, 0]}) == 0


def test_without_a_preprocessing_beside_it_imagenets_is_taken_and_said(tmp_path, caplog):
    onnx_file(tmp_path / "network.onnx")
    (tmp_path / "network.json").unlink()
    rule = build_backbone(f"onnx:{tmp_path / 'network.onnx'}#flat").preprocessing
    assert (rule.size, rule.fit, rule.resize, rule.mean) == (16, "crop", 18, (0.485, 0.456, 0.406))
    assert "network.json" in caplog.text
    assert isinstance(rule, Preprocessing)


def test_the_only_output_is_the_features(tmp_path):
    onnx_file(tmp_path / "network.onnx")
    assert build_backbone(f"onnx:{tmp_path / 'network.onnx'}").feature_dim == 5
    onnx_file(tmp_path / "network.onnx", second=True)
    with pytest.raises(EncoderError, match="has the outputs flat, classes: choose one"):
        build_backbone(f"onnx:{tmp_path / 'network.onnx'}")


def test_onnx_files_that_cannot_be_used_are_refused(tmp_path):
    path = tmp_path / "network.onnx"
    with pytest.raises(EncoderError, match="there is no ONNX file at"):
        build_backbone(f"onnx:{path}")
    path.write_bytes(b"not a network")
    with pytest.raises(EncoderError, match="is not a readable ONNX file"):
        build_backbone(f"onnx:{path}")
    onnx_file(path)
    with pytest.raises(EncoderError, match="has no tensor 'missing'; its last: convolved, positive, flat, classes"):
        build_backbone(f"onnx:{path}#missing")
    with pytest.raises(EncoderError, match="`weights` must be None"):
        build_backbone(f"onnx:{path}", str(tmp_path / "weights.pth"))
    onnx_file(path, images=4)
    with pytest.raises(EncoderError, match="N free or 1"):
        build_backbone(f"onnx:{path}")
    onnx_file(path, size=None)
    (tmp_path / "network.json").unlink()
    with pytest.raises(EncoderError, match="does not say the size of its images"):
        build_backbone(f"onnx:{path}")
    (tmp_path / "network.json").write_text(json.dumps({**RULE, "size": 3}))
    with pytest.raises(EncoderError, match="does not take images of 3 x 3 pixels"):
        build_backbone(f"onnx:{path}")
