from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hashlight.encoders.training.train import TrainConfig, train
from hashlight.pipelines.corpora.fashion_mnist import SAMPLE, as_corpus, write_corpus


@pytest.fixture(scope="session")
def pictures():
    """400 real images (400, 28, 28) uint8 and their labels."""
    rows = pq.read_table(SAMPLE).slice(0, 400)
    images = [np.asarray(Image.open(io.BytesIO(data))) for data in rows["image"].to_pylist()]
    return np.array(images), rows["label"].to_numpy()


@pytest.fixture(scope="session")
def encoder(pictures, tmp_path_factory):
    """An encoder that has hardly learned anything: these tests are about bits, not about quality."""
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    train(*pictures, TrainConfig(bits=48, epochs=1, warmup_epochs=0)).save(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(pictures, tmp_path_factory):
    """A Parquet corpus of 300 images, ids from 1000."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    images, labels = pictures
    write_corpus(as_corpus(images[:300], labels[:300], np.arange(1000, 1300)), path)
    return path


@pytest.fixture(scope="session")
def codes(corpus, encoder, ray_session, tmp_path_factory):
    """The corpus, encoded."""
    from hashlight.pipelines.encoding.encode import encode_corpus

    folder = tmp_path_factory.mktemp("codes") / "codes"
    encode_corpus(corpus, encoder, folder, actors=1)
    return folder


@pytest.fixture(scope="session")
def collection(codes, tmp_path_factory):
    """The codes, as a collection of three shards."""
    from hashlight.pipelines.building.build import build_collection

    folder = tmp_path_factory.mktemp("collection") / "collection"
    build_collection(codes, folder, shards=3)
    return folder
