"""The servers that deploy/ starts, wherever: their command lines, and how others reach them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from .files import DEPLOY, compose, kubernetes, pods_of, started_by, unit

SERVERS = ("gateway", "shard-server")
NAMESPACE = "hashlight"


@dataclass
class Process:
    """A server.

    `ports` are those that its platform opens to others, `grace_s` the time that it has to end, `hosts` the names under
    which others find it.
    """

    file: str
    words: list[str]
    ports: set[int]
    grace_s: float
    hosts: set[str] = field(default_factory=set)


def on_kubernetes(documents=None):
    documents = kubernetes() if documents is None else documents
    services = [document for _, document in documents if document["kind"] == "Service"]
    for file, document in documents:
        if document["kind"] not in ("StatefulSet", "Deployment"):
            continue
        [pod] = pods_of(document)
        [container] = pod["spec"]["containers"]
        labels = pod["metadata"]["labels"].items()
        hosts = {
            f"{service['metadata']['name']}.{NAMESPACE}.svc"
            for service in services
            if service["spec"]["selector"].items() <= labels
        }
        ports = {port["containerPort"] for port in container["ports"]}
        words = [word.replace("$(POD_NAME)", f"{document['metadata']['name']}-0") for word in container["args"]]
        yield Process(file, words, ports, pod["spec"]["terminationGracePeriodSeconds"], hosts)


def in_compose(services=None):
    services = compose()["services"] if services is None else services
    for name, service in services.items():
        words = shlex.split(service["command"]) if isinstance(service.get("command"), str) else []
        if words[:1] and words[0] in SERVERS:
            # Containers of one network reach every port of each other.
            grace_s = float(service["stop_grace_period"].removesuffix("s"))
            yield Process("deploy/compose.yaml", words, {8000, 8815, 9090}, grace_s, {name})


def under_systemd():
    for path, instance in (("gateway", ""), ("shard-server@", "1"), ("shard-server@", "2")):
        file = DEPLOY / "systemd" / f"hashlight-{path}.service"
        grace_s = float(unit(file)["Service"]["TimeoutStopSec"])
        words = started_by(file, instance)[1:]
        host = f"127.0.1.{instance}" if instance else "127.0.0.1"
        yield Process(f"deploy/systemd/{file.name}", words, {8000, 8815, 9090}, grace_s, {host})


PLATFORMS = {"kubernetes": on_kubernetes, "compose": in_compose, "systemd": under_systemd}
