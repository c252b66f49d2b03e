"""What stands in several files agrees: versions, images, ports, addresses, groups, and the time to end."""

from __future__ import annotations

import copy
import re
import tomllib

import pytest
import yaml

from hashlight.engine.cache.size import VARIABLE

from .commands import parse
from .files import CHARTS, DEPLOY, LAUNCHER, ROOT, compose, kubernetes, pods_of
from .processes import PLATFORMS, in_compose, on_kubernetes, under_systemd

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
CONSTRAINTS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.setenv(VARIABLE, "1G")  # what `--cache-size` sets


def port_of(address):
    return int(str(address).rpartition(":")[2])


def faults_of(processes, root):
    """Say how servers that are to work together do not."""
    parsed = [(process, parse(process.words, root)) for process in processes]
    gateways = [(process, given) for process, given in parsed if process.words[0] == "gateway"]
    servers = [(process, given) for process, given in parsed if process.words[0] == "shard-server"]
    if not gateways or not servers:
        return [f"there are {len(gateways)} gateways and {len(servers)} shard servers"]
    return [
        *(fault for process, given in parsed for fault in _faults_of_one(process, given)),
        *(fault for process, given in gateways for fault in _faults_of_groups(process, given, servers, root)),
        *(f"{name} differ: {values}" for name, values in _differing(parsed)),
    ]


def _faults_of_one(process, given):
    used = {port_of(given["--metrics-listen"])}
    used |= {port_of(given["--listen"])} if "--listen" in given else {given["--port"]}
    if not used <= process.ports:
        yield f"{process.file}: {process.words[0]} listens on {used}, and {process.ports} are open"
    if process.grace_s < given["--drain-delay"] + 30:
        yield f"{process.file}: {process.words[0]} is killed after {process.grace_s} s"


def _differing(parsed):
    for name in ("--drain-delay", "--metrics-listen", "--log-format", "collection"):
        values = {port_of(given[name]) if name == "--metrics-listen" else str(given[name]) for _, given in parsed}
        if len(values) > 1:
            yield name, values


def _faults_of_groups(gateway, given, servers, root):
    shards = given["--shards"]
    if shards is None:
        addresses = [group for group in yaml.safe_load((DEPLOY / "systemd" / "map.json").read_text())["groups"]]
    else:
        template = (shards if isinstance(shards, str) else shards[0]).removeprefix("dns:///")
        addresses = [[template.replace("{group}", str(group))] for group in range(1, given["--groups"] + 1)]
    found = {}
    for process, options in servers:
        group, _, groups = str(options["--group"]).partition("/")
        found[int(group)] = process, port_of(options["--listen"])
        if int(groups) != len(addresses):
            yield f"{process.file}: group {group} of {groups}, and the gateway asks {len(addresses)}"
    for group, places in enumerate(addresses, start=1):
        if group not in found:
            yield f"{gateway.file}: no shard server has group {group}"
            continue
        process, port = found[group]
        for place in places:
            host, _, asked = place.rpartition(":")
            if host not in process.hosts or int(asked) != port:
                yield f"{gateway.file}: group {group} is asked at {place}, and listens on {process.hosts}, port {port}"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_gateways_and_shard_servers_find_each_other(platform, tmp_path):
    assert faults_of(PLATFORMS[platform](), tmp_path) == []


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    ("wrong", "right", "what"),
    [
        ("8815", "8816", "8816"),
        ("9090", "9091", "9091"),
        ("2/2", "3/2", "no shard server has group 2"),
        ("2/2", "2/3", "group 2 of 3, and the gateway asks 2"),
        ("--drain-delay", "--drain-delay=600", "is killed after"),
        ("collection", "collector", "collection differ"),
    ],
)
def test_a_fault_of_one_shard_server_is_found(platform, wrong, right, what, tmp_path):
    processes = list(PLATFORMS[platform]())
    *_, process = [process for process in processes if process.words[0] == "shard-server"]
    if wrong == "--drain-delay":
        process.words.append(right)
    else:
        process.words = [word.replace(wrong, right) for word in process.words]
    assert any(what in fault for fault in faults_of(processes, tmp_path))


def test_a_fault_of_an_address_is_found(tmp_path):
    processes = list(on_kubernetes())
    for process in processes:
        process.words = [word.replace("-shard-{group}.", "-shards-{group}.") for word in process.words]
    assert any("is asked at hashlight-shards-1" in fault for fault in faults_of(processes, tmp_path / "pods"))
    services = compose()["services"]
    services["shard-3"] = services.pop("shard-2")
    found = faults_of(in_compose(services), tmp_path / "containers")
    assert any("is asked at shard-2" in fault for fault in found)
    alone = [process for process in under_systemd() if process.words[0] == "gateway"]
    assert faults_of(alone, tmp_path / "units") == ["there are 1 gateways and 0 shard servers"]


def ports_of(documents):
    """Say which ports that services, policies, probes and monitors name no container of theirs has."""
    pods = [pod for _, document in documents for pod in pods_of(document) if document["kind"] != "RayJob"]
    for file, document in documents:
        kind, spec = document["kind"], document.get("spec", {})
        if kind == "Service":
            chosen, names = spec["selector"], [port["targetPort"] for port in spec["ports"]]
        elif kind == "NetworkPolicy":
            chosen = spec["podSelector"]["matchLabels"]
            names = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
        elif kind in ("StatefulSet", "Deployment"):
            chosen = spec["selector"]["matchLabels"]
            [container] = spec["template"]["spec"]["containers"]
            probes = ("startupProbe", "livenessProbe", "readinessProbe")
            names = [container[probe]["httpGet"]["port"] for probe in probes]
        elif kind == "PodDisruptionBudget":
            chosen, names = spec["selector"]["matchLabels"], []
        else:
            continue
        matching = [pod for pod in pods if chosen.items() <= pod["metadata"]["labels"].items()]
        if not matching:
            yield f"{file}: {kind} {document['metadata']['name']} selects no pod"
        for pod in matching:
            there = {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", [])}
            if not set(names) <= there:
                yield f"{file}: {kind} {document['metadata']['name']} names {names}, and the pod has {there}"


def test_services_policies_and_probes_name_ports_that_are_there():
    assert list(ports_of(kubernetes())) == []


@pytest.mark.parametrize("kind", ["Service", "NetworkPolicy", "StatefulSet"])
@pytest.mark.parametrize("wrong", ["metrics", "shard-server"])
def test_a_fault_of_a_port_or_a_selector_is_found(kind, wrong):
    documents = kubernetes()
    [index, *_] = [
        index
        for index, (_, document) in enumerate(documents)
        if document["kind"] == kind and "shard" in document["metadata"]["name"]
    ]
    file, document = documents[index]
    text = yaml.safe_dump(document)
    broken = yaml.safe_load(text.replace(f": {wrong}\n", ": other\n"))
    assert broken != document
    if kind == "StatefulSet" and wrong == "shard-server":
        broken["spec"]["template"] = copy.deepcopy(document["spec"]["template"])
    documents[index] = file, broken
    assert list(ports_of(documents))


def versions():
    """Every place that names the version of our images or charts: (place, version)."""
    for chart in CHARTS:
        about = yaml.safe_load((chart / "Chart.yaml").read_text())
        yield chart.name, about["version"]
        yield chart.name, about["appVersion"]
    for path in sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        for _, version in re.findall(r"\bhashlight-(server|jobs|gpu):([\w.]+)", path.read_text()):
            yield path.name, version


def test_images_and_charts_have_the_version_of_the_package():
    found = list(versions())
    assert {place for place, _ in found} >= {"hashlight", "hashlight.yaml", "compose.yaml", "aws.yaml", "Dockerfile"}
    assert {version for _, version in found} == {VERSION}


def test_images_are_targets_of_the_dockerfile():
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE))
    for path in [DEPLOY / "compose.yaml", *LAUNCHER, *(DEPLOY / "kubernetes").glob("*.yaml")]:
        targets = set(re.findall(r"image: hashlight-(\w+):", path.read_text()))
        assert targets <= stages, path
    for name, service in compose()["services"].items():
        if "build" in service:
            assert service["image"].startswith(f"hashlight-{service['build']['target']}:"), name


def test_ray_and_python_have_one_version():
    job = yaml.safe_load((CHARTS[1] / "values.yaml").read_text())
    assert job["rayVersion"] == CONSTRAINTS["ray"]
    [python] = re.findall(r"^ARG BASE=python:(\d+\.\d+)\.\d+-", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f">={python}" == requires


def test_prometheus_finds_the_processes_of_compose():
    services = compose()["services"]
    config = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())
    asked = {
        (name, lookup["port"])
        for job in config["scrape_configs"]
        for lookup in job["dns_sd_configs"]
        for name in lookup["names"]
    }
    assert asked == {(name, 9090) for name in ("gateway", "shard-1", "shard-2")}
    assert all("--metrics-listen 0.0.0.0:9090" in services[name]["command"] for name, _ in asked)
    [mounted] = [volume for volume in services["prometheus"]["volumes"] if "alerts.yaml" in volume]
    assert mounted.split(":")[1] in config["rule_files"]


def test_whoever_reads_files_of_deploy_finds_them():
    for name, service in compose()["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (DEPLOY / source).is_file(), (name, volume)


def test_images_of_others_are_pinned():
    images = {service["image"] for service in compose()["services"].values()}
    images |= {
        container["image"]
        for _, document in kubernetes()
        for pod in pods_of(document)
        for container in pod["spec"]["containers"]
    }
    for image in images:
        name, _, tag = image.partition(":")
        assert re.search(r"\d+\.\d+\.\d+|RELEASE\.\d{4}", tag), image
        assert "latest" not in tag, name
