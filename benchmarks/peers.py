"""Hamming search by other libraries behind one small interface. Each is imported only by the process that measures it.

A peer is built over packed codes (N, C) uint8 and answers, on one thread, with rows 0..N-1:

- `within(queries_QC, radius)` -> (lims (Q + 1,), rows), or None if it has no radius search;
- `nearest(queries_QC, k)` -> (rows (Q, k), distances (Q, k)).

`save(folder)` writes it as its users would; `open(folder)` opens it in the way that gives the first answer soonest,
memory-mapped if possible; a peer without files has neither. `exact` says whether the answers must equal the oracle's;
other peers are shown with their recall.
"""

from __future__ import annotations

import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np

RADIUS_LIMIT = 100_000


class Peer:
    exact = True
    max_rows = 10**9

    def __init__(self, codes_NC: np.ndarray) -> None:
        raise NotImplementedError

    def within(self, queries_QC: np.ndarray, radius: int):
        return None

    def nearest(self, queries_QC: np.ndarray, k: int):
        return None

    def num_bytes(self) -> int | None:
        """Return its size in bytes, if it can tell."""
        return None

    def save(self, folder: Path) -> bool:
        """Write it into an empty folder; False if it cannot be saved."""
        return False

    @classmethod
    def open(cls, folder: Path) -> Self:
        raise NotImplementedError


class HashlightMulti(Peer):
    def __init__(self, codes_NC):
        from hashlight.engine.indexes.multi_index.index import MultiIndex

        words = np.ascontiguousarray(codes_NC).view(np.uint64)
        self.index = MultiIndex.build(words, np.arange(len(words)), bits=8 * codes_NC.shape[1], threads=1)

    def within(self, queries_QC, radius):
        found = self.index.range_search(queries_QC.view(np.uint64), radius, threads=1)
        return found.lims, found.ids

    def nearest(self, queries_QC, k):
        found = self.index.search(queries_QC.view(np.uint64), k, threads=1)
        return found.ids, found.distances

    def num_bytes(self):
        return self.index.nbytes - self.index.ids_N.nbytes

    tables = True
    index: Any

    def save(self, folder):
        from hashlight.engine.storage.shard import write_shard

        spec = write_shard(
            folder / "shards" / "shard",
            self.index.codes_NW,
            self.index.ids_N,
            None,
            bits=self.index.bits,
            tables=self.tables,
        )
        (folder / "spec.pickle").write_bytes(pickle.dumps((spec, self.index.bits)))
        return True

    @classmethod
    def open(cls, folder):
        from hashlight.engine.storage.shard import Shard

        spec, bits = pickle.loads((folder / "spec.pickle").read_bytes())
        peer = cls.__new__(cls)
        peer.index = Shard(folder, spec, bits=bits).index
        return peer


class HashlightScan(HashlightMulti):
    tables = False

    def __init__(self, codes_NC):
        from hashlight.engine.indexes.scan import ScanIndex

        words = np.ascontiguousarray(codes_NC).view(np.uint64)
        self.index = ScanIndex.build(words, np.arange(len(words)), bits=8 * codes_NC.shape[1])


class _Faiss(Peer):
    def make(self, faiss, bits):
        raise NotImplementedError

    def __init__(self, codes_NC):
        import faiss

        faiss.omp_set_num_threads(1)
        self.faiss = faiss
        self.index = self.make(faiss, 8 * codes_NC.shape[1])
        if not self.index.is_trained:
            self.index.train(codes_NC[:: max(1, len(codes_NC) // 200_000)].copy())
        self.index.add(codes_NC)
        self.set_up()

    def save(self, folder):
        self.faiss.write_index_binary(self.index, str(folder / "index.faiss"))
        return True

    @classmethod
    def open(cls, folder):
        import faiss

        faiss.omp_set_num_threads(1)
        peer = cls.__new__(cls)
        peer.faiss, peer.index = faiss, faiss.read_index_binary(str(folder / "index.faiss"))
        peer.set_up()
        return peer

    def set_up(self):
        """Set parameters that the file does not store."""

    def within(self, queries_QC, radius):
        # FAISS is strict: distance < radius.
        lims, _, rows = self.index.range_search(queries_QC, radius + 1)
        return lims, rows

    def nearest(self, queries_QC, k):
        distances, rows = self.index.search(queries_QC, k)
        return rows, distances


class FaissFlat(_Faiss):
    def make(self, faiss, bits):
        return faiss.IndexBinaryFlat(bits)


class FaissMultiHash(_Faiss):
    """`nhash` tables of about log2(10 million) bits; exact for a radius with nflip = radius // nhash, never for kNN."""

    nhash = 3

    def make(self, faiss, bits):
        return faiss.IndexBinaryMultiHash(bits, self.nhash, min(21, bits // self.nhash))

    def within(self, queries_QC, radius):
        self.index.nflip = radius // self.nhash
        return super().within(queries_QC, radius)

    def nearest(self, queries_QC, k):
        return None


class FaissMultiHash4(FaissMultiHash):
    nhash = 4

    def make(self, faiss, bits):
        return faiss.IndexBinaryMultiHash(bits, 4, 16)


class FaissHash(_Faiss):
    """One table of 20 bits, 2 flips: approximate."""

    exact = False

    def make(self, faiss, bits):
        return faiss.IndexBinaryHash(bits, 20)

    def set_up(self):
        self.index.nflip = 2


class FaissHNSW(_Faiss):
    exact = False
    max_rows = 1_000_000

    def make(self, faiss, bits):
        return faiss.IndexBinaryHNSW(bits, 16)

    def set_up(self):
        self.index.hnsw.efSearch = 64

    def within(self, queries_QC, radius):
        return None


class FaissIVF(_Faiss):
    exact = False

    def make(self, faiss, bits):
        self.quantizer = faiss.IndexBinaryFlat(bits)
        return faiss.IndexBinaryIVF(self.quantizer, bits, 1024)

    def set_up(self):
        self.index.nprobe = 16


class UsearchExact(Peer):
    max_rows = 10_000_000

    def __init__(self, codes_NC):
        self.codes = codes_NC

    def save(self, folder):
        np.save(folder / "codes.npy", self.codes)
        return True

    @classmethod
    def open(cls, folder):
        return cls(np.load(folder / "codes.npy", mmap_mode="r"))

    def nearest(self, queries_QC, k):
        from usearch.index import MetricKind, search

        found = search(self.codes, queries_QC, k, MetricKind.Hamming, exact=True, threads=1)
        return np.atleast_2d(found.keys), np.atleast_2d(found.distances)


class UsearchHNSW(Peer):
    exact = False
    max_rows = 1_000_000

    def __init__(self, codes_NC):
        from usearch.index import Index, MetricKind

        self.index = Index(ndim=8 * codes_NC.shape[1], metric=MetricKind.Hamming, dtype="b1")
        self.index.add(np.arange(len(codes_NC)), codes_NC, threads=1)

    def save(self, folder):
        self.index.save(str(folder / "index.usearch"))
        return True

    @classmethod
    def open(cls, folder):
        from usearch.index import Index

        peer = cls.__new__(cls)
        peer.index = Index.restore(str(folder / "index.usearch"), view=True)
        return peer

    def nearest(self, queries_QC, k):
        found = self.index.search(queries_QC, k, threads=1)
        return np.atleast_2d(found.keys), np.atleast_2d(found.distances)


class Pynear(Peer):
    """Its multi-index; k-nearest only."""

    exact = False
    max_rows = 10_000_000

    def __init__(self, codes_NC):
        import pynear

        self.index = pynear.MIHBinaryIndex()
        self.index.set(codes_NC)

    def nearest(self, queries_QC, k):
        rows, distances = self.index.searchKNN_arrays(queries_QC, k)
        return np.asarray(rows).reshape(len(queries_QC), -1), np.asarray(distances).reshape(len(queries_QC), -1)


class LanceDB(Peer):
    max_rows = 1_000_000

    def __init__(self, codes_NC):
        import lancedb
        import pyarrow as pa

        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(codes_NC.reshape(-1)), codes_NC.shape[1])
        data = pa.table({"id": np.arange(len(codes_NC)), "vector": vectors})
        self.table = lancedb.connect(self.folder).create_table("codes", data)

    def save(self, folder):
        shutil.copytree(self.folder, folder / "lance")
        return True

    @classmethod
    def open(cls, folder):
        import lancedb

        peer = cls.__new__(cls)
        peer.folder = folder / "lance"
        peer.table = lancedb.connect(peer.folder).open_table("codes")
        return peer

    def _ask(self, query, limit, radius=None):
        asked = self.table.search(query).distance_type("hamming").limit(limit).select(["id", "_distance"])
        return (asked if radius is None else asked.distance_range(0, radius + 1)).to_arrow()

    def within(self, queries_QC, radius):
        rows = [self._ask(query, RADIUS_LIMIT, radius)["id"].to_numpy() for query in queries_QC]
        return np.cumsum([0, *map(len, rows)]), np.concatenate(rows)

    def nearest(self, queries_QC, k):
        answers = [self._ask(query, k) for query in queries_QC]
        rows = np.array([answer["id"].to_numpy() for answer in answers])
        return rows, np.array([answer["_distance"].to_numpy() for answer in answers])


class MilvusLite(Peer):
    max_rows = 1_000_000

    def __init__(self, codes_NC):
        from pymilvus import DataType, MilvusClient

        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.client = MilvusClient(f"{self.folder}/milvus.db")
        schema = self.client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("code", DataType.BINARY_VECTOR, dim=8 * codes_NC.shape[1])
        parameters = self.client.prepare_index_params()
        parameters.add_index("code", index_type="BIN_FLAT", metric_type="HAMMING")
        self.client.create_collection("codes", schema=schema, index_params=parameters)
        for start in range(0, len(codes_NC), 20_000):
            rows = enumerate(codes_NC[start : start + 20_000], start)
            self.client.insert("codes", [{"id": row, "code": code.tobytes()} for row, code in rows])
        self.client.load_collection("codes")

    def save(self, folder):
        self.client.close()
        shutil.copytree(self.folder, folder / "milvus")
        return True

    @classmethod
    def open(cls, folder):
        from pymilvus import MilvusClient

        peer = cls.__new__(cls)
        peer.client = MilvusClient(f"{folder}/milvus/milvus.db")
        peer.client.load_collection("codes")
        return peer

    def _ask(self, queries_QC, limit, parameters):
        found = self.client.search(
            "codes",
            [query.tobytes() for query in queries_QC],
            limit=limit,
            anns_field="code",
            search_params={"metric_type": "HAMMING", "params": parameters},
        )
        return [[(hit["id"], hit["distance"]) for hit in hits] for hits in found]

    def within(self, queries_QC, radius):
        # `radius` is exclusive, `range_filter` is the inclusive lower bound; an answer has at most 16,384 hits.
        hits = self._ask(queries_QC, 16_384, {"radius": radius + 1, "range_filter": 0})
        rows = [np.array([row for row, _ in one], np.int64) for one in hits]
        return np.cumsum([0, *map(len, rows)]), np.concatenate(rows)

    def nearest(self, queries_QC, k):
        hits = np.array(self._ask(queries_QC, k, {}))
        return hits[:, :, 0].astype(np.int64), hits[:, :, 1]


PEERS: dict[str, type[Peer]] = {
    "hashlight multi-index": HashlightMulti,
    "hashlight scan": HashlightScan,
    "faiss flat": FaissFlat,
    "faiss multi-hash, 3 tables": FaissMultiHash,
    "faiss multi-hash, 4 tables": FaissMultiHash4,
    "faiss hash": FaissHash,
    "faiss hnsw": FaissHNSW,
    "faiss ivf": FaissIVF,
    "usearch exact": UsearchExact,
    "usearch hnsw": UsearchHNSW,
    "pynear mih": Pynear,
    "lancedb": LanceDB,
    "milvus-lite": MilvusLite,
}
CORE = tuple(PEERS)[:6]
