"""The images that Pillow is tested with, damaged and strange ones among them: each is a code, or has a true reason."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import warnings
from collections import Counter

import pyarrow.parquet as pq
import pytest
from PIL import Image

from hashlight.pipelines.codes.parts import read_parts
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.corpora.work import list_work
from hashlight.pipelines.encoding.encode import encode_corpus

# Their pixels are good; only a text beside them is not, which Pillow refuses unless it is told to be lenient.
ONLY_TEXT_IS_BAD = {"png_decompression_dos.png", "unknown_compression_method.png"}
# What is left undone on purpose, and what Pillow says of the file.
NOT_DECODED = {
    "unsupported format: AVIF": lambda image: image.format == "AVIF",
    "unsupported format: JPEG 2000": lambda image: image.format == "JPEG2000",
    "unsupported pixels: 32-bit (mode F)": lambda image: image.mode == "F",
    "unsupported pixels: signed numbers": lambda image: image.format == "TIFF" and max(image.tag_v2[339]) == 2,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pillow")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "pillow"]
    done = subprocess.run([*command, "--dest", folder], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"Pillow's sdist cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    [sdist] = folder.glob("pillow-*.tar.gz")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.glob("pillow-*/Tests/images"))


def opened(path):
    """The image as Pillow loads it, None if it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                image.load()
                return image
        except Exception:  # whatever a hostile file makes Pillow raise
            return None


@pytest.mark.slow
@pytest.mark.long
def test_every_image_of_pillow_is_a_code_or_has_a_true_reason(images, encoder, tmp_path, ray_session):
    there = {str(path) for path in images.rglob("*") if path.is_file()}
    assert len(there) > 500
    list_work(images, tmp_path / "work.arrow", options=CorpusOptions(kind="images"))
    summary = encode_corpus(tmp_path / "work.arrow", encoder, tmp_path / "codes", actors=1)
    coded = [uri for part in read_parts(tmp_path / "codes") for uri in part["uri"].to_pylist()]
    rejected = {
        row["uri"]: (row["kind"], row["reason"])
        for row in pq.read_table(tmp_path / "codes" / "rejects.parquet").to_pylist()
    }
    # Each file is one of three.
    assert len(set(coded)) == len(coded) == summary.codes > 500
    assert len(rejected) == summary.rejects > 50
    assert not set(coded) & rejected.keys()
    assert set(coded) | rejected.keys() <= there
    assert len(there) == summary.images + sum(summary.skipped.values())
    assert {uri.rpartition("/")[2] for uri in coded if opened(uri) is None} <= ONLY_TEXT_IS_BAD
    kinds = Counter(kind for kind, _ in rejected.values())
    assert kinds.keys() == {"format", "limit"}
    for uri, (_, reason) in rejected.items():
        if (image := opened(uri)) is not None:
            [fits] = [fits for begins, fits in NOT_DECODED.items() if reason.startswith(begins)]
            assert fits(image), (uri, reason)
