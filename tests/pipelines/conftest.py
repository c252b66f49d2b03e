from __future__ import annotations

import io
import uuid

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


class Bucket:
    """A bucket of a server that speaks S3's protocol, on this machine."""

    def __init__(self, client, name, endpoint):
        self._client, self.name, self._endpoint = client, name, endpoint

    def uri(self, key):
        return f"s3://{self.name}/{key}?endpoint_override={self._endpoint}&scheme=http&region=us-east-1"

    def put(self, key, data):
        self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def keys(self, prefix=""):
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def get(self, key):
        return self._client.get_object(Bucket=self.name, Key=key)["Body"].read()


@pytest.fixture(scope="session")
def s3_server(s3_credentials):
    """The host and port of a server of S3's protocol."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3_server):
    """An empty bucket."""
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://{s3_server}", region_name="us-east-1")
    name = f"bucket-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return Bucket(client, name, s3_server)


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
