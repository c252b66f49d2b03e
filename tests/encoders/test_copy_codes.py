"""Copy codes: those of their own programs, the same for copies, and no others."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from hashlight.encoders.encoder import COPY_CODE_NAMES, HashEncoder
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.runtimes.with_dct import COPY_CODES

# Of `picture(seed)`, by pdqhash 0.2.8 and ImageHash 4.3.2.
PDQ = (
    "faabfa8aeaabfa8aaaabaa8aaaabaa8aaaab55155554fa950014aab5003e5569",
    "ebfda8ababeda8ababa5a8abaaa5555441da685401faa85400faa95403ff56a8",
    "beaacaabaeaa8aab5555455415554354155542d4175542b407f54aae1fffb554",
)
PHASH = ("95cbbed494d094d4", "f59a75d52a952095", "d595ff82d590d094")


def picture(seed):
    """Return a picture (512, 512, 3) that depends on nothing but arithmetic."""
    y, x = np.mgrid[:512, :512]
    planes = [
        128
        + 60 * np.sin((seed + 2) * x / (41 + 7 * c) + y * c / 83)
        + 60 * np.cos((seed + 3) * y / 67 - x * x / 90_000)
        for c in range(3)
    ]
    return Image.fromarray(np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8))


def bits_of(name, *images):
    encoder = HashEncoder.copy_code(name)
    bytes_NB = np.ascontiguousarray(encoder.encode(images)).view(np.uint8)
    return np.unpackbits(bytes_NB, axis=1, bitorder="little")[:, : encoder.bits].astype(bool)


@pytest.mark.parametrize("seed", range(3))
def test_pdq_is_that_of_its_reference_but_for_bits_next_to_the_median(seed):
    number = int(PDQ[seed], 16)
    expected = np.array([number >> bit & 1 for bit in range(256)], bool)
    [got] = bits_of("pdq", picture(seed))
    assert (got != expected).sum() <= 2
    assert got.sum() == 128


@pytest.mark.parametrize("seed", range(3))
def test_phash_is_that_of_imagehash(seed):
    # Its first bit is the highest of the number that it prints.
    expected = np.array([int(PHASH[seed], 16) >> (63 - bit) & 1 for bit in range(64)], bool)
    [got] = bits_of("phash", picture(seed))
    assert (got == expected).all()


@pytest.mark.parametrize(("name", "radius"), [("pdq", 31), ("phash", 8)])
def test_copies_are_near_and_others_are_not(name, radius):
    file = io.BytesIO()
    picture(0).resize((200, 240)).save(file, "JPEG", quality=30)
    original, copy, *others = bits_of(name, picture(0), file.getvalue(), picture(1), picture(2))
    assert (original != copy).sum() <= radius
    assert min((original != other).sum() for other in others) > 2 * radius


def test_a_code_depends_on_its_image_alone():
    pictures = [picture(seed) for seed in range(5)] * 8
    together = HashEncoder.copy_code("pdq").encode(pictures)
    assert (together == np.tile(together[:5], (8, 1))).all()
    for seed in range(5):
        assert (HashEncoder.copy_code("pdq").encode([picture(seed)])[0] == together[seed]).all()


def test_frequencies_that_an_image_does_not_have_give_no_bits():
    # All of one grey, and stripes, which have no frequency along themselves.
    flat = np.full((512, 512, 3), 90, np.uint8)
    stripes = np.repeat((np.arange(512) // 32 % 2 * 255).astype(np.uint8)[:, None], 512, axis=1)
    flat_bits, stripe_bits = bits_of("pdq", flat, stripes)
    assert not flat_bits.any()
    assert not stripe_bits.any()


def test_it_is_saved_loaded_and_pickled_as_any_encoder(tmp_path):
    encoder = HashEncoder.copy_code("phash")
    encoder.save(tmp_path / "phash")
    loaded = HashEncoder.load(tmp_path / "phash")
    expected = encoder.encode([picture(0)])
    for same in (loaded, pickle.loads(pickle.dumps(encoder)), encoder.to("cuda")):
        assert same.fingerprint == encoder.fingerprint
        assert (same.encode([picture(0)]) == expected).all()
    assert HashEncoder.copy_code("pdq").fingerprint != encoder.fingerprint


def test_what_a_copy_code_cannot_do_is_refused(tmp_path):
    encoder = HashEncoder.copy_code("pdq")
    with pytest.raises(EncoderError, match="pdq is a copy code and has no network"):
        encoder.exported(np.zeros((1, 512, 512, 1), np.uint8))
    with pytest.raises(EncoderError, match="pdq is a copy code and has no network"):
        encoder.save_backbone(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="one of pdq, phash, got 'dhash'"):
        HashEncoder.copy_code("dhash")


def test_the_names_are_those_of_the_codes():
    assert tuple(COPY_CODES) == COPY_CODE_NAMES
