"""Mutated files that jobs resume from: refused by name, or read as what they hold.

Run as a program, as `tests.engine.storage.fuzz` is: `python -m tests.pipelines.jobs.fuzz FOLDER FIRST COUNT KIND...`
"""

from __future__ import annotations

import collections
import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from hashlight.engine.collection.collection import Collection
from hashlight.engine.places.opening import open_place
from hashlight.engine.storage.manifest import parse_shard
from hashlight.pipelines.building.build import BUILD, _finished_shards
from hashlight.pipelines.building.shards import is_whole, sidecar_of
from hashlight.pipelines.codes.parts import PLAN, Part, Piece
from hashlight.pipelines.corpora.work import WorkList, list_work, read_work
from hashlight.pipelines.dedup.dedup import PAIRS, cluster_pairs
from hashlight.pipelines.encoding.plan import put_plan
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder
from hashlight.pipelines.searching import batch as search
from hashlight.pipelines.searching.batch import ANSWERS, SCHEMA, Block, SearchJob
from tests.engine.storage.forging import manifest_of
from tests.engine.storage.fuzz import mutate, mutate_text, same

K, QUERIES = 5, 60
WORK, SUMMARY, FOUND, ANSWERED, SHARD, PAIRED = "work list", "summary", "found", "block", "shard sidecar", "pairs"
KINDS = (WORK, SUMMARY, FOUND, ANSWERED, SHARD, PAIRED)


def work_list(folder):
    """The bytes of a work list, and the path of another of the same corpus, in which much has changed since."""
    photos = folder / "photos"
    for number in range(60):
        (photos / f"class {number % 3}").mkdir(parents=True, exist_ok=True)
        (photos / f"class {number % 3}" / f"{number}.png").write_bytes(b"x" * number)
    list_work(photos, folder / "old.arrow", unit_images=7)
    for number in range(0, 60, 4):
        (photos / f"class {number % 3}" / f"{number}.png").unlink()
    for number in range(60, 70):
        (photos / "class 0" / f"{number}.png").write_bytes(b"new")
    list_work(photos, folder / "new.arrow", unit_images=7)
    return (folder / "old.arrow").read_bytes(), folder / "new.arrow"


def with_summary(data, change):
    """A work list whose summary is changed."""
    old = pa.ipc.open_file(pa.BufferReader(data))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, old.schema) as writer:
        for number in range(old.num_record_batches):
            found = old.get_batch_with_custom_metadata(number)
            said = dict(found.custom_metadata)
            if b"hashlight" in said:
                said[b"hashlight"] = change(said[b"hashlight"])
            writer.write_batch(found.batch, custom_metadata=said)
    return sink.getvalue().to_pybytes()


def rows_of(path):
    """The rows of a work list, as pyarrow reads them."""
    file = pa.ipc.open_file(pa.BufferReader(Path(path).read_bytes()))
    return [row for number in range(file.num_record_batches - 1) for row in file.get_batch(number).to_pylist()]


def hits(rng, offset):
    """What a shard found: K hits or fewer for each query, in the order of (distance, id), in uneven batches."""
    rows = []
    for query in range(QUERIES):
        found = zip(rng.integers(0, 4, K), rng.permutation(50)[:K], strict=True)
        ordered = sorted((int(distance), int(2 * id_ + offset)) for distance, id_ in found)[: int(rng.integers(K + 1))]
        rows.append(
            {
                "query": query,
                "ids": [id_ for _, id_ in ordered],
                "distances": [distance for distance, _ in ordered],
                "truncated": False,
            }
        )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        for start, stop in ((0, 17 + offset), (17 + offset, 40), (40, QUERIES)):
            writer.write_batch(pa.RecordBatch.from_pylist(rows[start:stop], SCHEMA))
    return sink.getvalue().to_pybytes()


def read_found(data):
    return pa.ipc.open_file(pa.BufferReader(data)).read_all().to_pylist()


def components(pairs):
    """The clusters of pairs, as sets: a plain search."""
    near = collections.defaultdict(set)
    for a, b in pairs:
        near[a].add(b)
        near[b].add(a)
    clusters, seen = set(), set()
    for start in near:
        if start not in seen:
            cluster, waiting = set(), [start]
            while waiting:
                if (one := waiting.pop()) not in cluster:
                    cluster.add(one)
                    waiting += near[one]
            seen |= cluster
            clusters.add(frozenset(cluster))
    return clusters


class Fuzz:
    """Tries mutations of each kind of file, each from what it was at first."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        self.folder = folder
        self.work, self.new = work_list(folder)
        self.found = [hits(rng, offset) for offset in (0, 1)]
        self.job = SearchJob("c", 1, 48, None, 100, K, None, None, QUERIES, ())
        self.block = Block(0, 0, (Piece(Part("q.parquet", QUERIES, ""), 0, QUERIES),))
        codes = rng.integers(2**48, size=(100, 1), dtype=np.uint64)
        Collection.create(folder / "c", codes, ids=np.arange(100), bits=48)
        (shard,) = json.loads(manifest_of(folder / "c").read_bytes())["shards"]
        self.shard = sidecar_of(parse_shard(shard))
        table = pa.table([rng.integers(0, 300, 200), rng.integers(0, 300, 200), rng.integers(0, 4, 200)], PAIRS.names)
        pq.write_table(table.cast(PAIRS), folder / "pairs.parquet", write_page_checksum=True)
        self.pairs = (folder / "pairs.parquet").read_bytes()

    def list_work(self, rng, kind):
        """Read a work list, and let it be the plan of a job whose corpus has changed."""
        change = (lambda text: mutate_text(rng, text)) if kind == SUMMARY else None
        data = with_summary(self.work, change) if change else mutate(rng, self.work)
        codes = open_place(self.folder / "codes")
        codes.put(PLAN, data)
        path = self.folder / "codes" / PLAN
        summary = read_work(path)
        with codes.open(PLAN) as raw:
            work = WorkList(raw, str(path))
            assert work.summary == summary
            units = work.units()
            numbered = [work.read_numbered(place) for place in range(summary.units)]
        assert [row for _, entries in numbered for row in entries.to_pylist()] == rows_of(path)
        assert len(units.numbers) == len(units.digests) == len(units.firsts) == len(numbered)
        put_plan(codes, self.new, 7, str(self.new))
        key = str
        assert sorted(map(key, rows_of(path))) == sorted(map(key, rows_of(self.new)))

    def merge(self, rng, kind):
        """Merge what two shards found, publish it, and compare it with what the files say to plain Python."""
        folder = JobFolder(self.folder / "answers", ANSWERS)
        folder.begin({"asked": 1}, overwrite=True)
        folder.withdraw(0)
        found = [mutate(rng, self.found[0]) if kind == FOUND else self.found[0], self.found[1]]
        for number, data in enumerate(found):
            folder.place.put(f"found-{number}", data)
        search.merge_block(self.job, folder, self.block, "found-0", "found-1")
        name = search._answers_name(self.block)
        if kind == FOUND:
            merged = []
            for first, second in zip(*map(read_found, found), strict=True):
                both = sorted(
                    pair for row in (first, second) for pair in zip(row["distances"], row["ids"], strict=True)
                )[:K]
                merged.append((first["query"], [id_ for _, id_ in both], [distance for distance, _ in both]))
        else:
            folder.place.put(name, mutate(rng, folder.place.read(name)))
        try:
            search._publish(open_place(self.folder), "answers.parquet", self.job, folder, [self.block])
        except PipelineError:
            assert folder.sidecar(0) is None, "the block is repeated"
            raise
        answers = pq.read_table(self.folder / "answers.parquet").to_pylist()
        if kind == FOUND:
            assert [(row["query"], row["ids"], row["distances"]) for row in answers] == merged
        else:
            assert answers == pq.ParquetFile(pa.BufferReader(folder.place.read(name))).read().to_pylist()

    def build(self, rng):
        """Resume from the sidecar of a shard, half of the time with the checksum of what it now says."""
        text = mutate_text(rng, json.dumps(self.shard).encode())
        job = JobFolder(self.folder / "c" / "build", BUILD)
        said = {}
        try:
            said = json.loads(text)
            if rng.integers(2):
                said["sha256"] = hashlib.sha256(json.dumps(said["shard"], sort_keys=True).encode()).hexdigest()
            said["job"] = job.name
            text = json.dumps(said).encode()
        except (ValueError, TypeError, LookupError, RecursionError):
            pass
        job.place.put("sidecars/00000.json", text)
        finished = _finished_shards(job)
        spec = parse_shard(job.sidecar(0)["shard"])
        read = json.loads(json.dumps(asdict(spec)))
        assert {key: said["shard"][key] for key in read.keys() & said["shard"].keys()} == {
            key: read[key] for key in read.keys() & said["shard"].keys()
        }
        assert finished == {spec.name}
        done = list(job.done(lambda _unit, sidecar: is_whole(str(self.folder / "c"), parse_shard(sidecar["shard"]))))
        files = self.folder / "c" / "shards" / spec.name
        whole = all(
            (files / name).is_file() and (files / name).stat().st_size == file.bytes
            for name, file in spec.files.items()
        )
        assert bool(done) == whole

    def cluster(self, rng):
        path = self.folder / "pairs" / "0.parquet"
        open_place(path.parent).put(path.name, mutate(rng, self.pairs))
        clusters = cluster_pairs([str(path)])
        stored = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(["id_a", "id_b"])
        found = collections.defaultdict(set)
        for cluster, id_ in zip(clusters["cluster"].to_pylist(), clusters["id"].to_pylist(), strict=True):
            found[cluster].add(id_)
        pairs = zip(stored["id_a"].to_pylist(), stored["id_b"].to_pylist(), strict=True)
        assert set(map(frozenset, found.values())) == components(pairs)
        same(clusters["cluster"].to_numpy(), [min(found[name]) for name in clusters["cluster"].to_pylist()])

    def try_one(self, kind, number):
        """Return "refused" or "answered"; anything else is an error."""
        rng = np.random.default_rng([number, KINDS.index(kind)])
        try:
            if kind in (WORK, SUMMARY):
                self.list_work(rng, kind)
            elif kind in (FOUND, ANSWERED):
                self.merge(rng, kind)
            else:
                self.build(rng) if kind == SHARD else self.cluster(rng)
        except PipelineError as error:
            if str(self.folder) not in str(error):
                raise AssertionError("refused, but not by name") from error
            return "refused"
        return "answered"


def main(folder, first, count, *kinds):
    fuzz = Fuzz(Path(folder))
    outcomes = collections.Counter()
    for kind in kinds:
        for number in range(int(first), int(first) + int(count)):
            sys.stdout.write(f"{kind} {number}\n")
            sys.stdout.flush()
            outcomes[f"{kind} {fuzz.try_one(kind, number)}"] += 1
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
