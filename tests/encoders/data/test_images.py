import io
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from hashlight.encoders.data import images
from hashlight.encoders.data.images import decode_image
from hashlight.encoders.errors import ImageError

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (24, 20, 3), dtype=np.uint8)
GREY = PHOTO[..., 0]


def encode(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(data):
    return np.asarray(decode_image(data))


def outcome(data):
    """The pixels, or the reason of an `ImageError`; any other exception escapes."""
    try:
        return pixels(data)
    except ImageError as exc:
        return exc.reason


LOSSLESS = {
    "png": ("PNG", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "webp": ("WEBP", {"lossless": True}),
}
LOSSY = {"jpeg": ("JPEG", {}), "progressive jpeg": ("JPEG", {"progressive": True}), "gif": ("GIF", {})}
ALL = LOSSLESS | LOSSY


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_preserve_pixels(kind):
    file_format, options = LOSSLESS[kind]
    assert (pixels(encode(Image.fromarray(PHOTO), file_format, **options)) == PHOTO).all()


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_give_rgb(kind):
    file_format, options = LOSSY[kind]
    image = decode_image(encode(Image.fromarray(PHOTO), file_format, **options))
    assert (image.mode, image.size) == ("RGB", (20, 24))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ALL)
def test_a_truncated_file_is_complete_or_refused(kind):
    file_format, options = ALL[kind]
    data = encode(Image.fromarray(PHOTO), file_format, **options)
    answers = [outcome(data[:length]) for length in range(1, len(data), 7)]
    refusals = [answer for answer in answers if isinstance(answer, str)]
    assert all(reason.startswith(("truncated", "damaged", "not an image")) for reason in refusals), set(refusals)
    assert len(refusals) > 0.9 * len(answers)
    assert all((answer == pixels(data)).all() for answer in answers if not isinstance(answer, str))


def test_grey_stays_grey():
    image = decode_image(encode(Image.fromarray(GREY), "PNG"))
    assert image.mode == "L"
    assert (np.asarray(image) == GREY).all()
    assert decode_image(encode(Image.fromarray(GREY > 99), "PNG")).mode == "L"


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(file_format):
    data = encode(Image.fromarray(GREY.astype(np.uint16) * 257), file_format)
    assert decode_image(data).mode == "L"
    assert (pixels(data) == GREY).all()


def test_cmyk_becomes_rgb():
    ink = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    assert pixels(encode(ink, "TIFF"))[0, 0].tolist() == [0, 255, 255]
    assert np.abs(pixels(encode(ink, "JPEG", quality=95))[0, 0].astype(int) - [0, 255, 255]).max() < 6


def test_transparent_pixels_become_white():
    half = np.dstack([PHOTO, np.where(np.arange(20) < 10, 255, 0) * np.ones((24, 1))]).astype(np.uint8)
    shown = pixels(encode(Image.fromarray(half), "PNG"))
    assert (shown[:, :10] == PHOTO[:, :10]).all()
    assert (shown[:, 10:] == 255).all()
    grey_alpha = Image.fromarray(GREY).convert("LA")
    grey_alpha.putalpha(0)
    assert (pixels(encode(grey_alpha, "PNG")) == 255).all()


def test_palette_with_a_transparent_entry():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    assert pixels(encode(palette, "PNG"))[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    assert pixels(encode(palette, "PNG", transparency=0))[0].tolist() == [[255] * 3, [200, 100, 50]]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_image(encode(Image.fromarray(PHOTO), "PNG", exif=exif))
    assert turned.size == (24, 20)
    assert (np.asarray(turned) == np.rot90(PHOTO, -1)).all()


def test_an_animation_gives_its_first_frame():
    first, second = (Image.new("RGB", (8, 8), colour).quantize() for colour in ("red", "blue"))
    assert pixels(encode(first, "GIF", save_all=True, append_images=[second]))[0, 0].tolist() == [255, 0, 0]


BROKEN = {
    "empty": (b"", "^empty file$"),
    "text": (b"hello, I am not an image", "^not an image"),
    "heic": (b"\x00\x00\x00\x18ftypheic" + bytes(40), "^unsupported format: HEIC"),
    "heic sequence": (b"\x00\x00\x00\x18ftypmsf1" + bytes(40), "^unsupported format: HEIC"),
    "avif": (b"\x00\x00\x00\x18ftypavif" + bytes(40), "^unsupported format: AVIF"),
    "avif sequence": (b"\x00\x00\x00\x18ftypavis" + bytes(40), "^unsupported format: AVIF"),
    "jxl": (b"\xff\x0a" + bytes(40), "^unsupported format: JPEG XL"),
    "jxl in a box": (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(40), "^unsupported format: JPEG XL"),
    "pdf": (b"%PDF-1.7 ...", "^unsupported format: PDF"),
    "ico": (encode(Image.fromarray(PHOTO), "ICO"), "^unsupported format: ICO"),
    "header only": (b"\x89PNG\r\n\x1a\n", "^damaged: the header"),
    "float tiff": (encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "^unsupported pixels: 32-bit"),
    "half a png": (encode(Image.fromarray(PHOTO), "PNG")[:500], "^truncated"),
    "half a jpeg": (encode(Image.fromarray(PHOTO), "JPEG")[:-300], "^truncated"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_with_a_reason(kind):
    data, reason = BROKEN[kind]
    with pytest.raises(ImageError, match=reason):
        decode_image(data)


def test_too_many_pixels_are_refused_before_decoding():
    data = encode(Image.new("1", (5_000, 4_000)), "PNG")
    with pytest.raises(ImageError, match="too many pixels: 5000 x 4000, at most 1,000,000"):
        decode_image(data, max_pixels=1_000_000)
    with pytest.raises(ImageError, match="too many pixels: 20000 x 20000, at most 64,000,000"):
        decode_image(encode(Image.new("1", (20_000, 20_000)), "PNG"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ALL)
def test_flipped_bytes_never_escape_as_another_error(kind):
    file_format, options = ALL[kind]
    data = encode(Image.fromarray(PHOTO), file_format, **options)
    rng = np.random.default_rng(7)
    for _ in range(60):
        hostile = bytearray(data)
        for place in rng.integers(len(data), size=3):
            hostile[place] = rng.integers(256)
        answer = outcome(bytes(hostile))
        assert len(answer) > 0


class Decoding:
    """A thread that is in the middle of decoding an image until it is told to go on."""

    def __init__(self):
        self.begun, self.goes_on = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.decode)
        self.thread.start()
        self.begun.wait()

    def decode(self):
        with images._pillow_errors():
            self.begun.set()
            self.goes_on.wait()

    def end(self):
        self.goes_on.set()
        self.thread.join()


def test_filters_that_a_caller_has_for_a_while_are_its_own():
    before = list(warnings.filters)
    decoding = Decoding()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        decoding.end()
        with pytest.raises(UserWarning, match="the caller's"):
            warnings.warn("the caller's", UserWarning, stacklevel=1)
    assert list(warnings.filters) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        decoding = Decoding()
    during = list(warnings.filters)
    decoding.end()
    assert during == list(warnings.filters) == before


def test_a_filter_of_a_caller_for_the_same_modules_stays():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        before = list(warnings.filters)
        first, second = Decoding(), Decoding()
        first.end()
        second.end()
        assert list(warnings.filters) == before
