from __future__ import annotations

import httpx
import pytest

from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from tests import serving


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
