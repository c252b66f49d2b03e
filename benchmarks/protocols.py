"""The splits of the four public protocols of deep hashing, made from the files that each data set is published as.

    python -m benchmarks.protocols cifar-10     --source cifar-10-batches-bin --output cifar
    python -m benchmarks.protocols imagenet-100 --source imagenet --output imagenet [--classes FILE]
    python -m benchmarks.protocols nus-wide-21  --source NUS-WIDE --output nus21     (or nus-wide-81)
    python -m benchmarks.protocols coco         --source coco --output coco

Each writes three corpora into the output, `train`, `database` and `queries`: Parquet of images for CIFAR-10, else JSON
lines of paths and labels. Nothing is downloaded. `docs/protocols.md` has the sizes and the commands that follow.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hashlight.pipelines.corpora.kinds.idx import as_png
from hashlight.pipelines.corpora.kinds.labelled import coco_images

CIFAR_QUERIES, CIFAR_TRAIN = 100, 500  # of each class
CIFAR_RECORD = 1 + 3 * 32 * 32
IMAGENET_CLASSES, IMAGENET_TRAIN = 100, 100  # and of each class
NUS_CONCEPTS, NUS_QUERIES, NUS_TRAIN = 21, 100, 500  # the most frequent, and of each of these
QUERIES, TRAIN = 5_000, 10_000  # of COCO and NUS-WIDE-81


class Images(NamedTuple):
    """Paths of images, and the labels of each."""

    paths: list[Path]
    labels: list[list[str]]


class Split(NamedTuple):
    """Positions of the images of each corpus; those to train on may also be in the database."""

    train: np.ndarray
    database: np.ndarray
    queries: np.ndarray


def split_by_class(
    class_of: Callable[[int], np.ndarray], num_classes: int, *, queries: int, train: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw queries and training images of each class in turn, none of them twice; `class_of` gives those of a class."""
    taken: set[int] = set()
    drawn: list[list[int]] = [[], []]
    for part, count in zip(drawn, (queries, train), strict=True):
        for number in range(num_classes):
            free = [row for row in class_of(number).tolist() if row not in taken]
            if len(free) < count:
                raise SystemExit(f"class {number} has {len(free)} images left, expected at least {count} to draw")
            chosen = rng.permutation(free)[:count].tolist()
            taken.update(chosen)
            part += chosen
    return np.sort(drawn[0]), np.sort(drawn[1])


def split_at_random(count: int, rng: np.random.Generator, *, queries: int, train: int) -> Split:
    """Draw queries, and images to train on from the others, which are the database."""
    if count < queries + train:
        raise SystemExit(f"there are {count} images, expected at least {queries + train}: {queries} queries are drawn")
    order = rng.permutation(count)
    return Split(np.sort(order[queries : queries + train]), np.sort(order[queries:]), np.sort(order[:queries]))


def cifar_10(source: Path, output: Path, rng: np.random.Generator) -> dict[str, int]:
    """1,000 queries, 5,000 to train on, 54,000 others in the database, of all 60,000."""
    names = (source / "batches.meta.txt").read_text().split()
    files = [*(source / f"data_batch_{number}.bin" for number in range(1, 6)), source / "test_batch.bin"]
    record_N = np.concatenate([np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, CIFAR_RECORD) for file in files])
    label_N = record_N[:, 0]
    queries, train = split_by_class(
        lambda number: np.flatnonzero(label_N == number), len(names), queries=CIFAR_QUERIES, train=CIFAR_TRAIN, rng=rng
    )
    database = np.setdiff1d(np.arange(len(label_N)), np.union1d(queries, train))
    split = Split(train, database, queries)
    for part, rows in split._asdict().items():
        pixels_NHWC = record_N[rows, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        columns = {
            "id": rows,
            "image": [as_png(pixels) for pixels in pixels_NHWC],
            "label": label_N[rows].astype(np.int64),
            "label_name": [names[label] for label in label_N[rows]],
        }
        pq.write_table(pa.table(columns), output / f"{part}.parquet")
    return sizes(split)


def imagenet_100(source: Path, output: Path, rng: np.random.Generator, classes: Path | None = None) -> dict[str, int]:
    """All validation images of 100 classes as queries, all training images as database, 100 of each to train on."""
    there = sorted(folder.name for folder in (source / "train").iterdir() if folder.is_dir())
    names = sorted(rng.permutation(there)[:IMAGENET_CLASSES]) if classes is None else classes.read_text().split()
    if missing := sorted(set(names) - set(there)):
        raise SystemExit(f"{source / 'train'} lacks {len(missing)} of {len(names)} classes, first {missing[0]}")
    found, queries = (
        [(path, name) for name in names for path in sorted((source / part / name).iterdir())]
        for part in ("train", "val")
    )
    of_class = np.array([names.index(name) for _, name in found])
    _, train = split_by_class(
        lambda number: np.flatnonzero(of_class == number), len(names), queries=0, train=IMAGENET_TRAIN, rng=rng
    )
    images = Images(*map(list, zip(*[(path, [name]) for path, name in [*found, *queries]], strict=True)))
    split = Split(train, np.arange(len(found)), len(found) + np.arange(len(queries)))
    return write_lists(images, split, output)


def nus_wide(source: Path, output: Path, rng: np.random.Generator, *, num_concepts: int) -> dict[str, int]:
    """NUS-WIDE-21: 100 queries and 500 to train on of each concept; NUS-WIDE-81: 5,000 and 10,000 at random."""
    lines = (source / "ImageList" / "Imagelist.txt").read_text().split()
    paths = [source / "Flickr" / line.replace("\\", "/") for line in lines]
    files = sorted((source / "Groundtruth" / "AllLabels").glob("Labels_*.txt"))
    has_CN = np.stack([np.loadtxt(file, np.int8) > 0 for file in files])
    chosen = np.sort(np.argsort(-has_CN.sum(axis=1), kind="stable")[:num_concepts])
    names, has_CN = [files[number].stem.removeprefix("Labels_") for number in chosen], has_CN[chosen]
    rows = np.flatnonzero(has_CN.any(axis=0) & np.array([path.is_file() for path in paths]))
    has_CN = has_CN[:, rows]
    labels = [[names[number] for number in np.flatnonzero(has_C)] for has_C in has_CN.T]
    images = Images([paths[row] for row in rows], labels)
    if num_concepts > NUS_CONCEPTS:
        return write_lists(images, split_at_random(len(rows), rng, queries=QUERIES, train=TRAIN), output)
    queries, train = split_by_class(
        lambda number: np.flatnonzero(has_CN[number]), len(names), queries=NUS_QUERIES, train=NUS_TRAIN, rng=rng
    )
    split = Split(train, np.setdiff1d(np.arange(len(rows)), queries), queries)
    return write_lists(images, split, output)


def coco(source: Path, output: Path, rng: np.random.Generator) -> dict[str, int]:
    """5,000 queries at random, all others with a category in the database, 10,000 of these to train on."""
    paths, labels = [], []
    for part in ("train2014", "val2014"):
        names, found = coco_images(str(source / "annotations" / f"instances_{part}.json"))
        for name, categories in zip(names, found, strict=True):
            if categories:
                paths.append(source / part / name)
                labels.append(categories)
    return write_lists(Images(paths, labels), split_at_random(len(paths), rng, queries=QUERIES, train=TRAIN), output)


def write_lists(images: Images, split: Split, output: Path) -> dict[str, int]:
    """Write a file of JSON lines for each corpus."""
    for part, rows in split._asdict().items():
        lines = [
            json.dumps({"uri": str(images.paths[row].absolute()), "label": images.labels[row]}) for row in rows.tolist()
        ]
        (output / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return sizes(split)


def sizes(split: Split) -> dict[str, int]:
    return {part: len(rows) for part, rows in split._asdict().items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("protocol", choices=("cifar-10", "imagenet-100", "nus-wide-21", "nus-wide-81", "coco"))
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--classes", type=Path, help="imagenet-100: a file of its classes; drawn at random without")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    given = options.source, options.output, np.random.default_rng(options.seed)
    make = {
        "cifar-10": cifar_10,
        "imagenet-100": lambda *given: imagenet_100(*given, classes=options.classes),
        "nus-wide-21": lambda *given: nus_wide(*given, num_concepts=NUS_CONCEPTS),
        "nus-wide-81": lambda *given: nus_wide(*given, num_concepts=81),
        "coco": coco,
    }[options.protocol]
    for part, count in make(*given).items():
        print(f"{part}: {count:,} images")


if __name__ == "__main__":
    main()
