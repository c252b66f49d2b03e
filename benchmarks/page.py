"""How soon the page shows answers: a browser with an empty cache opens links to queries of a collection of 100,000.

    python -m benchmarks.page --out benchmarks/results/page_NAME_DATE

Takes Chromium and playwright. Server and browser share this machine. A time is counted from the moment at which the
browser begins to open the address, and ends with the frame in which the first answer's picture is painted. Every link
is another query and is opened once by a context of its own, so that nothing is in a cache of the browser.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.reporting import environment, save_report
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction

ROWS, BITS, K = 100_000, 64, 24
GOAL_MS = 300
VIEWS: dict[str, Any] = {"desktop": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
# Runs before the page's own scripts: has the browser tell when it has painted the pictures of answers.
WATCH = """
new MutationObserver(() => {
  for (const image of document.querySelectorAll('#gallery .tile img:not([elementtiming])')) {
    image.setAttribute('elementtiming', 'answer');
  }
}).observe(document, { childList: true, subtree: true });
new PerformanceObserver((list) => { window.answeredMs ??= list.getEntries()[0].renderTime; })
  .observe({ type: 'element', buffered: true });
"""


def pictures(rng: np.random.Generator, count: int) -> list[bytes]:
    """Return JPEGs as thumbnails are: at most 128 pixels a side."""
    found = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((128, 96), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


def make_collection(folder: Path, rng: np.random.Generator) -> None:
    """Write clusters of codes, each of a few hundred, with names and thumbnails."""
    centres = rng.integers(2**64, size=300, dtype=np.uint64)
    flips = np.bitwise_and.reduce(rng.integers(2**64, size=(3, ROWS), dtype=np.uint64))  # one bit in eight
    codes = centres[rng.integers(len(centres), size=ROWS)] ^ flips
    thumbnails = pictures(rng, 500)
    attributes = pa.table({"name": [f"picture {number}" for number in range(ROWS)]})
    shown = pa.array([thumbnails[number % len(thumbnails)] for number in range(ROWS)])
    with Transaction(folder, fresh=Fresh(BITS, None)) as writer:
        writer.add(codes[:, None], np.arange(ROWS), attributes, None, shown)
        writer.commit()


def start_server(folder: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "hashlight", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+", line):
            return process, found[0].rstrip("/")
    raise SystemExit("the server has ended")


def measure(url: str, ids: list[int]) -> dict[str, list[float]]:
    """Return milliseconds until the first answer is painted, for each view and link."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        found: dict[str, list[float]] = {}
        for name, viewport in VIEWS.items():
            for id_ in ids:
                context = browser.new_context(viewport=viewport)
                context.add_init_script(WATCH)
                page = context.new_page()
                page.goto(f"{url}/#id={id_}&k={K}")
                page.wait_for_function("() => window.answeredMs")
                found.setdefault(name, []).append(page.evaluate("window.answeredMs"))
                context.close()
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--opened", type=int, default=40, help="links, each opened in every view")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        make_collection(Path(folder) / "collection", rng)
        server, url = start_server(Path(folder) / "collection")
        try:
            times = measure(url, rng.choice(ROWS, arguments.opened, replace=False).tolist())
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    rows = {
        name: {
            "p50_ms": round(float(np.median(taken)), 1),
            "p95_ms": round(float(np.quantile(taken, 0.95)), 1),
            "within_goal": round(float(np.mean(np.array(taken) <= GOAL_MS)), 3),
            "each_ms": [round(one, 1) for one in taken],
        }
        for name, taken in times.items()
    }
    about = {**environment("playwright"), "load": os.getloadavg()[0], "rows": ROWS, "bits": BITS, "k": K}
    lines = "\n".join(
        f"| {name}, {VIEWS[name]['width']} x {VIEWS[name]['height']} | {row['p50_ms']} | {row['p95_ms']} | "
        f"{row['within_goal']:.0%} |"
        for name, row in rows.items()
    )
    markdown = f"""# How soon the page shows answers

{about["machine"]}, {about["versions"]}, load of the machine {about["load"]:.1f}.
{ROWS:,} codes of {BITS} bits with thumbnails, a server and a browser on the same machine;
{arguments.opened} links to the {K} nearest of an item, each opened once with an empty cache.
Milliseconds from opening the address to the frame that has the first answer's picture.

| view | p50, ms | p95, ms | within {GOAL_MS} ms |
|---|---|---|---|
{lines}
"""
    save_report(arguments.out, {**about, "times": rows}, markdown)


if __name__ == "__main__":
    main()
