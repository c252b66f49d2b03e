"""Index a corpus: from images to a collection that can be searched and served, in one job.

The corpus is listed. A sample of it says which encoder suits the images, and what the rest will take; it is fitted to
the images, without labels, or trained on them if they are small, grey and labelled. Then they are encoded and built,
with thumbnails and features. Until the collection is committed, everything is kept in a folder beside it,
`.NAME.index`, from which the same call resumes::

    .NAME.index/
      job.json      corpus and encoder; it marks the folder
      work.arrow    what is listed, without images that the collection has
      encoder/      the encoder, if it was fitted or trained; `.encoder.training` while it is trained
      codes/        the folder of an encode job

A collection that is there gets the images that it does not have, by their ids, encoded as its own were.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hashlight.encoders.encoder import CONFIG_FILE, HashEncoder
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.opening import refuse_foreign_folder
from hashlight.engine.collection.writing.transaction import Commit
from hashlight.engine.features import FLOAT16, FeatureKind, row_bytes
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.places.opening import open_target
from hashlight.engine.places.place import Place
from hashlight.engine.places.uris import normalise, without_credentials
from hashlight.pipelines.building.build import Progress as BuildProgress
from hashlight.pipelines.building.build import build_collection
from hashlight.pipelines.capacity.constants import bytes_per_code
from hashlight.pipelines.codes.parts import FEATURES_COLUMN, THUMBNAIL_COLUMN
from hashlight.pipelines.codes.summary import EncodeSummary
from hashlight.pipelines.corpora.listing import SHARDS
from hashlight.pipelines.corpora.work import UNIT_IMAGES, WorkList, WorkSummary, WorkWriter, cut, list_work
from hashlight.pipelines.encoding.encode import Progress as EncodeProgress
from hashlight.pipelines.encoding.encode import encode_corpus
from hashlight.pipelines.indexing.choice import AUTO, Chosen, choose, measure
from hashlight.pipelines.indexing.sample import Look, UnreadableError, look_at
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, JobKind, private_folder
from hashlight.pipelines.searching.encoder import load_encoder

THUMBNAIL = 256
_WORK, _ENCODER, _TRAINING, _CODES = "work.arrow", "encoder", ".encoder.training", "codes"
# Starting the processes and writing the collection, whatever the images.
_START_S = 10.0
# URI and label of an image, compressed.
_ATTRIBUTE_BYTES = 30
_COMPARED_URIS = 1000

INDEX = JobKind(
    holds="unfinished index",
    identified_by=("corpus", "encoder"),
    private=True,
    remedy="run that `hashlight index` again to finish it, or delete {folder} to abandon it",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an index job will do.

    Attributes
    ----------
    work : WorkSummary
        What is encoded; without images that the collection has.
    known : int
        Images of the corpus that the collection has already.
    look : Look
    encoder : str
        Which encoder, and why.
    bits : int
    features : int or None
        Numbers of the features that are kept of each image.
    features_as : {"float16", "bfloat16", "int8"}
        What they are kept as.
    thumbnail : int
        Longest side of the thumbnails; 0 for none.
    seconds, num_bytes : float or None
        What it will take, about; None if the number of images is not known before they are read.
    """

    work: WorkSummary
    known: int
    look: Look
    encoder: str
    bits: int
    features: int | None
    features_as: FeatureKind
    thumbnail: int
    seconds: float | None
    num_bytes: float | None


class IndexJob:
    """A job whose plan is made; the steps are called in order.

    Attributes
    ----------
    plan : Plan or None
        None if the collection has all images of the corpus that can be decoded.
    unreadable : int
        How many others there are then.
    example : str or None
        The file of an image of the corpus, to search for.
    """

    def __init__(
        self, folder: JobFolder, place: Place, live: Collection | None, encoder: str, features_as: FeatureKind | None
    ) -> None:
        self._folder, self._place, self._live, self._asked = folder, place, live, encoder
        self._features_as = features_as
        assert folder.place.local is not None, "it is kept on this machine"
        self._path = folder.place.local
        self._chosen: Chosen | None = None
        self._encoder: HashEncoder | None = None
        self.plan: Plan | None = None
        self.unreadable = 0
        self.example: str | None = None

    def prepare(self, corpus: str | Path) -> None:
        """List the corpus, look at a sample, and choose the encoder."""
        known = self._list(corpus)
        if known is None:
            return
        work, num_known = known
        try:
            look = look_at(self._path / _WORK, thumbnail=THUMBNAIL)
        except UnreadableError:
            if self._live is None:
                raise
            self.unreadable = work.images or 0
            return
        self._chosen = self._choose(work, look, corpus)
        self.plan = self._plan(work, num_known, look, self._chosen)

    def _choose(self, work: WorkSummary, look: Look, corpus: str | Path) -> Chosen:
        fitted = self._path / _ENCODER
        if self._live is not None:
            encoder = None if self._asked == AUTO else self._asked
            found = load_encoder(self._live, encoder)
            found.config.pictures  # noqa: B018 - refuses encoders of embeddings
            return Chosen(found, "that of the collection")
        if (fitted / CONFIG_FILE).is_file():
            return Chosen(HashEncoder.load(fitted), "the one that was fitted before the interruption")
        return choose(self._asked, look, work, corpus)

    def _list(self, corpus: str | Path) -> tuple[WorkSummary, int] | None:
        """Write the work list; return its summary and the number of known images, None if all are known."""
        path = self._path / _WORK
        with tempfile.TemporaryDirectory(prefix="hashlight-index-") as scratch:
            listed = Path(scratch, _WORK)
            summary = list_work(corpus, listed)
            self.example = _example(listed)
            if self._live is None or summary.kind == SHARDS:
                path.write_bytes(listed.read_bytes())
                return summary, 0
            return _write_new(listed, path, self._live)

    def _plan(self, work: WorkSummary, known: int, look: Look, chosen: Chosen) -> Plan:
        keeps_features = chosen.keeps_features and FEATURES_COLUMN not in work.columns
        keeps_thumbnails = THUMBNAIL_COLUMN not in work.columns
        if self._live is not None:
            keeps_features = self._live.num_features is not None
            keeps_thumbnails = self._live.manifest.thumbnails
        features = chosen.probe.feature_dim if keeps_features else None
        features_as = self._kept_as(keeps_features=keeps_features)
        seconds = num_bytes = None
        if (images := work.images) is not None:
            took = measure(chosen.probe, look.images[:8])
            each = took.decode_s + took.encode_s
            seconds = _START_S + images * each / usable_cores() + chosen.fit_s(images, took)
            kept = look.thumbnail_bytes * keeps_thumbnails + _ATTRIBUTE_BYTES
            kept += 0 if features is None else row_bytes(features_as, features)
            num_bytes = images * (bytes_per_code(chosen.probe.bits, images) + kept)
        return Plan(
            work=work,
            known=known,
            look=look,
            encoder=chosen.why,
            bits=chosen.probe.bits,
            features=features,
            features_as=features_as,
            thumbnail=THUMBNAIL if keeps_thumbnails else 0,
            seconds=seconds,
            num_bytes=num_bytes,
        )

    def _kept_as(self, *, keeps_features: bool) -> FeatureKind:
        asked, live = self._features_as, self._live
        if asked is not None and not keeps_features:
            raise PipelineError(f"no features are kept of these images, got `features_as` {asked}: leave it out")
        if asked is not None and live is not None and asked != live.features_as:
            raise PipelineError(f"{live} keeps features as {live.features_as}, got `features_as` {asked}: leave it out")
        return asked or (FLOAT16 if live is None else live.features_as)

    @property
    def fits(self) -> bool:
        """Whether an encoder is to be fitted."""
        return self._made.fits

    def fit(self) -> None:
        """Fit the encoder, if that is to be done."""
        self._encoder = self._made.make(self._path / _WORK, self._path / _ENCODER)

    def encode(self, progress: EncodeProgress | None = None) -> EncodeSummary:
        """Encode the images."""
        assert self.plan is not None, "there is something to do"
        assert self._encoder is not None, "it is fitted"
        return encode_corpus(
            self._path / _WORK,
            self._encoder,
            self._folder.place.location_of(_CODES),
            features=False if self.plan.features is None else self.plan.features_as,
            thumbnail=self.plan.thumbnail,
            progress=progress,
        )

    def rejects(self, most: int) -> list[tuple[str, str]]:
        """Return where the first images are that could not be encoded, and why; until `build` removes the list."""
        data = self._folder.place.read(f"{_CODES}/rejects.parquet")
        table = pq.read_table(pa.BufferReader(data), columns=["uri", "reason"]).slice(0, most)
        return list(zip(*table.to_pydict().values(), strict=True))

    def build(self, progress: BuildProgress | None = None) -> Commit:
        """Build the collection, or add to it, and remove what the job kept."""
        assert self.plan is not None, "there is something to do"
        is_new = self._live is None
        done = build_collection(
            self._folder.place.location_of(_CODES),
            self._place.location,
            append=not is_new,
            upsert=not is_new and self.plan.work.kind == SHARDS,
            progress=progress,
        )
        self._folder.remove()
        return done

    @property
    def _made(self) -> Chosen:
        assert self._chosen is not None, "it was chosen"
        return self._chosen


@contextlib.contextmanager
def index_job(
    corpus: str | Path, output: str | Path, encoder: str = AUTO, features_as: FeatureKind | None = None
) -> Iterator[IndexJob]:
    """Prepare to index a corpus, and yield the job.

    Parameters
    ----------
    corpus : str or Path
        As in `pipelines.corpora.corpus`.
    output : str or Path
        The collection: a folder, or a prefix in a bucket. A collection that is there gets the images that it lacks.
    encoder : str
        "auto", the name of a copy code, or the folder of an encoder.
    features_as : {"float16", "bfloat16", "int8"}, optional
        What features are kept as; by default float16, or as the collection has them.

    Raises
    ------
    PipelineError
        If the corpus cannot be read, there is an unfinished job with another corpus or encoder, or the encoder cannot
        be had.
    HashlightError
        If `output` is something else, or a collection of another encoder.
    """
    place = open_target(normalise(output))
    refuse_foreign_folder(place)
    folder = JobFolder(private_folder(place, "index"), INDEX)
    with folder.place.lock():
        live = Collection.open(place.location) if place.exists("CURRENT") else None
        identity = {"corpus": without_credentials(normalise(corpus)), "encoder": encoder}
        folder.begin(identity | ({"features_as": features_as} if features_as else {}), overwrite=False)
        job = IndexJob(folder, place, live, encoder, features_as)
        try:
            job.prepare(corpus)
            yield job
        finally:
            if not {_ENCODER, _TRAINING, _CODES} & set(folder.place.names(hidden=True)):
                folder.remove()  # nothing would be lost


def _write_new(listed: Path, path: Path, live: Collection) -> tuple[WorkSummary, int] | None:
    """Write a work list of what a collection does not have, by its ids; None if it has all."""
    known = 0
    with pa.memory_map(str(listed)) as raw, WorkWriter(path) as writer:
        work = WorkList(raw, str(listed))

        def new() -> Iterator[pa.Table]:
            nonlocal known
            for entries in work.read_all():
                is_known = live.has(entries["id"].to_numpy())
                if is_known.any():
                    _refuse_others(live, entries.filter(pa.array(is_known)), first=not known)
                known += int(is_known.sum())
                if not is_known.all():
                    yield entries.filter(pa.array(~is_known))

        for unit in cut(new(), UNIT_IMAGES):
            writer.add(unit)
        if not writer.entries:
            return None
        return writer.finish(replace(work.summary, images=writer.entries, digest="")), known


def _refuse_others(live: Collection, known: pa.Table, *, first: bool) -> None:
    """Raise PipelineError if the images that a collection has by some ids are those of another folder."""
    if not first or "uri" not in live.schema.names:
        return
    known = known.slice(0, _COMPARED_URIS)
    there = live.get(known["id"].to_numpy())["uri"].to_pylist()
    here = known["uri"].to_pylist()
    if not set(there) & set(here):
        raise PipelineError(
            f"{live} has images of the same names from another folder (such as {there[0]}, here {here[0]}): if these "
            "are other images, give their folder another name, from which ids are made, and index that; if it is the "
            "same folder, which was moved, index it into a new collection"
        )


def _example(work: Path) -> str | None:
    """Return the first image of a work list that is a file of its own."""
    with pa.memory_map(str(work)) as raw:
        entries: dict[str, Any] = WorkList(raw, str(work)).read(0).slice(0, 1).to_pydict()
    is_file = entries["__row"] == [-1] and entries["__source"] == entries["uri"]
    return str(entries["uri"][0]) if is_file and Path(entries["uri"][0]).is_file() else None
