"""Near-duplicates: exactly the pairs and components that the oracle finds, whatever the shards and interruptions."""

from __future__ import annotations

import base64
import html.parser
import io
import itertools
import json
import re
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CollectionBusyError
from hashlight.engine.places.files import writer_lock
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.dedup import dedup
from hashlight.pipelines.dedup.dedup import find_duplicates
from hashlight.pipelines.jobs.errors import PipelineError
from tests import oracles
from tests.engine.collection.by_hand import Part, assemble
from tests.engine.storage.forging import forge_manifest
from tests.pipelines import elsewhere

pytestmark = pytest.mark.usefixtures("ray_session")

BITS = 48
RADIUS = 2


@pytest.fixture(scope="module")
def rows():
    """1,200 codes: close families, 200 copies of one code, and isolated ones; unordered ids."""
    rng = np.random.default_rng(8)
    families = oracles.clustered_codes(rng, 700, BITS, centres=150, flips=2)
    same = np.repeat(families[:1], 200, axis=0)
    codes = np.concatenate([families, same, rng.integers(2**BITS, size=(300, 1), dtype=np.uint64)])
    return codes, rng.choice(10**12, len(codes), replace=False)


def expected_pairs(codes, ids, radius):
    distances = oracles.hamming_distances(codes, codes)
    a, b = np.nonzero((distances <= radius) & (ids[:, None] < ids[None, :]))
    return sorted(zip(ids[a].tolist(), ids[b].tolist(), distances[a, b].tolist(), strict=True))


def expected_clusters(pairs):
    """{member: (lowest id of its component, its representative, its pairs)}, by walking the graph."""
    near = {}
    for a, b, _ in pairs:
        near.setdefault(a, set()).add(b)
        near.setdefault(b, set()).add(a)
    clusters = {}
    for start in sorted(near):
        component, waiting = set(), [start] if start not in clusters else []
        while waiting:
            component.add(member := waiting.pop())
            waiting += near[member] - component
        for member in component:
            kept = min(component, key=lambda one: (-len(near[one]), one))
            clusters[member] = (min(component), kept, len(near[member]))
    return clusters


def read_pairs(folder):
    return sorted(map(tuple, itertools.chain.from_iterable(
        zip(*(column.to_pylist() for column in pq.read_table(path).columns), strict=True)
        for path in (folder / "pairs").glob("*.parquet")
    )))  # fmt: skip


def check(folder, rows, radius=RADIUS):
    pairs = expected_pairs(*rows, radius)
    assert read_pairs(folder) == pairs
    assert len(pairs) > 20_000, "copies must give their pairs"
    clusters = expected_clusters(pairs)
    table = pq.read_table(folder / "clusters.parquet").to_pylist()
    assert {row["id"]: (row["cluster"], row["representative"], row["pairs"]) for row in table} == clusters
    sizes = {name: sum(one[0] == name for one in clusters.values()) for name, _, _ in clusters.values()}
    order = [(-sizes[row["cluster"]], row["cluster"], row["id"]) for row in table]
    assert order == sorted(order)
    found = json.loads((folder / "dedup.json").read_text())
    assert (found["pairs"], found["clusters"], found["members"]) == (len(pairs), len(sizes), len(clusters))
    assert (found["largest"], found["removable"]) == (max(sizes.values()), len(clusters) - len(sizes))


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_clusters_have_the_uris_that_the_collection_has(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(dedup, "_URIS_AT_ONCE", 100)
    codes, ids = rows
    attributes = {"label": ids % 7, "uri": [None if id_ % 5 == 0 else f"a/{id_}.png" for id_ in ids.tolist()]}
    Collection.create(tmp_path / "c", codes, ids=ids, bits=BITS, shards=3, attributes=attributes)
    find_duplicates(tmp_path / "c", tmp_path / "d", radius=RADIUS)
    check(tmp_path / "d", rows)
    found = pq.read_table(tmp_path / "d" / "clusters.parquet")
    assert found.schema.names == ["cluster", "id", "representative", "pairs", "uri"]
    assert found["uri"].to_pylist() == [None if id_ % 5 == 0 else f"a/{id_}.png" for id_ in found["id"].to_pylist()]
    Collection.create(tmp_path / "one", codes[-1:], ids=ids[-1:], bits=BITS, attributes={"uri": ["x"]})
    find_duplicates(tmp_path / "one", tmp_path / "nothing", radius=0)
    assert pq.read_table(tmp_path / "nothing" / "clusters.parquet").schema.names == found.schema.names


@pytest.mark.parametrize(("shards", "tables"), [(1, True), (3, True), (2, False)])
def test_pairs_and_clusters_equal_the_oracle(tmp_path, rows, shards, tables):
    codes, ids = rows
    Collection.create(tmp_path / "c", codes, ids=ids, bits=BITS, shards=shards, tables=tables)
    seen = []
    find_duplicates(
        tmp_path / "c", tmp_path / "d", radius=RADIUS, progress=lambda done, all_: seen.append((done, all_))
    )
    check(tmp_path / "d", rows)
    joins = shards * (shards + 1) // 2
    assert (seen[0], seen[-1]) == ((0, joins), (joins, joins))


def test_small_steps_give_the_same_pairs(tmp_path, rows, monkeypatch):
    codes, ids = rows
    opened = Collection.create(tmp_path / "c", codes, ids=ids, bits=BITS, shards=2)
    for name, value in (
        ("_MAX_ROWS", 7),
        ("_MIN_ROWS", 2),
        ("_WANTED_HITS", 50),
        ("_MAX_HITS", 60),
        ("_PAIRS_AT_ONCE", 90),
    ):
        monkeypatch.setattr(dedup, name, value)
    found = []
    for first, second in itertools.combinations_with_replacement(opened.shards, 2):
        for parts in dedup.find_pairs(first, second, RADIUS):
            assert len(parts[0]) <= 300, "a row's hits, or 90 pairs"
            found += zip(*(part.tolist() for part in parts), strict=True)
    assert sorted(found) == expected_pairs(*rows, RADIUS)
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table(list(zip(*found, strict=True)), schema=dedup.PAIRS), path, row_group_size=61)
    table = dedup.cluster_pairs([path]).to_pylist()
    clusters = expected_clusters(expected_pairs(*rows, RADIUS))
    assert {row["id"]: (row["cluster"], row["representative"], row["pairs"]) for row in table} == clusters


def test_nothing_near_gives_empty_files(tmp_path):
    Collection.create(tmp_path / "c", np.array([[0], [2**40 - 1]], np.uint64), bits=BITS, shards=2)
    found = find_duplicates(tmp_path / "c", tmp_path / "d", radius=3)
    assert (found.codes, found.pairs, found.clusters, found.largest) == (2, 0, 0, 0)
    assert "0 clusters of 0 images" in (tmp_path / "d" / "gallery.html").read_text()


def test_other_jobs_and_folders_are_left_alone(tmp_path, rows):
    codes, ids = rows
    Collection.create(tmp_path / "c", codes[:100], ids=ids[:100], bits=BITS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"mine")
    with pytest.raises(PipelineError, match="is not empty and holds no near-duplicates"):
        find_duplicates(tmp_path / "c", tmp_path / "mine", radius=1)
    find_duplicates(tmp_path / "c", tmp_path / "d", radius=1)
    before = files_of(tmp_path / "d")
    with pytest.raises(PipelineError, match="of another job"):
        find_duplicates(tmp_path / "c", tmp_path / "d", radius=2)
    assert files_of(tmp_path / "d") == before
    Collection.create(tmp_path / "c", codes[:120], ids=ids[:120], bits=BITS, overwrite=True)
    with pytest.raises(PipelineError, match="of another job"):
        find_duplicates(tmp_path / "c", tmp_path / "d", radius=1)
    assert find_duplicates(tmp_path / "c", tmp_path / "d", radius=1, overwrite=True).codes == 120
    with pytest.raises(ValueError, match="0 to 48"):
        find_duplicates(tmp_path / "c", tmp_path / "e", radius=49)


def test_two_jobs_into_one_folder_are_refused_and_leftovers_removed(tmp_path, rows):
    codes, ids = rows
    Collection.create(tmp_path / "c", codes, ids=ids, bits=BITS)
    (tmp_path / "d").mkdir()
    with writer_lock(tmp_path / "d"), pytest.raises(CollectionBusyError, match="being written by another process"):
        find_duplicates(tmp_path / "c", tmp_path / "d", radius=RADIUS)
    find_duplicates(tmp_path / "c", tmp_path / "d", radius=RADIUS)
    for name in (".clusters.parquet.0.tmp", "pairs/.00000-00000.parquet.0.tmp"):
        (tmp_path / "d" / name).write_bytes(b"half")
    find_duplicates(tmp_path / "c", tmp_path / "d", radius=RADIUS)
    check(tmp_path / "d", rows)
    assert not list((tmp_path / "d").rglob("*.tmp"))


def test_near_duplicates_in_a_bucket(tmp_path, rows, bucket, monkeypatch):
    monkeypatch.chdir(tmp_path)
    codes, ids = rows
    Collection.create(bucket.uri("c"), codes, ids=ids, bits=BITS, shards=2)
    find_duplicates(bucket.uri("c"), bucket.uri("d"), radius=RADIUS)
    assert not list(tmp_path.iterdir()), "no folder is called s3:"
    for key in bucket.keys("d/"):
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bucket.get(key))
    check(tmp_path / "d", rows)
    assert "gallery.html" in {path.name for path in (tmp_path / "d").iterdir()}
    seen = []
    find_duplicates(bucket.uri("c"), bucket.uri("d"), radius=RADIUS, progress=lambda done, _total: seen.append(done))
    assert seen == [3], "a finished pair of shards is not joined again"
    with pytest.raises(PipelineError, match=r"of another job, with radius 2 \(asked: 1\)"):
        find_duplicates(bucket.uri("c"), bucket.uri("d"), radius=1)


class Page(html.parser.HTMLParser):
    """Collects what a page tells a browser to do."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]


def test_the_gallery_shows_the_largest_clusters_and_loads_nothing(tmp_path, rows):
    codes, ids = rows
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "photo.png")
    uris = np.array([f"<script>alert({number})</script>" for number in range(len(ids))], object)
    representative = expected_clusters(expected_pairs(*rows, RADIUS))[ids[700]][1]
    uris[ids == representative] = str(tmp_path / "photo.png")
    Collection.create(tmp_path / "c", codes, ids=ids, bits=BITS, attributes={"uri": uris.tolist()})
    result = CliRunner().invoke(
        app, ["dedup", str(tmp_path / "c"), "--radius", "2", "--output", str(tmp_path / "d"), "--json"]
    )
    assert result.exit_code == 0, result.output
    text = (tmp_path / "d" / "gallery.html").read_text()
    page = Page()
    page.feed(text)
    assert "script" not in page.tags
    assert page.tags.count("section") == min(50, json.loads(result.stdout)["clusters"])
    sources = [value for tag, name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 1, "one image is there"
    picture = Image.open(io.BytesIO(base64.b64decode(sources[0].removeprefix("data:image/jpeg;base64,"))))
    assert picture.size == (8, 8)
    assert re.search(rf"1\. Cluster \d+: 2\d\d images, 12 shown.*?{representative}<br>kept", text, re.DOTALL)
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes
    assert "default-src 'none'; img-src data:" in text


DRIVER = """
import sys
from hashlight.pipelines.dedup.dedup import find_duplicates
find_duplicates(sys.argv[1], sys.argv[2], radius=2, workers=2)
"""


@pytest.mark.parametrize(
    ("step", "act", "skip"),
    [
        ("dedup:joined", "kill-driver", 2),
        pytest.param("dedup:joined", "no-space", 3, marks=pytest.mark.slow),
        pytest.param("dedup:before-summary", "kill-driver", 0, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_join_resumes(tmp_path, rows, step, act, skip):
    codes, ids = rows
    Collection.create(tmp_path / "c", codes, ids=ids, bits=BITS, shards=3)
    rule = {"step": step, "do": act, "skip": skip}
    done = elsewhere.run_program(DRIVER, [tmp_path / "c", tmp_path / "d"], tmp_path / "faults", rule)
    assert done.returncode == (-signal.SIGKILL if act == "kill-driver" else 1), done.stderr
    assert not (tmp_path / "d" / "dedup.json").exists()
    numbers = list(itertools.combinations_with_replacement(range(3), 2))
    done = [numbers[int(path.stem)] for path in (tmp_path / "d" / "sidecars").glob("*.json")]
    paths = [tmp_path / "d" / "pairs" / f"{first:05d}-{second:05d}.parquet" for first, second in done]
    kept = {path: path.stat().st_mtime_ns for path in paths}
    assert kept
    find_duplicates(tmp_path / "c", tmp_path / "d", radius=RADIUS)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "a finished pair of shards is not joined again"
    check(tmp_path / "d", rows)
    find_duplicates(tmp_path / "c", tmp_path / "undisturbed", radius=RADIUS)
    assert files_of(tmp_path / "d") == files_of(tmp_path / "undisturbed")


def test_deleted_images_are_nobodys_duplicates(tmp_path, rows):
    codes, ids = rows
    dead = set(ids[::3].tolist())
    parts = [
        Part(codes[part], ids[part], dead=dead & set(ids[part].tolist())) for part in (slice(0, 500), slice(500, None))
    ]
    path = assemble(tmp_path / "c", parts, bits=BITS, schema=None)
    found = find_duplicates(path, tmp_path / "d", radius=RADIUS)
    alive = np.array([id_ not in dead for id_ in ids.tolist()])
    pairs = expected_pairs(codes[alive], ids[alive], RADIUS)
    assert len(pairs) > 5_000
    assert read_pairs(tmp_path / "d") == pairs
    assert (found.codes, found.members) == (alive.sum(), len(expected_clusters(pairs)))
    forge_manifest(path, lambda document: document.update(shards=[]))
    empty = find_duplicates(path, tmp_path / "e", radius=RADIUS)
    assert (empty.codes, empty.pairs, empty.clusters) == (0, 0, 0)
