"""The page for operators in a real browser: its tables, going back to an earlier version, and its states."""

from __future__ import annotations

import contextlib

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.api.collections import Collections
from hashlight.engine.service.asking.beside import Beside
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.http_server import Address, HttpServer
from hashlight.engine.service.door.keys import Keys
from tests import serving

OPERATOR, READER = "a" * 32, "r" * 32
KEYS = f"reader search {READER}\noperator admin {OPERATOR}"


@pytest.fixture
def folder(tmp_path):
    codes = np.arange(30, dtype=np.uint64)[:, None]
    collection = Collection.create(tmp_path / "c", codes, bits=16)
    collection.delete([0, 1, 2]).tag("clean")
    return tmp_path / "c"


@pytest.fixture
def rejects(tmp_path):
    """The folder of an encode job that rejected 101 images."""
    (tmp_path / "odd.png").write_bytes(serving.png(serving.make_pictures(1)[0]))
    rows = {
        "id": [2**62 + number for number in range(101)],
        "uri": [str(tmp_path / ("odd.png" if number == 0 else "gone.png")) for number in range(101)],
        "kind": ["decode"] * 101,
        "reason": [f"<b>cut</b> at byte {number}" for number in range(101)],
    }
    (tmp_path / "codes").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "codes" / "rejects.parquet")
    return tmp_path / "codes"


@contextlib.contextmanager
def serving_one(folder, *, writable=False, keys=None, slow_query_s=None, **beside):
    searcher = CollectionSearcher(folder)
    committer = serving.committer_of(folder, searcher) if writable else None
    keys = Keys() if keys is None else Keys.load(None, {"HASHLIGHT_API_KEYS": keys})
    app = create_app(searcher, keys=keys, committer=committer, beside=Beside(collection=str(folder), **beside))
    server = HttpServer(Collections({"c": app}, keys), Address(port=0), slow_query_s=slow_query_s)
    with serving.run_server(server) as url:
        yield url


def cells(page, section):
    return [row.locator("th, td").all_inner_texts() for row in page.locator(f"#{section} tbody tr").all()]


def test_the_tables_show_what_the_server_tells(open_page, folder, rejects):
    with serving_one(folder, codes=str(rejects), slow_query_s=0.0) as url:
        answer = httpx.post(f"{url}/v1/search", json={"queries": [{"id": 7}], "k": 3, "filter": "id < 20"})
        assert answer.status_code == 200
        page = open_page(f"{url}/admin", silent=False)
        page.locator("#versions tbody tr").nth(2).wait_for()
        facts = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
        assert (facts["Version"], facts["Items"], facts["Coverage"], facts["Where"]) == (
            "3", "27", "complete", str(folder)
        )  # fmt: skip
        versions = cells(page, "versions")
        assert [(row[0], row[2], row[3]) for row in versions] == [
            ("3", "tags or kept versions changed", "27"), ("2", "items deleted", "27 (-3)"), ("1", "created", "30")
        ]  # fmt: skip
        assert [row[7].split() for row in versions] == [["live"], ["clean"], []]
        assert page.get_by_role("button", name="Roll back").count() == 0, "this server only reads"
        assert "--writable" in page.inner_text("#versions")
        assert "No shard servers" in page.inner_text("#servers")
        (slow,) = cells(page, "slow")
        assert slow[2:4] == ["/v1/search", "queries 1, k 3, filter id < 20"]
        page.locator("#slow summary").click()
        assert '"plan"' in page.inner_text("#slow pre")
        assert page.locator("#rejects tbody tr").count() == 100
        first = page.locator("#rejects tbody tr").first
        assert first.locator("th").inner_text() == str(2**62)
        assert "<b>cut</b> at byte 0" in first.inner_text(), "text is text"
        first.scroll_into_view_if_needed()
        first.locator("img").wait_for()
        assert first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 16
        page.locator("#rejects").get_by_text("cannot be shown").first.wait_for()
        page.get_by_role("button", name="Show more").click()
        page.locator("#rejects tbody tr").nth(100).wait_for()
        assert page.locator("#rejects tbody tr th").last.inner_text() == str(2**62 + 100)
        assert page.get_by_role("button", name="Show more").count() == 0


def test_going_back_is_confirmed_and_makes_a_version(open_page, folder):
    with serving_one(folder, writable=True) as url:
        page = open_page(f"{url}/admin", silent=False)
        go = page.get_by_role("button", name="Roll back to version 1")
        go.focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Roll back to version 1?")
        dialog.wait_for()
        assert "30 items" in dialog.inner_text()
        page.keyboard.press("Escape")
        dialog.wait_for(state="hidden")
        assert go.evaluate("button => document.activeElement === button"), "focus goes back"
        assert Collection.open(folder).version == 3
        go.click()
        dialog.get_by_role("button", name="Roll back").click()
        page.get_by_text("Version 4 is written").wait_for()
        assert cells(page, "versions")[0][2:4] == ["rolled back", "30 (+3)"]
    assert (Collection.open(folder).version, len(Collection.open(folder))) == (4, 30)


def test_what_does_not_work_is_said_in_the_dialog(open_page, folder):
    with serving_one(folder, writable=True) as url:
        page = open_page(f"{url}/admin", silent=False)
        page.get_by_role("button", name="Roll back to version 1").click()
        page.route(
            "**/v1/admin/rollback", lambda route: route.fulfill(status=409, json={"error": {"type": "conflict"}})
        )
        page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        page.get_by_text("Try again when they are committed").wait_for()
        assert page.get_by_role("dialog").is_visible()


def test_a_key_is_asked_for_until_it_is_one_for_operators(open_page, folder):
    with serving_one(folder, keys=KEYS) as url:
        page = open_page(f"{url}/admin", silent=False)
        page.get_by_role("heading", name="This page needs a key").wait_for()
        assert page.locator("#tables").is_hidden()
        for key, heading in (("x" * 32, "This key is not known here"), (READER, "This key is not for operators")):
            page.get_by_label("Key").fill(key)
            page.keyboard.press("Enter")
            page.get_by_role("heading", name=heading).wait_for()
        page.get_by_label("Key").fill(OPERATOR)
        page.get_by_role("button", name="Unlock").click()
        page.locator("#versions tbody tr").first.wait_for()
        assert page.locator("#locked").is_hidden()
        page.reload()
        page.locator("#versions tbody tr").first.wait_for()
        page.get_by_role("button", name="Forget the key").click()
        page.get_by_role("heading", name="This page needs a key").wait_for()


def test_without_a_connection_what_was_read_stays(open_page, folder):
    with serving_one(folder) as url:
        page = open_page(f"{url}/admin", silent=False)
        page.locator("#versions tbody tr").first.wait_for()
        page.context.set_offline(True)
        page.get_by_role("button", name="Refresh").click()
        page.get_by_text("The server cannot be reached").wait_for()
        assert len(cells(page, "versions")) == 3
        page.context.set_offline(False)
        page.locator("#banner").wait_for(state="hidden")
        page.route("**/v1/admin/collection", lambda route: route.fulfill(status=503, json={"error": {}}))
        page.get_by_role("button", name="Refresh").click()
        page.get_by_text("The server is busy or not ready").wait_for()


def test_there_is_something_to_say_where_there_is_nothing(open_page, folder):
    with serving_one(folder) as url:
        page = open_page(f"{url}/admin", silent=False, locale="de")
        page.get_by_text("Langsame Anfragen werden nicht gesucht").wait_for()
        page.get_by_text("mit --rejects ORDNER starten").wait_for()
        assert page.evaluate("document.documentElement.lang") == "de"
        page.get_by_role("button", name="English").click()
        page.get_by_text("Slow queries are not looked for").wait_for()


def test_several_collections_have_a_page_each(open_page, folder, collection):
    apps = {
        "one": create_app(CollectionSearcher(folder), beside=Beside(collection=str(folder))),
        "two": create_app(CollectionSearcher(collection)),
    }
    with serving.running(Collections(apps, Keys())) as url:
        page = open_page(f"{url}/admin", silent=False)
        page.locator("#collections").wait_for()
        assert page.url == f"{url}/collections/one/admin"
        page.get_by_role("combobox", name="Collection").select_option("two")
        page.wait_for_url(f"{url}/collections/two/admin")
        page.get_by_text("does not know where the collection is").wait_for()
        assert page.get_by_role("combobox", name="Collection").input_value() == "two"


def test_every_text_is_there_in_both_languages(open_page, folder):
    with serving_one(folder) as url:
        page = open_page(f"{url}/admin", silent=False)
        missing = page.evaluate(
            """async () => {
                await import("./admin-texts.js");
                const { TEXTS } = await import("./texts.js");
                const script = await (await fetch("admin.js")).text();
                const html = await (await fetch("admin")).text();
                const used = [...(script + html).matchAll(/"(admin\\.[a-zA-Z.]+)"/g)];
                const names = new Set([...Object.keys(TEXTS.en), ...Object.keys(TEXTS.de)]);
                for (const [, name] of used) names.add(name);
                const ours = [...names].filter((name) => name.startsWith("admin."));
                return ours.filter((name) => !(name in TEXTS.en && name in TEXTS.de));
            }"""
        )
    assert missing == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_overflows_and_axe_finds_no_fault(open_page, folder, rejects, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    with serving_one(folder, writable=True, codes=str(rejects), slow_query_s=0.0) as url:
        assert httpx.post(f"{url}/v1/search", json={"queries": [{"id": 7}]}).status_code == 200
        page = open_page(f"{url}/admin", silent=False, viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.locator("#versions tbody tr").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("table").count() == page.locator("table > caption").count() == 3
        found = Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
        page.get_by_role("button", name="Roll back to version 1").click()
        assert Axe().run(page).response["violations"] == []
