"""Shard servers as local processes: started, watched, and replaced when they die."""

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
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Self

from hashlight.engine.errors import NotReadyError
from hashlight.engine.service.control.registry import Registry, control
from hashlight.engine.service.protocol.cluster_map import Assignment, ClusterMap, ServerName
from hashlight.engine.service.protocol.security import TOKEN_VARIABLE, Security
from hashlight.engine.service.shards.server import DRAIN_S

logger = logging.getLogger(__name__)

_LOOK_S = 0.1
_FIRST_WAIT_S, _MAX_WAIT_S = 0.5, 30.0  # between attempts to start a server that keeps dying


class ShardProcess:
    """A shard server in its own process, which exits with this one."""

    def __init__(
        self,
        collection: str,
        assignment: Assignment,
        security: Security,
        folder: Path,
        *,
        more: Sequence[str] = (),
    ) -> None:
        command = [sys.executable, "-P", "-m", "hashlight.engine.service.shards.server", collection]
        version, manifest, shards = assignment
        command += ["--version", str(version), "--manifest", manifest, "--shards", ",".join(shards)]
        command += [*_tls_options(security, folder), *more]
        environment = {**os.environ, TOKEN_VARIABLE: security.token or ""}
        # In a process group of its own: Ctrl-C in a terminal is for the gateway, which drains first.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0
        )
        self._what = f"a shard server for version {version} of {collection}"
        self.pid = self._process.pid
        self.name = ServerName("", "")
        self.served: frozenset[str] = frozenset()

    @property
    def address(self) -> str:
        """Flight address."""
        return self.name.address

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Wait until it has answered a search; its name and what it serves are then known.

        Raises
        ------
        NotReadyError
            If it exits before that.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise NotReadyError(
                f"{self._what} ended with exit code {self._process.wait()} before it was ready: see its standard error"
            )
        told = json.loads(line)
        self.name, self.served = ServerName(told["address"], told["instance"]), frozenset(told["served"])

    def kill(self) -> None:
        """Kill it at once."""
        self._process.kill()

    def stop(self) -> None:
        """Let it answer its accepted requests and exit; kill it if that takes too long."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DRAIN_S + 5)
        self.bury()

    def bury(self) -> None:
        """Kill it if it is running, and reap it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class _Keeper:
    """Keeps one server running, in its own thread: starts it, and starts another when it dies.

    Parameters
    ----------
    registry : Registry
    place : tuple of int
        Group and number.
    launch : callable
        Starts a process for what it is to serve.
    """

    def __init__(
        self, registry: Registry, place: tuple[int, int], launch: Callable[[Assignment], ShardProcess]
    ) -> None:
        self.first: Future[None] = Future()  # outcome of the first attempt
        self.serving: ShardProcess | None = None
        self._registry, self._place, self._launch = registry, place, launch
        self._starting: ShardProcess | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"hashlight-keeper-{place}", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Start no more servers, and let the current one answer its accepted requests."""
        self._ending.set()
        starting = self._starting
        if starting is not None:
            starting.kill()

    def join(self) -> None:
        """Wait until everything has stopped after `end`."""
        self._thread.join()

    def _keep(self) -> None:
        wait_s = 0.0
        while not self._ending.wait(wait_s):
            try:
                self.serving = self._start()
            except Exception as error:  # whatever the error, a server is needed
                wait_s = min(_MAX_WAIT_S, max(_FIRST_WAIT_S, 2 * wait_s))
                logger.warning("a shard server failed to start, next attempt in %.1f s: %s", wait_s, error)
                self._tell(error)
                continue
            wait_s = 0.0
            self._tell(None)
            self._hold(self.serving)
        self._tell(NotReadyError("the shard servers are being stopped"))

    def _start(self) -> ShardProcess:
        """Return a server that has the current version."""
        group, number = self._place
        process = self._starting = self._launch(self._registry.assignment(group))
        try:
            if self._ending.is_set():  # `end` may have run before the process existed
                process.kill()
            process.wait_ready()
            wanted = self._registry.register(group, number, process.name, process.served)
            if wanted.identity not in process.served:  # the version changed during start-up
                told = control(process.address, "load", self._registry.security, **wanted._asdict())
                self._registry.register(group, number, process.name, told["served"])
        except BaseException:
            self._registry.remove(group, number)
            process.bury()
            raise
        finally:
            self._starting = None
        return process

    def _hold(self, process: ShardProcess) -> None:
        """Wait until the server has died or, after `end`, has exited."""
        while process.alive and not self._ending.wait(_LOOK_S):
            pass
        self.serving = None
        self._registry.remove(*self._place)
        if self._ending.is_set():
            process.stop()
        else:
            logger.warning("the shard server at %s died: starting another", process.address)
            process.bury()

    def _tell(self, error: Exception | None) -> None:
        if self.first.done():
            return
        if error is None:
            self.first.set_result(None)
        else:
            self.first.set_exception(error)


class LocalCluster:
    """Groups of replicated shard servers on this machine. Use it as a context manager.

    Parameters
    ----------
    collection : str or Path
    groups, replicas : int
    security : Security, optional
        By default a generated token.
    more : sequence of str
        Further options of `python -m hashlight.engine.service.shards.server`.

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
        self._num_groups = groups
        self._more = more
        self._folder = tempfile.TemporaryDirectory(prefix="hashlight-")
        self._keepers: dict[tuple[int, int], _Keeper] = {}
        self._scaling, self._changing = threading.Lock(), threading.Lock()
        self._closed = False
        try:
            self.scale(replicas)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return itself; the servers are ready."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all servers."""
        self.close()

    @property
    def processes(self) -> dict[tuple[int, int], ShardProcess]:
        """The servers that are ready, by group and number."""
        with self._changing:
            return {place: keeper.serving for place, keeper in self._keepers.items() if keeper.serving is not None}

    @property
    def location(self) -> str:
        """Where the collection is."""
        return self.registry.location

    def map(self) -> ClusterMap:
        """Return the map for routers."""
        return self.registry.map()

    def roll(self) -> bool:
        """Serve the live version of the collection; see `Registry.roll`."""
        return self.registry.roll()

    def scale(self, replicas: int) -> None:
        """Set the number of replicas of every group; removed ones first answer their accepted requests.

        Raises
        ------
        ValueError
            If the number is 0.
        NotReadyError
            If a server does not start. Starting it is retried; servers that did start stay.
        """
        if replicas < 1:
            raise ValueError(f"`replicas` must be at least 1, got {replicas}")
        wanted = {(group, number) for group in range(self._num_groups) for number in range(replicas)}
        with self._scaling:
            with self._changing:
                if self._closed:
                    raise NotReadyError("the shard servers have been stopped")
                going = [self._keepers.pop(place) for place in set(self._keepers) - wanted]
                coming = {place: self._keeper(place) for place in sorted(wanted - set(self._keepers))}
                self._keepers |= coming
            _end(going)
            wait([keeper.first for keeper in coming.values()])
            for keeper in coming.values():
                keeper.first.result()

    def close(self) -> None:
        """Stop all servers, including those that are starting."""
        with self._changing:
            self._closed = True
            keepers = list(self._keepers.values())
        _end(keepers)
        self._folder.cleanup()

    def _keeper(self, place: tuple[int, int]) -> _Keeper:
        def launch(assignment: Assignment) -> ShardProcess:
            folder = Path(self._folder.name)
            return ShardProcess(self.registry.location, assignment, self.security, folder, more=self._more)

        return _Keeper(self.registry, place, launch)


def _end(keepers: Sequence[_Keeper]) -> None:
    for keeper in keepers:
        keeper.end()
    for keeper in keepers:
        keeper.join()


def _tls_options(security: Security, folder: Path) -> list[str]:
    """Write the certificates for the servers to read, into a folder private to this user."""
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
