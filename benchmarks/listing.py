"""Memory and time of listing a corpus: synthetic entries into a work list, each kind in its own process.

python -m benchmarks.listing --entries 10_000_000 --folder-entries 1_000_000 --out benchmarks/results/listing_NAME_DATE
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.reporting import environment, save_report

KINDS = ("list", "parquet", "folder")
_FOLDER_FILES = 10_000


def write_list(path: Path, entries: int) -> Path:
    corpus = path / "uris.txt"
    with corpus.open("w") as file:
        for start in range(0, entries, 100_000):
            rows = range(start, min(start + 100_000, entries))
            file.write("".join(f"s3://photos/album-{row // 1000:06d}/image-{row:09d}.jpg\n" for row in rows))
    return corpus


def write_parquet(path: Path, entries: int) -> Path:
    corpus = path / "uris.parquet"
    schema = pa.schema({"id": pa.int64(), "uri": pa.string(), "label": pa.int64()})
    with pq.ParquetWriter(corpus, schema) as writer:
        for start in range(0, entries, 100_000):
            rows = np.arange(start, min(start + 100_000, entries))
            uris = [f"s3://photos/album-{row // 1000:06d}/image-{row:09d}.jpg" for row in rows]
            writer.write_table(pa.table({"id": rows, "uri": uris, "label": rows % 10}, schema))
    return corpus


def write_folder(path: Path, entries: int) -> Path:
    corpus = path / "folder"
    for start in range(0, entries, _FOLDER_FILES):
        folder = corpus / f"album-{start // _FOLDER_FILES:06d}"
        folder.mkdir(parents=True)
        for row in range(start, min(start + _FOLDER_FILES, entries)):
            (folder / f"image-{row:09d}.jpg").touch()
    return corpus


def peak_mib() -> int:
    """Return the peak resident memory since this program was loaded (`ru_maxrss` may include its parent's)."""
    said = Path("/proc/self/status").read_text().partition("VmHWM:")[2]
    return int(said.split()[0]) // 1024


def list_once(corpus: Path, output: Path) -> dict[str, float]:
    from hashlight.pipelines.corpora.work import list_work

    before = peak_mib()
    start = time.perf_counter()
    work = list_work(corpus, output)
    seconds = time.perf_counter() - start
    return {
        "entries": work.images or 0,
        "units": work.units,
        "seconds": round(seconds, 1),
        "entries_per_s": round((work.images or 0) / seconds),
        "peak_mib": peak_mib(),
        "imports_mib": before,
        "work_list_bytes": output.stat().st_size,
    }


def measure(kind: str, entries: int) -> dict[str, float]:
    write = {"list": write_list, "parquet": write_parquet, "folder": write_folder}[kind]
    with tempfile.TemporaryDirectory(prefix="hashlight-listing-") as scratch:
        corpus = write(Path(scratch), entries)
        command = [sys.executable, "-m", "benchmarks.listing", "--child", str(corpus), f"{scratch}/work.arrow"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--folder-entries", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="without suffix: .md and .json are written")
    parser.add_argument("--child", nargs=2, metavar=("CORPUS", "WORK"))
    options = parser.parse_args()
    if options.child:
        print(json.dumps(list_once(*map(Path, options.child))))
        return
    results = {}
    for kind in KINDS:
        results[kind] = measure(kind, options.folder_entries if kind == "folder" else options.entries)
        print(kind, results[kind], flush=True)
    assert all(result["peak_mib"] < 1024 for result in results.values()), "a listing took more than 1 GiB"
    document = {**environment("pyarrow"), "results": results}
    save_report(options.out, document, as_markdown(document))


def as_markdown(document: dict) -> str:
    lines = [
        "# Listing a corpus into a work list",
        "",
        "Synthetic entries, each kind in its own process; peak resident memory of that process.",
        "",
        "| corpus | entries | s | entries/s | peak MiB | of that imports | work list, bytes an entry |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {kind} | {r['entries']:,} | {r['seconds']} | {r['entries_per_s']:,} | {r['peak_mib']} | "
            f"{r['imports_mib']} | {r['work_list_bytes'] / r['entries']:.1f} |"
            for kind, r in document["results"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
