"""What the image `server` installs is enough: its servers run, and encode an image, without torch and Ray."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from hashlight import SearchClient
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.extras import EXTRAS
from tests.encoders.runtimes.test_exported import build
from tests.encoders.test_encoder import IMAGES
from tests.serving import warm_up

from .files import DEPLOY

[INSTALLED] = re.findall(r"RUN pip install .*\[(serve[a-z,]*)\]", (DEPLOY / "Dockerfile").read_text())[:1]
ABSENT = sorted(module for module, extras in EXTRAS.items() if not set(INSTALLED.split(",")) & set(extras))
COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A collection of pictures with its encoder, whose network is exported."""
    root = tmp_path_factory.mktemp("server")
    encoder = build()[0].exported(IMAGES[:32, :, :, None])
    encoder.save(root / "encoder")
    with Transaction(root / "c", fresh=Fresh(encoder.bits, encoder.fingerprint)) as writer:
        writer.add(encoder.encode(IMAGES[:COUNT]), np.arange(COUNT), pa.table({"label": range(COUNT)}), None, None, 2)
        writer.add_encoder({path.name: path.read_bytes() for path in (root / "encoder").iterdir()})
        writer.commit()
    warm_up(Collection.open(root / "c"))
    return root / "c"


@pytest.fixture
def environment(tmp_path):
    """Variables with which no process can import what the image lacks."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_what_the_image_lacks_is_known():
    assert {"torch", "ray", "faiss", "onnx"} <= set(ABSENT)
    assert not {"onnxruntime", "PIL", "uvicorn", "prometheus_client"} & set(ABSENT)


@pytest.mark.parametrize("groups", [(), ("--groups", "2")], ids=["one process", "shard servers"])
def test_an_image_is_found_without_torch(folder, environment, groups):
    command = [sys.executable, "-m", "hashlight", "serve", str(folder), "--port", "0", *groups]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"at (http://\S+)", server.stdout.readline())[1]
        buffer = io.BytesIO()
        Image.fromarray(IMAGES[7]).save(buffer, "PNG")
        with SearchClient(url, timeout_s=60) as client:
            hits = client.search(buffer.getvalue(), k=COUNT, rerank="hamming")[0]
        assert 7 in [hit.id for hit in hits if hit.distance == 0]
        assert len(hits) == COUNT
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=120)
