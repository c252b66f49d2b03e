"""Models of the requests and answers of this room; see `engine.service.api.schemas`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from hashlight.engine.service.api.schemas import CountBody, CoverageModel, Query
from hashlight.engine.service.limits import MAX_QUERIES

MAX_REPRESENTATIVES = 500
MAX_GROUPS = 100
MAX_MEMBERS = 100

_CODE = "9f3a5c0000000001"


class HistogramBody(CountBody):
    """Count how many items lie at each Hamming distance of each query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"queries": [{"code": _CODE}]},
                {"queries": [{"id": 7}, {"code": _CODE}], "filter": "label == 3", "allow_partial": True},
            ]
        }
    )
    queries: list[Query] = Field(min_length=1, max_length=MAX_QUERIES, fail_fast=True)
    allow_partial: bool = Field(False, description="Count in the shards that respond; `coverage` names the others.")


class DistancesModel(BaseModel):
    """How far the items are from one query."""

    counts: list[int] = Field(description="Number of items at distance 0, 1, ... and the number of bits.")


class HistogramAnswer(BaseModel):
    """Counts, one result for each query."""

    results: list[DistancesModel]
    coverage: CoverageModel
    version: int = Field(description="Collection version.")
    sequence: int | None = Field(None, description="Last write of the server's log that is on top of it, if any is.")
    timing_ms: dict[str, float]


class RepresentativeModel(BaseModel):
    """An item that stands for those near it."""

    id: int
    size: int = Field(description="Items of the sample that are nearer to this one than to any other.")
    code: str = Field(description="In hex.")


class RepresentativesAnswer(BaseModel):
    """Items that stand for the collection, those of the largest groups first; each has another code."""

    items: list[RepresentativeModel]
    sampled: int = Field(description="Items of the sample: the sum of all sizes.")
    coverage: CoverageModel
    version: int = Field(description="Collection version; writes that are not committed do not count.")


class RepresentativeId(BaseModel):
    """The item that stands for a group: the one with the most pairs, of several the one of the lowest id."""

    id: int


class DuplicateModel(BaseModel):
    """An item of a group of near-duplicates."""

    id: int
    pairs: int = Field(description="Others of its group within the radius.")
    distance: int | None = Field(description="Hamming distance from the representative; null if that is gone.")


class GroupModel(BaseModel):
    """A group of near-duplicates, linked by pairs within the radius; those at its ends may be farther apart."""

    size: int = Field(description="Its items when it was found.")
    representative: RepresentativeId
    items: list[DuplicateModel] = Field(
        description="The representative, then others of the lowest ids; those that are gone are left out."
    )


class FoundModel(BaseModel):
    """What the search for duplicates found in all."""

    codes: int = Field(description="Items that were compared.")
    pairs: int = Field(description="Pairs within the radius.")
    clusters: int = Field(description="Groups of two items or more.")
    members: int = Field(description="Items in groups.")
    largest: int = Field(description="Items of the largest group.")
    removable: int = Field(description="Items that could go if each group kept one.")
    radius: int
    version: int = Field(description="Collection version that was searched.")


class DuplicatesAnswer(BaseModel):
    """Groups of near-duplicates, the largest first."""

    groups: list[GroupModel]
    next: int | None = Field(description="What to send as `after` for the next page; null at the end.")
    found: FoundModel
    version: int = Field(description="Collection version of the items.")
