"""Shard servers, asked as a gateway asks them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hashlight.engine.errors import NotReadyError
from hashlight.engine.service.control.finding import Finder
from hashlight.engine.service.control.sources import MapFile, NamedServers, Source
from hashlight.engine.service.protocol.security import TOKEN_VARIABLE, Security
from hashlight.engine.wording import counted
from hashlight.pipelines.doctor.findings import Asked, Finding, State
from hashlight.pipelines.serving.ray_lookup import RayAddresses

RAY = "ray://"
_WAIT_S, _RAY_S = 8.0, 40.0  # for all to answer, and for Ray to say where they are
_LOOK_S = 0.2


def shards(asked: Asked) -> Iterator[Finding]:
    """Tell which shard servers answer, and whether they have the same version."""
    try:
        source = _source_of(asked)
        security = Security.from_files(
            certificate=asked.shard_cert, key=asked.shard_key, authority=asked.shard_authority
        )
    except (OSError, ValueError) as error:
        advice = "correct what `--shards`, `--map` or the certificates' options name"
        yield Finding(check="shards", state="problem", found=str(error), advice=advice)
        return
    with contextlib.closing(Finder(source, security=security)) as finder:
        until_s = time.monotonic() + (_RAY_S if isinstance(source, RayAddresses) else _WAIT_S)
        while True:
            with contextlib.suppress(NotReadyError):
                finder.map()
            servers = finder.servers()
            if (servers and all(one["fault"] is None for one in servers)) or time.monotonic() > until_s:
                break
            time.sleep(_LOOK_S)
        yield from servers_of(servers, finder.num_groups)


def _source_of(asked: Asked) -> Source:
    if asked.map is not None:
        return MapFile(Path(asked.map), asked.groups)
    assert asked.shards is not None, "otherwise this is not checked"
    if asked.shards.startswith(RAY):
        return RayAddresses(asked.shards.removeprefix(RAY))
    return NamedServers(asked.shards, asked.groups or 1)


def servers_of(servers: Sequence[Mapping[str, Any]], num_groups: int) -> Iterator[Finding]:
    """Judge what is known of servers, as `engine.service.control.finding.Finder.servers` returns it."""
    well = [one for one in servers if one["fault"] is None]
    newest = max((one["versions"][-1] for one in well if one["versions"]), default=None)
    numbers = {"servers": len(servers), "well": len(well), "groups": num_groups, "version": newest}
    if newest is not None:
        found = f"{counted(len(well), 'server')} of {counted(num_groups, 'group')}, at version {newest}"
        yield Finding(check="shards", state="ok", found=found, numbers=numbers)
    for group in range(1, max(num_groups, 1) + 1):
        if not any(one["group"] == group for one in servers):
            advice = "start one, or correct the list: every answer lacks its shards"
            yield Finding(check="shards", state="problem", found=f"no server of group {group} is known", advice=advice)
    for one in servers:
        if one["fault"] is not None:
            alone = not any(other["group"] == one["group"] for other in well)
            found = f"{one['address']} of group {one['group']} {one['fault']}"
            advice = f"see its log, and that {TOKEN_VARIABLE} and the certificates are the same here and there"
            if alone:
                advice += "; its group has no other, so every answer lacks its shards"
            state: State = "problem" if alone else "warning"
            yield Finding(check="shards", state=state, found=found, advice=advice, numbers=dict(one))
        elif newest not in one["versions"]:
            found = f"{one['address']} of group {one['group']} does not have version {newest}, which others have"
            advice = "see its log for why it cannot take it up; gateways serve what every group has"
            yield Finding(check="shards", state="warning", found=found, advice=advice, numbers=dict(one))
