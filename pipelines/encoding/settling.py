"""Ids that are known only once the images are read: those of tars and of embeddings, and those made from the bytes.

They are hashes, which several images may share. When all units are finished, an image whose id an earlier one has takes
the next (`pipelines.corpora.ids`), and its part is written again under a new name. The sidecar keeps the hash, so that
the ids do not depend on how often this is interrupted, or on what was settled for an earlier listing of the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from hashlight.engine.ids import RepeatedIds
from hashlight.engine.places.reading import map_ahead
from hashlight.pipelines.codes.parts import part_name
from hashlight.pipelines.corpora.ids import each_moved, settle_ids, with_ids
from hashlight.pipelines.encoding.units import hashes_of, put_part, replace_sidecar
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, sidecar_name

_Hashes = dict[int, int]


def settle_repeated(job: JobFolder, units: Iterable[int], *, are_hashes: bool = True) -> None:
    """Give the images of finished units distinct ids, unless the corpus has ids: then refuse those that occur twice.

    Raises
    ------
    PipelineError
        If ids are not hashes, and one occurs twice.
    """
    found: list[tuple[int, str, _Hashes]] = []
    for unit in units:
        said = job.parse(unit, job.place.read(sidecar_name(unit)))
        found.append((unit, said["sha256"], hashes_of(said)))

    def hashed() -> Iterator[pa.Table]:
        return map_ahead(lambda one: _read_hashes(job, *one), found)

    with RepeatedIds() as ids:
        for table in hashed():
            ids.add(table["id"].to_numpy())
        repeated = ids.find()
        if len(repeated) and not are_hashes:
            raise PipelineError(
                f"{len(repeated)} ids occur more than once in the corpus, for example {repeated[0]}: give each row its "
                "own, or have ids made with --ids name"
            )
        moved = settle_ids(repeated, hashed)
    if not moved and not any(hashes for _, _, hashes in found):
        return
    for (unit, _, hashes), (table, inside) in zip(found, each_moved(hashed(), moved), strict=True):
        if inside or hashes:
            _write(job, unit, with_ids(table, inside)["id"], {row: table["id"][row].as_py() for row in inside})


def _read_hashes(job: JobFolder, unit: int, sha256: str, hashes: _Hashes) -> pa.Table:
    with job.place.open(part_name(unit, sha256)) as raw:
        return with_ids(pq.read_table(raw, columns=["id"]), hashes)


def _write(job: JobFolder, unit: int, ids: pa.ChunkedArray, hashes: _Hashes) -> None:
    before = job.parse(unit, job.place.read(sidecar_name(unit)))
    table = pq.read_table(pa.BufferReader(job.place.read(part_name(unit, before["sha256"]))))
    if not table["id"].equals(ids):
        part = put_part(job.place, unit, table.set_column(0, table.schema.field("id"), ids))
        replace_sidecar(job.place, unit, before, {**before, **part, "hashes": hashes})
