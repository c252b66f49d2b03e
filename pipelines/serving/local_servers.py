"""Shard servers as processes of this machine: started, watched, and replaced when they die."""

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
from hashlight.engine.service.control.sources import MapFile
from hashlight.engine.service.protocol.security import TOKEN_VARIABLE, Security
from hashlight.engine.service.shards.server import DRAIN_S

logger = logging.getLogger(__name__)

_LOOK_S = 0.1
_FIRST_WAIT_S, _MAX_WAIT_S = 0.5, 30.0  # between attempts to start a server that keeps dying

Place = tuple[int, int]  # group and number, counted from 0


class ShardProcess:
    """`hashlight shard-server` in a process that ends with this one.

    Parameters
    ----------
    collection : str
    group : str
        As of `--group`.
    security : Security
    folder : Path
        Private to this user, for certificates.
    more : sequence of str
        Further options.
    """

    def __init__(
        self, collection: str, group: str, security: Security, folder: Path, *, more: Sequence[str] = ()
    ) -> None:
        command = [sys.executable, "-P", "-m", "hashlight.pipelines.serving.child", "shard-server", collection]
        command += ["--group", group, "--listen", "127.0.0.1:0", "--drain-delay", "0"]
        command += [*_tls_options(security, folder), *more]
        environment = {**os.environ, TOKEN_VARIABLE: security.token or ""}
        # In a process group of its own: Ctrl-C in a terminal is for the gateway, which drains first.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0
        )
        self._what = f"a shard server for group {group} of {collection}"
        self.pid = self._process.pid
        self.address = ""

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Wait until it serves the live version; its address is then known.

        Raises
        ------
        NotReadyError
            If it exits before that.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode(errors="replace")
        if not line:
            raise NotReadyError(
                f"{self._what} ended with exit code {self._process.wait()} before it was ready: see its standard error"
            )
        self.address = line.split()[-1]

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
    launch : callable
        Starts a process.
    changed : callable
        Called when the server has become ready, or has ended.
    """

    def __init__(self, launch: Callable[[], ShardProcess], changed: Callable[[], None], *, name: str) -> None:
        self.first: Future[None] = Future()  # outcome of the first attempt
        self.serving: ShardProcess | None = None
        self._launch, self._changed = launch, changed
        self._starting: ShardProcess | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)
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
            self._changed()
            self._tell(None)
            self._hold(self.serving)
        self._tell(NotReadyError("the shard servers are being stopped"))

    def _start(self) -> ShardProcess:
        """Return a server that is ready."""
        process = self._starting = self._launch()
        try:
            if self._ending.is_set():  # `end` may have run before the process existed
                process.kill()
            process.wait_ready()
        except BaseException:
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
        self._changed()
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


class LocalServers:
    """Groups of replicated shard servers on this machine, listed in a file. Use it as a context manager.

    Parameters
    ----------
    collection : str or Path
    groups, replicas : int
    security : Security, optional
        By default a generated token.
    more : sequence of str
        Further options of `hashlight shard-server`.

    Attributes
    ----------
    map_file : Path
        Lists the servers, as `hashlight gateway --map` reads it.

    Raises
    ------
    ValueError
        If `groups` or `replicas` is less than 1.
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
        if groups < 1:
            raise ValueError(f"`groups` must be at least 1, got {groups}")
        self.location = str(collection)
        self.security = security or Security(token=secrets.token_urlsafe())
        self._num_groups = groups
        self._more = more
        self._folder = tempfile.TemporaryDirectory(prefix="hashlight-")
        self.map_file = Path(self._folder.name) / "servers.json"
        self._keepers: dict[Place, _Keeper] = {}
        self._scaling, self._changing, self._listing = threading.Lock(), threading.Lock(), threading.Lock()
        self._closed = False
        self._list()
        self.source = MapFile(self.map_file, groups)
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
    def processes(self) -> dict[Place, ShardProcess]:
        """The servers that are ready, by group and number."""
        with self._changing:
            return {place: keeper.serving for place, keeper in self._keepers.items() if keeper.serving is not None}

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
            self._list()  # without those that go, before they do
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

    def _keeper(self, place: Place) -> _Keeper:
        group = f"{place[0] + 1}/{self._num_groups}"

        def launch() -> ShardProcess:
            folder = Path(self._folder.name)
            return ShardProcess(self.location, group, self.security, folder, more=self._more)

        return _Keeper(launch, self._list, name=f"hashlight-keeper-{place}")

    def _list(self) -> None:
        """Write down who serves what."""
        with self._listing:
            groups: list[list[str]] = [[] for _ in range(self._num_groups)]
            for (group, _), process in sorted(self.processes.items()):
                groups[group].append(process.address.rpartition("/")[2])
            fresh = self.map_file.with_suffix(".new")
            with contextlib.suppress(FileNotFoundError):  # the folder is gone: all of them are being stopped
                fresh.write_text(json.dumps({"groups": groups}))
                fresh.replace(self.map_file)


def _end(keepers: Sequence[_Keeper]) -> None:
    for keeper in keepers:
        keeper.end()
    for keeper in keepers:
        keeper.join()


def _tls_options(security: Security, folder: Path) -> list[str]:
    """Name the files of the certificates; what is in none is written for the servers, where only this user reads."""
    options: list[str] = []
    files = dict(zip(("cert", "key", "authority"), security.files or (None,) * 3, strict=True))
    pems: dict[str, Any] = {
        "cert": security.certificate,
        "key": security.key,
        "authority": security.authority if security.certificate is not None else None,
    }
    for name, pem in pems.items():
        if pem is not None:
            path = files[name] or folder / f"{name}.pem"
            if files[name] is None:
                path.write_bytes(pem)
            options += [f"--shard-tls-{name}", str(path)]
    return options
