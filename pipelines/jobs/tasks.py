"""Many tasks on Ray, a few at a time: what a job keeps in flight is bounded, and the first failure ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from hashlight.engine.errors import HashlightError
from hashlight.pipelines.jobs.errors import PipelineError

T = TypeVar("T")

# More than one per core, so that a core that is done finds the next task waiting.
_WAITING_PER_CORE = 2


def run_tasks(
    submit: Callable[[T], Any], items: Iterable[T], *, max_running: int | None = None
) -> Iterator[tuple[T, Any]]:
    """Run a task for each item and yield (item, what it returned), in the order in which they end.

    Parameters
    ----------
    submit : callable
        Starts the task of an item: returns its `ObjectRef`.
    items : iterable
        Taken from as tasks end.
    max_running : int, optional
        Tasks at once, wherever they run; some more than there are cores if left out.

    Raises
    ------
    HashlightError, PipelineError, ValueError, OSError
        What a task raised; the others are cancelled.
    PipelineError
        If a task's process died again and again.
    """
    import ray

    if max_running is None:
        max_running = _WAITING_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = iter(items)
    running: dict[Any, T] = {}
    try:
        while True:
            while len(running) < max_running and (item := next(waiting, None)) is not None:
                running[submit(item)] = item
            if not running:
                return
            for ref in ray.wait(list(running), num_returns=1)[0]:
                yield running.pop(ref), get_result(ref)
    finally:
        for ref in running:
            ray.cancel(ref)


def get_result(ref: Any) -> Any:
    """Return what a task returned, or raise what it raised as if it had been called here."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, HashlightError | PipelineError | ValueError | OSError):
            raise cause from error
        raise
    except ray.exceptions.RayError as error:
        raise PipelineError(
            f"a process of the job died ({type(error).__name__}: {str(error).splitlines()[0]}): run the same command "
            "again"
        ) from error
