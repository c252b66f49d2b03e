"""Shard servers as processes of this machine: started, watched, replaced when they die."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from engine.errors import HashlightError, NotReadyError
from engine.service.cluster_map import ClusterMap
from engine.service.registry import Registry, control
from engine.service.security import TOKEN_VARIABLE, Security
from engine.service.shard_server import DRAIN_S

logger = logging.getLogger(__name__)

_LOOK_S = 0.1
_FIRST_WAIT_S, _MOST_WAIT_S = 0.5, 30.0  # between attempts to start a server that dies at once


class ShardProcess:
    """A shard server in a process of its own, which ends with this one.

    Raises
    ------
    NotReadyError
        If it ends before it has answered a search.
    """

    def __init__(
        self,
        collection: str,
        version: int,
        shards: Sequence[str],
        security: Security,
        folder: Path,
        *,
        more: Sequence[str] = (),
    ) -> None:
        command = [sys.executable, "-m", "engine.service.shard_server", collection]
        command += ["--version", str(version), "--shards", ",".join(shards), *_tls_options(security, folder), *more]
        environment = {**os.environ, TOKEN_VARIABLE: security.token or ""}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.kill()
            raise NotReadyError(
                f"a shard server for version {version} of {collection} ended with exit code "
                f"{self._process.returncode} before it was ready: its own words are on the standard error"
            )
        self.address: str = json.loads(line)["address"]
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def terminate(self) -> None:
        """Ask it to answer what it has taken, and to end."""
        self._process.terminate()

    def stop(self) -> None:
        """Wait until it has ended after `terminate`, kill it if that takes too long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DRAIN_S + 5)
        self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class LocalCluster:
    """Groups of replicated shard servers on this machine. Use it as a context manager.

    Parameters
    ----------
    collection : str or Path
    groups, replicas : int
    security : Security, optional
        A token of its own if left out.
    more : sequence of str
        Further options of `python -m engine.service.shard_server`.

    Raises
    ------
    NotReadyError
        If a server does not start.
    """

    def __init__(
        self,
        collection: str | Path,
        *,
        groups: int,
        replicas: int,
        security: Security | None = None,
        more: Sequence[str] = (),
    ) -> None:
        self.security = security or Security(token=secrets.token_urlsafe())
        self.registry = Registry(collection, groups=groups, security=self.security)
        self.processes: dict[tuple[int, int], ShardProcess] = {}
        self._wanted = {(group, number) for group in range(groups) for number in range(replicas)}
        self._num_groups = groups
        self._more = more
        self._folder = tempfile.TemporaryDirectory(prefix="hashlight-")
        self._closed = threading.Event()
        self._changing = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="hashlight-processes", daemon=True)
        try:
            self._start_all(sorted(self._wanted))
        except BaseException:
            self.close()
            raise
        self._watcher.start()

    def __enter__(self) -> Self:
        """Return itself: the servers are ready."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all servers."""
        self.close()

    def map(self) -> ClusterMap:
        """Return the map for routers."""
        return self.registry.map()

    def roll(self) -> bool:
        """Serve the live version of the collection; see `Registry.roll`."""
        return self.registry.roll()

    def scale(self, replicas: int) -> None:
        """Have so many replicas of every group; those that go answer what they have taken.

        Raises
        ------
        ValueError
            If there would be none.
        NotReadyError
            If a server does not start; those that did stay.
        """
        if replicas < 1:
            raise ValueError(f"`replicas` must be at least 1, got {replicas}")
        wanted = {(group, number) for group in range(self._num_groups) for number in range(replicas)}
        with self._changing:
            going = [(place, self.processes.pop(place)) for place in set(self.processes) - wanted]
            self._wanted = wanted
            for place, _ in going:
                self.registry.remove(*place)
            self._start_all(sorted(wanted - set(self.processes)))
        _end([process for _, process in going])

    def close(self) -> None:
        """Stop all servers."""
        self._closed.set()
        if self._watcher.is_alive():
            self._watcher.join()
        _end(list(self.processes.values()))
        self._folder.cleanup()

    def _start_all(self, places: Sequence[tuple[int, int]]) -> None:
        with ThreadPoolExecutor(max(1, len(places))) as pool:
            list(pool.map(self._start, places))

    def _start(self, place: tuple[int, int]) -> None:
        group, number = place
        version, shards = self.registry.assignment(group)
        folder = Path(self._folder.name)
        process = ShardProcess(self.registry.location, version, shards, self.security, folder, more=self._more)
        self.processes[place] = process
        wanted, shards = self.registry.register(group, number, process.address, [version])
        if wanted != version:  # it changed while the server started
            control(process.address, "load", self.security, version=wanted, shards=shards)
            self.registry.register(group, number, process.address, [version, wanted])

    def _watch(self) -> None:
        """Replace servers that died."""
        wait_s = _FIRST_WAIT_S
        while not self._closed.wait(_LOOK_S):
            with self._changing:
                dead = [place for place in self._wanted if not self._is_alive(place)]
                for place in dead:
                    self._bury(place)
                try:
                    self._start_all(dead)
                    wait_s = _FIRST_WAIT_S
                    continue
                except (HashlightError, OSError) as error:
                    logger.warning("a shard server does not start, next attempt in %.1f s: %s", wait_s, error)
            self._closed.wait(wait_s)
            wait_s = min(_MOST_WAIT_S, 2 * wait_s)

    def _is_alive(self, place: tuple[int, int]) -> bool:
        process = self.processes.get(place)
        return process is not None and process.alive

    def _bury(self, place: tuple[int, int]) -> None:
        self.registry.remove(*place)
        process = self.processes.pop(place, None)
        if process is not None:
            logger.warning("the shard server at %s died: starting another", process.address)
            process.kill()


def _end(processes: Sequence[ShardProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.stop()


def _tls_options(security: Security, folder: Path) -> list[str]:
    """Write the certificates where the servers read them; the folder is this user's alone."""
    options: list[str] = []
    pems: dict[str, Any] = {
        "certificate": security.certificate,
        "key": security.key,
        "authority": security.authority if security.certificate is not None else None,
    }
    for name, pem in pems.items():
        if pem is not None:
            path = folder / f"{name}.pem"
            path.write_bytes(pem)
            options += [f"--tls-{name}", str(path)]
    return options
