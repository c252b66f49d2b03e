"""The page's files, under a name made of their content, so that browsers keep them until there are others.

A document refers to the files beside it (`src="app.js"`). It is sent with the content's name before each
(`src="4f5c.../app.js"`), which modules that import each other keep, as they are relative.
"""

from __future__ import annotations

import hashlib
import mimetypes
import re
from pathlib import Path

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_KINDS = {".css", ".html", ".js", ".png", ".svg"}
_FOREVER = "public, max-age=31536000, immutable"
_NAME = re.compile("[0-9a-f]{16}")


class PageFiles(StaticFiles):
    """Serves a folder of files from memory; `/name` is `name.html`. An ASGI application.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder)
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in _KINDS}
        digest = hashlib.sha256()
        for name, data in files.items():
            digest.update(f"{name} {len(data)} ".encode() + data)
        self._name = digest.hexdigest()[:16]
        own = re.compile(rb'\b(href|src)="(' + b"|".join(re.escape(name.encode()) for name in files) + rb')"')
        named = rb'\1="' + self._name.encode() + rb'/\2"'
        self._files = files
        self._documents = {name: own.sub(named, data) for name, data in files.items() if name.endswith(".html")}

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a document with the names of its files, or a file."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405)
        document = "index.html" if path == "." else path if path.endswith(".html") else f"{path}.html"
        if document in self._documents:
            return self._answer(document, self._documents[document], "no-cache", scope)
        first, _, rest = path.partition("/")
        # A page of another release asks for files of another name: those of this one have to do.
        is_named = bool(rest and _NAME.fullmatch(first))
        name = rest if is_named else path
        if name not in self._files:
            raise HTTPException(404)
        kept = _FOREVER if is_named and first == self._name else "no-cache"
        return self._answer(name, self._files[name], kept, scope)

    def _answer(self, name: str, data: bytes, kept: str, scope: Scope) -> Response:
        tag = f'"{self._name}"'
        headers = {"Cache-Control": kept, "ETag": tag}
        if Headers(scope=scope).get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=mimetypes.guess_type(name)[0], headers=headers)
