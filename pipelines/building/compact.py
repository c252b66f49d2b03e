"""Compact a collection: one Ray task for each group of shards, and one version for each.

A task is a transaction: killed anywhere, it leaves nothing but files that the next write removes. What is finished is
live, so the same command goes on with what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hashlight.engine.collection.writing.compaction import Compaction, find_groups, joined, merge_group
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.places.opening import open_target
from hashlight.engine.storage.versions import read_current
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.nodes import look_at_collection, refuse_unshared
from hashlight.pipelines.jobs.session import ray_session
from hashlight.pipelines.jobs.tasks import run_tasks

Progress = Callable[[int, int], None]


def compact_collection(
    path: str | Path, *, full: bool = False, workers: int | None = None, progress: Progress | None = None
) -> Compaction:
    """Merge the shards of a collection that are small or have many deleted rows, each group in a task of its own.

    A single group is merged in this process. Which shards are worth it, and why, is in
    `engine.collection.writing.policy`.

    Parameters
    ----------
    path : str or Path
        A folder, or a prefix in a bucket.
    full : bool
        Merge all of them, so that nothing of deleted rows is left in the live version.
    workers : int, optional
        Groups merged at once, here or on a cluster; one per core if left out. Each takes about three times the size of
        its codes and ids.
    progress : callable, optional
        Called with (groups merged, groups in all).

    Raises
    ------
    HashlightError
        If the collection cannot be read or written; see `engine.collection.writing.transaction.Transaction`.
    PipelineError
        If a task's process died again and again.
    """
    location = open_target(path).location
    groups = find_groups(location, full=full)
    report = progress or (lambda _done, _total: None)
    if len(groups) > 1:
        merged = _on_ray(location, groups, workers or usable_cores(), report)
    else:
        merged = [merge_group(location, names) for names in groups]
    return joined(merged, location)


def _on_ray(location: str, groups: list[list[str]], workers: int, report: Progress) -> list[Compaction | None]:
    import ray

    merged: list[Compaction | None] = []
    report(0, len(groups))
    with ray_session(num_cpus=min(workers, len(groups))):
        shards = read_current(open_target(location)).shards
        refuse_unshared([look_at_collection(location, shards)], {"COLLECTION": location})
        task = ray.remote(_merge)
        for _, done in run_tasks(lambda each: task.remote(location, *each), enumerate(groups), max_running=workers):
            merged.append(done)
            report(len(merged), len(groups))
    return merged


def _merge(location: str, number: int, names: list[str]) -> Compaction | None:
    chaos.step("compact:group", number)
    done = merge_group(location, names)
    chaos.step("compact:group-done", number)
    return done
