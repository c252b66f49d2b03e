"""Every method on full Fashion-MNIST with one backbone: which codes find images of the query's class?

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py --out benchmarks/results/retrieval_NAME_DATE

runs every cell (variant, method, bits, seed) that has no result yet in `OUT.cells/`, and after each cell writes
`OUT.json` and `OUT.md` from all results. `--variant`, `--method`, `--bits` and `--seed` choose cells. `--images N` runs
a trial with every part cut to N images; its cells and report are kept apart, at OUT.trial-N. A cell records how it was
made; one made by another method of the same name, or with other settings of its variant, is refused.

All methods of a split and seed start from one backbone: small-cnn, trained to classify the split's training images,
finally without mirroring and shifting. So a row shows what the hashing adds, and the joint method has its pre-training.
Trained methods continue to train the whole network; fitted ones use its features, computed once. In the variant
imbalanced only pairs are known and the network starts from random weights; outfits has pairs as well, and the backbone.
HashNet+C is left out, because with one label per image it equals HashNet. Training never sees a query; the last epoch
counts. Seconds are processor seconds of one process.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from hashlight.encoders.data.supervision.pairs import PairList
from hashlight.encoders.data.supervision.protocol import LABELS
from hashlight.encoders.encoder import EncoderOutput, HashEncoder
from hashlight.encoders.fits.hashers import FloatArray, Hasher
from hashlight.encoders.fits.ksh import KSH_ANCHORS, KSH_LABELLED
from hashlight.encoders.fits.sdh import SDH_ANCHORS
from hashlight.encoders.losses.centres import check_centres, class_centres
from hashlight.encoders.methods import METHODS as ENCODERS
from hashlight.encoders.methods import Method
from hashlight.encoders.metrics import average_precision, precision_at
from hashlight.encoders.training.train import TrainConfig, train
from hashlight.engine.collection.rerank import rerank_pool
from hashlight.engine.indexes.scan import ScanIndex
from hashlight.engine.places.files import write_atomically
from hashlight.pipelines.corpora.fashion_mnist import load_fashion_mnist
from hashlight.pipelines.evaluation.measure import (
    RELAXED_QUERIES,
    Histograms,
    Side,
    count_distances,
    method_report,
    relaxed_maps,
)
from hashlight.pipelines.evaluation.pictures import save_lines

T = TypeVar("T")

BITS = (12, 16, 24, 32, 48, 64)
ALL_METHODS = tuple(name for name in ENCODERS if name != "hashnet-c")
ABLATIONS = ("hashnet", "hashnet-w", "hashnet-ste", "hashnet-sgn", "hashnet-sharp")
SEEDS = (0, 1, 2)
# At these lengths every method runs with every seed.
SEEDED_BITS = (12, 32, 64)
# HashNet and its closest rivals, whose differences are small enough to need several seeds at every length.
RIVALS = ("hashnet", "hashnet-st", "latent")
# What the others are compared with, query by query.
REFERENCE = "hashnet"
RERANKED_METHODS = ("hashnet", "hashnet-st", "latent")

BATCH = 128
# One learning rate cycle each: the first on augmented images, the others on unaugmented ones.
PRETRAIN_EPOCHS = {"full": (12, 4, 4), "small": (30, 10, 10), "unseen": (12, 4, 4)}
UNSEEN_CLASSES = (0, 5, 8)  # T-shirt, sandal, bag: one class of each of three kinds
PAIRS, SIMILAR_PAIRS = 2_000_000, 20_000
CLASSES = 10
OUTFITS = 5  # T-shirt and sandal, trousers and shirt, pullover and sneaker, dress and bag, coat and ankle boot
POOL, RERANKED = 1000, 10
# For cells that do not record the number.
RERANK_QUERIES = 1000


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PredictedClass(Hasher):
    """No hashing: a classifier of the features, and one code for each class, far from those of the others.

    What this retrieves is what the classifier knows; codes that find more have kept more than the class.
    """

    classifier: LogisticRegression

    @classmethod
    def fit(cls, feature_ND: np.ndarray, bits: int, seed: int, class_NC: np.ndarray) -> PredictedClass:
        centre_CK = class_centres(class_NC.shape[1], bits, seed).numpy().astype(np.float64)
        return cls(centre_CK, LogisticRegression(max_iter=1000).fit(feature_ND, class_NC.argmax(axis=1)))

    @property
    def dims(self) -> int:
        return int(self.classifier.coef_.shape[1])

    def _project(self, feature_ND: FloatArray) -> FloatArray:
        return np.asarray(self.weight[self.classifier.predict(feature_ND)], np.float64)


PREDICTED = Method(
    name="predicted-class",
    title="Predicted class (a classifier of the features, one code a class)",
    learns_from=(LABELS,),
    fit=lambda features, bits, seed, classes: PredictedClass.fit(features, bits, seed, np.asarray(classes)),
    check_bits=lambda bits, _, num_classes: check_centres(num_classes, bits),
)
METHODS = {**ENCODERS, PREDICTED.name: PREDICTED}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A protocol: its split and how long methods train on it. `title` and `note` head its table.

    Methods in `several_seeds` run with all of `SEEDS`, others with the first only, except at `SEEDED_BITS`. With
    `by_pairs`, methods get known pairs instead of labels; without `pretrained` they start from random weights and see
    mirrored and shifted images; with `outfits` two classes count as similar.
    """

    name: str
    title: str
    split: str
    methods: tuple[str, ...]
    epochs: int
    batch_size: int = BATCH
    pretrained: bool = True
    by_pairs: bool = False
    outfits: bool = False
    several_seeds: tuple[str, ...] = ()
    note: str = ""

    @property
    def settings(self) -> dict:
        """Return what a cell depends on, as plain JSON values."""
        classes = OUTFITS if self.outfits else CLASSES
        pairs = {"pairs": PAIRS, "similar_pairs": SIMILAR_PAIRS, "classes": classes} if self.by_pairs else None
        return {
            "split": self.split,
            "pretrain_epochs": list(PRETRAIN_EPOCHS[self.split]) if self.pretrained else [],
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "by_pairs": pairs,
        }


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            name="full",
            title="10,000 queries (the test split), 60,000 to train on, the same 60,000 in the database",
            split="full",
            methods=(*ALL_METHODS, PREDICTED.name),
            several_seeds=RIVALS,
            epochs=1,
        ),
        Variant(
            name="imbalanced",
            title=f"as small, but nothing is known of the training images but {PAIRS:,} pairs, {SIMILAR_PAIRS:,} of "
            "them of one class",
            split="small",
            methods=(*ABLATIONS, "dhn"),
            several_seeds=("hashnet", "hashnet-w", "hashnet-ste", "hashnet-sgn"),
            note="Made after outfits, where the backbone knows the classes and hardly anything is left for weights and "
            "continuation to do; pairs and batch are from there. Trials of 12 and 36 epochs at 16 bits asked with "
            "images of the database; HashNet came before HashNet-W and that before HashNet-ste in both. The batch "
            "matters to HashNet-W: 128 instead of 512 gave it 0.48 instead of 0.31 in 12 epochs, HashNet 0.61 and "
            "0.61. HashNet-ste has signs from the start, with straight-through gradients, and stays at chance: it "
            "ends with one code for 92 to 97 % of the database. Its outputs, whose size a sign hides from the loss, "
            "shrink from the first steps (mean |z| at 16 bits from 0.43 to 0.04 in 42 of 216 steps); at a rate of "
            "1e-4 instead of 5e-4 it reached 0.20 in a trial in which HashNet reached 0.51. HashNet-sharp has the "
            "last beta from the start. HashNet-sgn has tanh(z) throughout and its signs afterwards, as in the paper's "
            "ablation; it is level with HashNet. So continuation is worth much against a steep start and "
            "nothing against a smooth end. Fewer |h| than elsewhere end near 1.",
            epochs=24,
            batch_size=512,
            pretrained=False,
            by_pairs=True,
        ),
        Variant(
            name="outfits",
            title="as imbalanced, but from the backbone that has learned the classes, on images as they are, for 36 "
            "epochs, and what is similar are two classes that make an outfit, as coat and ankle boot do",
            split="small",
            methods=ABLATIONS[:4],
            note="Pairs, batch and epochs were chosen in trials that asked with images of the database, after other "
            "settings had favoured the ablations: with 12 epochs instead of 36 and beta rising by equal steps, "
            "HashNet-sgn and HashNet-ste were ahead by 0.001 to 0.017 at every number of bits. HashNet-ste is still "
            "ahead at five of six, by less than 0.005. Weights are worth 0.049 at 12 bits and at most 0.005 beyond. "
            "The seconds are of an older look-up of pairs, which took half of them.",
            epochs=36,
            batch_size=512,
            by_pairs=True,
            outfits=True,
        ),
        Variant(
            name="small",
            title="1,000 queries, 5,000 to train on, 69,000 in the database (which holds those), of all 70,000",
            split="small",
            methods=(*ALL_METHODS, PREDICTED.name),
            several_seeds=RIVALS,
            epochs=4,
        ),
        Variant(
            name="unseen",
            title=f"classes {UNSEEN_CLASSES} are never trained on; their 3,000 test images query all 60,000",
            split="unseen",
            methods=ALL_METHODS,
            epochs=1,
        ),
    )
}


class Part(NamedTuple):
    images: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> Part:
        return Part(self.images[rows], self.labels[rows])


class Split(NamedTuple):
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


def split_of(name: str, images: int | None) -> Split:
    """The images of a split; the same for every seed, so that seeds differ in training only."""
    train_part, test_part = (Part(*load_fashion_mnist(split)) for split in ("train", "test"))
    if name == "small":
        whole = Part(*(np.concatenate(pair) for pair in zip(train_part, test_part, strict=True)))
        order = np.random.default_rng(0).permutation(len(whole.labels))
        of_class = [order[whole.labels[order] == label] for label in range(10)]
        cuts = [
            [part[100:600] for part in of_class],
            [part[100:] for part in of_class],
            [part[:100] for part in of_class],
        ]
        parts = [whole.take(np.sort(np.concatenate(cut))) for cut in cuts]
    elif name == "unseen":
        seen = ~np.isin(train_part.labels, UNSEEN_CLASSES)
        asked = np.isin(test_part.labels, UNSEEN_CLASSES)
        parts = [train_part.take(seen), train_part, test_part.take(asked)]
    else:
        parts = [train_part, train_part, test_part]
    return Split(*(part if images is None else part.take(spread(len(part.labels), images)) for part in parts))


def spread(count: int, images: int) -> np.ndarray:
    return np.random.default_rng(1).permutation(count)[:images]


def draw_pairs(labels: np.ndarray, seed: int) -> PairList:
    """Return known pairs, few of them similar, as when similarity comes from clicks or links."""
    rng = np.random.default_rng(seed)
    first, second = np.triu_indices(len(labels), 1)
    order = rng.permutation(len(first))[: 4 * PAIRS]
    first, second = first[order], second[order]
    same = labels[first] == labels[second]
    num_similar = min(SIMILAR_PAIRS, len(same) // 100)
    kept = np.concatenate([np.flatnonzero(same)[:num_similar], np.flatnonzero(~same)[: PAIRS - num_similar]])
    return PairList(first[kept], second[kept], same[kept])


class Start:
    """The common part of all methods of a split and seed: the images, the backbone, and its features."""

    def __init__(self, split: str, seed: int, folder: Path, images: int | None, device: str):
        self.split = split_of(split, images)
        self.trial = images is not None
        self.seed = seed
        self.device = device
        self._epochs = (1, 1, 1) if self.trial else PRETRAIN_EPOCHS[split]
        self._backbone = folder / f"backbone_{split}_{seed}.safetensors"
        self._features = self._backbone.with_suffix(".npz")
        self._facts = self._backbone.with_suffix(".json")

    @property
    def backbone(self) -> Path:
        """The weights, trained on first use."""
        if not self._facts.is_file():
            self._make()
        return self._backbone

    @functools.cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Float32 features of each part, by name."""
        with np.load(self.backbone.with_suffix(".npz")) as file:
            return dict(file)

    @functools.cached_property
    def facts(self) -> dict[str, str | float]:
        return json.loads(self.backbone.with_suffix(".json").read_bytes())

    def _make(self) -> None:
        """Train to classify augmented images, then unaugmented ones, as in the database."""
        start = time.process_time()
        encoder = self._classify(warmup_epochs=self._epochs[0])
        encoder.save_backbone(self._backbone)
        for plain in self._epochs[1:]:
            encoder = self._classify(
                warmup_epochs=plain, weights=str(self._backbone), warmup_learning_rate=1e-3, augment=False
            )
            encoder.save_backbone(self._backbone)
        train_s = round(time.process_time() - start, 1)
        parts = self.split._asdict()
        if self.split.train is self.split.database:
            del parts["train"]
        features = {name: encoder.encode_all(part.images).features for name, part in parts.items()}
        with self._features.open("wb") as file:
            np.savez(file, **{"train": features["database"], **features})  # type: ignore[arg-type]
        facts = {"backbone_epochs": " + ".join(map(str, self._epochs)), "backbone_cpu_s": train_s}
        write_atomically(self._facts, json.dumps(facts).encode())

    def _classify(self, **settings: Any) -> HashEncoder:
        # The random hyperplanes are discarded; only the warm-up is needed.
        config = TrainConfig(
            method="lsh", bits=8, batch_size=BATCH, precision="bfloat16", seed=self.seed, device=self.device, **settings
        )
        return train(self.split.train.images, self.split.train.labels, config)


class Coded(NamedTuple):
    """Both sides encoded by one method, and the cost."""

    queries: Side
    database: Side
    facts: dict[str, float | str]


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result of `work`, and its processor seconds."""
    start = time.process_time()
    result = work()
    return result, round(time.process_time() - start, 2)


def fit_method(cell: Cell, start: Start) -> Coded:
    """Fit a method to the backbone's features."""
    method, split = METHODS[cell.method], start.split
    classes = (split.train.labels[:, None] == np.unique(split.train.labels)).astype(np.float64)
    given, features = classes if method.reads_classes else None, start.features["train"]
    hasher, fit_s = timed(lambda: method.fit(features, cell.bits, cell.seed, given))
    codes, encode_s = timed(lambda: {name: hasher.encode(start.features[name]) for name in ("queries", "database")})
    queries, database = (
        Side(None, getattr(split, name).labels, EncoderOutput(code, None, start.features[name], None))  # type: ignore[arg-type]
        for name, code in codes.items()
    )
    return Coded(
        queries, database, {"epoch": "none: fitted to features", "train_cpu_s": fit_s, "encode_cpu_s": encode_s}
    )


def train_method(cell: Cell, start: Start) -> Coded:
    """Train a method, from the backbone or from random weights."""
    variant, split = VARIANTS[cell.variant], start.split
    config = TrainConfig(
        method=cell.method,
        bits=cell.bits,
        seed=cell.seed,
        weights=str(start.backbone) if variant.pretrained else None,
        warmup_epochs=0,
        epochs=1 if start.trial else variant.epochs,
        batch_size=variant.batch_size,
        precision="bfloat16",
        augment=not variant.pretrained,
        device=start.device,
    )
    if variant.outfits:
        split = Split(*(Part(part.images, part.labels % OUTFITS) for part in split))
    labels = split.train.labels
    given = {"pairs": draw_pairs(labels, cell.seed)} if variant.by_pairs else {"labels": labels}
    encoder, train_s = timed(lambda: train(split.train.images, config=config, **given))
    queries, query_s = timed(lambda: encoded(encoder, split.queries))
    database, database_s = timed(lambda: encoded(encoder, split.database))
    encode_s = round(query_s + database_s, 2)
    facts = {"epoch": encoder.config.training["epoch"], "train_cpu_s": train_s, "encode_cpu_s": encode_s}
    return Coded(queries, database, facts)


def encoded(encoder: HashEncoder, part: Part) -> Side:
    return Side(None, part.labels, encoder.encode_all(part.images))


def run_cell(cell: Cell, start: Start, facts: dict[str, str]) -> dict:
    """Learn, encode, measure; `facts` are of this process. `average_precision` is an array, one number a query."""
    coded = (fit_method if METHODS[cell.method].fit else train_method)(cell, start)
    measures, measure_s = timed(lambda: measure(cell, coded.queries, coded.database))
    return {
        **dataclasses.asdict(cell),
        "title": METHODS[cell.method].title,
        "settings": VARIANTS[cell.variant].settings,
        "facts": facts,
        **{name: len(part.labels) for name, part in start.split._asdict().items()},
        **coded.facts,
        **(start.facts if VARIANTS[cell.variant].pretrained else {}),
        "evaluate_cpu_s": measure_s,
        **measures,
    }


def measure(cell: Cell, queries: Side, database: Side) -> dict:
    found = count_distances(queries.output.codes, database.output.codes, queries.labels, database.labels, cell.bits)
    report = dataclasses.asdict(method_report(found, database.output.codes, cell.bits))
    relaxed = database.output.relaxed
    maps = relaxed_maps(queries, database, found) if METHODS[cell.method].objective is not None else (None, None)
    reranked = cell.method in RERANKED_METHODS
    return {
        **{name: value for name, value in report.items() if name != "ms_a_query"},
        "map_relaxed": maps[0],
        "map_signs_of_those": maps[1],
        "share_above_0.99": None if relaxed is None else float((np.abs(relaxed) > 0.99).mean()),
        "rerank": measure_rerank(queries, database, cell.bits, found) if reranked else None,
        "average_precision": average_precision(found.total, found.relevant),
    }


def measure_rerank(queries: Side, database: Side, bits: int, found: Histograms) -> dict:
    """Precision of the first ten of a pool by codes and by features, over all queries, and the cost of re-ranking."""
    rows = np.arange(len(queries.labels))
    index = ScanIndex.build(database.output.codes, np.arange(len(database.labels)), bits=bits)
    pool = index.search(queries.output.codes[rows], min(POOL, len(index)), threads=1).ids
    stored = database.output.features.astype(np.float16)
    asked = queries.output.features[rows]
    parts = np.array_split(rows, -(-len(rows) // 50))
    order, seconds = timed(
        lambda: np.concatenate([rerank_pool(asked[r], pool[r], stored[pool[r]], RERANKED).ids for r in parts])
    )
    by_features = (database.labels[order] == queries.labels[:, None]).mean(axis=1)
    by_codes = precision_at(found.total, found.relevant, RERANKED)
    return {
        "pool": POOL,
        "queries": len(rows),
        "precision_by_codes": float(by_codes.mean()),
        "precision_by_features": float(by_features.mean()),
        "standard_error": float((by_features - by_codes).std(ddof=1) / np.sqrt(len(rows))),
        "cpu_ms_a_query": 1000 * seconds / len(rows),
    }


def cells_of(variants: list[str], methods: list[str] | None, bits: list[int], seeds: list[int]) -> list[Cell]:
    """Return every cell, first seeds first, so that the table is complete before the repetitions."""
    return [
        Cell(name, method, length, seed)
        for seed in seeds
        for name in variants
        for length in bits
        for method in VARIANTS[name].methods
        if (methods is None or method in methods)
        and (seed == SEEDS[0] or length in SEEDED_BITS or method in VARIANTS[name].several_seeds)
    ]


def results_in(folder: Path) -> list[dict]:
    """Return all finished cells, in the order of the tables."""
    results = [read_cell(path) for path in folder.glob("*_*_*_*.json")]
    methods, variants = list(METHODS), list(VARIANTS)

    def place(result: dict) -> tuple[int, ...]:
        return variants.index(result["variant"]), methods.index(result["method"]), result["bits"], result["seed"]

    return sorted(results, key=place)


def read_cell(path: Path) -> dict:
    """Read a cell; raise if it is of another method or other settings than its name has now.

    A cell that does not record its settings is assumed to have the present ones.
    """
    result = json.loads(path.read_bytes())
    variant, method = VARIANTS.get(result["variant"]), METHODS.get(result["method"])
    if variant is None or method is None:
        raise SystemExit(f"{path} is of {result['variant']} and {result['method']}, not both known here: move it away")
    expected = {"title": method.title, "settings": variant.settings}
    got = {"title": result["title"], "settings": result.get("settings", variant.settings)}
    if got != expected:
        raise SystemExit(f"{path} was made as {got}, its name now stands for {expected}: move it away, or run it again")
    return result


def facts_in(results: list[dict]) -> dict[str, str]:
    """Return how the cells were made: each fact, and the number of cells if they differ.

    A cell without a record is not a trial and was made on a CPU.
    """
    told = [result.get("facts", {"trial": "no", "device": "cpu"}) for result in results]
    facts = {}
    for name in dict.fromkeys(name for own in told for name in own):
        count = collections.Counter(own.get(name, "not recorded") for own in told)
        of_cells = [f"{value} ({number} cells)" for value, number in count.most_common()]
        facts[name] = next(iter(count)) if len(count) == 1 else "; ".join(of_cells)
    return facts


def compared(results: list[dict], folder: Path) -> list[dict]:
    """Compare each method with `REFERENCE` on the same queries, over the seeds that both have.

    Returns one entry for each variant, method and number of bits: the mean difference of average precision, and its
    standard error over the queries, each query's difference being its mean over the seeds. Cells without a file of
    average precisions are left out.
    """
    seeds_of: dict[tuple[str, int, str], dict[int, Path]] = collections.defaultdict(dict)
    for row in results:
        path = precisions_of(folder, Cell(row["variant"], row["method"], row["bits"], row["seed"]))
        if path.is_file():
            seeds_of[row["variant"], row["bits"], row["method"]][row["seed"]] = path
    entries = []
    for (variant, bits, method), own in seeds_of.items():
        other = seeds_of.get((variant, bits, REFERENCE), {})
        seeds = sorted(own.keys() & other.keys())
        if method == REFERENCE or not seeds:
            continue
        gain_Q = np.mean([np.load(own[seed]) - np.load(other[seed]) for seed in seeds], axis=0)
        gain_Q = gain_Q[~np.isnan(gain_Q)]
        entries.append(
            {
                "variant": variant,
                "method": method,
                "title": METHODS[method].title,
                "bits": bits,
                "seeds": seeds,
                "difference": float(gain_Q.mean()),
                "standard_error": float(gain_Q.std(ddof=1) / np.sqrt(len(gain_Q))),
            }
        )
    return entries


def precisions_of(folder: Path, cell: Cell) -> Path:
    """Return where the average precision of each query of a cell is kept."""
    return folder / f"{cell.name}.npy"


def page(results: list[dict], comparisons: Sequence[dict] = ()) -> str:
    """Return the tables, every number with its protocol."""
    lines = [
        "# Retrieval on Fashion-MNIST",
        "",
        "- backbone: small-cnn, trained to classify the split's training images (epochs: one learning rate cycle of "
        "mirrored and shifted images, then cycles of images as they are), then by each method on images as they are; "
        "where it starts from random weights, by each method on mirrored and shifted ones",
        f"- training: bfloat16, batches of {BATCH}, of pairs {VARIANTS['imbalanced'].batch_size}; all else as "
        "`TrainConfig` has it",
        *(f"- {name}: {value}" for name, value in facts_in(results).items()),
        "- mAP over the whole database; ties: the expected value over the orders of equal distances",
        "- epoch: the last; none was chosen by the queries",
        "- where there were several seeds: mean ± standard deviation, and their number",
        "- seconds and milliseconds: of processor time, one thread",
        f"- KSH learns from the pairs of {KSH_LABELLED:,} of the training images, however many there are, through "
        f"{KSH_ANCHORS} anchors; SDH has {SDH_ANCHORS:,} anchors",
        f"- relaxed codes and their signs are compared on the same queries, at most {RELAXED_QUERIES:,}",
        f"- re-ranking is measured for {'; '.join(METHODS[name].title for name in RERANKED_METHODS)}, on all queries "
        "unless a number says on how many; its gain stands with the paired standard error over the queries, of several "
        "seeds with their mean",
    ]
    for variant in VARIANTS.values():
        rows = [result for result in results if result["variant"] == variant.name]
        if rows:
            note = [variant.note, ""] if variant.note else []
            lines += ["", f"## {variant.name}: {variant.title}", "", *note, protocol(rows), *tables(rows)]
            lines += comparison_table([entry for entry in comparisons if entry["variant"] == variant.name])
    return "\n".join(lines) + "\n"


def protocol(rows: list[dict]) -> str:
    backbones = {row["seed"]: row["backbone_cpu_s"] for row in rows if "backbone_cpu_s" in row}
    seconds = ", ".join(f"{backbones[seed]:.0f} s for seed {seed}" for seed in sorted(backbones))
    learned = f"{rows[0]['backbone_epochs']} epochs of classification, in {seconds}" if backbones else "random weights"
    epochs = sorted({row["epoch"] for row in rows})
    return (
        f"Backbone: {learned}. Epoch that counts: {'; '.join(epochs)}. {rows[0]['queries']:,} queries, "
        f"{rows[0]['train']:,} images to train on, {rows[0]['database']:,} in the database."
    )


def tables(rows: list[dict]) -> list[str]:
    columns = {
        "mAP": lambda row: row["map_all"],
        "Precision within radius 2": lambda row: row["precision_radius_2"],
        "mAP of relaxed codes less that of signs": lambda row: less(row["map_relaxed"], row.get("map_signs_of_those")),
        "Share of |h| above 0.99 in the database": lambda row: row["share_above_0.99"],
        "Seconds to train, after the backbone": lambda row: row["train_cpu_s"],
    }
    lines = []
    for title, value in columns.items():
        lines += table(title, rows, lambda own, value=value: shown([value(row) for row in own]))
    lines += rerank_tables([row for row in rows if row["rerank"]])
    return lines


def comparison_table(entries: list[dict]) -> list[str]:
    title = f"mAP less that of {METHODS[REFERENCE].title}, and its standard error, paired by query"
    return table(
        title, entries, lambda own: f"{own[0]['difference']:+.4f} ± {own[0]['standard_error']:.4f}" + seeds_told(own[0])
    )


def seeds_told(entry: dict) -> str:
    count = len(entry["seeds"])
    return f" ({count} seed{'s' * (count > 1)})"


def rerank_tables(rows: list[dict]) -> list[str]:
    def of(key: str) -> Callable[[list[dict]], str]:
        return lambda own: shown([row["rerank"][key] for row in fullest(own)]) + asked(own)

    return [
        *table(f"Precision of the first {RERANKED}, by codes", rows, of("precision_by_codes")),
        *table(f"The same after re-ranking the first {POOL:,} by features", rows, of("precision_by_features")),
        *table("Gain by re-ranking, and its standard error", rows, lambda own: gain(fullest(own)) + asked(own)),
        *table("Milliseconds a query of that re-ranking", rows, of("cpu_ms_a_query")),
    ]


def rerank_queries(row: dict) -> int:
    return row["rerank"].get("queries", min(RERANK_QUERIES, row["queries"]))


def fullest(rows: list[dict]) -> list[dict]:
    """Keep the cells with the largest number of queries, so that means are over equal numbers of queries."""
    most = max(rerank_queries(row) for row in rows)
    return [row for row in rows if rerank_queries(row) == most]


def asked(rows: list[dict]) -> str:
    """Return the number of queries, if not all were asked."""
    most = max(rerank_queries(row) for row in rows)
    return f" ({most:,} queries)" if most < rows[0]["queries"] else ""


def gain(rows: list[dict]) -> str:
    found = [row["rerank"] for row in rows]
    mean = statistics.mean(own["precision_by_features"] - own["precision_by_codes"] for own in found)
    errors = [own.get("standard_error") for own in found]
    return f"{mean:.4f}" if None in errors else f"{mean:.4f} ± {statistics.mean(errors):.4f}"


def table(title: str, rows: list[dict], text_of: Callable[[list[dict]], str]) -> list[str]:
    """One row for each method, one column for each number of bits; `text_of` gets the cells of all seeds."""
    bits = sorted({row["bits"] for row in rows})
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        by_bits = [[row for row in own if row["bits"] == length] for length in bits]
        cells = [text_of(same) if same else "" for same in by_bits]
        if any(cells):
            lines.append(f"| {own[0]['title']} | {' | '.join(cells)} |")
    head = ["", f"{title}:", "", f"| method | {' | '.join(f'{b} bits' for b in bits)} |", f"|---|{'---|' * len(bits)}"]
    return [*head, *lines] if lines else []


def less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def shown(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    digits = 1 if max(known) > 10 else 4
    mean = f"{statistics.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f} ({len(known)})"


def facts_of(options: argparse.Namespace) -> dict[str, str]:
    """Return how this process makes cells, besides the settings of their variants."""
    return {
        "trial": "no" if options.images is None else f"YES: {options.images} images of each part, one epoch",
        "device": options.device,
        "machine": f"{cpu_name()}, {os.cpu_count()} cores shared with other work, {torch.get_num_threads()} thread(s)",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
        "made on": time.strftime("%Y-%m-%d"),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_report(out: Path, folder: Path) -> None:
    results = results_in(folder)
    comparisons = compared(results, folder)
    titles = {name: variant.title for name, variant in VARIANTS.items()}
    content = {"facts": facts_in(results), "variants": titles, "cells": results, "comparisons": comparisons}
    write_atomically(out.with_name(out.name + ".json"), (json.dumps(content, indent=1) + "\n").encode())
    write_atomically(out.with_name(out.name + ".md"), page(results, comparisons).encode())


def draw(out: Path, results: list[dict]) -> None:
    """Plot mAP and precision within radius 2 by bits: one line for each method, one picture for each variant."""
    for variant in dict.fromkeys(result["variant"] for result in results):
        rows = [result for result in results if result["variant"] == variant]
        for key, name in (("map_all", "mAP"), ("precision_radius_2", "precision within radius 2")):
            lines = {title: by_bits(rows, title, key) for title in dict.fromkeys(row["title"] for row in rows)}
            save_lines(lines, out.with_name(f"{out.name}.{variant}.{key}.png"), title=variant, x="bits", y=name)


def by_bits(rows: list[dict], title: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    own = [row for row in rows if row["title"] == title]
    bits = sorted({row["bits"] for row in own})
    return np.array(bits), np.array([statistics.mean(row[key] for row in own if row["bits"] == b) for b in bits])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--method", nargs="*", choices=(*ALL_METHODS, PREDICTED.name))
    parser.add_argument("--bits", nargs="*", type=int, default=list(BITS))
    parser.add_argument("--seed", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--images", type=int, help="a trial: cut every part to this many images, one epoch")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    trial = "" if options.images is None else f".trial-{options.images}"
    out = options.out.with_name(f"{options.out.name}{trial}")
    folder = out.with_name(f"{out.name}.cells")
    folder.mkdir(parents=True, exist_ok=True)
    # Refuse cells of other settings before hours of work, not after.
    results_in(folder)
    cells = cells_of(options.variant, options.method, options.bits, options.seed)
    start_of = functools.lru_cache(maxsize=1)(
        lambda split, seed: Start(split, seed, folder, options.images, options.device)
    )
    for number, cell in enumerate(cells, 1):
        path = folder / f"{cell.name}.json"
        if not path.is_file():
            result = run_cell(cell, start_of(VARIANTS[cell.variant].split, cell.seed), facts_of(options))
            np.save(precisions_of(folder, cell), result.pop("average_precision"))
            write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
            write_report(out, folder)
            print(f"{number}/{len(cells)} {cell.name}: mAP {result['map_all']:.4f}", flush=True)
    write_report(out, folder)
    draw(out, results_in(folder))


if __name__ == "__main__":
    main()
