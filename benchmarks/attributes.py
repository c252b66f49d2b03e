"""Which file format suits a shard's attributes? Arrow IPC against Parquet: bytes a row, time to open and to read rows.

python benchmarks/attributes.py --rows 2000000
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

BATCH_ROWS = 1024
ANSWER_ROWS = 10
RUNS = 21


def make_table(rows: int) -> pa.Table:
    uris = [f"s3://bucket/catalogue/2026/{i % 977:04d}/image-{i:010d}.jpg" for i in range(rows)]
    return pa.table({"uri": uris, "label": np.random.default_rng(0).integers(10, size=rows)})


def write_ipc(table: pa.Table, path: Path, compression: str | None) -> None:
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=BATCH_ROWS)


def open_ipc(path: Path):
    return pyarrow.ipc.open_file(pa.memory_map(str(path)))


def open_parquet(path: Path):
    return pq.ParquetFile(path, memory_map=True)


def take_ipc(file, rows):
    return pa.Table.from_batches([file.get_batch(row // BATCH_ROWS).slice(row % BATCH_ROWS, 1) for row in rows])


def take_parquet(file, rows):
    groups = [file.read_row_group(row // BATCH_ROWS, use_threads=False) for row in rows]
    return pa.concat_tables([group.slice(row % BATCH_ROWS, 1) for group, row in zip(groups, rows, strict=True)])


def measure(path: Path, table: pa.Table, open_file, take) -> tuple[float, float]:
    """Median seconds to open the file and to read ten scattered rows; every answer is checked."""
    rng = np.random.default_rng(1)
    opened_s, taken_s = [], []
    for _ in range(RUNS):
        rows = np.sort(rng.choice(len(table), ANSWER_ROWS, replace=False)).tolist()
        start = time.perf_counter()
        file = open_file(path)
        opened_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        answer = take(file, rows)
        taken_s.append(time.perf_counter() - start)
        assert answer.equals(table.take(rows))
    return statistics.median(opened_s), statistics.median(taken_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    rows = parser.parse_args().rows
    table = make_table(rows)
    print(f"{rows:,} rows, batches and row groups of {BATCH_ROWS}, {ANSWER_ROWS} rows an answer, medians of {RUNS}\n")
    print("| file | bytes a row | open, ms | ten rows, ms |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, write, open_file, take in (
            ("IPC, uncompressed", lambda path: write_ipc(table, path, None), open_ipc, take_ipc),
            ("IPC, lz4", lambda path: write_ipc(table, path, "lz4"), open_ipc, take_ipc),
            ("IPC, zstd", lambda path: write_ipc(table, path, "zstd"), open_ipc, take_ipc),
            (
                "Parquet, zstd",
                lambda path: pq.write_table(table, path, row_group_size=BATCH_ROWS, compression="zstd"),
                open_parquet,
                take_parquet,
            ),
        ):
            path = Path(folder) / "attributes"
            write(path)
            opened_s, taken_s = measure(path, table, open_file, take)
            print(f"| {name} | {path.stat().st_size / rows:.1f} | {1e3 * opened_s:.2f} | {1e3 * taken_s:.2f} |")


if __name__ == "__main__":
    main()
