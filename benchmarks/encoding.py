"""What encoding on Ray costs: images/s of `encode_corpus` against plain loops of the same decode and model code.

Fashion-MNIST as PNG, in tars and as a folder. The plain loops run in as many processes as there are actors; each reads,
decodes and encodes its share, batch by batch, on one thread, unguarded, and writes nothing. Start-up is excluded from
both: the loops start together once all have loaded, and the job's clock runs from the start of its first unit to the
end of its last. Runs alternate; medians are compared. Both must give the same codes.

    python -m benchmarks.encoding --images 60000 --repeats 5 --out benchmarks/results/encoding_NAME_DATE
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from benchmarks.reporting import environment, save_report
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.training.train import TrainConfig, train
from hashlight.pipelines.codes.parts import codes_column, read_parts
from hashlight.pipelines.corpora.fashion_mnist import as_corpus, load_fashion_mnist
from hashlight.pipelines.encoding.encode import encode_corpus

BATCH = 256
TAR_IMAGES = 2000
PROCESSES = 2


def prepare(folder: Path, images: int) -> None:
    """Write the corpus in both forms, and a barely trained encoder, since its quality does not matter here."""
    pixels, labels = load_fashion_mnist("train", folder / "download")
    train(pixels[:2000], labels[:2000], TrainConfig(bits=64, epochs=1, warmup_epochs=0)).save(folder / "encoder")
    rows = as_corpus(pixels[:images], labels[:images], np.arange(images)).to_pylist()
    for number, start in enumerate(range(0, images, TAR_IMAGES)):
        path = folder / "tars" / f"{number:04d}.tar"
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for row in rows[start : start + TAR_IMAGES]:
                member = tarfile.TarInfo(f"{row['id']:06d}.png")
                member.size = len(row["image"])
                tar.addfile(member, io.BytesIO(row["image"]))
    for row in rows:
        path = folder / "folder" / str(row["label"]) / f"{row['id']:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"])


def read_tars(files: list[Path]) -> Iterator[tuple[str, bytes]]:
    for path in files:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None, "the tars hold files only"
                yield member.name, file.read()


def read_folder(files: list[Path]) -> Iterator[tuple[str, bytes]]:
    for path in files:
        yield path.name, path.read_bytes()


def plain_loop(kind: str, files: list[Path], encoder: Path, barrier, results) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    model = HashEncoder.load(encoder)
    model.encode(np.zeros((BATCH, 28, 28), np.uint8))
    images = {"tars": read_tars, "folder": read_folder}[kind](files)
    names, codes = [], []
    barrier.wait()
    start = time.time()
    while batch := list(itertools.islice(images, BATCH)):
        names += [name for name, _ in batch]
        codes.append(model.encode([data for _, data in batch]))
    end = time.time()
    results.put((start, end, names, np.concatenate(codes)))


def run_plain(kind: str, folder: Path) -> tuple[float, dict[str, bytes]]:
    files = sorted(path for path in (folder / kind).rglob("*") if path.is_file())
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    shares = [files[number::PROCESSES] for number in range(PROCESSES)]
    arguments = [(kind, share, folder / "encoder", barrier, results) for share in shares]
    processes = [context.Process(target=plain_loop, args=args) for args in arguments]
    for process in processes:
        process.start()
    starts, ends, names, codes = zip(*(results.get() for _ in processes), strict=True)
    for process in processes:
        process.join()
    found = dict(zip(itertools.chain(*names), map(bytes, np.concatenate(codes)), strict=True))
    return len(found) / (max(ends) - min(starts)), found


def run_ray(kind: str, folder: Path, output: Path) -> tuple[float, dict[str, bytes], dict[str, float]]:
    # The processes exist during this run only; the actors start together, as the loops do.
    ray.init(
        address="local",
        num_cpus=PROCESSES,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().wait_for_min_actors_s = 120
    # Ray Data starts actors of its own for the first job, whose imports take a second.
    ray.data.range(PROCESSES).map_batches(lambda batch: batch).materialize()
    encode_corpus(folder / kind, folder / "encoder", output, actors=PROCESSES, overwrite=True)
    ray.shutdown()
    stats = json.loads((output / "stats.json").read_bytes())
    assert stats["rejects"] == 0, "all images are whole"
    table = pa.concat_tables(list(read_parts(output)))
    names = [uri.replace("#", "/").rpartition("/")[2] for uri in table["uri"].to_pylist()]
    found = dict(zip(names, map(bytes, codes_column(table["code"])), strict=True))
    return stats["images_per_s"], found, stats["seconds"]


def compare(kind: str, folder: Path, repeats: int) -> dict:
    plain, on_ray = [], []
    seconds: dict[str, Any] = {}
    for number in range(repeats):
        rate, expected = run_plain(kind, folder)
        plain.append(rate)
        rate, found, seconds = run_ray(kind, folder, folder / "codes")
        on_ray.append(rate)
        assert found == expected, "the job and the loops must give the same codes"
        print(f"{kind} {number}: plain {plain[-1]:,.0f}, Ray {rate:,.0f} images/s", flush=True)
    ratio = statistics.median(on_ray) / statistics.median(plain)
    return {"plain": plain, "ray": on_ray, "ratio": ratio, "seconds_of_steps_over_actors": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="without suffix: .md and .json are written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hashlight-encoding-") as scratch:
        folder = Path(scratch)
        prepare(folder, options.images)
        results = {kind: compare(kind, folder, options.repeats) for kind in ("tars", "folder")}
    for kind, result in results.items():
        print(f"{kind}: ratio {result['ratio']:.3f}")
    settings = {"images": options.images, "repeats": options.repeats, "processes": PROCESSES, "batch": BATCH}
    document = {**environment("torch", "ray", "pyarrow"), "settings": settings, "results": results}
    save_report(options.out, document, as_markdown(document))


def as_markdown(document: dict) -> str:
    settings = document["settings"]
    lines = [
        "# Encoding on Ray against plain loops",
        "",
        f"{document['machine']}, {document['versions']}.",
        f"{settings['images']:,} images of Fashion-MNIST as PNG, small-cnn, 64 bits, {PROCESSES} actors to as many",
        f"plain loops, medians of {settings['repeats']} runs in turn, start-up aside; the codes were equal.",
        "The job guards its decoding in processes of its own and publishes what it writes; the loops do neither.",
        "",
        "| corpus | plain loops, images/s | on Ray, images/s | ratio |",
        "|---|---|---|---|",
        *(
            f"| {kind} | {statistics.median(r['plain']):,.0f} | {statistics.median(r['ray']):,.0f} | {r['ratio']:.2f} |"
            for kind, r in document["results"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
