"""JSON over HTTP: models that check requests and describe answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from hashlight.engine.codes import MAX_BITS
from hashlight.engine.collection.rerank import Order
from hashlight.engine.filters.parameters import MAX_LISTS, MAX_VALUES, NAME
from hashlight.engine.service.limits import MAX_IMAGES, MAX_QUERIES

MAX_ID = 2**63 - 1
MAX_REPLICAS = 64
MAX_CODE = 4096  # characters
MAX_ATTRIBUTES = 1000  # of an item
MAX_FEATURES = 65_536

PAGE_ITEMS = 100

GIVE_UP = "Give up after this time, with status 504."
AFTER = "Only ids above this one: `next` of the page before."
VERSION = "Version that must answer."
SEQUENCE = "With `version`: that of an answer, whose pending writes are on top again; none are without it."
_CODE = "9f3a5c0000000001"
_EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAADklEQVR4nGNgGFKAEQAAWAADbFiO9QAAAABJRU5ErkJggg=="  # 8 x 8, grey
)


Number = Annotated[int, Field(ge=-MAX_ID - 1, le=MAX_ID)]
_ListName = Annotated[str, Field(pattern=f"^{NAME}$")]
_List = Annotated[list[Number], Field(max_length=MAX_VALUES, fail_fast=True)]


def list_of(item: Any) -> Any:
    """Return the type of lists that end at the first wrong item."""
    return Annotated[list[item], Field(fail_fast=True)]


class _Request(BaseModel):
    """What is sent. A list has a length, and its first wrong item ends it: errors are what makes a body expensive."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Query(_Request):
    """One query: exactly one of the fields."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    code: str | None = Field(
        None,
        max_length=MAX_CODE,
        description="ceil(bits / 8) bytes in hex or (padded) base64; bit i is bit i % 8 of byte i // 8.",
    )
    image: str | None = Field(None, description="An image file (PNG, JPEG, GIF, WebP, BMP, TIFF) in base64.")
    id: int | None = Field(None, ge=0, le=MAX_ID, description="An item of the collection: find more like it.")
    url: str | None = Field(None, max_length=2048, description="https URL of an image, if the server allows its host.")
    vector: list[float] | None = Field(
        None,
        min_length=1,
        max_length=MAX_FEATURES,
        fail_fast=True,
        description="An embedding, where the collection's encoder takes embeddings: `encodes_vectors` numbers.",
    )

    text: str | None = Field(
        None, min_length=1, max_length=2048, description="A text, where the encoder's network embeds texts too."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = sorted(self.model_fields_set)
        if len(given) != 1 or getattr(self, given[0]) is None:
            raise ValueError(
                f"give exactly one of code, image, id, url, vector and text, got {', '.join(given) or 'none'}"
            )
        return self


class RerankBody(_Request):
    """Re-rank a pool of nearest codes: by fine features of images, embeddings or ids, or in asymmetric order."""

    pool: int = Field(ge=1, description="Number of nearest codes to re-rank, at least `k`.")
    metric: Literal["l2", "cosine", "asymmetric"] = "l2"


ORDERS = get_args(Order)


def _read_order(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    if not isinstance(value, str):
        return read(value)
    if value not in ORDERS:
        shown = value.encode(errors="backslashreplace").decode()
        raise ValueError(f'`rerank` must be "asymmetric", "hamming" or such as {{"pool": 100}}, got "{shown}"')
    return value


def _with_names(schema: dict[str, Any]) -> None:
    schema["anyOf"].insert(0, {"type": "string", "enum": list(ORDERS)})


Id = Annotated[int, Field(ge=0, le=MAX_ID)]
WAIT: Any = Field(
    None, description="`visible`: commit it now, and answer when every server has the version that shows it."
)
FILTER: Any = Field(
    None,
    max_length=10_000,
    description='Only items whose attributes match: `label == 3 and kind in ("shoe", "bag")`.',
)
PARAMETERS: Any = Field(
    None,
    max_length=MAX_LISTS,
    description="Lists of ids that `filter` names: `id not in :seen`; at most 250,000 numbers in all.",
)


class _Options(_Request):
    filter: str | None = FILTER
    parameters: dict[_ListName, _List] | None = PARAMETERS
    timeout_ms: int | None = Field(None, ge=1, description=GIVE_UP)
    include: list[Literal["attributes", "code", "explain"]] = Field(
        default_factory=list,
        max_length=3,
        fail_fast=True,
        description="What to return for each hit besides id and distance.",
    )


class SearchOptions(_Options):
    """How to find the nearest items."""

    k: int = Field(10, ge=1, description="Number of nearest items.")
    rerank: Annotated[RerankBody | None, WrapValidator(_read_order)] = Field(
        None,
        description="Order of the answers. Without it `asymmetric`: the nearest codes in the order of the projections "
        "of images and embeddings, which for queries that are codes or ids is that of Hamming distances.",
        json_schema_extra=_with_names,
    )
    allow_partial: bool = Field(True, description="Answer from the shards that respond; `coverage` names the others.")


class AfterBody(_Request):
    """The last answer of a result that was cut off, where the next one goes on."""

    version: int | None = Field(
        None, ge=0, description="Version that gave it; without one, whichever is served goes on."
    )
    sequence: int = Field(0, ge=0, description=SEQUENCE)
    distance: int = Field(ge=0, le=MAX_BITS)
    id: int = Field(ge=0, le=MAX_ID)


class RangeOptions(_Options):
    """How to find all items within a radius."""

    radius: int = Field(4, ge=0, description="Hamming distance, inclusive.")
    limit: int = Field(
        100, ge=1, description="Keep this many nearest items of each query; `truncated` says if there are more."
    )
    after: AfterBody | None = Field(None, description="Only items that come after this one; with a single query.")
    allow_partial: bool = Field(
        False, description="As for a search; unless this is set, a radius answer is complete or an error."
    )


class SearchBody(SearchOptions):
    """Find the nearest items."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"queries": [{"code": _CODE}], "k": 3},
                {"queries": [{"id": 7}], "k": 5, "filter": "label == 3", "include": ["attributes"]},
                {
                    "queries": [{"code": _CODE}],
                    "k": 3,
                    "filter": "id not in :seen",
                    "parameters": {"seen": [7, 8]},
                },
                {"queries": [{"image": _EXAMPLE_IMAGE}], "k": 5, "rerank": {"pool": 100}},
                {"queries": [{"image": _EXAMPLE_IMAGE}], "k": 5, "rerank": "hamming"},
            ]
        }
    )
    queries: list[Query] = Field(min_length=1, max_length=MAX_QUERIES, fail_fast=True)


class RangeBody(RangeOptions):
    """Find all items within a radius."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"queries": [{"code": _CODE}, {"id": 7}], "radius": 4, "limit": 50}]}
    )
    queries: list[Query] = Field(min_length=1, max_length=MAX_QUERIES, fail_fast=True)


class EncodeOptions(_Request):
    """How to encode."""

    timeout_ms: int | None = Field(None, ge=1, description=GIVE_UP)


class EncodeBody(EncodeOptions):
    """Images to encode, or queries of any kind of which the codes are wanted."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["images"]}, {"required": ["queries"]}],
            "examples": [{"images": [_EXAMPLE_IMAGE]}, {"queries": [{"id": 7}, {"image": _EXAMPLE_IMAGE}]}],
        }
    )
    images: list[str] | None = Field(
        None, min_length=1, max_length=MAX_IMAGES, fail_fast=True, description="Image files in base64."
    )
    queries: list[Query] | None = Field(
        None, min_length=1, max_length=MAX_QUERIES, fail_fast=True, description="As those of a search."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.images is None) == (self.queries is None):
            raise ValueError("give exactly one of images and queries")
        return self


class CountBody(_Request):
    """Count items."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"filter": "label == 3"}]})
    filter: str | None = FILTER
    parameters: dict[_ListName, _List] | None = PARAMETERS
    timeout_ms: int | None = Field(None, ge=1, description=GIVE_UP)


class FacetsBody(CountBody):
    """Count how often each value of an attribute occurs."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"column": "label"}, {"column": "label", "filter": "id < 100", "limit": 5}]}
    )
    column: str = Field(max_length=10_000, description="An attribute.")
    limit: int = Field(100, ge=1, description="The most frequent values.")


class ScrollBody(CountBody):
    """Read all items that match, page by page, in ascending order of their ids."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"filter": "label == 3", "limit": 5},
                {"filter": "id not in :seen", "parameters": {"seen": [7, 8]}, "after": 100},
            ]
        }
    )
    after: int | None = Field(None, ge=0, le=MAX_ID, description=AFTER)
    limit: int = Field(PAGE_ITEMS, ge=1, description="Items of a page.")
    version: int | None = Field(None, ge=0, description=VERSION)
    sequence: int = Field(0, ge=0, description=SEQUENCE)


class CountAnswer(BaseModel):
    """The number of items that match."""

    count: int
    version: int = Field(description="Collection version.")


class ValueModel(BaseModel):
    """A value and how often it occurs."""

    value: Any = Field(description="null: items without a value.")
    count: int


class FacetsAnswer(BaseModel):
    """Values of an attribute, the most frequent first, of equally frequent ones the lowest first."""

    column: str
    values: list[ValueModel]
    version: int = Field(description="Collection version.")


class PutItem(_Request):
    """An item: its code, or the image that it is made of."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["code"]}, {"required": ["image"]}]})

    id: int = Field(ge=0, le=MAX_ID)
    code: str | None = Field(None, max_length=MAX_CODE, description="As that of a query.")
    image: str | None = Field(None, description="An image file in base64, for the server's encoder.")
    attributes: dict[str, Any] = Field(
        default_factory=dict, max_length=MAX_ATTRIBUTES, description="Those that are left out are null."
    )
    features: list[float] | None = Field(
        None, max_length=MAX_FEATURES, fail_fast=True, description="Fine features; of an image, the encoder makes them."
    )
    thumbnail: str | None = Field(None, description="A small image file in base64.")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.code is None) == (self.image is None):
            raise ValueError("give exactly one of code and image")
        return self


class PutBody(_Request):
    """Items to store, in the place of those that have their ids."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"items": [{"id": 7, "code": _CODE, "attributes": {"label": 3}}]},
                {"items": [{"id": 8, "image": _EXAMPLE_IMAGE, "thumbnail": _EXAMPLE_IMAGE}]},
            ]
        }
    )
    items: list[PutItem] = Field(min_length=1, max_length=MAX_QUERIES, fail_fast=True)


class PatchItem(_Request):
    """An item and the attributes of it that change."""

    id: int = Field(ge=0, le=MAX_ID)
    attributes: dict[str, Any] = Field(min_length=1, max_length=MAX_ATTRIBUTES)


class PatchBody(_Request):
    """Items whose attributes change."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"id": 7, "attributes": {"label": 4}}, {"id": 8, "attributes": {"label": None}}]}]
        }
    )
    items: list[PatchItem] = Field(min_length=1, max_length=MAX_QUERIES, fail_fast=True)


class DeleteBody(_Request):
    """Items to delete, as far as they are there: some ids, or all that match a filter."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["ids"]}, {"required": ["filter"]}],
            "examples": [{"ids": [7, 8]}, {"filter": "label == 3"}],
        }
    )
    ids: list[Id] | None = Field(None, min_length=1, max_length=MAX_VALUES, fail_fast=True)
    filter: str | None = FILTER
    parameters: dict[_ListName, _List] | None = PARAMETERS

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give exactly one of ids and filter")
        if self.ids is not None and self.parameters is not None:
            raise ValueError("`parameters` are named by `filter`, got none")
        return self


class PutOptions(_Request):
    """How to store items; parameters of the URL."""

    on_conflict: Literal["replace", "refuse"] = Field(
        "replace",
        description="What becomes of items that have these ids: they are replaced, or the request is refused.",
    )
    wait: Literal["visible"] | None = WAIT
    timeout_ms: int | None = Field(None, ge=1, description=GIVE_UP)


class WriteOptions(_Request):
    """How to write; parameters of the URL."""

    wait: Literal["visible"] | None = WAIT
    timeout_ms: int | None = Field(None, ge=1, description=GIVE_UP)


class WriteAnswer(BaseModel):
    """A write that will not be lost."""

    version: int | None = Field(
        description="The first version of the collection that has it. null: it is in the server's log, and searched by "
        "this server; a version has it some seconds later, or at once with `wait`."
    )
    sequence: int = Field(description="Its number in the server's log.")
    deleted: int | None = Field(
        None, description="Of a deletion: the items that it found; null if that is not known any more."
    )
    not_found: int | None = Field(None, description="Of a deletion by ids: those that were not there.")


class HitModel(BaseModel):
    """One item found."""

    id: int
    distance: float = Field(description="Hamming distance, or distance of features after re-ranking by them.")
    attributes: dict[str, Any] | None = None
    code: str | None = Field(None, description="In hex.")


class ExplainModel(BaseModel):
    """How one query was answered."""

    plan: str
    probes: int
    candidates: int
    seconds: float


class ResultModel(BaseModel):
    """What one query found, in the `order` of the answer."""

    hits: list[HitModel]
    truncated: bool
    next: AfterBody | None = Field(description="If `truncated`: what to send as `after` for those that follow.")
    explain: ExplainModel | None = None


class CoverageModel(BaseModel):
    """Which part of the collection the answer saw."""

    shards: int
    answered: int
    codes: int
    searched: int
    complete: bool
    degraded: dict[str, str] = Field(description="Name of each shard that did not answer -> reason.")


class SearchAnswer(BaseModel):
    """Answers, one result for each query."""

    results: list[ResultModel]
    order: Literal["hamming", "asymmetric", "l2", "cosine"] = Field(
        description="Order of the hits. Of `asymmetric`, distances are Hamming distances and need not ascend."
    )
    coverage: CoverageModel
    version: int = Field(description="Collection version.")
    sequence: int | None = Field(None, description="Last write of the server's log that is on top of it, if any is.")
    timing_ms: dict[str, float]


class EncodeAnswer(BaseModel):
    """Codes of images or queries, in their order."""

    codes: list[str] = Field(description="In hex.")
    bits: int
    fingerprint: str | None = Field(description="Of the encoder; null if the collection does not name one.")
    timing_ms: dict[str, float]


class ItemModel(BaseModel):
    """One stored item."""

    id: int
    code: str
    attributes: dict[str, Any]


class ItemsModel(BaseModel):
    """Items, in the order requested, or a page of them in ascending order of their ids."""

    items: list[ItemModel]
    next: int | None = Field(None, description="Of a page: what to send as `after` for the next; null at the end.")
    version: int | None = Field(None, description="Of a page: collection version.")
    sequence: int | None = Field(None, description="Last write of the server's log that is on top of it, if any is.")


class CollectionModel(BaseModel):
    """The collection being served."""

    bits: int
    rows: int
    shards: int
    version: int
    encoder: str | None
    attributes: dict[str, str] = Field(description="Name -> type.")
    features: bool = Field(description="Whether answers can be re-ranked.")
    encodes_images: bool = Field(description="Whether queries may be images.")
    encodes_vectors: int | None = Field(description="Numbers in a query that is an embedding; null: none may be.")
    encodes_texts: bool = Field(description="Whether queries may be texts.")
    writable: bool = Field(description="Whether items can be stored, changed and deleted.")
    duplicates: bool = Field(description="Whether the server knows groups of near-duplicates.")
    limits: dict[str, float]


class ReplicasModel(BaseModel):
    """Number of replicas of every group."""

    model_config = ConfigDict(extra="forbid", strict=True)

    replicas: int = Field(ge=1, le=MAX_REPLICAS, description="Of each group.")


class HealthModel(BaseModel):
    """State of the server."""

    status: Literal["live"]


class PendingModel(BaseModel):
    """The live version of the collection, while it cannot be served; the server's log has the reason."""

    version: int | None = Field(description="null if its manifest cannot be read.")
    attempts: int = Field(description="Failed ones so far.")
    retry_s: float = Field(description="Seconds until the next one.")


class ReadyModel(BaseModel):
    """What a server that is ready can answer; `missing` shards are left out of partial answers."""

    status: Literal["ready"]
    version: int
    shards: int
    missing: list[str] = Field(description="Names of the shards that cannot be searched.")
    pending: PendingModel | None


class CompleteModel(BaseModel):
    """What a server serves that has just found every shard by a test search."""

    status: Literal["complete"]
    version: int
    shards: int
    missing: list[str] = Field(max_length=0, description="None.")
    pending: PendingModel | None


class ErrorModel(BaseModel):
    """Why there is no answer."""

    model_config = ConfigDict(extra="allow")
    type: str
    message: str
    field: str | None = Field(description="The field at fault, such as `queries.0.code`.")
    request_id: str | None = Field(None, description="The id of the request, as in the header `X-Request-Id`.")


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: ErrorModel
