"""Take the picture of the page, `docs/images/page.png`: `python docs/scripts/screenshot.py COLLECTION ID`.

COLLECTION is what `hashlight index` made of the drawings that `hashlight demo` writes, ID that of one of them. It needs
Chromium.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parents[1] / "images" / "page.png"
WIDTH, HEIGHT = 1440, 900


def main() -> None:
    """Serve the collection, ask it for more like the item, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collection", type=Path)
    parser.add_argument("id", type=int)
    arguments = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "hashlight",
        "serve",
        str(arguments.collection),
        "--port",
        "0",
        "--log-level",
        "warning",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = re.search(r"http://\S+", server.stdout.readline())
        assert address is not None, "the server says where it is"
        try:
            take(f"{address[0]}/#id={arguments.id}")
        finally:
            server.terminate()


def take(url: str) -> None:
    """Open the page and write what it shows."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(url, wait_until="networkidle")
        page.screenshot(path=PICTURE)


if __name__ == "__main__":
    main()
