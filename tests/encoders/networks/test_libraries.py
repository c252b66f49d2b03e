"""Networks of timm, open_clip and transformers: tiny ones, made here in the library's own format.

Features and preprocessing are compared with what the library itself computes.
"""

from __future__ import annotations

import json
import shutil
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbones import build_backbone, rebuild_backbone
from hashlight.encoders.networks.compat import load_torchvision
from hashlight.encoders.networks.sources import hub
from hashlight.encoders.packing import unpack_bits
from hashlight.encoders.training.train import TrainConfig, train
from tests.encoders.test_encoder import IMAGES

load_torchvision()

# Rounding to 8 bits in between, in levels of 255. A library may round half a pixel of the crop's place the other way,
# so a value is compared with those of the pixels around it too.
ROUNDING = 12

PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 36},
    "do_center_crop": True,
    "crop_size": {"height": 28, "width": 28},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
    "resample": 3,
    "do_convert_rgb": True,
}


def pictures():
    """Smooth pictures of several shapes: waves of different lengths, with edges."""
    found = []
    for number, (height, width) in enumerate([(64, 64), (60, 97), (123, 80), (300, 200), (40, 160)]):
        y, x = np.mgrid[:height, :width] / 17
        waves = [np.sin(x * (1 + channel) / 2 + number) * np.cos(y / (1 + channel)) for channel in range(3)]
        pixels = 128 + 100 * np.stack(waves, axis=-1)
        pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 120)
        found.append(Image.fromarray(pixels.astype(np.uint8)))
    return found


def same_preparation(rule, theirs):
    """Compare with the library's own transform: each value lies among those within one pixel."""
    scale = np.array(rule.std).reshape(3, 1, 1) * 255
    for picture in pictures():
        ours, other = (np.asarray(tensor) * scale for tensor in (rule(picture), theirs(picture)))
        assert ours.shape == other.shape
        around = np.lib.stride_tricks.sliding_window_view(
            np.pad(other, ((0, 0), (1, 1), (1, 1)), "edge"), (3, 3), (1, 2)
        )
        assert (ours > around.min((3, 4)) - ROUNDING).all()
        assert (ours < around.max((3, 4)) + ROUNDING).all()


def saved_and_loaded(backbone, weights, expected, folder):
    """Fit on the pictures, compare features with `expected(inputs)`, and load the encoder again."""
    encoder = train(pictures(), config=TrainConfig(backbone=backbone, weights=weights, method="lsh", bits=16))
    rule = encoder.config.preprocessing
    inputs = torch.stack([rule(picture) for picture in pictures()])
    with torch.inference_mode():
        wanted = expected(inputs).numpy()
    np.testing.assert_allclose(encoder.encode_all(pictures()).features, wanted, rtol=1e-3, atol=1e-4)
    assert encoder.config.pictures.onnx is not None, "it is exported"
    encoder.save(folder / "encoder")
    loaded = HashEncoder.load(folder / "encoder")
    assert (loaded.encode(pictures()) == encoder.encode(pictures())).all()
    # Where there is no exported network, the library builds the module again.
    plain = json.loads((folder / "encoder" / "config.json").read_text())
    again = rebuild_backbone(plain["backbone"], plain["architecture"])
    state = {
        name.removeprefix("backbone."): value
        for name, value in load_file(folder / "encoder" / "model.safetensors").items()
        if name.startswith("backbone.")
    }
    again.network.load_state_dict(state)
    with torch.inference_mode():
        np.testing.assert_allclose(again.network.eval()(inputs).numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert again.preprocessing == rule
    return encoder


TEXTS = ["a red shoe", "a photo of two dogs on a beach", "z", "a red shoe"]
LOUD = ["A  red,   shoe!", "two dogs on a beach", "z"]


def same_texts(encoder, expected, folder):
    """Compare with the library's embeddings, and hash them by the layer that hashes images."""
    found = encoder.encode_texts(TEXTS)
    np.testing.assert_allclose(found.features, expected.numpy(), rtol=1e-4, atol=1e-5)
    state = load_file(folder / "encoder" / "model.safetensors")
    weight, bias = (state[f"hash_layer.{name}"].double() for name in ("weight", "bias"))
    z = (expected.double() @ weight.T + bias).numpy()
    np.testing.assert_allclose(found.projections, z, rtol=1e-3, atol=1e-4)
    assert ((found.projections > 0) == unpack_bits(found.codes, 16)).all()
    assert (found.codes[0] == found.codes[3]).all()
    assert not np.allclose(found.features[0], found.features[1])
    loaded = HashEncoder.load(folder / "encoder")
    assert loaded.takes_texts
    assert (loaded.encode_texts(TEXTS[1:2]).codes == found.codes[1:2]).all()


@pytest.fixture
def offline(monkeypatch):
    """No library tries the network, and each finds an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub comes with the extras")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="needs the extra [timm]")


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_timm(timm, tmp_path, wrapper):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", pretrained=False, num_classes=7)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {wrapper + name: value for name, value in model.state_dict().items()}}, path)
    model.eval().reset_classifier(0)
    encoder = saved_and_loaded("timm:test_vit", str(path), model, tmp_path)
    config = timm.data.resolve_model_data_config(model)
    same_preparation(encoder.config.preprocessing, timm.data.create_transform(**config, is_training=False))
    assert encoder.config.preprocessing.size == config["input_size"][1]


def test_timm_without_the_network_says_what_would_have_to_be_where(timm, offline):
    with pytest.raises(EncoderError, match=r"timm/test_vit.r160_in1k.*HF_HOME.*could they be downloaded.*`weights`"):
        build_backbone("timm:test_vit.r160_in1k")
    with pytest.raises(EncoderError, match="has no model test_vi: `timm"):
        build_backbone("timm:test_vi")


@pytest.fixture
def open_clip():
    return pytest.importorskip("open_clip", reason="needs the extra open-clip")


CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_open_clip(open_clip, tmp_path, mode):
    folder = tmp_path / "tiny-clip"
    folder.mkdir()
    config = {"model_cfg": CLIP, "preprocess_cfg": {"resize_mode": mode, "mean": [0.4, 0.5, 0.6], "size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    model, theirs = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    encoder = saved_and_loaded(
        f"open_clip:local-dir:{folder}", None, lambda x: model.eval().encode_image(x, normalize=True), tmp_path
    )
    assert encoder.config.backbone == "open_clip:tiny-clip"
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        same_texts(encoder, model.encode_text(tokens, normalize=True), tmp_path)
    same_preparation(encoder.config.preprocessing, theirs)


def of_open_clip(open_clip, folder, text):
    """Write a model whose part for texts is this, beside its tokenizer; return it."""
    config = {"model_cfg": {**CLIP, "text_cfg": text}, "preprocess_cfg": {"size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model.eval()


MARKS = {"<s>": 1, "</s>": 2}
HUB_TEXT = {**CLIP["text_cfg"], "vocab_size": 300, "hf_tokenizer_name": "nobody/tokenizer"}


@pytest.mark.parametrize(
    ("options", "side"),
    [({}, "right"), ({"clean": "canonicalize"}, "left"), ({"clean": "lower", "strip_sep_token": True}, "right")],
)
def test_open_clip_with_a_tokenizer_of_transformers(open_clip, transformers, tmp_path, options, side):
    folder = tmp_path / "tiny-clip"
    tokenizer_in(transformers, folder, MARKS, sep_token="</s>", padding_side=side)
    model = of_open_clip(open_clip, folder, {**HUB_TEXT, "tokenizer_kwargs": options})
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(LOUD)
    encoder = saved_and_loaded(
        f"open_clip:local-dir:{folder}", None, lambda x: model.encode_image(x, normalize=True), tmp_path
    )
    shutil.rmtree(folder)
    with torch.inference_mode():
        expected = model.encode_text(tokens, normalize=True)
    np.testing.assert_allclose(encoder.encode_texts(LOUD).features, expected.numpy(), rtol=1e-4, atol=1e-5)
    loaded = HashEncoder.load(tmp_path / "encoder")
    assert (loaded.encode_texts(LOUD).codes == encoder.encode_texts(LOUD).codes).all()
    assert len({code.tobytes() for code in loaded.encode_texts(LOUD).features}) == 3


def test_open_clip_with_a_part_for_texts_of_transformers(open_clip, transformers, tmp_path):
    folder = tmp_path / "tiny-roberta"
    tokenizer_in(transformers, folder, MARKS)
    inner = transformers.RobertaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=40, pad_token_id=2,
    )  # fmt: skip
    inner.save_pretrained(folder / "text")
    text = {
        "hf_model_name": str(folder / "text"), "hf_tokenizer_name": "nobody/tokenizer", "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler", "context_length": 16,
    }  # fmt: skip
    model = of_open_clip(open_clip, folder, text)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    encoder = saved_and_loaded(
        f"open_clip:local-dir:{folder}", None, lambda x: model.encode_image(x, normalize=True), tmp_path
    )
    shutil.rmtree(folder)
    with torch.inference_mode():
        same_texts(encoder, model.encode_text(tokens, normalize=True), tmp_path)


def test_open_clip_without_its_tokenizer_takes_images(open_clip, transformers, offline, tmp_path, caplog):
    folder = tmp_path / "tiny-clip"
    folder.mkdir()
    of_open_clip(open_clip, folder, HUB_TEXT)
    assert build_backbone(f"open_clip:local-dir:{folder}").text is None
    assert "open_clip:tiny-clip will take no texts, because its tokenizer cannot be kept" in caplog.text


def test_open_clip_without_the_network_says_what_would_have_to_be_where(open_clip, offline):
    with pytest.raises(EncoderError, match=r"repository laion/CLIP-ViT-B-32-laion2B.*HF_HOME.*open_clip:ViT-B-32"):
        build_backbone("open_clip:ViT-B-32/laion2b_s34b_b79k")
    with pytest.raises(EncoderError, match="has no model ViT-B-33"):
        build_backbone("open_clip:ViT-B-33/laion2b_s34b_b79k")
    with pytest.raises(EncoderError, match=r"must name its weights, as open_clip:ViT-B-32/PRETRAINED, one of .*laion"):
        build_backbone("open_clip:ViT-B-32")


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="needs the extra transformers")


def written(model, folder, **processor):
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **processor}))


def their_preparation(transformers, folder):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return lambda picture: processor(picture, return_tensors="pt")["pixel_values"][0]


def test_hf_dinov2(transformers, tmp_path):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model, folder = transformers.Dinov2Model(config), tmp_path / "tiny-dino"
    written(model, folder)
    encoder = saved_and_loaded(f"hf:{folder}", None, lambda x: model(x).pooler_output, tmp_path)
    assert encoder.config.backbone == "hf:tiny-dino"
    same_preparation(encoder.config.preprocessing, their_preparation(transformers, folder))


# CLIP's marks of a text's start and end: its model takes what the largest number, which is the end's, stands at.
CLIPS_MARKS = {"<s>": 30, "</s>": 31}


def tokenizer_in(transformers, folder, marks, **options):
    """Write a tokenizer of the letters, with two marks, beside a model."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = "abcdefghijklmnopqrstuvwxyz "
    vocabulary = {letter: number for number, letter in enumerate(letters, start=3)} | {"?": 0, **marks}
    opened = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    opened.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    opened.post_processor = tokenizers.processors.TemplateProcessing("<s> $A </s>", special_tokens=list(marks.items()))
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=opened, unk_token="?", pad_token="</s>", **options)
    wrapped.save_pretrained(folder)
    return wrapped


def clip_of(transformers):
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    numbers = {"bos_token_id": CLIPS_MARKS["<s>"], "eos_token_id": CLIPS_MARKS["</s>"]}
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 300, "max_position_embeddings": 16, **numbers},
        vision_config={**tower, "image_size": 28, "patch_size": 14},
        projection_dim=24,
    )
    return transformers.CLIPModel(config)


def test_hf_clip(transformers, tmp_path):
    torch.manual_seed(0)
    model, folder = clip_of(transformers), tmp_path / "tiny-clip"
    written(model, folder, image_processor_type="CLIPImageProcessor", size={"shortest_edge": 28})
    tokenizer = tokenizer_in(transformers, folder, CLIPS_MARKS)

    def expected(inputs):
        embedding = model.visual_projection(model.vision_model(inputs).pooler_output)
        return embedding / embedding.norm(dim=-1, keepdim=True)

    encoder = saved_and_loaded(f"hf:{folder}", None, expected, tmp_path)
    same_preparation(encoder.config.preprocessing, their_preparation(transformers, folder))
    with torch.inference_mode():
        rows = [tokenizer(text, return_tensors="pt", truncation=True, max_length=16)["input_ids"] for text in TEXTS]
        pooled = torch.cat([model.text_model(row).pooler_output for row in rows])
        embedding = model.text_projection(pooled)
    same_texts(encoder, embedding / embedding.norm(dim=-1, keepdim=True), tmp_path)


@pytest.fixture
def silent_hub(monkeypatch):
    """The hub's client may go to the network, where nobody answers."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub comes with the extras")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:{1}".format(*silent.getsockname()))
        yield constants


def test_a_hub_that_does_not_answer_is_not_waited_for(timm, silent_hub, monkeypatch):
    """Its client would try for half a minute: it is not called again."""
    offline, create = [], timm.create_model

    def create_model(*args, **options):
        offline.append(silent_hub.HF_HUB_OFFLINE)
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    for told in ("127.0.0.1:[0-9]+ (did not answer|cannot be reached)", "127.0.0.1:9 cannot be reached"):
        with pytest.raises(EncoderError, match=rf"timm/test_vit.r160_in1k.*HF_HOME.*{told}.*`weights`"):
            build_backbone("timm:test_vit.r160_in1k")
        silent_hub.ENDPOINT = "http://127.0.0.1:9"
    assert offline == [True, True]


def test_what_is_in_the_cache_needs_no_hub(transformers, silent_hub, tmp_path, monkeypatch):
    torch.manual_seed(0)
    repository = tmp_path / "models--someone--tiny-clip"
    folder = repository / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    written(clip_of(transformers), folder, image_processor_type="CLIPImageProcessor", size={"shortest_edge": 28})
    tokenizer_in(transformers, folder, CLIPS_MARKS)
    monkeypatch.setattr(silent_hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_refuse_silent", lambda endpoint: pytest.fail(f"{endpoint} was asked"))
    backbone = build_backbone("hf:someone/tiny-clip")
    assert backbone.text is not None
    assert not silent_hub.HF_HUB_OFFLINE


def test_a_network_that_is_trained_no_longer_takes_texts(transformers, tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "tiny-clip"
    written(clip_of(transformers), folder, image_processor_type="CLIPImageProcessor", size={"shortest_edge": 28})
    tokenizer_in(transformers, folder, CLIPS_MARKS)
    config = TrainConfig(backbone=f"hf:{folder}", bits=8, epochs=1, batch_size=4)
    encoder = train(pictures(), np.array([0, 0, 1, 1, 1]), config)
    assert not encoder.takes_texts
    with pytest.raises(EncoderError, match=r"takes no texts: fit one .*open_clip:ViT-B-32"):
        encoder.encode_texts(["a red shoe"])
    encoder.save(tmp_path / "encoder")
    assert (HashEncoder.load(tmp_path / "encoder").encode(pictures()) == encoder.encode(pictures())).all()
    assert not any(name.startswith("text.") for name in load_file(tmp_path / "encoder" / "model.safetensors"))


def test_what_is_not_texts_is_refused():
    encoder = train(IMAGES[:8], np.arange(8) % 2, TrainConfig(bits=8, epochs=1, warmup_epochs=0, batch_size=4))
    with pytest.raises(TypeError, match="put one text in a list"):
        encoder.encode_texts("a red shoe")
    with pytest.raises(EncoderError, match="takes no texts"):
        encoder.encode_texts(["a red shoe"])


def test_hf_siglip_stretches(transformers, tmp_path):
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.SiglipConfig(
        text_config={**tower, "vocab_size": 300, "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 28, "patch_size": 14},
    )
    model, folder = transformers.SiglipModel(config), tmp_path / "tiny-siglip"
    kind = {"image_processor_type": "SiglipImageProcessor", "do_center_crop": None, "crop_size": None}
    written(model, folder, **kind, size={"height": 28, "width": 28}, resample=2)

    def expected(inputs):
        embedding = model.vision_model(inputs).pooler_output
        return embedding / embedding.norm(dim=-1, keepdim=True)

    encoder = saved_and_loaded(f"hf:{folder}", None, expected, tmp_path)
    assert encoder.config.preprocessing.fit == "stretch"
    same_preparation(encoder.config.preprocessing, their_preparation(transformers, folder))


def test_hf_refuses_what_it_cannot_prepare(transformers, offline, tmp_path):
    config = transformers.Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    folder = tmp_path / "tiny-dino"
    written(transformers.Dinov2Model(config), folder, do_center_crop=False)
    with pytest.raises(EncoderError, match="prepares images in a way that is not supported"):
        build_backbone(f"hf:{folder}")
    with pytest.raises(EncoderError, match=r"repository facebook/dinov2-none.*HF_HOME.*hf:FOLDER"):
        build_backbone("hf:facebook/dinov2-none")
