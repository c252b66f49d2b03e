"""Models of the requests and answers of this room; see `engine.service.api.schemas`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hashlight.engine.service.api.schemas import CoverageModel

MAX_REJECTS = 1000
MAX_TAG = 200  # characters


class PendingVersionModel(BaseModel):
    """The live version of the collection, while it cannot be served."""

    version: int | None = Field(description="null if its manifest cannot be read.")
    attempts: int = Field(description="Failed ones so far.")
    retry_s: float = Field(description="Seconds until the next one.")
    error: str


class WriteLogModel(BaseModel):
    """What is in the write log of the server and in no version yet."""

    writes: int
    num_bytes: int
    oldest_s: float = Field(description="Age of the first of them in seconds.")
    flushes: int = Field(description="Versions made of the log.")
    failures: int = Field(description="Attempts at that which failed.")


class OverviewModel(BaseModel):
    """The collection as it is served."""

    version: int
    items: int
    shards: int
    bits: int
    encoder: str | None
    location: str | None = Field(description="null: this server does not know where the collection is.")
    coverage: CoverageModel | None = Field(description="As far as is known without asking; null: nothing can be asked.")
    pending: PendingVersionModel | None
    write_log: WriteLogModel | None = Field(description="null: the server only reads.")


class VersionModel(BaseModel):
    """A version that the collection can be rolled back to."""

    version: int
    live: bool
    written: str | None = Field(description="UTC, ISO 8601.")
    operation: Literal[
        "created", "added", "changed", "deleted", "column_set", "compacted", "relabelled", "rolled_back", "unknown"
    ] = Field(
        description="What made it of the version before, as far as the two tell. `changed`: items were replaced, or "
        "some added and as many or more deleted; `relabelled`: tags changed, or versions were let go; `unknown`: the "
        "version before is gone."
    )
    items: int
    items_before: int | None = Field(description="Of the version before; null if there is none, or it is gone.")
    deleted_rows: int = Field(description="Rows that are deleted and still stored.")
    shards: int
    bytes: int
    tags: list[str]


class VersionsAnswer(BaseModel):
    """The versions that are kept, the latest first."""

    versions: list[VersionModel]


class RollbackBody(BaseModel):
    """Make the next version what an earlier one was."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"version": 1}, {"version": "before-cleaning"}]}
    )
    version: int | str = Field(description="Its number or its tag.")


class RollbackAnswer(BaseModel):
    """The version that was written; servers take it up within seconds."""

    version: int


class ServerModel(BaseModel):
    """A shard server as this gateway knows it."""

    address: str
    group: int = Field(description="Counted from 1.")
    versions: list[int] = Field(description="Versions of the collection that it has.")
    fault: str | None = Field(description="Why it is not used, or not found; null: nothing.")
    state: Literal["connected", "silent", "shut", "leaving", "lost", "not served"] = Field(
        description="`silent`: an answer is overdue; `shut`: it is avoided after a failure; `not served`: the router "
        "has no connection, because it does not have the version that is served."
    )
    under_way: int = Field(description="Requests in progress.")
    last_answer_s: float | None = Field(description="Seconds since its last answer or heartbeat; null: none yet.")
    failures: int = Field(description="Failures in a row.")
    breaker_s: float = Field(description="Seconds for which it is avoided still.")
    breakers_opened: int = Field(description="Times that it was avoided after a failure.")


class ServersAnswer(BaseModel):
    """Shard servers; none if the collection is open in the gateway itself."""

    servers: list[ServerModel]
    version: int | None = Field(description="Collection version that is served; null: none yet.")


class SlowQueriesAnswer(BaseModel):
    """The slow queries of the server that were logged last, the latest first, of all its collections."""

    threshold_s: float | None = Field(description="A query that takes longer is slow; null: none is looked for.")
    queries: list[dict[str, Any]] = Field(
        description="`ended`, `request_id`, `path`, `status`, `ms`, and as far as they apply `queries`, `k`, `radius`, "
        "`limit`, `filter`, `version`, `coverage`, `plan`, `timing_ms` and `explain`."
    )


class RejectModel(BaseModel):
    """An image that could not be encoded."""

    number: int = Field(description="Its picture, if it can be read, is `/v1/admin/rejects/{number}/picture`.")
    id: int | None
    uri: str | None
    kind: str
    reason: str


class RejectsAnswer(BaseModel):
    """Images that could not be encoded."""

    rejects: list[RejectModel]
    kinds: dict[str, int] = Field(description="How many there are of each kind.")
    next: int | None = Field(description="What to send as `after` for the next page; null at the end.")
