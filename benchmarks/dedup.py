"""Near-duplicates: the self-join against FAISS, and precision and recall on images with planted copies.

    python -m benchmarks.dedup --out benchmarks/results/dedup_NAME_DATE

Join: 2 million clustered 64-bit codes, radius 3, by `hashlight dedup` as a whole (join, clusters, gallery; without
Ray's start-up), and the join by itself. FAISS (`IndexBinaryFlat.range_search`, with as many threads) searches all codes
for a sample of them, and its time is scaled to all codes, because it is proportional to the number of queries. All
pairs of a sample of 20,000 codes are compared with plain scans.

Copies: images of Fashion-MNIST and copies of some (resized, recompressed as JPEG, cropped by 5 %); the encoder was
trained on two views of other images (`hashlight train --supervision views`). A pair is correct if both have the same
original.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import shutil
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.reporting import environment, save_report
from hashlight.engine.collection.collection import Collection
from hashlight.pipelines.dedup.dedup import cluster_pairs, find_duplicates
from hashlight.pipelines.jobs.session import ray_session

MEMBERS = 10
FLIP_SHARE = 0.02
FAISS_QUERIES = 2000
CHECKED = 20_000


def clustered(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Ten codes around each centre on average; each bit differs from the centre's with a probability of 2 %."""
    codes = rng.integers(2**64, size=rows // MEMBERS, dtype=np.uint64)[rng.integers(rows // MEMBERS, size=rows)]
    for start in range(0, rows, 100_000):
        flips = rng.random((len(codes[start : start + 100_000]), 64)) < FLIP_SHARE
        codes[start : start + 100_000] ^= np.packbits(flips, axis=1, bitorder="little").view("<u8")[:, 0]
    return codes


def measure_join(folder: Path, rows: int, shards: int, workers: int, radius: int, checked: int) -> dict:
    rng = np.random.default_rng(1)
    codes = clustered(rng, rows)
    Collection.create(folder / "c", codes[:, None], shards=shards)
    Collection.create(folder / "small", codes[:5000, None], shards=shards)
    with ray_session(num_cpus=workers):
        find_duplicates(folder / "small", folder / "warm", radius=radius)
        start = time.perf_counter()
        found = find_duplicates(folder / "c", folder / "d", radius=radius)
        seconds = time.perf_counter() - start
    files = sorted((folder / "d" / "pairs").glob("*.parquet"))
    start = time.perf_counter()
    cluster_pairs(files)
    cluster_s = time.perf_counter() - start
    faiss_s = measure_faiss(codes, rng, radius, workers)
    check_pairs(files, codes, rng, radius, checked)
    return {
        "codes": rows,
        "shards": shards,
        "workers": workers,
        "radius": radius,
        "pairs": found.pairs,
        "clusters": found.clusters,
        "seconds": round(seconds, 2),
        "of_it_clusters_s": round(cluster_s, 2),
        "faiss_sampled_queries": min(FAISS_QUERIES, rows),
        "faiss_scaled_s": round(faiss_s, 1),
        "ratio": round(faiss_s / seconds, 1),
        "checked_codes": min(checked, rows),
    }


def measure_faiss(codes: np.ndarray, rng: np.random.Generator, radius: int, threads: int) -> float:
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexBinaryFlat(64)
    index.add(codes.view(np.uint8).reshape(-1, 8))
    queries = codes[rng.choice(len(codes), min(FAISS_QUERIES, len(codes)), replace=False)]
    queries = queries.view(np.uint8).reshape(-1, 8)
    index.range_search(queries[:64], radius + 1)
    start = time.perf_counter()
    index.range_search(queries, radius + 1)  # FAISS's radius is exclusive
    return (time.perf_counter() - start) * len(codes) / len(queries)


def check_pairs(files: list[Path], codes: np.ndarray, rng: np.random.Generator, radius: int, checked: int) -> None:
    """Compare all pairs that involve a sample of codes with those that plain scans find."""
    sample = rng.choice(len(codes), min(checked, len(codes)), replace=False)
    expected = set()
    for row in sample.tolist():
        distances = np.bitwise_count(codes ^ codes[row])
        near = np.flatnonzero(distances <= radius)
        expected |= {(min(row, n), max(row, n), int(distances[n])) for n in near.tolist() if n != row}
    sampled = np.zeros(len(codes), np.bool_)
    sampled[sample] = True
    got = set()
    for path in files:
        a, b, distance = (column.to_numpy() for column in pq.read_table(path).columns)
        inside = sampled[a] | sampled[b]
        got |= set(zip(a[inside].tolist(), b[inside].tolist(), distance[inside].tolist(), strict=True))
    assert got == expected, (len(got), len(expected))
    assert len(expected) > len(sample), "an empty sample shows nothing"
    print(f"{len(expected):,} pairs of {len(sample):,} codes agree with scans", flush=True)


def copies_of(image: Image.Image) -> list[Image.Image]:
    """Return a resized, a recompressed and a cropped copy of an image."""
    side = image.width
    small = image.resize((side * 3 // 4,) * 2, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    edge = side * 0.025
    cropped = image.resize((side, side), Image.Resampling.BILINEAR, box=(edge, edge, side - edge, side - edge))
    return [small, Image.open(buffer), cropped]


def measure_copies(folder: Path, originals: int, bits: int, epochs: int, radii: tuple[int, ...]) -> list[dict]:
    from hashlight.encoders.training.train import TrainConfig
    from hashlight.pipelines.codes.parts import codes_column, read_parts
    from hashlight.pipelines.corpora.fashion_mnist import SAMPLE
    from hashlight.pipelines.encoding.encode import encode_corpus
    from hashlight.pipelines.training.train import train_encoder

    rows = pq.read_table(SAMPLE)
    data = rows["image"].to_pylist()
    train, database = data[:4000], data[4000:]
    write_images(folder / "train.parquet", train, np.arange(len(train)))
    copied = np.random.default_rng(2).choice(len(database), originals, replace=False).tolist()
    images, groups = list(database), list(range(len(database)))
    for row in copied:
        for copy in copies_of(Image.open(io.BytesIO(database[row]))):
            buffer = io.BytesIO()
            copy.save(buffer, "PNG")
            images.append(buffer.getvalue())
            groups.append(row)
    write_images(folder / "database.parquet", images, np.arange(len(images)))
    config = TrainConfig(bits=bits, epochs=epochs)
    train_encoder(folder / "train.parquet", folder / "encoder", config, supervision="views")
    encode_corpus(folder / "database.parquet", folder / "encoder", folder / "codes")
    table = pa.concat_tables(list(read_parts(folder / "codes")))
    codes, ids = codes_column(table["code"]), table["id"].to_numpy()
    Collection.create(folder / "copies", codes, ids=ids, bits=bits, shards=2)
    group = np.array(groups)
    planted = len(copied) * len(list(itertools.combinations(range(4), 2)))
    results = []
    for radius in radii:
        find_duplicates(folder / "copies", folder / f"d{radius}", radius=radius)
        pairs = pq.read_table(folder / f"d{radius}" / "pairs")
        right = int((group[pairs["id_a"].to_numpy()] == group[pairs["id_b"].to_numpy()]).sum())
        results.append(
            {
                "radius": radius,
                "bits": bits,
                "images": len(images),
                "planted_pairs": planted,
                "pairs": len(pairs),
                "precision": round(right / max(len(pairs), 1), 4),
                "recall": round(right / planted, 4),
            }
        )
        print(json.dumps(results[-1]), flush=True)
    return results


def write_images(path: Path, images: list[bytes], ids: np.ndarray) -> None:
    pq.write_table(pa.table({"id": ids, "image": images}), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--radius", type=int, default=3)
    parser.add_argument("--checked", type=int, default=CHECKED)
    parser.add_argument("--originals", type=int, default=500)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", choices=("join", "copies"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hashlight-dedup-"))
    document = {
        **environment("numpy", "numba", "pyarrow", "ray", "faiss-cpu", "torch"),
        "join": None,
        "copies": [],
    }
    try:
        if arguments.only != "copies":
            document["join"] = measure_join(
                folder, arguments.rows, arguments.shards, arguments.workers, arguments.radius, arguments.checked
            )
            print(json.dumps(document["join"], indent=1), flush=True)
        if arguments.only != "join":
            with ray_session(num_cpus=arguments.workers):
                document["copies"] = measure_copies(
                    folder, arguments.originals, arguments.bits, arguments.epochs, (0, 1, 2, 3, 4, 6, 8)
                )
    finally:
        shutil.rmtree(folder)
    save_report(arguments.out, document, as_markdown(document))


def as_markdown(document: dict) -> str:
    lines = [
        "# Near-duplicates",
        "",
        f"`python -m benchmarks.dedup`, {document['machine']}, {document['versions']}.",
        "",
    ]
    if document["join"]:
        lines += [
            "| join | |",
            "|---|---|",
            *(f"| {name.replace('_', ' ')} | {value} |" for name, value in document["join"].items()),
            "",
        ]
    if document["copies"]:
        columns = list(document["copies"][0])
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(str(one[name]) for name in columns)} |" for one in document["copies"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
