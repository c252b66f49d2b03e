"""Pictures and codes of every kind, as the client sends them: the pixels and words that were given."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from hashlight.encoders.data.images import decode_image
from hashlight.engine.client.queries import Picture, read_images, read_queries, with_codes
from tests.encoders.data import writers

RNG = np.random.default_rng(4)
COLOUR = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


def sent(query):
    """The pixels of the one image that is sent, decoded as a gateway does."""
    [picture] = read_queries(query)
    assert isinstance(picture, Picture)
    return np.asarray(decode_image(picture.data))


def saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_opened_image_is_sent_as_its_file_is(kind, turn, loaded):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(Image.fromarray(COLOUR), kind, exif=exif)
    opened = Image.open(io.BytesIO(data))
    if loaded:
        opened.load()
    np.testing.assert_array_equal(sent(opened), np.asarray(decode_image(data)))
    np.testing.assert_array_equal(
        np.asarray(opened.convert("RGB")), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    ("bits", "photometric"), [(12, 1), (16, 0), (16, 1)], ids=["12 bits", "white is zero", "16 bits"]
)
def test_deep_grey_is_sent_as_its_file_is(bits, photometric, loaded):
    data = writers.tiff(RNG.integers(0, 2**bits, (9, 7)), bits, photometric)
    opened = Image.open(io.BytesIO(data))
    if loaded:
        opened.load()
    np.testing.assert_array_equal(sent(opened), np.asarray(decode_image(data)))


def test_a_transparent_grey_of_four_bits_is_sent_as_its_file_is():
    grey = RNG.integers(0, 16, (9, 7))
    data = writers.png(grey, 4, writers.GREY, transparent=b"\0\7")
    shown = sent(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(shown[..., 0], np.where(grey == 7, 255, grey * 17))


def modes():
    colour = Image.fromarray(COLOUR)
    inks = np.dstack([255 - COLOUR, np.zeros_like(GREY)])
    yield "CMYK", Image.fromarray(inks, "CMYK"), COLOUR
    lab = ImageCms.applyTransform(
        colour,
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    )
    yield "LAB", lab, None
    yield "YCbCr", colour.convert("YCbCr"), None
    yield "HSV", colour.convert("HSV"), None
    yield "RGBa", colour.convert("RGBA").convert("RGBa"), COLOUR
    yield "La", Image.fromarray(GREY).convert("LA").convert("La"), np.repeat(GREY[..., None], 3, axis=2)
    yield "PA", Image.fromarray(COLOUR).quantize(7).convert("PA"), np.asarray(colour.quantize(7).convert("RGB"))
    yield "1", Image.fromarray(GREY > 99), np.where(GREY > 99, 255, 0)
    yield "I;16B", Image.open(io.BytesIO(writers.tiff(GREY.astype(int) * 257, 16, 1, order=">"))), GREY


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("number", range(9))
def test_a_picture_of_every_mode_is_sent(number):
    _, picture, expected = list(modes())[number]
    picture.load()
    pixels = sent(picture)
    assert pixels.shape[:2] == GREY.shape
    if expected is None:  # of a colour space that keeps them only roughly
        assert np.abs(pixels.astype(int) - COLOUR).mean() < 8
    else:
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_range_are_refused(mode):
    with pytest.raises(ValueError, match=f"32-bit pixels \\(mode {mode}\\), expected 8 or 16 bits: convert it"):
        read_queries(Image.new(mode, (4, 4)))


def test_a_damaged_picture_is_refused_with_a_reason():
    opened = Image.open(io.BytesIO(saved(Image.fromarray(COLOUR), "PPM")[:-200]))
    with pytest.raises(ValueError, match="a picture cannot be decoded: "):
        read_queries([3, opened])


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [(GREY, GREY), (GREY[..., None], GREY), (COLOUR, COLOUR), (COLOUR[:, ::-1], COLOUR[:, ::-1])],
    ids=["grey", "one channel", "colour", "not contiguous"],
)
def test_arrays_of_pixels_are_pictures(pixels, expected):
    np.testing.assert_array_equal(sent(pixels), expected)
    both = read_queries([pixels, 7])
    assert both[1] == 7
    np.testing.assert_array_equal(np.asarray(decode_image(both[0].data)), expected)


def test_a_batch_of_pictures_may_be_one_array():
    batch = np.stack([COLOUR, COLOUR[::-1]])
    for read in (read_queries(batch), read_images(batch)):
        for picture, pixels in zip(read, batch, strict=True):
            np.testing.assert_array_equal(np.asarray(decode_image(picture.data)), pixels)


@pytest.mark.parametrize("shape", [(5,), (4, 5, 2), (4, 5, 4), (0, 5), (2, 3, 4, 5, 3)])
def test_arrays_of_other_shapes_are_refused_as_pictures(shape):
    with pytest.raises(TypeError, match=r"a picture must be a uint8 array of shape \(H, W\), .* got shape"):
        read_queries(np.zeros(shape, np.uint8))


def test_codes_may_be_hexadecimal(tmp_path, monkeypatch):
    words = np.array([[0x0123456789ABCDEF, 7], [1, 2]], np.uint64)
    texts = [row.astype("<u8").tobytes().hex() for row in words]
    np.testing.assert_array_equal(codes_of(texts, 128), words)
    np.testing.assert_array_equal(codes_of(texts[0].upper(), 128), words[:1])
    np.testing.assert_array_equal(codes_of("efcdab8967", 40), [[0x6789ABCDEF]])
    np.testing.assert_array_equal(codes_of("efcdab8967000000", 37), [[0x6789ABCDEF]])
    assert codes_of("0f" * 128, 1024).shape == (1, 16), "longer than the name of a file may be"
    mixed = codes_of([texts[0], b"an image", 5], 128)
    assert [mixed[0].tolist(), *mixed[1:]] == [words[0].tolist(), Picture(b"an image"), 5]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cafe").write_bytes(b"an image")
    (tmp_path / "beef").mkdir()
    assert read_queries("cafe") == [Picture(b"an image")]
    assert codes_of("beef", 16).tolist() == [[0xEFBE]], "a folder is no image"
    with pytest.raises(FileNotFoundError):
        read_queries("cafe.png")


def codes_of(queries, bits):
    return with_codes(read_queries(queries), bits)


@pytest.mark.parametrize(
    ("bits", "text", "wanted"),
    [
        (64, "cafe", "4 digits, expected 16 for the 64 bits"),
        (64, "cafe" * 8, "32 digits, expected 16 for the 64 bits"),
        (48, "cafecafe", r"8 digits, expected 12 \(or 16, in whole words\) for the 48 bits"),
        (1024, "ab" * 127, "254 digits, expected 256 for the 1024 bits"),
    ],
)
def test_digits_that_are_too_few_or_many_name_a_file_that_is_missing(bits, text, wanted):
    with pytest.raises(FileNotFoundError, match=f"there is no such file, and as a code in hexadecimal it has {wanted}"):
        codes_of([5, text], bits)
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{text}'"):
        read_images(text)


@pytest.mark.parametrize("name", ["a\ud800.png", "a\0.png"])
def test_what_cannot_be_the_name_of_a_file_is_refused(name):
    with pytest.raises(ValueError, match="is not the name of a file"):
        read_queries(name)


def test_a_hexadecimal_code_is_answered_like_its_words(searcher, collection):
    from hashlight.engine.client.client import SearchClient

    code = collection.shards[0].codes_NW[5]
    with SearchClient(searcher) as client:
        by_words, by_text = (client.search(query, 4)[0] for query in (code, code.astype("<u8").tobytes().hex()))
    np.testing.assert_array_equal(by_text.ids, by_words.ids)
    assert by_text.distances[0] == 0
