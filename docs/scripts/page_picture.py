"""Take the picture of the page that the README shows, from a running server.

hashlight serve photos
python docs/scripts/page_picture.py http://127.0.0.1:8000 1702463215703835647 --radius 92 --answer 6
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

TARGET = Path(__file__).parents[1] / "images" / "page.png"
SIZE = {"width": 1440, "height": 900}


def main() -> None:
    """Ask for what is near an item, look at one of the answers, and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("id", type=int, help="item that is the query")
    parser.add_argument("--radius", type=int, default=8)
    parser.add_argument("--answer", type=int, default=3, help="answer that is looked at, from 1")
    asked = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, locale="en-GB")
        page.goto(f"{asked.url.rstrip('/')}/#id={asked.id}&mode=range_search&radius={asked.radius}")
        page.locator("#gallery .open").nth(asked.answer - 1).click()
        page.locator("#inspector .acts").wait_for()
        page.locator("#histogram rect").first.wait_for()
        page.mouse.move(5, SIZE["height"] - 5)
        page.wait_for_load_state("networkidle")
        picture = page.screenshot(animations="disabled")
        browser.close()
    with Image.open(io.BytesIO(picture)) as taken:
        taken.convert("RGB").save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
