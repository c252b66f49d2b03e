"""A prefix of a bucket, in S3, GCS or Azure."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore

from hashlight.engine.errors import PlaceError
from hashlight.engine.places.failures import OvertakenError, RefusedError, retried, translated
from hashlight.engine.places.files import report_step
from hashlight.engine.places.place import HIDDEN, Entry, Found, Place
from hashlight.engine.places.reading import RangedFile, RetryingFile, map_ahead, refuse_more
from hashlight.engine.places.uris import split_bucket

_LIST_PAGE = 1000
# Larger objects are read in ranges, in parallel: each range must arrive within the client's timeout.
_RANGE_BYTES = 32 << 20
_PART_BYTES = 8 << 20
# S3 accepts at most 10,000 parts per upload.
_MAX_PARTS = 9000
_NO_SUCH_TAG = {"e_tag": f'"{"0" * 32}"', "version": "1"}


class Bucket(Place):
    """See `Place`. An object appears complete or not at all, and a killed upload leaves nothing visible."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self._store, self._base = split_bucket(location)

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        """Pickle as the location, because a connection cannot be pickled."""
        return Bucket, (self.location,)

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._base, name.rstrip("/")) if part)

    # Reading.

    def read(self, name: str = "", *, max_bytes: int | None = None) -> bytes:
        """See `Place.read`."""
        return retried(lambda: self._read(name, max_bytes)[0], self.path(name))

    def _read(self, name: str, max_bytes: int | None) -> tuple[bytes, dict[str, str]]:
        with translated(self.path(name)):
            result = obstore.get(self._store, self._key(name))
            size, tag = result.meta["size"], _tag_of(result.meta)
            refuse_more(size, max_bytes)
            if size <= _RANGE_BYTES:
                return bytes(result.bytes()), tag
        starts = range(0, size, _RANGE_BYTES)
        parts = map_ahead(lambda start: self._read_range(name, start, min(start + _RANGE_BYTES, size), tag), starts, 4)
        return b"".join(parts), tag

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """See `Place.read_range`: one request."""
        return retried(lambda: self._read_range(name, start, stop, {}), self.path(name))

    def _read_range(self, name: str, start: int, stop: int, tag: dict[str, str]) -> bytes:
        """Read bytes of an object; fails if it no longer has this tag, if one is given."""
        options: Any = {"range": (start, stop)}
        if "e_tag" in tag:
            options["if_match"] = tag["e_tag"]
        with translated(self.path(name)):
            return bytes(obstore.get(self._store, self._key(name), options=options).bytes())

    def find(self, name: str) -> Found | None:
        """See `Place.find`."""
        try:
            return Found(*retried(lambda: self._read(name, None), self.path(name)))
        except FileNotFoundError:
            return None

    def open(self, name: str = "") -> RetryingFile:
        """See `Place.open`."""
        about = retried(lambda: self._head(name), self.path(name))
        tag, size = _tag_of(about), about["size"]
        return RetryingFile(
            lambda: RangedFile(lambda start, stop: self._read_range(name, start, stop, tag), size), self.path(name)
        )

    def _head(self, name: str) -> Any:
        with translated(self.path(name)):
            return obstore.head(self._store, self._key(name))

    def entry(self, name: str = "") -> Entry | None:
        """See `Place.entry`."""
        if self._key(name):
            with contextlib.suppress(FileNotFoundError):
                about = retried(lambda: self._head(name), self.path(name))
                return _entry_of(name, about)
        return Entry(name, 0, "", is_folder=True) if self._holds_any(name) else None

    def _holds_any(self, folder: str) -> bool:
        def first() -> bool:
            with translated(self.path(folder)):
                return any(page for page in obstore.list(self._store, self._key(folder) or None, chunk_size=1))

        try:
            return retried(first, self.path(folder))
        except FileNotFoundError:  # the bucket does not exist
            return False

    def children(self, folder: str = "", *, hidden: bool = False) -> list[Entry]:
        """See `Place.children`."""
        prefix = self._key(folder)

        def listed() -> Any:
            with translated(self.path(folder)):
                return obstore.list_with_delimiter(self._store, prefix or None)

        found = retried(listed, self.path(folder))
        entries = {about["path"]: _entry_of(about["path"].rpartition("/")[2], about) for about in found["objects"]}
        # Some tools mark a folder with an empty object of the same name; only the folder is listed.
        entries |= {path: Entry(path.rpartition("/")[2], 0, "", is_folder=True) for path in found["common_prefixes"]}
        entries.pop(prefix, None)
        visible = (entry for entry in entries.values() if hidden or not entry.name.startswith("."))
        return sorted(visible, key=lambda entry: entry.name)

    def walk(self, folder: str = "", *, skipped: Counter[str] | None = None) -> Iterator[Entry]:
        """See `Place.walk`: page by page, in the order of the keys."""
        start = len(self._key(folder) and self._key(folder) + "/")
        hidden = ""
        for about in self._files(folder):
            name = about["path"][start:]
            left_out = _hidden_part(name)
            if name and not left_out:
                yield _entry_of(name, about)
            # What is in a hidden folder comes in a row.
            elif left_out and left_out != hidden and skipped is not None:
                skipped[HIDDEN] += 1
            hidden = left_out or hidden

    def tops(self) -> list[Entry]:
        """See `Place.tops`; all of it is in memory."""

        def listed() -> Any:
            with translated(self.path()):
                return obstore.list_with_delimiter(self._store, self._key("") or None)

        found = retried(listed, self.path())
        start = len(self._key("") and self._key("") + "/")
        files = [_entry_of(about["path"][start:], about) for about in found["objects"] if about["path"][start:]]
        folders = [Entry(path[start:], 0, "", is_folder=True) for path in found["common_prefixes"]]
        entries = sorted([*files, *folders], key=lambda entry: entry.name + "/" * entry.is_folder)
        # An empty object with the name of a folder is a marker, as in a walk.
        followers = [*entries[1:], None]
        return [
            entry
            for entry, after in zip(entries, followers, strict=True)
            if entry.is_folder or entry.size or after is None or (after.name, after.is_folder) != (entry.name, True)
        ]

    def _files(self, folder: str) -> Iterator[Any]:
        pending: Any = None
        for about in self._list(folder):
            # An empty object with the name of a folder is a marker; the folder's files come next.
            is_marker = pending and pending["size"] == 0 and about["path"].startswith(pending["path"] + "/")
            if pending and not is_marker:
                yield pending
            pending = about
        if pending:
            yield pending

    def _list(self, folder: str) -> Iterator[Any]:
        with translated(self.path(folder)):
            for page in obstore.list(self._store, self._key(folder) or None, chunk_size=_LIST_PAGE):
                yield from page

    def download(self, name: str, target: Path) -> None:
        """See `Place.download`."""
        entry = self.entry(name)
        if entry is not None and not entry.is_folder:
            self._download_file(name, target)
            return
        target.mkdir(parents=True, exist_ok=True)
        for file in self.walk(name):
            path = target / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._download_file(f"{name}/{file.name}" if name else file.name, path)

    def _download_file(self, name: str, target: Path) -> None:
        about = retried(lambda: self._head(name), self.path(name))
        size, tag = about["size"], _tag_of(about)

        def part(start: int) -> bytes:
            stop = min(start + _RANGE_BYTES, size)
            return retried(lambda: self._read_range(name, start, stop, tag), self.path(name))

        with target.open("wb") as file:
            for data in map_ahead(part, range(0, size, _RANGE_BYTES), 4):
                file.write(data)

    # Writing.

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """See `Place.put`."""
        report_step("aside", name)
        with translated(self.path(name)):
            obstore.put(self._store, self._key(name), data, chunk_size=_PART_BYTES, max_concurrency=4)
        report_step("published", name)

    def put_new(self, name: str, data: bytes) -> bool:
        """See `Place.put_new`."""
        report_step("aside", name)
        is_new = self._put_if(name, data, "create")
        report_step("published", name)
        return is_new

    def replace(self, name: str, data: bytes, found: Found | None) -> bool:
        """See `Place.replace`."""
        return self.put_new(name, data) if found is None else self._put_if(name, data, found.tag)

    def _put_if(self, name: str, data: bytes, mode: Any) -> bool:
        try:
            with translated(self.path(name)):
                obstore.put(self._store, self._key(name), data, mode=mode)
            return True
        except OvertakenError:
            # The client repeats a put whose response was lost, and the repeat is refused if the first put succeeded.
            there = self.find(name)
            return there is not None and there.data == data
        except RefusedError as error:
            raise PlaceError(f"{error}: this operation needs conditional puts") from error

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """See `Place.scratch`."""
        with tempfile.TemporaryDirectory(prefix="hashlight-") as folder:
            yield Path(folder) / name.rpartition("/")[2]

    def put_file(self, name: str, path: Path) -> None:
        """See `Place.put_file`: a large file is uploaded in parts, in parallel."""
        report_step("aside", name)
        part_bytes = max(_PART_BYTES, path.stat().st_size // _MAX_PARTS + 1)
        with translated(self.path(name)), path.open("rb") as file:
            obstore.put(self._store, self._key(name), file, chunk_size=part_bytes, max_concurrency=4)
        report_step("published", name)

    @contextlib.contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """See `Place.new_folder`; it is written to local scratch space and uploaded file by file."""
        with self.scratch(name) as path:
            yield path
            for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
                self.put_file(f"{name}/{file.relative_to(path).as_posix()}", file)

    def remove(self, name: str) -> None:
        """See `Place.remove`."""
        key = self._key(name)
        with translated(self.path(name)):
            for page in obstore.list(self._store, key, chunk_size=_LIST_PAGE):
                if keys := [about["path"] for about in page]:
                    obstore.delete(self._store, keys)
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, key)

    @contextlib.contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """See `Place.lock`: writes a marker, and checks that the store refuses conditional puts that must fail."""
        self.put(".lock", b"")
        modes: tuple[Any, ...] = ("create", _NO_SUCH_TAG)
        for mode in modes:
            if self._put_if(".lock", b"overwritten by a conditional put", mode):
                raise PlaceError(
                    f"{self}: its store ignores the conditions of puts, so two writers could overwrite each other: "
                    "write to a folder of this machine, or to a store that supports conditional puts, and copy"
                )
        yield

    def remove_leftovers(self, folder: str = "") -> None:
        """See `Place.remove_leftovers`: a bucket has no temporary files."""


def _hidden_part(name: str) -> str:
    """Return a name up to the first part that begins with a dot; the empty string if there is none."""
    parts = name.split("/")
    first = next((number for number, part in enumerate(parts, start=1) if part.startswith(".")), 0)
    return "/".join(parts[:first])


def _tag_of(about: Any) -> dict[str, str]:
    return {name: about[name] for name in ("e_tag", "version") if about.get(name)}


def _entry_of(name: str, about: Any) -> Entry:
    modified_s = about["last_modified"].timestamp()
    return Entry(name, about["size"], f"{about['size']}:{int(modified_s)}", modified_s=modified_s)
