"""One unit of an encode job: read, decode, encode, write; the stage that Ray's actors run."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hashlight.encoders.encoder import EncoderOutput
from hashlight.engine.features import FeatureKind, row_bytes
from hashlight.engine.places.place import Place
from hashlight.pipelines.codes.encoder import load_encoder
from hashlight.pipelines.codes.parts import (
    CODES,
    FEATURES_COLUMN,
    PLAN,
    STEPS,
    THUMBNAIL_COLUMN,
    part_name,
    stored_features,
)
from hashlight.pipelines.corpora.corpus import Readers, read_images
from hashlight.pipelines.corpora.ids import IdRule, hashed_ids, with_ids
from hashlight.pipelines.corpora.joins import ShardMetadata
from hashlight.pipelines.corpora.kinds.webdataset import (
    START,
    STOP,
    Sample,
    attribute_fields,
    own_id,
    read_shard,
    shard_entries,
    take_json,
)
from hashlight.pipelines.corpora.labels import attribute_names
from hashlight.pipelines.corpora.listing import BASE_SCHEMA, SHARDS, SOURCE
from hashlight.pipelines.corpora.reasons import OF_THE_MOMENT, Reason, RepeatedError
from hashlight.pipelines.corpora.work import WorkList, digest_of
from hashlight.pipelines.decoding.pool import DecodedBatch, DecodePool, images_of_a_batch
from hashlight.pipelines.decoding.worker import DecodeLimits
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, sidecar_name

# Ray restarts a dead actor, also one that dies while it starts, and hands it the same unit, for ever: this ends that.
_MAX_ATTEMPTS = 5
_NICER, _NICEST = 5, 19


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitSettings:
    """How units are encoded.

    `features` and `thumbnail` say what is written; `limits` decide which images are rejects; `device` may change bits
    whose sign depends on rounding. The others do not affect the output.

    Attributes
    ----------
    job : str
        Name of the job, which its sidecars carry.
    batch_size : int
        Images decoded at a time.
    decoders : int
        Decoding processes of an actor.
    device : str
    features : {"float16", "bfloat16", "int8"} or None
        As what features are kept; None: they are not.
    thumbnail : int
        Longest side of the thumbnails, 0 for none.
    limits : DecodeLimits
    retry : frozenset of str
        Kinds of rejects; those of finished units are tried again.
    """

    job: str
    batch_size: int
    decoders: int
    device: str
    features: FeatureKind | None
    thumbnail: int
    limits: DecodeLimits
    retry: frozenset[str] = frozenset()


@dataclass(slots=True)
class Encoded:
    """The outputs for a unit's good images by batch, why the others were rejected, and what was left out."""

    good: list[np.ndarray] = field(default_factory=list)
    outputs: list[EncoderOutput] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    reasons: dict[int, Reason] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    def add(self, batch: DecodedBatch, output: EncoderOutput, encode_s: float) -> None:
        """Add a batch of decoded images."""
        self.good.append(batch.good)
        self.outputs.append(output)
        self.thumbnails += batch.thumbnails
        self.reasons.update(batch.reasons)
        self.seconds["read"] += batch.read_s
        self.seconds["decode"] += batch.decode_s
        self.seconds["encode"] += encode_s


class EncodeUnits:
    """Encodes units; the encoder is loaded and the decoding processes are started once, when the actor starts.

    Two threads may call it at once: one unit is written while the next is encoded.

    Maps a batch of the places of units in the plan, `unit`, to one row per unit: `unit`, its `number` and the hash of
    its `entries`, `codes`, `rejects`, those of them `of_the_moment`, the seconds `read_s`, `decode_s`, `encode_s` and
    `write_s`, which overlap, and the times `started` and `ended`. A finished unit is not encoded again, apart from its
    rejects of the kinds to retry.
    """

    def __init__(self, output: str, settings: UnitSettings) -> None:
        self._job = JobFolder(output, CODES, name=settings.job)
        self._output = self._job.place
        self._settings = settings
        with self._counted_start():
            self._start()
        # Guards the work list, the decoding processes and the model, which serve one unit at a time.
        self._lock = threading.Lock()
        self._threads = threading.local()
        # By thread, which has one block of units at a time, in the order of the plan.
        self._readers: defaultdict[int, Readers] = defaultdict(Readers)

    def _start(self) -> None:
        """Load and allocate everything before the first unit."""
        chaos.step("start")
        settings = self._settings
        self._encoder = load_encoder(self._output.location_of("encoder")).to(settings.device)
        self._work = WorkList(self._output.open(PLAN), self._output.path(PLAN))
        summary = self._work.summary
        join_ = summary.shard_join
        self._added = None if join_ is None else ShardMetadata.open(join_, summary.corpus, summary.id_rule)
        rule, asked = self._encoder.config.preprocessing, settings.batch_size
        # A GPU computes large batches at once.
        self._batch_size = images_of_a_batch(rule, asked) if settings.device == "cpu" else asked
        self._pool = DecodePool(
            rule,
            processes=settings.decoders,
            batch_size=self._batch_size,
            thumbnail=settings.thumbnail,
            limits=settings.limits,
        )
        self._warm_up()
        # The model and the imported modules live as long as the actor: the collector need not scan them every time.
        gc.freeze()

    def _warm_up(self) -> None:
        rule = self._encoder.config.preprocessing
        shape = (self._encoder.images_at_once, rule.size, rule.size, rule.channels)
        self._encoder.encode_pixels(np.zeros(shape, np.uint8))
        tiny = io.BytesIO()
        Image.new("L", (1, 1)).save(tiny, "PNG")
        for _ in self._pool.decode([tiny.getvalue()] * (self._settings.decoders * self._batch_size)):
            pass

    def close(self) -> None:
        """End the decoding processes and close files; those of an actor end with it."""
        self._pool.close()
        for readers in self._readers.values():
            readers.close()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encode every unit of `batch` and write it."""
        self._give_way()
        started = time.time()
        numbers, done = zip(*map(self._finish_unit, batch["unit"].tolist()), strict=True)
        columns = {name: np.array([sidecar[name] for sidecar in done]) for name in ("codes", "rejects")}
        columns["of_the_moment"] = np.array([num_of_the_moment(said) for said in done])
        columns |= {"number": np.array(numbers), "entries": np.array([said["entries"] for said in done], np.uint64)}
        seconds = {f"{step}_s": np.array([sidecar["seconds"][step] for sidecar in done]) for step in STEPS}
        times = {"started": np.full(len(done), started), "ended": np.full(len(done), time.time())}
        return {"unit": batch["unit"], **columns, **seconds, **times}

    def _give_way(self) -> None:
        """Give the decoding process priority: it then decodes a batch in one go, while its caches are warm."""
        if not hasattr(self._threads, "niceness"):
            self._threads.niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + _NICER, _NICEST)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._threads.niceness)

    @contextlib.contextmanager
    def _counted_start(self) -> Iterator[None]:
        """Count the starts of this actor, which Ray repeats without end if its process dies."""
        name = f"start-{_actor_id()}"
        self._count_attempt(name, "an encoding process was started")
        yield
        self._output.remove(f"attempts/{name}")

    def _count_attempt(self, name: str, what: str) -> None:
        name = f"attempts/{name}"
        before = int(self._output.read(name)) if self._output.exists(name) else 0
        if before == _MAX_ATTEMPTS:
            raise PipelineError(
                f"{what} {before} times and its process died every time: is a node out of memory? Try a smaller "
                "--batch-size"
            )
        self._output.put(name, str(before + 1).encode(), durable=False)

    def _finish_unit(self, place: int) -> tuple[int, dict[str, Any]]:
        """Return the number of a unit and its sidecar; it is encoded if it is not finished yet."""
        with self._lock:
            unit, entries = self._work.read_numbered(place)
        digest = digest_of(entries)
        sidecar = self._job.sidecar(unit)
        if sidecar is None:
            return unit, _refuse_other_entries(unit, self._encode_unit(unit, digest, entries), digest)
        _refuse_other_entries(unit, sidecar, digest)
        rows = [row["row"] for row in sidecar["rejected"] if row["kind"] in self._settings.retry]
        return unit, self._retry(unit, entries, sidecar, rows) if rows else sidecar

    def _retry(self, unit: int, entries: pa.Table, sidecar: dict[str, Any], rows: list[int]) -> dict[str, Any]:
        """Encode some rejects of a finished unit again, and write its part and sidecar anew with what is good now.

        A range of a file is read from its start for any of its images, and that of a tar may have more of them now: all
        are encoded again.
        """
        with self._lock:
            self._count_attempt(f"{unit:05d}", f"unit {unit} was begun again")
            if self._work.summary.lists_ranges:
                found, encoded = self._encode_entries(entries)
                part, rejected = self._table(found, encoded), _rejects(found, encoded.reasons)
            else:
                found, encoded = self._encode_entries(entries.take(rows))
                part = self._merged(unit, sidecar, rows, self._table(found, encoded), encoded)
                kept = [row for row in sidecar["rejected"] if row["row"] not in rows]
                again = [{**row, "row": rows[row["row"]]} for row in _rejects(found, encoded.reasons)]
                rejected = sorted(kept + again, key=lambda row: row["row"])
        return self._replace(unit, sidecar, part, rejected, encoded)

    def _merged(
        self, unit: int, sidecar: dict[str, Any], rows: list[int], table: pa.Table, encoded: Encoded
    ) -> pa.Table:
        """Return the part of a unit with the codes of rejects that are good now, in the order of the entries."""
        rejected = [row["row"] for row in sidecar["rejected"]]
        before = np.setdiff1d(np.arange(sidecar["codes"] + sidecar["rejects"]), rejected)
        now = np.asarray(rows)[np.concatenate([np.zeros(0, np.int64), *encoded.good])]
        part = pq.read_table(pa.BufferReader(self._output.read(part_name(unit, sidecar["sha256"]))))
        part = with_ids(part, hashes_of(sidecar))
        return pa.concat_tables([part, table]).take(np.argsort(np.concatenate([before, now])))

    def _replace(
        self, unit: int, sidecar: dict[str, Any], table: pa.Table, rejected: list[dict[str, Any]], encoded: Encoded
    ) -> dict[str, Any]:
        """Write part and sidecar of a unit anew; a process killed in between leaves the old ones."""
        part = put_part(self._output, unit, table)
        said = {**sidecar, **self._sidecar(part, rejected, encoded), "codes": len(table), "hashes": {}}
        replace_sidecar(self._output, unit, sidecar, said)
        return said

    def _encode_unit(self, unit: int, digest: int, listed: pa.Table) -> dict[str, Any]:
        with self._lock:
            # Whoever had it before, and was thought dead, may have finished it while this thread waited.
            if (done := self._job.sidecar(unit)) is not None:
                return done
            self._count_attempt(f"{unit:05d}", f"unit {unit} was begun")
            chaos.step("unit", unit)
            entries, encoded = self._encode_entries(listed)
        chaos.step("encoded", unit)
        return self._publish(unit, digest, entries, encoded)

    def _encode_entries(self, entries: pa.Table) -> tuple[pa.Table, Encoded]:
        """Encode the images of a unit; return their entries, which for a tar are known only now, and the outputs."""
        encoded = Encoded()
        contents: dict[int, int] = {}
        readers = self._readers[threading.get_ident()]
        if self._work.summary.kind != SHARDS:
            images = read_images(entries, readers)
            self._encode(self._hashed(images, contents), encoded)
            return with_ids(entries, contents), encoded
        samples: list[Sample] = []
        uri, source, start, stop = (entries[name][0].as_py() for name in ("uri", SOURCE, START, STOP))
        read = read_shard(source, start=start, stop=stop, skipped=encoded.skipped, opened=readers.shard)
        summary = self._work.summary
        self._encode(self._hashed(_shard_images(read, samples, summary.id_rule), contents), encoded)
        schema = pa.schema([*BASE_SCHEMA, *self._shard_attributes()])
        encoded.left_out |= take_json(samples, summary.shard_columns)
        known = {*summary.columns, *summary.dropped}
        encoded.left_out.update(*(sample.attributes.keys() - known for sample in samples))
        found = with_ids(shard_entries(uri, source, samples, schema, summary.id_rule), contents)
        return found if self._added is None else self._added.add_to(found), encoded

    def _hashed(self, images: Iterator[bytes | OSError], ids: dict[int, int]) -> Iterator[bytes | OSError]:
        """Pass images on; if ids are made from their bytes, keep the id of each that could be read."""
        by_content = self._work.summary.id_rule.by_content
        for row, image in enumerate(images):
            if by_content and isinstance(image, bytes):
                ids[row] = int(hashed_ids([image])[0])
            yield image

    def _publish(self, unit: int, digest: int, entries: pa.Table, encoded: Encoded) -> dict[str, Any]:
        """Write the codes of a unit, then its sidecar; return the sidecar that counts."""
        start = time.perf_counter()
        part = put_part(self._output, unit, self._table(entries, encoded))
        encoded.seconds["write"] = time.perf_counter() - start
        about = {"entries": digest, **self._sidecar(part, _rejects(entries, encoded.reasons), encoded)}
        said = self._job.publish(unit, about)
        if said["sha256"] != part["sha256"]:
            # An actor that was thought dead has published the unit meanwhile, from a machine that rounds differently.
            self._output.remove(part_name(unit, part["sha256"]))
        return said

    def _encode(self, images: Iterator[bytes | OSError], encoded: Encoded) -> None:
        for batch in self._pool.decode(images):
            start = time.perf_counter()
            output = self._encoder.encode_pixels(batch.pixels)
            encoded.add(batch, output, time.perf_counter() - start)

    def _shard_attributes(self) -> list[pa.Field]:
        summary = self._work.summary
        others = {*BASE_SCHEMA.names, *(() if self._added is None else self._added.schema.names)}
        names = [name for name in summary.columns if name not in others]
        return attribute_fields(names, summary.shard_columns)

    def _table(self, entries: pa.Table, encoded: Encoded) -> pa.Table:
        good = np.concatenate([np.zeros(0, np.int64), *encoded.good])
        table = entries.select(["id", *attribute_names(entries)])
        if len(good) < len(entries):
            table = table.take(pa.array(good))
        codes = [output.codes.astype("<u8", copy=False) for output in encoded.outputs]
        table = table.add_column(1, "code", _fixed_column(codes, len(good), 8 * -(-self._encoder.bits // 64)))
        if (kind := self._settings.features) is not None:
            features = [stored_features(output.features, kind).packed for output in encoded.outputs]
            column = _fixed_column(features, len(good), row_bytes(kind, self._encoder.feature_dim))
            table = table.append_column(FEATURES_COLUMN, column)
        if self._settings.thumbnail:
            table = table.append_column(THUMBNAIL_COLUMN, pa.array(encoded.thumbnails, pa.binary()))
        return table.replace_schema_metadata(None)

    def _sidecar(self, part: dict[str, Any], rejected: list[dict[str, Any]], encoded: Encoded) -> dict[str, Any]:
        return {
            "codes": sum(map(len, encoded.good)),
            "rejects": len(rejected),
            "rejected": rejected,
            "left_out": sorted(encoded.left_out),
            "skipped": dict(encoded.skipped),
            "seconds": {step: round(spent, 4) for step, spent in encoded.seconds.items()},
            **part,
        }


def _actor_id() -> str:
    """Return the id of the actor that this process is, the same after a restart, or of the process itself."""
    import ray

    actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
    return actor or str(os.getpid())


def _refuse_other_entries(unit: int, said: dict[str, Any], digest: int) -> dict[str, Any]:
    if said["entries"] != digest:
        raise PipelineError(
            f"unit {unit} was published meanwhile for an earlier listing of the corpus: make sure that no other job "
            "writes to the same folder, and run the same command again, which repeats the unit"
        )
    return said


def num_of_the_moment(sidecar: dict[str, Any]) -> int:
    """Return how many rejects of a unit are tried again when all units are finished."""
    return sum(row["kind"] in OF_THE_MOMENT for row in sidecar["rejected"])


def hashes_of(sidecar: dict[str, Any]) -> dict[int, int]:
    """Return the hashes of those rows of a unit's part whose ids are others; see `pipelines.encoding.settling`."""
    return {int(row): id_ for row, id_ in sidecar.get("hashes", {}).items()}


def replace_sidecar(output: Place, unit: int, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Replace the sidecar of a finished unit, whose new part is written, and remove the old part."""
    output.put(sidecar_name(unit), json.dumps(now).encode())
    if before["sha256"] != now["sha256"]:
        output.remove(part_name(unit, before["sha256"]))


def put_part(output: Place, unit: int, table: pa.Table) -> dict[str, Any]:
    """Write the codes of a unit; return what a sidecar says of the file."""
    buffer = io.BytesIO()
    # Ids, codes and names are all different, so dictionaries do not help; parts are read whole, so statistics do not.
    pq.write_table(table.combine_chunks(), buffer, use_dictionary=False, write_statistics=False)
    part = buffer.getvalue()
    sha256 = hashlib.sha256(part).hexdigest()
    output.put(part_name(unit, sha256), part)
    return {"bytes": len(part), "sha256": sha256}


def _shard_images(read: Iterator[Sample], samples: list[Sample], ids: IdRule) -> Iterator[bytes | OSError]:
    """Pass a shard's images on, and keep the rest of its samples.

    The second image with the same name is an error, and one without the id that its JSON must have.
    """
    names: set[str] = set()
    for sample in read:
        data = sample.data if sample.name not in names else RepeatedError(f"{sample.name} occurs twice in the shard")
        try:
            own_id(sample, ids)
        except ValueError as error:
            data = OSError(str(error)) if isinstance(data, bytes) else data
        names.add(sample.name)
        sample.data = b""
        samples.append(sample)
        yield data


def _fixed_column(rows: list[np.ndarray], count: int, width: int) -> pa.FixedSizeBinaryArray:
    raw = b"".join(part.tobytes() for part in rows)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, pa.py_buffer(raw)])


def _rejects(entries: pa.Table, reasons: dict[int, Reason]) -> list[dict[str, Any]]:
    found = entries.select(["id", "uri"]).take(list(reasons)).to_pylist() if reasons else []
    return [
        {"row": row, **named, "kind": kind, "reason": words}
        for named, (row, (kind, words)) in zip(found, reasons.items(), strict=True)
    ]
