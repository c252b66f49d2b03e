"""CSV files and JSON lines as corpora: a row has the URI of an image, or its path relative to the file.

Both are read twice: first to find out the types of the columns, which are those that all their values fit, and then for
their rows. In CSV, whole numbers, numbers and truth values are recognised; `007` is a text. What is empty is null.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.reading import groups
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.kinds.documents import parse_json
from hashlight.pipelines.corpora.kinds.rows import Look, Rows, list_rows
from hashlight.pipelines.corpora.listing import CHUNK_ENTRIES, File, FileStream, Listing
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.jobs.errors import PipelineError

CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_WHOLE = (0, 0)  # such a file is one part
_BUFFER_BYTES = 1 << 20
_HEADER_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_DAMAGE = (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError)
_PATTERNS = {
    # As many digits as fit into 64 bits, and none in front that a number would lose.
    pa.int64(): r"^-?(0|[1-9][0-9]{0,17})$",
    pa.float64(): r"^-?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?$",
    pa.bool_(): r"^(true|false|True|False)$",
}


class Csv:
    """The format; see `pipelines.corpora.kinds.rows.RowFormat`."""

    what = "CSV files"

    def look(self, file: File) -> Look:
        """Find out the columns and their types."""
        names: list[str] = []
        # By column: the types that all values so far fit, None as long as there are none.
        fitting: list[set[pa.DataType] | None] = []
        for batch in _csv_batches(file):
            names = batch.schema.names
            fitting = fitting or [None] * len(names)
            for number, column in enumerate(batch.columns):
                if len(values := column.drop_null()):
                    known = fitting[number]
                    kinds = set(_PATTERNS) if known is None else known
                    fitting[number] = {kind for kind in kinds if _fits(values, kind)}
        types = [next((kind for kind in _PATTERNS if kind in (kinds or ())), pa.string()) for kinds in fitting]
        return Look(pa.schema(list(zip(names, types, strict=True))), [_WHOLE])

    def read(self, file: File, part: tuple[int, int], columns: list[str]) -> Iterator[Rows]:
        """Read columns of all rows."""
        schema = self.look(file).schema
        first = 0
        for batch in _csv_batches(file):
            table = pa.table({name: batch[name].cast(schema.field(name).type) for name in columns})
            yield Rows(first, len(batch), table)
            first += len(batch)


class JsonLines:
    """The format; see `pipelines.corpora.kinds.rows.RowFormat`."""

    what = "files of JSON lines"

    def look(self, file: File) -> Look:
        """Find out the columns and their types; what has several in one column is a text."""
        kinds: dict[str, pa.DataType] = {}
        for rows in _json_rows(file):
            for name in dict.fromkeys(name for row in rows for name in row):
                kinds[name] = _common(kinds.get(name, pa.null()), _kind_of([row.get(name) for row in rows]))
        fields = [pa.field(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in kinds.items()]
        return Look(pa.schema(fields), [_WHOLE])

    def read(self, file: File, part: tuple[int, int], columns: list[str]) -> Iterator[Rows]:
        """Read columns of all rows."""
        schema = self.look(file).schema
        first = 0
        for rows in _json_rows(file):
            table = {name: _json_column([row.get(name) for row in rows], schema.field(name).type) for name in columns}
            yield Rows(first, len(rows), pa.table(table))
            first += len(rows)


CSV, JSON_LINES = Csv(), JsonLines()


def list_csv(root: str, found: FileStream, ids: IdRule, options: CorpusOptions) -> Listing:
    """List the rows of CSV files; see `pipelines.corpora.kinds.rows.list_rows`."""
    return list_rows(root, found, ids, options, CSV)


def list_json_lines(root: str, found: FileStream, ids: IdRule, options: CorpusOptions) -> Listing:
    """List the rows of files of JSON lines; see `pipelines.corpora.kinds.rows.list_rows`."""
    return list_rows(root, found, ids, options, JSON_LINES)


@contextlib.contextmanager
def _opened(file: File, what: str) -> Iterator[Any]:
    """Open a file, decompressed if it is gzipped; what is wrong with it is a PipelineError."""
    try:
        with io.BufferedReader(open_place(file.uri).open(), _BUFFER_BYTES) as raw:
            if raw.peek(2).startswith(_GZIP):
                with gzip.open(raw) as plain:
                    yield plain
            else:
                yield raw
    except ReadFailedError:
        raise
    except _DAMAGE as error:
        raise PipelineError(f"{without_credentials(file.uri)} is not readable as {what}: {error}") from error


def _csv_batches(file: File) -> Iterator[pa.RecordBatch]:
    """Read the rows of a CSV file as texts."""
    delimiter = "\t" if ".tsv" in file.name.lower() else ","
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with _opened(file, "CSV") as raw:
        names = _header(raw, file, delimiter)
        read = pyarrow.csv.ReadOptions(column_names=names, block_size=_BUFFER_BYTES)
        convert = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        )
        try:
            reader = pyarrow.csv.open_csv(raw, read_options=read, parse_options=parse, convert_options=convert)
        except pa.ArrowInvalid as error:
            if "Empty CSV file" not in str(error):
                raise
            yield pa.RecordBatch.from_pylist([], pa.schema([(name, pa.string()) for name in names]))
            return
        yield from reader


def _fits(texts: pa.Array, kind: pa.DataType) -> bool:
    return bool(pc.all(pc.match_substring_regex(texts, _PATTERNS[kind])).as_py())


def _header(raw: Any, file: File, delimiter: str) -> list[str]:
    """Read the first line, which names the columns; one without a name is named by its number."""
    lines = [raw.readline(_HEADER_BYTES)]
    size, quotes = len(lines[0]), lines[0].count(b'"')
    while quotes % 2 and size < _HEADER_BYTES and (more := raw.readline(_HEADER_BYTES)):
        lines.append(more)
        size, quotes = size + len(more), quotes + more.count(b'"')
    if size >= _HEADER_BYTES:
        raise _no_header(file, f"it has more than {_HEADER_BYTES:,} bytes, or a quote in it is not closed")
    try:
        text = b"".join(lines).decode("utf-8-sig")
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error as error:
        raise _no_header(file, str(error)) from error
    if not names:
        raise PipelineError(f"{without_credentials(file.uri)} is empty: expected a line with the names of the columns")
    return [name or f"column_{number}" for number, name in enumerate(names)]


def _no_header(file: File, why: str) -> PipelineError:
    return PipelineError(
        f"the first line of {without_credentials(file.uri)} is not readable as the names of columns: {why}"
    )


def _json_rows(file: File) -> Iterator[list[dict[str, Any]]]:
    """Read the objects of a file of JSON lines, some at a time."""

    def objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:
                raise _bad_line(file, number, f"is not valid JSON ({error})") from None
            if not isinstance(row, dict):
                raise _bad_line(file, number, f"is {line[:50]!r}")
            yield row

    with _opened(file, "JSON lines") as raw:
        yield from groups(objects(raw), CHUNK_ENTRIES)


def _bad_line(file: File, number: int, what: str) -> PipelineError:
    return PipelineError(
        f"line {number} of {without_credentials(file.uri)} {what}: expected one JSON object per line, "
        '{"file_name": "a.jpg", ...}'
    )


def _kind_of(values: list[Any]) -> pa.DataType:
    try:
        return pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return pa.string()


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return a type for values of two; that of texts if there is no other."""
    schemas = [pa.schema({"x": kind}) for kind in (one, other)]
    try:
        kind = pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return pa.string()
    return kind


def _json_column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        values = [
            value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for value in values
        ]
    return pa.array(values, kind)
