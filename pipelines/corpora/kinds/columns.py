"""Columns of a corpus of rows: which has the images, their URIs, ids and labels, and what the others become.

Columns are found by the names that data sets are published with, unless they are given. All that is left is kept as
attributes; a name that Hashlight uses itself is prefixed with `source_`. Where a schema has the names of classes, as
those of Hugging Face do, they become a column of their own, `label_name` beside `label`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hashlight.engine.storage.columns import FEATURES, RESERVED, THUMBNAIL, as_stored, stored_schema
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.listing import BASE_SCHEMA, HOW_TO_READ
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.jobs.errors import PipelineError

# `jpg`, `png` and `webp` are the columns of img2dataset, named after its encoding.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
URI_COLUMNS = ("uri", "url", "URL", "file_name")
LABEL, ID = "label", "id"
PREFIX = "source_"
# Names that Hashlight uses, which no attribute of a corpus has.
TAKEN = RESERVED | HOW_TO_READ | frozenset(BASE_SCHEMA.names) | {FEATURES, THUMBNAIL}
_MAX_ID = 2**63 - 1
# Of class numbers: there is no label.
_NO_CLASS = -1


@dataclass(frozen=True, slots=True)
class Roles:
    """What the columns of a file of rows are.

    Attributes
    ----------
    image : str or None
        The column of encoded images; without it images are read by their URIs.
    uri : str or None
    id : str or None
        The column of ids; None if they are hashes of names.
    id_text : str or None
        The attribute that keeps the ids if they are texts, which are hashed.
    attributes : dict of str to str
        The columns that are kept, by the names of the attributes that they become.
    classes : dict of str to (str, list of str)
        Attributes to make, `NAME_name`: the attribute with the numbers of classes, and the names of the classes.
    schema : pyarrow.Schema
        Of the attributes.
    """

    image: str | None
    uri: str | None
    id: str | None
    id_text: str | None
    attributes: dict[str, str]
    classes: dict[str, tuple[str, list[str]]]
    schema: pa.Schema

    @property
    def read(self) -> list[str]:
        """The columns that a listing reads."""
        wanted = [self.uri, self.id, *self.attributes.values()]
        return list(dict.fromkeys(name for name in wanted if name is not None))


def find_roles(
    schema: pa.Schema, options: CorpusOptions, ids: IdRule, where: str, *, needs_images: bool = True
) -> Roles:
    """Find out what the columns of a file are.

    Parameters
    ----------
    schema : pyarrow.Schema
        In stored types; see `as_rows`.
    options : CorpusOptions
    ids : IdRule
    where : str
        The file, for messages.
    needs_images : bool
        Whether its rows have images or their URIs; otherwise the images are elsewhere.

    Raises
    ------
    PipelineError
        If a column is not there, has another type, or there is neither one of images nor one of URIs.
    """
    refuse_repeated(schema, where)
    names = schema.names
    for name in (options.image_column, options.uri_column):
        if needs_images and name is not None and name not in names:
            raise PipelineError(f"{where} has no column `{name}`: it has {names}")
    image = _image_column(schema, options, where) if needs_images else None
    uri = _uri_column(schema, options, has_image=image is not None) if needs_images else None
    if needs_images and image is None and uri is None:
        kinds = {name: str(schema.field(name).type) for name in names}
        raise PipelineError(
            f"{where} has no column `image` with encoded images (binary, or a struct with `bytes`) and no column `uri` "
            f"to read them from: it has {kinds}; name one with --image-column or --uri-column"
        )
    own = ids.column_among(names)
    if own is not None and own not in names:
        raise PipelineError(f"{where} has no column `{own}` to take ids from: name another, or have ids made")
    is_text = own is not None and _is_text(schema.field(own).type)
    # An `id` of whole numbers is the id, and need not be kept once more.
    used = {image, uri, ID} if own == ID and not is_text else {image, uri}
    attributes = _attributes(schema, options, used, own if is_text else None)
    id_text = next((name for name, column in attributes.items() if column == own), None) if is_text else None
    classes = _classes(schema, attributes)
    fields = [pa.field(name, _without_metadata(schema.field(column).type)) for name, column in attributes.items()]
    for name, (number, _) in classes.items():
        kind = schema.field(attributes[number]).type
        fields.append(pa.field(name, pa.list_(pa.string()) if pa.types.is_nested(kind) else pa.string()))
    return Roles(image, uri, own, id_text, attributes, classes, pa.schema(fields))


def refuse_repeated(schema: pa.Schema, where: str) -> None:
    """Raise PipelineError if columns have the same name, or one that is not UTF-8."""
    try:
        names = schema.names
    except UnicodeDecodeError as error:
        raise PipelineError(f"{where} has a column whose name is not UTF-8 ({error.object!r}): rename it") from error
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise PipelineError(f"{where} has the columns {repeated} more than once: rename all but one")


def image_column_of(schema: pa.Schema) -> str | None:
    """Return the column that has the images, by its name; None if there is none."""
    known = (name for name in IMAGE_COLUMNS if name in schema.names and _holds_bytes(schema.field(name).type))
    return next(known, None)


def as_rows(batch: pa.RecordBatch) -> pa.Table:
    """Return rows of a file in the types in which they are stored: without dictionaries and views."""
    return pa.Table.from_batches([as_stored(batch, stored_schema(batch.schema).remove_metadata())])


def unified(schemas: Iterable[pa.Schema], where: str, what: str) -> pa.Schema:
    """Return a schema for the rows of several files, whose numbers may be of different widths.

    Raises
    ------
    PipelineError
        If they disagree.
    """
    try:
        return pa.unify_schemas(list(schemas), promote_options="permissive")
    except pa.ArrowException as error:
        raise PipelineError(f"the {what} of {where} disagree on their columns: {error}") from error


def promoted(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Return rows with the columns and types of a schema; what they lack is null.

    Raises
    ------
    PipelineError
        If a value is too large for its type.
    """
    columns = {}
    for field in schema:
        if field.name not in table.column_names:
            columns[field.name] = pa.nulls(len(table), field.type)
            continue
        try:
            columns[field.name] = table[field.name].cast(field.type)
        except pa.ArrowException as error:
            raise PipelineError(
                f"{where}: `{field.name}` does not fit into {field.type}, which it is in other files: {error}"
            ) from error
    return pa.table(columns, schema)


def attributes_of(table: pa.Table, roles: Roles) -> dict[str, Any]:
    """Return the attributes of rows by their names."""
    columns: dict[str, Any] = {name: table[column] for name, column in roles.attributes.items()}
    named = {}
    for name, (number, names) in roles.classes.items():
        named[name] = _names_of_classes(columns[number], names)
        if not pa.types.is_nested(columns[number].type):
            columns[number] = pc.if_else(pc.equal(columns[number], _NO_CLASS), None, columns[number])
    return columns | named


def ids_of(table: pa.Table, roles: Roles, ids: IdRule, names: list[str], uris: list[str], where: str) -> Any:
    """Return the ids of rows: their column's, hashes of its texts, or hashes of the names of the images.

    Raises
    ------
    PipelineError
        If a value of the column is no id.
    """
    if roles.id is None:
        return ids.ids_of(names, uris)
    column = table[roles.id]
    if roles.id_text is not None:
        texts = column.cast(pa.string())
        if column.null_count:
            raise PipelineError(f"{where}: `{roles.id}` must be there in every row, got {column.null_count} nulls")
        return ids.ids_of_texts(texts.to_pylist())
    return _whole_ids(roles.id, column, where)


def _whole_ids(name: str, column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    if not pa.types.is_integer(column.type):
        raise PipelineError(
            f"{where}: `{name}` must be whole numbers or texts, got {column.type}: have ids made from the names"
        )
    lowest, highest = pc.min_max(column).as_py().values()
    if column.null_count or (lowest is not None and (lowest < 0 or highest > _MAX_ID)):
        raise PipelineError(
            f"{where}: `{name}` must be 0 to {_MAX_ID} in every row, got {column.null_count} nulls, a minimum of "
            f"{lowest} and a maximum of {highest}"
        )
    return column.cast(pa.int64())


def _image_column(schema: pa.Schema, options: CorpusOptions, where: str) -> str | None:
    name = options.image_column
    if name is None:
        return image_column_of(schema) if options.uri_column is None else None
    if not _holds_bytes(schema.field(name).type):
        raise PipelineError(
            f"{where}: `{name}` must have encoded images (binary, or a struct with `bytes`), got "
            f"{schema.field(name).type}; a column of URIs is named with --uri-column"
        )
    return name


def _uri_column(schema: pa.Schema, options: CorpusOptions, *, has_image: bool) -> str | None:
    if options.uri_column is not None:
        return options.uri_column
    # Beside the images themselves, where they came from is an attribute like others.
    known = ("uri",) if has_image else URI_COLUMNS
    return next((name for name in known if name in schema.names and _is_text(schema.field(name).type)), None)


def _attributes(
    schema: pa.Schema, options: CorpusOptions, used: Collection[str | None], id_text: str | None
) -> dict[str, str]:
    """Return the columns that are kept, that of ids which are texts among them, by the names under which they are."""
    label = options.label_column or LABEL
    kept: dict[str, str] = {}
    for column in schema.names:
        if column == label:
            kept[LABEL] = column
        elif column not in used and (options.keep is None or column in options.keep or column == id_text):
            kept[prefixed(column, TAKEN | {LABEL} | kept.keys() | (set(schema.names) - {column}))] = column
    return kept


def prefixed(name: str, taken: Collection[str]) -> str:
    """Return a name for an attribute: its own, or one with a prefix if that is taken."""
    name = name or "column"
    while name in taken:
        name = PREFIX + name
    return name


def _classes(schema: pa.Schema, attributes: dict[str, str]) -> dict[str, tuple[str, list[str]]]:
    """Return by the name of an attribute to make: the attribute that has numbers of classes, and the classes' names."""
    features = _features(schema)
    found: dict[str, tuple[str, list[str]]] = {}
    for name, column in attributes.items():
        names = _class_names(features.get(column))
        own = f"{name}_name"
        if names is not None and own not in attributes and _has_numbers(schema.field(column).type):
            found[own] = (name, names)
    return found


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Return what the schema metadata of Hugging Face's `datasets` says of columns."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said.get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of classes of a feature: a `ClassLabel`, or a list of them."""
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") in ("List", "LargeList", "Sequence"):
        return _class_names(feature.get("feature"))
    names = feature.get("names")
    if feature.get("_type") != "ClassLabel" or not isinstance(names, list):
        return None
    return names if all(isinstance(name, str) for name in names) else None


def _names_of_classes(numbers: pa.ChunkedArray, names: list[str]) -> Any:
    """Return the names of classes by their numbers, (N,) or lists of them; null where there is none."""
    if pa.types.is_nested(numbers.type):
        rows: list[list[int | None] | None] = numbers.to_pylist()
        named = [None if row is None else [_name_of(number, names) for number in row] for row in rows]
        return pa.array(named, pa.list_(pa.string()))
    values = pc.fill_null(numbers.cast(pa.int64()), _NO_CLASS)
    is_class = pc.and_(pc.greater_equal(values, 0), pc.less(values, len(names)))
    return pc.take(pa.array(names, pa.string()), pc.if_else(is_class, values, None))


def _name_of(number: int | None, names: list[str]) -> str | None:
    return names[number] if number is not None and 0 <= number < len(names) else None


def _has_numbers(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return bool(pa.types.is_integer(kind.value_type))
    return bool(pa.types.is_integer(kind))


def _without_metadata(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        number = kind.get_field_index("bytes")
        return number >= 0 and _holds_bytes(kind.field(number).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
