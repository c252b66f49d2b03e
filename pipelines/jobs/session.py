"""Ray, quietly: join the cluster that is there, or start one on this machine for the duration of a job."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

from hashlight.pipelines.jobs.errors import PipelineError

CONNECT_S = 10.0  # to reach the head of a cluster
# Ray gives its processes half a minute to start, which a busy machine exceeds.
_STARTS = 5
# A unit's images are read inside the actor and only its counts travel, so that the store stays nearly empty.
OBJECT_STORE_BYTES = 200_000_000


@contextlib.contextmanager
def ray_session(*, num_cpus: int, address: str | None = None) -> Iterator[bool]:
    """Use Ray: the session that this process already has, the cluster of `RAY_ADDRESS`, or a new session.

    Yields whether it is a new session.

    Parameters
    ----------
    num_cpus : int
        Logical CPUs of a new session, which ends with the context.
    address : str, optional
        Address of a cluster, instead of `RAY_ADDRESS`; "auto" is the one of this machine.

    Raises
    ------
    PipelineError
        If there is no cluster at the address.
    """
    import ray
    import ray.data
    from ray.job_config import JobConfig

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _check_there(address)
    where = {"address": address} if address else _own_session(num_cpus)
    with _without_backend_notices():
        # Ray would put the working folder first in its workers' path, where a user's `types.py` or folder `torch`
        # hides the real module; it does not for a client's job, which differs in nothing else here.
        _start(log_to_driver=False, logging_level=logging.ERROR, job_config=JobConfig(_client_job=True), **where)
    try:
        yield not address
    finally:
        ray.shutdown()


def _check_there(address: str) -> None:
    """Refuse an address at which nothing listens: Ray would end the process, two minutes later, without a word."""
    from ray._private.services import canonicalize_bootstrap_address

    if address == "local":
        return
    try:
        # What "auto" stands for may be a cluster that has ended.
        is_client = address.startswith("ray://")
        found = address.removeprefix("ray://") if is_client else canonicalize_bootstrap_address(address)
        if found is None:
            raise ConnectionError("none is known on this machine")
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"no Ray cluster answers at {address!r}: {error}. Start its head (`ray start --head`), or give the address "
            "of one that runs, HOST:PORT, by `--address` or RAY_ADDRESS"
        ) from error


def _start(**options: Any) -> None:
    """Begin a session, once more if its processes were too slow."""
    import ray

    for left in reversed(range(_STARTS)):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray has no class of its own for it.
            ray.shutdown()
            if "timed out during startup" not in str(error) or not left:
                raise


@contextlib.contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Have the jobs in this context run on a Ray cluster; without an address they find one, or none, themselves."""
    if address is None:
        yield
        return
    with ray_session(num_cpus=0, address=address):
        yield


@contextlib.contextmanager
def _without_backend_notices() -> Iterator[None]:
    """Keep Ray's C++ core from writing notices to the standard error that no user of a job can act on.

    Its log level can only be set through the environment, and it announces that; errors are raised anyway.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _own_session(num_cpus: int) -> dict[str, object]:
    # Ray would run its workers at niceness 15, at which anything else that runs here starves the job.
    os.environ.setdefault("RAY_worker_niceness", "0")
    return {
        "address": "local",  # or Ray would join a cluster that this machine happens to run
        "num_cpus": num_cpus,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
