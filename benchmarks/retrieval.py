"""Every method on full Fashion-MNIST with one backbone: which codes find images of the query's class?

    python benchmarks/retrieval.py --out benchmarks/results/retrieval_NAME_DATE

runs every cell (variant, method, bits, seed) that has no result yet in `OUT.cells/`, then writes `OUT.json` and
`OUT.md`. An interrupted run goes on where it was, within a cell too. `--images N` cuts every part to N images, for a
trial, whose cells lie apart.

All methods of a variant and seed start from one backbone: small-cnn, trained to classify the variant's training images.
So a row says what the hashing adds, and the joint method has its pre-training. HashNet+C is left out: with one label an
image it is HashNet. No part of training sees a query; the last epoch counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from encoders.encoder import HashEncoder
from encoders.methods import METHODS
from encoders.metrics import precision_at
from encoders.supervision import PairList
from encoders.training import TrainConfig, train
from engine.rerank import rerank_pool
from engine.storage.files import write_atomically
from pipelines.fashion_mnist import load_fashion_mnist
from pipelines.measure import Side, count_distances, method_report, relaxed_map

BITS = (12, 16, 24, 32, 48, 64)
ALL_METHODS = tuple(name for name in METHODS if name != "hashnet-c")
ABLATIONS = ("hashnet", "hashnet-w", "hashnet-sgn")
SEEDS = (0, 1, 2)
# HashNet and its nearest rivals: the methods whose differences are small enough to need several seeds.
SEVERAL_SEEDS = ("hashnet", "csq", "orthohash")

UNSEEN_CLASSES = (0, 5, 8)  # T-shirt, sandal, bag: one of each of three kinds of things
PAIRS, SIMILAR_PAIRS = 50_000, 500
POOL, RERANKED, RERANK_QUERIES = 100, 10, 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A protocol: its split and how long methods train on it. `title` stands over its table."""

    name: str
    title: str
    methods: tuple[str, ...]
    pretrain_epochs: int
    epochs: int
    by_pairs: bool = False


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            name="small",
            title="1,000 queries, 5,000 to train on, 69,000 in the database (which holds those), of all 70,000",
            methods=ALL_METHODS,
            pretrain_epochs=12,
            epochs=15,
        ),
        Variant(
            name="full",
            title="10,000 queries (the test split), 60,000 to train on, the same 60,000 in the database",
            methods=ALL_METHODS,
            pretrain_epochs=5,
            epochs=6,
        ),
        Variant(
            name="imbalanced",
            title=f"as small, but hashing learns from {PAIRS:,} known pairs only, {SIMILAR_PAIRS} of them similar",
            methods=(*ABLATIONS, "dhn"),
            pretrain_epochs=12,
            epochs=2,
            by_pairs=True,
        ),
        Variant(
            name="unseen",
            title=f"classes {UNSEEN_CLASSES} are never trained on; their 3,000 test images query all 60,000",
            methods=ALL_METHODS,
            pretrain_epochs=5,
            epochs=6,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Part:
    images: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> Part:
        return Part(self.images[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Split:
    train: Part
    database: Part
    queries: Part


@dataclasses.dataclass(frozen=True)
class Cell:
    variant: str
    method: str
    bits: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant}_{self.method}_{self.bits}_{self.seed}"


def split_of(variant: Variant, images: int | None) -> Split:
    """The variant's images; the same for every seed, so that seeds differ in training alone."""
    train_part, test_part = (Part(*load_fashion_mnist(split)) for split in ("train", "test"))
    if variant.name in ("small", "imbalanced"):
        whole = Part(*(np.concatenate(pair) for pair in zip(astuple(train_part), astuple(test_part), strict=True)))
        order = np.random.default_rng(0).permutation(len(whole.labels))
        of_class = [order[whole.labels[order] == label] for label in range(10)]
        cuts = [
            [part[:100] for part in of_class],
            [part[100:600] for part in of_class],
            [part[100:] for part in of_class],
        ]
        queries, taught, rest = (whole.take(np.sort(np.concatenate(cut))) for cut in cuts)
        parts = [taught, rest, queries]
    elif variant.name == "unseen":
        seen = ~np.isin(train_part.labels, UNSEEN_CLASSES)
        asked = np.isin(test_part.labels, UNSEEN_CLASSES)
        parts = [train_part.take(seen), train_part, test_part.take(asked)]
    else:
        parts = [train_part, train_part, test_part]
    return Split(*(part if images is None else part.take(spread(len(part.labels), images)) for part in parts))


def astuple(part: Part) -> tuple[np.ndarray, np.ndarray]:
    return part.images, part.labels


def spread(count: int, images: int) -> np.ndarray:
    return np.random.default_rng(1).permutation(count)[:images]


def draw_pairs(labels: np.ndarray, seed: int) -> PairList:
    """Known pairs, hardly any similar, as where similarity is a click or a link."""
    rng = np.random.default_rng(seed)
    most = len(labels) ** 2 // 8
    wanted = {True: min(SIMILAR_PAIRS, most // 100), False: min(PAIRS - SIMILAR_PAIRS, most)}
    first, second = rng.integers(len(labels), size=(2, 60 * sum(wanted.values())))
    keys, rows = np.unique(first * len(labels) + second, return_index=True)
    rows = rng.permutation(rows[first[rows] < second[rows]])
    assert len(keys)
    same = labels[first[rows]] == labels[second[rows]]
    kept = np.concatenate([rows[same == similar][:count] for similar, count in wanted.items()])
    return PairList(first[kept], second[kept], labels[first[kept]] == labels[second[kept]])


def cells_of(variants: list[str], methods: list[str] | None, bits: list[int], seeds: list[int]) -> list[Cell]:
    """Every cell, first seeds first, so that the whole table stands before the repetitions."""
    return [
        Cell(name, method, length, seed)
        for seed in seeds
        for name in variants
        for length in bits
        for method in VARIANTS[name].methods
        if (methods is None or method in methods) and (seed == seeds[0] or method in SEVERAL_SEEDS)
    ]


def pretrained(folder: Path, variant: Variant, split: Split, seed: int, epochs: int, device: str) -> Path:
    """The backbone that all methods of a variant and seed start from."""
    path = folder / f"backbone_{variant.name}_{seed}.safetensors"
    if not path.is_file():
        config = TrainConfig(method="lsh", bits=8, warmup_epochs=epochs, seed=seed, device=device)
        work = folder / f".backbone_{variant.name}_{seed}"
        encoder = train(split.train.images, split.train.labels, config, folder=work)
        encoder.save_backbone(path)
        shutil.rmtree(work)
    return path


def run_cell(cell: Cell, folder: Path, split: Split, trial: bool, device: str) -> dict:
    """Train, encode, measure."""
    variant = VARIANTS[cell.variant]
    backbone = pretrained(folder, variant, split, cell.seed, 1 if trial else variant.pretrain_epochs, device)
    config = TrainConfig(
        method=cell.method,
        bits=cell.bits,
        seed=cell.seed,
        weights=str(backbone),
        warmup_epochs=0,
        epochs=1 if trial else variant.epochs,
        device=device,
    )
    given = {"labels": split.train.labels}
    if variant.by_pairs:
        given = {"pairs": draw_pairs(split.train.labels, cell.seed)}
    start = time.perf_counter()
    work = folder / f".{cell.name}"
    encoder = train(split.train.images, config=config, folder=work, **given)
    train_s = time.perf_counter() - start
    shutil.rmtree(work)
    start = time.perf_counter()
    queries, database = (
        Side(None, part.labels, encoder.encode_all(part.images)) for part in (split.queries, split.database)
    )
    encode_s = time.perf_counter() - start
    result = measure(encoder, queries, database)
    sizes = {field.name: len(getattr(split, field.name).labels) for field in dataclasses.fields(Split)}
    return {
        **dataclasses.asdict(cell),
        "title": METHODS[cell.method].title,
        **sizes,
        "epoch": encoder.config.training["epoch"],
        "train_s": round(train_s, 1),
        "encode_images_per_s": round((sizes["queries"] + sizes["database"]) / encode_s, 1),
        **result,
    }


def measure(encoder: HashEncoder, queries: Side, database: Side) -> dict:
    histograms = count_distances(
        queries.output.codes, database.output.codes, queries.labels, database.labels, encoder.bits
    )
    report = dataclasses.asdict(method_report(histograms, database.output.codes, encoder.bits))
    return {
        **report,
        "map_relaxed": relaxed_map(queries, database),
        "share_above_0.99": float((np.abs(database.output.relaxed) > 0.99).mean()),
        "rerank": measure_rerank(queries, database, encoder.bits),
    }


def measure_rerank(queries: Side, database: Side, bits: int) -> dict:
    """Precision of the first ten of a pool by codes and by features, and what the second step costs."""
    rows = np.arange(min(RERANK_QUERIES, len(queries.labels)))
    pools = []
    for row in rows:
        distance = np.bitwise_count(queries.output.codes[row] ^ database.output.codes).sum(axis=1)
        pools.append(np.argsort(distance, kind="stable")[:POOL])
    pool = np.array(pools)
    stored = database.output.features.astype(np.float16)
    start = time.perf_counter()
    order = rerank_pool(queries.output.features[rows], pool, stored[pool], RERANKED).ids
    seconds = time.perf_counter() - start
    hits = database.labels[order] == queries.labels[rows, None]
    counts = count_distances(
        queries.output.codes[rows], database.output.codes, queries.labels[rows], database.labels, bits
    )
    by_codes = float(precision_at(counts.total, counts.relevant, RERANKED).mean())
    return {
        "pool": POOL,
        "precision_by_codes": by_codes,
        "precision_by_features": float(hits.mean()),
        "ms_a_query": 1000 * seconds / len(rows),
    }


def page(results: list[dict], facts: dict) -> str:
    """The tables, every number beside its protocol."""
    lines = [
        "# Retrieval on Fashion-MNIST",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "- mAP over the whole database; ties: the expected value over the orders of equal distances",
        "- epoch: the last; nothing was chosen by the queries",
        "- where there were several seeds: mean ± standard deviation",
    ]
    for variant in VARIANTS.values():
        rows = [result for result in results if result["variant"] == variant.name]
        if rows:
            lines += ["", f"## {variant.name}: {variant.title}", *tables(rows)]
    return "\n".join(lines) + "\n"


def tables(rows: list[dict]) -> list[str]:
    columns = {
        "mAP": lambda row: row["map_all"],
        "Precision within radius 2": lambda row: row["precision_radius_2"],
        "mAP of relaxed codes less that of signs": lambda row: row["map_relaxed"] - row["map_all"],
        f"Precision of the first {RERANKED}, by codes": lambda row: row["rerank"]["precision_by_codes"],
        f"The same after re-ranking the first {POOL} by features": lambda row: row["rerank"]["precision_by_features"],
        "Milliseconds a query of that re-ranking": lambda row: row["rerank"]["ms_a_query"],
        "Seconds to train": lambda row: row["train_s"],
    }
    bits = sorted({row["bits"] for row in rows})
    lines = []
    for title, value in columns.items():
        lines += [
            "",
            f"{title}:",
            "",
            f"| method | {' | '.join(f'{b} bits' for b in bits)} |",
            f"|---|{'---|' * len(bits)}",
        ]
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == method]
            cells = [shown([value(row) for row in own if row["bits"] == length]) for length in bits]
            lines.append(f"| {own[0]['title']} | {' | '.join(cells)} |")
    return lines


def shown(values: list[float]) -> str:
    if not values:
        return ""
    digits = 1 if max(values) > 10 else 4
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--method", nargs="*", choices=ALL_METHODS)
    parser.add_argument("--bits", nargs="*", type=int, default=list(BITS))
    parser.add_argument("--seed", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--images", type=int, help="cut every part to this many, one epoch: a trial")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    trial = "" if options.images is None else f".trial-{options.images}"
    folder = options.out.with_name(f"{options.out.name}{trial}.cells")
    folder.mkdir(parents=True, exist_ok=True)
    cells = cells_of(options.variant, options.method, options.bits, options.seed)
    splits: dict[str, Split] = {}
    for number, cell in enumerate(cells, 1):
        path = folder / f"{cell.name}.json"
        if not path.is_file():
            split = splits.setdefault(cell.variant, split_of(VARIANTS[cell.variant], options.images))
            result = run_cell(cell, folder, split, options.images is not None, options.device)
            write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
            print(f"{number}/{len(cells)} {cell.name}: mAP {result['map_all']:.4f}, {result['train_s']} s", flush=True)
    results = [json.loads((folder / f"{cell.name}.json").read_bytes()) for cell in cells]
    facts = {
        "backbone": "small-cnn, trained to classify the variant's training images, then by each method",
        "trial": "no" if options.images is None else f"YES: {options.images} images of each part, one epoch",
        "device": options.device,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }
    titles = {name: VARIANTS[name].title for name in options.variant}
    document = json.dumps({"facts": facts, "variants": titles, "cells": results}, indent=1) + "\n"
    write_atomically(options.out.with_name(options.out.name + ".json"), document.encode())
    write_atomically(options.out.with_name(options.out.name + ".md"), page(results, facts).encode())


if __name__ == "__main__":
    main()
