"""What encoding real pictures costs: images/s of `hashlight encode` before and now, and of plain loops; one query.

    python -m benchmarks.pictures --drawings FOLDER --before CHECKOUT --out benchmarks/results/pictures_NAME_DATE

Two folders: drawings, evenly taken from those given, and photographs of 12 megapixels, made of the two that come with
scikit-learn. EfficientNet-Lite0 with its packaged weights and random hyperplanes, 64 bits. `--before` is a checkout of
an earlier commit, which encodes by its own code with an encoder of its own. The plain loops run in as many processes as
there are actors; each decodes and encodes its share with the same decoder and runtime, on one thread, unguarded, and
writes nothing. Start-up is excluded from all: of jobs, the clock runs from the start of the first unit to the end of
the last. Runs alternate, and medians are compared; job and loops must give the same codes. The load of the machine
stands beside each figure, since other programs may share it.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.reporting import environment, save_report
from hashlight.encoders.config import EncoderConfig, Pictures
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.networks.backbones import build_backbone
from hashlight.encoders.networks.model import HashModel
from hashlight.pipelines.codes.parts import codes_column, read_parts
from hashlight.pipelines.serving.image_encoder import HashImageEncoder

PROCESSES = 2
BITS = 64
QUERIES = 60
# Makes an encoder by whatever version of the package is imported.
MAKE = """
import sys, torch
from hashlight.encoders.encoder import EncoderConfig, HashEncoder
from hashlight.encoders.networks.backbones import build_backbone
from hashlight.encoders.networks.model import HashModel
torch.manual_seed(0)
backbone = build_backbone("efficientnet-lite0", "imagenet")
config = EncoderConfig(bits=64, backbone=backbone.name, beta=1.0, batch_size=backbone.batch_size,
                       preprocessing=backbone.preprocessing)
HashEncoder(config, HashModel(backbone, 64)).save(sys.argv[1])
"""


def environment_of(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout)}


def make_encoder(folder: Path) -> None:
    torch.manual_seed(0)
    backbone = build_backbone("efficientnet-lite0", "imagenet")
    pictures = Pictures.of(backbone)
    encoder = HashEncoder(EncoderConfig(bits=BITS, beta=1.0, input=pictures), HashModel(backbone, BITS))
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    encoder.exported(np.stack([backbone.preprocessing.pixels(photo) for photo in photos])).save(folder)


def write_photographs(folder: Path, count: int) -> None:
    folder.mkdir()
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(count):
        left, top = rng.integers(0, (40, 27)).tolist()
        part = photos[number % 2].crop((left, top, left + 600, top + 400))
        part.resize((4243, 2828), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg", quality=92)


def link_drawings(folder: Path, drawings: Path, count: int) -> None:
    folder.mkdir()
    files = sorted(drawings.rglob("*.png"))
    for number, row in enumerate(np.linspace(0, len(files) - 1, count).astype(int).tolist()):
        os.symlink(files[row], folder / f"{number:05d}.png")


def plain_loop(files: list[Path], encoder: Path, barrier, results) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    model = HashEncoder.load(encoder)
    model.encode([Image.new("RGB", (300, 300))])
    names, codes = [], []
    barrier.wait()
    start = time.time()
    for path in files:
        try:
            codes.append(model.encode([path.read_bytes()]))
        except Exception:  # a reject
            continue
        names.append(path.name)
    results.put((start, time.time(), names, np.concatenate(codes)))


def run_plain(corpus: Path, encoder: Path) -> tuple[float, dict[str, bytes]]:
    files = sorted(corpus.iterdir())
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    shares = [files[number::PROCESSES] for number in range(PROCESSES)]
    processes = [context.Process(target=plain_loop, args=(share, encoder, barrier, results)) for share in shares]
    for process in processes:
        process.start()
    starts, ends, names, codes = zip(*(results.get() for _ in processes), strict=True)
    for process in processes:
        process.join()
    found = dict(zip((name for some in names for name in some), map(bytes, np.concatenate(codes)), strict=True))
    return len(files) / (max(ends) - min(starts)), found


def run_job(corpus: Path, encoder: Path, output: Path, checkout: Path) -> dict:
    """Encode by the command line of a checkout; return its figures."""
    command = [sys.executable, "-m", "hashlight", "encode", "--input", corpus, "--encoder", encoder, "--output", output]
    started = time.perf_counter()
    done = subprocess.run(
        [*map(str, command), "--overwrite", "--actors", str(PROCESSES), "--json"],
        cwd=checkout, env=environment_of(checkout), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    stats = json.loads((output / "stats.json").read_bytes())
    return {
        "images_per_s": stats["images_per_s"],
        "rejects": stats["rejects"],
        "whole_s": round(time.perf_counter() - started, 1),
        "seconds": stats["seconds"],
        "load": os.getloadavg()[0],
    }


def codes_of(folder: Path) -> dict[str, bytes]:
    table = pa.concat_tables(list(read_parts(folder)))
    names = [Path(uri).name for uri in table["uri"].to_pylist()]
    return dict(zip(names, map(bytes, codes_column(table["code"])), strict=True))


def compare(corpus: Path, folder: Path, before: Path | None, repeats: int) -> dict:
    here = Path(__file__).parents[1]
    results: dict = {"before": [], "now": [], "plain": []}
    for _ in range(repeats):
        if before is not None:
            results["before"].append(run_job(corpus, folder / "old", folder / "old-codes", before))
        results["now"].append(run_job(corpus, folder / "new", folder / "codes", here))
        rate, expected = run_plain(corpus, folder / "new")
        results["plain"].append({"images_per_s": rate, "load": os.getloadavg()[0]})
        assert codes_of(folder / "codes") == expected, "the job and the loops must give the same codes"
        print(corpus.name, {name: runs[-1] for name, runs in results.items() if runs}, flush=True)
    return results


def time_queries(encoder: Path, files: list[Path]) -> dict:
    """Time single images as a server decodes and encodes them."""
    asked = HashImageEncoder.for_server(HashEncoder.load(encoder))
    times_ms = []
    for number in range(QUERIES + 5):
        data = files[number % len(files)].read_bytes()
        start = time.perf_counter()
        asked.encode([asked.decode(data, 64_000_000)])
        times_ms.append((time.perf_counter() - start) * 1e3)
    return {"p50_ms": statistics.median(times_ms[5:]), "load": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawings", type=Path, required=True, help="a folder of PNG files")
    parser.add_argument("--before", type=lambda path: Path(path).absolute(), help="a checkout of an earlier commit")
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--photographs", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="without suffix: .md and .json are written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hashlight-pictures-") as scratch:
        folder = Path(scratch)
        make_encoder(folder / "new")
        if options.before is not None:
            command = [sys.executable, "-c", MAKE, str(folder / "old")]
            subprocess.run(command, cwd=options.before, env=environment_of(options.before), check=True)
        link_drawings(folder / "drawings", options.drawings, options.images)
        write_photographs(folder / "photographs", options.photographs)
        results = {
            name: compare(folder / name, folder, options.before, options.repeats)
            for name in ("drawings", "photographs")
        }
        small = io.BytesIO()
        Image.open(next((folder / "photographs").iterdir())).resize((800, 533)).save(small, "JPEG")
        (folder / "query.jpg").write_bytes(small.getvalue())
        queries = {
            "JPEG of 800 x 533": time_queries(folder / "new", [folder / "query.jpg"]),
            "drawings": time_queries(folder / "new", sorted((folder / "drawings").iterdir())[:50]),
            "12 megapixels": time_queries(folder / "new", sorted((folder / "photographs").iterdir())[:10]),
        }
    settings = {"images": options.images, "photographs": options.photographs, "repeats": options.repeats}
    document = {
        **environment("torch", "onnxruntime", "ray", "pillow"),
        "settings": {**settings, "processes": PROCESSES},
        "results": results,
        "queries": queries,
    }
    save_report(options.out, document, as_markdown(document))


def as_markdown(document: dict) -> str:
    settings = document["settings"]
    lines = [
        "# Encoding real pictures",
        "",
        f"{document['machine']}, {document['versions']}.",
        f"{settings['images']:,} drawings and {settings['photographs']} photographs of 12 megapixels,",
        f"EfficientNet-Lite0, 64 bits, {settings['processes']} actors to as many plain loops,",
        f"medians of {settings['repeats']} runs in turn, start-up aside; job and loops gave the same codes.",
        "In brackets the load of the machine (of 1 minute) after each run.",
        "",
        "| pictures | before, images/s | now | plain loops | now / before | now / plain |",
        "|---|---|---|---|---|---|",
    ]
    for kind, runs in document["results"].items():
        rates = {name: statistics.median(run["images_per_s"] for run in some) for name, some in runs.items() if some}
        loads = {name: ", ".join(f"{run['load']:.1f}" for run in some) for name, some in runs.items()}
        cells = [f"{rates[name]:,.1f} ({loads[name]})" if name in rates else "-" for name in ("before", "now", "plain")]
        gain = f"{rates['now'] / rates['before']:.2f}" if "before" in rates else "-"
        lines.append(f"| {kind} | {' | '.join(cells)} | {gain} | {rates['now'] / rates['plain']:.2f} |")
    lines += [
        "",
        "One query as a server decodes and encodes it, one at a time:",
        "",
        "| query | p50, ms | load |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {q['p50_ms']:.1f} | {q['load']:.1f} |" for name, q in document["queries"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
