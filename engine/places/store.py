"""Where a collection lies: a folder, or a prefix of a bucket. Both are read and written through the same few calls.

A bucket is reached through `pyarrow.fs`, by URI: `s3://BUCKET/PREFIX`, `gs://...`, `abfss://...`; see
`engine.places.buckets` for options and credentials.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs

from hashlight.engine.errors import CollectionBusyError
from hashlight.engine.places.buckets import BUCKET_SCHEMES, bucket_filesystem, put_in_s3, split_options
from hashlight.engine.places.files import sync_folder, write_atomically, writer_lock


class Store(Protocol):
    """Files by name (with `/`), relative to the collection. `str(store)` names the place in messages."""

    location: str

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, None if there is none."""
        ...

    def open(self, name: str) -> Any:
        """Open a file that is there for reading at any place, as a `pyarrow.NativeFile`."""
        ...

    def replace(self, name: str, data: bytes, *, expected: bytes | None = None) -> None:
        """Put a file in one step; refuse if it should hold `expected` by now and does not."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none if it is not there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing happens if it is not there."""
        ...

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the place for one writer, as far as it can be held."""
        ...

    def new_folder(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Yield a local path, not there yet, to be made a folder; it lies in the store when the context ends well."""
        ...


def open_store(path: str | Path) -> LocalStore | BucketStore:
    """Return the store of a path or URI; nothing is touched.

    Raises
    ------
    ValueError
        If it is a URI that `pyarrow.fs` cannot use.
    """
    text = str(path)
    if "://" not in text:
        return LocalStore(Path(path))
    try:
        filesystem, base = _open_filesystem(text)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{_without_credentials(text)} is no place for a collection: {error}") from error
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return LocalStore(Path(base))
    return BucketStore(text, filesystem, base)


def _open_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    base, options = split_options(uri)
    parts = urlsplit(base)
    if parts.scheme in BUCKET_SCHEMES and not parts.query:
        place = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
        return bucket_filesystem(parts.scheme, parts.netloc, options), place.rstrip("/")
    filesystem, inner = pyarrow.fs.FileSystem.from_uri(uri)
    return filesystem, str(inner)


class LocalStore:
    """A collection in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location = str(path)

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def read(self, name: str) -> bytes | None:
        """See `Store.read`."""
        path = self.path / name
        return path.read_bytes() if path.is_file() else None

    def open(self, name: str) -> Any:
        """See `Store.open`."""
        return pa.OSFile(str(self.path / name))

    def replace(self, name: str, data: bytes, *, expected: bytes | None = None) -> None:
        """See `Store.replace`; the lock stands for `expected`."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, data)
        sync_folder(self.path)

    def names(self, folder: str) -> list[str]:
        """See `Store.names`."""
        path = self.path / folder
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def remove(self, name: str) -> None:
        """See `Store.remove`."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """See `Store.lock`; the kernel lets go when the process ends."""
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync_folder(folder.parent)
        with writer_lock(self.path):
            yield

    @contextlib.contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """See `Store.new_folder`; it is written in place, for no manifest names it yet."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield path
            sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise


class BucketStore:
    """A collection under a prefix of a bucket.

    An object appears whole or not at all. `replace` puts conditionally on S3 if boto3 is installed, because
    `pyarrow.fs` has no such put. Elsewhere it compares just before it puts, so that of two writers the later is
    refused unless both commit within the same instant.
    """

    def __init__(self, uri: str, filesystem: pyarrow.fs.FileSystem, base: str) -> None:
        self.location = uri
        self._filesystem = filesystem
        self._base = base.rstrip("/")
        self._puts_conditionally = uri.startswith("s3://") and importlib.util.find_spec("boto3") is not None

    def __str__(self) -> str:
        """Return the URI without credentials and options."""
        return _without_credentials(self.location)

    def read(self, name: str) -> bytes | None:
        """See `Store.read`."""
        try:
            with self._filesystem.open_input_stream(self._key(name), compression=None) as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def open(self, name: str) -> Any:
        """See `Store.open`."""
        return self._filesystem.open_input_file(self._key(name))

    def replace(self, name: str, data: bytes, *, expected: bytes | None = None) -> None:
        """See `Store.replace`."""
        if expected is not None:
            if self._puts_conditionally:
                if not put_in_s3(self._uri_of(name), data, expected=expected):
                    raise self._overtaken()
                return
            if (self.read(name) or b"") != expected:
                raise self._overtaken()
        with self._filesystem.open_output_stream(self._key(name), compression=None) as file:
            file.write(data)

    def _overtaken(self) -> CollectionBusyError:
        return CollectionBusyError(
            f"{self} was written by another process meanwhile: nothing of this write is kept, try again"
        )

    def names(self, folder: str) -> list[str]:
        """See `Store.names`."""
        selector = pyarrow.fs.FileSelector(self._key(folder), allow_not_found=True)
        return sorted(info.base_name for info in self._filesystem.get_file_info(selector))

    def remove(self, name: str) -> None:
        """See `Store.remove`."""
        kind = self._filesystem.get_file_info(self._key(name)).type
        if kind == pyarrow.fs.FileType.Directory:
            self._filesystem.delete_dir(self._key(name))
        elif kind == pyarrow.fs.FileType.File:
            self._filesystem.delete_file(self._key(name))

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """See `Store.lock`: a bucket is marked as a collection's, but not held; `replace` finds out in the end."""
        self.replace(".lock", b"")
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """See `Store.new_folder`; it is written to local scratch space and uploaded file by file."""
        with tempfile.TemporaryDirectory(prefix="hashlight-") as scratch:
            path = Path(scratch) / name.rpartition("/")[2]
            yield path
            for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
                target = self._key(f"{name}/{file.relative_to(path).as_posix()}")
                pyarrow.fs.copy_files(str(file), target, destination_filesystem=self._filesystem)

    def download(self, name: str, target: Path) -> None:
        """Copy all files of a folder into the local folder `target`."""
        target.mkdir(parents=True, exist_ok=True)
        pyarrow.fs.copy_files(self._key(name), str(target), source_filesystem=self._filesystem)

    def _key(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    def _uri_of(self, name: str) -> str:
        base, options = split_options(self.location)
        return f"{base.rstrip('/')}/{name}{options}"


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
