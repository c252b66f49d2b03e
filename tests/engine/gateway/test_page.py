"""The page in a real browser: it shows the collection's answers, and the console stays silent."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.door.keys import Keys
from tests import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
QUIET += ["--no-first-run", "--disable-component-update"]


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, url):
    """Open the page in a fresh browser context; the console must stay silent."""
    contexts, said = [], []

    def open_(address="", *, silent=True, **options):
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        if silent:
            page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{url}/{address}" if "://" not in address else address)
        return page

    yield open_
    for context in contexts:
        context.close()
    # The missing picture of an item is a 404, which the browser itself logs.
    assert [line for line in said if "404" not in line] == []


@pytest.fixture
def code(collection):
    return code_of(collection, 5)


def code_of(collection, row):
    return collection.shards[0].codes_NW[row].astype("<u8").tobytes().hex()


def words_of(code):
    return np.frombuffer(bytes.fromhex(code), "<u8").astype(np.uint64).reshape(1, -1)


def wait_for_answers(page, ids):
    """Wait until exactly these items are shown, in this order."""
    expected = [str(id_) for id_ in ids]
    page.wait_for_function(
        "expected => JSON.stringify([...document.querySelectorAll('#answers li dd:first-of-type')]"
        ".filter(dd => dd.previousElementSibling.textContent === 'id').map(dd => dd.textContent)) === expected",
        arg=str(expected).replace("'", '"').replace(" ", ""),
    )


def test_a_link_shows_its_query(open_page, collection, code):
    page = open_page(f"#code={code}&k=12")
    expected = collection.search(words_of(code), 12)
    wait_for_answers(page, expected.ids[0])
    assert [float(text) for text in page.locator(".distance").all_inner_texts()] == expected.distances[0].tolist()
    name = collection.get(expected.ids[0, :1])["name"][0].as_py()
    assert page.locator("#answers li").first.locator("dd").all_inner_texts()[2] == (name or "none")
    assert "500 images, 60 bits, 3 shards" in page.inner_text("#collection")
    assert "12 answers in" in page.inner_text("#status")
    assert "from 3 of 3 shards, 500 codes" in page.inner_text("#status")


def test_an_uploaded_image_is_found_and_the_link_finds_the_same(open_page, collection):
    picture = serving.png(serving.make_pictures(8)[7])
    encoder = serving.AverageHash()
    codes = encoder.encode([encoder.decode(picture, 10**6)]).codes
    page = open_page()
    page.set_input_files("#file", {"name": "shoe.png", "mimeType": "image/png", "buffer": picture})
    wait_for_answers(page, collection.search(codes, 24).ids[0])
    assert page.inner_text("#shown figcaption") == "shoe.png"
    again = open_page(page.url.split("/")[-1])
    wait_for_answers(again, collection.search(codes, 24).ids[0])
    assert page.locator("#answers img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 16


def test_words_are_searched_where_the_encoder_takes_texts(open_page, collection, searcher):
    page = open_page()
    page.locator("#answers li").first.wait_for()
    assert page.get_by_label("Words").is_hidden()
    codes = collection.shards[0].codes_NW[:9]
    expected = {word: collection.search(codes[row : row + 1], 5).ids[0] for word, row in serving.Named.words.items()}
    assert expected["dots"].tolist() != expected["stripes"].tolist()
    with serving.running(create_app(searcher, encoder=serving.Named(codes))) as url:
        page = open_page(f"{url}/#k=5")
        page.get_by_label("Words").fill("stripes")
        wait_for_answers(page, expected["stripes"])
        page.get_by_label("Words").fill(" dots ")
        wait_for_answers(page, expected["dots"])
        assert page.inner_text("#shown figcaption") == "dots"
        again = open_page(page.url)
        wait_for_answers(again, expected["dots"])
        assert again.get_by_label("Words").input_value() == "dots"
        again.locator("#answers button").nth(2).click()
        again.locator("#shown").get_by_text(f"Item {expected['dots'][2]}").wait_for()
        assert again.get_by_label("Words").input_value() == ""
        page.get_by_label("Words").fill("")
        page.get_by_text("A sample of the collection").wait_for()


def test_sliders_update_as_they_move_and_back_returns_to_the_previous_query(open_page, collection, code):
    page = open_page(f"#code={code}")
    page.locator("#k").fill("3")
    first = collection.search(words_of(code), 3).ids[0]
    wait_for_answers(page, first)
    page.get_by_label("all within a radius").check()
    page.locator("#radius").fill("6")
    within = collection.range_search(words_of(code), 6, 200)
    wait_for_answers(page, within.ids)
    page.get_by_label("the nearest").check()
    wait_for_answers(page, first)
    page.locator("#answers button").nth(2).click()
    stored = collection.get(first[2:3])["code"][0].as_py()
    wait_for_answers(page, collection.search(words_of(stored.hex()), 3).ids[0])
    assert page.input_value("#text") == str(first[2])
    page.go_back()
    wait_for_answers(page, first)


MOVES = """
k => {
  window.written = 0;
  const write = history.replaceState;
  history.replaceState = (...values) => { window.written += 1; write.apply(history, values); };
  const slider = document.getElementById("k");
  for (let place = 1; place <= 150; place++) {
    slider.value = place < 150 ? 20 + place % 9 : k;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  }
}
"""


def test_a_moving_slider_updates_the_url_once(open_page, collection, code):
    page = open_page(f"#code={code}")
    page.locator("#answers button").first.wait_for()
    page.evaluate(MOVES, 3)
    page.wait_for_function("() => location.hash.includes('k=3')")
    assert page.evaluate("window.written") == 1
    first = collection.search(words_of(code), 5).ids[0]
    wait_for_answers(page, first[:3])
    # A new query uses the slider's last position, even before that was written to the URL.
    page.evaluate(f"k => {{ ({MOVES})(k); document.querySelector('#answers button').click(); }}", 5)
    page.locator("#shown").get_by_text(f"Item {first[0]}").wait_for()
    page.go_back()
    wait_for_answers(page, first)
    assert "k=5" in page.url


def test_filters_and_their_errors(open_page, collection, code):
    page = open_page(f"#code={code}&k=5")
    page.fill("#filter", "label == 3")
    wait_for_answers(page, collection.search(words_of(code), 5, filter="label == 3").ids[0])
    assert "label (int64), name (string), price (double)" in page.inner_text("#attributes")


def test_errors_are_shown(open_page, code):
    page = open_page(f"#code={code}", silent=False)
    page.locator("#answers li").first.wait_for()
    page.fill("#filter", "colour == 3")
    page.locator("#error").wait_for()
    assert "colour" in page.inner_text("#error")
    page.fill("#filter", "")
    page.locator("#error").wait_for(state="hidden")
    page.fill("#text", "99999999")
    page.get_by_text("99999999").first.wait_for()
    page.fill("#text", "zebra")
    page.get_by_text("expected an id, or a code of 60 bits").wait_for()
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no image"})
    page.get_by_text("cannot be decoded").wait_for()


def test_a_key_is_asked_for_and_kept_for_the_tab(open_page, searcher, collection, code):
    keys = Keys.load(environment={"HASHLIGHT_API_KEYS": "page search sixteen-letters-or-more-than-that"})
    with serving.running(create_app(searcher, keys=keys)) as url:
        page = open_page(f"{url}/#code={code}&k=4", silent=False)
        page.fill("#secret", "sixteen-letters-or-more-than-that")
        page.get_by_role("button", name="Use it").click()
        wait_for_answers(page, collection.search(words_of(code), 4).ids[0])
        # Not `decode()`: the page lets go of the picture's bytes as soon as it has loaded.
        page.wait_for_function("() => document.querySelector('#answers img')?.naturalWidth > 0")
        page.reload()
        wait_for_answers(page, collection.search(words_of(code), 4).ids[0])


def test_arrow_keys_move_between_answers(open_page, code):
    page = open_page(f"#code={code}&k=8")
    page.locator("#answers li").nth(7).wait_for()
    page.locator("#answers button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    focused = "[...document.querySelectorAll('#answers button')].indexOf(document.activeElement)"
    assert page.evaluate(focused) == 1
    page.keyboard.press("Enter")
    page.locator("#shown").get_by_text("Item").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_nothing_overflows_and_axe_finds_no_serious_fault(open_page, code, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(f"#code={code}&k=12", color_scheme=scheme, viewport={"width": width, "height": 800})
    page.locator("#answers li").nth(11).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    faults = Axe().run(page).response["violations"]
    assert [fault["id"] for fault in faults if fault["impact"] in ("serious", "critical")] == []


def test_the_page_loads_nothing_from_other_origins(http):
    policy = http.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy
