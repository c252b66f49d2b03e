"""Reading requests: three kinds of body become one kind of request, and errors name the field at fault.

JSON as `engine.service.api.schemas` describes it; `multipart/form-data` with one file `image` and the options as
fields; an Arrow IPC stream with one column `code` (fixed_size_binary) and the options as URL parameters.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from hashlight.engine.codes import WORD_BITS, CodeArray, num_words
from hashlight.engine.service.api.schemas import EncodeOptions, Query
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.problems import RequestError, invalid

JSON = "application/json"
FORM = "multipart/form-data"
ARROW = "application/vnd.apache.arrow.stream"

_MAX_FIELDS = 20  # of a form; there are eight options
_MAX_FIELD_BYTES = 20_000  # a filter in four-byte characters still fits

Options = TypeVar("Options", bound=BaseModel)


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A request as received: its options, and either queries or codes."""

    options: Any
    queries: Sequence[Query | bytes] = ()
    codes: CodeArray | None = None
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
        parsed: Any = parse_json(body, await request.body())
        _check_count(len(parsed.queries), "queries", limits.queries)
        return Asked(parsed, parsed.queries, arrow=wants_arrow(request))
    if kind == FORM:
        fields, image = await read_form(request)
        return Asked(_parse_fields(options, fields), [image], arrow=wants_arrow(request))
    if kind == ARROW:
        data = await request.body()
        parsed = _parse_fields(options, _url_fields(request))
        return Asked(parsed, codes=codes_of_arrow(data, bits=bits, max_rows=limits.queries), arrow=True)
    raise unsupported(kind, (JSON, FORM, ARROW))


async def read_images(request: Request, body: type[Any], limits: Limits) -> tuple[list[bytes], int | None]:
    """Read images to encode, and `timeout_ms`, from JSON or a form."""
    kind = media_type(request)
    if kind == JSON:
        parsed = parse_json(body, await request.body())
        _check_count(len(parsed.images), "images", limits.images)
        images = [bytes_of_base64(text, f"images.{position}") for position, text in enumerate(parsed.images)]
        return images, parsed.timeout_ms
    if kind == FORM:
        fields, image = await read_form(request)
        return [image], _parse_fields(EncodeOptions, fields).timeout_ms
    raise unsupported(kind, (JSON, FORM))


def unsupported(kind: str, expected: Sequence[str]) -> RequestError:
    """Return the refusal of a body of an unknown type."""
    message = f"expected content-type {' or '.join(expected)}, got {kind[:100] or 'none'}"
    return RequestError(415, "unsupported_media_type", message, field="content-type")


def parse_json(model: type[Options], data: bytes) -> Options:
    """Read a JSON body; 400 if it is not valid JSON, 422 if a field is wrong."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _refusal(error) from error


async def read_form(request: Request) -> tuple[dict[str, str], bytes]:
    """Read a form with one file `image`; return its other fields and the file."""
    fields: dict[str, str] = {}
    image: bytes | None = None
    try:
        async with request.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if name in fields or (name == "image" and image is not None):
                    raise invalid(f"`{name}` is given twice", name)
                if isinstance(value, UploadFile) != (name == "image"):
                    wrong = "must be a file" if name == "image" else "must be a field, not a file: the file is `image`"
                    raise invalid(f"`{name}` {wrong}", name)
                if isinstance(value, UploadFile):
                    image = await value.read()
                else:
                    fields[name] = value
    except HTTPException as error:
        several = " Send several images as JSON, in base64." if error.detail.startswith("Too many files") else ""
        raise RequestError(400, "malformed", f"the form cannot be read: {error.detail}{several}") from error
    if not image:
        raise invalid("expected a file `image`, got " + ("none" if image is None else "an empty one"), "image")
    return fields, image


def _url_fields(request: Request) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in fields:
            raise invalid(f"`{name}` is given twice", name)
        fields[name] = value
    return fields


def _parse_fields(model: type[Options], fields: Mapping[str, str]) -> Options:
    """Read options given as text in a form or a URL: `include` joined by commas, `rerank` as JSON."""
    plain: dict[str, Any] = {}
    for name, text in fields.items():
        if name == "include":
            plain[name] = [word for word in text.split(",") if word]
        elif name == "filter":
            plain[name] = text
        elif name == "rerank":
            try:
                plain[name] = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise invalid('`rerank` must be JSON, such as {"pool": 100}', name) from error
        elif text in ("true", "false"):
            plain[name] = text == "true"
        else:
            plain[name] = int(text) if re.fullmatch(r"-?[0-9]{1,19}", text) else text
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> RequestError:
    """Name the first wrong field, and the number of others."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return RequestError(400, "malformed", f"the body is not valid JSON: {first['msg']}")
    field = ".".join(str(part) for part in first["loc"]) or None
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return invalid(f"`{field or 'body'}`: {first['msg'].removeprefix('Value error, ')}{more}", field)


def _check_count(count: int, name: str, max_count: int) -> None:
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


def codes_of_arrow(data: bytes, *, bits: int, max_rows: int) -> CodeArray:
    """Return the codes (Q, W) in an Arrow IPC stream of 1 to `max_rows` rows.

    Raises
    ------
    RequestError
        400 if it is not such a stream or is compressed, 422 if it has another column or nulls.
    """
    try:
        batches, schema = _read_stream(data)
    except (pa.ArrowException, struct.error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(400, "malformed", f"the body is not an Arrow IPC stream: {reason}") from error
    sizes = (-(-bits // 8), 8 * num_words(bits))
    kind = schema.field(0).type if schema.names == ["code"] else None
    if kind is None or not pa.types.is_fixed_size_binary(kind) or kind.byte_width not in sizes:
        got = ", ".join(f"{field.name}: {field.type}" for field in schema)[:200]
        raise invalid(f"expected one column, code: fixed_size_binary[{sizes[0]}] ({bits} bits), got {got}", "code")
    rows = sum(len(batch) for batch in batches)
    if not 1 <= rows <= max_rows:
        raise invalid(f"expected 1 to {max_rows} rows, got {rows}: split it into several requests", "code")
    if any(batch.column(0).null_count for batch in batches):
        raise invalid("a code must not be null", "code")
    parts = [_bytes_of(batch.column(0), kind.byte_width) for batch in batches if len(batch)]
    return words_of_bytes(np.concatenate(parts), bits=bits, field="code")


def _bytes_of(column: pa.FixedSizeBinaryArray, width: int) -> np.ndarray:
    start = column.offset * width
    buffer = column.buffers()[1]
    return np.frombuffer(buffer, np.uint8)[start : start + len(column) * width].reshape(-1, width)


def _read_stream(data: bytes) -> tuple[list[pa.RecordBatch], pa.Schema]:
    """Read an Arrow stream message by message, so that each is checked before use and none is decompressed."""
    messages = pyarrow.ipc.MessageReader.open_stream(pa.BufferReader(data))
    try:
        first = messages.read_next_message()
    except StopIteration as error:
        raise ValueError("it is empty") from error
    if first.type != "schema":
        raise ValueError(f"expected a schema first, got {first.type}")
    schema = pyarrow.ipc.read_schema(first)
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
