"""Reading requests: three kinds of body become one kind of request, and errors name the field at fault.

JSON as `engine.service.api.schemas` describes it; `multipart/form-data` with one file `image` and the options as
fields; an Arrow IPC stream with one column `code` (fixed_size_binary) and the options as URL parameters.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import functools
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pydantic_core
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from hashlight.engine.codes import WORD_BITS, CodeArray, num_words
from hashlight.engine.collection.rerank import Order, Rerank
from hashlight.engine.filters.parameters import MAX_VALUES, Parameters
from hashlight.engine.query import Text
from hashlight.engine.service.api import schemas
from hashlight.engine.service.api.json_body import is_picture_name, take_pictures
from hashlight.engine.service.api.schemas import ORDERS, EncodeBody, EncodeOptions, Query, RerankBody
from hashlight.engine.service.api.slices import BYTES_AT_ONCE, LongList, cut_lists
from hashlight.engine.service.asking.resolving import NoFeaturesError, Sorted, check_features_of_code, sort_queries
from hashlight.engine.service.limits import MAX_IMAGES, MAX_QUERIES, Limits
from hashlight.engine.service.problems import RequestError, invalid, named
from hashlight.engine.wording import counted

JSON = "application/json"
FORM = "multipart/form-data"
ARROW = "application/vnd.apache.arrow.stream"

_MAX_FIELDS = 20  # of a form; there are ten options
_OBJECTS = {
    "rerank": '{"pool": 100}',
    "parameters": '{"seen": [7, 8]}',
    "after": '{"distance": 3, "id": 7}',
}  # options that are not plain values
_MAX_FIELD_BYTES = 20_000  # a filter in four-byte characters still fits

# A larger body is read in a thread: a smaller one takes less than the millisecond that starting one may take.
_SMALL_BYTES = 16_384

# More errors than a person makes are not told one by one.
_MAX_ERRORS = 100

_MAX_SHOWN = 60  # characters of a wrong value in a message

_STRICT = ConfigDict(strict=True)


class _Lists(NamedTuple):
    """Lists that are cut out of a body: what stands in for one, what an item is, and how many there may be."""

    stand_in: bytes
    adapter: TypeAdapter[Any]
    most: int


_NUMBERS = TypeAdapter(schemas.list_of(schemas.Number), config=_STRICT)
_LISTS = {
    "queries": _Lists(b'{"id":0}', TypeAdapter(schemas.list_of(Query)), MAX_QUERIES),
    "images": _Lists(b'""', TypeAdapter(schemas.list_of(str), config=_STRICT), MAX_IMAGES),
    "parameters": _Lists(b"", _NUMBERS, MAX_VALUES),
    "ids": _Lists(b"0", _NUMBERS, MAX_VALUES),
}
_ITEMS: dict[type[BaseModel], _Lists] = {
    schemas.PutBody: _Lists(b'{"id":0,"code":""}', TypeAdapter(schemas.list_of(schemas.PutItem)), MAX_QUERIES),
    schemas.PatchBody: _Lists(
        b'{"id":0,"attributes":{"":0}}', TypeAdapter(schemas.list_of(schemas.PatchItem)), MAX_QUERIES
    ),
}

Options = TypeVar("Options", bound=BaseModel)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """An image as received: a file, or the URL of one.

    Attributes
    ----------
    field : str
        Where it was given.
    data : bytes
    url : str or None
    """

    field: str
    data: bytes = b""
    url: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A search as received: its options, its queries by kind, and whether the answer is to be Arrow.

    `lists` stands for `options.parameters`.
    """

    options: Any
    queries: Sorted[Image]
    lists: Parameters | None
    arrow: bool = False


def media_type(request: Request) -> str:
    """Return the body's content type, without parameters, in lower case."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def wants_arrow(request: Request) -> bool:
    """Return whether the client asks for an Arrow answer."""
    return ARROW in request.headers.get("accept", "").lower()


async def read_search(
    request: Request, body: type[Options], options: type[BaseModel], *, bits: int, limits: Limits
) -> Asked:
    """Read a search of any kind.

    Parameters
    ----------
    request : Request
    body : type
        Model of the JSON body: `queries` and the options.
    options : type
        Model of the options alone.
    bits : int
        Number of bits of the collection's codes.
    limits : Limits

    Raises
    ------
    RequestError
        400 if the body cannot be read, 415 if it is of another type, 422 if a field is wrong.
    """
    kind = media_type(request)
    if kind == JSON:
        read = functools.partial(_search_of_json, body=body, bits=bits, limits=limits)
        return dataclasses.replace(await read_body(request, read), arrow=wants_arrow(request))
    if kind == FORM:
        fields, files = await read_form(request)
        parsed = parse_fields(options, fields)
        queries = _sorted([Image("image", files["image"])], parsed, bits)
        return Asked(parsed, queries, lists_of(parsed), arrow=wants_arrow(request))
    if kind == ARROW:
        parsed = parse_fields(options, url_fields(request))
        try:
            check_features_of_code(0, asked_order(parsed))
        except NoFeaturesError as error:
            raise invalid(str(error), "rerank") from error
        codes = await read_body(request, functools.partial(codes_of_arrow, bits=bits, limits=limits))
        return Asked(parsed, Sorted(codes, {}, {}), lists_of(parsed), arrow=True)
    raise unsupported(kind, (JSON, FORM, ARROW))


async def read_queries(request: Request, body: type[Options], *, bits: int, limits: Limits) -> Asked:
    """Read queries and options, as `read_search` does, from a body that can only be JSON."""
    kind = media_type(request)
    if kind != JSON:
        raise unsupported(kind, (JSON,))
    return await read_body(request, functools.partial(_search_of_json, body=body, bits=bits, limits=limits))


async def read_to_encode(request: Request, *, bits: int, limits: Limits) -> tuple[Sorted[Image], int | None]:
    """Read images or queries of which the codes are wanted, and `timeout_ms`, from JSON or a form."""
    kind = media_type(request)
    if kind == JSON:
        return await read_body(request, functools.partial(_images_of_json, bits=bits, limits=limits))
    if kind == FORM:
        fields, files = await read_form(request)
        images = _images_alone([Image("images.0", files["image"])], bits)
        return images, parse_fields(EncodeOptions, fields).timeout_ms
    raise unsupported(kind, (JSON, FORM))


async def read_document(request: Request, model: type[Options], limits: Limits) -> Options:
    """Read a body that can only be JSON; errors as in `read_search`."""
    kind = media_type(request)
    if kind != JSON:
        raise unsupported(kind, (JSON,))
    return await read_body(request, lambda data: parse_json(model, data, limits)[0])


def unsupported(kind: str, expected: Sequence[str]) -> RequestError:
    """Return the refusal of a body of an unknown type."""
    message = f"expected content-type {' or '.join(expected)}, got {kind[:100] or 'none'}"
    return RequestError(415, "unsupported_media_type", message, field="content-type")


async def read_body(request: Request, read: Callable[[bytearray], T]) -> T:
    """Return what `read` makes of the body, in a thread if it is large."""
    body = bytearray()  # grows in place, where a list of parts would be in memory twice when it is joined
    async for part in request.stream():
        body += part
    return read(body) if len(body) <= _SMALL_BYTES else await asyncio.to_thread(read, body)


def _search_of_json(data: bytearray, *, body: type[BaseModel], bits: int, limits: Limits) -> Asked:
    parsed: Any
    parsed, pictures = parse_json(body, data, limits)
    check_count(len(parsed.queries), "queries", limits.queries)
    queries = [_kind_of(query, number, bits, pictures) for number, query in enumerate(parsed.queries)]
    return Asked(parsed, _sorted(queries, parsed, bits), lists_of(parsed))


def lists_of(options: Any) -> Parameters | None:
    """Return the lists of ids that a filter names; 422 if they are too many."""
    try:
        return Parameters.of(options.parameters)
    except ValueError as error:
        raise named(error) from error


def _sorted(
    queries: Sequence[CodeArray | NDArray[np.float64] | int | Text | Image], options: Any, bits: int
) -> Sorted[Image]:
    try:
        return sort_queries(queries, bits=bits, asked=asked_order(options))
    except NoFeaturesError as error:
        raise invalid(str(error), f"queries.{error.number}.code") from error
    except ValueError as error:
        raise named(error) from error


def asked_order(options: Any) -> Rerank | Order | None:
    """Return the order of answers that options ask for, if they do."""
    asked: Any = getattr(options, "rerank", None)
    return Rerank(pool=asked.pool, metric=asked.metric) if isinstance(asked, RerankBody) else asked


def _images_of_json(data: bytearray, *, bits: int, limits: Limits) -> tuple[Sorted[Image], int | None]:
    parsed, pictures = parse_json(EncodeBody, data, limits)
    if parsed.queries is not None:
        check_count(len(parsed.queries), "queries", limits.queries)
        queries = [_kind_of(query, number, bits, pictures) for number, query in enumerate(parsed.queries)]
        return _sorted(queries, parsed, bits), parsed.timeout_ms
    texts = parsed.images or []
    check_count(len(texts), "images", limits.images)
    images = [image_of(text, f"images.{number}", pictures) for number, text in enumerate(texts)]
    return _images_alone(images, bits), parsed.timeout_ms


def _images_alone(images: Sequence[Image], bits: int) -> Sorted[Image]:
    return Sorted(np.zeros((len(images), num_words(bits)), np.uint64), {}, dict(enumerate(images)))


def parse_json(model: type[Options], data: bytearray, limits: Limits) -> tuple[Options, dict[str, bytes]]:
    """Read a JSON body and its pictures; 400 if it is not valid JSON, 413 if it is too large, 422 for a wrong field."""
    text, pictures = take_pictures(data, max_text_bytes=limits.text_bytes)
    data.clear()
    if len(text) <= BYTES_AT_ONCE:
        return _validated(model.model_validate_json, text), pictures
    lists = {name: known for name, known in _LISTS.items() if name in model.model_fields}
    if model in _ITEMS:
        lists["items"] = _ITEMS[model]
    rest, cut = cut_lists(text, {name: known.stand_in for name, known in lists.items()})
    del text
    parsed = _validated(model.model_validate_json, rest)
    for one in cut:
        name, *inner = one.path
        if inner:
            getattr(parsed, name)[inner[0]] = _items(one, lists[name])
        else:
            setattr(parsed, name, _items(one, lists[name]))
    return parsed, pictures


def _items(one: LongList, known: _Lists) -> Any:
    """Return the items of a list that was cut out of its body; whole numbers as an array."""
    _, adapter, most = known
    if one.num_items > most:
        field = ".".join(one.path)
        raise invalid(f"`{field}`: List should have at most {most} items, got {one.num_items}", field)
    parts = [_validated(adapter.validate_json, text, (*one.path, first)) for first, text in one.slices]
    if adapter is _NUMBERS:
        return np.concatenate([np.array(part, np.int64) for part in parts])
    return [item for part in parts for item in part]


def _validated(parse: Callable[[bytes], T], text: bytes, at: tuple[str | int, ...] = ()) -> T:
    """Return what `parse` makes of a text; RequestError as in `parse_json`.

    The text is a body, or a slice of a list in it that begins `at` an item.
    """
    try:
        return parse(text)
    except ValidationError as error:
        raise _refusal(error, text, at) from error


def validated(model: type[Options], document: Any) -> Options:
    """Return a document that is not JSON text as a model; 422 naming the field that is wrong."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _refusal(error) from error


def _kind_of(
    query: Query, number: int, bits: int, pictures: Mapping[str, bytes]
) -> CodeArray | NDArray[np.float64] | int | Text | Image:
    """Return a query as `sort_queries` takes it: its code, its embedding, its id, its text, or its image."""
    if query.id is not None:
        return query.id
    if query.vector is not None:
        return np.array(query.vector, np.float64)
    if query.text is not None:
        return Text(query.text)
    if query.image is not None:
        return image_of(query.image, f"queries.{number}.image", pictures)
    if query.url is not None:
        return Image(f"queries.{number}.url", url=query.url)
    code = code_of_text(query.code or "", f"queries.{number}.code", bits=bits)
    return np.frombuffer(code, "<u8").astype(np.uint64)


def image_of(text: str, field: str, pictures: Mapping[str, bytes]) -> Image:
    """Return an image that was taken out of its body, or is given in base64."""
    return Image(field, pictures[text] if text in pictures else bytes_of_base64(text, field))


async def read_form(request: Request, *, more: Sequence[str] = ()) -> tuple[dict[str, str], dict[str, bytes]]:
    """Read a form with a file `image`, and perhaps `more`; return its other fields, and the files."""
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    names = ("image", *more)
    try:
        async with request.form(max_files=len(names), max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if name in fields or name in files:
                    raise invalid(f"`{name}` is given twice", name)
                if isinstance(value, UploadFile) != (name in names):
                    wrong = "must be a file" if name in names else "must be a field, not a file: the file is `image`"
                    raise invalid(f"`{name}` {wrong}", name)
                if isinstance(value, UploadFile):
                    files[name] = await value.read()
                else:
                    fields[name] = value
    except HTTPException as error:
        several = " Send several images as JSON, in base64." if error.detail.startswith("Too many files") else ""
        raise RequestError(400, "malformed", f"the form cannot be read: {error.detail}{several}") from error
    if not files.get("image"):
        raise invalid("expected a file `image`, got " + ("an empty one" if "image" in files else "none"), "image")
    return fields, files


def url_fields(request: Request) -> dict[str, str]:
    """Return the parameters in the URL; 422 if one is given twice."""
    fields: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in fields:
            raise invalid(f"`{name}` is given twice", name)
        fields[name] = value
    return fields


def parse_fields(model: type[Options], fields: Mapping[str, str]) -> Options:
    """Read options given as text in a form or a URL: `include` joined by commas, objects as JSON."""
    plain: dict[str, Any] = {}
    for name, text in fields.items():
        if name == "include":
            plain[name] = [word for word in text.split(",") if word]
        elif name == "filter" or (name == "rerank" and text in ORDERS):
            plain[name] = text
        elif name in _OBJECTS:
            try:
                plain[name] = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise invalid(f"`{name}` must be JSON, such as {_OBJECTS[name]}, got {shown(text)}", name) from error
        elif text in ("true", "false"):
            plain[name] = text == "true"
        else:
            plain[name] = int(text) if re.fullmatch(r"-?[0-9]{1,19}", text) else text
    return validated(model, plain)


def _refusal(error: ValidationError, text: bytes = b"", at: tuple[str | int, ...] = ()) -> RequestError:
    """Name the first wrong field, and the number of others; see `_validated`."""
    count = error.error_count()
    if count > _MAX_ERRORS:
        return invalid(f"the body has {count} errors: see /openapi.json for what it may hold", None)
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return _malformed(first["msg"], text, at)
    field = _field_at(at, first["loc"])
    more = f" ({count - 1} more)" if count > 1 else ""
    return invalid(f"`{field or 'body'}`: {what_is_wrong(first)}{more}", field)


def what_is_wrong(error: Mapping[str, Any]) -> str:
    """Return the message of one of pydantic's errors, with the value that arrived."""
    kind, message = error["type"], str(error["msg"])
    if kind == "value_error":  # one of our own, which says it already
        return message.removeprefix("Value error, ")
    if kind == "missing":
        return "it is missing"
    if kind == "extra_forbidden":
        return "there is no such field"
    return f"{message}, got {shown(error['input'])}"


def shown(value: Any) -> str:
    """Return a value as JSON has it, or what it is if it is long."""
    if isinstance(value, list | tuple):
        return f"a list of {counted(len(value), 'item')}"
    if isinstance(value, dict | BaseModel):
        return "an object"
    if isinstance(value, bytes) or (isinstance(value, str) and is_picture_name(value)):
        return "an image"
    text = json.dumps(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}… ({len(text):,} characters)"


def _malformed(message: str, text: bytes, at: tuple[str | int, ...]) -> RequestError:
    """Return the refusal of what is not JSON; a string that is not Unicode is one of the field that has it."""
    place = re.search(r"line (\d+) column (\d+)", message)
    if place is None or not re.search(r"surrogate|hex escape|unicode", message):
        of = f" (in `{at[0]}`, after item {at[-1]})" if at else ""
        return RequestError(400, "malformed", f"the body is not valid JSON{of}: {message}")
    try:
        text.decode()
        lines = text.split(b"\n", int(place[1]) - 1)
        end = text.rfind(b"\\", 0, len(text) - len(lines[-1]) + int(place[2]))
    except UnicodeDecodeError as error:
        end = error.start
    field = _field_at(at, _end_of(text[:end]))
    wrong = "text that is not Unicode: half of a surrogate pair, an incomplete escape, or bytes that are not UTF-8"
    return invalid(f"`{field or 'body'}` has {wrong}", field)


def _end_of(text: bytes) -> list[str | int]:
    """Return where in a document a text ends that breaks off within a string; if that is a key, where its object is."""
    try:
        inner: Any = pydantic_core.from_json(text + b'":0', allow_partial=True)  # the 0 is read after a key only
    except ValueError:  # The text ends with the other half of a pair.
        return _end_of(text[: text.rfind(b"\\")])
    loc: list[str | int] = []
    while isinstance(inner, dict | list) and inner:
        key: Any = next(reversed(inner)) if isinstance(inner, dict) else len(inner) - 1
        loc.append(key)
        inner = inner[key]
    return loc if isinstance(inner, str) else loc[:-1]


def _field_at(at: tuple[str | int, ...], loc: Sequence[str | int]) -> str | None:
    """Return the field at `loc` in a body, or in a slice of a list that begins `at` an item."""
    if at and loc:
        loc = [*at[:-1], int(at[-1]) + int(loc[0]), *loc[1:]]
    return ".".join(map(str, loc or at[:-1])) or None


def check_count(count: int, name: str, max_count: int) -> None:
    """Refuse a list that is too long."""
    if count > max_count:
        raise invalid(f"`{name}` must be 1 to {max_count}, got {count}: split it into several requests", name)


def bytes_of_base64(text: str, field: str) -> bytes:
    """Decode base64; 422 for `field` if it is invalid."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"`{field}` is not valid base64: {error}", field) from error


def code_of_text(text: str, field: str, *, bits: int) -> bytes:
    """Decode a code in hex or padded base64; return its whole words, as bytes.

    It may have ceil(bits / 8) bytes, or be zero-padded to whole words. No text is valid as both hex and base64: where
    the lengths coincide, the base64 ends in "=".
    """
    size, padded = -(-bits // 8), 8 * num_words(bits)
    if re.fullmatch(r"[0-9a-fA-F]*", text) and len(text) in (2 * size, 2 * padded):
        return bytes.fromhex(text).ljust(padded, b"\0")
    if len(text) in (4 * -(-size // 3), 4 * -(-padded // 3)):
        data = bytes_of_base64(text, field)
        if len(data) in (size, padded):
            return data.ljust(padded, b"\0")
    other = re.search(r"[^0-9a-fA-F]", text) if len(text) in (2 * size, 2 * padded) else None
    raise invalid(
        f"`{field}` must be {size} bytes ({bits} bits): {2 * size} hex digits or {4 * -(-size // 3)} characters of "
        f"base64, got {len(text)} characters" + (f", of which {other[0]!r} is not a hex digit" if other else ""),
        field,
    )


def words_of_bytes(rows: np.ndarray, *, bits: int, field: str) -> CodeArray:
    """Return codes (Q, W) of their bytes (Q, ceil(bits / 8)); 422 for `field` if bits past `bits` are set."""
    padded = np.zeros((len(rows), 8 * num_words(bits)), np.uint8)
    padded[:, : rows.shape[1]] = rows
    codes: CodeArray = padded.view("<u8").astype(np.uint64, copy=False)
    used = bits % WORD_BITS
    if used and (codes[:, -1] >> np.uint64(used)).any():
        raise invalid(f"`{field}` has bits set past bit {bits - 1}: the collection's codes have {bits} bits", field)
    return codes


def codes_of_arrow(data: bytearray, *, bits: int, limits: Limits) -> CodeArray:
    """Return the codes (Q, W) in an Arrow IPC stream of one column `code`; errors as of `arrow_batches`, and 422."""
    batches, schema = arrow_batches(data, max_bytes=limits.text_bytes, max_rows=limits.queries)
    if schema.names != ["code"]:
        raise _not_codes(schema, bits)
    return codes_of_column(pa.chunked_array([batch.column(0) for batch in batches], schema.field(0).type), bits=bits)


def codes_of_column(column: pa.ChunkedArray, *, bits: int) -> CodeArray:
    """Return the codes (Q, W) in a column; 422 if it has another type, nulls, or bits past `bits`."""
    kind = column.type
    if not pa.types.is_fixed_size_binary(kind) or kind.byte_width not in (-(-bits // 8), 8 * num_words(bits)):
        raise _not_codes(pa.schema([pa.field("code", kind)]), bits)
    if column.null_count:
        raise invalid("a code must not be null", "code")
    parts = [_bytes_of(chunk, kind.byte_width) for chunk in column.chunks if len(chunk)]
    return words_of_bytes(np.concatenate(parts), bits=bits, field="code")


def _not_codes(schema: pa.Schema, bits: int) -> RequestError:
    got = ", ".join(f"{field.name}: {field.type}" for field in schema)[:200]
    return invalid(f"expected one column, code: fixed_size_binary[{-(-bits // 8)}] ({bits} bits), got {got}", "code")


def arrow_batches(data: bytearray, *, max_bytes: int, max_rows: int) -> tuple[list[pa.RecordBatch], pa.Schema]:
    """Read an Arrow IPC stream of 1 to `max_rows` rows.

    Raises
    ------
    RequestError
        400 if it is not such a stream or is compressed, 413 if it is too large, 422 if it has other rows.
    """
    if len(data) > max_bytes:
        message = f"an Arrow body must have at most {max_bytes} bytes, got {len(data)}"
        raise RequestError(413, "too_large", f"{message}: split it into several requests")
    try:
        batches, schema = _read_stream(data, max_rows)
    except (pa.ArrowException, struct.error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(400, "malformed", f"the body is not an Arrow IPC stream: {reason}") from error
    rows = sum(len(batch) for batch in batches)
    if not 1 <= rows <= max_rows:
        raise invalid(f"expected 1 to {max_rows} rows, got {rows}: split it into several requests", "code")
    return batches, schema


def _bytes_of(column: pa.FixedSizeBinaryArray, width: int) -> np.ndarray:
    start = column.offset * width
    buffer = column.buffers()[1]
    return np.frombuffer(buffer, np.uint8)[start : start + len(column) * width].reshape(-1, width)


def _read_stream(data: bytearray, max_batches: int) -> tuple[list[pa.RecordBatch], pa.Schema]:
    """Read an Arrow stream message by message, so that each is checked before use and none is decompressed."""
    messages = pyarrow.ipc.MessageReader.open_stream(pa.BufferReader(data))
    try:
        first = messages.read_next_message()
    except StopIteration as error:
        raise ValueError("it is empty") from error
    if first.type != "schema":
        raise ValueError(f"expected a schema first, got {first.type}")
    schema = pyarrow.ipc.read_schema(first)
    str(schema.names)  # decodes them: one may not be UTF-8
    batches: list[pa.RecordBatch] = []
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return batches, schema
        if message.type != "record batch":
            raise ValueError(f"expected record batches, got {message.type}")
        if _is_compressed(message.metadata.to_pybytes()):
            raise ValueError("expected uncompressed buffers, got compressed ones")
        batch = pyarrow.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
        if len(batches) == max_batches:
            raise ValueError(f"expected at most {max_batches} record batches, got more")
        batches.append(batch)


def _is_compressed(metadata: bytes) -> bool:
    """Return whether the flatbuffer of a record batch (Arrow's Message.fbs) names a compression.

    A few compressed bytes may claim any size, which pyarrow would allocate; it has no call to check this beforehand.
    """
    (message,) = struct.unpack_from("<I", metadata, 0)
    header_at = _field(metadata, message, 2)
    if header_at is None:
        raise ValueError("a record batch without a header")
    header = header_at + struct.unpack_from("<I", metadata, header_at)[0]
    return _field(metadata, header, 3) is not None


def _field(data: bytes, table: int, number: int) -> int | None:
    """Return the position of field `number` of the flatbuffer table at `table`, None if absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    entry = 4 + 2 * number
    if entry >= struct.unpack_from("<H", data, vtable)[0]:
        return None
    (offset,) = struct.unpack_from("<H", data, vtable + entry)
    return table + offset if offset else None
