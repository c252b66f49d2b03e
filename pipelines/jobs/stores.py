"""Where jobs write: a local folder, or a prefix in a store.

An `OutputFolder` publishes: a file there is whole or absent. Locally it is written aside, forced to the disk and
renamed; a store's own put is whole by itself, and a killed upload leaves nothing.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from hashlight.engine.places.buckets import BUCKET_SCHEMES, put_in_s3, split_options
from hashlight.engine.places.files import aside_of, remove_leftovers, sync_file, sync_folder, writer_lock
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.filesystems import is_local, normalise, open_filesystem
from hashlight.pipelines.jobs.reads import STORE_READS, map_ahead, read_bytes


class OutputFolder:
    """A folder that a job writes: a local one, or a prefix in a store. Names are relative, with `/`."""

    def __init__(self, place: str | Path) -> None:
        self.uri = normalise(place)
        self._filesystem, self._base = open_filesystem(self.uri)

    def __str__(self) -> str:
        """Return the path or URI."""
        return split_options(self.uri)[0]

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine (or one mounted in it)."""
        return is_local(self.uri)

    def path(self, name: str) -> str:
        """Return what users find a file by."""
        return f"{self}/{name}"

    def uri_of(self, name: str) -> str:
        """Return the path or URI by which `open_file` and `read_bytes` find a file."""
        base, options = split_options(self.uri)
        return f"{base}/{name}{options}"

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return self._filesystem.get_file_info(self._at(name)).type == pafs.FileType.File

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        return read_bytes(self.uri_of(name))

    def read_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read whole files in order; of a store several at once."""
        return map_ahead(self.read, names, 1 if self.is_local else STORE_READS)

    def open(self, name: str) -> pa.NativeFile:
        """Open a file to be read at any place."""
        return self._filesystem.open_input_file(self._at(name))

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the visible files and folders in a folder, sorted; none if it is not there."""
        selector = pafs.FileSelector(self._at(folder), allow_not_found=True)
        infos = self._filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if not info.base_name.startswith("."))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of the files in a folder, by name; none if it is not there."""
        selector = pafs.FileSelector(self._at(folder), allow_not_found=True)
        return {info.base_name: info.size for info in self._filesystem.get_file_info(selector) if info.is_file}

    def put(self, name: str, data: bytes) -> None:
        """Publish a file, in the place of one that is there."""
        self._put(name, data, only_new=False)

    def note(self, name: str, data: bytes) -> None:
        """Write a file that is of use only as long as this machine runs: a local one is not forced to the disk."""
        if not self.is_local:
            self._put(name, data, only_new=False)
            return
        path = Path(self._at(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = aside_of(path)
        aside.write_bytes(data)
        aside.replace(path)

    def put_new(self, name: str, data: bytes) -> bool:
        """Publish a file unless there is one; return whether it was published.

        Exact on a local file system and on S3 (a conditional put); on other stores, of two that publish in the same
        instant both may.
        """
        return self._put(name, data, only_new=True)

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield a local path to write a large file at, for `put_file`; it is gone when the context ends."""
        if self.is_local:
            folder = Path(self._base)
            folder.mkdir(parents=True, exist_ok=True)
            aside = aside_of(folder / name)
            try:
                yield aside
            finally:
                aside.unlink(missing_ok=True)
        else:
            with tempfile.TemporaryDirectory(prefix="hashlight-") as folder_name:
                yield Path(folder_name) / name

    def put_file(self, name: str, path: Path) -> None:
        """Publish a file that was written at a `scratch` path."""
        chaos.step("aside", name)
        if self.is_local:
            sync_file(path)
            path.replace(self._at(name))
            sync_folder(Path(self._base))
        else:
            pafs.copy_files(str(path), self._at(name), destination_filesystem=self._filesystem)
        chaos.step("published", name)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, if it is there."""
        kind = self._filesystem.get_file_info(self._at(name)).type
        if kind == pafs.FileType.File:
            self._filesystem.delete_file(self._at(name))
        elif kind == pafs.FileType.Directory:
            self._filesystem.delete_dir(self._at(name))

    def remove_leftovers(self, folder: str) -> None:
        """Remove what killed processes wrote aside in a local folder; in a store nothing is."""
        if self.is_local:
            remove_leftovers(Path(self._at(folder)))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold a local folder for one writer; in a store, where nothing is held, puts are conditional instead."""
        if self.is_local:
            Path(self._base).mkdir(parents=True, exist_ok=True)
            with writer_lock(Path(self._base)):
                yield
        else:
            yield

    def _at(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    def _put(self, name: str, data: bytes, *, only_new: bool) -> bool:
        if self.is_local:
            return _put_local(Path(self._at(name)), data, only_new=only_new)
        chaos.step("aside", name)
        if only_new and self.uri.startswith("s3://"):
            is_new = self._put_new_in_s3(name, data)
            chaos.step("published", name)
            return is_new
        if only_new and self.exists(name):
            return False
        if self.uri.partition("://")[0] not in BUCKET_SCHEMES:
            self._filesystem.create_dir(self._at(name).rpartition("/")[0], recursive=True)
        with self._filesystem.open_output_stream(self._at(name), compression=None) as file:
            file.write(data)
        chaos.step("published", name)
        return True

    def _put_new_in_s3(self, name: str, data: bytes) -> bool:
        try:
            return put_in_s3(self.uri_of(name), data, expected=b"")
        except ModuleNotFoundError as error:
            raise PipelineError("S3 needs boto3: install it with `pip install 'hashlight[s3]'`") from error


def _put_local(path: Path, data: bytes, *, only_new: bool) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            chaos.step("aside", path.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not _rename(aside, path, only_new=only_new):
            return False
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)
    chaos.step("published", path.name)
    return True


def _rename(aside: Path, path: Path, *, only_new: bool) -> bool:
    if not only_new:
        aside.replace(path)
        return True
    try:
        # A link is refused where a name is taken; a rename would replace it.
        os.link(aside, path)
    except FileExistsError:
        return False
    return True
