"""A write-ahead log: records that are on the disk when `append` returns, in a folder that one process has locked.

::

    log.json                which log this is, and of which collection
    0000000000000001.log    a segment: the records from this number on
    .lock                   locked by the process that writes

Records have numbers that ascend by one. Those that are appended together are a frame, which is whole or absent:

======  ==========  ===========================================================
byte    type        value
======  ==========  ===========================================================
0       4 bytes     `HLW1`
4       uint32      CRC-32 of the log's id (16 bytes), of bytes 8 to 20, and of all that follows
8       uint32      bytes that follow the head
12      uint64      number of the first record
20      bytes       of each record its length (uint32), and itself
======  ==========  ===========================================================

A frame is only begun when the one before is safe. So one that is torn is the last, and was not answered: it is cut
off. A damaged one that others follow is an error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import struct
import threading
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from hashlight.engine.errors import CollectionBusyError, CorruptDataError, PlaceError
from hashlight.engine.places.files import report_step, sync_folder, write_atomically, writer_lock

logger = logging.getLogger(__name__)

_FORMAT = 1
_MAGIC = b"HLW1"
_HEAD = struct.Struct("<4sIIQ")
_LENGTH = struct.Struct("<I")
_SEGMENT = re.compile(r"(\d{16})\.log")

Record = tuple[int, bytes]


class WriteLog:
    """The log of one collection, locked until it is closed. Thread-safe.

    Parameters
    ----------
    folder : Path
        Made if it is missing.
    collection : str
        Id of the collection whose writes it has.

    Attributes
    ----------
    id : str
        A UUID in hex.
    last : int
        Number of the last record; 0 if there was none.
    recovered : list of (int, bytes)
        The records that were there when it was opened, with their numbers.

    Raises
    ------
    CollectionBusyError
        If another process has it open.
    PlaceError
        If the folder is not a log, or that of another collection.
    CorruptDataError
        If records are damaged that others follow.
    OSError
        If it cannot be read or written.
    """

    def __init__(self, folder: Path, *, collection: str) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._descriptor: int | None = None  # of the segment that is written
        self._path = folder
        self._size = 0  # of what is safe in it
        self._is_uncut = False  # what is not safe could not be cut off
        self.last = 0
        try:
            self._stack.enter_context(writer_lock(folder))
        except CollectionBusyError as error:
            raise CollectionBusyError(
                f"the write log {folder} is in use by another server: end that one, or give this one a folder of its "
                "own (`--write-log`)"
            ) from error
        try:
            self.id = self._identify(collection)
            self.recovered = self._recover()
        except BaseException:
            self._stack.close()
            raise
        if self.recovered:
            self.last = self.recovered[-1][0]

    def __repr__(self) -> str:
        """Name the folder."""
        return f"WriteLog({str(self.folder)!r}, {self.last} records)"

    def _identify(self, collection: str) -> str:
        path = self.folder / "log.json"
        try:
            said = json.loads(path.read_bytes())
            log, of, version = str(said["log"]), said["collection"], said["format"]
            log = uuid.UUID(log).hex
        except FileNotFoundError:
            if others := sorted(entry.name for entry in self.folder.iterdir() if not entry.name.startswith(".")):
                raise PlaceError(
                    f"{self.folder} is not a write log and not empty (it has {', '.join(others[:3])}): choose another "
                    "folder"
                ) from None
            log = uuid.uuid4().hex
            document = {"format": _FORMAT, "log": log, "collection": collection}
            write_atomically(path, json.dumps(document).encode())
            return log
        except (ValueError, LookupError, TypeError) as error:
            raise CorruptDataError(
                f"{path} is damaged ({error!r}): restore it from a copy, or move the folder away, and what it has that "
                "was not committed is lost"
            ) from error
        if version != _FORMAT:
            raise PlaceError(
                f"{path} has format {version}, this release reads {_FORMAT}: use the release that wrote it"
            )
        if of != collection:
            raise PlaceError(
                f"{self.folder} is the write log of collection {of}, expected one of {collection}: give each "
                "collection a folder of its own (`--write-log`), or remove this one if its collection is gone"
            )
        return log

    def begin_after(self, number: int) -> None:
        """Give the next record a number above this one, up to which the collection has all.

        Raises
        ------
        OSError
            If segments that are all below cannot be removed.
        """
        if number > self.last:
            self.trim(self.last)
            self.last = number

    # Writing.

    def append(self, records: Sequence[bytes]) -> int:
        """Write some records together; return the number of the last when all are safe.

        Raises
        ------
        OSError
            If they cannot be written, or not fsynced. None of them is in the log then. A log that could not be cut
            back refuses everything until it could.
        """
        with self._lock:
            self._cut()
            data = self._frame(records)
            try:
                descriptor = self._writable()
                report_step("logging", self._path.name)
                _write_all(descriptor, data)
                os.fsync(descriptor)
            except BaseException:
                # After a failed fsync nothing that is in the file but not safe can be relied on, nor a later fsync.
                self._is_uncut = True
                with contextlib.suppress(OSError):
                    self._cut()
                raise
            self._size += len(data)
            self.last += len(records)
            report_step("logged", self._path.name)
            return self.last

    def _frame(self, records: Sequence[bytes]) -> bytes:
        body = b"".join(part for record in records for part in (_LENGTH.pack(len(record)), record))
        return _framed(self.id, self.last + 1, body)

    def _writable(self) -> int:
        """Return the open segment, a new one if there is none."""
        if self._descriptor is None:
            self._path, self._size = self.folder / f"{self.last + 1:016d}.log", 0
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
            sync_folder(self.folder)
        return self._descriptor

    def _cut(self) -> None:
        """Cut off what a failed write has left, and go on in another segment."""
        if not self._is_uncut:
            return
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, self._size)
            os.fsync(self._descriptor)
            self._close_segment()
        self._remove([path for path in self._segments() if not path.stat().st_size])
        self._is_uncut = False

    @property
    def is_empty(self) -> bool:
        """Whether it has no records, as all were removed."""
        with self._lock:
            return not self._segments()

    def trim(self, through: int) -> None:
        """Remove segments, as far as all that they have is numbered up to `through`.

        Raises
        ------
        OSError
            If they cannot be removed.
        """
        with self._lock:
            if self._is_uncut:
                return
            report_step("trimming", self.folder.name)
            if through >= self.last:
                self._close_segment()
            segments = self._segments()
            # The last is that which is written, or ends with the last record.
            after = [*map(_first, segments[1:]), self.last + 1]
            done = [path for path, next_one in zip(segments, after, strict=False) if next_one <= through + 1]
            self._remove([path for path in done if self._descriptor is None or path != self._path])

    def rotate(self) -> None:
        """Begin another segment with the next record, so that those before can be removed without it."""
        with self._lock:
            if not self._is_uncut:
                self._close_segment()

    def close(self) -> None:
        """Unlock it; again to no effect."""
        with self._lock:
            self._close_segment()
            self._stack.close()

    def _close_segment(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _segments(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if _SEGMENT.fullmatch(path.name))

    def _remove(self, paths: Sequence[Path]) -> None:
        for path in paths:
            path.unlink()
        if paths:
            sync_folder(self.folder)

    # Reading.

    def _recover(self) -> list[Record]:
        segments = self._segments()
        found: list[Record] = []
        for path in segments:
            first = _first(path)
            if found and first != found[-1][0] + 1:
                raise CorruptDataError(
                    f"{self.folder} lacks records {found[-1][0] + 1} to {first - 1} of its write log: restore the "
                    f"missing segments from a copy, or move those from {path.name} on away, and what they have is lost"
                )
            found += self._read_segment(path, first, is_last=path == segments[-1])
        return found

    def _read_segment(self, path: Path, first: int, *, is_last: bool) -> list[Record]:
        data, at, records = path.read_bytes(), 0, list[Record]()
        while at < len(data):
            body = _body_at(self.id, data, at, first)
            if body is None:
                break
            records += ((first + number, record) for number, record in enumerate(_split(body)))
            at, first = at + _HEAD.size + len(body), records[-1][0] + 1
        if at < len(data):
            if not is_last or self._goes_on(data, at):
                raise CorruptDataError(
                    f"{path} is damaged at byte {at}, before records that were written later: restore it from a copy, "
                    f"or cut it there (`truncate -s {at}`) and remove later segments, and writes from {first} on are "
                    "lost"
                )
            logger.warning("%s: %d bytes of a write that was never answered are cut off", path, len(data) - at)
        if at < len(data) or not at:
            self._shorten(path, at)
        return records

    def _goes_on(self, data: bytes, at: int) -> bool:
        """Whether a whole frame follows the one that cannot be read at `at`."""
        while (at := data.find(_MAGIC, at + 1)) >= 0:
            if len(data) - at >= _HEAD.size and _body_at(self.id, data, at, _HEAD.unpack_from(data, at)[3]) is not None:
                return True
        return False

    def _shorten(self, path: Path, size: int) -> None:
        if not size:
            self._remove([path])
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _first(path: Path) -> int:
    return int(path.name[:16])


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _checksum(log: str, head: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(head, zlib.crc32(bytes.fromhex(log))))


def _framed(log: str, first: int, body: bytes) -> bytes:
    crc = _checksum(log, _HEAD.pack(_MAGIC, 0, len(body), first)[8:], body)
    return _HEAD.pack(_MAGIC, crc, len(body), first) + body


def _body_at(log: str, data: bytes, at: int, first: int) -> bytes | None:
    """Return what is in the frame at a place, if it is whole and begins with record `first`; otherwise None."""
    if len(data) - at < _HEAD.size:
        return None
    magic, crc, length, number = _HEAD.unpack_from(data, at)
    body = data[at + _HEAD.size : at + _HEAD.size + length]
    if (magic, number, len(body)) != (_MAGIC, first, length) or not length:
        return None
    return body if crc == _checksum(log, data[at + 8 : at + _HEAD.size], body) else None


def _split(body: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        yield body[at + _LENGTH.size : at + _LENGTH.size + length]
        at += _LENGTH.size + length
