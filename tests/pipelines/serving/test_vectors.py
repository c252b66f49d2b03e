"""Search by embedding: in this process, over HTTP and on the command line, with and without torch."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys

import httpx
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.client.client import AsyncSearchClient, SearchClient
from hashlight.engine.client.errors import ClientError
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import EncoderMismatchError
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.serving.serve import encoder_of
from hashlight.pipelines.serving.vector_encoder import HashVectorEncoder
from tests import oracles, serving

DIMS, BITS = 32, 70
RNG = np.random.default_rng(0)
X = (RNG.standard_normal((10, DIMS))[RNG.integers(0, 10, 400)] + 0.6 * RNG.standard_normal((400, DIMS))).astype("f4")
IDS = RNG.permutation(5000)[:400]
QUERIES = X[:6] + 0.05 * RNG.standard_normal((6, DIMS)).astype("f4")


@pytest.fixture(scope="module")
def encoder():
    return HashEncoder.fit_embeddings(X, bits=BITS, method="lsh")


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    """A collection of embeddings, with its encoder and the embeddings as features."""
    root = tmp_path_factory.mktemp("vectors")
    encoder.save(root / "encoder")
    output = encoder.encode_embeddings_all(X)
    with Transaction(root / "c", fresh=Fresh(BITS, encoder.fingerprint)) as writer:
        labels = pa.table({"label": np.arange(400) % 7})
        writer.add(output.codes, IDS, labels, output.features.astype(np.float16), None, 2)
        writer.add_encoder({path.name: path.read_bytes() for path in (root / "encoder").iterdir()})
        writer.commit()
    serving.warm_up(Collection.open(root / "c"))
    return root / "c"


@pytest.fixture(scope="module")
def url(folder):
    collection = Collection.open(folder)
    with serving.running(create_app(CollectionSearcher(collection), encoder=encoder_of(collection, None))) as url:
        yield url


@pytest.fixture(params=["local", "http"])
def target(request, folder, url):
    return folder if request.param == "local" else url


def nearest_by_bits(encoder, k):
    distances, ids = oracles.knn(encoder.encode_embeddings(QUERIES), encoder.encode_embeddings(X), IDS, k)
    return [list(zip(*row, strict=True)) for row in zip(distances.tolist(), ids.tolist(), strict=True)]


def nearest(encoder, k):
    """Of the hundred nearest codes the first by inner product of projections with signs."""
    bytes_N = encoder.encode_embeddings(X).astype("<u8").view(np.uint8)
    signs = np.where(np.unpackbits(bytes_N, axis=1, bitorder="little")[:, :BITS], 1.0, -1.0)
    sign_of = dict(zip(IDS.tolist(), signs, strict=True))
    projections = encoder.encode_embeddings_all(QUERIES).projections.astype(float)
    pools = zip(nearest_by_bits(encoder, 100), projections, strict=True)
    return [sorted(pool, key=lambda pair: (-round(z @ sign_of[pair[1]], 6), *pair))[:k] for pool, z in pools]


def found_by(response):
    return [[(hit.distance, hit.id) for hit in hits] for hits in response]


def test_embeddings_find_what_their_codes_find(target, encoder):
    expected = nearest(encoder, 5)
    with SearchClient(target) as client:
        assert found_by(client.search(vector=QUERIES, k=5)) == expected
        assert found_by(client.search(vector=QUERIES[2].tolist(), k=5)) == expected[2:3]
        assert found_by(client.search(vector=QUERIES.astype(np.float64), k=5)) == expected
        within = client.range_search(vector=QUERIES[:1], radius=12)
        assert found_by(within)[0] == [pair for pair in nearest_by_bits(encoder, 100)[0] if pair[0] <= 12]
        assert found_by(client.search(vector=QUERIES, k=5, rerank="hamming")) == nearest_by_bits(encoder, 5) != expected


def test_asyncio_does_the_same(target, encoder):
    async def ask():
        async with AsyncSearchClient(target) as client:
            near = await client.search(vector=QUERIES, k=5)
            return near, await client.range_search(vector=QUERIES[0], radius=3)

    near, _ = asyncio.run(ask())
    assert found_by(near) == nearest(encoder, 5)


def test_answers_are_reranked_by_the_embeddings(target):
    with SearchClient(target) as client:
        hits = client.search(vector=QUERIES, k=10, rerank=Rerank(pool=400, metric="cosine"))
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    cosine = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True) @ unit.T
    for row, found in zip(cosine, hits, strict=True):
        best = {int(id) for id in IDS[np.argsort(-row)[:10]]}
        assert len(best & {hit.id for hit in found}) >= 9
        np.testing.assert_allclose([hit.distance for hit in found], np.sort(1 - row)[:10], atol=2e-3)


def test_queries_of_several_kinds_in_one_request(url, encoder):
    code = encoder.encode_embeddings(QUERIES[:1])[0].astype("<u8").tobytes()[:9].hex()
    body = {
        "queries": [{"vector": QUERIES[0].tolist()}, {"id": int(IDS[3])}, {"code": code}],
        "k": 3,
        "rerank": "hamming",
    }
    results = httpx.post(f"{url}/v1/search", json=body).json()["results"]
    assert results[0]["hits"] == results[2]["hits"]
    assert results[1]["hits"][0]["distance"] == 0


def test_what_a_server_takes_is_told(url):
    told = httpx.get(f"{url}/v1/collection").json()
    assert (told["encodes_images"], told["encodes_vectors"]) == (False, DIMS)


def test_other_dimensions_are_refused_with_both_numbers(target):
    errors = (ClientError, ValueError)
    with SearchClient(target) as client:
        with pytest.raises(errors, match="has 31 numbers, expected 32"):
            client.search(vector=QUERIES[:, :31])
        with pytest.raises(errors, match=r"no code: .* its length is 0"):
            client.search(vector=[0.0] * DIMS)


def test_a_refusal_names_the_query(url):
    body = {"queries": [{"vector": QUERIES[0].tolist()}, {"vector": [1.0, 2.0]}]}
    answer = httpx.post(f"{url}/v1/search", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "queries.1.vector"
    answer = httpx.post(
        f"{url}/v1/search", content='{"queries": [{"vector": [1, NaN]}]}', headers={"content-type": "application/json"}
    )
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("vector", [[], ["a"], [[1.0], [2.0, 3.0]], np.zeros((1, 2, 3)), np.array([True])])
def test_what_is_no_embedding_is_refused_before_it_is_sent(folder, vector):
    with SearchClient(folder) as client, pytest.raises((TypeError, ValueError)):
        client.search(vector=vector)


def test_what_is_searched_for_is_given_once_and_by_its_name(folder):
    with SearchClient(folder) as client:
        with pytest.raises(TypeError, match="give one of `queries`, `vector` and `text`"):
            client.search()
        with pytest.raises(TypeError, match="give one of `queries`, `vector` and `text`"):
            client.search(7, vector=QUERIES)
        with pytest.raises(TypeError, match="give embeddings as `vector`"):
            client.search(QUERIES)
        with pytest.raises(ValueError, match="must be finite in single precision, got 2 numbers"):
            client.search(vector=[np.nan, 1e300, 1.0])


def test_images_are_refused_where_embeddings_are_taken(target):
    image = serving.png(np.zeros((8, 8), np.uint8))
    with SearchClient(target) as client, pytest.raises((ClientError, EncoderMismatchError), match="takes embeddings"):
        client.search(image)


def test_embeddings_are_refused_where_images_are_taken(tmp_path):
    collection = serving.make_collection(tmp_path / "c", count=20, shards=1)
    client = SearchClient(CollectionSearcher(collection), encoder=serving.AverageHash())
    with client, pytest.raises(EncoderMismatchError, match="takes images, not embeddings"):
        client.search(vector=[1.0, 2.0])
    with serving.running(create_app(CollectionSearcher(collection), encoder=serving.AverageHash())) as url:
        answer = httpx.post(f"{url}/v1/search", json={"queries": [{"vector": [1.0]}]})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "queries.0.vector")
        assert "takes images, and no embeddings" in answer.json()["error"]["message"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("form", ["row", "one", "json"])
def test_the_command_line_searches_by_a_file(folder, encoder, tmp_path, form):
    path = tmp_path / ("q.json" if form == "json" else "q.npy")
    if form == "json":
        path.write_text(json.dumps(QUERIES[1].tolist()))
    else:
        np.save(path, QUERIES[1] if form == "row" else QUERIES[1:2].astype(np.float16))
    done = run("search", folder, "--vector", path, "-k", 5, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["query"] == {"vector": str(path), "k": 5}
    found = [(answer["distance"], answer["id"]) for answer in document["answers"]]
    assert found == nearest(encoder, 5)[1] or form == "one"
    assert document["order"] == "asymmetric"
    plain = json.loads(run("search", folder, "--vector", path, "-k", 5, "--json", "--order", "hamming").stdout)
    assert [(answer["distance"], answer["id"]) for answer in plain["answers"]] == nearest_by_bits(encoder, 5)[1]
    assert plain["order"] == "hamming"
    refused = run("search", folder, "--vector", path, "--radius", 5, "--order", "asymmetric")
    assert (refused.exit_code, "goes with -k" in " ".join(refused.output.split())) == (2, True)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: np.save(path, QUERIES[0, :20]), "has 20 numbers, expected 32"),
        (lambda path: np.save(path, QUERIES), r"holds float32 of shape \(6, 32\): expected one embedding"),
        (lambda path: np.save(path, np.zeros(32)), "its length is 0"),
        (lambda path: path.write_text("nothing"), "expected an embedding as .npy or a list of numbers in JSON"),
        (lambda path: path.write_text("[1, [2]]"), "expected an embedding"),
    ],
)
def test_a_file_without_an_embedding_is_refused(folder, tmp_path, make, reason):
    make(tmp_path / "q.npy")
    done = run("search", folder, "--vector", tmp_path / "q.npy")
    assert done.exit_code == 1
    assert re.search(reason, " ".join(done.output.split()))


def test_info_says_what_the_encoder_takes(folder):
    assert json.loads(run("info", folder, "--json").stdout)["encoder_takes"] == "embeddings of 32 numbers, normalised"


def test_an_encoder_of_embeddings_is_opened_for_a_server(folder):
    encoder = encoder_of(Collection.open(folder), None)
    assert isinstance(encoder, HashVectorEncoder)
    assert (encoder.dims, encoder.bits) == (DIMS, BITS)


SEARCH = """
import sys
sys.modules.update(dict.fromkeys(["torch", "PIL", "torchvision", "sklearn", "scipy", "ray", "matplotlib"]))
import numpy as np
from hashlight import Collection, SearchClient
from hashlight.pipelines.serving.serve import encoder_of
with SearchClient(sys.argv[1]) as client:
    print([hit.id for hit in client.search(vector=np.load(sys.argv[2]), k=5)[0]])
print(encoder_of(Collection.open(sys.argv[1]), None).dims)
"""


def test_searching_and_serving_need_neither_torch_nor_pillow(folder, encoder, tmp_path):
    np.save(tmp_path / "q.npy", QUERIES[0])
    command = [sys.executable, "-c", SEARCH, folder, tmp_path / "q.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, dims = done.stdout.splitlines()
    assert json.loads(found) == [id for _, id in nearest(encoder, 5)[0]]
    assert dims == "32"
