"""Ask a gateway at a steady rate, and say every few seconds what came of it, as one line of JSON.

    python deploy/load.py http://localhost:8000 --keys deploy/keys --name load --rate 50 --seconds 60

Queries are random codes of the collection's length, one a request. They are due at fixed times, whatever the answers
take, and are timed from then on: a gateway that falls behind cannot make its times look better by slowing the load.
The exit status is 1 if a query failed or was answered in part.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hashlight import HashlightError, SearchClient

REPORT_S = 5.0


class Tally:
    """What came of the queries since the last report. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: list[float] = []
        self._outcomes: Counter[str] = Counter()
        self.faults = 0

    def add(self, outcome: str, seconds: float) -> None:
        """Count a query: `answered`, `partial`, or the name of an error."""
        with self._lock:
            self._outcomes[outcome] += 1
            self._seconds.append(seconds)
            self.faults += outcome != "answered"

    def report(self) -> str:
        """Return what came of the queries since the last call, and begin anew."""
        with self._lock:
            seconds, self._seconds = sorted(self._seconds), []
            outcomes, self._outcomes = self._outcomes, Counter()
        line: dict[str, object] = {"time": time.strftime("%H:%M:%S"), "queries": len(seconds), **outcomes}
        if seconds:
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
                line[name] = round(1000 * seconds[min(int(share * len(seconds)), len(seconds) - 1)], 2)
        return json.dumps(line)


def secret_of(path: Path | None, name: str | None) -> str | None:
    """Return the key of that name in a file of keys: the first if no name is given, none without a file."""
    if path is None:
        return None
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    keys = {words[0]: words[2] for words in lines if len(words) >= 3 and not words[0].startswith("#")}
    if not keys or (name is not None and name not in keys):
        raise SystemExit(f"{path} has no key {name or ''}: it has {', '.join(keys) or 'none'}")
    return keys[name] if name is not None else next(iter(keys.values()))


def ask(client: SearchClient, bits: int, k: int, due_s: float, tally: Tally) -> None:
    """Send one query, and tally it by the time since it was due."""
    code = random.getrandbits(bits).to_bytes((bits + 7) // 8, "little").hex()
    try:
        answers = client.search(code, k=k)
        outcome = "answered" if answers.coverage.complete else "partial"
    except HashlightError as error:
        outcome = type(error).__name__
    tally.add(outcome, time.monotonic() - due_s)


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(client: SearchClient, *, rate: float, seconds: float, threads: int, k: int) -> int:
    """Ask for so many seconds; return how many queries failed or were answered in part."""
    bits = int(client.describe()["bits"])
    tally, start_s = Tally(), time.monotonic()
    report_s = start_s + REPORT_S
    with ThreadPoolExecutor(threads) as pool:
        for number in range(round(rate * seconds)):
            due_s = start_s + number / rate
            while (now_s := time.monotonic()) < due_s:
                time.sleep(min(due_s - now_s, 0.05))
            if now_s >= report_s:
                say(tally.report())
                report_s = now_s + REPORT_S
            pool.submit(ask, client, bits, k, due_s, tally)
    say(tally.report())
    return tally.faults


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of a gateway")
    parser.add_argument("--keys", type=Path, help="file of keys, as the gateway has it")
    parser.add_argument("--name", help="whose key to use; the first without it")
    parser.add_argument("--rate", type=float, default=20.0, help="queries a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--threads", type=int, default=16, help="queries at once")
    parser.add_argument("-k", type=int, default=10, help="nearest images of a query")
    given = parser.parse_args()
    if min(given.rate, given.seconds, given.threads, given.k) <= 0:
        parser.error("--rate, --seconds, --threads and -k must be above 0")
    with SearchClient(given.url, api_key=secret_of(given.keys, given.name)) as client:
        faults = run(client, rate=given.rate, seconds=given.seconds, threads=given.threads, k=given.k)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
