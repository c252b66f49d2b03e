"""Change how many shard servers a running gateway has."""

from __future__ import annotations

import httpx

from hashlight.engine.client.errors import ConnectionFailedError, error_of
from hashlight.engine.client.http import document_of

# Servers that start hash the files of a large collection.
READY_S = 600.0


def scale_replicas(url: str, replicas: int, *, key: str | None = None) -> None:
    """Have so many replicas of every group of shard servers behind a gateway; return when they answer.

    Parameters
    ----------
    url : str
        Of the gateway.
    replicas : int
        Those that go answer what they have taken.
    key : str, optional
        With the scope admin.

    Raises
    ------
    ConnectionFailedError
        If the gateway cannot be reached, or does not answer in ten minutes.
    HashlightError
        What the gateway says: `AuthenticationError` and `PermissionDeniedError` over the key, `InvalidRequestError` if
        it has no shard servers, or no room for so many.
    """
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        response = httpx.put(
            f"{url.rstrip('/')}/v1/replicas", json={"replicas": replicas}, headers=headers, timeout=READY_S
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConnectionFailedError(f"{url} cannot be reached: {error or type(error).__name__}") from error
    if response.status_code != 200:
        raise error_of(response.status_code, document_of(response), response.headers)
