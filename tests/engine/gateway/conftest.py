from __future__ import annotations

import shutil

import httpx
import pytest

from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from tests import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
QUIET += ["--no-first-run", "--disable-component-update"]


@pytest.fixture(scope="session")
def collection(tmp_path_factory):
    return serving.make_collection(tmp_path_factory.mktemp("serving") / "c")


@pytest.fixture(scope="session")
def searcher(collection):
    return CollectionSearcher(collection)


@pytest.fixture(scope="session")
def url(searcher):
    """A gateway shared by all tests."""
    with serving.running(create_app(searcher, encoder=serving.AverageHash())) as url:
        yield url


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
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
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, "locale": "en-GB", **options})
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
