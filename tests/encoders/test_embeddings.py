"""Encoders of embeddings: exact signs, fits to streams, and the artifact; the oracles are fractions and plain numpy."""

import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from hashlight.encoders.config import Embeddings, EncoderConfig, Pictures
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.fits import itq
from hashlight.encoders.fits.itq import ITQ
from hashlight.encoders.fits.lsh import LSH
from hashlight.encoders.fits.sh import SH
from hashlight.encoders.fits.streaming import Moments, Sample
from hashlight.encoders.networks.backbones import SMALL_CNN, build_backbone
from hashlight.encoders.networks.model import HashModel
from hashlight.encoders.packing import unpack_bits
from hashlight.encoders.vectors import EmbeddingHead


def clustered(rows, dims, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, dims))
    x = centres[rng.integers(0, 20, rows)] + 0.7 * rng.standard_normal((rows, dims)) + 0.5
    return x.astype(np.float32)


def exact_bits(x_ND, weight_DB, bias_B, scale_N=None):
    """The signs of exact sums, by fractions."""
    scale_N = np.ones(len(x_ND)) if scale_N is None else scale_N
    bits = np.zeros((len(x_ND), weight_DB.shape[1]), np.bool_)
    for row, (x_D, scale) in enumerate(zip(x_ND.tolist(), scale_N.tolist(), strict=True)):
        for bit in range(weight_DB.shape[1]):
            products = (Fraction(a) * Fraction(b) for a, b in zip(x_D, weight_DB[:, bit].tolist(), strict=True))
            bits[row, bit] = sum(products) + Fraction(scale) * Fraction(float(bias_B[bit])) > 0
    return bits


def nearly_cancelling(rows, dims, bits, seed=0):
    """Embeddings and weights whose products cancel down to the last digits of single precision, or of double."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, dims)).astype(np.float32)
    weight = rng.standard_normal((dims, bits)).astype(np.float32)
    for row in range(rows):
        bit = row % bits
        rest = x[row, 1:].astype(np.float64) @ weight[1:, bit].astype(np.float64)
        x[row, 0] = -rest / np.float64(weight[0, bit])
    return x, weight


@pytest.mark.parametrize("normalise", [False, True])
def test_bits_are_the_signs_of_exact_sums_where_single_precision_is_wrong(normalise):
    x, weight = nearly_cancelling(60, 33, 20)
    head = EmbeddingHead("linear", weight, np.zeros(20, np.float32), normalise)
    bits = unpack_bits(head.encode(x), 20)
    assert (bits == exact_bits(x, weight, head.bias)).all()
    rounded = np.cumsum(x[:, :, None] * weight, axis=1, dtype=np.float32)[:, -1] > 0
    assert (rounded != bits).sum() > 5


def test_bits_are_exact_where_double_precision_is_wrong_too():
    x = np.array([[2.0**60, 1.0, -(2.0**60), 2.0**-30], [2.0**60, 1.0, -(2.0**60), -(2.0**-30)]], np.float32)
    weight = np.array([[1, 1], [0, -1], [1, 1], [1, 1]], np.float32)
    head = EmbeddingHead("linear", weight, np.zeros(2, np.float32), normalise=False)
    assert unpack_bits(head.encode(x), 2).tolist() == [[True, False], [False, False]]
    assert (exact_bits(x, weight, head.bias) == unpack_bits(head.encode(x), 2)).all()


def test_a_sum_that_is_exactly_zero_gives_no_bit():
    head = EmbeddingHead("linear", np.array([[1.0], [1.0]], np.float32), np.array([-0.0], np.float32), normalise=False)
    assert head.encode(np.array([[3.0, -3.0], [3.0, -2.9999998]], np.float32))[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30, 3e38])
def test_embeddings_at_the_ends_of_single_precision_keep_their_signs(size):
    x, weight = nearly_cancelling(12, 9, 6)
    x = (x / np.abs(x).max() * size).astype(np.float32)
    head = EmbeddingHead("linear", weight, np.zeros(6, np.float32), normalise=False)
    assert (unpack_bits(head.encode(x), 6) == exact_bits(x, weight, head.bias)).all()


def test_a_bias_is_scaled_by_the_length_of_what_is_normalised():
    x = clustered(50, 17)
    rng = np.random.default_rng(1)
    weight, bias = rng.standard_normal((17, 9)).astype(np.float32), rng.standard_normal(9).astype(np.float32)
    head = EmbeddingHead("linear", weight, bias, normalise=True)
    lengths = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1)).astype(np.float32)
    bits = unpack_bits(head.encode(x), 9)
    assert (bits == exact_bits(x, weight, bias, lengths)).all()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert ((unit @ weight + bias > 0) == bits).mean() > 0.99
    assert (bits != unpack_bits(EmbeddingHead("linear", weight, bias, normalise=False).encode(x), 9)).any()


@pytest.fixture(scope="module", params=["itq", "lsh", "sh"])
def encoder(request):
    return HashEncoder.fit_embeddings(clustered(3000, 40), bits=24, method=request.param, seed=3)


@pytest.mark.parametrize("batch", [1, 7, 2049])
def test_a_code_does_not_depend_on_the_batch(encoder, batch):
    x = clustered(2500, 40, seed=1)
    together = encoder.encode_embeddings(x)
    parts = [encoder.encode_embeddings(x[start : start + batch]) for start in range(0, 200, batch)]
    assert (np.concatenate(parts)[:200] == together[:200]).all()
    order = np.random.default_rng(0).permutation(len(x))
    assert (encoder.encode_embeddings(x[order]) == together[order]).all()
    assert (encoder.encode_embeddings(np.asfortranarray(x)) == together).all()
    assert len(np.unique(together)) > 100


def test_codes_are_the_signs_of_the_relaxed_codes_and_features_are_normalised(encoder):
    x = clustered(300, 40, seed=2)
    output = encoder.encode_embeddings_all(x)
    assert (output.codes == encoder.encode_embeddings(x)).all()
    assert ((output.relaxed > 0) == unpack_bits(output.codes, 24)).mean() > 0.999
    assert (output.relaxed.dtype, output.features.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(output.features, x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-5)
    assert encoder.encode_embeddings(x[:0]).shape == (0, 1)
    for kind in (np.float16, np.float64):
        assert (encoder.encode_embeddings(x.astype(kind)) == encoder.encode_embeddings(x)).mean() > 0.9


def test_torch_gives_the_same_bits_but_next_to_zero():
    encoder = HashEncoder.fit_embeddings(clustered(2000, 64), bits=48, normalise=False)
    x = clustered(500, 64, seed=5)
    z = torch.nn.functional.linear(
        torch.from_numpy(x), torch.from_numpy(encoder.head.weight.T.copy()), torch.from_numpy(encoder.head.bias)
    ).numpy()
    bits = unpack_bits(encoder.encode_embeddings(x), 48)
    assert ((z > 0) == bits)[np.abs(z) > 1e-3].all()


# Fits to streams.


class Batches:
    """A stream whose batches have other sizes than those of an array."""

    def __init__(self, x, size):
        self.x, self.size, self.passes = x, size, 0

    dims = property(lambda self: self.x.shape[1])

    def __iter__(self):
        self.passes += 1
        return iter(np.array_split(self.x, len(self.x) // self.size))


def test_moments_are_those_of_all_rows_however_large_the_mean():
    x = clustered(10_000, 12).astype(np.float64) + 1e6
    moments = Moments(12)
    for part in np.array_split(x, 7):
        moments.add(part)
    assert moments.rows == 10_000
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T, bias=True), rtol=1e-7)


def test_a_sample_does_not_depend_on_the_batches_and_is_drawn_evenly():
    x = np.arange(20_000, dtype=np.float32)[:, None]
    samples = []
    for parts in (1, 3, 117):
        sample = Sample(500, 1, seed=1)
        for part in np.array_split(x, parts):
            sample.add(part)
        samples.append(sample.rows[:, 0])
    assert (samples[0] == samples[1]).all()
    assert (samples[0] == samples[2]).all()
    assert (np.diff(samples[0]) > 0).all()
    assert len(samples[0]) == 500
    assert (np.histogram(samples[0], 4, (0, 20_000))[0] > 90).all()
    few = Sample(500, 1, seed=1)
    few.add(x[:30])
    assert few.rows[:, 0].tolist() == list(range(30))


@pytest.mark.parametrize("method", [ITQ, LSH, SH])
def test_a_fit_to_a_stream_is_the_fit_to_all_rows(method):
    x = clustered(3000, 16)
    whole, streamed = method.fit(x, 8, seed=2), method.fit_stream(Batches(x, 77), 8, seed=2)
    y = clustered(500, 16, seed=9)
    np.testing.assert_allclose(np.abs(streamed.project(y)), np.abs(whole.project(y)), atol=1e-6)


def test_the_components_of_a_stream_are_those_of_all_rows_and_the_rotation_of_a_sample(monkeypatch):
    monkeypatch.setattr(itq, "ROTATION_ROWS", 400)
    x = clustered(6000, 16)
    hasher = ITQ.fit_stream(Batches(x, 500), 6, seed=0)
    expected = PCA(6).fit(x.astype(np.float64)).components_.T
    weight = hasher.weight
    np.testing.assert_allclose(weight.T @ weight, np.eye(6), atol=1e-9)
    np.testing.assert_allclose(expected @ (expected.T @ weight), weight, atol=1e-6)


def test_one_pass_is_enough_for_itq():
    batches = Batches(clustered(2000, 16), 100)
    HashEncoder.fit_embeddings(batches, bits=8, method="itq")
    assert batches.passes == 1


def test_a_fit_to_a_mapped_file_is_that_to_the_array(tmp_path):
    x = clustered(5000, 32)
    np.save(tmp_path / "x.npy", x)
    mapped = HashEncoder.fit_embeddings(np.load(tmp_path / "x.npy", mmap_mode="r"), bits=16)
    assert mapped.fingerprint == HashEncoder.fit_embeddings(x, bits=16).fingerprint
    assert mapped.config.training["settings"]["rows"] == 5000


def test_more_bits_than_dimensions_only_by_methods_that_can():
    x = clustered(300, 16)
    with pytest.raises(ValueError, match="at most 16 for ITQ on 16-dimensional features, got 17"):
        HashEncoder.fit_embeddings(x, bits=17)
    assert HashEncoder.fit_embeddings(x, bits=1024, method="lsh").encode_embeddings(x).shape == (300, 16)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("hashnet", "one of lsh, sh, itq, neighbours for embeddings, got hashnet, which trains a network on images"),
        ("itq-cca", "got itq-cca, which reads the classes"),
        ("magic", "one of lsh, sh, itq, neighbours for embeddings, got 'magic'"),
    ],
)
def test_a_method_that_cannot_be_fitted_to_embeddings_is_refused(method, reason):
    with pytest.raises(ValueError, match=reason):
        HashEncoder.fit_embeddings(clustered(50, 16), bits=8, method=method)


def test_embeddings_without_a_code_are_refused_by_row():
    x = clustered(50, 16)
    encoder = HashEncoder.fit_embeddings(x, bits=8)
    for row, value, reason in ((30, np.nan, "1 of its 16 numbers are nan"), (3, np.inf, "1 of its 16 numbers")):
        bad = x.copy()
        bad[row, 5] = value
        for use in (encoder.encode_embeddings, lambda e: HashEncoder.fit_embeddings(e, bits=8)):
            with pytest.raises(
                ValueError, match=rf"1 of the `embeddings` have no code, the first in row {row}: {reason}"
            ):
                use(bad)
    bad = x.copy()
    bad[[7, 9]] = 0
    with pytest.raises(ValueError, match="2 of the `embeddings` have no code, the first in row 7: its length is 0"):
        encoder.encode_embeddings(bad)
    plain = HashEncoder.fit_embeddings(bad, bits=8, normalise=False)
    assert plain.encode_embeddings(bad)[7] == plain.encode_embeddings(bad)[9]
    beyond = x.astype(np.float64)
    beyond[4, 0] = 1e39
    with pytest.raises(ValueError, match="row 4: 1 of its 16 numbers are nan or infinite"):
        encoder.encode_embeddings(beyond)


def test_what_is_no_array_of_embeddings_is_refused():
    encoder = HashEncoder.fit_embeddings(clustered(50, 16), bits=8)
    with pytest.raises(ValueError, match=r"shape \(N, 16\), got \(50, 15\)"):
        encoder.encode_embeddings(clustered(50, 15))
    with pytest.raises(ValueError, match=r"shape \(N, 16\), got \(16,\)"):
        encoder.encode_embeddings(clustered(50, 16)[0])
    with pytest.raises(TypeError, match="array of floats, got int64"):
        encoder.encode_embeddings(np.ones((3, 16), np.int64))
    with pytest.raises(TypeError, match="array of floats, got list"):
        encoder.encode_embeddings([[1.0] * 16])
    with pytest.raises(ValueError, match="at least one row to fit, got none"):
        HashEncoder.fit_embeddings(clustered(50, 16)[:0], bits=8)


# The artifact.


def test_the_artifact_says_what_it_expects_and_comes_back_the_same(encoder, tmp_path):
    encoder.save(tmp_path / "e")
    loaded = HashEncoder.load(tmp_path / "e")
    said = json.loads((tmp_path / "e" / "config.json").read_text())
    assert said["embeddings"] == {"dims": 40, "normalise": True}
    assert "backbone" not in said
    assert loaded.config == encoder.config
    assert loaded.fingerprint == encoder.fingerprint
    assert loaded.feature_dim == 40
    assert repr(loaded).startswith(f"HashEncoder({encoder.config.method} on embeddings of 40 numbers, 24 bits")
    x = clustered(100, 40, seed=4)
    assert (loaded.encode_embeddings(x) == encoder.encode_embeddings(x)).all()


def test_the_fingerprint_covers_the_normalisation():
    x = clustered(200, 16)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    prints = {HashEncoder.fit_embeddings(x, bits=8, normalise=flag).fingerprint for flag in (True, False)}
    assert len(prints) == 2


def test_a_damaged_or_nonsensical_artifact_is_refused(tmp_path):
    encoder = HashEncoder.fit_embeddings(clustered(200, 16), bits=8)
    encoder.save(tmp_path / "e")
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    config["embeddings"]["normalise"] = False
    (tmp_path / "e" / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="is damaged"):
        HashEncoder.load(tmp_path / "e")
    with pytest.raises(ValueError, match="must be what the configuration says"):
        HashEncoder(EncoderConfig(bits=9, beta=1.0, input=encoder.config.input), encoder.head)
    with pytest.raises(ValueError, match="must be linear or spectral, got kernel"):
        EncoderConfig(bits=8, beta=1.0, input=Embeddings(dims=4, normalise=True), head="kernel", anchors=3)
    with pytest.raises(ValueError, match="`dims` must be 1 to 65536, got 0"):
        Embeddings(dims=0, normalise=True)
    with pytest.raises(TypeError, match="`normalise` must be True or False, got 1"):
        Embeddings(dims=3, normalise=1)


def test_images_and_embeddings_are_not_taken_for_each_other(tmp_path):
    encoder = HashEncoder.fit_embeddings(clustered(200, 16), bits=8)
    image = np.zeros((1, 28, 28), np.uint8)
    for use in (
        encoder.encode,
        encoder.encode_all,
        encoder.encode_pixels,
        lambda _: encoder.to("cpu"),
        lambda _: encoder.save_backbone(tmp_path / "b.safetensors"),
        lambda _: encoder.config.preprocessing,
    ):
        with pytest.raises(EncoderError, match="takes embeddings of 16 numbers, not images: give it embeddings"):
            use(image)
    backbone = build_backbone(SMALL_CNN)
    pictures = Pictures(backbone=SMALL_CNN, batch_size=4, preprocessing=backbone.preprocessing)
    images = HashEncoder(EncoderConfig(bits=8, beta=1.0, input=pictures), HashModel(backbone, 8))
    for use in (images.encode_embeddings, images.encode_embeddings_all, lambda _: images.head):
        with pytest.raises(EncoderError, match="takes images, not embeddings: give it images, or fit an encoder"):
            use(clustered(3, 16))


ENCODE = """
import sys
sys.modules.update(dict.fromkeys(["torch", "PIL", "torchvision", "sklearn", "scipy", "ray"]))
import numpy as np
from hashlight import HashEncoder
print(HashEncoder.load(sys.argv[1]).encode_embeddings(np.load(sys.argv[2])).tolist())
"""


def test_encoding_needs_neither_torch_nor_pillow(encoder, tmp_path):
    x = clustered(5, 40, seed=4)
    encoder.save(tmp_path / "e")
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, "-c", ENCODE, tmp_path / "e", tmp_path / "x.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == encoder.encode_embeddings(x).tolist()
