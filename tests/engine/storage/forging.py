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
    """Write the live manifest, with its own checksum, and name it in CURRENT."""
    document = {key: value for key, value in document.items() if key != "sha256"}
    document["sha256"] = sha256(json.dumps(document, sort_keys=True).encode())
    publish_bytes(collection, json.dumps(document, indent=1).encode())


def publish_bytes(collection, data):
    """Write any bytes as the live manifest, and name them in CURRENT."""
    path = manifest_of(collection)
    replace(path, data)
    replace(collection / "CURRENT", f"{path.name} {sha256(data)}\n".encode())


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
