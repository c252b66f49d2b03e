"""Training on Ray: the training loop in several processes that share every batch (`encoders.training.workers`).

A lost worker takes the others with it: Ray Train starts all of them again, and they resume from the loop's checkpoint
and reach the weights that an undisturbed run would have. An error that every attempt would meet, such as an image that
cannot be decoded, ends the run instead.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.training.train import Progress, TrainConfig, train
from hashlight.encoders.training.workers import Workers
from hashlight.engine.places.place import Place
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.nodes import look, refuse_unshared
from hashlight.pipelines.jobs.session import ray_session

# How often workers may be lost: enough for machines that come and go, not for a fault that kills every attempt.
MAX_LOSSES = 8
_POLL_S = 0.2
# Ray's default of one minute is too short to import torch on a busy machine, and Ray would retry for ever.
_START_S = 600


def train_with_workers(
    images: Sequence[bytes],
    config: TrainConfig,
    *,
    workers: int,
    folder: Place,
    address: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    **supervision: Any,
) -> HashEncoder:
    """Train an encoder with several workers, each on one CPU, or on one GPU if `config.device` is "cuda".

    Parameters
    ----------
    images : sequence of bytes
        Encoded images.
    config : TrainConfig
        `batch_size` is that of all workers together.
    workers : int
    folder : Place
        Folder of the checkpoint, on storage that all machines share, or in a bucket.
    address : str, optional
        Address of a Ray cluster; a new session on this machine if left out.
    progress : callable, optional
        Called here after every step.
    **supervision
        `labels`, `pairs` or `views` of `encoders.training.train.train`.

    Raises
    ------
    PipelineError
        If the cluster has fewer CPUs or GPUs than workers, or workers were lost too often.
    """
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}")
    with ray_session(num_cpus=max(workers, os.cpu_count() or 1), address=address):
        import ray

        _refuse_too_many(workers, config.device)
        weights = [str(config.weights)] if config.weights else []
        refuse_unshared([look("--weights", weights[0], weights)] if weights else [], {"--output": folder.location})
        board = ray.remote(num_cpus=0)(_Board).remote()
        job = {
            "board": board,
            # In a list, so that Ray passes the reference on instead of the images themselves.
            "images": [ray.put(pa.array(images, pa.large_binary()))],
            "config": config,
            "folder": folder,
            "supervision": supervision,
        }
        return _run(_trainer(job, workers), board, progress)


class _Board:
    """An actor by which workers report to the driver, and by which they are stopped."""

    def __init__(self) -> None:
        self._steps: list[Progress] = []
        self._fault: Exception | None = None

    def report(self, step: Progress) -> None:
        self._steps.append(step)

    def take(self) -> list[Progress]:
        """Return the steps since the last call."""
        steps, self._steps = self._steps, []
        return steps

    def fail(self, fault: Exception) -> None:
        """Keep the first fault, which ends the run."""
        self._fault = self._fault or fault

    def fault(self) -> Exception | None:
        return self._fault


class _Encoded:
    """Encoded images in Ray's shared memory, which all workers of a machine read without a copy of their own."""

    def __init__(self, images: pa.LargeBinaryArray):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> bytes:
        data: bytes = self._images[index].as_py()
        return data


def _trainer(job: dict[str, Any], workers: int) -> Any:
    # Workers stay in the driver's folder, so that a relative path of weights means the same there as here.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_S))
    from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
    from pyarrow.fs import FSSpecHandler, PyFileSystem
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # Ray runs the second version of its trainer, but its types describe the first, whose function returns nothing.
    return TorchTrainer(
        _work,  # type: ignore[arg-type]
        train_loop_config=job,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=job["config"].device == "cuda"),
        run_config=RunConfig(
            # The checkpoint is not Ray's, which has nothing to store: its mark need not be seen by other machines.
            storage_path="/hashlight",
            storage_filesystem=PyFileSystem(FSSpecHandler(MemoryFileSystem())),
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=MAX_LOSSES, controller_failure_limit=MAX_LOSSES
            ),
        ),
    )


def _work(job: dict[str, Any]) -> HashEncoder | None:
    """Train in one worker; the first returns the encoder."""
    import ray
    from ray.train.torch import get_device

    board = job["board"]
    if ray.get(board.fault.remote()) is not None:
        return None
    if job["config"].device == "cuda":
        torch.cuda.set_device(get_device())
    workers = Workers.of_process_group()

    def report(step: Progress) -> None:
        board.report.remote(step)
        if (fault := ray.get(board.fault.remote())) is not None:
            raise fault

    try:
        encoder = train(
            _Encoded(ray.get(job["images"][0])),
            config=job["config"],
            folder=job["folder"],
            progress=report,
            workers=workers,
            **job["supervision"],
        )
    except Exception as error:
        if not _is_of_lost_worker(error):
            ray.get(board.fail.remote(error))
        raise
    return encoder if workers.is_first else None


def _is_of_lost_worker(error: Exception) -> bool:
    """Whether the loss of another worker may be the cause: gloo raises plain RuntimeError, NCCL its own."""
    return type(error) is RuntimeError or isinstance(error, dist.DistError)


def _run(trainer: Any, board: Any, progress: Callable[[Progress], None] | None) -> HashEncoder:
    """Wait for the trainer and report the steps; an interruption here stops the workers at their next step."""
    import ray
    import ray.train

    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(_fit(trainer)), daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_S)
            for step in ray.get(board.take.remote()):
                if progress is not None:
                    progress(step)
    except BaseException:
        ray.get(board.fail.remote(_StoppedError("stopped by the driver")))
        thread.join()
        raise
    if (fault := ray.get(board.fault.remote())) is not None:
        raise fault
    if isinstance(outcome[0], ray.train.TrainingFailedError):
        raise PipelineError(
            f"workers were lost more than {MAX_LOSSES} times, or could not be started; the same `hashlight train` "
            f"resumes from the last checkpoint. The last failure: {' '.join(str(outcome[0]).split())[:500]}"
        ) from outcome[0]
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    encoder: HashEncoder = outcome[0]
    return encoder


class _StoppedError(Exception):
    """The driver has asked the workers to stop."""


def _fit(trainer: Any) -> Any:
    """Return what training returns, or the exception that ended it, to the thread that waits."""
    try:
        return trainer.fit().return_value
    except Exception as error:
        return error


def _refuse_too_many(workers: int, device: str) -> None:
    import ray

    kind = "GPU" if device == "cuda" else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if workers > there:
        raise PipelineError(
            f"{workers} workers need {workers} {kind}s, the cluster has {there}: ask for fewer --workers"
        )
