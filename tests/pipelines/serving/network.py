"""Hosts on this machine: network namespaces on one bridge, each with a disk of its own.

Whoever makes them must itself run in namespaces of its own, by `isolated`: whatever it starts ends with it, and nothing
of it is seen outside.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

WAIT_S = 240  # a safety net
NETWORK = "10.77.0"
NOWHERE = "02:00:00:00:00:01"  # a card that no host has
TO_BE_ISOLATED = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def isolated(command):
    """Return a command that runs another in namespaces of its own."""
    return [*TO_BE_ISOLATED, *map(str, command)]


def why_not():
    """Return why there can be no hosts here; empty if there can."""
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: Debian's packages iproute2 and util-linux have them"
    tried = [
        "sh",
        "-ec",
        "ip link add br0 type bridge; ip link add veth0 type veth peer name veth1; mount -t tmpfs none /mnt",
    ]
    if subprocess.run(isolated(tried), capture_output=True, check=False).returncode:
        return "hosts take the right to make namespaces, bridges and mounts"
    return ""


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True)


class Network:
    """Hosts, and what is between them.

    Parameters
    ----------
    folder : Path
        For disks, logs and the table of names.
    hidden : Path
        Of this machine's disk, what hosts do not see: each has its own disk there.
    scratch : Path
        Where each host has a folder for temporary files; short, since paths of sockets have at most 107 bytes.
    """

    def __init__(self, folder: Path, hidden: Path, scratch: Path) -> None:
        self.folder, self.hidden, self.scratch = folder, hidden, scratch
        self.hosts: dict[str, Host] = {}
        self._names = folder / "hosts"
        self._names.write_text("127.0.0.1 localhost\n")
        (folder / "logs").mkdir()
        subprocess.run(["mount", "--bind", self._names, "/etc/hosts"], check=True)
        ip("link", "set", "lo", "up")
        ip("link", "add", "br0", "type", "bridge")
        ip("addr", "add", f"{NETWORK}.1/24", "dev", "br0")
        ip("link", "set", "br0", "up")
        self._last = 1

    def host(self, name, *aliases):
        """Start a host; one that had its name and is gone leaves it its disk, and no more."""
        self._last += 1
        host = self.hosts[name] = Host(self, name, self._last, aliases)
        self._write_names()
        return host

    def _write_names(self):
        # In place: hosts see this very file.
        lines = [
            f"{host.address} {' '.join([name, *host.aliases])}\n" for name, host in self.hosts.items() if host.is_up
        ]
        self._names.write_text("127.0.0.1 localhost\n" + "".join(lines))

    def off(self, host):
        """Take the power from a host; its names are known no more."""
        for pid in host.pids():
            os.kill(pid, signal.SIGKILL)
        for process in host.processes:
            process.wait(WAIT_S)
        host.is_up = False
        self._write_names()

    def cut(self, one, other):
        """Lose every packet between two hosts, without a word to either."""
        for host, peer in ((one, other), (other, one)):
            host.run("ip", "neigh", "replace", peer.address, "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent")

    def mend(self, one, other):
        for host, peer in ((one, other), (other, one)):
            host.run("ip", "neigh", "del", peer.address, "dev", "eth0")


class Host:
    """A machine: starts processes, which share its network and its disk."""

    def __init__(self, network, name, number, aliases) -> None:
        self.name, self.aliases = name, aliases
        self.address = f"{NETWORK}.{number}"
        self.processes = []
        self.is_up = True
        self._logs = network.folder / "logs"
        disk = network.folder / "disks" / name
        disk.mkdir(parents=True, exist_ok=True)
        for mine in ("cache", "state", "tmp"):
            (disk / mine).mkdir(exist_ok=True)
        begin = (
            f"mount --bind '{disk}/tmp' '{network.scratch}' && mount --bind '{disk}' '{network.hidden}' && "
            "echo up && exec sleep infinity"
        )
        command = ["unshare", "--net", "--mount", "sh", "-ec", begin]
        self._init = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._init.stdout.readline() == b"up\n"
        self.processes.append(self._init)
        self.pid = self._init.pid
        self.disk = network.hidden  # as its processes see it
        self._scratch = network.scratch
        self._connect(number)

    def _connect(self, number):
        ip("link", "add", f"veth{number}", "type", "veth", "peer", "name", "eth0", "netns", self.pid)
        ip("link", "set", f"veth{number}", "master", "br0", "up")
        for words in (("link", "set", "lo", "up"), ("addr", "add", f"{self.address}/24", "dev", "eth0"),
                      ("link", "set", "eth0", "up")):  # fmt: skip
            self.run("ip", *words)

    def command(self, *words):
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", *map(str, words)]

    def run(self, *words, **environment):
        """Run a command to its end; what it writes is the error if it fails."""
        done = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            check=False,
            env=self._environment(environment),
            timeout=WAIT_S,
        )
        assert done.returncode == 0, f"{self.name}: {words}\n{done.stdout[-2000:]}{done.stderr[-5000:]}"
        return done.stdout

    def start(self, *words, **environment):
        """Start a command; what it writes is in a file under the host's name."""
        with open(self._logs / f"{self.name}.log", "ab") as log:
            process = subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self._environment(environment),
            )  # fmt: skip
        self.processes.append(process)
        return process

    @property
    def log(self):
        """What its processes have written."""
        return (self._logs / f"{self.name}.log").read_text(errors="replace")

    def pids(self):
        """Return its processes, those that they have started, too."""
        mine = os.readlink(f"/proc/{self.pid}/ns/net")
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{pid}/ns/net") == mine:
                    found.append(int(pid))
            except OSError:  # it has just ended
                continue
        return found

    def _environment(self, more):
        places = {}
        if hasattr(self, "disk"):
            own = {
                "XDG_CACHE_HOME": self.disk / "cache",
                "XDG_STATE_HOME": self.disk / "state",
                "TMPDIR": self._scratch,
            }
            places = {name: str(folder) for name, folder in own.items()}
        return {**os.environ, **places, **more}


def until(condition, what="it", timeout_s=WAIT_S):
    """Wait for a condition."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not happen"
        time.sleep(0.1)
