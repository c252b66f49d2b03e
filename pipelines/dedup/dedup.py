"""Near-duplicates: all pairs of a collection's images within a Hamming radius, and the clusters they form.

Each unordered pair of shards is joined once, by a Ray task: every distinct code of one shard is searched for in the
other, so that identical codes cost one search. The pairs of a task appear as one file in one step, so that a finished
pair of shards is not joined again. Clusters are the connected components of all pairs: two images in one cluster may be
farther apart than the radius if others lie between them.

K images with one code are K * (K - 1) / 2 pairs, some 5 bytes each on disk: where many are the same, remove exact
copies first. Choose a radius within which few images lie.

::

    DIR/
      job.json            what is joined; it marks the folder
      pairs/A-B.parquet   id_a < id_b (int64) and distance (int32): the pairs between shards number A and B
      sidecars/N.json     says that the Nth pair of shards is done
      clusters.parquet    cluster, id, representative, pairs: one row per image that has a near-duplicate; and its uri,
                          if the collection has that attribute
      gallery.html        the largest clusters, with pictures where available
      dedup.json          counts; written last

A cluster is named after its lowest id. Its representative is the image with the most pairs; among several, the one with
the lowest id. In `clusters.parquet` larger clusters come first, equally large ones by name; ids ascend in each.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashlight.engine.codes import IdArray, check_radius
from hashlight.engine.collection.bounded import search_bounded
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.opening import open_shards
from hashlight.engine.errors import ReadFailedError
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.kernels.components import find_roots, join_edges
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import Place
from hashlight.engine.query import Query
from hashlight.engine.results import RangeResult
from hashlight.engine.storage.copies import open_shard, root_of
from hashlight.engine.storage.manifest import Manifest, ShardSpec
from hashlight.engine.storage.shard import Shard
from hashlight.engine.storage.versions import holding_live
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, JobKind
from hashlight.pipelines.jobs.nodes import look_at_collection, refuse_unshared
from hashlight.pipelines.jobs.session import ray_session
from hashlight.pipelines.jobs.tasks import run_tasks

PAIRS = pa.schema({"id_a": pa.int64(), "id_b": pa.int64(), "distance": pa.int32()})
CLUSTERS = pa.schema({"cluster": pa.int64(), "id": pa.int64(), "representative": pa.int64(), "pairs": pa.int64()})

# Rows whose codes are searched for at once: fewer where they find much, so that a call finds about the wanted hits.
_MIN_ROWS, _MAX_ROWS = 16, 65_536
_WANTED_HITS = 1_000_000
# For a call that finds more than the ones before it suggested.
_MAX_HITS = 4 * _WANTED_HITS
# Pairs in memory at a time, 80 MB.
_PAIRS_AT_ONCE = 4_000_000
# URIs in memory at a time, some 50 MB; each time, all ids are looked at.
_URIS_AT_ONCE = 500_000
_URI = "uri"


def check_sidecar(said: dict[str, Any]) -> None:
    """Raise ValueError or LookupError unless the sidecar of two shards has the number of their pairs."""
    if type(said["pairs"]) is not int or said["pairs"] < 0:
        raise ValueError(f"expected a number of pairs, got {said['pairs']!r}")


NEAR_DUPLICATES = JobKind(
    holds="near-duplicates",
    identified_by=("collection", "radius"),
    entries=("dedup.json", "gallery.html", "clusters.parquet", "pairs"),
    check=check_sidecar,
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class JoinJob:
    """What is joined: a version of a collection, identified by its shards and deleted rows, and the radius."""

    collection: str
    version: int
    shards: str
    bits: int
    radius: int


@dataclass(frozen=True, slots=True)
class DedupSummary:
    """What was found.

    Attributes
    ----------
    codes : int
        Images that were compared.
    pairs : int
        Pairs within the radius.
    clusters, members, largest : int
        Clusters of two images or more, the images in them, and the images of the largest.
    removable : int
        Images that could go if each cluster kept one: `members - clusters`.
    """

    codes: int
    pairs: int
    clusters: int
    members: int
    largest: int
    removable: int


def find_duplicates(
    collection: str | Path,
    output: str | Path,
    *,
    radius: int,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DedupSummary:
    """Find all pairs of images within a radius, and their clusters; an interrupted job resumes where it stopped.

    Parameters
    ----------
    collection : str or Path
    output : str or Path
        Folder for what is found, local or in a bucket, as in the module's docstring.
    radius : int
        Inclusive.
    workers : int, optional
        Pairs of shards joined at once, on this machine or a cluster; one per core if left out.
    overwrite : bool
        Replace what another job left there.
    progress : callable, optional
        Called with (pairs of shards done, pairs of shards in all).

    Raises
    ------
    PipelineError
        If `output` holds something else.
    """
    folder = JobFolder(output, NEAR_DUPLICATES)
    folder.refuse_foreign()
    place = open_place(collection)
    with holding_live(place) as live:
        alive = [f"{shard.name}{shard.dead.name if shard.dead else ''}" for shard in live.shards]
        names = hashlib.sha256("".join(alive).encode()).hexdigest()
        job = JoinJob(place.location, live.version, names, live.bits, check_radius(radius, bits=live.bits))
        with folder.place.lock():
            folder.begin({**asdict(job), "collection": str(place)}, overwrite=overwrite)
            _join_all(job, folder, live.shards, workers, progress or (lambda _done, _total: None))
            return _finish(job, folder, live)


def _finish(job: JoinJob, folder: JobFolder, live: Manifest) -> DedupSummary:
    """Form the clusters of all pairs, draw the largest, and say what was found."""
    from hashlight.pipelines.dedup.gallery import gallery_page

    place = folder.place
    clusters = cluster_pairs([place.location_of(f"pairs/{name}") for name in place.names("pairs")])
    chaos.step("dedup:clustered")
    collection = _opened(job, live)
    schema = CLUSTERS.append(collection.schema.field(_URI)) if _URI in collection.schema.names else CLUSTERS
    _write_table(place, "clusters.parquet", _with_uris(clusters, collection), schema)
    place.put("gallery.html", gallery_page(collection, clusters, radius=job.radius).encode())
    chaos.step("dedup:before-summary")
    summary = _summary(live.rows, sum(said["pairs"] for _, said in folder.done()), clusters)
    folder.finish("dedup.json", {**asdict(job), "collection": str(open_place(job.collection)), **asdict(summary)})
    return summary


def _join_all(
    job: JoinJob, folder: JobFolder, shards: tuple[ShardSpec, ...], workers: int | None, progress: Progress
) -> None:
    pairs = list(enumerate(itertools.combinations_with_replacement(range(len(shards)), 2)))
    finished = {unit for unit, _ in folder.done()}
    waiting = [(unit, pair) for unit, pair in pairs if unit not in finished]
    done = len(pairs) - len(waiting)
    progress(done, len(pairs))
    if not waiting:
        return
    with ray_session(num_cpus=min(workers or usable_cores(), len(waiting))):
        import ray

        refuse_unshared([look_at_collection(job.collection, shards)], {"--output": folder.place.location})
        join = ray.remote(join_shards)

        def submit(item: tuple[int, tuple[int, int]]) -> Any:
            unit, (first, second) = item
            return join.remote(job, folder, unit, (first, second), shards[first], shards[second])

        for _ in run_tasks(submit, waiting, max_running=workers):
            done += 1
            progress(done, len(pairs))


def join_shards(
    job: JoinJob, folder: JobFolder, unit: int, numbers: tuple[int, int], first: ShardSpec, second: ShardSpec
) -> None:
    """Write the pairs between two shards, or within one, and publish the sidecar."""
    if folder.sidecar(unit) is not None:  # by a task that died before it could return
        return
    name = f"{numbers[0]:05d}-{numbers[1]:05d}"
    chaos.step("dedup:join", name)
    place = open_place(job.collection)
    shard = open_shard(place, first, bits=job.bits)
    other = shard if first == second else open_shard(place, second, bits=job.bits)
    pairs = _as_tables(find_pairs(shard, other, job.radius))
    count = _write_table(folder.place, f"pairs/{name}.parquet", pairs, PAIRS)
    folder.publish(unit, {"pairs": count})
    chaos.step("dedup:joined", name)


def find_pairs(shard: Shard, other: Shard, radius: int) -> Iterator[tuple[IdArray, IdArray, NDArray[np.int32]]]:
    """Yield all pairs of a row of `shard` and one of `other` within `radius`: (lower ids, higher ids, distances).

    A pair within one shard (`other is shard`) comes once, and no row is its own pair.
    """
    query = Query(radius=radius, threads=1)
    start, size = 0, _MIN_ROWS
    while start < shard.rows:
        rows = slice(start, min(start + size, shard.rows))
        codes_RW, ids_R, hits = shard.codes_NW[rows], shard.ids_N[rows], 0
        if shard.alive is not None:
            alive_R = shard.alive.allows(np.arange(rows.start, rows.stop))
            codes_RW, ids_R = codes_RW[alive_R], ids_R[alive_R]
        distinct_DW, place_R = _distinct(np.ascontiguousarray(codes_RW))
        for run, found in search_bounded(other.answer, distinct_DW, query, max_hits=_MAX_HITS):
            # Rows are sorted by their codes, so those of a run of codes are adjacent.
            these = slice(*np.searchsorted(place_R, [run.start, run.stop]))
            hits += len(found.ids)
            for id_P, other_P, distance_P in _spread(ids_R[these], place_R[these] - run.start, found):
                if other is shard:
                    once = id_P < other_P
                    yield id_P[once], other_P[once], distance_P[once]
                else:
                    yield np.minimum(id_P, other_P), np.maximum(id_P, other_P), distance_P
        start = rows.stop
        size = int(np.clip(size * _WANTED_HITS // max(hits, 1), size // 8, 4 * size))
        size = int(np.clip(size, _MIN_ROWS, _MAX_ROWS))


def _distinct(codes_RW: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the distinct codes (D, W) among sorted codes, and for each row (R,) the position of its own."""
    new_R = np.ones(len(codes_RW), np.bool_)
    new_R[1:] = (codes_RW[1:] != codes_RW[:-1]).any(axis=1)
    return codes_RW[new_R], np.cumsum(new_R) - 1


def _spread(
    ids_R: IdArray, place_R: NDArray[np.int64], found: RangeResult
) -> Iterator[tuple[IdArray, IdArray, NDArray[np.int32]]]:
    """Pair each row with what was found for its code: (row's id, id found, distance), some pairs at a time."""
    count_R = np.diff(found.lims)[place_R]
    ends_R = np.cumsum(count_R)
    start = 0
    while start < len(ids_R):
        before = int(ends_R[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends_R, before + _PAIRS_AT_ONCE, side="right")))
        rows = slice(start, stop)
        size = int(ends_R[stop - 1]) - before
        shift_R = found.lims[place_R[rows]] - (ends_R[rows] - count_R[rows] - before)
        hit_P = np.repeat(shift_R, count_R[rows]) + np.arange(size)
        yield np.repeat(ids_R[rows], count_R[rows]), found.ids[hit_P], found.distances[hit_P]
        start = stop


def _as_tables(parts: Iterator[tuple[IdArray, IdArray, NDArray[np.int32]]]) -> Iterator[pa.Table]:
    """Gather small parts into tables of a reasonable size."""
    waiting: list[pa.Table] = []
    for part in parts:
        waiting.append(pa.table(list(part), schema=PAIRS))
        if sum(map(len, waiting)) >= _WANTED_HITS:
            yield pa.concat_tables(waiting)
            waiting = []
    yield pa.concat_tables(waiting) if waiting else PAIRS.empty_table()


def _write_table(place: Place, name: str, tables: Iterator[pa.Table], schema: pa.Schema) -> int:
    """Write a Parquet file that appears in one step; return the number of its rows."""
    rows = 0
    with place.scratch(name) as aside:
        dictionaries = ["distance", "cluster", "representative"]
        with pq.ParquetWriter(aside, schema, use_dictionary=dictionaries, write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table.combine_chunks())
                rows += len(table)
        place.put_file(name, aside)
    return rows


def cluster_pairs(files: Sequence[str | Path]) -> pa.Table:
    """Return the clusters formed by the pairs in some files, a table of `CLUSTERS`.

    Memory grows with the images that have a near-duplicate, some 80 bytes each, not with the pairs.
    """
    members_M = _members(files)
    root_M = np.arange(len(members_M))
    degree_M = np.zeros(len(members_M), np.int64)
    for pairs in _read_pairs(files):
        join_edges(root_M, degree_M, *(_places(members_M, ids) for ids in pairs))
    find_roots(root_M)
    cluster_M, size_C = np.unique(root_M, return_inverse=True, return_counts=True)[1:]
    by_degree = np.lexsort((members_M, -degree_M, cluster_M))
    representative_C = members_M[by_degree[np.cumsum(size_C) - size_C]]
    order = np.lexsort((members_M, root_M, -size_C[cluster_M]))
    columns = (members_M[root_M], members_M, representative_C[cluster_M], degree_M)
    return pa.table([column[order] for column in columns], schema=CLUSTERS)


def _members(files: Sequence[str | Path]) -> IdArray:
    """Return the distinct ids in all pairs, sorted; runs of similar length are merged, so that each id moves rarely."""
    runs: list[IdArray] = []
    for pairs in _read_pairs(files):
        runs.append(_sorted_union(*pairs))
        while len(runs) > 1 and len(runs[-2]) < 2 * len(runs[-1]):
            runs[-2:] = [_sorted_union(*runs[-2:])]
    return _sorted_union(np.empty(0, np.int64), *runs)


def _sorted_union(*ids: IdArray) -> IdArray:
    """Return the distinct ids; a plain sort is several times faster than `numpy.unique`."""
    sorted_M = np.concatenate(ids)
    sorted_M.sort()
    return sorted_M[np.concatenate([[True], sorted_M[1:] != sorted_M[:-1]])] if len(sorted_M) else sorted_M


def _places(members_M: IdArray, ids_P: IdArray) -> NDArray[np.int64]:
    """Return the position of each id among the members; looking them up in order makes use of the cache."""
    order_P = np.argsort(ids_P)
    place_P = np.empty(len(ids_P), np.int64)
    place_P[order_P] = np.searchsorted(members_M, ids_P[order_P])
    return place_P


def _read_pairs(files: Sequence[str | Path]) -> Iterator[tuple[IdArray, IdArray]]:
    """Read the ids of all pairs, about `_PAIRS_AT_ONCE` at a time."""
    waiting: list[pa.Table] = []
    for path in files:
        for table in _tables_of(path):
            waiting.append(table)
            if sum(map(len, waiting)) >= _PAIRS_AT_ONCE:
                yield _ids_of(waiting)
                waiting = []
    if waiting:
        yield _ids_of(waiting)


def _tables_of(path: str | Path) -> Iterator[pa.Table]:
    """Read the ids of the pairs in a file, a row group at a time, checked for sense."""
    place = open_place(path)
    try:
        with place.open() as raw, pq.ParquetFile(raw, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["id_a", "id_b"])
                table.validate(full=True)
                if table.schema.types != [pa.int64(), pa.int64()] or any(c.null_count for c in table.columns):
                    raise ValueError(f"expected pairs of ids, got {table.schema}")
                yield table
    except ReadFailedError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise PipelineError(
            f"{place} is not readable as pairs ({error}): find them again with `hashlight dedup --overwrite`"
        ) from error


def _ids_of(tables: list[pa.Table]) -> tuple[IdArray, IdArray]:
    table = pa.concat_tables(tables)
    return table["id_a"].to_numpy(), table["id_b"].to_numpy()


def _summary(codes: int, pairs: int, clusters: pa.Table) -> DedupSummary:
    sizes = np.unique(clusters["cluster"].to_numpy(), return_counts=True)[1]
    return DedupSummary(
        codes=codes,
        pairs=pairs,
        clusters=len(sizes),
        members=len(clusters),
        largest=int(sizes.max(initial=0)),
        removable=len(clusters) - len(sizes),
    )


def _opened(job: JoinJob, live: Manifest) -> Collection:
    """Open the version that was joined, even if there is a newer one by now."""
    place = open_place(job.collection)
    root, copies = root_of(place, bits=live.bits)
    return Collection(root, live, open_shards(root, live, copies=copies), location=job.collection)


def _with_uris(clusters: pa.Table, collection: Collection) -> Iterator[pa.Table]:
    """Yield clusters in parts, with the URIs of their images if the collection has them."""
    if _URI not in collection.schema.names:
        yield clusters
        return
    for start in range(0, len(clusters), _URIS_AT_ONCE):
        some = clusters.slice(start, _URIS_AT_ONCE)
        ids_M = some["id"].to_numpy()
        found = collection.scan([_URI], "id in :ids", {"ids": ids_M}).read_all()
        place_M = np.searchsorted(found["id"].to_numpy(), ids_M)
        yield some.append_column(found.schema.field(_URI), found[_URI].take(pa.array(place_M)))
