"""Reading writes: items to store, items whose attributes change, and which to delete.

JSON as `engine.service.api.schemas` describes it; for one item `multipart/form-data` with the file `image`, perhaps a
file `thumbnail`, and the fields `id` and `attributes`; an Arrow IPC stream with the columns `id`, `code` or `image`,
perhaps `features` and `thumbnail`, and attributes. The options are parameters of the URL.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.requests import Request

from hashlight.engine.codes import CodeArray, IdArray, num_words
from hashlight.engine.features import Features, FeatureValues
from hashlight.engine.service.api import bodies, schemas
from hashlight.engine.service.api.bodies import ARROW, FORM, JSON, Image, shown
from hashlight.engine.service.api.values import column_of
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.problems import invalid, named
from hashlight.engine.storage.columns import FEATURES, THUMBNAIL, as_stored, check_columns, stored_schema
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.writing.writes import Delete, DeleteWhere, Update

Options = TypeVar("Options", bound=BaseModel)


class Digest(Protocol):
    """What bytes go into, such as `hashlib.sha256()`."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """Items as received.

    Attributes
    ----------
    ids : ndarray of int64, shape (N,)
    codes : ndarray of uint64, shape (N, W)
        Zeros where there is an image.
    images : dict of int to Image
        Number of an item -> what its code is made of.
    attributes : pyarrow.Table or None
        N rows.
    features : dict of int to ndarray of float, shape (F,)
        Number of an item -> its features, where they are given.
    thumbnails : pyarrow.Array of binary, length N, or None
    """

    ids: IdArray
    codes: CodeArray
    images: Mapping[int, Image]
    attributes: pa.Table | None
    features: Mapping[int, NDArray[Any]]
    thumbnails: pa.Array | None


def options_of(request: Request, model: type[Options]) -> Options:
    """Read the options of a write, which are in its URL whatever its body is."""
    fields = bodies.url_fields(request)
    unknown = sorted(set(fields) - set(model.model_fields))
    if unknown:
        known = ", ".join(model.model_fields)
        raise invalid(f"`{unknown[0]}` is not a parameter of this, expected some of {known}", unknown[0])
    return bodies.parse_fields(model, fields)


async def read_items(request: Request, live: Manifest, limits: Limits, digest: Digest) -> Given:
    """Read items to store, as a collection stores them; what a form has goes into `digest`.

    Raises
    ------
    RequestError
        400 if the body cannot be read, 415 if it is of another type, 422 if a field is wrong.
    """
    kind = bodies.media_type(request)
    if kind == JSON:
        return await bodies.read_body(request, functools.partial(_items_of_json, live=live, limits=limits))
    if kind == FORM:
        fields, files = await bodies.read_form(request, more=("thumbnail",))
        for name, value in sorted((fields | files).items()):
            data = value if isinstance(value, bytes) else value.encode()
            digest.update(f"{name} {len(data)} ".encode() + data)
        return _item_of_form(fields, files, live)
    if kind == ARROW:
        return await bodies.read_body(request, functools.partial(_items_of_arrow, live=live, limits=limits))
    raise bodies.unsupported(kind, (JSON, FORM, ARROW))


async def read_update(request: Request, live: Manifest, limits: Limits) -> Update:
    """Read items whose attributes change; errors as in `read_items`."""
    kind = bodies.media_type(request)
    if kind == JSON:
        return await bodies.read_body(request, functools.partial(_update_of_json, live=live, limits=limits))
    if kind == ARROW:
        return await bodies.read_body(request, functools.partial(_update_of_arrow, limits=limits))
    raise bodies.unsupported(kind, (JSON, ARROW))


async def read_deletion(request: Request, limits: Limits) -> Delete | DeleteWhere:
    """Read which items to delete; errors as in `read_items`."""
    asked = await bodies.read_document(request, schemas.DeleteBody, limits)
    if asked.filter is not None:
        return DeleteWhere(asked.filter, bodies.lists_of(asked))
    ids = np.asarray(asked.ids, np.int64)
    if ids.min() < 0:
        raise invalid(f"`ids` must be 0 or more, got {ids.min()}", "ids")
    return Delete(ids)


def _items_of_json(data: bytearray, *, live: Manifest, limits: Limits) -> Given:
    parsed, pictures = bodies.parse_json(schemas.PutBody, data, limits)
    bodies.check_count(len(parsed.items), "items", limits.queries)
    codes_NW = np.zeros((len(parsed.items), num_words(live.bits)), np.uint64)
    images: dict[int, Image] = {}
    thumbnails: list[bytes | None] = []
    for number, item in enumerate(parsed.items):
        at = f"items.{number}"
        if item.image is not None:
            images[number] = bodies.image_of(item.image, f"{at}.image", pictures)
        else:
            code = bodies.code_of_text(item.code or "", f"{at}.code", bits=live.bits)
            row = np.frombuffer(code, np.uint8)[None]
            codes_NW[number] = bodies.words_of_bytes(row, bits=live.bits, field=f"{at}.code")[0]
        thumbnails.append(
            None if item.thumbnail is None else bodies.image_of(item.thumbnail, f"{at}.thumbnail", pictures).data
        )
    given = [item.attributes for item in parsed.items]
    return Given(
        _ids([item.id for item in parsed.items]),
        codes_NW,
        images,
        _attributes_of_json(given, range(len(given)), live, pictures),
        {number: np.array(item.features) for number, item in enumerate(parsed.items) if item.features is not None},
        None if all(thumbnail is None for thumbnail in thumbnails) else pa.array(thumbnails, pa.binary()),
    )


def _item_of_form(fields: dict[str, str], files: Mapping[str, bytes], live: Manifest) -> Given:
    if unknown := sorted(set(fields) - {"id", "attributes"}):
        raise invalid(f"`{unknown[0]}` is not a field of this form, expected `id` and `attributes`", unknown[0])
    document: dict[str, Any] = {"id": _number(fields.get("id", "")), "image": ""}
    try:
        document["attributes"] = json.loads(fields.get("attributes", "{}"))
    except (ValueError, RecursionError) as error:
        got = shown(fields["attributes"])
        raise invalid(f'`attributes` must be JSON, such as {{"label": 3}}, got {got}', "attributes") from error
    item = bodies.validated(schemas.PutItem, document)
    thumbnail = files.get("thumbnail")
    return Given(
        _ids([item.id]),
        np.zeros((1, num_words(live.bits)), np.uint64),
        {0: Image("image", files["image"])},
        _attributes_of_json([item.attributes], [0], live, {}),
        {},
        None if thumbnail is None else pa.array([thumbnail], pa.binary()),
    )


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 19 else text


def _update_of_json(data: bytearray, *, live: Manifest, limits: Limits) -> Update:
    parsed, pictures = bodies.parse_json(schemas.PatchBody, data, limits)
    bodies.check_count(len(parsed.items), "items", limits.queries)
    _ids([item.id for item in parsed.items])
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, item in enumerate(parsed.items):
        alike.setdefault(tuple(sorted(item.attributes)), []).append(number)
    parts = []
    for numbers in alike.values():
        given = [parsed.items[number].attributes for number in numbers]
        table = _attributes_of_json(given, numbers, live, pictures)
        assert table is not None, "an item has at least one attribute"
        parts.append((np.array([parsed.items[number].id for number in numbers], np.int64), table))
    return Update(parts)


def _attributes_of_json(
    given: Sequence[Mapping[str, Any]], numbers: Sequence[int], live: Manifest, pictures: Mapping[str, bytes]
) -> pa.Table | None:
    """Return the attributes of some items, null where they are left out; None if there are none at all."""
    schema = live.schema or pa.schema([])
    columns = {}
    names = list(dict.fromkeys(name for attributes in given for name in attributes))
    for name in names:
        fields = [f"items.{number}.attributes.{name}" for number in numbers]
        if name not in schema.names:
            field = next(field for field, attributes in zip(fields, given, strict=True) if name in attributes)
            known = ", ".join(schema.names) or "none"
            raise invalid(f"`{field}` is not an attribute of the collection; there are: {known}", field)
        values = [_untaken(attributes.get(name), pictures) for attributes in given]
        columns[name] = column_of(values, schema.field(name).type, fields)
    return pa.table(columns) if columns else None


def _untaken(value: Any, pictures: Mapping[str, bytes]) -> Any:
    """Return a value with the bytes that were taken out of the body, in the place of their names."""
    if isinstance(value, str):
        return pictures.get(value, value)
    if isinstance(value, list):
        return [_untaken(one, pictures) for one in value]
    if isinstance(value, dict):
        return {name: _untaken(one, pictures) for name, one in value.items()}
    return value


def _items_of_arrow(data: bytearray, *, live: Manifest, limits: Limits) -> Given:
    table = _table(data, limits)
    ids, bits = _ids_of(table), live.bits
    known = set(live.schema.names) if live.schema is not None else set()
    # An attribute of one of these names takes precedence.
    apart = {"id", "code"} | ({"image", FEATURES, THUMBNAIL} - known)
    has_images = "image" in apart and "image" in table.schema.names
    if ("code" in table.schema.names) == has_images:
        raise invalid("expected a column `code` or a column `image`", "code")
    codes_NW = np.zeros((len(table), num_words(bits)), np.uint64)
    images: dict[int, Image] = {}
    if not has_images:
        codes_NW = bodies.codes_of_column(table["code"], bits=bits)
    else:
        pictures = _binary(table, "image").to_pylist()
        images = {number: Image(f"image.{number}", picture or b"") for number, picture in enumerate(pictures)}
    features: dict[int, NDArray[Any]] = {}
    if FEATURES in table.schema.names and FEATURES in apart:
        features = _features_of(table[FEATURES])
    has_thumbnails = THUMBNAIL in table.schema.names and THUMBNAIL in apart
    return Given(
        ids,
        codes_NW,
        images,
        _attributes_of(table, apart),
        features,
        _binary(table, THUMBNAIL) if has_thumbnails else None,
    )


def _update_of_arrow(data: bytearray, *, limits: Limits) -> Update:
    table = _table(data, limits)
    attributes = _attributes_of(table, {"id"})
    if attributes is None:
        raise invalid("expected attributes beside `id`, got none", "id")
    return Update([(_ids_of(table), attributes)])


def _table(data: bytearray, limits: Limits) -> pa.Table:
    batches, schema = bodies.arrow_batches(data, max_bytes=limits.body_bytes, max_rows=limits.queries)
    if repeated := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise invalid(f"column `{repeated[0]}` is given twice", repeated[0])
    return pa.Table.from_batches(batches, schema)


def _attributes_of(table: pa.Table, apart: set[str]) -> pa.Table | None:
    """Return the columns besides some, in the types that are stored."""
    rest = table.drop_columns([name for name in table.schema.names if name in apart])
    if not rest.schema.names:
        return None
    try:
        check_columns(rest.schema)
        schema = stored_schema(rest.schema)
        return pa.Table.from_batches([as_stored(batch, schema) for batch in rest.to_batches()], schema)
    except ValueError as error:
        raise named(error) from error


def _ids_of(table: pa.Table) -> IdArray:
    if "id" not in table.schema.names or table.schema.field("id").type != pa.int64():
        got = table.schema.field("id").type if "id" in table.schema.names else "none"
        raise invalid(f"expected a column `id` of int64, got {got}", "id")
    if table["id"].null_count:
        raise invalid("an id must not be null", "id")
    return _ids(table["id"].to_numpy())


def _ids(ids: Sequence[int] | NDArray[np.int64]) -> IdArray:
    """Return distinct ids; 422 if one is negative or given twice."""
    ids_N = np.asarray(ids, np.int64)
    distinct, count = np.unique(ids_N, return_counts=True)
    if len(ids_N) and distinct[0] < 0:
        raise invalid(f"an id must be 0 or more, got {distinct[0]}", "id")
    if len(distinct) < len(ids_N):
        raise invalid(f"id {distinct[count > 1][0]} is given twice", "id")
    return ids_N


def _binary(table: pa.Table, name: str) -> pa.Array:
    kind = table.schema.field(name).type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)):
        raise invalid(f"expected a column `{name}` of binary, got {kind}", name)
    return pa.concat_arrays(table[name].cast(pa.binary()).chunks)


def _features_of(column: pa.ChunkedArray) -> dict[int, NDArray[Any]]:
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)) or not pa.types.is_floating(kind.value_type):
        raise invalid(f"expected a column `features` of lists of numbers, got {kind}", "features")
    rows = (row for chunk in column.chunks for row in chunk)
    return {
        number: row.values.to_numpy(zero_copy_only=False).astype(np.float32)
        for number, row in enumerate(rows)
        if row.is_valid
    }


def features_of(given: Given, made: Mapping[int, NDArray[np.float32]], live: Manifest) -> FeatureValues | None:
    """Return the features (N, F) of all items, those that were given or made of their images.

    Parameters
    ----------
    given : Given
    made : mapping of int to ndarray of float32, shape (F,)
        Number of an item -> what the encoder made.
    live : Manifest
        Of the collection.

    Raises
    ------
    RequestError
        422 naming an item that has none, or others than the collection stores.
    """
    width, kind = live.features, live.features_as
    if width is None:
        if given.features:
            field = f"items.{next(iter(given.features))}.features"
            raise invalid(f"`{field}`: the collection stores no features, leave them out", field)
        return None
    features_NF = np.zeros((len(given.ids), width), np.float32)
    for number in range(len(given.ids)):
        row = given.features.get(number, made.get(number))
        field = f"items.{number}.features"
        if row is None or len(row) != width or not np.isfinite(row).all():
            got = "none" if row is None else f"{len(row)}"
            raise invalid(f"`{field}` must be {width} finite numbers, as the collection stores, got {got}", field)
        features_NF[number] = row
    for number in range(len(features_NF)):
        field = f"items.{number}.features"
        try:
            Features.of(features_NF[number : number + 1], kind, name=field)
        except ValueError as error:
            raise invalid(str(error), field) from None
    return Features.of(features_NF, kind)[:]
