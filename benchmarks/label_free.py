"""Methods without labels: what codes of real pictures keep, in Hamming and in asymmetric order, and classes never seen.

    python -m benchmarks.label_free --drawings FOLDER --out benchmarks/results/label_free_NAME_DATE

Drawings: EfficientNet-Lite0's features of PNG files, of which exact duplicates (equal features) are removed; the
category is the folder below FOLDER. For each seed 3,000 are fitted to, 500 others are queries, the rest is searched.
Cells: share of ten answers of the query's category / share of the ten nearest by cosine among them. A pool of 100
nearest codes is put in asymmetric order.

Classes never seen: Fashion-MNIST, all 60,000 training images searched, by the test images of half the classes
(`benchmarks.retrieval`, "unseen"), for which HashNet's training has no labels. Here nothing has: the features are the
pixels. Mean average precision over the whole database.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import environment, save_report
from benchmarks.retrieval import UNSEEN_CLASSES
from hashlight.encoders.fits.hashers import Hasher
from hashlight.encoders.fits.itq import ITQ
from hashlight.encoders.fits.neighbours import Neighbours
from hashlight.encoders.metrics import mean_average_precision
from hashlight.encoders.packing import pack_bits
from hashlight.engine.collection.rerank import inner_products
from hashlight.engine.indexes.histogram import distance_histogram
from hashlight.pipelines.corpora.fashion_mnist import load_fashion_mnist

METHODS = {"ITQ": ITQ.fit, "neighbours": Neighbours.fit}
LENGTHS = (16, 32, 64, 128, 256)
FITTED, QUERIES, ANSWERS, POOL = 3000, 500, 10, 100
UNSEEN_BITS = 48
# Neighbours over ITQ: precision and recall, by bits; asymmetric over Hamming order, at every length.
OVER_ITQ = {16: (0.015, 0.05), 32: (0.012, 0.05), 64: (0.006, 0.03)}
OVER_HAMMING = (0.010, 0.04)
UNSEEN = 0.42


def drawings_of(folder: Path | None, kept: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the features (N, 1280) and categories (N,) of all drawings, without exact duplicates."""
    if kept is not None and kept.is_file():
        with np.load(kept) as file:
            features, categories = file["features"], file["categories"]
    else:
        import torch

        from hashlight.encoders.config import EncoderConfig, Pictures
        from hashlight.encoders.encoder import HashEncoder
        from hashlight.encoders.networks.backbones import build_backbone
        from hashlight.encoders.networks.model import HashModel

        assert folder is not None, "--drawings or an existing --features"
        torch.manual_seed(0)
        backbone = build_backbone("efficientnet-lite0", "imagenet")
        encoder = HashEncoder(EncoderConfig(bits=8, beta=1.0, input=Pictures.of(backbone)), HashModel(backbone, 8))
        files = sorted(folder.rglob("*.png"))
        parts = [encoder.encode_all(files[start : start + 64]).features for start in range(0, len(files), 64)]
        features = np.concatenate(parts)
        categories = np.array([file.relative_to(folder).parts[0] for file in files])
        if kept is not None:
            np.savez(kept, features=features, categories=categories)
    firsts = np.sort(np.unique(features, axis=0, return_index=True)[1])
    return features[firsts], categories[firsts]


def unit(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def signs(hasher: Hasher, x_ND: np.ndarray) -> np.ndarray:
    return np.where(hasher.project(x_ND) > 0, 1.0, -1.0)


def measure_drawings(features: np.ndarray, categories: np.ndarray, seed: int) -> dict[str, Any]:
    order = np.random.default_rng(seed).permutation(len(features))
    fitted, asked, searched = np.split(order, [FITTED, FITTED + QUERIES])
    exact_QN = np.argsort(-unit(features[asked]) @ unit(features[searched]).T, axis=1, kind="stable")[:, :ANSWERS]

    def quality(found_QK: np.ndarray) -> list[float]:
        same = categories[searched][found_QK] == categories[asked][:, None]
        kept = [len(set(a) & set(b)) / ANSWERS for a, b in zip(exact_QN.tolist(), found_QK.tolist(), strict=True)]
        return [float(same.mean()), float(np.mean(kept))]

    cells: dict[str, Any] = {"float": quality(exact_QN)}
    for name, fit in METHODS.items():
        for bits in LENGTHS:
            hasher = fit(features[fitted], bits, seed)
            by_sign_QN = signs(hasher, features[asked]) @ signs(hasher, features[searched]).T
            pool_QP = np.argsort(-by_sign_QN, axis=1, kind="stable")[:, :POOL]
            codes = pack_bits(hasher.project(features[searched]) > 0)[pool_QP.reshape(-1)]
            products = inner_products(hasher.project(features[asked]), codes, np.full(QUERIES, POOL))
            finer_QP = np.argsort(-products.reshape(pool_QP.shape), axis=1, kind="stable")
            asymmetric_QP = np.take_along_axis(pool_QP, finer_QP, axis=1)
            cells[f"{name} {bits}"] = quality(pool_QP[:, :ANSWERS])
            cells[f"{name} {bits} asymmetric"] = quality(asymmetric_QP[:, :ANSWERS])
    return cells


def measure_unseen(seed: int) -> dict[str, float]:
    (images, labels), (asked, asked_labels) = load_fashion_mnist("train"), load_fashion_mnist("test")
    chosen = np.isin(asked_labels, UNSEEN_CLASSES)
    database, queries = (part.reshape(len(part), -1).astype(np.float32) for part in (images, asked[chosen]))
    found = {}
    for name, fit in METHODS.items():
        hasher = fit(database, UNSEEN_BITS, seed)
        counts = distance_histogram(
            hasher.encode(queries),
            hasher.encode(database),
            query_labels=asked_labels[chosen].astype(np.int64),
            code_labels=labels.astype(np.int64),
            bits=UNSEEN_BITS,
        )
        found[name] = mean_average_precision(*counts)
    return found


def means(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.mean([cells[name] for cells in seeds], axis=0).tolist() for name in seeds[0]}


def verdicts(mean: dict[str, list[float]]) -> list[str]:
    """Return what was asked of the differences, and whether they are as large."""
    asked = [
        (f"neighbours over ITQ, {bits} bits", f"neighbours {bits}", f"ITQ {bits}", least)
        for bits, least in OVER_ITQ.items()
    ]
    for name in METHODS:
        for cell in (f"{name} {bits}" for bits in LENGTHS):
            asked.append((f"{cell} bits, asymmetric over Hamming order", f"{cell} asymmetric", cell, OVER_HAMMING))
    lines = []
    for title, better, worse, least in asked:
        gain = [a - b for a, b in zip(mean[better], mean[worse], strict=True)]
        met = all(got >= wanted for got, wanted in zip(gain, least, strict=True))
        verdict = "met" if met else "missed"
        lines.append(f"| {title} | {gain[0]:+.3f} / {gain[1]:+.3f} | {least[0]:.3f} / {least[1]:.3f} | {verdict} |")
    return lines


def report(document: dict[str, Any]) -> str:
    lines = ["# Methods without labels", "", f"{document['machine']}; {document['versions']}", ""]
    if "drawings" in document:
        mean = means(document["drawings"])
        lines += [
            f"{document['pictures']:,} distinct drawings, {len(document['drawings'])} seeds; by float features "
            f"{mean['float'][0]:.3f}. Share of ten answers of the category / share of the ten nearest by cosine.",
            "",
            "| bits | " + " | ".join(f"{name}{order}" for order in ("", ", asymmetric") for name in METHODS) + " |",
            "|---|---|---|---|---|",
        ]
        for bits in LENGTHS:
            names = [f"{name} {bits}{order}" for order in ("", " asymmetric") for name in METHODS]
            lines.append(f"| {bits} | " + " | ".join("{:.3f} / {:.3f}".format(*mean[name]) for name in names) + " |")
        lines += ["", "| difference | got | asked | |", "|---|---|---|---|", *verdicts(mean), ""]
    if "unseen" in document:
        unseen = ", ".join(f"{name} {value:.3f}" for name, value in means(document["unseen"]).items())
        lines += [
            f"Fashion-MNIST, classes that no label told of, {UNSEEN_BITS} bits of the pixels, "
            f"{len(document['unseen'])} seeds, mean average precision (asked: {UNSEEN}): {unseen}.",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawings", type=Path)
    parser.add_argument("--features", type=Path, help="Keep the features here (.npz), or take them from here.")
    parser.add_argument("--unseen", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = environment("numpy")
    if options.drawings or options.features:
        features, categories = drawings_of(options.drawings, options.features)
        document["pictures"] = len(features)
        document["drawings"] = [measure_drawings(features, categories, seed) for seed in range(options.seeds)]
    if options.unseen:
        document["unseen"] = [measure_unseen(seed) for seed in range(options.seeds)]
    save_report(options.out, document, report(document))


if __name__ == "__main__":
    main()
