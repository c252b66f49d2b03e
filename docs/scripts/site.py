"""Hooks of mkdocs: pages that lie outside `docs/`, links between those and the others, and pages made from the code.

Links in the repository go by its folders, so that they work where it is read as it lies. On the site a link to a file
that is not published becomes its text.
"""

from __future__ import annotations

import importlib
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Published under the path that they have in the repository.
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/LEADERBOARD.md",
    "benchmarks/results/*.md",
    "benchmarks/results/*.png",
)
# Made when the site is built, by the function `render_page` of a module beside this one.
MADE = {"commands.md": "commands", "http-api.md": "http_api"}

_LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
_ELSEWHERE = re.compile(r"[a-z]+:")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside `docs/`, and those that are made."""
    for uri in sorted(_outside()):
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / uri)))
    for uri, module in MADE.items():
        files.append(File.generated(config, uri, content=_made_by(module)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links go to pages of the site."""
    folder = posixpath.dirname(_in_repository(page.file))
    return _LINK.sub(lambda link: _published(link, page.file.src_uri, folder, files), markdown)


def _in_repository(file: File) -> str:
    return file.src_uri if file.src_uri in _outside() else f"docs/{file.src_uri}"


def _published(link: re.Match[str], page: str, folder: str, files: Files) -> str:
    target = link["target"]
    if _ELSEWHERE.match(target):
        return link[0]
    path = posixpath.normpath(posixpath.join(folder, target))
    uri = path.removeprefix("docs/")
    if (path.startswith("docs/") or uri in _outside()) and files.get_file_from_path(uri) is not None:
        return f"{link['text']}({posixpath.relpath(uri, posixpath.dirname(page) or '.')}{link['anchor'] or ''})"
    if not (ROOT / path).exists():
        raise PluginError(f"{page} links to {target}, which is not there")
    return link["text"].removeprefix("!")[1:-1]


def _outside() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for pattern in OUTSIDE for path in ROOT.glob(pattern)}


def _made_by(module: str) -> str:
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        page: str = importlib.import_module(module).render_page()
    finally:
        sys.path.pop(0)
    return page
