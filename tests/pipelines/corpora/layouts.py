"""Corpora as other tools write them, small: their layouts, columns and types, made by hand."""

from __future__ import annotations

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

# The columns of img2dataset 1.47 for a list with captions, in its order.
IMG2DATASET = pa.schema(
    {
        "caption": pa.string(),
        "url": pa.string(),
        "key": pa.string(),
        "status": pa.string(),
        "error_message": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "original_width": pa.int32(),
        "original_height": pa.int32(),
        "exif": pa.string(),
        "sha256": pa.string(),
    }
)
STATUSES = ("success", "failed_to_download", "success", "failed_to_resize", "success")


def png(value):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "PNG")
    return buffer.getvalue()


def value_of(data):
    return Image.open(io.BytesIO(data)).getpixel((0, 0))


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def img2dataset_rows(shard):
    """The rows of a shard: three good ones, one that failed to download, and one that failed to resize."""
    for number, status in enumerate(STATUSES):
        good = status == "success"
        yield {
            "caption": f"picture {number}",
            "url": f"https://example.org/{shard}/{number}.jpg",
            "key": f"{shard:05d}{number:04d}",
            "status": status,
            "error_message": None if good else "HTTP Error 404: Not Found",
            "width": 4 if good else None,
            "height": 4 if good else None,
            "original_width": 10 * shard + number if good else None,
            "original_height": 9 if good else None,
            "exif": "{}" if good else None,
            "sha256": f"{number:064d}" if good else None,
        }


def write_img2dataset(folder, layout, *, shards=2):
    """Write what img2dataset writes with `--output_format LAYOUT --encode_format png`."""
    folder.mkdir()
    for shard in range(shards):
        rows = list(img2dataset_rows(shard))
        name = f"{shard:05d}"
        images = {row["key"]: png(10 * shard + n) for n, row in enumerate(rows) if row["status"] == "success"}
        schema = IMG2DATASET.append(pa.field("png", pa.binary())) if layout == "parquet" else IMG2DATASET
        pq.write_table(pa.Table.from_pylist([{**row, "png": images.get(row["key"])} for row in rows], schema),
                       folder / f"{name}.parquet", row_group_size=2)  # fmt: skip
        if layout == "webdataset":
            with tarfile.open(folder / f"{name}.tar", "w") as tar:
                for row in rows:
                    if row["key"] in images:
                        add(tar, f"{row['key']}.json", json.dumps(row, indent=4).encode())
                        add(tar, f"{row['key']}.png", images[row["key"]])
                        add(tar, f"{row['key']}.txt", row["caption"].encode())
        if layout == "files":
            (folder / name).mkdir()
            for row in rows:
                if row["key"] in images:
                    (folder / name / f"{row['key']}.png").write_bytes(images[row["key"]])
                    (folder / name / f"{row['key']}.txt").write_text(row["caption"])
                    (folder / name / f"{row['key']}.json").write_text(json.dumps(row, indent=4))
        stats = {"count": 5, "successes": 3, "failed_to_download": 1, "failed_to_resize": 1, "status_dict": {}}
        (folder / f"{name}_stats.json").write_text(json.dumps(stats))
    return folder


def hugging_face_schema(columns, features):
    """The schema that `datasets` writes into Parquet: with what it knows of the columns in the metadata."""
    return pa.schema(columns).with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


IMAGE_STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
