"""Encode a corpus: images to codes, on Ray Data, losing nothing.

A job is four steps. The corpus is listed once into `plan.parquet`, whose row groups are the work units. Actors, which
load the encoder once, read, decode and encode a unit and write its codes under the unit's number, with a sidecar that
says they are whole. Rejects are gathered. `codes.json` is written last, and says that the folder is complete.

::

    CODES/
      codes.json         bits, encoder fingerprint, counts; written last
      plan.parquet       every image of the corpus, one row group a unit
      parts/00000.parquet   id, code, uri and attributes of the unit's good images
      sidecars/00000.json   says the part is whole: codes, rejects, seconds of each step, SHA-256
      rejects.parquet    id, uri and reason of every image that could not be encoded
      encoder/           a copy of the encoder

What stands in the parts depends on the corpus and the encoder alone, not on actors, batches or restarts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from encoders.encoder import EncoderOutput, HashEncoder
from encoders.errors import ImageError
from engine.storage.files import sha256_of, sync_file, sync_folder, write_atomically
from pipelines.code_parts import FEATURES_COLUMN
from pipelines.corpora import SOURCE, attribute_names, list_corpus, read_images
from pipelines.errors import PipelineError
from pipelines.images import batches, decode_entry
from pipelines.ray_session import ray_session

UNIT_IMAGES = 1000

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EncodeSummary:
    """What an encode job did.

    Attributes
    ----------
    images, codes, rejects : int
        `images = codes + rejects`.
    bits : int
    encoder : str
        The encoder's fingerprint.
    corpus : str
    """

    images: int
    codes: int
    rejects: int
    bits: int
    encoder: str
    corpus: str


class EncodeUnits:
    """Encodes work units; the encoder is loaded once, when the actor starts.

    Maps a batch of `unit` numbers to one row a unit: `unit`, `codes`, `rejects`.
    """

    def __init__(self, output: str, job: str, batch_size: int) -> None:
        self._output = Path(output)
        self._job = job
        self._batch_size = batch_size
        self._encoder = HashEncoder.load(self._output / "encoder")
        self._keeps_features = bool(_plan_identity(self._output)["features"])

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encode every unit of `batch` and write it."""
        counts = [self._encode_unit(int(unit)) for unit in batch["unit"]]
        codes, rejects = zip(*counts, strict=True)
        return {"unit": batch["unit"], "codes": np.array(codes), "rejects": np.array(rejects)}

    def _encode_unit(self, unit: int) -> tuple[int, int]:
        with pq.ParquetFile(self._output / "plan.parquet") as plan:
            entries = plan.read_row_group(unit)
        seconds = {"read": 0.0, "decode": 0.0, "encode": 0.0}
        good: list[int] = []
        outputs: list[EncoderOutput] = []
        reasons: dict[int, str] = {}
        for batch in batches(_decode(read_images(entries), reasons, seconds), self._batch_size):
            start = time.perf_counter()
            outputs.append(self._encoder.encode_all([image for _, image in batch]))
            good.extend(row for row, _ in batch)
            seconds["encode"] += time.perf_counter() - start
        table = _codes_table(entries, good, [output.codes for output in outputs], self._encoder.bits)
        if self._keeps_features:
            features = [output.features for output in outputs]
            table = _with_features(table, features, self._encoder.feature_dim)
        _publish_part(self._output, unit, self._job, table, _rejects(entries, reasons), seconds)
        return len(good), len(reasons)


def encode_corpus(
    corpus: str | Path,
    encoder: str | Path,
    output: str | Path,
    *,
    batch_size: int = 256,
    actors: int | None = None,
    features: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EncodeSummary:
    """Encode every image of a corpus.

    Parameters
    ----------
    corpus : str or Path
        As in `pipelines.corpora.list_corpus`.
    encoder : str or Path
        An encoder's folder.
    output : str or Path
        Folder for the codes. An interrupted job with the same corpus and encoder goes on where it was.
    batch_size : int
        Decoded images held at once by an actor; it does not change a bit of the codes.
    actors : int, optional
        Processes; as many as the machine has cores if left out.
    features : bool
        Keep the fine features too, float16, for re-ranking: 2 bytes a dimension and image.
    overwrite : bool
        Replace codes that are there.
    progress : callable, optional
        Called with (images done, images in all).

    Raises
    ------
    PipelineError
        If the corpus is empty, or `output` holds another job's codes.
    """
    if batch_size < 1 or (actors is not None and actors < 1):
        raise ValueError(f"`batch_size` and `actors` must be at least 1, got {batch_size} and {actors}")
    output = Path(output)
    job, units, images = _plan(Path(corpus), Path(encoder), output, features=features, overwrite=overwrite)
    done = _finished_units(output, job)
    report = progress or (lambda _done, _total: None)
    finished = sum(sidecar["codes"] + sidecar["rejects"] for sidecar in done.values())
    report(finished, images)
    waiting = [unit for unit in range(units) if unit not in done]
    for row in _run_units(output, job, waiting, batch_size, actors or os.cpu_count() or 1) if waiting else ():
        finished += int(row["codes"] + row["rejects"])
        report(finished, images)
    return _commit(output, job, units)


def read_summary(codes: str | Path) -> EncodeSummary:
    """Return what `codes.json` says of a folder of codes.

    Raises
    ------
    PipelineError
        If the folder is not one, or its job did not end.
    """
    path = Path(codes) / "codes.json"
    if not path.is_file():
        state = (
            "an unfinished encode job: run the same `hashlight encode` again and it goes on"
            if (path.with_name("plan.parquet").is_file())
            else "no codes: expected a folder that `hashlight encode` wrote"
        )
        raise PipelineError(f"{codes} holds {state}")
    try:
        return EncodeSummary(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise PipelineError(f"{path} is damaged ({error}): encode the corpus again") from error


def read_keeps_features(codes: str | Path) -> bool:
    """Whether a folder of codes has fine features beside them."""
    return bool(_plan_identity(Path(codes)).get("features", False))


def read_parts(codes: str | Path) -> Iterator[pa.Table]:
    """Read the parts of a folder of codes in order, each checked against its sidecar.

    Raises
    ------
    PipelineError
        If a part is missing or damaged.
    """
    for sidecar in sorted(Path(codes, "sidecars").glob("*.json")):
        part = Path(codes, "parts", f"{sidecar.stem}.parquet")
        expected = json.loads(sidecar.read_bytes())["sha256"]
        got = sha256_of(part) if part.is_file() else "nothing"
        if got != expected:
            raise PipelineError(
                f"{part} is damaged: expected SHA-256 {expected[:16]}…, got {got[:16]}…: delete {sidecar} and "
                "codes.json, and run the same `hashlight encode` again"
            )
        yield pq.read_table(part)


def _plan(corpus: Path, encoder: Path, output: Path, *, features: bool, overwrite: bool) -> tuple[str, int, int]:
    """List the corpus and write the plan, unless an interrupted job left the same one; nothing is removed before that.

    Returns the job's name, a hash of all that its codes depend on, and the numbers of units and images.
    """
    loaded = HashEncoder.load(encoder)
    entries = list_corpus(corpus)
    if features and FEATURES_COLUMN in entries.column_names:
        raise PipelineError(
            f"{corpus} has a column `{FEATURES_COLUMN}` of its own: rename it, or encode without --features"
        )
    identity = {
        "corpus": str(corpus.resolve()),
        "listing": _listing_digest(entries),
        "encoder": loaded.fingerprint,
        "bits": loaded.bits,
        "features": features,
    }
    _refuse_foreign_folder(output)
    plan = output / "plan.parquet"
    if plan.is_file() and not overwrite:
        _refuse_other_job(output, identity)
    else:
        _remove_codes(output)
        output.mkdir(parents=True, exist_ok=True)
        _write_plan(plan, entries.replace_schema_metadata({"hashlight": json.dumps(identity)}))
    for folder in ("parts", "sidecars"):
        (output / folder).mkdir(exist_ok=True)
    loaded.save(output / "encoder")
    with pq.ParquetFile(plan) as file:
        return _job_name(identity), file.num_row_groups, file.metadata.num_rows


def _listing_digest(entries: pa.Table) -> str:
    """Hash what a corpus lists, and size and time of the files it names, so that a changed corpus is another job."""
    digest = hashlib.sha256()
    digest.update(entries["id"].to_numpy().tobytes())
    for source in dict.fromkeys(entries[SOURCE].to_pylist()):
        stat = os.stat(source)
        digest.update(f"{source}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _job_name(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _write_plan(plan: Path, entries: pa.Table) -> None:
    aside = plan.with_name(".plan.parquet.tmp")
    pq.write_table(entries, aside, row_group_size=UNIT_IMAGES)
    sync_file(aside)
    aside.replace(plan)
    sync_folder(plan.parent)


def _plan_identity(output: Path) -> dict[str, Any]:
    metadata = pq.read_schema(output / "plan.parquet").metadata
    return dict(json.loads(metadata[b"hashlight"]))


def _refuse_other_job(output: Path, identity: dict[str, Any]) -> None:
    found = _plan_identity(output)
    different = [key for key in identity if found.get(key) != identity[key]]
    if different == ["listing"]:
        raise PipelineError(
            f"{identity['corpus']} has changed since {output} was begun: encode it into another --output, or all of "
            "it again with --overwrite"
        )
    if different:
        details = ", ".join(f"{key} {found.get(key)} (asked: {identity[key]})" for key in different)
        raise PipelineError(
            f"{output} holds the codes of another job, with {details}: choose another --output, or replace it with "
            "--overwrite"
        )


_OUTPUT_ENTRIES = ("sidecars", "parts", "codes.json", "rejects.parquet", "encoder", "plan.parquet")


def _refuse_foreign_folder(output: Path) -> None:
    """Raise PipelineError unless `output` is not there, is empty, or is marked as ours by its plan."""
    if output.exists() and not output.is_dir():
        raise PipelineError(f"{output} is a file, expected a folder for the codes: choose another --output")
    if output.is_dir() and any(output.iterdir()) and not (output / "plan.parquet").is_file():
        raise PipelineError(f"{output} is not empty and holds no codes: choose another --output")


def _remove_codes(output: Path) -> None:
    """Remove what an earlier job wrote; its plan goes last, because it marks the folder as ours."""
    for name in _OUTPUT_ENTRIES:
        entry = output / name
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _run_units(output: Path, job: str, units: list[int], batch_size: int, actors: int) -> Iterator[dict[str, Any]]:
    actors = min(actors, len(units))
    with ray_session(num_cpus=actors):
        import ray.data

        jobs = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units))
        results = jobs.map_batches(
            EncodeUnits,
            fn_constructor_args=(str(output.resolve()), job, batch_size),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
        )
        try:
            yield from results.iter_rows()
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise PipelineError(
                f"an encoding process failed ({type(cause).__name__}: {str(cause).splitlines()[0]}); what is finished "
                "is kept: run the same `hashlight encode` again"
            ) from error


def _finished_units(output: Path, job: str) -> dict[int, dict[str, Any]]:
    sidecars = {int(path.stem): json.loads(path.read_bytes()) for path in sorted((output / "sidecars").glob("*.json"))}
    return {unit: sidecar for unit, sidecar in sidecars.items() if sidecar["job"] == job}


def _commit(output: Path, job: str, units: int) -> EncodeSummary:
    done = _finished_units(output, job)
    missing = [unit for unit in range(units) if unit not in done]
    if missing:
        raise PipelineError(f"{len(missing)} of {units} units did not finish (first: {missing[0]}): run the job again")
    rejects = pa.concat_tables([pa.Table.from_pylist(done[unit]["rejected"], _REJECT_SCHEMA) for unit in range(units)])
    aside = output / ".rejects.parquet.tmp"
    pq.write_table(rejects, aside)
    sync_file(aside)
    aside.replace(output / "rejects.parquet")
    codes = sum(sidecar["codes"] for sidecar in done.values())
    if not codes:
        raise PipelineError(
            f"not one of {len(rejects)} images could be encoded, the first because: {rejects['reason'][0]}; all "
            f"reasons are in {output / 'rejects.parquet'}"
        )
    identity = _plan_identity(output)
    summary = EncodeSummary(
        images=codes + len(rejects),
        codes=codes,
        rejects=len(rejects),
        bits=identity["bits"],
        encoder=identity["encoder"],
        corpus=identity["corpus"],
    )
    write_atomically(output / "codes.json", json.dumps(asdict(summary), indent=1).encode())
    return summary


_REJECT_SCHEMA = pa.schema({"id": pa.int64(), "uri": pa.string(), "reason": pa.string()})


def _rejects(entries: pa.Table, reasons: dict[int, str]) -> list[dict[str, Any]]:
    rows = entries.select(["id", "uri"]).take(list(reasons)).to_pylist() if reasons else []
    return [{**row, "reason": reason} for row, reason in zip(rows, reasons.values(), strict=True)]


def _codes_table(entries: pa.Table, good: list[int], codes: list[np.ndarray], bits: int) -> pa.Table:
    width = 8 * -(-bits // 64)
    raw = np.concatenate(codes).astype("<u8", copy=False).tobytes() if codes else b""
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(good), [None, pa.py_buffer(raw)])
    kept = entries.select(["id", *attribute_names(entries)]).take(pa.array(good, pa.int64()))
    return kept.add_column(1, "code", column).replace_schema_metadata(None)


def _with_features(table: pa.Table, features: list[np.ndarray], dims: int) -> pa.Table:
    raw = np.concatenate(features).astype("<f2").tobytes() if features else b""
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * dims), len(table), [None, pa.py_buffer(raw)])
    return table.append_column(FEATURES_COLUMN, column)


def _publish_part(
    output: Path, unit: int, job: str, table: pa.Table, rejected: list[dict[str, Any]], seconds: dict[str, float]
) -> None:
    """Write a unit's codes aside, rename them, and only then the sidecar that says they are whole."""
    part = output / "parts" / f"{unit:05d}.parquet"
    aside = part.with_name(f".{unit:05d}.{os.getpid()}.tmp")
    pq.write_table(table, aside)
    sync_file(aside)
    aside.replace(part)
    sync_folder(part.parent)
    sidecar = {
        "job": job,
        "codes": len(table),
        "rejects": len(rejected),
        "rejected": rejected,
        "seconds": {step: round(spent, 4) for step, spent in seconds.items()},
        "sha256": sha256_of(part),
    }
    write_atomically(output / "sidecars" / f"{unit:05d}.json", json.dumps(sidecar).encode())


def _decode(
    images: Iterator[bytes | OSError], reasons: dict[int, str], seconds: dict[str, float]
) -> Iterator[tuple[int, Image.Image]]:
    """Decode images and number them; one that is broken leaves its reason under its number instead."""
    for row in itertools.count():
        start = time.perf_counter()
        data = next(images, None)
        read = time.perf_counter()
        seconds["read"] += read - start
        if data is None:
            return
        try:
            image = decode_entry(data)
        except ImageError as error:
            reasons[row] = error.reason
            continue
        finally:
            seconds["decode"] += time.perf_counter() - read
        yield row, image
