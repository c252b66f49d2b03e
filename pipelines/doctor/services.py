"""What a machine is connected to: the store of a collection, and a gateway."""

from __future__ import annotations

import math
import os
import socket
import ssl
import statistics
import time
from collections.abc import Iterator
from typing import Any

import httpx

from hashlight.engine import machine
from hashlight.engine.client.errors import error_of
from hashlight.engine.client.http import document_of, gateway_url
from hashlight.engine.errors import HashlightError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import without_credentials
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import read_current
from hashlight.engine.wording import counted
from hashlight.pipelines.doctor.findings import Asked, Finding, gib

KEY_VARIABLE = "HASHLIGHT_API_KEY"
_LOOKS = 5
_SLOW_S = 0.5  # to read a small file of a store: every shard that is fetched takes several
_TIMEOUT_S = 10.0
_SOON_DAYS = 14.0
_DAY_S = 86_400.0


def collection(asked: Asked) -> Iterator[Finding]:
    """Tell whether a collection is there and whole, and how fast its store answers."""
    assert asked.collection is not None
    name = without_credentials(asked.collection)
    try:
        place = open_place(asked.collection)
        times_s = []
        for _ in range(_LOOKS):
            start_s = time.perf_counter()
            manifest = read_current(place)
            times_s.append(time.perf_counter() - start_s)
    except (HashlightError, OSError, ValueError) as error:
        advice = (
            "correct its name or the store's settings (AWS_ENDPOINT_URL, credentials), or look at it with "
            "`hashlight verify`"
        )
        found = f"{name} cannot be read: {without_credentials(str(error))}"
        yield Finding(check="collection", state="problem", found=found, advice=advice)
        return
    yield contents_of(name, manifest)
    yield store_of(statistics.median(times_s))
    if (memory := machine.memory()) is not None:
        yield room_for(manifest.num_bytes, memory)


def contents_of(name: str, manifest: Manifest) -> Finding:
    """Judge what the live version consists of."""
    numbers = {
        "version": manifest.version, "rows": manifest.rows, "shards": len(manifest.shards), "bits": manifest.bits,
        "bytes": manifest.num_bytes,
    }  # fmt: skip
    found = (
        f"{name} is at version {manifest.version}: {manifest.rows:,} codes of {manifest.bits} bits in "
        f"{counted(len(manifest.shards), 'shard')}, {gib(manifest.num_bytes)}"
    )
    if manifest.dead_rows > max(manifest.rows, 1):
        text = f"{found}; {manifest.dead_rows:,} deleted rows are still there"
        advice = "`hashlight compact` removes them: queries pass over them"
        return Finding(check="collection", state="warning", found=text, advice=advice, numbers=numbers)
    return Finding(check="collection", state="ok", found=found, numbers=numbers)


def store_of(seconds: float) -> Finding:
    """Judge how long a store takes for the live manifest."""
    numbers, found = {"seconds": round(seconds, 4)}, f"its manifest is read in {1000 * seconds:,.1f} ms"
    if seconds <= _SLOW_S:
        return Finding(check="collection", state="ok", found=found, numbers=numbers)
    advice = "the store is far away or busy: use one in the same region, or keep a copy on a local disk"
    return Finding(check="collection", state="warning", found=found, advice=advice, numbers=numbers)


def room_for(num_bytes: int, found: machine.Memory) -> Finding:
    """Judge whether the files of a collection can stay in memory."""
    numbers = {"collection": num_bytes, "total": found.total}
    text = f"of its {gib(num_bytes)}, memory of {gib(found.total)} can keep "
    if num_bytes <= 0.8 * found.total:
        return Finding(check="collection", state="ok", found=text + "everything", numbers=numbers)
    advice = (
        "queries will wait for the disk: give it more memory, or serve the collection in groups from several machines "
        "(`hashlight size` plans them)"
    )
    return Finding(check="collection", state="warning", found=text + "a part", advice=advice, numbers=numbers)


def gateway(asked: Asked) -> Iterator[Finding]:
    """Ask a gateway whether it is alive and ready, what it serves, and how long its certificate is good."""
    assert asked.gateway is not None
    try:
        url = httpx.URL(gateway_url(asked.gateway))
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{asked.gateway} is not the URL of a gateway")
    except ValueError as error:
        advice = "give its URL, such as https://search.example.com"
        yield Finding(check="gateway", state="problem", found=str(error), advice=advice)
        return
    try:
        with httpx.Client(base_url=url, timeout=_TIMEOUT_S) as client:
            yield from _answers_of(client, str(url))
    except httpx.HTTPError as error:
        reason = f"{error or type(error).__name__}"
        found = f"{url} does not answer: {reason}"
        advice = "start it, or correct the URL; see whether a firewall or a proxy (HTTPS_PROXY) is in between"
        if "certificate" in reason.lower():
            advice = (
                "trust the authority of its certificate (SSL_CERT_FILE), or give the gateway one for its name that is "
                "good still"
            )
        yield Finding(check="gateway", state="problem", found=found, advice=advice)
    if url.scheme == "https":
        yield from certificate_of(url.host, url.port or 443)


def _answers_of(client: httpx.Client, url: str) -> Iterator[Finding]:
    start_s = time.perf_counter()
    live = client.get("/health/live")
    seconds = time.perf_counter() - start_s
    if live.status_code != 200 or not isinstance(document := document_of(live), dict) or "status" not in document:
        found = f"{url} answers with status {live.status_code}, and not as a gateway does"
        yield Finding(check="gateway", state="problem", found=found, advice="correct the URL: something else has it")
        return
    numbers = {"seconds": round(seconds, 4)}
    found = f"{url} is alive, and answers in {1000 * seconds:,.0f} ms"
    yield Finding(check="gateway", state="ok", found=found, numbers=numbers)
    ready = client.get("/health/ready")
    yield ready_of(ready.status_code, document_of(ready))
    key = os.environ.get(KEY_VARIABLE)
    asked = client.get("/v1/collection", headers={} if key is None else {"Authorization": f"Bearer {key}"})
    yield described_of(asked, has_key=key is not None)


def ready_of(status: int, document: Any) -> Finding:
    """Judge what a gateway says of its readiness; of several collections, all that it says."""
    if status != 200 or not isinstance(document, dict):
        found = f"it is not ready (status {status}): {error_of(status, document, {})}"
        advice = "see its log: it has just started, is about to end, or finds no shard server"
        return Finding(check="gateway", state="problem", found=found, advice=advice, numbers={"status": status})
    several = document.get("collections") or {"": document}
    missing = {shard for one in several.values() for shard in one.get("missing") or ()}
    pending = [one["pending"]["version"] for one in several.values() if one.get("pending")]
    numbers = {"missing": sorted(missing), "pending": pending}
    if missing:
        found = (
            f"it is ready, but {counted(len(missing), 'shard')} cannot be searched: {', '.join(sorted(missing)[:5])}"
        )
        advice = "answers lack them: start their shard servers, or see in the gateway's log why they do not answer"
        return Finding(check="gateway", state="warning", found=found, advice=advice, numbers=numbers)
    if pending:
        found = f"it is ready, but cannot serve version {pending[0]} of the collection, which is live"
        advice = "see in its log why, and `hashlight verify` the collection"
        return Finding(check="gateway", state="warning", found=found, advice=advice, numbers=numbers)
    return Finding(check="gateway", state="ok", found="it is ready, with every shard", numbers=numbers)


def described_of(answer: httpx.Response, *, has_key: bool) -> Finding:
    """Judge what a gateway says of its collection to whoever has this key, or none."""
    document = document_of(answer)
    if answer.status_code == 200 and isinstance(document, dict):
        numbers = {name: document.get(name) for name in ("version", "rows", "bits")}
        found = f"it serves version {numbers['version']}, {numbers['rows']} codes of {numbers['bits']} bits"
        return Finding(check="gateway", state="ok", found=found, numbers=numbers)
    refused = error_of(answer.status_code, document, answer.headers)
    if answer.status_code == 409:
        return Finding(check="gateway", state="ok", found=str(refused))
    if answer.status_code in (401, 403):
        found = f"it refuses {'the key of' if has_key else 'whoever has no key, and there is none in'} {KEY_VARIABLE}"
        advice = f"set {KEY_VARIABLE} to a key with the scope `search`, which is in the gateway's file of keys"
        return Finding(check="gateway", state="warning", found=found, advice=advice)
    advice = "see its log"
    return Finding(check="gateway", state="problem", found=f"it does not answer: {refused}", advice=advice)


def certificate_of(host: str, port: int) -> Iterator[Finding]:
    """Tell for how long the certificate of a server that is trusted is good."""
    try:
        with (
            socket.create_connection((host, port), timeout=_TIMEOUT_S) as plain,
            httpx.create_ssl_context().wrap_socket(plain, server_hostname=host) as connection,
        ):
            shown = connection.getpeercert()
    except (OSError, ValueError):
        return  # which was told by what could not be asked
    assert shown is not None
    yield days_of((ssl.cert_time_to_seconds(str(shown["notAfter"])) - time.time()) / _DAY_S)


def days_of(days: float) -> Finding:
    """Judge for how many days a certificate is good."""
    numbers, found = {"days": round(days, 1)}, f"its certificate is good for {math.floor(days):,} more days"
    if days >= _SOON_DAYS:
        return Finding(check="gateway", state="ok", found=found, numbers=numbers)
    advice = "renew it: replace the files of `--tls-cert` and `--tls-key`, which the gateway reads again"
    return Finding(check="gateway", state="warning", found=found, advice=advice, numbers=numbers)
