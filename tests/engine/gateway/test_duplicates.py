"""Groups of near-duplicates, as the job of that name leaves them, page by page over HTTP."""

from __future__ import annotations

import contextlib
import json

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.beside import Beside
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.pipelines.dedup.dedup import find_duplicates
from tests import oracles, serving
from tests.engine.service.conftest import serving as shard_servers

BITS, RADIUS = 72, 2


def groups_by_hand(codes, ids):
    """Groups as (ids, pairs of each), the largest first, equally large ones by their lowest id."""
    near = oracles.hamming_distances(codes, codes) <= RADIUS
    pairs = near.sum(axis=1) - 1
    group = np.arange(len(codes))
    for _ in range(len(codes)):
        group = np.array([group[row].min() for row in near])
    found = []
    for name in np.unique(group):
        members = np.flatnonzero(group == name)
        if len(members) > 1:
            order = members[np.argsort(ids[members])]
            found.append((ids[order].tolist(), pairs[order].tolist()))
    return sorted(found, key=lambda one: (-len(one[0]), one[0][0]))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, ray_session):
    folder = tmp_path_factory.mktemp("duplicates")
    rng = np.random.default_rng(11)
    codes = oracles.clustered_codes(rng, 90, BITS, centres=25, flips=2)
    ids = rng.permutation(2**62 + np.arange(90))
    collection = Collection.create(folder / "c", codes, ids=ids, bits=BITS, shards=2)
    summary = find_duplicates(collection.path, folder / "found", radius=RADIUS, workers=1)
    return collection, folder / "found", codes, ids, summary


@contextlib.contextmanager
def asking(searcher, duplicates):
    app = create_app(searcher, beside=Beside(duplicates=None if duplicates is None else str(duplicates)))
    with serving.running(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield lambda **params: http.get("/v1/duplicates", params=params)


def all_pages(ask, **params):
    pages, after = [], 0
    while after is not None:
        answer = ask(after=after, **params)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        after = pages[-1]["next"]
    return pages


@pytest.mark.parametrize("servers", [0, 2])
@pytest.mark.parametrize(("limit", "members"), [(100, 100), (3, 2), (1, 1)])
def test_the_groups_are_those_of_the_oracle(corpus, servers, limit, members):
    collection, folder, codes, ids, summary = corpus
    row_of = {id_: row for row, id_ in enumerate(ids.tolist())}
    expected = groups_by_hand(codes, ids)
    assert len(expected) > 5
    assert len(expected[0][0]) > members or members == 100
    with contextlib.ExitStack() as stack:
        searcher = CollectionSearcher(collection)
        if servers:
            _, cluster = stack.enter_context(shard_servers(collection.path, groups=servers))
            searcher = stack.enter_context(contextlib.closing(ClusterRouter(cluster)))
        pages = all_pages(stack.enter_context(asking(searcher, folder)), limit=limit, members=members)
    assert [len(page["groups"]) for page in pages] == [
        min(limit, len(expected) - begin) for begin in range(0, len(expected), limit)
    ]
    found = [group for page in pages for group in page["groups"]]
    for group, (those, pairs) in zip(found, expected, strict=True):
        kept = those[max(range(len(those)), key=lambda number: (pairs[number], -those[number]))]
        assert (group["size"], group["representative"]) == (len(those), {"id": kept})
        shown = [kept, *(id_ for id_ in those if id_ != kept)]
        if len(those) > members and kept not in those[:members]:
            shown = [kept, *those[: members - 1]]
        assert [item["id"] for item in group["items"]] == shown[:members]
        for item in group["items"]:
            pair = codes[[row_of[kept], row_of[item["id"]]]]
            assert item["distance"] == oracles.hamming_distances(pair[:1], pair[1:])[0, 0]
            assert item["pairs"] == pairs[those.index(item["id"])]
    told = pages[0]["found"]
    assert (told["radius"], told["version"], told["clusters"]) == (RADIUS, 1, len(expected))
    assert (told["pairs"], told["members"], told["removable"]) == (summary.pairs, summary.members, summary.removable)
    assert ids.min() > 2**53, "ids are exact beyond what JavaScript counts"


def test_the_page_shows_the_groups_side_by_side(corpus, open_page):
    collection, folder, codes, ids, _ = corpus
    groups = [those for those, _ in groups_by_hand(codes, ids)]
    app = create_app(CollectionSearcher(collection), beside=Beside(duplicates=str(folder)))
    with serving.running(app) as url:
        page = open_page(url)
        page.get_by_role("button", name="Duplicates").click()
        page.locator("#note", has_text=f"{len(groups)} groups of near-duplicates").wait_for()
        page.locator(".ring").nth(min(len(groups), 4) - 1).wait_for()
        for ring, group in zip(page.locator(".ring").all(), groups, strict=False):
            assert f"{len(group)} pictures" in ring.inner_text()
            shown = [int(tile.get_attribute("data-id")) for tile in ring.locator(".tile").all()]
            assert sorted(shown) == group
            apart = [int(one) for one in ring.locator(".distance").all_inner_texts()]
            assert (apart[0], apart) == (0, sorted(apart))
        page.locator(".ring").first.locator(".open").nth(1).click()
        page.get_by_role("dialog", name="Compare").get_by_role("button", name="More like this").click()
        page.locator(".chip").wait_for()
        page.go_back()
        page.locator("#note", has_text=f"{len(groups)} groups of near-duplicates").wait_for()
        page.goto("about:blank")  # nothing is asked of a server that is gone


def test_pages_do_not_depend_on_how_the_table_is_cut(corpus, tmp_path):
    collection, folder, *_ = corpus
    for name in ("job.json", "dedup.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    pq.write_table(pq.read_table(folder / "clusters.parquet"), tmp_path / "clusters.parquet", row_group_size=2)
    answers = []
    for where in (folder, tmp_path):
        with asking(CollectionSearcher(collection), where) as ask:
            answers.append([all_pages(ask, limit=limit, members=members) for limit, members in ((100, 100), (2, 1))])
    assert answers[0] == answers[1]


def test_items_that_are_gone_are_left_out(corpus, tmp_path):
    _, folder, codes, ids, _ = corpus
    collection = Collection.create(tmp_path / "c", codes, ids=ids, bits=BITS)
    (those, pairs), *_ = groups_by_hand(codes, ids)
    kept = those[max(range(len(those)), key=lambda number: (pairs[number], -those[number]))]
    searcher = CollectionSearcher(collection)
    with asking(searcher, folder) as ask:
        collection.delete([kept])
        searcher.renew()
        answer = ask(limit=1, members=100).json()
    assert answer["version"] == 2
    (group,) = answer["groups"]
    assert (group["size"], group["representative"]) == (len(those), {"id": kept})
    assert [(item["id"], item["distance"]) for item in group["items"]] == [(id_, None) for id_ in those if id_ != kept]


def test_what_is_not_there_is_said(corpus, tmp_path):
    collection, folder, *_ = corpus
    searcher = CollectionSearcher(collection)
    with asking(searcher, None) as ask:
        answer = ask()
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")
        assert "`--duplicates FOLDER`" in answer.json()["error"]["message"]
    with asking(searcher, tmp_path / "later") as ask:
        answer = ask()
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "not_ready")
        assert "let `hashlight dedup` end" in answer.json()["error"]["message"]
        (tmp_path / "later").mkdir()
        for name in ("job.json", "dedup.json", "clusters.parquet"):
            (tmp_path / "later" / name).write_bytes((folder / name).read_bytes())
        assert ask().status_code == 200
        past = ask(after=2**62).json()
        assert (past["groups"], past["next"]) == ([], None)


@pytest.mark.parametrize("harm", ["counts", "columns", "cut", "nulls", "no job"])
def test_damaged_groups_are_refused_by_name(corpus, tmp_path, harm):
    collection, folder, *_ = corpus
    files = {name: (folder / name).read_bytes() for name in ("job.json", "dedup.json", "clusters.parquet")}
    table = pq.read_table(folder / "clusters.parquet")
    if harm == "counts":
        files["dedup.json"] = json.dumps(json.loads(files["dedup.json"]) | {"clusters": 3}).encode()
    elif harm == "cut":
        files["clusters.parquet"] = files["clusters.parquet"][:-9]
    elif harm == "no job":
        files["job.json"] = b"{}"
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    if harm == "columns":
        pq.write_table(table.drop_columns(["pairs"]), tmp_path / "clusters.parquet")
    elif harm == "nulls":
        nothing = pa.nulls(len(table), pa.int64())
        pq.write_table(table.set_column(1, "id", nothing), tmp_path / "clusters.parquet")
    with asking(CollectionSearcher(collection), tmp_path) as ask:
        answer = ask()
    assert answer.status_code == 503
    assert "cannot be read as groups of duplicates" in answer.json()["error"]["message"]
    assert "hashlight dedup --overwrite" in answer.json()["error"]["message"]
