"""Search by text: over HTTP, in this process, and from the command line, by an encoder that embeds texts too."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from hashlight.encoders.config import EncoderConfig, Pictures
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.networks.backbones import build_backbone
from hashlight.encoders.networks.model import HashModel
from hashlight.engine.client.client import AsyncSearchClient, SearchClient
from hashlight.engine.client.errors import ClientError
from hashlight.engine.errors import EncoderMismatchError
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.serving.image_encoder import HashImageEncoder
from tests import serving


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return serving.make_collection(tmp_path_factory.mktemp("texts") / "c", count=40, shards=2)


@pytest.fixture(scope="module")
def codes(collection):
    average = serving.AverageHash()
    pictures = [average.decode(serving.png(pixels), 10_000) for pixels in serving.make_pictures(40)]
    return average.encode(pictures).codes


@pytest.fixture(scope="module", params=["here", "http"])
def target(request, collection, codes):
    if request.param == "here":
        yield CollectionSearcher(collection), {"encoder": serving.Named(codes)}
        return
    with serving.running(create_app(CollectionSearcher(collection), encoder=serving.Named(codes))) as url:
        yield url, {}


def test_a_text_finds_what_its_code_finds(target, codes):
    place, options = target
    with SearchClient(place, **options) as client:
        found = client.search(text=["dots", "stripes"], k=4, rerank="hamming")
        expected = client.search(np.stack([codes[8], codes[3]]), k=4)
        within = client.range_search(text="dots", radius=9)
        assert [hit.id for hit in within[0]] == [hit.id for hit in client.range_search(codes[8], radius=9)[0]]
    for ours, theirs in zip(found, expected, strict=True):
        assert [(hit.distance, hit.id) for hit in ours] == [(hit.distance, hit.id) for hit in theirs]
        assert ours[0].distance == 0

    async def ask():
        async with AsyncSearchClient(place, **options) as client:
            return await client.search(text="stripes", k=4)

    assert [hit.id for hit in asyncio.run(ask())[0]] == [hit.id for hit in expected[1]]


def test_what_is_no_text_is_refused_before_it_is_sent(target):
    place, options = target
    with SearchClient(place, **options) as client:
        for wrong in ([], [3], 3.5, [""], ""):
            with pytest.raises((TypeError, ValueError)):
                client.search(text=wrong)
        with pytest.raises(TypeError, match="give one of `queries`, `vector` and `text`"):
            client.search(7, text="dots")


def test_texts_are_refused_where_the_encoder_takes_none(collection):
    plain = serving.AverageHash()
    here = SearchClient(CollectionSearcher(collection), encoder=plain)
    with here as client, pytest.raises(EncoderMismatchError, match="takes no texts"):
        client.search(text="dots")
    with serving.running(create_app(CollectionSearcher(collection), encoder=plain)) as url:
        answer = httpx.post(f"{url}/v1/search", json={"queries": [{"text": "dots"}]})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "queries.0.text")
        assert "takes no texts" in answer.json()["error"]["message"]
        assert httpx.get(f"{url}/v1/collection").json()["encodes_texts"] is False
        with SearchClient(url) as client, pytest.raises(ClientError, match="takes no texts"):
            client.search(text="dots")


def test_http_takes_one_text_beside_other_queries(collection, codes):
    with serving.running(create_app(CollectionSearcher(collection), encoder=serving.Named(codes))) as url:
        assert httpx.get(f"{url}/v1/collection").json()["encodes_texts"] is True
        body = {
            "queries": [{"code": codes[3].astype("<u8").tobytes().hex()}, {"text": "dots"}],
            "k": 3,
            "rerank": "hamming",
        }
        answers = httpx.post(f"{url}/v1/search", json=body).json()["results"]
        assert len(answers) == 2
        for wrong in ("", 3, "x" * 3000):
            assert httpx.post(f"{url}/v1/search", json={"queries": [{"text": wrong}]}).status_code == 422


def test_the_encoder_of_a_server_says_whether_it_takes_texts():
    backbone = build_backbone("small-cnn")
    model = HashEncoder(EncoderConfig(bits=8, beta=1.0, input=Pictures.of(backbone)), HashModel(backbone, 8))
    assert not HashImageEncoder(model).takes_texts


def test_the_command_line_takes_one_kind_of_query(collection):
    done = CliRunner().invoke(app, ["search", collection.location, "--text", "dots", "--id", "3"])
    assert done.exit_code == 2
    assert "--text" in " ".join(done.output.split())
