"""What a key may ask for in a second and at once, and what is counted of requests that are refused for their key."""

from __future__ import annotations

import contextlib
import socket

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.api.collections import Collections
from hashlight.engine.service.door.allowances import Allowance
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.problems import RequestError
from tests import serving
from tests.engine.service.conftest import eventually

FIRST, SECOND = ({"X-API-Key": key} for key in ("searching-is-all-0001", "searching-also-0002"))
SLOW = "page search searching-is-all-0001 rate=0.001/s\nloader search searching-also-0002\n"
ALONE = "page search searching-is-all-0001 in-flight=1\nloader search searching-also-0002\n"


class Clock:
    now_s = 5000.0

    def __call__(self):
        return self.now_s


def is_let_in(allowance, rate, in_flight=None):
    """Make a request that is over at once."""
    try:
        with allowance.request("page", rate=rate, in_flight=in_flight):
            return True
    except RequestError:
        return False


@pytest.mark.parametrize("rate", [0.25, 1.0, 2.0, 4.0, 7.5])
@pytest.mark.parametrize("pause_s", [0.0625, 0.25, 1.0])
def test_no_span_of_time_has_more_requests_than_the_rate_allows_and_none_is_refused_in_vain(rate, pause_s):
    """Judged by all requests that were let in, where the code remembers one number. Times are exact as floats."""
    rng = np.random.default_rng(5)
    clock = Clock()
    allowance = Allowance(clock=clock)
    let_in, outcomes = [], []
    for _ in range(400):
        clock.now_s += pause_s * int(rng.integers(4)) + 64 * (rng.random() < 0.01)
        since = [(start, len(let_in) - number) for number, start in enumerate(let_in)]
        fits = all(count + 1 <= max(1.0, rate) + rate * (clock.now_s - start) for start, count in since)
        outcomes.append(is_let_in(allowance, rate))
        assert outcomes[-1] == fits
        if fits:
            let_in.append(clock.now_s)
    assert any(outcomes)
    if rate * pause_s < 0.5:
        assert not all(outcomes)


@pytest.mark.parametrize(("rate", "wait_s"), [(0.001, 1000), (0.3, 4), (1.0, 1), (50.0, 1)])
def test_a_refusal_says_when_to_try_again_and_then_it_is_let_in(rate, wait_s):
    clock = Clock()
    allowance = Allowance(clock=clock)
    while is_let_in(allowance, rate):
        pass
    with pytest.raises(RequestError, match=f"key page may make {rate:g} requests a second") as caught:
        allowance.request("page", rate=rate, in_flight=None).__enter__()
    assert (caught.value.status, caught.value.type) == (429, "overloaded")
    assert caught.value.headers == {"Retry-After": str(wait_s)}
    clock.now_s += wait_s
    assert is_let_in(allowance, rate)


def test_requests_in_flight_are_given_back_however_they_end_and_refused_ones_do_not_spend_the_rate():
    clock = Clock()
    allowance = Allowance(clock=clock)
    with allowance.request("page", rate=2, in_flight=1):
        assert not is_let_in(allowance, 2, 1)
        assert not is_let_in(allowance, 2, 1)
        assert allowance.in_flight == 1
    with contextlib.suppress(KeyError), allowance.request("page", rate=2, in_flight=1):
        raise KeyError
    assert allowance.in_flight == 0
    assert not is_let_in(allowance, 2, 1)  # the two of this second


def refusal(answer):
    document = answer.json()["error"]
    return answer.status_code, document["type"], document["limit"]


def test_a_key_beyond_its_rate_is_refused_and_others_are_not(searcher):
    with serving.running(create_app(searcher, keys=Keys.load(None, {"HASHLIGHT_API_KEYS": SLOW}))) as url:
        assert httpx.get(f"{url}/v1/collection", headers=FIRST).status_code == 200
        refused = httpx.get(f"{url}/v1/collection", headers=FIRST)
        assert refusal(refused) == (429, "overloaded", "rate")
        assert 900 < int(refused.headers["retry-after"]) <= 1000
        assert "key page may make 0.001 requests a second" in refused.text
        for _ in range(3):
            assert httpx.get(f"{url}/v1/collection", headers=SECOND).status_code == 200
        assert httpx.get(f"{url}/health/live", headers=FIRST).status_code == 200


def test_one_limit_is_for_all_collections_of_a_server(searcher):
    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": SLOW})
    apps = {name: create_app(searcher, keys=keys) for name in ("cats", "dogs")}
    with serving.running(Collections(apps, keys)) as url:
        assert httpx.get(f"{url}/v1/collections/cats", headers=FIRST).status_code == 200
        for path in ("/v1/collections/dogs", "/v1/collections", "/v1/collections/birds", "/v1/search"):
            assert refusal(httpx.get(f"{url}{path}", headers=FIRST)) == (429, "overloaded", "rate")
        assert httpx.get(f"{url}/v1/collections", headers=SECOND).status_code == 200


def test_a_key_with_too_much_in_flight_is_refused_until_an_answer_is_out_or_the_client_is_gone(searcher):
    with serving.running(create_app(searcher, keys=Keys.load(None, {"HASHLIGHT_API_KEYS": ALONE}))) as url:
        parts = httpx.URL(url)
        with socket.create_connection((parts.host, parts.port), timeout=60) as slow:
            head = {"host": parts.host, **FIRST, "content-type": "application/json", "content-length": "99"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
            slow.sendall(f"POST /v1/search HTTP/1.1\r\n{lines}\r\n".encode())

            def is_refused():
                return httpx.get(f"{url}/v1/collection", headers=FIRST).status_code == 429

            eventually(is_refused)
            refused = httpx.get(f"{url}/v1/collection", headers=FIRST)
            assert refusal(refused) == (429, "overloaded", "in_flight")
            assert refused.headers["retry-after"] == "1"
            assert "key page may have 1 request in flight" in refused.text
            assert httpx.get(f"{url}/v1/collection", headers=SECOND).status_code == 200
        eventually(lambda: not is_refused())


def test_a_changed_file_changes_the_limits_and_forgets_nothing_that_was_spent(tmp_path):
    path = tmp_path / "keys"
    path.write_text("page search searching-is-all-0001 rate=0.001/s\n")
    keys = Keys.load(path)

    def try_once():
        with keys.request(keys.find("searching-is-all-0001")):
            pass

    try_once()
    path.write_text("page search searching-is-all-0001 rate=0.002/s  # twice as many\n")
    assert keys.renew()
    with pytest.raises(RequestError, match=r"0\.002 requests a second"):
        try_once()
    path.write_text("page search searching-is-all-0001\n")
    assert keys.renew()
    try_once()


def samples(text):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_refusals_are_counted_by_their_reason_for_the_whole_server(searcher, tmp_path):
    path = tmp_path / "keys"
    path.write_text(SLOW + "scraper metrics scraping-only-0004\n")
    keys = Keys.load(path)
    apps = {name: create_app(searcher, keys=keys) for name in ("cats", "dogs")}
    with serving.running(Collections(apps, keys)) as url:

        def told():
            text = httpx.get(f"{url}/collections/dogs/metrics", headers={"X-API-Key": "scraping-only-0004"}).text
            assert "searching" not in text
            return samples(text)

        for headers, times in (({}, 2), ({"X-API-Key": "not-a-key-of-them-05"}, 3), (FIRST, 4)):
            for _ in range(times):
                httpx.get(f"{url}/v1/collections/cats", headers=headers)
        httpx.get(f"{url}/collections/cats/metrics", headers=SECOND)
        httpx.get(f"{url}/v1/collections", headers={})
        found = told()
        reasons = {name[1]: value for name, value in found.items() if name[0] == "hashlight_key_refusals_total"}
        assert reasons == {"missing": 3, "unknown": 3, "scope": 1, "rate": 3, "in_flight": 0}
        assert (found[("hashlight_keys",)], found[("hashlight_keys_stale",)]) == (3, 0)
        path.write_text("page search tooshort\n")
        eventually(lambda: told()[("hashlight_keys_stale",)] == 1)
        assert told()[("hashlight_keys",)] == 3


@pytest.mark.parametrize("path", ["/v1/admin", "/v1/admin/keys", "/v1/collections/cats/admin/anything"])
def test_whatever_administers_needs_the_scope_admin(searcher, path):
    lines = "page search,write,metrics searching-is-all-0001\nops admin administering-0002\n"
    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": lines})
    with serving.running(Collections({"cats": create_app(searcher, keys=keys)}, keys)) as url:
        assert httpx.get(f"{url}{path}", headers=FIRST).status_code == 403
        assert httpx.get(f"{url}{path}", headers={"X-API-Key": "administering-0002"}).status_code == 404
