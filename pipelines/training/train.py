"""Train an encoder on a corpus.

A local encoder is replaced in one step. One in a bucket is replaced file by file: a process that loads it in between
gets an `EncoderError`, never a mixture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hashlight.encoders.data.prepared import PreparedImages
from hashlight.encoders.data.supervision.protocol import NOTHING
from hashlight.encoders.encoder import CONFIG_FILE, NETWORK_FILE, WEIGHTS_FILE, HashEncoder
from hashlight.encoders.networks.backbones import preprocessing_of
from hashlight.encoders.networks.weights import is_file_of_weights
from hashlight.encoders.training.checkpoints import CHECKPOINT_FILE, LOG_FILE
from hashlight.encoders.training.train import Progress, TrainConfig, train
from hashlight.engine.places.files import folder_written_aside, make_folder
from hashlight.engine.places.opening import open_target
from hashlight.engine.places.place import Place
from hashlight.engine.places.uris import is_local, normalise, without_credentials
from hashlight.pipelines.codes.encoder import save_encoder
from hashlight.pipelines.corpora.options import NO_OPTIONS, CorpusOptions
from hashlight.pipelines.decoding.images import prepared_images
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, JobKind, private_folder
from hashlight.pipelines.training.material import AUTO, LabelsFrom, Material, Preparation, gather
from hashlight.pipelines.training.workers import train_with_workers

TrainingProgress = Callable[[int, int, Progress], None]

TRAINING = JobKind(
    holds="unfinished training",
    private=True,
    remedy="run that training again to finish it, choose another --output, or start over with --overwrite",
)


def train_encoder(
    corpus: str | Path,
    output: str | Path,
    config: TrainConfig | None = None,
    *,
    supervision: str | None = None,
    pairs: str | Path | None = None,
    labels: LabelsFrom = AUTO,
    options: CorpusOptions = NO_OPTIONS,
    overwrite: bool = False,
    workers: int | None = None,
    address: str | None = None,
    progress: TrainingProgress | None = None,
) -> HashEncoder:
    """Train an encoder on a corpus and save it: `gather`, then `train_on`, which have the arguments."""
    config = config or TrainConfig()
    place = check_output(output, overwrite=overwrite, workers=workers, address=address)
    check_weights(config.weights)
    material = gather(
        corpus,
        supervision=supervision,
        pairs=pairs,
        labels=labels,
        options=options,
        method=config.method,
        preparation=preparation_for(config.backbone, config.weights, place, workers=workers),
    )
    return train_on(material, output, config, overwrite=overwrite, workers=workers, address=address, progress=progress)


def train_on(
    material: Material,
    output: str | Path,
    config: TrainConfig,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    address: str | None = None,
    progress: TrainingProgress | None = None,
) -> HashEncoder:
    """Train an encoder and save it.

    While it runs, a folder beside `output`, `.NAME.training`, keeps its checkpoint and log; for an `output` in a bucket
    it is a folder of the user's cache, unless there are `workers`, which may run elsewhere. The same call after an
    interruption resumes from there. The log of a finished training, `training.jsonl`, is in `output`.

    Parameters
    ----------
    material : Material
    output : str or Path
        Folder for the encoder, or a prefix in a bucket.
    config : TrainConfig
    overwrite : bool
        Replace an encoder that is there, and start an interrupted training over.
    workers : int, optional
        Train on Ray, in this many processes that share every batch (`pipelines.training.workers`); in this process if
        left out.
    address : str, optional
        Address of a Ray cluster for the workers. `output` must then be on storage that its machines share, or in a
        bucket.
    progress : callable, optional
        Called after every step with (step of this phase, steps of this phase, `encoders.training.train.Progress`).

    Raises
    ------
    PipelineError
        If `output` is taken.
    ValueError
        If the method cannot learn from the material.
    """
    place = check_output(output, overwrite=overwrite, workers=workers, address=address)
    report = None if progress is None else (lambda state: progress(state.step, state.steps, state))
    job = JobFolder(private_folder(place, "training", shared=workers is not None), TRAINING)
    with job.place.lock():
        if overwrite:
            job.clear()
        job.begin(_identity(material, config), overwrite=False)
        encoder = _train(job, material, config, place, workers=workers, address=address, report=report)
        _save(encoder, place, job)
    return encoder


def check_output(output: str | Path, *, overwrite: bool, workers: int | None, address: str | None) -> Place:
    """Return the place of an encoder that is to be trained.

    Raises
    ------
    PipelineError
        If it is taken.
    ValueError
        If there is an address without workers.
    """
    if address is not None and workers is None:
        raise ValueError("`address` goes with `workers`: say how many to start on the cluster")
    place = open_target(normalise(output))
    refuse_taken(place, overwrite=overwrite)
    return place


def preparation_for(
    backbone: str | None, weights: str | None, output: Place, *, workers: int | None
) -> Preparation | None:
    """Return how images are prepared as they are read; None if the backbone is not known, or workers decode them."""
    if workers is not None or backbone is None:
        return None
    beside = None if output.local is None else next(path for path in output.local.parents if path.is_dir())
    return Preparation(preprocessing_of(backbone, weights), beside)


def check_weights(weights: str | None) -> None:
    """Raise PipelineError unless the weights of a backbone can be read from this machine."""
    if weights is not None and not is_local(weights):
        raise PipelineError(
            f"the weights of a backbone are read from this machine, got {without_credentials(weights)}: copy them here"
        )
    if weights is not None and is_file_of_weights(weights) and not Path(weights).is_file():
        raise PipelineError(f"there are no weights at {weights}: expected a file of this machine")


def _identity(material: Material, config: TrainConfig) -> dict[str, Any]:
    """Return what the weights depend on, except labels and pairs, which are compared with the checkpoint."""
    return {
        "corpus": material.corpus,
        "images": len(material.entries),
        "listing": hashlib.sha256(material.entries["id"].to_numpy().tobytes()).hexdigest(),
        "supervision": next(iter(material.given), NOTHING),
        **asdict(config),
    }


def _prepared(material: Material, config: TrainConfig, output: Place) -> PreparedImages:
    """Return the images, resized for the backbone, which may be known only since they were read."""
    if isinstance(material.images, PreparedImages):
        return material.images
    preparation = preparation_for(config.backbone, config.weights, output, workers=None)
    assert preparation is not None, "there are no workers"
    good, images = prepared_images(material.entries, preparation.rule, preparation.folder, material.images)
    if len(good) < len(material.entries):
        raise PipelineError("an image could not be decoded again: the log gives the reason; run the same command again")
    return images


def _train(
    job: JobFolder,
    material: Material,
    config: TrainConfig,
    output: Place,
    *,
    workers: int | None,
    address: str | None,
    report: Callable[[Progress], None] | None,
) -> HashEncoder:
    """Train in this process or several; a training that fails before its first checkpoint leaves nothing."""
    folder = job.place
    try:
        if workers is None:
            images = _prepared(material, config, output)
            return train(images, config=config, folder=folder, progress=report, **material.given)
        assert not isinstance(material.images, PreparedImages), "workers decode images themselves"
        return train_with_workers(
            material.images, config, workers=workers, folder=folder, address=address, progress=report, **material.given
        )
    except BaseException:
        if not job.place.exists(CHECKPOINT_FILE):
            job.remove()
        raise


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
