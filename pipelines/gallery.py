"""A page of clusters of near-duplicates: one file that loads nothing, runs nothing and shows what is stored as text."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from typing import Any

import numpy as np
import pyarrow as pa

from encoders.errors import ImageError
from encoders.images import decode_image
from engine.collection import Collection
from pipelines.reading import read_uri

CLUSTERS = 50
MEMBERS = 12
_SIDE = 112
_KINDS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp"}

_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2rem;color:#222;background:#fff}"
    "section{margin:0 0 2rem}h2{font-size:1rem}ul{display:flex;flex-wrap:wrap;gap:.75rem;list-style:none;padding:0}"
    "li{width:124px;overflow-wrap:anywhere;font-size:12px}li.kept{outline:3px solid #1f77b4;outline-offset:3px}"
    "img,.none{display:block;width:112px;height:112px;object-fit:contain;background:#eee}"
)


def gallery_page(collection: Collection, clusters: pa.Table, *, radius: int) -> str:
    """Return the page of the largest clusters, as `pipelines.dedup.CLUSTERS` has them, the largest first.

    Of each at most `MEMBERS` images are shown: the representative, framed, then the nearest to it.
    """
    names, first, sizes = np.unique(clusters["cluster"].to_numpy(), return_index=True, return_counts=True)
    order = np.argsort(first)
    sections = [
        _section(collection, clusters.slice(int(first[c]), int(sizes[c])), rank)
        for rank, c in enumerate(order[:CLUSTERS], start=1)
    ]
    style_hash = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'"
    told = (
        f"{len(names):,} clusters of {len(clusters):,} images within a Hamming radius of {radius}, of "
        f"{len(collection):,} in {html.escape(collection.location)}, version {collection.version}; "
        f"{len(sections)} shown."
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Near-duplicates</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Near-duplicates</h1>\n"
        f"<p>{told}</p>\n{''.join(sections)}</body>\n</html>\n"
    )


def _section(collection: Collection, members: pa.Table, rank: int) -> str:
    kept = members["representative"][0].as_py()
    items = _nearest_first(collection, members["id"].to_numpy(), kept)
    thumbnails = collection.thumbnails_of(np.array([item["id"] for item in items], np.int64))
    tiles = [_tile(item, thumbnail, kept) for item, thumbnail in zip(items, thumbnails, strict=True)]
    shown = "" if len(tiles) == len(members) else f", {len(tiles)} shown"
    return (
        f"<section>\n<h2>{rank}. Cluster {members['cluster'][0].as_py()}: {len(members):,} images{shown}</h2>\n"
        f"<ul>\n{''.join(tiles)}</ul>\n</section>\n"
    )


def _nearest_first(collection: Collection, ids: np.ndarray, kept: int) -> list[dict[str, Any]]:
    """Return what is stored of the representative and the members nearest to it, with their `distance` from it."""
    stored = collection.get([kept, *ids[ids != kept][: 20 * MEMBERS].tolist()])
    codes = np.frombuffer(b"".join(stored["code"].to_pylist()), "<u8").reshape(len(stored), -1)
    distances = np.bitwise_count(codes ^ codes[:1]).sum(axis=1, dtype=np.int64)
    distances[0] = -1  # before those that are equal to it
    order = np.lexsort((stored["id"].to_numpy(), distances))[:MEMBERS]
    rows = stored.take(order).drop_columns(["code"]).to_pylist()
    return [{**row, "distance": max(int(distances[place]), 0)} for row, place in zip(rows, order, strict=True)]


def _tile(item: dict[str, Any], thumbnail: bytes | None, kept: int) -> str:
    uri = item.get("uri")
    picture = _data_uri(thumbnail) if thumbnail else _draw(uri)
    shown = f'<img alt="image {item["id"]}" src="{picture}">' if picture else '<span class="none"></span>'
    text = f"{item['id']}" + (f"<br>distance {item['distance']}" if item["id"] != kept else "<br>kept")
    named = f"<br>{html.escape(str(uri))}" if uri else ""
    kind = ' class="kept"' if item["id"] == kept else ""
    return f"<li{kind}>{shown}{text}{named}</li>\n"


def _draw(uri: str | None) -> str | None:
    """Read an image and make it small; None if it is not there any more, or cannot be decoded."""
    if not uri:
        return None
    try:
        image = decode_image(read_uri(uri)).convert("RGB")
    except (OSError, ImageError):
        return None
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return _data_uri(buffer.getvalue())


def _data_uri(data: bytes) -> str | None:
    kind = next((kind for magic, kind in _KINDS.items() if data.startswith(magic)), None)
    return None if kind is None else f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
