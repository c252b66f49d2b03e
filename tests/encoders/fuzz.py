"""Mutated files of an encoder under the right fingerprint: refused by name, or an encoder that encodes.

Run as a program, as `tests.engine.storage.fuzz` is: `python -m tests.encoders.fuzz FOLDER FIRST COUNT KIND...`
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

import numpy as np

from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import EncoderError
from tests.encoders.test_encoder import build
from tests.engine.storage.forging import sha256_bytes
from tests.engine.storage.fuzz import mutate, mutate_text

KINDS = ("config.json", "model.safetensors", "model.onnx")
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 28, 28), dtype=np.uint8)


def fingerprint(config, weights):
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    return sha256_bytes(sha256_bytes(canonical) + sha256_bytes(weights)).hex()


def put(folder, texts, network):
    """Write an encoder, with the hashes of what is written if its configuration can have them."""
    text = texts["config.json"]
    try:
        config = {key: value for key, value in json.loads(text).items() if key != "fingerprint"}
        if network is not texts.get("model.onnx"):
            config["onnx"]["sha256"] = sha256_bytes(texts["model.onnx"]).hex()
        text = json.dumps(config | {"fingerprint": fingerprint(config, texts["model.safetensors"])}).encode()
    except (ValueError, AttributeError):
        pass
    (folder / "config.json").write_bytes(text)
    for name in texts.keys() - {"config.json"}:
        (folder / name).write_bytes(texts[name])


def try_one(folder, pristine, kind, number):
    """Return "refused" or "answered"; anything else is an error."""
    rng = np.random.default_rng([number, KINDS.index(kind)])
    change = mutate_text if kind == "config.json" else mutate
    put(folder, pristine | {kind: change(rng, pristine[kind])}, pristine.get("model.onnx"))
    try:
        encoder = HashEncoder.load(folder)
    except EncoderError as error:
        if str(folder) not in str(error):
            raise AssertionError("refused, but not by name") from error
        return "refused"
    codes = encoder.encode(IMAGES)
    assert (codes.dtype, codes.shape) == (np.uint64, (2, -(-encoder.bits // 64)))
    np.testing.assert_array_equal(codes, encoder.encode(IMAGES))
    return "answered"


def main(place, first, count, *kinds):
    outcomes = collections.Counter()
    for kind in kinds:
        folder, encoder = Path(place, kind), build()
        # Of an exported encoder, the weights are not looked at until it runs in torch.
        (encoder if kind == "model.safetensors" else encoder.exported(IMAGES[..., None])).save(folder)
        pristine = {path.name: path.read_bytes() for path in folder.iterdir()}
        for number in range(int(first), int(first) + int(count)):
            sys.stdout.write(f"{kind} {number}\n")
            sys.stdout.flush()
            outcomes[f"{kind} {try_one(folder, pristine, kind, number)}"] += 1
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
