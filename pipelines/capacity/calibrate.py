"""The speed of this machine: the constants of the capacity plan, measured once and stored.

They are stored next to the costs of the query planner (`engine.indexes.multi_index.planner`), one file for each
machine.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashlight.encoders.config import EncoderConfig, Pictures
from hashlight.encoders.data.images import decode_image
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.networks.backbones import SMALL_CNN, build_backbone
from hashlight.encoders.networks.model import HashModel
from hashlight.engine.indexes.multi_index.planner import machine_file, write_machine_file
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.machine import memory
from hashlight.engine.results import SearchResult, merge_search
from hashlight.engine.storage.shard import Shard, write_shard
from hashlight.pipelines.capacity.constants import CAPACITY, Constants, Work
from hashlight.pipelines.codes.encoder import load_encoder
from hashlight.pipelines.corpora.fashion_mnist import SAMPLE

ROWS = (2**20, 2**22, 2**24)
RADII = (0, 2, 4, 6, 8, 10)
_QUERIES = 300
_SCANS = 9
_IMAGES = 512
_CALLS = 500
_BLOCK_BYTES, _BLOCKS = 2**23, 32
_MERGED_PARTS = 64
_MERGED_ANSWERS = 10


def calibrate(encoder: str | Path | None = None, *, say: Callable[[str], None] = lambda _: None) -> Constants:
    """Measure this machine for about a minute and store the results.

    Parameters
    ----------
    encoder : str or Path, optional
        An encoder's folder, local or in a bucket; by default an untrained small-cnn, which is as fast as a trained one.
    say : callable, optional
        Called with the name of each measurement.

    Raises
    ------
    OSError
        If the user's cache folder cannot be written.
    """
    say("measuring encoding")
    name, image_core_s = _measure_encoding(encoder)
    say("measuring building and queries")
    with tempfile.TemporaryDirectory() as folder:
        disk_bytes_s = _measure_disk(Path(folder))
        build_core_s, scan_word_s, query = _measure_shards(Path(folder))
    say("measuring calls and merging")
    constants = Constants(
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        encoder=name,
        image_core_s=image_core_s,
        build_core_s=build_core_s,
        disk_bytes_s=disk_bytes_s,
        query_s=query[0],
        lookup_s=query[1],
        candidate_s=query[2],
        scan_word_s=scan_word_s,
        rows=max(ROWS),
        call_s=_measure_call(),
        merge_s=_measure_merge(),
    )
    write_machine_file(machine_file(CAPACITY), asdict(constants))
    return constants


def _memory_bytes() -> int:
    found = memory()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if found is None else found.total


def _measure_encoding(folder: str | Path | None) -> tuple[str, float]:
    """Return the encoder's name and its core seconds per image, including decoding of the packaged PNGs."""
    encoder = _untrained() if folder is None else load_encoder(folder)
    with pq.ParquetFile(SAMPLE) as file:
        encoded = next(file.iter_batches(_IMAGES, columns=["image"])).column(0).to_pylist()
    name = f"{encoder.config.backbone}, {'untrained' if folder is None else encoder.fingerprint[:12]}"
    batch = encoder.config.batch_size

    def run(images: list[bytes]) -> None:
        encoder.encode_all([decode_image(data) for data in images])

    run(encoded[:batch])
    count = min(_IMAGES, max(batch, batch * int(4.0 / max(_core_seconds(lambda: run(encoded[:batch])), 1e-4))))
    return name, _core_seconds(lambda: run(encoded[:count])) / count


def _untrained() -> HashEncoder:
    backbone = build_backbone(SMALL_CNN)
    config = EncoderConfig(
        bits=64,
        beta=1.0,
        input=Pictures.of(backbone),
    )
    side = backbone.preprocessing.size
    noise_NHWC = np.random.default_rng(0).integers(256, size=(16, side, side, 1), dtype=np.uint8)
    return HashEncoder(config, HashModel(backbone, 64)).exported(noise_NHWC)


def _core_seconds(run: Callable[[], object]) -> float:
    """Return the CPU time that this process spent on it, which other programs do not affect."""
    return _times(run, 1)[0]


def _measure_disk(folder: Path) -> float:
    """Return bytes per second, including fsync."""
    block = np.random.default_rng(0).bytes(_BLOCK_BYTES)
    start = time.perf_counter()
    with (folder / "blocks").open("wb") as file:
        for _ in range(_BLOCKS):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return _BLOCK_BYTES * _BLOCKS / (time.perf_counter() - start)


def _measure_shards(folder: Path) -> tuple[float, float, tuple[float, float, float]]:
    """Return core seconds for building a code (largest shard), for scanning a word, and for a query to the tables."""
    rng = np.random.default_rng(0)
    works, times_s = [], []
    _write(folder, "warm", rng, 1000)
    for rows in ROWS:
        start = time.process_time()
        shard = _write(folder, str(rows), rng, rows)
        build_core_s = (time.process_time() - start) / rows
        for radius in RADII:
            work, seconds = _time_queries(shard.index, rng, radius)
            works.append(work)
            times_s.append(seconds)
    scan_s = statistics.median(_times(lambda: _ask(shard.index, rng, 2, plan="scan"), _SCANS))
    return build_core_s, scan_s / max(ROWS), _fit(np.array(works), np.array(times_s))


def _write(folder: Path, name: str, rng: np.random.Generator, rows: int) -> Shard:
    codes_NW = rng.integers(2**64, size=(rows, 1), dtype=np.uint64)
    spec = write_shard(folder / "shards" / name, codes_NW, np.arange(rows), None, bits=64)
    return Shard(folder, spec, bits=64)


def _time_queries(index: Any, rng: np.random.Generator, radius: int) -> tuple[Work, float]:
    """Return the mean work and the median time of single queries, each for the first time."""
    times_s = _times(lambda: _ask(index, rng, radius), _QUERIES)
    explained = index.range_search(
        rng.integers(2**64, size=(_QUERIES, 1), dtype=np.uint64), radius, threads=1, plan="tables", explain=True
    ).explain
    return Work(float(explained.probes.mean()), float(explained.candidates.mean())), statistics.median(times_s)


def _ask(index: Any, rng: np.random.Generator, radius: int, plan: str = "tables") -> None:
    index.range_search(rng.integers(2**64, size=(1, 1), dtype=np.uint64), radius, threads=1, plan=plan)


def _times(run: Callable[[], object], count: int, clock: Callable[[], float] = time.process_time) -> list[float]:
    """Return the seconds of each of `count` runs; by default CPU seconds, which other programs do not affect."""
    times_s = []
    for _ in range(count):
        start = clock()
        run()
        times_s.append(clock() - start)
    return times_s


def _fit(work_M2: NDArray[np.float64], time_M: NDArray[np.float64]) -> tuple[float, float, float]:
    """Fit non-negative costs of a query, a lookup and a candidate, minimising the relative error."""
    from scipy.optimize import nnls

    terms_M3 = np.column_stack([np.ones(len(work_M2)), work_M2])
    costs, _ = nnls(terms_M3 / time_M[:, None], np.ones(len(time_M)))
    return float(costs[0]), float(costs[1]), float(costs[2])


def _measure_call() -> float:
    """Return the median time of a Flight call with 8 bytes each way."""
    with _echo_server() as address, flight.connect(address) as client:
        action = flight.Action("echo", b"12345678")
        return statistics.median(_times(lambda: list(client.do_action(action)), _CALLS, time.perf_counter))


class _Echo(flight.FlightServerBase):  # type: ignore[misc]
    def do_action(self, context: Any, action: flight.Action) -> list[pa.Buffer]:
        return [action.body]


@contextmanager
def _echo_server() -> Iterator[str]:
    with _Echo("grpc://127.0.0.1:0") as server:
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        yield f"grpc://127.0.0.1:{server.port}"
        server.shutdown()
        thread.join()


def _measure_merge() -> float:
    """Return the time of a merge, divided by its number of parts."""
    rng = np.random.default_rng(0)
    parts = [
        SearchResult(np.sort(rng.integers(64, size=(1, _MERGED_ANSWERS), dtype=np.int32)), row[None])
        for row in np.arange(_MERGED_PARTS * _MERGED_ANSWERS).reshape(_MERGED_PARTS, -1)
    ]
    return statistics.median(_times(lambda: merge_search(parts, _MERGED_ANSWERS), _CALLS)) / _MERGED_PARTS
