"""Fashion-MNIST: 70,000 real images of clothes, 28x28 grey, 10 classes (Xiao et al., arXiv 1708.07747; MIT licence).

The 10,000 images of its test split are packaged as a corpus, so that a first run needs no download.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hashlight.encoders.networks.compat import load_torchvision
from hashlight.pipelines.jobs.errors import PipelineError

SAMPLE = Path(__file__).parent / "data" / "fashion_mnist_test.parquet"
LABEL_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FILE_PREFIX = {"train": "train", "test": "t10k"}
_ROW_GROUP_ROWS = 1000

Split = Literal["train", "test"]


def load_fashion_mnist(split: Split, download_to: str | Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Load one split whole, from Debian's package `dataset-fashion-mnist`, else as torchvision downloads it.

    Parameters
    ----------
    split : {"train", "test"}
        60,000 or 10,000 images.
    download_to : str or Path, optional
        Where torchvision keeps its download; needed only without the Debian package.

    Returns
    -------
    images : ndarray of uint8, shape (N, 28, 28)
    labels : ndarray of int64, shape (N,)
    """
    if _DEBIAN_FOLDER.is_dir():
        prefix = _DEBIAN_FOLDER / _FILE_PREFIX[split]
        images = _read_idx(prefix.with_name(prefix.name + "-images-idx3-ubyte.gz"), header_bytes=16)
        labels = _read_idx(prefix.with_name(prefix.name + "-labels-idx1-ubyte.gz"), header_bytes=8)
        return images.reshape(-1, 28, 28), labels.astype(np.int64)
    if download_to is None:
        raise PipelineError(
            f"Fashion-MNIST is not at {_DEBIAN_FOLDER}: install Debian's `dataset-fashion-mnist`, or give a folder "
            "to download it to"
        )
    data = load_torchvision().datasets.FashionMNIST(str(download_to), train=split == "train", download=True)
    return data.data.numpy(), data.targets.numpy().astype(np.int64)


def as_corpus(images: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> pa.Table:
    """Make a corpus table (id, image as PNG bytes, label, label_name) of images (N, 28, 28) uint8."""
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "image": pa.array([_png(image) for image in images], pa.binary()),
            "label": pa.array(labels, pa.int64()),
            "label_name": pa.array([LABEL_NAMES[label] for label in labels], pa.string()),
        }
    )


def write_corpus(table: pa.Table, path: Path) -> None:
    """Write a corpus table with row groups of a work unit's size."""
    # PNG bytes do not compress further.
    pq.write_table(table, path, row_group_size=_ROW_GROUP_ROWS, compression={"image": "none"})


def split_sample(*, queries: int = 1000, train: int = 5000, seed: int = 0) -> dict[str, pa.Table]:
    """Split the packaged sample into queries, database (all others) and train (a part of the database)."""
    table = pq.read_table(SAMPLE)
    order = np.random.default_rng(seed).permutation(len(table))
    parts = {"queries": order[:queries], "database": order[queries:], "train": order[queries : queries + train]}
    return {name: table.take(np.sort(rows)) for name, rows in parts.items()}


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _read_idx(path: Path, *, header_bytes: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header_bytes)
