"""What embeddings cost, and what their codes keep: time and memory of a million rows, recall on real pictures.

    python -m benchmarks.embeddings --rows 1_000_000 --drawings FOLDER --out benchmarks/results/embeddings_NAME_DATE

Rows: a mapped file of clustered float32 embeddings is fitted and encoded in a process of its own, by the library and by
the command line. The memory is that beyond the map (`RssAnon`). Codes are compared with signs in double precision, and
alone with those among others.

Drawings: EfficientNet-Lite0's features of PNG files, of which exact duplicates (equal features) are removed. 500 are
queries that were not fitted to; the float neighbours are those by cosine. Recall is the share of the ten nearest that
the ten nearest codes have, and that are left after 100 nearest codes are ordered by the float features as they are
stored. `--features` keeps the features in a file, so that they are computed once.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.reporting import environment, save_report
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.packing import unpack_bits

DIMS, BITS = 768, 256
QUERIES = 500
LENGTHS = (64, 128, 256, 512, 768)
TARGETS = {256: 0.95, 768: 0.97}


def write_rows(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, DIMS), dtype=np.float32)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (rows, DIMS))
    for start in range(0, rows, 20_000):
        part = file[start : start + 20_000]
        part[:] = centres[rng.integers(0, len(centres), len(part))]
        part += rng.standard_normal(part.shape, dtype=np.float32)
    file.flush()


def anonymous_mib() -> float:
    said = Path("/proc/self/status").read_text().partition("RssAnon:")[2]
    return int(said.split()[0]) / 1024


class PeakMemory:
    """Looks at the memory of this process that is not mapped from files, twenty times a second."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = anonymous_mib()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            self.peak = max(self.peak, anonymous_mib())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def cpu_s() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def fit_and_encode(path: Path) -> dict[str, float]:
    """Fit and encode by the library, in this process."""
    rows = np.load(path, mmap_mode="r")
    with PeakMemory() as memory:
        begun, used = time.perf_counter(), cpu_s()
        encoder = HashEncoder.fit_embeddings(rows, bits=BITS, method="itq")
        fitted, used_to_fit = time.perf_counter(), cpu_s()
        codes = encoder.encode_embeddings(rows)
        ended, used_in_all = time.perf_counter(), cpu_s()
    check(encoder, rows, codes)
    return {
        "fit_s": fitted - begun,
        "encode_s": ended - fitted,
        "fit_cpu_s": used_to_fit - used,
        "encode_cpu_s": used_in_all - used_to_fit,
        "memory_mib": memory.peak - memory.before,
    }


def check(encoder: HashEncoder, rows: np.ndarray, codes: np.ndarray) -> None:
    """Compare some codes with signs in double precision, and with what the same embeddings get alone."""
    some = np.linspace(0, len(rows) - 1, 200).astype(np.int64)
    x = rows[some].astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    z = x @ encoder.head.weight.astype(np.float64) + encoder.head.bias
    assert (unpack_bits(codes[some], BITS) == (z > 0))[np.abs(z) > 1e-6].all()
    assert all((encoder.encode_embeddings(rows[row : row + 1]) == codes[row]).all() for row in some[:50])


def by_command_line(path: Path, folder: Path) -> dict[str, float]:
    """Fit and encode by `hashlight train` and `hashlight encode`; start-up included."""
    python = [sys.executable, "-m", "hashlight"]
    steps = {
        "train_s": ["train", "--embeddings", path, "--method", "itq", "--bits", BITS, "--output", folder / "encoder"],
        "encode_job_s": ["encode", "--embeddings", path, "--encoder", folder / "encoder", "--output", folder / "codes"],
    }
    taken = {}
    for name, arguments in steps.items():
        begun = time.perf_counter()
        subprocess.run([*python, *map(str, arguments)], check=True, capture_output=True)
        taken[name] = time.perf_counter() - begun
    return taken


def measure_rows(rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="embeddings-") as folder:
        path = Path(folder, "rows.npy")
        write_rows(path, rows)
        command = [sys.executable, "-m", "benchmarks.embeddings", "--only", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return {**json.loads(done.stdout), **by_command_line(path, Path(folder))}


# Recall.


def features_of(drawings: Path, kept: Path | None) -> np.ndarray:
    """Return EfficientNet-Lite0's features (N, 1280) of all drawings, without exact duplicates."""
    if kept is not None and kept.is_file():
        found = np.load(kept)
    else:
        import torch

        from hashlight.encoders.config import EncoderConfig, Pictures
        from hashlight.encoders.networks.backbones import build_backbone
        from hashlight.encoders.networks.model import HashModel

        torch.manual_seed(0)
        backbone = build_backbone("efficientnet-lite0", "imagenet")
        encoder = HashEncoder(EncoderConfig(bits=8, beta=1.0, input=Pictures.of(backbone)), HashModel(backbone, 8))
        files = sorted(drawings.rglob("*.png"))
        found = np.concatenate(
            [encoder.encode_all(files[start : start + 64]).features for start in range(0, len(files), 64)]
        )
        if kept is not None:
            np.save(kept, found)
    _, firsts = np.unique(found, axis=0, return_index=True)
    return found[np.sort(firsts)]


def nearest(distance_QN: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(distance_QN, axis=1, kind="stable")[:, :k]


def overlap(left_QK: np.ndarray, right_QK: np.ndarray) -> float:
    pairs = zip(left_QK.tolist(), right_QK.tolist(), strict=True)
    return float(np.mean([len(set(left) & set(right)) / len(left) for left, right in pairs]))


def measure_recall(features: np.ndarray, seed: int) -> list[dict[str, float]]:
    order = np.random.default_rng(seed).permutation(len(features))
    queries, database = features[order[:QUERIES]], features[order[QUERIES:]]
    unit_QD, unit_ND = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, database))
    cosine_QN = unit_QD @ unit_ND.T
    float_QK = nearest(-cosine_QN, 10)
    stored_ND = unit_ND.astype(np.float16).astype(np.float32)
    found = []
    for bits in LENGTHS:
        encoder = HashEncoder.fit_embeddings(database, bits=bits, method="itq", seed=seed)
        left, right = (encoder.encode_embeddings(x) for x in (queries, database))
        distance_QN = np.stack([np.bitwise_count(code ^ right).sum(axis=1) for code in left])
        pool_QP = nearest(distance_QN, 100)
        again = np.einsum("qd,qpd->qp", unit_QD, stored_ND[pool_QP])
        best_QK = np.take_along_axis(pool_QP, nearest(-again, 10), axis=1)
        found.append(
            {
                "bits": bits,
                "seed": seed,
                "recall": overlap(float_QK, pool_QP[:, :10]),
                "reranked": overlap(float_QK, best_QK),
            }
        )
    return found


def report(document: dict) -> str:
    lines = ["# Embeddings", "", f"{document['machine']}, load {document['load']}, {document['versions']}", ""]
    if rows := document.get("rows"):
        lines += [
            f"{rows['rows']:,} x {DIMS} float32 to {BITS} bits by ITQ, normalised:",
            "",
            "| fit | encode | both | processor time | beyond the map | `train` | `encode` |",
            "|---|---|---|---|---|---|---|",
            f"| {rows['fit_s']:.1f} s | {rows['encode_s']:.1f} s | {rows['fit_s'] + rows['encode_s']:.1f} s "
            f"| {rows['fit_cpu_s'] + rows['encode_cpu_s']:.1f} s | {rows['memory_mib']:.0f} MiB "
            f"| {rows['train_s']:.1f} s | {rows['encode_job_s']:.1f} s |",
            "",
        ]
    if recall := document.get("recall"):
        lines += [
            f"Recall of float's ten neighbours, {document['drawings']:,} drawings without duplicates, ITQ, mean of "
            f"{len({one['seed'] for one in recall})} seeds:",
            "",
            "| bits | codes alone | 100 re-ranked | target |",
            "|---|---|---|---|",
        ]
        for bits in LENGTHS:
            some = [one for one in recall if one["bits"] == bits]
            alone, again = (np.mean([one[name] for one in some]) for name in ("recall", "reranked"))
            lines.append(f"| {bits} | {alone:.3f} | {again:.3f} | {TARGETS.get(bits, '')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--drawings", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(fit_and_encode(options.only)))
        return
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    document = {**environment("numpy", "pyarrow"), "load": load}
    if options.rows:
        document["rows"] = {"rows": options.rows, **measure_rows(options.rows)}
    if options.drawings or options.features:
        features = features_of(options.drawings, options.features)
        document["drawings"] = len(features)
        document["recall"] = [one for seed in range(options.seeds) for one in measure_recall(features, seed)]
    save_report(options.out, document, report(document))


if __name__ == "__main__":
    main()
