"""Change how many shard servers a running gateway has."""

from __future__ import annotations

import os

import httpx

from hashlight.engine.client.errors import ConnectionFailedError, error_of
from hashlight.engine.client.http import document_of, gateway_url

# Starting servers hash the files of a large collection.
READY_S = 600.0


def scale_on_ray(name: str, replicas: int) -> None:
    """Set the number of replicas of every group of named shard servers on Ray; 0 stops them all.

    Parameters
    ----------
    name : str
        As of `pipelines.serving.ray_servers.RayServers`, on the cluster of `RAY_ADDRESS`, or that of this machine.
    replicas : int
        Removed ones first answer their accepted requests.

    Raises
    ------
    NotReadyError
        If there are none of this name, or one does not start.
    ValueError
        If the cluster has too few free CPUs.
    """
    from hashlight.pipelines.jobs.session import ray_session
    from hashlight.pipelines.serving.ray_servers import RayServers

    with ray_session(num_cpus=0, address=os.environ.get("RAY_ADDRESS", "auto")):
        servers = RayServers.of(name)
        if replicas:
            servers.scale(replicas)
        else:
            servers.stop()


def scale_replicas(url: str, replicas: int, *, key: str | None = None) -> None:
    """Set the number of replicas of every group behind a gateway; returns when they are ready.

    Parameters
    ----------
    url : str
        The gateway.
    replicas : int
        Removed ones first answer their accepted requests.
    key : str, optional
        A key with the scope `admin`.

    Raises
    ------
    ConnectionFailedError
        If the gateway cannot be reached, or does not answer in ten minutes.
    HashlightError
        As reported by the gateway: `AuthenticationError` and `PermissionDeniedError` for the key, `InvalidRequestError`
        if it has no shard servers or not enough room.
    """
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        response = httpx.put(
            f"{gateway_url(url)}/v1/replicas", json={"replicas": replicas}, headers=headers, timeout=READY_S
        )
    except (httpx.HTTPError, ValueError) as error:
        raise ConnectionFailedError(f"{url} cannot be reached: {error or type(error).__name__}") from error
    if response.status_code != 200:
        raise error_of(response.status_code, document_of(response), response.headers)
