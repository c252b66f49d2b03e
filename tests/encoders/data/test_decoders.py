"""Every mode, depth, photometric kind and transparency: the pixels that the samples say, or a refusal that is true."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from hashlight.encoders.data import formats
from hashlight.encoders.data.images import decode_image, open_image
from hashlight.encoders.errors import ImageError
from tests.encoders.data import writers
from tests.encoders.data.writers import bmp, chunk, png, tiff

RNG = np.random.default_rng(1)
HEIGHT, WIDTH = 9, 13
# Pillow keeps the upper 8 of 16 bits, before transparency and inks are multiplied.
EXACT, ROUNDED, ROUNDED_TWICE = 0.5, 1.01, 3.0


def random_samples(bits, channels=0):
    return RNG.integers(0, 2**bits, (HEIGHT, WIDTH, channels) if channels else (HEIGHT, WIDTH))


def in_255(samples, bits):
    return samples * 255 / (2**bits - 1)


def on_white(colour, alpha):
    colour = colour if colour.ndim == 3 else colour[..., None]
    return colour * alpha[..., None] / 255 + 255 - alpha[..., None]


def srgb_of_lab(lab):
    """CIELAB under D50, as TIFF stores it, in sRGB: the formulas of the CIE and of IEC 61966-2-1."""
    lightness, a, b = lab[..., 0] * 100 / 255, *np.moveaxis(lab[..., 1:].astype(np.uint8).view(np.int8) * 1.0, 2, 0)
    f = np.stack([(lightness + 16) / 116 + a / 500, (lightness + 16) / 116, (lightness + 16) / 116 - b / 200], 2)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    to_linear = np.array(  # from XYZ under D50, adapted by Bradford
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    )
    linear = (xyz @ to_linear.T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def png_cases():
    for interlaced in (False, True):
        for bits in (1, 2, 4, 8, 16):
            grey = random_samples(bits)
            name = f"png grey {bits}{' interlaced' if interlaced else ''}"
            yield name, png(grey, bits, writers.GREY, interlaced=interlaced), in_255(grey, bits), ROUNDED
            number = int(grey.max())
            shown = np.where(grey == number, 255, in_255(grey, bits))
            data = png(grey, bits, writers.GREY, transparent=number.to_bytes(2, "big"), interlaced=interlaced)
            yield f"{name} one transparent", data, shown, ROUNDED
    for bits in (8, 16):
        colour = random_samples(bits, 3)
        colour[1, 1], colour[2, 2] = colour[0, 0], colour[0, 0] ^ 1
        yield f"png rgb {bits}", png(colour, bits, writers.RGB), in_255(colour, bits), ROUNDED
        key = b"".join(int(number).to_bytes(2, "big") for number in colour[0, 0])
        shown = in_255(colour, bits)
        shown[(colour == colour[0, 0]).all(2)] = 255
        yield f"png rgb {bits} one transparent", png(colour, bits, writers.RGB, transparent=key), shown, ROUNDED
        for channels, kind in ((2, writers.GREY_ALPHA), (4, writers.RGB_ALPHA)):
            mixed = random_samples(bits, channels)
            shown = on_white(in_255(mixed[..., :-1], bits), in_255(mixed[..., -1], bits))
            yield f"png {channels} channels of {bits}", png(mixed, bits, kind), shown, ROUNDED_TWICE
    for bits in (1, 2, 4, 8):
        palette, alpha = RNG.integers(0, 256, (2**bits, 3)), RNG.integers(0, 256, 2**bits)
        places = random_samples(bits)
        yield f"png palette {bits}", png(places, bits, writers.PALETTE, palette=palette), palette[places], EXACT
        data = png(places, bits, writers.PALETTE, palette=palette, transparent=bytes(alpha.tolist()))
        yield f"png palette {bits} with alpha", data, on_white(palette[places], alpha[places]), ROUNDED


def grey_tiff_cases(name, **how):
    little = how["order"] == "<"
    for photometric in (0, 1):
        for bits in (1, 2, 4, 8, 16):
            if bits == 16 and photometric == 0 and not little:
                continue  # of the refused
            grey = random_samples(bits)
            shown = in_255(grey, bits) if photometric else 255 - in_255(grey, bits)
            yield f"{name} grey {bits} photometric {photometric}", tiff(grey, bits, photometric, **how), shown, ROUNDED
            if bits < 16:
                data = tiff(grey, bits, photometric, reversed_bits=True, **how)
                yield f"{name} grey {bits} photometric {photometric} reversed", data, shown, ROUNDED
    if little:
        grey = random_samples(12)
        yield f"{name} grey 12", tiff(grey, 12, 1, **how), in_255(grey, 12), ROUNDED
    for extra, tolerance in ((0, EXACT), (1, ROUNDED_TWICE), (2, ROUNDED)):
        grey, alpha = np.moveaxis(random_samples(8, 2), 2, 0)
        stored = np.minimum(grey, alpha) if extra == 1 else grey
        shown = {0: grey, 1: stored + 255 - alpha, 2: on_white(grey, alpha)[..., 0]}[extra]
        yield (
            f"{name} grey and extra {extra}",
            tiff(np.dstack([stored, alpha]), 8, 1, extra=(extra,), **how),
            shown,
            tolerance,
        )


def colour_tiff_cases(name, **how):
    for bits in (8, 16):
        fine = ROUNDED_TWICE if bits == 16 else ROUNDED
        colour, alpha = random_samples(bits, 3), random_samples(bits)
        yield f"{name} rgb {bits}", tiff(colour, bits, 2, **how), in_255(colour, bits), ROUNDED
        for extra in (0, 1, 2):
            stored = np.minimum(colour, alpha[..., None]) if extra == 1 else colour
            pixels, opacity = in_255(stored, bits), in_255(alpha, bits)
            shown = {0: pixels, 1: pixels + 255 - opacity[..., None], 2: on_white(pixels, opacity)}[extra]
            data = tiff(np.dstack([stored, alpha]), bits, 2, extra=(extra,), **how)
            yield f"{name} rgb {bits} and extra {extra}", data, shown, fine
        inks = random_samples(bits, 4)
        paper = 255 - in_255(inks, bits)
        yield f"{name} cmyk {bits}", tiff(inks, bits, 5, **how), paper[..., :3] * paper[..., 3:] / 255, fine
    y, cb, cr = np.moveaxis(random_samples(8, 3), 2, 0)
    shown = np.dstack(
        [y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)]
    )
    data = tiff(np.dstack([y, cb, cr]), 8, 6, tags=((530, 3, [1, 1]),), **how)
    yield f"{name} ycbcr", data, shown.clip(0, 255), ROUNDED_TWICE
    if how.get("planar"):
        return
    # Few colours of CIELAB are in sRGB: these are near grey.
    lab = np.dstack([RNG.integers(60, 200, (HEIGHT, WIDTH)), RNG.integers(-9, 10, (HEIGHT, WIDTH, 2)) % 256])
    yield f"{name} lab", tiff(lab, 8, 8, **how), srgb_of_lab(lab), ROUNDED_TWICE


def tiff_cases():
    for order in "<>":
        for deflate in (False, True):
            how = {"order": order, "deflate": deflate}
            name = f"tiff {'little' if order == '<' else 'big'}{' deflate' if deflate else ''}"
            yield from grey_tiff_cases(name, **how)
            yield from colour_tiff_cases(name, **how)
            yield from colour_tiff_cases(f"{name} planar", planar=True, **how)
            for bits in (1, 2, 4, 8):
                palette, places = RNG.integers(0, 256, (2**bits, 3)), random_samples(bits)
                yield f"{name} palette {bits}", tiff(places, bits, 3, palette=palette, **how), palette[places], EXACT


def bmp_cases():
    for top_down in (False, True):
        name = f"bmp{' top down' if top_down else ''}"
        for bits in (1, 4, 8):
            palette, places = RNG.integers(0, 256, (2**bits, 3)), random_samples(bits)
            yield (
                f"{name} palette {bits}",
                bmp(places, bits, palette=palette, top_down=top_down),
                palette[places],
                EXACT,
            )
        bgra = random_samples(8, 4)
        yield f"{name} 24", bmp(bgra[..., :3], 24, top_down=top_down), bgra[..., 2::-1], EXACT
        yield f"{name} 32", bmp(bgra, 32, top_down=top_down), bgra[..., 2::-1], EXACT
        masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        shown = on_white(bgra[..., 2::-1], bgra[..., 3])
        yield f"{name} 32 with alpha", bmp(bgra, 32, masks=masks, top_down=top_down), shown, ROUNDED
        packed = random_samples(15)
        shown = np.dstack([packed >> 10, packed >> 5 & 31, packed & 31]) * 255 / 31
        yield f"{name} 15", bmp(packed, 16, top_down=top_down), shown, ROUNDED
        packed = random_samples(16)
        shown = np.dstack([(packed >> 11) / 31, (packed >> 5 & 63) / 63, (packed & 31) / 31]) * 255
        yield f"{name} 16", bmp(packed, 16, masks=(0xF800, 0x7E0, 0x1F), top_down=top_down), shown, ROUNDED


CASES = {name: case for cases in (png_cases, tiff_cases, bmp_cases) for name, *case in cases()}


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_what_the_samples_say(name):
    data, shown, tolerance = CASES[name]
    image = decode_image(data)
    pixels = np.asarray(image)
    assert pixels.dtype == np.uint8
    assert image.mode == ("L" if pixels.ndim == 2 else "RGB")
    if shown.ndim > pixels.ndim:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    elif pixels.ndim > shown.ndim:
        shown = np.repeat(shown[..., None], 3, axis=2)
    assert np.abs(pixels - shown.astype(float)).max() <= tolerance


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("png grey") or "grey 12" in name])
def test_a_pillow_image_that_is_not_loaded_yet_gives_the_same_pixels(name):
    data = CASES[name][0]
    np.testing.assert_array_equal(np.asarray(open_image(Image.open(io.BytesIO(data)))), np.asarray(decode_image(data)))


@pytest.mark.parametrize("turn", range(2, 9))
def test_transparency_stays_in_place_when_an_image_is_turned(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    for name in ("png grey 2 one transparent", "png grey 16 one transparent", "png rgb 16 one transparent"):
        plain = CASES[name][0]
        stored = plain[:33] + chunk(b"eXIf", exif.tobytes()[6:]) + plain[33:]
        upright = np.asarray(decode_image(plain))
        expected = {
            2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
            6: np.rot90(upright, -1), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, 1),
        }[turn]  # fmt: skip
        np.testing.assert_array_equal(np.asarray(decode_image(stored)), expected)


JPEG = io.BytesIO()
Image.new("RGB", (16, 16)).save(JPEG, "JPEG")
TWELVE_BIT_JPEG = bytearray(JPEG.getvalue())
TWELVE_BIT_JPEG[JPEG.getvalue().index(b"\xff\xc0") + 4] = 12
TWO_LAYER_JPEG = bytearray(JPEG.getvalue())
TWO_LAYER_JPEG[JPEG.getvalue().index(b"\xff\xc0") + 9] = 2

REFUSED = {
    "signed 8": (tiff(random_samples(8), 8, 1, kind=2), "signed numbers, expected unsigned"),
    "signed 16": (tiff(random_samples(16), 16, 1, kind=2), "signed numbers, expected unsigned"),
    "32-bit": (tiff(random_samples(16), 32, 1), "32-bit"),
    "float": (tiff(random_samples(16), 32, 1, kind=3), "32-bit"),
    "12-bit colour": (tiff(random_samples(12, 3), 12, 2), r"TIFF, 12 \+ 12 \+ 12 bits, photometric interpretation 2"),
    "16-bit lab": (tiff(random_samples(16, 3), 16, 8), r"TIFF, 16 \+ 16 \+ 16 bits, photometric interpretation 8"),
    "12-bit white is zero": (tiff(random_samples(12), 12, 0), "TIFF, 12 bits, photometric interpretation 0"),
    "big 12-bit": (tiff(random_samples(12), 12, 1, order=">"), "TIFF, 12 bits, photometric interpretation 1"),
    "big 16-bit white is zero": (tiff(random_samples(16), 16, 0, order=">"), "TIFF, 16 bits"),
    "16-bit grey and alpha": (tiff(random_samples(16, 2), 16, 1, extra=(2,)), r"TIFF, 16 \+ 16 bits"),
    "planes of lab": (tiff(random_samples(8, 3), 8, 8, planar=True), "in separate planes"),
    "planes of grey and alpha": (tiff(random_samples(8, 2), 8, 1, extra=(2,), planar=True), "in separate planes"),
    "2-bit bmp": (bmp(random_samples(2), 2, palette=np.zeros((4, 3))), r"BMP, Unsupported BMP pixel depth \(2\)"),
    "12-bit jpeg": (bytes(TWELVE_BIT_JPEG), "JPEG, cannot handle 12-bit layers"),
    "jpeg of two layers": (bytes(TWO_LAYER_JPEG), "JPEG, cannot handle 2-layer images"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_whole_and_not_read_is_unsupported_not_damaged(name):
    data, reason = REFUSED[name]
    with pytest.raises(ImageError, match=f"^unsupported pixels: .*{reason}"):
        decode_image(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x00\x00\x18ftyphevc" + bytes(40), "^unsupported format: HEIC"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(40), "^unsupported format: video"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40), "^unsupported format: audio"),
        (b"v/1\x01" + bytes(40), "^unsupported format: OpenEXR"),
        (b"II\xbc\x01" + bytes(40), "^unsupported format: JPEG XR"),
        (b"\x89PN", "^truncated: the header is incomplete"),
    ],
)
def test_other_formats_are_called_by_their_names(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode_image(data)


def text(name, keyword, content):
    packed = zlib.compress(content)
    body = {b"zTXt": b"\0" + packed, b"iTXt": b"\1\0\0\0" + packed, b"tEXt": content, b"iCCP": b"\0" + packed}[name]
    return chunk(name, keyword + b"\0" + body)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    "metadata",
    [
        text(b"iCCP", b"profile", bytes(1_300_000)),
        text(b"zTXt", b"Comment", bytes(2_000_000)),
        text(b"iTXt", b"Comment", b"x" * 2_000_000),
        text(b"iTXt", b"XML:com.adobe.xmp", b"x" * 2_000_000),
        text(b"tEXt", b"Comment", b"x" * 70_000_000),
        text(b"zTXt", b"Comment", bytes(1_000_000)) * 70,
    ],
    ids=["profile", "packed text", "international text", "xmp", "70 MB of text", "70 packed texts"],
)
def test_large_metadata_says_nothing_about_the_pixels(metadata, where):
    grey = random_samples(8)
    np.testing.assert_array_equal(np.asarray(decode_image(png(grey, 8, writers.GREY, **{where: metadata}))), grey)


def test_the_orientation_is_found_in_every_chunk_that_may_hold_it():
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    profile = b"\nexif\n" + str(len(raw)).encode().rjust(8) + b"\n" + raw.hex().encode() + b"\n"
    xmp = b'<x:xmpmeta><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    grey = random_samples(8)
    for metadata in (
        chunk(b"eXIf", raw[6:]),
        text(b"zTXt", b"Raw profile type exif", profile),
        text(b"tEXt", b"Raw profile type exif", profile),
        text(b"iTXt", b"XML:com.adobe.xmp", xmp),
    ):
        found = np.asarray(decode_image(png(grey, 8, writers.GREY, before=metadata)))
        np.testing.assert_array_equal(found, np.rot90(grey, -1))


def odd_files():
    """Files of which Pillow warns or logs when it opens or decodes them."""
    colour = random_samples(8, 3)
    jpeg = JPEG.getvalue()
    mpo = b"MPF\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 45056, 7, 4, 0x30303130) + bytes(4)
    yield "an APNG without frames", png(colour, 8, writers.RGB, before=chunk(b"acTL", bytes(8)))
    yield "a TIFF whose tag is outside", tiff(colour, 8, 2, tags=((700, 4, [0] * 3),))[:-8]
    yield "a malformed MPO", jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(mpo) + 2) + mpo + jpeg[2:]
    yield "a TIFF of too many samples", tiff(random_samples(8, 9), 8, 2)
    yield "one larger than Pillow's own limit", png(colour, 8, writers.RGB)


def test_no_warning_of_pillow_is_shown_or_changes_what_is_decoded(recwarn, capfd, monkeypatch):
    """Warnings are errors in these tests, so that one that escapes would make an image damaged."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    for name, data in odd_files():
        expected = pytest.raises(ImageError) if name == "a TIFF of too many samples" else contextlib.nullcontext()
        with expected:
            decode_image(data)
    assert len(recwarn) == 0
    assert capfd.readouterr().err == ""


def test_the_limit_on_pixels_is_the_callers_whatever_pillow_allows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = png(np.ones((60, 50), int), 1, writers.GREY)
    assert decode_image(data, max_pixels=3000).size == (50, 60)
    with pytest.raises(ImageError, match=r"^too many pixels: 50 x 60, at most 2,999 are decoded$"):
        decode_image(data, max_pixels=2999)


def test_threads_that_open_tiffs_leave_the_setting_of_their_reader_as_it_was(monkeypatch):
    data = tiff(random_samples(8), 8, 1)
    threads = [threading.Thread(target=formats._open_with_libtiff, args=(data,)) for _ in range(2)]
    inside = [threading.Event() for _ in threads]
    opened = TiffImagePlugin.TiffImageFile

    def open_slowly(file):
        this = threads.index(threading.current_thread())
        inside[this].set()
        if this == 0:
            inside[1].wait(0.5)
        else:
            threads[0].join()
        return opened(file)

    monkeypatch.setattr(TiffImagePlugin, "TiffImageFile", open_slowly)
    threads[0].start()
    inside[0].wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert inside[1].is_set()
    assert not TiffImagePlugin.READ_LIBTIFF
