"""Mutated files of a folder of codes, under right checksums: refused by name, or read as what they hold.

Run as a program, as `tests.engine.storage.fuzz` is: `python -m tests.pipelines.codes.fuzz FOLDER FIRST COUNT KIND...`
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hashlight.pipelines.codes.parts import CODES, STEPS, codes_column, list_parts, part_name, read_part, read_parts
from hashlight.pipelines.codes.summary import read_summary
from hashlight.pipelines.encoding.rejects import units_to_retry, write_rejects
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder
from tests.engine.storage.forging import sha256
from tests.engine.storage.fuzz import mutate, mutate_text, same

KINDS = ("part", "sidecar", "codes.json", "job.json", "rejects.parquet")
# Nothing is read from it: it is gathered from the sidecars, for people.
NEVER_REFUSED = {"rejects.parquet"}
ROWS, BITS = 500, 48
WANTED = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("code", pa.binary(8), nullable=False)])


class Folder:
    """A folder as `hashlight encode` leaves it, with one unit."""

    def __init__(self, path):
        self.path = path
        rng = np.random.default_rng(0)
        codes = rng.integers(2**BITS, size=ROWS, dtype=np.uint64)
        table = pa.table(
            {
                "id": rng.permutation(ROWS),
                "code": pa.array([code.tobytes() for code in codes], pa.binary(8)),
                "uri": [f"{number}.png" for number in range(ROWS)],
                "features": pa.array([bytes(6)] * ROWS, pa.binary(6)),
            }
        )
        for name in ("parts", "sidecars"):
            (path / name).mkdir(parents=True)
        pq.write_table(table, path / "x.parquet", compression="zstd")
        self.part = (path / "x.parquet").read_bytes()
        rejected = [
            {"row": 7 * row, "id": ROWS + row, "uri": f"{row}.gif", "kind": "format", "reason": "damaged: twice"}
            for row in range(9)
        ]
        counts = {"codes": ROWS, "rejects": len(rejected), "bytes": len(self.part), "entries": 2**63 + 1}
        others = {"left_out": ["txt"], "skipped": {"*.md": 3}, "seconds": dict.fromkeys(STEPS, 0.5)}
        summary = {"images": ROWS, "codes": ROWS, "rejects": 0, "bits": BITS, "encoder": "f" * 64, "corpus": "c"}
        self.pristine = {
            "sidecar": {"job": "j", **counts, "rejected": rejected, **others, "hashes": {"3": 11}, "sha256": ""},
            "codes.json": summary,
            "job.json": {"corpus": "c", "encoder": "f" * 64, "bits": BITS},
        }

    def put(self, rng, kind):
        """Write all files as they were at first, and a mutation of one kind."""
        part = mutate(rng, self.part) if kind == "part" else self.part
        texts = {name: json.dumps(document).encode() for name, document in self.pristine.items()}
        texts["sidecar"] = json.dumps(self.pristine["sidecar"] | {"sha256": sha256(part)}).encode()
        if kind in texts:
            texts[kind] = mutate_text(rng, texts[kind])
        (self.path / "sidecars" / "00000.json").write_bytes(texts["sidecar"])
        pq.write_table(pa.table({"id": [1], "uri": ["a"]}), self.path / "rejects.parquet")
        if kind == "rejects.parquet":
            data = (self.path / "rejects.parquet").read_bytes()
            (self.path / "rejects.parquet").write_bytes(mutate(rng, data))
        for name in ("codes.json", "job.json"):
            (self.path / name).write_bytes(texts[name])
        for old in (self.path / "parts").iterdir():
            old.unlink()
        self.write_part(part)

    def write_part(self, part):
        (self.path / part_name(0, sha256(part))).write_bytes(part)

    def read(self):
        """Read what a build and a resumed job read, and compare it with what pyarrow makes of the same bytes."""
        read_summary(self.path)
        JobFolder(self.path, CODES).refuse_foreign()
        JobFolder(self.path, CODES).sidecars()
        for part in list_parts(self.path):
            table = read_part(part, WANTED)
            stored = pq.ParquetFile(pa.BufferReader(Path(part.path).read_bytes())).read(["id", "code"])
            same(table["id"].to_numpy(), stored["id"].to_numpy())
            same(codes_column(table["code"])[:, 0], np.frombuffer(b"".join(stored["code"].to_pylist()), "<u8"))
        for table in read_parts(self.path):
            table.to_pydict()
        job = JobFolder(self.path, CODES, name="j")
        said = json.loads((self.path / "sidecars" / "00000.json").read_bytes())
        assert job.sidecar(0) == said
        assert units_to_retry(job, [0], {"format"}) == [0] * any(row["kind"] == "format" for row in said["rejected"])
        gathered = write_rejects(job, [0])
        assert (gathered.codes, gathered.rejects) == (said["codes"], len(said["rejected"]))
        rejects = pq.read_table(self.path / "rejects.parquet").to_pylist()
        assert rejects == [{name: row[name] for name in ("id", "uri", "kind", "reason")} for row in said["rejected"]]

    def try_one(self, kind, number):
        """Return "refused" or "answered"; anything else is an error."""
        self.put(np.random.default_rng([number, KINDS.index(kind)]), kind)
        try:
            self.read()
        except PipelineError as error:
            if str(self.path) not in str(error):
                raise AssertionError("refused, but not by name") from error
            return "refused"
        return "answered"


def main(folder, first, count, *kinds):
    codes = Folder(Path(folder, "codes"))
    outcomes = collections.Counter()
    for kind in kinds:
        for number in range(int(first), int(first) + int(count)):
            sys.stdout.write(f"{kind} {number}\n")
            sys.stdout.flush()
            outcomes[f"{kind} {codes.try_one(kind, number)}"] += 1
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
