"""Images that `hashlight encode` could not encode: why, and the images themselves, as far as they can be read.

Of the folder that it leaves, which `pipelines.encoding.encode` describes, `rejects.parquet` is read: `id`, `uri`,
`kind` and `reason`.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hashlight.engine.errors import CorruptDataError, NotReadyError, ReadFailedError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import BUCKET_SCHEMES, is_local, without_credentials

_TABLE = "rejects.parquet"
_COLUMNS = ["id", "uri", "kind", "reason"]
MAX_PICTURE_BYTES = 32 << 20
_BUCKETS = tuple(f"{scheme}://" for scheme in BUCKET_SCHEMES)

# What browsers show, by what it begins with.
_PICTURES = (
    (b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG", "image/png"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp"),
    (b"BM", "image/bmp"),
)  # fmt: skip


class Rejects:
    """The rejects in a folder. Thread-safe.

    Parameters
    ----------
    location : str
        Of the folder, local or in a bucket.
    """

    def __init__(self, location: str) -> None:
        self._place = open_place(location)

    def page(self, after: int, limit: int) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """Return how many there are of each kind, and some of them in their order, each with its `number`.

        Parameters
        ----------
        after : int
            Rejects that are left out at the beginning.
        limit : int

        Raises
        ------
        NotReadyError
            If the folder has none, or not yet.
        CorruptDataError
            If they cannot be read.
        ReadFailedError
            If a bucket does not answer.
        """
        kinds, rows = self._read(after, limit)
        return kinds, [row | {"uri": row["uri"] and without_credentials(row["uri"])} for row in rows]

    def picture(self, number: int) -> tuple[bytes, str] | None:
        """Return the file of a reject and its media type; None if there is none, or none that browsers show.

        Errors as in `page`.
        """
        _, rows = self._read(number, 1)
        uri = rows[0]["uri"] if rows else None
        if uri is None or not (is_local(uri) or uri.startswith(_BUCKETS)):
            return None
        try:
            data = open_place(uri).read(max_bytes=MAX_PICTURE_BYTES)
        except (OSError, ValueError):
            return None
        kind = next((kind for magic, kind in _PICTURES if data.startswith(magic)), None)
        return None if kind is None else (data, kind)

    def _read(self, after: int, limit: int) -> tuple[dict[str, int], list[dict[str, Any]]]:
        kinds: collections.Counter[str] = collections.Counter()
        rows: list[dict[str, Any]] = []
        begin = 0
        with self._table() as table:
            for group in range(table.num_row_groups):
                part = table.read_row_group(group, columns=_COLUMNS)
                for one in pc.value_counts(part["kind"]).to_pylist():
                    kinds[one["values"]] += one["counts"]
                first = max(after - begin, 0)
                wanted = part.slice(min(first, len(part)), limit - len(rows)).to_pylist()
                rows += [{"number": begin + first + place, **row} for place, row in enumerate(wanted)]
                begin += len(part)
        return dict(kinds), rows

    @contextlib.contextmanager
    def _table(self) -> Iterator[pq.ParquetFile]:
        try:
            with self._place.open(_TABLE) as raw, pq.ParquetFile(raw, pre_buffer=False) as table:
                yield table
        except FileNotFoundError as error:
            raise NotReadyError(
                f"{self._place} has no {_TABLE}, or not yet: name a folder that `hashlight encode` has finished"
            ) from error
        except ReadFailedError:
            raise
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            raise CorruptDataError(f"{self._place.path(_TABLE)} cannot be read as rejects: {error}") from error
