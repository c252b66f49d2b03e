"""A page of clusters of near-duplicates: one file that loads nothing, runs nothing and shows what is stored as text.

Pictures are the stored thumbnails, or the images at the stored `uri`, read and decoded with the same guards as a
corpus. The page is a by-product: pictures that cannot be loaded are left out and counted, and loading has a time limit.
"""

from __future__ import annotations

import base64
import hashlib
import html
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.engine.collection.collection import Collection
from hashlight.engine.places.uris import without_credentials
from hashlight.engine.wording import counted
from hashlight.pipelines.corpora.corpus import read_uri
from hashlight.pipelines.decoding.pool import DecodePool
from hashlight.pipelines.decoding.worker import DecodeLimits

logger = logging.getLogger(__name__)

CLUSTERS = 50
MEMBERS = 12
_SIDE = 112
# Limits on loading pictures: where a store is down or files are gone, the others will fail as well.
_MAX_FAILURES = 50
_MAX_SECONDS = 120.0
_LIMITS = DecodeLimits(seconds=5.0, memory_bytes=1 << 30)
_KINDS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp"}

_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2rem;color:#222;background:#fff}"
    "section{margin:0 0 2rem}h2{font-size:1rem}ul{display:flex;flex-wrap:wrap;gap:.75rem;list-style:none;padding:0}"
    "li{width:124px;overflow-wrap:anywhere;font-size:12px}li.kept{outline:3px solid #1f77b4;outline-offset:3px}"
    "img,.none{display:block;width:112px;height:112px;object-fit:contain;background:#eee}"
)


def gallery_page(collection: Collection, clusters: pa.Table, *, radius: int) -> str:
    """Return the page of the largest clusters, as `pipelines.dedup.dedup.CLUSTERS` has them, the largest first.

    At most `MEMBERS` images of each are shown: the representative, framed, then the nearest to it.
    """
    names, first, sizes = np.unique(clusters["cluster"].to_numpy(), return_index=True, return_counts=True)
    order = np.argsort(first)[:CLUSTERS]
    members = [clusters.slice(int(first[c]), int(sizes[c])) for c in order]
    shown = [_nearest_first(collection, one["id"].to_numpy(), one["representative"][0].as_py()) for one in members]
    missing = _draw_missing([item for items in shown for item in items])
    sections = [_section(*pair, rank) for rank, pair in enumerate(zip(members, shown, strict=True), start=1)]
    style_hash = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'"
    told = (
        f"{counted(len(names), 'cluster')} of {counted(len(clusters), 'image')} within a Hamming radius of {radius}, "
        f"of {len(collection):,} in {html.escape(without_credentials(collection.location))}, version "
        f"{collection.version}; {len(sections)} shown."
        + (f" {counted(missing, 'picture')} could not be loaded." if missing else "")
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Near-duplicates</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Near-duplicates</h1>\n"
        f"<p>{told}</p>\n{''.join(sections)}</body>\n</html>\n"
    )


def _section(members: pa.Table, items: list[dict[str, Any]], rank: int) -> str:
    tiles = [_tile(item, members["representative"][0].as_py()) for item in items]
    shown = "" if len(tiles) == len(members) else f", {len(tiles)} shown"
    return (
        f"<section>\n<h2>{rank}. Cluster {members['cluster'][0].as_py()}: {len(members):,} images{shown}</h2>\n"
        f"<ul>\n{''.join(tiles)}</ul>\n</section>\n"
    )


def _nearest_first(collection: Collection, ids: np.ndarray, kept: int) -> list[dict[str, Any]]:
    """Return what is stored of the representative and the members nearest to it.

    Each also has its `distance` from the representative and its `picture` (bytes; None if none is stored).
    """
    stored = collection.get([kept, *ids[ids != kept][: 20 * MEMBERS].tolist()])
    codes = np.frombuffer(b"".join(stored["code"].to_pylist()), "<u8").reshape(len(stored), -1)
    distances = np.bitwise_count(codes ^ codes[:1]).sum(axis=1, dtype=np.int64)
    distances[0] = -1  # so that it comes before those with the same code
    order = np.lexsort((stored["id"].to_numpy(), distances))[:MEMBERS]
    rows = stored.take(order).drop_columns(["code"]).to_pylist()
    pictures = collection.thumbnails_of(stored["id"].to_numpy()[order])
    return [
        {"id": row["id"], "uri": row.get("uri"), "distance": max(int(distances[place]), 0), "picture": picture}
        for row, place, picture in zip(rows, order, pictures, strict=True)
    ]


def _tile(item: dict[str, Any], kept: int) -> str:
    uri = item["uri"]
    picture = _data_uri(item["picture"]) if item["picture"] else None
    shown = f'<img alt="image {item["id"]}" src="{picture}">' if picture else '<span class="none"></span>'
    text = f"{item['id']}" + (f"<br>distance {item['distance']}" if item["id"] != kept else "<br>kept")
    named = f"<br>{html.escape(str(uri))}" if uri else ""
    kind = ' class="kept"' if item["id"] == kept else ""
    return f"<li{kind}>{shown}{text}{named}</li>\n"


def _draw_missing(items: list[dict[str, Any]]) -> int:
    """Set the `picture` of those that have none, from their `uri`; return how many had one that could not be drawn."""
    wanted = [item for item in items if item["uri"] and not item["picture"]]
    if not wanted:
        return 0
    rule = Preprocessing(size=1, channels=1, mean=(0.0,), std=(1.0,))
    try:
        # Batches of one, so that what was drawn is kept when time is up.
        with DecodePool(rule, batch_size=1, thumbnail=_SIDE, limits=_LIMITS) as pool:
            for batch in pool.decode(_read_some([str(item["uri"]) for item in wanted])):
                for place, picture in zip(batch.good.tolist(), batch.thumbnails, strict=True):
                    wanted[place]["picture"] = picture
    except Exception as error:  # The pictures are only a by-product.
        logger.warning("the gallery's pictures cannot all be drawn: %s", error)
    return sum(item["picture"] is None for item in wanted)


def _read_some(uris: list[str]) -> Iterator[bytes | OSError]:
    """Read the files at URIs, until too many have failed or it has taken too long."""
    failures, end = 0, time.monotonic() + _MAX_SECONDS
    for uri in uris:
        if failures >= _MAX_FAILURES or time.monotonic() > end:
            return
        try:
            yield read_uri(uri)
        except Exception as error:  # A stored `uri` may be any string.
            failures += 1
            yield OSError(str(error))


def _data_uri(data: bytes) -> str | None:
    kind = next((kind for magic, kind in _KINDS.items() if data.startswith(magic)), None)
    return None if kind is None else f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
