"""The checks, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Iterator

from hashlight.pipelines.doctor.findings import Asked
from hashlight.pipelines.doctor.running import Check

_ROOM = "hashlight.pipelines.doctor"


def checks_of(asked: Asked) -> Iterator[Check]:
    """Yield the checks of this machine, and of what is asked besides."""
    yield Check(name="versions", title="reading versions", module=f"{_ROOM}.software", function="versions", limit_s=60)
    yield Check(name="faiss", title="loading FAISS", module=f"{_ROOM}.software", function="faiss", limit_s=60)
    yield Check(
        name="processor", title="looking at the processor", module=f"{_ROOM}.hardware", function="processor", limit_s=60
    )
    yield Check(name="memory", title="looking at memory", module=f"{_ROOM}.hardware", function="memory", limit_s=60)
    yield Check(name="limits", title="looking at limits", module=f"{_ROOM}.hardware", function="limits", limit_s=60)
    yield Check(name="gpu", title="looking for a GPU", module=f"{_ROOM}.software", function="gpu", limit_s=120)
    yield Check(name="disk", title="measuring disks", module=f"{_ROOM}.disks", function="disks", limit_s=120)
    yield Check(name="cache", title="looking at the cache", module=f"{_ROOM}.disks", function="cache", limit_s=60)
    yield Check(name="ray", title="looking for Ray", module=f"{_ROOM}.software", function="ray", limit_s=120)
    yield Check(
        name="kernels", title="testing the kernels", module=f"{_ROOM}.kernels", function="kernels",
        limit_s=180 + asked.seconds,
    )  # fmt: skip
    if asked.collection is not None:
        yield Check(
            name="collection", title="reading the collection", module=f"{_ROOM}.services", function="collection",
            limit_s=60,
        )  # fmt: skip
    if asked.gateway is not None:
        yield Check(
            name="gateway", title="asking the gateway", module=f"{_ROOM}.services", function="gateway", limit_s=60
        )
    if asked.shards is not None or asked.map is not None:
        yield Check(
            name="shards", title="asking the shard servers", module=f"{_ROOM}.shards", function="shards", limit_s=60
        )
