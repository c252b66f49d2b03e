"""Learned codes for searching: HashNet encoders of several lengths, and their codes of Fashion-MNIST.

    python benchmarks/learned_codes.py --out FOLDER --bits 64 128 256

Each encoder is trained on 5,000 packaged images. `database-BITS.npy` holds the 60,000 images of the train split,
`queries-BITS.npy` the 10,000 of the test split, as packed bytes (N, bits / 8) uint8.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from hashlight.encoders.training.train import TrainConfig, train
from hashlight.pipelines.corpora.fashion_mnist import load_fashion_mnist

TRAINED_ON = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 128, 256])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    images, labels = load_fashion_mnist("test", options.out)
    database, _ = load_fashion_mnist("train", options.out)
    for bits in options.bits:
        encoder = train(images[:TRAINED_ON], labels[:TRAINED_ON], TrainConfig(bits=bits))
        for name, pictures in (("database", database), ("queries", images)):
            codes = encoder.encode(pictures).astype("<u8").view(np.uint8)[:, : bits // 8]
            np.save(options.out / f"{name}-{bits}.npy", np.ascontiguousarray(codes))
            print(f"{name}, {bits} bits: {len(np.unique(codes, axis=0)):,} distinct of {len(codes):,}")


if __name__ == "__main__":
    main()
