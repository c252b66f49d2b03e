"""Train an encoder on a corpus.

A local encoder is replaced in one step. One in a bucket is replaced file by file: a process that loads it in between
gets an `EncoderError`, never a mixture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from hashlight.encoders.data.supervision.pairs import PairList
from hashlight.encoders.data.supervision.protocol import LABELS, NOTHING, PAIRS, VIEWS
from hashlight.encoders.encoder import CONFIG_FILE, NETWORK_FILE, WEIGHTS_FILE, HashEncoder
from hashlight.encoders.methods import METHODS
from hashlight.encoders.networks.backbones import FILE_SUFFIXES
from hashlight.encoders.training.checkpoints import CHECKPOINT_FILE, LOG_FILE
from hashlight.encoders.training.train import Progress, TrainConfig, train
from hashlight.engine.places.files import folder_written_aside, make_folder
from hashlight.engine.places.opening import open_place, open_target
from hashlight.engine.places.place import Place
from hashlight.engine.places.uris import is_local, normalise, split_name, without_credentials
from hashlight.engine.wording import counted
from hashlight.pipelines.codes.encoder import save_encoder
from hashlight.pipelines.corpora.corpus import list_corpus
from hashlight.pipelines.corpora.labels import has_labels, labels_of
from hashlight.pipelines.decoding.images import readable_images
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, JobKind
from hashlight.pipelines.training.workers import train_with_workers

TrainingProgress = Callable[[int, int, Progress], None]

TRAINING = JobKind(
    holds="unfinished training",
    private=True,
    remedy="run that training again to finish it, choose another --output, or start over with --overwrite",
)

SUPERVISIONS = (LABELS, PAIRS, VIEWS, NOTHING)


def train_encoder(
    corpus: str | Path,
    output: str | Path,
    config: TrainConfig | None = None,
    *,
    supervision: str | None = None,
    pairs: str | Path | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    address: str | None = None,
    progress: TrainingProgress | None = None,
) -> HashEncoder:
    """Train an encoder on a corpus and save it.

    While it runs, a folder beside `output`, `.NAME.training`, keeps its checkpoint and log; for an `output` in a bucket
    it is a folder of the user's cache. The same call after an interruption resumes from there. The log of a finished
    training, `training.jsonl`, is in `output`.

    Parameters
    ----------
    corpus : str or Path
        As in `pipelines.corpora.corpus.list_corpus`. Images that cannot be decoded are left out, with a warning.
    output : str or Path
        Folder for the encoder, or a prefix in a bucket.
    config : TrainConfig, optional
    supervision : {"labels", "pairs", "views", "nothing"}, optional
        What the method learns from. If left out: pairs if there are any, else labels if the corpus has them or the
        method reads them, else nothing.
    pairs : str or Path, optional
        CSV or Parquet, local or in a bucket, with columns `a`, `b` (ids of the corpus, or URIs) and `similar` (0 or 1).
    overwrite : bool
        Replace an encoder that is there, and start an interrupted training over.
    workers : int, optional
        Train on Ray, in this many processes that share every batch (`pipelines.training.workers`); in this process if
        left out.
    address : str, optional
        Address of a Ray cluster for the workers. `output` must then be on storage that its machines share.
    progress : callable, optional
        Called after every step with (step of this phase, steps of this phase, `encoders.training.train.Progress`).

    Raises
    ------
    PipelineError
        If the corpus has no images or labels, the pairs name others, or `output` is taken.
    """
    config = config or TrainConfig()
    place = open_target(normalise(output))
    _check_address(workers, address)
    refuse_taken(place, overwrite=overwrite)
    entries, images = _read_corpus(corpus, config.weights, pairs)
    given = _supervision(supervision, pairs, entries, config)
    report = None if progress is None else (lambda state: progress(state.step, state.steps, state))
    job = JobFolder(_folder_of(place, address), TRAINING)
    with job.place.lock():
        if overwrite:
            job.clear()
        job.begin(_identity(corpus, entries, given, config), overwrite=False)
        encoder = _train(job, images, config, workers=workers, address=address, report=report, given=given)
        _save(encoder, place, job)
    return encoder


def _check_address(workers: int | None, address: str | None) -> None:
    if address is not None and workers is None:
        raise ValueError("`address` goes with `workers`: say how many to start on the cluster")


def _read_corpus(corpus: str | Path, weights: str | None, pairs: str | Path | None) -> tuple[pa.Table, Sequence[bytes]]:
    """Read a corpus, once the weights and the pairs are known to be there."""
    if weights is not None and not is_local(weights):
        raise PipelineError(
            f"the weights of a backbone are read from this machine, got {without_credentials(weights)}: copy them here"
        )
    if weights is not None and weights.endswith(FILE_SUFFIXES) and not Path(weights).is_file():
        raise PipelineError(f"there are no weights at {weights}: expected a file of this machine")
    if pairs is not None and not open_place(pairs).exists():
        raise PipelineError(f"there is no list of pairs at {open_place(pairs)}: expected a CSV or Parquet file")
    return readable_images(list_corpus(corpus))


def _folder_of(output: Place, address: str | None) -> str | Path:
    """Return the folder of a training's checkpoint: beside the encoder, or on this machine if that is in a bucket."""
    if output.local:
        location, name = split_name(output.location)
        return open_place(location).location_of(f".{name}.training")
    if address is not None:
        raise PipelineError(
            f"the workers of a cluster need a folder for checkpoints that they share, got {output}: choose an --output "
            "on storage that all machines mount"
        )
    digest = hashlib.sha256(output.location.encode()).hexdigest()[:32]
    return Path(platformdirs.user_cache_dir("hashlight")) / "training" / digest


def _identity(corpus: str | Path, entries: pa.Table, given: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Return what the weights depend on, except labels and pairs, which are compared with the checkpoint."""
    return {
        "corpus": str(open_place(corpus)),
        "images": len(entries),
        "listing": hashlib.sha256(entries["id"].to_numpy().tobytes()).hexdigest(),
        "supervision": next(iter(given), NOTHING),
        **asdict(config),
    }


def _train(
    job: JobFolder,
    images: Sequence[bytes],
    config: TrainConfig,
    *,
    workers: int | None,
    address: str | None,
    report: Callable[[Progress], None] | None,
    given: dict[str, Any],
) -> HashEncoder:
    """Train in this process or several; a training that fails before its first checkpoint leaves nothing."""
    folder = job.place.local
    assert folder is not None, "checkpoints are kept on this machine"
    try:
        if workers is None:
            return train(images, config=config, folder=folder, progress=report, **given)
        return train_with_workers(
            images, config, workers=workers, folder=folder, address=address, progress=report, **given
        )
    except BaseException:
        if not job.place.exists(CHECKPOINT_FILE):
            job.remove()
        raise


def _supervision(kind: str | None, pairs: str | Path | None, entries: pa.Table, config: TrainConfig) -> dict[str, Any]:
    """Return the arguments of `train` that say what is known about the images."""
    if kind is None:
        labelled = has_labels(entries) or METHODS[config.method].reads_classes
        kind = PAIRS if pairs is not None else LABELS if labelled else NOTHING
    if kind not in SUPERVISIONS:
        raise PipelineError(f"`supervision` must be one of {', '.join(SUPERVISIONS)}, got {kind!r}")
    if (kind == PAIRS) != (pairs is not None):
        got = "no list of pairs" if pairs is None else f"a list of pairs with supervision by {kind}"
        raise PipelineError(f"supervision by pairs and a list of pairs go together, got {got}")
    if pairs is not None:
        return {"pairs": read_pairs(pairs, entries)}
    if kind == LABELS:
        return {"labels": labels_of(entries)[0]}
    return {"views": True} if kind == VIEWS else {}


def read_pairs(path: str | Path, entries: pa.Table) -> PairList:
    """Read a list of pairs and look their images up in a corpus listing.

    Raises
    ------
    PipelineError
        If the file is not one, or names an image that the corpus lacks.
    """
    where = str(open_place(path))
    try:
        data = pa.BufferReader(open_place(path).read())
        table = pq.read_table(data) if where.endswith(".parquet") else pyarrow.csv.read_csv(data)
    except (pa.ArrowInvalid, OSError) as error:
        raise PipelineError(f"{where} is not a readable list of pairs (CSV or Parquet): {error}") from error
    missing = {"a", "b", "similar"} - set(table.column_names)
    if missing:
        raise PipelineError(
            f"{where} lacks the columns {sorted(missing)}: expected a, b, similar, got {table.column_names}"
        )
    return PairList(
        _positions(table["a"], entries, where), _positions(table["b"], entries, where), np.asarray(table["similar"])
    )


def _positions(names: pa.ChunkedArray, entries: pa.Table, path: str) -> np.ndarray:
    key = "id" if pa.types.is_integer(names.type) else "uri"
    position = {name: row for row, name in enumerate(entries[key].to_pylist())}
    wanted = names.to_pylist()
    unknown = [name for name in wanted if name not in position]
    if unknown:
        raise PipelineError(
            f"{path} names {counted(len(unknown), 'image')} by {key} that the corpus lacks or that cannot be decoded, "
            f"first {unknown[0]!r}"
        )
    return np.array([position[name] for name in wanted], np.int64)


def refuse_taken(output: Place, *, overwrite: bool) -> None:
    """Raise PipelineError unless an encoder may be written to a place."""
    entry = output.entry()
    if entry is not None and not entry.is_folder:
        raise PipelineError(f"{output} is a file, expected a folder for the encoder: choose another --output")
    names = set(output.names(hidden=True))
    is_encoder = names - {LOG_FILE, NETWORK_FILE} == {CONFIG_FILE, WEIGHTS_FILE}
    # In a bucket the files appear one by one, the configuration last: without it they are what a killed save left.
    is_unfinished = output.local is None and names <= {LOG_FILE, NETWORK_FILE, WEIGHTS_FILE}
    if not is_unfinished and names and not (overwrite and is_encoder):
        raise PipelineError(
            f"{output} is not empty (it has {', '.join(sorted(names)[:3])}): choose another --output, or replace an "
            "encoder that is there with --overwrite"
        )


def _save(encoder: HashEncoder, output: Place, job: JobFolder) -> None:
    """Publish the encoder and its training log, and remove the checkpoint."""
    log = job.place.find(LOG_FILE)
    publish_encoder(encoder, output, None if log is None else log.data)
    job.remove()


def publish_encoder(encoder: HashEncoder, output: Place, log: bytes | None = None) -> None:
    """Publish an encoder and its log: to a local folder in one step, to a bucket with the encoder last."""
    if output.local is None:
        if log is not None:
            output.put(LOG_FILE, log)
        save_encoder(encoder, output)
        return
    make_folder(output.local.parent)
    with folder_written_aside(output.local) as aside:
        encoder.save(aside)
        if log is not None:
            (aside / LOG_FILE).write_bytes(log)
