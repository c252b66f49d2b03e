"""Encoders whose network is exported: the codes of torch, from ONNX Runtime, without torch."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import lzma
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from hashlight.encoders.config import EncoderConfig, Pictures
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbones import build_backbone
from hashlight.encoders.networks.heads import build_head
from hashlight.encoders.networks.model import HashModel
from hashlight.encoders.packing import unpack_bits
from hashlight.encoders.runtimes import with_onnx
from hashlight.encoders.runtimes.with_onnx import OnnxRuntime
from hashlight.encoders.training.train import TrainConfig, train
from tests.encoders.test_encoder import IMAGES, photographs, same

GOLDEN = Path(__file__).parents[2] / "data" / "encoder1"
FILES = ["config.json", "model.onnx", "model.safetensors"]


def build(name="small-cnn", weights=None, *, bits=48, head="linear"):
    """Return an encoder in torch, and its model."""
    torch.manual_seed(0)
    backbone = build_backbone(name, weights)
    anchors = 20 if head == "kernel" else 0
    hash_layer = build_head(head, backbone.feature_dim, bits, anchors)
    with torch.no_grad():
        for parameter in hash_layer.parameters():
            parameter.normal_(std=0.1)
    model = HashModel(backbone, bits, hash_layer)
    config = EncoderConfig(
        bits=bits,
        beta=10.0,
        input=Pictures(backbone=name, batch_size=backbone.batch_size, preprocessing=backbone.preprocessing),
        head=head,
        anchors=anchors,
    )
    return HashEncoder(config, copy.deepcopy(model)), model


def prepared(encoder, images):
    return np.stack([encoder.config.preprocessing.pixels(image) for image in images])


def outputs_of(encoder, model, pixels_NHWC):
    """Features and z by plain numpy and torch, in double precision."""
    rule = encoder.config.preprocessing
    image_NHWC = (pixels_NHWC / 255 - np.array(rule.mean)) / np.array(rule.std)
    with torch.inference_mode():
        features, z = model.double().eval()(torch.from_numpy(image_NHWC).permute(0, 3, 1, 2))
    return features.numpy(), z.numpy()


@pytest.fixture(scope="module")
def exported():
    encoder, _ = build()
    return encoder.exported(IMAGES[:32, :, :, None])


@pytest.fixture
def folder(exported, tmp_path):
    exported.save(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.mark.parametrize(
    ("name", "weights", "head"),
    [
        ("small-cnn", None, "linear"),
        ("small-cnn", None, "kernel"),
        ("small-cnn", None, "spectral"),
        ("efficientnet-lite0", "imagenet", "linear"),
    ],
)
def test_bits_equal_torchs_but_where_an_output_is_next_to_zero(name, weights, head):
    encoder, model = build(name, weights, head=head)
    pixels = prepared(encoder, [encoder_image(encoder, photo) for photo in photographs(8)])
    exported = encoder.exported(pixels)
    features, z = outputs_of(encoder, model, pixels)
    found = exported.encode_pixels(pixels)
    np.testing.assert_allclose(found.features, features, rtol=1e-3, atol=1e-4 * np.abs(features).max())
    bits = unpack_bits(found.codes, 48)
    is_clear = np.abs(z) > 1e-4 * np.sqrt((z**2).mean())
    assert is_clear.mean() > 0.99
    assert (bits == (z > 0))[is_clear].all()
    differs = bits != unpack_bits(encoder.encode_pixels(pixels).codes, 48)
    said = exported.config.input.onnx
    assert (said.images, said.bits, said.near_zero) == (8, 8 * 48, differs.sum())
    assert exported.fingerprint != encoder.fingerprint


def encoder_image(encoder, photo):
    image = Image.fromarray(photo)
    return image.convert("L") if encoder.config.preprocessing.channels == 1 else image


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 7, 256])
def test_the_same_bits_whatever_the_batch_and_the_threads(exported, monkeypatch, batch, num_threads):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    expected = exported.encode_all(IMAGES)
    monkeypatch.setenv("OMP_NUM_THREADS", str(num_threads))
    parts = [exported.encode_all(IMAGES[i : i + batch]) for i in range(0, 256, batch)]
    assert same(expected, [np.concatenate(columns) for columns in zip(*parts, strict=True)])


def runtime_of(network, bits=48):
    return OnnxRuntime(network, size=28, channels=1, bits=bits)


def network_of(exported):
    return exported._network


def test_the_same_bits_whatever_batch_was_chosen(exported, monkeypatch):
    monkeypatch.setattr(with_onnx, "_MAX_SHARED_S", 0.0)
    alone = runtime_of(network_of(exported))
    assert alone.batch_size == 1
    monkeypatch.setattr(with_onnx, "_MAX_SHARED_S", float("inf"))
    monkeypatch.setattr(with_onnx, "_MIN_GAIN", 0.0)
    together = runtime_of(network_of(exported))
    assert together.batch_size == 32
    pixels = IMAGES[:50, :, :, None]
    assert same(alone.run(50, pixels.__getitem__), together.run(50, pixels.__getitem__))


def mixing_network():
    """A network in which each image's outputs have the sum over its batch."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers", "axes"], ["sums"], keepdims=1),
        helper.make_node("ReduceSum", ["sums", "first"], ["all"], keepdims=1),
        helper.make_node("Add", ["sums", "all"], ["four"]),
        helper.make_node("Reshape", ["four", "shape"], ["features"]),
        helper.make_node("Identity", ["features"], ["z"]),
    ]
    constants = {"axes": [1, 2, 3], "first": [0], "shape": [-1, 1]}
    tensors = [helper.make_tensor(name, TensorProto.INT64, [len(value)], value) for name, value in constants.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["images", 1]) for name in ("features", "z")]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["images", 28, 28, 1])
    graph = helper.make_graph(nodes, "mixing", [pixels], outputs, tensors)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def test_a_batch_that_changes_numbers_is_not_chosen(monkeypatch):
    monkeypatch.setattr(with_onnx, "_MAX_SHARED_S", float("inf"))
    monkeypatch.setattr(with_onnx, "_MIN_GAIN", 0.0)
    assert runtime_of(mixing_network(), bits=1).batch_size == 1


def test_an_exported_encoder_is_saved_and_loaded(exported, folder, tmp_path):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    loaded = HashEncoder.load(folder)
    assert (loaded.fingerprint, loaded.config) == (exported.fingerprint, exported.config)
    assert same(loaded.encode_all(IMAGES[:40]), exported.encode_all(IMAGES[:40]))
    loaded.save(tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert exported.fingerprint == build()[0].exported(IMAGES[:32, :, :, None]).fingerprint


@pytest.mark.parametrize("is_exported", [False, True])
def test_an_encoder_goes_to_another_process(exported, is_exported):
    encoder = exported if is_exported else build()[0]
    copied = pickle.loads(pickle.dumps(encoder))
    assert copied.fingerprint == encoder.fingerprint
    assert same(copied.encode_all(IMAGES[:9]), encoder.encode_all(IMAGES[:9]))


def test_another_fit_is_another_encoder_with_the_same_network(exported):
    fitted = exported.with_fit("pad")
    assert (fitted.config.preprocessing.fit, fitted.files) == ("pad", exported.files)
    assert fitted.fingerprint != exported.fingerprint
    wide = np.zeros((28, 84), np.uint8)
    wide[:, 28:56] = IMAGES[0]
    square = np.full((28, 28), round(255 * 0.286), np.uint8)
    square[9:18] = np.asarray(Image.fromarray(wide).resize((28, 9), Image.Resampling.BILINEAR))
    assert (fitted.encode([wide]) == exported.encode([square])).all()
    assert (fitted.encode([wide]) != exported.encode([wide])).any()


def test_it_runs_in_torch_where_it_is_told_to(exported, folder):
    """A GPU runs torch: here the processor does, by a name that is not the usual one."""
    loaded, in_torch = HashEncoder.load(folder), build()[0]
    assert same(loaded.to("cpu:0").encode_all(IMAGES[:40]), in_torch.encode_all(IMAGES[:40]))
    assert not same(exported.encode_all(IMAGES[:40]), in_torch.encode_all(IMAGES[:40]))
    assert same(loaded.to("cpu").encode_all(IMAGES[:40]), exported.encode_all(IMAGES[:40]))


WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "sklearn", "scipy", "onnx"]))
import numpy as np
from hashlight import HashEncoder
images = np.random.default_rng(0).integers(0, 256, (256, 28, 28), dtype=np.uint8)
print(HashEncoder.load(sys.argv[1]).encode(images[:20]).tolist())
"""


def test_it_encodes_without_torch(exported, folder):
    command = [sys.executable, "-P", "-c", WITHOUT_TORCH, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == exported.encode(IMAGES[:20]).tolist()


def rewrite(folder, network):
    """Put another network into an encoder, under hashes that are right."""
    config = json.loads((folder / "config.json").read_bytes())
    del config["fingerprint"]
    config["onnx"]["sha256"] = hashlib.sha256(network).hexdigest()
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
    config["fingerprint"] = hashlib.sha256(hashlib.sha256(canonical).digest() + weights).hexdigest()
    (folder / "model.onnx").write_bytes(network)
    (folder / "config.json").write_text(json.dumps(config))


def flip(folder):
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-1000] ^= 4
    (folder / "model.onnx").write_bytes(data)


DAMAGE = {
    "gone": (lambda folder: (folder / "model.onnx").unlink(), "model.onnx cannot be read"),
    "flipped byte": (flip, r"is damaged: config.json says SHA-256 \w{12} of model.onnx, which has \w{12}"),
    "no network": (lambda folder: rewrite(folder, b"nothing"), "the exported network is not readable"),
    "other bits": (lambda folder: rewrite(folder, mixing_network()), r"shapes \(1, 1\) and \(1, 1\), expected"),
    "other input": (lambda folder: rewrite(folder, renamed(folder)), r"has \[\('pictures', .*expected \[\('pixels'"),
}


def renamed(folder):
    model = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
    for node in model.graph.node:
        for number, name in enumerate(node.input):
            node.input[number] = "pictures" if name == "pixels" else name
    model.graph.input[0].name = "pictures"
    return model.SerializeToString()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_network_is_refused(folder, kind):
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(EncoderError, match=message) as raised:
        HashEncoder.load(folder)
    assert str(folder) in str(raised.value)


def test_a_network_with_other_outputs_is_refused(monkeypatch):
    """Whatever goes wrong in an export is seen: here torch exports a network whose hash layer is negated."""
    encoder, _ = build()
    export = torch.onnx.export

    def export_negated(model, *args, **options):
        model = copy.deepcopy(model)
        with torch.no_grad():
            model.model.hash_layer.weight[3].neg_()
        return export(model, *args, **options)

    monkeypatch.setattr(torch.onnx, "export", export_negated)
    with pytest.raises(EncoderError, match=r"something else: \d+ of 1536 outputs for 32 images differ"):
        encoder.exported(IMAGES[:32, :, :, None])


def test_training_exports_and_without_an_export_torch_encodes(monkeypatch, caplog):
    config = TrainConfig(bits=16, epochs=1, warmup_epochs=0)
    labels = np.arange(64) % 4
    exported = train(IMAGES[:64], labels, config)
    assert (exported.config.input.onnx.images, caplog.text) == (32, "")

    def refuse(*args, **options):
        raise torch.onnx.errors.UnsupportedOperatorError("aten::odd", 17, None)

    monkeypatch.setattr(torch.onnx, "export", refuse)
    in_torch = train(IMAGES[:64], labels, config)
    assert "will run in torch, which is slower on processors: the network cannot be exported to ONNX" in caplog.text
    pictures = dataclasses.replace(exported.config.input, onnx=None)
    assert in_torch.config == dataclasses.replace(exported.config, input=pictures)
    assert in_torch.encode(IMAGES[:64]).shape == (64, 1)


def test_an_encoder_from_before_exports_has_the_same_fingerprint_and_codes(tmp_path):
    shutil.copy(GOLDEN / "config.json", tmp_path)
    weights = lzma.decompress((GOLDEN / "model.safetensors.xz").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(weights)
    encoder = HashEncoder.load(tmp_path)
    assert encoder.fingerprint == "3f769de05b6359cfb3c834a91a91636c7bb16c591deb02e707803cd7faf33f87"
    images = np.random.default_rng(8).integers(0, 256, (16, 4, 4), dtype=np.uint8).repeat(7, axis=1).repeat(7, axis=2)
    # No output of these images is within 1 % of zero, so that rounding does not matter.
    assert (encoder.encode(images) == np.load(GOLDEN / "codes.npy")).all()
    encoder.save(tmp_path / "again")
    said = [json.loads((folder / "config.json").read_bytes()) for folder in (tmp_path / "again", GOLDEN)]
    assert said[0] == said[1]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
    again = encoder.exported(images[..., None])
    assert (again.encode(images) == np.load(GOLDEN / "codes.npy")).all()
