"""Ray, quietly: join the cluster that is there, or start one in this machine for the length of a job."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

# A unit's images are read inside the actor and only its counts travel, so that the store stays nearly empty.
OBJECT_STORE_BYTES = 200_000_000


@contextlib.contextmanager
def ray_session(*, num_cpus: int) -> Iterator[None]:
    """Use Ray: the session that this process already has, the cluster of `RAY_ADDRESS`, or one of its own.

    Parameters
    ----------
    num_cpus : int
        Logical CPUs of a session of its own; it ends with the context.
    """
    # Ray's core writes notices to the standard error that no user of a job can act on.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    if ray.is_initialized():
        yield
        return
    own = {} if os.environ.get("RAY_ADDRESS") else _own_session(num_cpus)
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    try:
        yield
    finally:
        ray.shutdown()


def _own_session(num_cpus: int) -> dict[str, object]:
    return {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
