"""Building on Ray: how much memory a worker takes for a shard, and how long a collection takes.

    python -m benchmarks.building --out benchmarks/results/building_NAME_DATE

writes a folder of random codes like that of `hashlight encode`, builds it into shards, and reads the peak resident
memory (VmHWM) of every process that ran a task. A worker that has only imported the program is measured too, since that
memory does not grow with the codes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.reporting import environment, save_report
from hashlight.engine.collection.collection import Collection
from hashlight.engine.places.files import sha256_of
from hashlight.pipelines.building.build import build_collection
from hashlight.pipelines.jobs.session import ray_session

PART_ROWS = 100_000


def write_codes(folder: Path, rows: int, *, uris: bool) -> None:
    for name in ("parts", "sidecars", "encoder"):
        (folder / name).mkdir(parents=True)
    (folder / "encoder" / "config.json").write_text("{}")
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        size = min(PART_ROWS, rows - start)
        raw = pa.py_buffer(rng.integers(2**64, size=size, dtype=np.uint64).tobytes())
        columns = {
            "id": np.arange(start, start + size),
            "code": pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), size, [None, raw]),
        }
        if uris:
            columns["uri"] = [
                f"s3://bucket/photos/{row // 1000:06d}/{row:09d}.jpg" for row in range(start, start + size)
            ]
        path = folder / "parts" / f"{number:05d}.parquet"
        pq.write_table(pa.table(columns), path)
        sidecar = {"job": "", "codes": size, "rejects": 0, "sha256": sha256_of(path)}
        (folder / "sidecars" / f"{number:05d}.json").write_text(json.dumps(sidecar))
    summary = {"images": rows, "codes": rows, "rejects": 0, "bits": 64, "encoder": "0" * 64, "corpus": "random"}
    (folder / "codes.json").write_text(json.dumps(summary))


class PeakMemory:
    """Watches this process's Ray workers: peak resident bytes of each, and the part that is not backed by files.

    The kernel records the peak of the whole; the part (arrays, without libraries and maps) is sampled.
    """

    def __init__(self) -> None:
        self.resident: dict[int, int] = {}
        self.own: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            for pid in descendants(os.getpid()):
                kb = memory_of(pid)
                if kb:
                    self.resident[pid] = 1024 * kb["VmHWM"]
                    self.own[pid] = max(1024 * (kb["RssAnon"] + kb["RssShmem"]), self.own.get(pid, 0))


def descendants(root: int) -> list[int]:
    """Return the Ray workers among the processes under `root`."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return [pid for pid in found if names.get(pid, b"").startswith(b"ray::")]


def memory_of(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmHWM", "Rss"))}


def import_only() -> None:
    """Import everything that a worker imports."""
    from hashlight.engine.extras import import_faiss
    from hashlight.pipelines.building.shards import build_shard  # noqa: F401

    import_faiss()


def measure(rows: int, shards: int, workers: int, *, uris: bool, folder: Path) -> dict:
    import ray

    write_codes(folder / "codes", rows, uris=uris)
    with ray_session(num_cpus=workers):
        with PeakMemory() as idle:
            ray.get([ray.remote(import_only).remote() for _ in range(workers)])
            time.sleep(0.5)
        start = time.perf_counter()
        with PeakMemory() as busy:
            build_collection(folder / "codes", folder / "collection", shards=shards, workers=workers)
        seconds = time.perf_counter() - start
    built = Collection.open(folder / "collection")
    assert len(built) == rows
    shard_bytes = built.num_bytes / len(built.shards)
    return {
        "rows": rows,
        "shards": shards,
        "workers": workers,
        "uris": uris,
        "seconds": round(seconds, 2),
        "codes_per_s": round(rows / seconds),
        "shard_mb": round(shard_bytes / 1e6, 1),
        "imports_mb": megabytes(idle.resident),
        "peak_mb": megabytes(busy.resident),
        "own_mb": megabytes(busy.own),
        "peak_over_shard": round(max(busy.resident.values()) / shard_bytes, 2),
        "own_over_shard": round(max(busy.own.values()) / shard_bytes, 2),
        "growth_over_shard": round((max(busy.resident.values()) - max(idle.resident.values())) / shard_bytes, 2),
    }


def megabytes(peaks: dict[int, int]) -> float:
    return round(max(peaks.values()) / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = []
    for uris in (False, True):
        folder = Path(tempfile.mkdtemp(prefix="hashlight-building-"))
        try:
            results.append(measure(arguments.rows, arguments.shards, arguments.workers, uris=uris, folder=folder))
        finally:
            shutil.rmtree(folder)
        print(json.dumps(results[-1], indent=1), flush=True)
    document = {**environment("numpy", "pyarrow", "ray", "faiss-cpu"), "results": results}
    save_report(arguments.out, document, as_markdown(document))


COLUMNS = {
    "rows": "codes",
    "shards": "shards",
    "workers": "workers",
    "uris": "URIs",
    "seconds": "seconds",
    "codes_per_s": "codes/s",
    "shard_mb": "a shard, MB",
    "imports_mb": "imports, MB",
    "peak_mb": "peak, MB",
    "peak_over_shard": "peak / shard",
    "growth_over_shard": "(peak - imports) / shard",
    "own_over_shard": "own / shard",
}


def as_markdown(document: dict) -> str:
    lines = [
        "# Building on Ray",
        "",
        f"`python -m benchmarks.building`, {document['machine']}, {document['versions']}. Random 64-bit codes.",
        "Peak: resident memory (VmHWM) of the worker that took most. Imports: of a worker that has only imported Ray,",
        "numpy, Arrow, numba and FAISS. Own: the peak without pages of files, which libraries are.",
        "",
        f"| {' | '.join(COLUMNS.values())} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for one in document["results"]:
        lines.append(
            f"| {' | '.join(format(one[name], ',') if name != 'uris' else str(one[name]) for name in COLUMNS)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
