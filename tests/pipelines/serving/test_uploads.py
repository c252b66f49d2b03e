"""Uploads that are slow, deadly or damaged: they cost their sender an answer, and nobody else anything."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from hashlight.encoders.data.images import decode_image
from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import ImageError
from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import DeadlineExceededError
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking import encoding
from hashlight.engine.service.asking.encoding import ImageRefusedError
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.limits import Limits
from hashlight.pipelines.decoding import uploads as uploads_module
from hashlight.pipelines.decoding.uploads import UploadDecoder
from hashlight.pipelines.decoding.worker import DecodeLimits
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.errors import PipelineError
from tests import serving
from tests.pipelines.decoding import hostile

RULE = Preprocessing(size=8, channels=1, mean=(0.5,), std=(0.5,))
GOOD = serving.png(serving.make_pictures(1)[0])
ENDLESS = hostile.endless_jpeg()
PATIENT = DecodeLimits(seconds=1000)


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """Apply fault rules to the decoding of images, given as (data, what to do)."""

    def write(*rules):
        named = [
            {"step": "decode", "key": hashlib.blake2b(data, digest_size=8).hexdigest(), "do": do, "times": 1000}
            for data, do in rules
        ]
        (tmp_path / "rules.json").write_text(json.dumps(named))
        monkeypatch.setenv(chaos.VARIABLE, str(tmp_path))

    return write


@pytest.fixture
def uploads():
    """Make decoders of uploads that end with the test."""
    made = []

    def make(processes=1, **limits):
        made.append(UploadDecoder(RULE, processes=processes, limits=DecodeLimits(**limits)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def number(value):
    return hostile.save(Image.new("L", (20, 20), value), "PNG")


def test_each_image_gets_its_own_pixels_whatever_the_threads(uploads):
    decoder, wrong = uploads(processes=2), []

    def decode(first):
        for value in range(first, first + 30):
            pixels = decoder.decode(number(value), max_pixels=400, timeout_s=600)
            if pixels.shape != (8, 8, 1) or (pixels != value).any():
                wrong.append(value)

    threads = [threading.Thread(target=decode, args=(first,)) for first in (0, 60, 120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    photo = hostile.save(Image.fromarray(hostile.COLOUR), "PNG")
    expected = RULE.pixels(decode_image(photo))
    np.testing.assert_array_equal(decoder.decode(photo, max_pixels=256, timeout_s=600), expected)


def test_refusals_carry_their_reason_and_the_next_image_is_decoded(uploads, faults):
    crash, slow = number(201), number(202)
    faults((crash, "segfault"), (slow, "hang"))
    decoder = uploads(seconds=0.3, memory_bytes=64 << 20)
    for data, reason in (
        (b"", "^empty file"),
        (b"a text", "^not an image"),
        (number(3)[:-45], "^truncated|^damaged"),
        (hostile.save(Image.new("1", (21, 20)), "PNG"), "^too many pixels: 21 x 20, at most 400"),
        (crash, r"^ends the decoding process \(SIGSEGV\)$"),
        (slow, "^takes more than 0.3 s of processor time to decode$"),
        (bytes(65 << 20), "^too many bytes: 68,157,440, at most 67,108,864$"),
    ):
        with pytest.raises(ImageError, match=reason):
            decoder.decode(data, max_pixels=400, timeout_s=600)
        assert (decoder.decode(number(9), max_pixels=400, timeout_s=600) == 9).all()


def test_nothing_goes_on_after_the_time_of_a_request(uploads, faults):
    """It is the request that is at fault then, and not the image."""
    slow = number(202)
    faults((slow, "hang"))
    decoder = uploads(seconds=1000)
    wait_until(lambda: decoder._processes.free.qsize() > 0)
    with pytest.raises(DeadlineExceededError, match=r"the image was not decoded within 0\.2 s: allow more time"):
        decoder.decode(slow, max_pixels=400, timeout_s=0.2)
    assert (decoder._processes.started[0].slots["current"] == -1).all()
    assert (decoder.decode(number(9), max_pixels=400, timeout_s=600) == 9).all()


def test_a_process_is_started_before_there_is_an_image(uploads):
    decoder = uploads(processes=3)
    wait_until(lambda: decoder._processes.free.qsize() == 1)
    [first] = decoder._processes.started
    assert (decoder.decode(number(9), max_pixels=400, timeout_s=600) == 9).all()
    assert decoder._processes.started == [first]


@pytest.fixture
def one_at_work(uploads, faults):
    """A decoder of at most two processes, of which one is at work for a while."""
    slow = number(202)
    faults((slow, "hang"))
    decoder, ended = uploads(processes=2, seconds=1000), []

    def work():
        try:
            decoder.decode(slow, max_pixels=400, timeout_s=600)
        except PipelineError as error:
            ended.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: at_work(decoder) == 1)
    assert len(decoder._processes.started) == 1
    yield decoder
    decoder.close()
    thread.join()
    assert ended == ["the decoding process was ended while it was at work"]


def test_an_image_waits_for_a_process_to_start_within_its_time(one_at_work, monkeypatch):
    ready, wait = threading.Event(), uploads_module.Decoder.wait
    monkeypatch.setattr(uploads_module.Decoder, "wait", lambda *args: ready.wait(60) and wait(*args))
    with pytest.raises(DeadlineExceededError, match=r"at work for 0\.1 s"):
        one_at_work.decode(number(9), max_pixels=400, timeout_s=0.1)
    assert len(one_at_work._processes.started) == 2
    ready.set()
    assert (one_at_work.decode(number(9), max_pixels=400, timeout_s=600) == 9).all()
    assert len(one_at_work._processes.started) == 2


def test_a_process_that_cannot_be_started_may_be_started_for_the_next_image(one_at_work, uploads, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", no_more_files)
        for start in (lambda: one_at_work.decode(number(9), max_pixels=400, timeout_s=600), uploads):
            with pytest.raises(OSError, match="no more files"):
                start()
    assert (one_at_work.decode(number(9), max_pixels=400, timeout_s=600) == 9).all()


def test_a_process_that_ends_while_it_starts_is_told_and_another_started(uploads, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/false")
        decoder = uploads()
        with pytest.raises(PipelineError, match="was killed 21 times in a row"):
            decoder.decode(number(9), max_pixels=400, timeout_s=600)
    assert (decoder.decode(number(9), max_pixels=400, timeout_s=600) == 9).all()


def no_more_files(_name):
    raise OSError("no more files")


def test_an_image_that_finds_all_processes_at_work_waits_its_time(uploads, faults, tmp_path):
    slow = number(202)
    faults((slow, "wait"))
    decoder, found = uploads(seconds=1000), []
    first = threading.Thread(target=lambda: found.append(decoder.decode(slow, max_pixels=400, timeout_s=600)))
    first.start()
    wait_until(lambda: at_work(decoder) == 1)
    with pytest.raises(DeadlineExceededError, match=r"all decoding processes were at work for 0\.1 s"):
        decoder.decode(number(9), max_pixels=400, timeout_s=0.1)
    end_of_work = threading.Timer(0.3, (tmp_path / "go").touch)
    end_of_work.start()
    assert (decoder.decode(number(9), max_pixels=400, timeout_s=600) == 9).all()
    first.join()
    assert (found[0] == 202).all()


def at_work(decoder):
    return sum(bool((one.slots["current"] >= 0).any()) for one in list(decoder._processes.started))


def wait_until(holds):
    until_s = time.monotonic() + 120
    while not holds() and time.monotonic() < until_s:
        time.sleep(0.02)
    assert holds()


class Guarded(serving.AverageHash):
    """The tests' encoder, with images from guarded processes as `HashImageEncoder.for_server` has them."""

    def __init__(self, limits):
        super().__init__()
        self.uploads = UploadDecoder(RULE, processes=encoding.num_decoders(), limits=limits)

    def decode(self, data, max_pixels, timeout_s=None):
        try:
            return self.uploads.decode(data, max_pixels=max_pixels, timeout_s=timeout_s)[..., 0].astype(np.float32)
        except ImageError as error:
            raise ImageRefusedError(error.reason) from error


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return Collection.create(
        tmp_path_factory.mktemp("uploads") / "c", np.array([[1], [2]], np.uint64), bits=serving.BITS
    )


@pytest.fixture
def gateway(collection, monkeypatch):
    """A gateway on two cores, its encoder, and a client that sends images to encode."""
    monkeypatch.setattr(encoding, "usable_cores", lambda: 2)
    encoder = Guarded(DecodeLimits(seconds=3))
    app = create_app(CollectionSearcher(collection), encoder=encoder, limits=Limits(longest_timeout_s=600))
    with serving.running(app) as url, httpx.Client(base_url=url, timeout=600) as client:
        yield encoder, lambda data, timeout_ms=600_000: client.post("/v1/encode", json=body(data, timeout_ms))
    encoder.uploads.close()


def body(data, timeout_ms):
    return {"images": [base64.b64encode(data).decode()], "timeout_ms": timeout_ms}


def test_two_endless_uploads_do_not_stop_another_image(gateway):
    encoder, encode = gateway
    answers = []
    slow = [threading.Thread(target=lambda: answers.append(encode(ENDLESS))) for _ in range(2)]
    for thread in slow:
        thread.start()
    wait_until(lambda: at_work(encoder.uploads) == 2)
    good = encode(GOOD)
    assert (good.status_code, answers) == (200, [])
    for thread in slow:
        thread.join()
    errors = [answer.json()["error"] for answer in answers]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert {error["message"] for error in errors} == {
        "`images.0` cannot be decoded: takes more than 3 s of processor time to decode"
    }


def test_an_upload_whose_time_is_over_takes_no_process_any_more(gateway):
    encoder, encode = gateway
    assert encode(ENDLESS, 1500).status_code == 504
    wait_until(lambda: at_work(encoder.uploads) == 0)
    assert encode(GOOD).status_code == 200


SERVER = """
import sys
from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.http_server import Address, HttpServer
from tests.pipelines.serving.test_uploads import PATIENT, Guarded

app = create_app(CollectionSearcher(Collection.open(sys.argv[1])), encoder=Guarded(PATIENT))
server = HttpServer(app, Address(port=0))
print(server.url, flush=True)
server.run()
"""


def test_a_server_that_is_told_to_end_does_not_wait_for_an_endless_upload(collection):
    server = subprocess.Popen([sys.executable, "-c", SERVER, collection.location], stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        assert re.match("http://", url)
        answer = httpx.post(f"{url}/v1/encode", json=body(ENDLESS, 1500), timeout=600)
        assert answer.status_code == 504
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    finally:
        server.kill()
        server.communicate()
    assert server.returncode in (0, -signal.SIGTERM)
