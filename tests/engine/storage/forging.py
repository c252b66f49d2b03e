"""Writing other contents into a collection with all checksums right, as whoever forges one would."""

from __future__ import annotations

import hashlib
import json
import os


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def sha256_bytes(data):
    return hashlib.sha256(data).digest()


def replace(path, data):
    """Give a file other contents, in a new inode: maps of the old ones keep what they had."""
    aside = path.with_name(path.name + ".aside")
    aside.write_bytes(data)
    os.replace(aside, path)


def manifest_of(collection):
    return collection / "manifests" / (collection / "CURRENT").read_text().split()[0]


def publish(collection, document):
    """Write the live manifest, and name it in CURRENT."""
    publish_bytes(collection, json.dumps(document, indent=1).encode())


def publish_bytes(collection, data):
    """Write any bytes as the live manifest, under the name that their hash gives them, and name it in CURRENT."""
    name = f"{manifest_of(collection).name[:8]}-{sha256(data)}.json"
    replace(collection / "manifests" / name, data)
    replace(collection / "CURRENT", f"{name}\n".encode())


def publish_first_format(collection, *, own_checksum):
    """Write the live manifest as the first releases did, of which only the later ones gave it its own checksum."""
    document = json.loads(manifest_of(collection).read_bytes())
    shards = [{key: shard[key] for key in ("name", "rows", "files")} for shard in document["shards"]]
    first = {key: document[key] for key in ("version", "bits", "encoder", "encoder_folder")}
    first |= {"format_version": 1, "shards": shards}
    if own_checksum:
        first["sha256"] = sha256(json.dumps(first, sort_keys=True).encode())
    data, name = json.dumps(first, indent=1).encode(), f"{document['version']:08d}.json"
    replace(collection / "manifests" / name, data)
    replace(collection / "CURRENT", f"{name} {sha256(data)}\n".encode())


def forge(collection, name, data):
    """Replace the file `name` of the first shard, and record its size and checksum."""
    document = json.loads(manifest_of(collection).read_bytes())
    shard = document["shards"][0]
    replace(collection / "shards" / shard["name"] / name, data)
    shard["files"][name] = {"bytes": len(data), "sha256": sha256(data)}
    publish(collection, document)


def forge_manifest(collection, change):
    """Let `change` alter the live manifest's document."""
    document = json.loads(manifest_of(collection).read_bytes())
    change(document)
    publish(collection, document)


def shard_file(collection, name):
    """Return the path of a file of the first shard."""
    document = json.loads(manifest_of(collection).read_bytes())
    return collection / "shards" / document["shards"][0]["name"] / name
