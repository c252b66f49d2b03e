"""HashNet beside the HashNet of DeepHash-pytorch: one network, as many epochs, the demo's split, three seeds.

    OMP_NUM_THREADS=1 python -m benchmarks.hashnet_peer --out benchmarks/results/hashnet_peer_NAME_DATE

The split is that of `hashlight demo`: 1,000 queries, 5,000 images to train on, 9,000 in the database. All rows of a
seed start from one backbone, which has learned to classify as `TrainConfig` has it, and hash for as many epochs. What
is done is kept in `OUT.cells/`, and not done again.

The peer's loss is written here from its source (github.com/swuxyj/DeepHash-pytorch, HashNet.py): HashNet's weighted
likelihood, between each batch and the last codes of all training images, with a square-root continuation. Its own
optimizer (RMSprop at 1e-5, for 5,000 epochs) would hardly move the hash layer in so few, so it gets AdamW with one
cycle, as HashNet here has. It mirrors and shifts in all epochs; a third row leaves that out when it hashes, as HashNet
here does.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from benchmarks.reporting import environment, save_report
from hashlight.encoders.data.images import decode_image
from hashlight.encoders.data.supervision.protocol import LABELS, Supervision
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.losses.objective import Objective, classes_of
from hashlight.encoders.methods import METHODS, Method
from hashlight.encoders.metrics import average_precision
from hashlight.encoders.training.train import EPOCHS_AFTER_WARM_UP, WARMUP_EPOCHS, TrainConfig, train
from hashlight.pipelines.corpora.fashion_mnist import split_sample
from hashlight.pipelines.evaluation.measure import count_distances

OURS, PEER = "hashnet", "deephash-pytorch"


class Part(NamedTuple):
    images: np.ndarray
    labels: np.ndarray


class PeerHashNet(Objective):
    """The weighted likelihood of pairs of a batch and all images, as they were coded when they were last seen.

    Images that were not seen yet have no label and a code of zeros, so they count as dissimilar, as in the peer's code;
    an image is also paired with itself.

    Parameters
    ----------
    num_images, bits, num_classes : int
    """

    def __init__(self, num_images: int, bits: int, num_classes: int):
        super().__init__()
        self._slope = 10.0 / bits
        self.code_NK: torch.Tensor
        self.class_NC: torch.Tensor
        self.register_buffer("code_NK", torch.zeros(num_images, bits))
        self.register_buffer("class_NC", torch.zeros(num_images, num_classes))

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        code_BK = torch.tanh(beta * output_BK)
        class_BC = classes_of(supervision, index_B, output_BK.device)
        self.code_NK[index_B] = code_BK.detach()
        self.class_NC[index_B] = class_BC.to(self.class_NC.dtype)
        similar_BN = class_BC.to(self.class_NC.dtype) @ self.class_NC.T > 0
        return peer_loss(self._slope * code_BK @ self.code_NK.T, similar_BN)


def peer_loss(logit_BN: torch.Tensor, similar_BN: torch.Tensor) -> torch.Tensor:
    """Return the mean of w (log(1 + exp(logit)) - s logit), w being |S| / |S1| or |S| / |S0|."""
    share = similar_BN.to(logit_BN.dtype).mean().clamp(min=1 / similar_BN.numel(), max=1 - 1 / similar_BN.numel())
    weight_BN = torch.where(similar_BN, 1 / share, 1 / (1 - share))
    return functional.binary_cross_entropy_with_logits(logit_BN, similar_BN.to(logit_BN.dtype), weight=weight_BN)


def parts_of_demo() -> dict[str, Part]:
    """Return the demo's images and labels: train, database and queries."""
    return {
        name: Part(
            np.stack([np.asarray(decode_image(png)) for png in table["image"].to_pylist()]), table["label"].to_numpy()
        )
        for name, table in split_sample().items()
    }


def precisions(encoder: HashEncoder, parts: dict[str, Part]) -> np.ndarray:
    """Return the average precision of each query over the whole database."""
    queries, database = (parts[name] for name in ("queries", "database"))
    codes = encoder.encode(queries.images), encoder.encode(database.images)
    found = count_distances(*codes, queries.labels, database.labels, encoder.bits)
    return average_precision(found.total, found.relevant)


def add_peer(num_images: int) -> None:
    """Make the peer's loss a method that `train` knows."""
    METHODS[PEER] = Method(
        name=PEER,
        title="HashNet of DeepHash-pytorch",
        learns_from=(LABELS,),
        objective=lambda s: PeerHashNet(num_images, s.bits, s.num_classes),
        continues=True,
        beta=None,
    )


def rows_of(config: TrainConfig, backbone: Path) -> dict[str, TrainConfig]:
    """Return the settings of each row; all start from the same backbone."""
    start = dataclasses.replace(config, weights=str(backbone), warmup_epochs=0, epochs=EPOCHS_AFTER_WARM_UP)
    peer = dataclasses.replace(start, method=PEER, schedule="released")
    return {
        OURS: dataclasses.replace(start, augment=False),
        "peer, on mirrored and shifted images": peer,
        "peer, on images as they are": dataclasses.replace(peer, augment=False),
    }


def run_cell(parts: dict[str, Part], config: TrainConfig, name: str, folder: Path) -> np.ndarray:
    """Train the backbone of this seed, unless that is done, and a row; return the average precisions."""
    images, labels = parts["train"]
    backbone = folder / f"backbone_{config.seed}.safetensors"
    if not backbone.is_file():
        train(images, labels, dataclasses.replace(config, method="lsh", bits=8)).save_backbone(backbone)
    return precisions(train(images, labels, rows_of(config, backbone)[name]), parts)


def run(parts: dict[str, Part], config: TrainConfig, seeds: Sequence[int], folder: Path) -> dict[str, np.ndarray]:
    """Return the average precisions (seeds, queries) of each row; what `folder` has is read from there."""
    found = {}
    for number, name in enumerate(rows_of(config, folder)):
        values = []
        for seed in seeds:
            path = folder / f"{seed}_{number}.npy"
            if not path.is_file():
                value_Q = run_cell(parts, dataclasses.replace(config, seed=seed), name, folder)
                np.save(path, value_Q)
                print(f"seed {seed}, {name}: mAP {value_Q.mean():.4f}", flush=True)
            values.append(np.load(path))
        found[name] = np.stack(values)
    return found


def compared(found: dict[str, np.ndarray]) -> list[dict]:
    """Compare HashNet here with each other row: by seed, and its standard error over the queries."""
    entries = []
    for name, value_SQ in found.items():
        if name != OURS:
            gain_SQ = found[OURS] - value_SQ
            error = gain_SQ.mean(axis=0).std(ddof=1) / np.sqrt(gain_SQ.shape[1])
            entries.append({"than": name, "by_seed": gain_SQ.mean(axis=1).tolist(), "standard_error": float(error)})
    return entries


def page(document: dict) -> str:
    """Return the report."""
    seeds = document["seeds"]
    lines = [
        "# HashNet beside DeepHash-pytorch's HashNet",
        "",
        f"{document['machine']}, {document['versions']}, {document['threads']} thread(s), {document['precision']}.",
        f"Fashion-MNIST's test split as in the demo, {document['bits']} bits: {WARMUP_EPOCHS} epochs of classifying, "
        f"then {EPOCHS_AFTER_WARM_UP} of hashing from the same backbone. Mean average precision over the whole "
        "database. The peer has its own loss, pairs and continuation, and the optimizer and rates of HashNet here.",
        "",
        f"| row | mean ± standard deviation | {' | '.join(f'seed {seed}' for seed in seeds)} |",
        "|---|---|" + "---|" * len(seeds),
    ]
    for name, values in document["map"].items():
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        own = " | ".join(f"{value:.4f}" for value in values)
        lines.append(f"| {name} | {statistics.mean(values):.4f}{spread} | {own} |")
    lines.append("")
    for entry in document["comparisons"]:
        by_seed = ", ".join(f"{value:+.4f}" for value in entry["by_seed"])
        lines.append(
            f'- {OURS} less "{entry["than"]}": {statistics.mean(entry["by_seed"]):+.4f}, standard error over the '
            f"queries {entry['standard_error']:.4f}; by seed {by_seed}"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--bits", type=int, default=TrainConfig().bits)
    parser.add_argument("--precision", default=TrainConfig().precision)
    options = parser.parse_args(arguments)
    folder = Path(f"{options.out}.cells")
    folder.mkdir(parents=True, exist_ok=True)
    parts = parts_of_demo()
    add_peer(len(parts["train"].labels))
    config = TrainConfig(bits=options.bits, precision=options.precision)
    found = run(parts, config, options.seeds, folder)
    document = environment("torch") | {
        "threads": torch.get_num_threads(),
        "bits": config.bits,
        "precision": config.precision,
        "seeds": options.seeds,
        "map": {name: value_SQ.mean(axis=1).tolist() for name, value_SQ in found.items()},
        "comparisons": compared(found),
    }
    save_report(options.out, document, page(document))


if __name__ == "__main__":
    main()
