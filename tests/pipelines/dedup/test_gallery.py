"""The page of near-duplicates: whatever the stored URIs name, the page is written."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
from PIL import Image

from hashlight.pipelines.dedup import gallery
from hashlight.pipelines.jobs import chaos


def test_a_gallery_survives_whatever_its_uris_name(tmp_path, monkeypatch):
    """A decoder that dies, a missing file, a string that is not a file name; and then it stops trying."""
    monkeypatch.setattr(gallery, "_MAX_FAILURES", 4)
    faults = tmp_path / "faults"
    faults.mkdir()
    for name in ("good", "killer", "late"):
        Image.fromarray(np.full((300, 200), len(name), np.uint8)).save(tmp_path / f"{name}.png")
    killer = hashlib.blake2b((tmp_path / "killer.png").read_bytes(), digest_size=8).hexdigest()
    rule = {"step": "decode", "key": killer, "do": "segfault", "times": 9}
    (faults / "rules.json").write_text(json.dumps([rule]))
    monkeypatch.setenv(chaos.VARIABLE, str(faults))
    uris = ["good.png", "killer.png", "gone.png", "a\0b", "nowhere://x/y", "s3://?", "late.png"]
    items = [{"uri": str(tmp_path / uri) if uri.endswith("png") else uri, "picture": None} for uri in uris]
    assert gallery._draw_missing(items) == 6
    drawn = [item["picture"] for item in items]
    assert Image.open(io.BytesIO(drawn[0])).size == (75, 112)
    assert drawn[1:] == [None] * 6, "the last one was not tried"
