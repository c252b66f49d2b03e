"""The page in a real browser: it shows the collection's answers, and the console stays silent."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hashlight.engine.service.api.app import PAGE, create_app
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.routing.router import ClusterRouter
from tests import oracles, serving
from tests.engine.service.conftest import serving as shard_servers

KEY = "sixteen-letters-or-more-than-that"


@pytest.fixture
def code(collection):
    return code_of(collection, 5)


def code_of(collection, row):
    return collection.shards[0].codes_NW[row].astype("<u8").tobytes().hex()


def words_of(code):
    return np.frombuffer(bytes.fromhex(code), "<u8").astype(np.uint64).reshape(1, -1)


def stored(collection, id_):
    return collection.get(np.array([id_]))["code"][0].as_py().hex()


def bits_of(code):
    return np.unpackbits(np.frombuffer(bytes.fromhex(code), np.uint8), bitorder="little")


def differing(one, other):
    """The bits in which two codes in hex differ."""
    return np.flatnonzero(bits_of(one) != bits_of(other)).tolist()


def wait_for_answers(page, ids):
    """Wait until exactly these items are shown, in this order."""
    page.wait_for_function(
        "wanted => wanted ==="
        " JSON.stringify([...document.querySelectorAll('#gallery .tile')].map((one) => one.dataset.id))",
        arg=json.dumps([str(id_) for id_ in ids], separators=(",", ":")),
    )


def others_near(collection, id_, k):
    """The k items nearest to one, which is not among them."""
    near = collection.search(words_of(stored(collection, id_)), k + 1).ids[0]
    return near[near != id_]


def named(collection, id_):
    return collection.get(np.array([id_]))["name"][0].as_py() or f"Item {id_}"


def tile(page, id_):
    return page.locator(f'#gallery .tile[data-id="{id_}"]')


def inspect(page, id_):
    tile(page, id_).locator(".open").click()
    page.locator("#inspector .acts").wait_for()


def ask(page, text):
    page.fill("#query", text)
    page.press("#query", "Enter")


def picture(number):
    return serving.png(serving.make_pictures(number + 1)[number])


def code_of_picture(data):
    encoder = serving.AverageHash()
    return encoder.encode([encoder.decode(data, 10**6)]).codes


def test_a_link_shows_its_query(open_page, collection, code):
    page = open_page(f"#code={code}&k=12")
    expected = collection.search(words_of(code), 12)
    wait_for_answers(page, expected.ids[0])
    assert [int(text) for text in page.locator(".distance").all_inner_texts()] == expected.distances[0].tolist()
    seen = []
    for ring in page.locator(".ring").all():
        told = ring.locator("h3").inner_text()
        first, last, count = re.fullmatch(r"(?:(\d+) to )?(\d+) bits?\s(\d+) pictures?", told).groups()
        inside = [int(text) for text in ring.locator(".distance").all_inner_texts()]
        assert (inside[0], inside[-1], len(inside)) == (int(first or last), int(last), int(count))
        assert not set(inside) & set(seen)
        seen += inside
    assert sorted(seen) == expected.distances[0].tolist()
    name = collection.get(expected.ids[0, 3:4])["name"][0].as_py()
    assert tile(page, expected.ids[0, 3]).locator(".caption").all_inner_texts() == ([name] if name else [])
    label = tile(page, expected.ids[0, 3]).locator(".open").get_attribute("aria-label")
    distance = expected.distances[0, 3]
    assert label == f"{name or f'Item {expected.ids[0, 3]}'}, {distance} {'bit' if distance == 1 else 'bits'} away"
    assert "500 pictures" in page.inner_text("#collection")
    assert "60 bits" in page.inner_text("#collection")
    assert re.search(r"Exact\s*[\d.,]+ ms\s*500 of 500 codes · \d+ looked at", page.inner_text("#badge"))


def test_an_uploaded_image_is_found_and_the_link_finds_the_same(open_page, collection):
    data = picture(7)
    expected = collection.search(code_of_picture(data), 24).ids[0]
    page = open_page("#k=24")
    page.set_input_files("#file", {"name": "shoe.png", "mimeType": "image/png", "buffer": data})
    wait_for_answers(page, expected)
    assert page.locator(".chip").all_inner_texts() == ["shoe.png"]
    assert page.locator(".chip img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 16
    again = open_page(page.url.split("/")[-1])
    wait_for_answers(again, expected)
    assert again.locator(".chip").all_inner_texts() == ["shoe.png"]
    pictures = collection.thumbnails_of(expected)
    shown = next(id_ for id_, thumbnail in zip(expected, pictures, strict=True) if thumbnail)
    image = tile(page, shown).locator("img")
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 16


@pytest.fixture
def opening(open_page):
    """A page that has not heard yet what the collection is, and a function that lets it."""
    page, held = open_page("#k=24"), []
    page.locator("#gallery .tile").first.wait_for()
    page.route("**/v1/collection", lambda route: held.append(route))
    page.reload()

    def describe():
        page.wait_for_timeout(100)
        held[0].continue_()

    return page, describe


def test_a_picture_that_is_brought_while_the_page_opens_is_searched(opening, collection):
    page, describe = opening
    data = picture(7)
    page.set_input_files("#file", {"name": "shoe.png", "mimeType": "image/png", "buffer": data})
    describe()
    wait_for_answers(page, collection.search(code_of_picture(data), 24).ids[0])


def test_what_is_typed_while_the_page_opens_is_searched(opening, collection, code):
    page, describe = opening
    wanted = collection.search(words_of(code), 24).ids[0]
    ask(page, code)
    page.locator('[data-mode="range_search"]').evaluate("button => button.click()")
    page.locator('[data-mode="search"]').evaluate("button => button.click()")
    describe()
    wait_for_answers(page, wanted)


def test_words_are_searched_where_the_encoder_takes_texts(open_page, collection, searcher):
    page = open_page()
    page.locator("#gallery .tile").first.wait_for()
    ask(page, "stripes")
    page.get_by_text("no id, code or address").wait_for()
    codes = collection.shards[0].codes_NW[:9]
    expected = {word: collection.search(codes[row : row + 1], 24).ids[0] for word, row in serving.Named.words.items()}
    assert expected["dots"].tolist() != expected["stripes"].tolist()
    with serving.running(create_app(searcher, encoder=serving.Named(codes))) as url:
        page = open_page(f"{url}/#k=24")
        page.locator("#gallery .tile").first.wait_for()
        ask(page, " stripes ")
        wait_for_answers(page, expected["stripes"])
        again = open_page(page.url)
        wait_for_answers(again, expected["stripes"])
        assert again.locator(".chip").all_inner_texts() == ["stripes"]
        again.get_by_role("button", name="Remove stripes").click()
        again.get_by_text("Find pictures that look alike").wait_for()
        ask(again, "dots")
        wait_for_answers(again, expected["dots"])


def test_the_start_page_is_a_wall_and_a_click_searches(open_page, collection):
    page = open_page("#k=24")
    page.locator("#gallery .tile").nth(20).wait_for()
    first = int(page.locator("#gallery .tile").first.get_attribute("data-id"))
    page.locator("#gallery .open").first.click()
    wait_for_answers(page, others_near(collection, first, 24))
    assert page.locator(".chip").all_inner_texts() == [named(collection, first)]
    page.go_back()
    page.get_by_text("Find pictures that look alike").wait_for()
    page.locator("#recent").get_by_role("button", name=named(collection, first)).wait_for()


def test_the_handle_searches_as_it_is_moved_and_back_returns_to_the_previous_query(open_page, collection, code):
    page = open_page(f"#code={code}&k=24")
    first = collection.search(words_of(code), 24).ids[0]
    wait_for_answers(page, first)
    within = {radius: collection.range_search(words_of(code), radius, 200).ids for radius in (2, 3)}
    assert 3 < len(within[2]) < len(within[3]) < 30
    page.locator("#radius").fill("3")
    wait_for_answers(page, within[3])
    assert page.get_by_role("button", name="Within a radius").get_attribute("aria-pressed") == "true"
    page.locator("#radius").fill("2")
    wait_for_answers(page, within[2])
    assert page.locator("#histogram text.here").text_content() == "2"
    page.locator("#radius").focus()
    page.keyboard.press("ArrowLeft")
    wait_for_answers(page, collection.range_search(words_of(code), 1, 200).ids)
    page.get_by_role("button", name="Nearest").click()
    wait_for_answers(page, first)
    inspect(page, first[2])
    page.get_by_role("button", name="More like this").click()
    wait_for_answers(page, others_near(collection, first[2], 24))
    page.go_back()
    wait_for_answers(page, first)


def test_the_handle_is_dragged(open_page, collection, code):
    page = open_page(f"#code={code}&mode=range_search&radius=0")
    wait_for_answers(page, collection.range_search(words_of(code), 0, 200).ids)
    knob = page.locator("#histogram .knob").bounding_box()
    step = (page.locator("#histogram").bounding_box()["width"] - 28) / int(page.locator("#radius").get_attribute("max"))
    page.mouse.move(knob["x"] + knob["width"] / 2, knob["y"] + 30)
    page.mouse.down()
    page.mouse.move(knob["x"] + knob["width"] / 2 + 2 * step, knob["y"] + 30, steps=4)
    page.mouse.move(knob["x"] + knob["width"] / 2 + 3 * step, knob["y"] + 30, steps=6)
    wait_for_answers(page, collection.range_search(words_of(code), 3, 200).ids)
    page.mouse.up()
    page.wait_for_function("() => location.hash.includes('mode=range_search') && location.hash.includes('radius=3')")


MOVES = """
last => {
  window.written = 0;
  const write = history.replaceState;
  history.replaceState = (...values) => { window.written += 1; write.apply(history, values); };
  const handle = document.getElementById("radius");
  for (let place = 1; place <= 150; place++) {
    handle.value = place < 150 ? 4 + (place % 9) : last;
    handle.dispatchEvent(new Event("input", { bubbles: true }));
  }
}
"""


def test_a_moving_handle_updates_the_url_once(open_page, collection, code):
    page = open_page(f"#code={code}&k=24")
    page.locator("#gallery .tile").first.wait_for()
    page.evaluate(MOVES, 3)
    page.wait_for_function("() => location.hash.includes('radius=3')")
    assert page.evaluate("window.written") == 1
    within = collection.range_search(words_of(code), 3, 200).ids
    wait_for_answers(page, within)
    inspect(page, within[1])
    # A new query uses the handle's last position, even before that was written to the URL.
    page.evaluate(f"last => {{ ({MOVES})(last); document.querySelector('[data-act=\"more\"]').click(); }}", 2)
    page.locator(".chip").get_by_text(named(collection, within[1])).wait_for()
    page.go_back()
    wait_for_answers(page, collection.range_search(words_of(code), 2, 200).ids)
    assert "radius=2" in page.url


def test_what_is_much_further_away_is_in_a_ring_of_its_own(open_page, collection, code):
    found = collection.search(words_of(code), len(collection))
    near, far = found.ids[0, :2], found.ids[0, -2:]
    apart = found.distances[0, [0, 1, -2, -1]]
    assert np.diff(apart).tolist()[0] < 60 / 8 < apart[2] - apart[1]
    only = ", ".join(str(id_) for id_ in [*near, *far])
    page = open_page(f"#code={code}&filter=id in ({only})")
    page.locator(".tile").nth(3).wait_for()
    sizes = [ring.locator(".tile").count() for ring in page.locator(".ring").all()]
    assert sizes[0] == 2


def test_a_bit_is_flipped_by_a_click_and_searched_from(open_page, collection, code):
    page = open_page(f"#code={code}&k=24")
    nearest = collection.search(words_of(code), 24)
    wait_for_answers(page, nearest.ids[0])
    last, distance = nearest.ids[0, -1], nearest.distances[0, -1]
    inspect(page, last)
    apart = differing(code, stored(collection, last))
    lit = page.locator("#inspector .bits .differs")
    assert [int(one.get_attribute("data-bit")) for one in lit.all()] == apart
    assert len(apart) == distance
    assert page.inner_text("#inspector .differing") == f"{distance} differ"
    lit.nth(1).click()
    words = np.frombuffer(bytes.fromhex(code), np.uint8).copy()
    words[apart[1] // 8] ^= 1 << apart[1] % 8
    flipped = words.tobytes().hex()
    wait_for_answers(page, collection.search(words_of(flipped), 24).ids[0])
    assert f"code={flipped}" in page.url
    # The picture stays in the inspector, one step nearer.
    assert page.inner_text("#inspector .differing") == f"{distance - 1} differ"
    assert named(collection, last) in page.inner_text("#inspector")


def test_a_flipped_code_is_called_after_what_was_asked(open_page, collection):
    id_ = int(collection.shards[0].ids_N[3])
    page = open_page(f"#id={id_}&k=24")
    wait_for_answers(page, others_near(collection, id_, 24))
    page.locator(".chip", has_text=named(collection, id_)).wait_for()
    for bit in (4, 9):
        before = page.locator(f'#inspector [data-bit="{bit}"]').get_attribute("aria-label")
        page.locator(f'#inspector [data-bit="{bit}"]').click()
        page.wait_for_function(
            "([bit, before]) => document.querySelector(`#inspector [data-bit='${bit}']`)?.ariaLabel !== before",
            arg=[bit, before],
        )
        page.locator(".chip", has_text="≈").wait_for()
    assert page.locator(".chip").all_inner_texts() == [f"≈ {named(collection, id_)}"]


def test_several_pictures_are_one_query(open_page, collection):
    ids = [int(collection.shards[0].ids_N[row]) for row in (3, 90, 140)]
    codes = [stored(collection, id_) for id_ in ids]
    ones = np.sum([bits_of(code) for code in codes], axis=0)
    majority = np.packbits(ones > 1.5, bitorder="little").tobytes().hex()
    assert majority not in codes
    page = open_page("#k=24")
    page.locator("#gallery .tile").first.wait_for()
    for number, id_ in enumerate(ids, 1):
        ask(page, str(id_))
        page.locator(".chip").nth(number - 1).wait_for()
    wait_for_answers(page, collection.search(words_of(majority), 24).ids[0])
    assert "3 pictures are one query" in page.inner_text("#note")
    page.get_by_role("button", name=f"Remove {named(collection, ids[1])}").click()
    page.locator(".chip").nth(2).wait_for(state="detached")
    halfway = page.evaluate("async (two) => (await import('./codes.js')).combine(two, 60)", [codes[0], codes[2]])
    apart = len(differing(codes[0], codes[2]))
    assert sorted(len(differing(code, halfway)) for code in (codes[0], codes[2])) == [apart // 2, -(-apart // 2)]
    wait_for_answers(page, collection.search(words_of(halfway), 24).ids[0])


def test_what_is_not_wanted_takes_away_what_is_nearer_to_it(open_page, collection, code):
    page = open_page(f"#code={code}&k=24")
    found = collection.search(words_of(code), 24)
    wait_for_answers(page, found.ids[0])
    unwanted = found.ids[0, 16]
    inspect(page, unwanted)
    page.get_by_role("button", name="Not like this").click()
    to_unwanted = [len(differing(stored(collection, id_), stored(collection, unwanted))) for id_ in found.ids[0]]
    kept = [id_ for id_, own, other in zip(found.ids[0], found.distances[0], to_unwanted, strict=True) if own <= other]
    assert 0 < len(kept) < 24
    wait_for_answers(page, kept)
    assert f"{24 - len(kept)} answers are hidden" in page.inner_text("#note")
    again = open_page(page.url)
    wait_for_answers(again, kept)


def test_filters_are_typed_and_picked(open_page, collection, code):
    page = open_page(f"#code={code}&k=24")
    page.locator("#gallery .tile").first.wait_for()
    page.fill("#filter", "label == 3")
    assert page.locator(".chip").count() == 1
    page.press("#filter", "Enter")
    wait_for_answers(page, collection.search(words_of(code), 24, filter="label == 3").ids[0])
    again = open_page(page.url)
    wait_for_answers(again, collection.search(words_of(code), 24, filter="label == 3").ids[0])
    page.get_by_role("button", name="everything").click()
    wait_for_answers(page, collection.search(words_of(code), 24).ids[0])
    nearest = collection.search(words_of(code), 24).ids[0].tolist()
    of_label = [collection.search(words_of(code), 24, filter=f"label == {label}").ids[0].tolist() for label in range(9)]
    among = [len({*nearest} & {*ids}) for ids in of_label]
    first, second = sorted(range(9), key=lambda label: -among[label])[:2]
    assert among[first] > 1
    page.get_by_role("button", name=f"label: {first}, {among[first]} pictures").click()  # of the answers
    wait_for_answers(page, of_label[first])
    open_page("").get_by_role("button", name="label: 2, 72 pictures").wait_for()  # of the collection
    picked = page.get_by_role("button", name=f"label: {first}", exact=True)
    assert picked.get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name=f"label: {second}", exact=True).click()
    both = collection.search(words_of(code), 24, filter=f"label in ({first}, {second})").ids[0]
    wait_for_answers(page, both)
    page.fill("#filter", "label")
    assert page.locator("#suggestions option").first.get_attribute("value") == "label == "


def test_problems_are_told_in_words_of_the_page(open_page, code):
    page = open_page(f"#code={code}", silent=False)
    page.locator("#gallery .tile").first.wait_for()
    page.fill("#filter", "colour == 3")
    assert page.locator("#problem").is_hidden()  # only when it is asked for
    page.press("#filter", "Enter")
    page.get_by_text("This filter cannot be read").wait_for()
    assert "colour == 3" in page.inner_text("#problem")
    assert "label, name, price" in page.inner_text("#problem")
    assert "character" not in page.inner_text("#problem")
    assert "label == " in page.inner_text("#problem")
    assert page.locator("#gallery .tile").count()  # what was found before stays
    page.get_by_role("button", name="Clear the filter").click()
    page.locator("#problem").wait_for(state="hidden")
    assert page.input_value("#filter") == ""
    ask(page, "99999999")
    page.get_by_text("There is no such picture").wait_for()
    ask(page, "zebra")
    page.get_by_text("a code here has 16 hexadecimal digits").wait_for()
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no image"})
    page.get_by_text("This file cannot be read as a picture").wait_for()
    page.locator("#gallery .tile").first.wait_for()  # what was there stays


@pytest.mark.parametrize("wrong", ["zebra", "0f0f", "0f" * 9])
def test_a_link_of_another_collection_is_refused(open_page, code, wrong):
    # Beside another code, too, with which it would be combined.
    page = open_page(f"#code={code}&code={wrong}&is.__proto__=1", silent=False)
    page.get_by_text("This is not a code of this collection").wait_for()


def test_a_key_is_asked_for_and_kept_for_the_tab(open_page, searcher, collection, code):
    keys = Keys.load(environment={"HASHLIGHT_API_KEYS": f"page search {KEY}"})
    with serving.running(create_app(searcher, keys=keys)) as url:
        page = open_page(f"{url}/#code={code}&k=24", silent=False)
        page.fill("#secret", "another-key-of-more-than-sixteen")
        page.get_by_role("button", name="Unlock").click()
        page.get_by_text("does not know this key").wait_for()
        page.fill("#secret", KEY)
        page.get_by_role("button", name="Unlock").click()
        wait_for_answers(page, collection.search(words_of(code), 24).ids[0])
        page.wait_for_function("() => document.querySelector('#gallery img')?.naturalWidth > 0")
        page.reload()
        wait_for_answers(page, collection.search(words_of(code), 24).ids[0])


def test_keys_move_between_answers_open_close_and_help(open_page, collection, code):
    page = open_page(f"#code={code}&k=24")
    ids = collection.search(words_of(code), 24).ids[0]
    wait_for_answers(page, ids)
    focused = "document.activeElement.closest('.tile')?.dataset.id"
    page.keyboard.press("ArrowDown")  # from nowhere, to the first that is seen
    assert page.evaluate(focused) == str(ids[0])
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.evaluate(focused) == str(ids[1])
    page.keyboard.press("ArrowDown")
    below = tile(page, page.evaluate(focused)).bounding_box()
    assert below["y"] > tile(page, ids[1]).bounding_box()["y"]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    assert page.evaluate(focused) == str(ids[0])
    page.keyboard.press("Enter")
    page.locator("#inspector .acts").wait_for()
    page.keyboard.press("Escape")
    page.locator("#inspector .acts").wait_for(state="detached")
    assert page.evaluate(focused) == str(ids[0])
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"


def test_what_is_looked_at_follows_the_keys(open_page, collection, code):
    page = open_page(f"#code={code}&k=24")
    ids = collection.search(words_of(code), 24).ids[0]
    wait_for_answers(page, ids)
    looked_at = "document.querySelector('.tile.current')?.dataset.id"
    inspect(page, ids[0])
    page.keyboard.press("ArrowRight")
    assert page.evaluate(looked_at) == str(ids[1])
    page.keyboard.press("x")
    assert page.locator(".tile.selected").get_attribute("data-id") == str(ids[1])
    page.locator("#badge").click()
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")  # the badge has the focus again
    assert page.evaluate("document.activeElement.closest('.tile')?.dataset.id") == str(ids[0])


def test_a_radius_begins_where_the_nearest_end(open_page, collection, code):
    page = open_page(f"#code={code}&k=24")
    expected = collection.search(words_of(code), 24)
    wait_for_answers(page, expected.ids[0])
    last = int(expected.distances[0, -1])
    page.get_by_text("Within a radius").click()
    within = collection.range_search(words_of(code), last, 200)
    wait_for_answers(page, within.ids)
    assert page.input_value("#radius") == str(last)


def test_a_finger_opens_every_part_of_a_picture(open_page, collection, code):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = open_page(f"#code={code}&k=24", **phone)
    ids = collection.search(words_of(code), 24).ids[0]
    wait_for_answers(page, ids)
    box = tile(page, ids[0]).bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 15, box["y"] + 15)
    page.get_by_role("button", name="Select", exact=True).tap()
    page.get_by_role("button", name="Close").tap()
    page.locator("#inspector").wait_for(state="hidden")
    tile(page, ids[1]).locator(".pick").tap()
    assert page.locator(".tile.selected").count() == 2


def test_a_filter_that_leaves_nothing_is_cleared_by_a_button(open_page, collection, code):
    page = open_page(f"#code={code}&k=24&filter=label+%3D%3D+99")
    page.get_by_role("heading", name="No picture matches this filter").wait_for()
    page.get_by_role("button", name="Clear the filter").click()
    wait_for_answers(page, collection.search(words_of(code), 24).ids[0])


def test_explain_opens_from_the_badge(open_page, collection, code):
    page = open_page(f"#code={code}&mode=range_search&radius=4")
    page.locator("#badge").click()
    dialog = page.get_by_role("dialog", name="Exact")
    told = dialog.inner_text()
    assert "500, all that there are" in told
    assert "3, all that there are" in told
    assert "Nothing nearer is missing" in told
    explain = collection.range_search(words_of(code), 4, 200, explain=True).explain
    rows = dict(re.findall(r"(.+)\n(.+)", told))
    assert rows["Comparisons"] == str(int(explain.candidates[0]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_overflows_and_axe_finds_no_fault(open_page, collection, code, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page("#k=24", color_scheme=scheme, viewport={"width": width, "height": 844})
    page.locator("#gallery .tile").nth(11).wait_for()

    def check(state):
        assert page.evaluate("document.documentElement.scrollWidth") <= width, state
        faults = Axe().run(page).response["violations"]
        assert [(fault["id"], fault["nodes"][0]["html"]) for fault in faults] == [], state

    check("start")
    ask(page, code)
    wait_for_answers(page, collection.search(words_of(code), 24).ids[0])
    check("answers")
    inspect(page, collection.search(words_of(code), 24).ids[0, 2])
    check("inspector")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("dialog", name="Compare").wait_for()
    check("compare")


def test_the_first_answer_is_above_the_fold_on_a_phone(open_page, collection, code):
    page = open_page(f"#code={code}&k=24", viewport={"width": 390, "height": 844})
    ids = collection.search(words_of(code), 24).ids[0]
    wait_for_answers(page, ids)
    box, dial = tile(page, ids[0]).bounding_box(), page.locator("#dial").bounding_box()
    assert box["y"] + box["height"] < 400 < dial["y"]
    inspect(page, ids[5])
    page.get_by_role("button", name="More like this").click()
    page.locator(".chip").get_by_text(named(collection, ids[5])).wait_for()
    assert page.evaluate("scrollY") == 0
    page.locator("#inspector").wait_for(state="hidden")
    assert page.locator("#gallery .tile").first.bounding_box()["y"] < 400


@pytest.mark.parametrize("width", [390, 1440])
def test_every_part_of_a_query_can_be_removed_and_the_language_changed(open_page, collection, width):
    ids = collection.shards[0].ids_N[[3, 5, 7, 90]].tolist()
    chips = "&".join(f"id={id_}" for id_ in ids[:3]) + f"&code={stored(collection, ids[3])}~{'long' * 20}.png"
    page = open_page(f"#{chips}&k=24", viewport={"width": width, "height": 844})
    page.locator("#gallery .tile").first.wait_for()
    seen = "at => Boolean(document.elementFromPoint(...at)?.closest('.remove'))"
    removes = [one.bounding_box() for one in page.locator(".chip .remove").all()]
    assert len(removes) == 4
    # On a phone there is room for three, the others are scrolled to.
    for box in removes if width > 390 else removes[-3:]:
        assert page.evaluate(seen, [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    page.get_by_role("button", name="Deutsch").click()
    page.locator("html[lang=de]").wait_for()


LOADS = """
() => {
  window.loads = { now: 0, most: 0, all: 0 };
  const ask = window.fetch;
  window.fetch = async (path, ...more) => {
    const isPicture = String(path).includes("/thumbnail");
    if (isPicture) loads.most = Math.max(loads.most, (loads.all += 1, loads.now += 1));
    try {
      return await ask(path, ...more);
    } finally {
      if (isPicture) loads.now -= 1;
    }
  };
  window.shifts = [];
  new PerformanceObserver((list) => shifts.push(...list.getEntries().map((one) => one.value)))
    .observe({ type: "layout-shift", buffered: true });
}
"""


def test_pictures_load_as_they_are_scrolled_to_and_nothing_shifts(chromium, url, collection, code):
    context = chromium.new_context(viewport={"width": 1200, "height": 700})
    page = context.new_page()
    page.add_init_script(f"({LOADS})()")
    page.goto(f"{url}/#code={code}")
    page.locator("#gallery .tile").nth(12).wait_for()
    page.wait_for_function("() => document.querySelector('#gallery').ariaBusy === 'false' && loads.now === 0")
    early = page.evaluate("loads")
    assert early["most"] <= 8
    assert early["all"] < 120
    for _ in range(100):
        page.mouse.wheel(0, 700)
        if page.locator("#gallery .tile").count() == 200:
            break
        page.wait_for_timeout(30)
    wait_for_answers(page, collection.search(words_of(code), 200).ids[0])
    assert page.evaluate("loads.most") <= 8
    assert sum(page.evaluate("shifts")) < 0.01
    context.close()


def test_the_first_answer_waits_for_nothing_but_itself(chromium, url, code):
    context = chromium.new_context(viewport={"width": 1200, "height": 700})
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url.split("/v1/")[-1]) if "/v1/" in request.url else None)
    page.goto(f"{url}/#code={code}")
    page.locator("#facets .facet").nth(3).wait_for()
    first = next(place for place, path in enumerate(asked) if "thumbnail" in path)
    assert sorted(asked[:first]) == ["collection", "histogram", "search"]
    before = asked[: asked.index("facets")]
    assert sum("thumbnail" in path for path in before) >= 16, "all pictures that can be seen come before counts"
    context.close()


def test_nothing_shifts_on_the_start_page(chromium, url):
    context = chromium.new_context(viewport={"width": 1200, "height": 700})
    page = context.new_page()
    page.add_init_script(f"({LOADS})()")
    page.goto(url)
    page.locator("#facets .facet").nth(3).wait_for()
    page.wait_for_function("() => document.querySelector('#gallery').ariaBusy === 'false' && loads.now === 0")
    assert sum(page.evaluate("shifts")) < 0.01
    context.close()


def test_a_wheel_moves_the_row_of_facets(open_page, code):
    page = open_page(f"#code={code}", viewport={"width": 390, "height": 700})
    row = page.locator("#facets")
    row.locator(".facet").nth(3).wait_for()
    assert row.evaluate("row => [row.scrollLeft, row.scrollWidth > row.clientWidth]") == [0, True]
    row.hover()
    page.mouse.wheel(0, 120)
    page.wait_for_function("() => document.querySelector('#facets').scrollLeft === 120")


def test_selected_answers_are_saved(open_page, collection, code):
    page = open_page(f"#code={code}&k=24")
    found = collection.search(words_of(code), 24)
    wait_for_answers(page, found.ids[0])
    for place in (1, 4):
        tile(page, found.ids[0, place]).hover()
        tile(page, found.ids[0, place]).locator(".pick").click()
    selection = page.locator("#selection")
    assert "2 selected" in selection.inner_text()

    def saved(form):
        with page.expect_download() as download:
            selection.get_by_role("button", name=f"Save as {form}").click()
        return Path(download.value.path()).read_text()

    chosen = found.ids[0, [1, 4]]
    table = collection.get(chosen)
    rows = list(csv.DictReader(io.StringIO(saved("CSV"))))
    assert [int(row["id"]) for row in rows] == chosen.tolist()
    assert [int(row["distance"]) for row in rows] == found.distances[0, [1, 4]].tolist()
    assert [row["name"] or None for row in rows] == table["name"].to_pylist()
    read = json.loads(saved("JSON"))
    assert [(one["id"], one["code"]) for one in read] == [(int(id_), stored(collection, id_)) for id_ in chosen]
    assert saved("ids").split() == [str(id_) for id_ in chosen]


def test_compare_slides_blinks_and_subtracts(open_page, collection, code):
    page = open_page(f"#code={code}&k=24")
    ids = collection.search(words_of(code), 24).ids[0]
    wait_for_answers(page, ids)
    inspect(page, ids[3])
    page.get_by_role("button", name="Compare").click()
    stage = page.locator(".stage")
    upper = stage.locator(".upper")
    page.get_by_label("Where the upper picture ends").fill("20")
    assert upper.evaluate("one => getComputedStyle(one).clipPath") == "inset(0px 0px 0px 20%)"
    assert f"{named(collection, ids[3])}, " in page.inner_text("dialog .hint")
    frame, around = stage.bounding_box(), page.locator("dialog").bounding_box()
    assert abs((frame["x"] - around["x"]) - (around["x"] + around["width"] - frame["x"] - frame["width"])) < 2
    page.get_by_role("button", name="Blink").click()
    assert upper.evaluate("one => getComputedStyle(one).animationName") == "blink"
    page.get_by_role("button", name="Difference").click()
    assert upper.evaluate("one => getComputedStyle(one).mixBlendMode") == "difference"


def test_an_empty_radius_says_where_the_nearest_is(open_page, collection):
    code = "5a5a5a5a5a5a5a0a"
    near = collection.search(words_of(code), 1).distances[0, 0]
    assert near > 1
    page = open_page(f"#code={code}&mode=range_search&radius=1")
    page.get_by_text("Nothing within 1 bit").wait_for()
    page.get_by_text(f"The nearest is {near} bits away").wait_for()
    page.get_by_role("button", name=f"Go to {near} bits").click()
    wait_for_answers(page, collection.range_search(words_of(code), near, 200).ids)


def test_the_histogram_has_the_distances_of_the_collection(open_page, collection, code):
    page = open_page(f"#code={code}&mode=range_search&radius=3")
    page.locator("#histogram rect").first.wait_for()
    codes = [words_of(stored(collection, id_)) for shard in collection.shards for id_ in shard.ids_N]
    counts = np.bincount([oracles.hamming_distances(words_of(code), one)[0, 0] for one in codes], minlength=61)
    last = int(page.locator("#radius").get_attribute("max"))
    assert counts[: last + 1].sum() > 250  # most of the collection
    assert page.locator("#histogram rect.in").count() == np.count_nonzero(counts[:4])
    assert page.locator("#histogram rect.out").count() == np.count_nonzero(counts[4 : last + 1])
    assert page.locator("#readout").text_content() == f"within 3 bits · {counts[:4].sum()} found"
    page.locator("#radius").fill("5")
    told = f"within 5 bits: {counts[:6].sum()} pictures"
    page.wait_for_function("told => document.querySelector('#radius').ariaValueText === told", arg=told)


def test_more_answers_follow_page_by_page(open_page, collection, code):
    page = open_page(f"#code={code}&mode=range_search&radius=60", viewport={"width": 1200, "height": 2000})
    page.locator("#gallery .tile").first.wait_for()

    def scroll_to(count):
        for _ in range(200):
            if page.locator("#gallery .tile").count() == count:
                return
            page.mouse.wheel(0, 2000)
            page.wait_for_timeout(30)

    scroll_to(200)
    page.get_by_role("button", name="Show more").click()
    scroll_to(400)
    wait_for_answers(page, collection.range_search(words_of(code), 60, 400).ids)


def test_a_partial_answer_says_so(open_page, collection, code):
    with shard_servers(collection.path) as (_, whole):
        missing = whole.groups[2].shards
        addresses = [group.replicas for group in whole.groups[:2]]
        cluster = whole.with_replicas([*addresses, ()])
        with contextlib.closing(ClusterRouter(cluster)) as router, serving.running(create_app(router)) as url:
            for mode in ("", "&mode=range_search&radius=4"):
                page = open_page(f"{url}/#code={code}&k=24{mode}", silent=False)
                page.get_by_text("2 of 3 shards answered: some pictures may be missing").wait_for()
                page.locator("#gallery .tile").nth(5).wait_for()
                assert "Partial" in page.inner_text("#badge")
                page.locator("#badge").click()
                dialog = page.get_by_role("dialog", name="Partial")
                assert all(name in dialog.inner_text() for name in missing)
                assert "Nothing nearer is missing" not in dialog.inner_text()
            page = open_page(url, silent=False)
            page.locator("#gallery .tile").nth(5).wait_for()
            ask(page, code)
            page.get_by_text("2 of 3 shards answered").wait_for()


def test_a_picture_is_dropped_and_another_pasted(open_page, collection):
    page = open_page("#k=24")
    page.locator("#gallery .tile").first.wait_for()
    transfer = """
        async (data) => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
          transfer.items.add(new File([bytes], "given.png", { type: "image/png" }));
          return transfer;
        }
    """
    data = [picture(number) for number in (2, 9)]
    page.dispatch_event(
        "body", "drop", {"dataTransfer": page.evaluate_handle(transfer, base64.b64encode(data[0]).decode())}
    )
    wait_for_answers(page, collection.search(code_of_picture(data[0]), 24).ids[0])
    pasted = page.evaluate_handle(transfer, base64.b64encode(data[1]).decode())
    page.evaluate(
        "data => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }))", pasted
    )
    page.locator(".chip").nth(1).wait_for()
    page.get_by_text("2 pictures are one query").wait_for()


def test_a_link_and_a_picture_are_shared(open_page, collection, code):
    page = open_page(f"#code={code}~shoe.png&k=24", permissions=["clipboard-read", "clipboard-write"])
    ids = collection.search(words_of(code), 24).ids[0]
    wait_for_answers(page, ids)
    inspect(page, ids[1])
    page.get_by_role("button", name="Copy link").click()
    page.get_by_text("Link copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    with page.expect_download() as download:
        page.get_by_role("button", name="Picture to share").click()
    with Image.open(download.value.path()) as card:
        assert (card.format, card.size) == ("PNG", (1200, 630))
        assert len(set(card.convert("L").resize((120, 63)).tobytes())) > 40  # not an empty sheet


def test_it_goes_on_when_the_connection_is_back(open_page, collection, code):
    page = open_page(f"#code={code}&k=24", silent=False)
    ids = collection.search(words_of(code), 24).ids[0]
    wait_for_answers(page, ids)
    page.context.set_offline(True)
    page.get_by_text("You are offline").wait_for()
    wait_for_answers(page, ids)  # what was found stays
    page.context.set_offline(False)
    page.locator("#banner").wait_for(state="hidden")


def test_an_upload_shows_its_progress_and_can_be_cancelled(open_page):
    page = open_page("#k=24")
    page.locator("#gallery .tile").first.wait_for()
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 20_000}  # bytes a second
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    noise = np.random.default_rng(2).integers(256, size=(400, 400, 3)).astype(np.uint8)
    page.set_input_files("#file", {"name": "noise.png", "mimeType": "image/png", "buffer": serving.png(noise)})
    page.locator(".chip").get_by_text("Sending…").wait_for()
    page.wait_for_function("() => Number(document.querySelector('.face').style.getPropertyValue('--done')) > 0.05")
    page.get_by_role("button", name="Cancel").click()
    page.locator(".chip").wait_for(state="detached")
    page.get_by_text("Cancelled.").wait_for()


def test_every_text_is_in_every_language(open_page, code):
    page = open_page()
    texts = page.evaluate("async () => (await import('./texts.js')).TEXTS")
    assert sorted(texts) == ["de", "en"]
    assert texts["de"].keys() == texts["en"].keys()
    for name, english in texts["en"].items():
        forms = [english] if isinstance(english, str) else list(english.values())
        others = [texts["de"][name]] if isinstance(english, str) else list(texts["de"][name].values())
        wanted, *holes = [set(re.findall(r"\{\w+\}", text)) for text in [forms[-1], others[-1], *forms, *others]]
        assert holes[0] == wanted, name
        assert all(some <= wanted for some in holes), name
    written = "".join(path.read_text() for path in PAGE.glob("*.js") if not path.name.startswith("admin"))
    used = set(re.findall(r"\bt\(\"([\w.]+)\"", written))
    used |= set(re.findall(r'data-(?:text|label|title)="([\w.]+)"', (PAGE / "index.html").read_text()))
    assert len(used) > 80
    assert used - texts["en"].keys() == set()


def test_it_speaks_german(open_page, code):
    page = open_page(f"#code={code}&k=24", locale="de-DE")
    page.locator("#gallery .tile").first.wait_for()
    assert page.locator("html").get_attribute("lang") == "de"
    assert "Exakt" in page.inner_text("#badge")
    page.get_by_role("button", name="English").click()
    page.get_by_text("Within a radius").wait_for()


def test_the_page_loads_nothing_from_other_origins(http):
    policy = http.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_page_is_small():
    served = [path for path in PAGE.iterdir() if path.suffix in (".html", ".css", ".js", ".svg")]
    own = [path for path in served if not path.name.startswith("admin")]
    assert sum(path.stat().st_size for path in own) < 150_000
