"""Where shard servers on Ray are, for a gateway that outlives Ray: a child process joins the cluster and asks.

    python -m hashlight.pipelines.serving.ray_lookup NAME

prints a map (`engine.service.control.sources.parse_map`) whenever it changes. Ray ends the processes that have joined
it a while after its head is gone; then the addresses that were known stay good, and another child is started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from hashlight.engine.service.asking.following import Backoff
from hashlight.engine.service.control.sources import parse_map

logger = logging.getLogger(__name__)

LOOK_S = 1.0
_LONGEST_PAUSE_S = 30.0


class RayAddresses:
    """Addresses of the shard servers of a deployment on Ray; see `engine.service.control.sources.Source`. Thread-safe.

    The cluster is that of `RAY_ADDRESS`, or the one of this machine.

    Parameters
    ----------
    deployment : str
        Its name.
    """

    def __init__(self, deployment: str) -> None:
        if not deployment or "/" in deployment:
            raise ValueError(f"expected ray://NAME, the name of shard servers on Ray, got ray://{deployment}")
        self._deployment = deployment
        self._child: subprocess.Popen[bytes] | None = None
        self._known: Sequence[Sequence[str]] | None = None
        self._reason = "Ray has not answered yet"
        self._backoff = Backoff(first_s=LOOK_S, longest_s=_LONGEST_PAUSE_S)
        self._starting = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        """Name the deployment."""
        return f"ray://{self._deployment}"

    def __call__(self) -> Sequence[Sequence[str]]:
        """Return the addresses that were told last; ValueError that says why if none were."""
        with self._starting:
            if not self._closed and self._child is None and self._backoff.allows(self._deployment):
                self._start()
        if self._known is None:
            raise ValueError(self._reason)
        return self._known

    def close(self) -> None:
        """End the child."""
        with self._starting:
            self._closed = True
            if self._child is not None:
                self._child.kill()

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", __name__, self._deployment]
        child = self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0
        )
        threading.Thread(target=self._read, args=(child,), name="hashlight-ray", daemon=True).start()

    def _read(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None, "it is a pipe"
        for line in child.stdout:
            self._note(line)
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        if not self._closed:
            self._backoff.failed(self._deployment)
            logger.warning(
                "Ray does not say where the shard servers %s are (exit code %d), the known ones are used; asked again "
                "in %.0f s", self._deployment, code, self._backoff.left_s,
            )  # fmt: skip
        self._child = None

    def _note(self, line: bytes) -> None:
        told = json.loads(line)
        if "error" in told:
            self._reason = told["error"]
            return
        self._known = parse_map(line, what=repr(self))
        self._backoff.succeeded()


def _tell(deployment: str) -> None:
    """Print where the servers are whenever that changes, until the standard input ends."""
    import ray

    from hashlight.pipelines.jobs.session import ray_session
    from hashlight.pipelines.serving.ray_servers import ActorAddresses

    source, told = ActorAddresses(deployment), ""
    with contextlib.suppress(KeyboardInterrupt), ray_session(num_cpus=0, address=os.environ.get("RAY_ADDRESS", "auto")):
        # Ray's thread that listens for errors prints them among the addresses, and while Ray's head is gone it asks for
        # them without a pause, on a whole core.
        ray._private.worker.global_worker.threads_stopped.set()
        while True:
            try:
                text = json.dumps({"groups": source()})
            except ValueError as error:
                text = json.dumps({"error": str(error)})
            if text != told:
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
                told = text
            time.sleep(LOOK_S)


def _end_with_input() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    _tell(sys.argv[1])
