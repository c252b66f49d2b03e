"""The charts: linted and rendered by Helm's own library, in step with the plain manifests, strictly valid, hardened."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from functools import cache

import jsonschema
import pytest
import yaml

from .files import CHARTS, DEPLOY, kubernetes, pods_of
from .schemas import schema_of

# The oldest that the charts ask for, and a recent one.
KUBERNETES = ("1.27", "1.34")
JOBS = ("encode", "build", "dedup")


def helm():
    return pytest.importorskip("helm_python", reason="helm-python-sdk (Helm's library) has no wheel for this platform")


def findings(chart, values=None):
    """Return what `helm lint --strict` finds, but that a chart has no icon."""
    report = helm().lint(str(chart), values, strict=True)
    return [
        *report["errors"],
        *(message["error"] for message in report["messages"] if "icon is recommended" not in message["error"]),
    ]


def values_of(chart):
    if chart.name == "hashlight":
        return {"monitoring": {"enabled": True}}
    return yaml.safe_load((chart / "encode.yaml").read_text())


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_helm_finds_no_fault(chart):
    assert findings(chart, values_of(chart)) == []


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("templates/gateways.yaml", "{{ .Values.gateways.port }}", "{{ .Values.gateways.port.number.name }}"),
        ("templates/shards.yaml", "{{- end }}\n{{- end }}", "{{- end }}"),
        ("Chart.yaml", "apiVersion: v2", "apiVersion: v9"),
        ("values.yaml", "groups: 2", "groups: none"),
    ],
)
def test_helm_finds_a_fault(file, right, wrong, tmp_path):
    chart = shutil.copytree(CHARTS[0], tmp_path / "hashlight")
    text = (chart / file).read_text()
    assert right in text
    (chart / file).write_text(text.replace(right, wrong))
    assert findings(chart)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"groups": 0}, "groups"),
        ({"shards": {"port": 88150}}, "port"),
        ({"gateway": {"port": 80}}, "gateway"),
        ({"collection": "/data/photos"}, "collection"),
        ({"images": {"server": {"repository": "x", "digest": "sha256:12"}}}, "digest"),
        ({"compaction": {"schedule": "nightly"}}, "schedule"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, message):
    package = helm()
    with package.Chart.load(str(CHARTS[0])) as chart, pytest.raises(package.HelmError, match=message):
        chart.validate_schema(values)


def rendered(chart, values, name="hashlight"):
    with helm().Chart.load(str(chart)) as loaded:
        texts = loaded.render(values, name=name, namespace="hashlight")
    return [
        document
        for path, text in sorted(texts.items())
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def test_the_plain_manifests_are_in_step():
    helm()
    command = [sys.executable, str(DEPLOY / "render.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_manifest_that_is_out_of_step_is_found(tmp_path):
    helm()
    deploy = shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    path = deploy / "helm" / "hashlight" / "values.yaml"
    path.write_text(path.read_text().replace("pollSeconds: 2", "pollSeconds: 3"))
    (deploy / "kubernetes" / "more.yaml").write_text("kind: Unknown\n")
    command = [sys.executable, str(deploy / "render.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "hashlight.yaml, more.yaml in" in done.stderr


def test_a_job_without_a_command_is_refused():
    package = helm()
    with pytest.raises(package.HelmError, match="`command` is empty"):
        rendered(CHARTS[1], {})


def test_optional_values_are_rendered():
    values = {
        "groups": 3,
        "shards": {"replicas": 3, "storageClassName": "fast"},
        "storage": {"secretName": "bucket", "env": {"AWS_REGION": "eu-west-1"}},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}},
        "images": {"server": {"repository": "r/s", "digest": "sha256:" + "0" * 64}, "pullSecrets": ["mine"]},
        "tls": {"shards": "shard-tls", "gateways": "tls"},
        "networkPolicy": {"clients": [{"podSelector": {}}]},
        "compaction": {"enabled": False},
        "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    }
    documents = rendered(CHARTS[0], values)
    assert [fault for document in documents for fault in invalid(document, KUBERNETES[1])] == []
    sets = [document for document in documents if document["kind"] == "StatefulSet"]
    assert [document["metadata"]["name"] for document in sets] == [f"hashlight-shard-{group}" for group in (1, 2, 3)]
    [container] = sets[2]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "r/s@sha256:" + "0" * 64
    assert "--group=3/3" in container["args"]
    assert "--shard-tls-cert=/etc/hashlight/shard-tls/tls.crt" in container["args"]
    assert {"name": "AWS_REGION", "value": "eu-west-1"} in container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    kinds = [document["kind"] for document in documents]
    assert kinds.count("PodDisruptionBudget") == 4
    assert "CronJob" not in kinds
    [rule] = [document for document in documents if document["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((CHARTS[0] / "files" / "alerts.yaml").read_text())
    [dashboard] = [document for document in documents if document["kind"] == "ConfigMap"]
    assert json.loads(dashboard["data"]["hashlight.json"])["uid"] == "hashlight"


@cache
def validator():
    reason = "kubernetes-validate (schemas of Kubernetes) is not installed"
    return pytest.importorskip("kubernetes_validate", reason=reason)


def invalid(document, version):
    """Say what is wrong with a document, by the strict schema of its kind."""
    package = validator()
    schema = schema_of(document)
    if schema is not None:
        yield from (error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document))
        pods = [
            {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}
            for pod in pods_of(document)
        ]
    else:
        pods = [document]
    for checked in pods:
        try:
            package.validate(checked, version, strict=True)
        except (package.ValidationError, package.SchemaNotFoundError) as error:
            yield f"{document['kind']} {document['metadata']['name']}: {error.message}"


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_are_strictly_valid(version):
    faults = [fault for _, document in kubernetes() for fault in invalid(document, version)]
    assert faults == []


def test_manifests_have_every_kind():
    kinds = {document["kind"] for _, document in kubernetes()}
    assert kinds == {
        "ConfigMap", "CronJob", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget",
        "PrometheusRule", "RayJob", "Service", "ServiceAccount", "ServiceMonitor", "StatefulSet",
    }  # fmt: skip


def a(kind):
    return copy.deepcopy(next(document for _, document in kubernetes() if document["kind"] == kind))


def put(document, path, value):
    *parents, last = path.split(".")
    for key in parents:
        document = document[int(key) if key.isdigit() else key]
    document[last] = value


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("StatefulSet", "spec.replica", 2),
        ("StatefulSet", "spec.template.spec.containers.0.readinessProbe.httpGet.url", "/"),
        ("Deployment", "spec.template.spec.containers.0.ports.0.containerPort", "http"),
        ("HorizontalPodAutoscaler", "spec.metrics.0.pods.metric", "hashlight_in_flight_requests"),
        ("CronJob", "spec.schedules", "17 3 * * *"),
        ("NetworkPolicy", "spec.ingresses", []),
        ("ServiceMonitor", "spec.endpoints.0.interval", 15),
        ("ServiceMonitor", "spec.endpoint", []),
        ("PrometheusRule", "spec.groups.0.rules.0.runbook", "docs/runbook.md"),
        ("RayJob", "spec.entryPoint", "hashlight"),
        ("RayJob", "spec.rayClusterSpec.workerGroupSpecs.0.maxReplica", 3),
        ("RayJob", "spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("RayJob", "spec.rayClusterSpec.headGroupSpec.template.spec.container", []),
        ("Service", "apiVersion", "v2"),
    ],
)
def test_a_fault_in_a_manifest_is_found(kind, path, value):
    document = a(kind)
    assert not list(invalid(document, KUBERNETES[1]))
    put(document, path, value)
    assert list(invalid(document, KUBERNETES[1]))


def unsafe(document):
    """Say which containers may do more than they need, or take what they like."""
    for pod in pods_of(document):
        spec, kind = pod["spec"], document["kind"]
        if not spec.get("securityContext", {}).get("runAsNonRoot"):
            yield f"{kind} {document['metadata']['name']} may run as root"
        for container in spec["containers"]:
            security = container.get("securityContext", {})
            what = f"{kind} {document['metadata']['name']}, {container['name']}"
            if security.get("allowPrivilegeEscalation") is not False or security["capabilities"]["drop"] != ["ALL"]:
                yield f"{what}: may gain privileges"
            # Ray writes beside its packages.
            if kind != "RayJob" and not security.get("readOnlyRootFilesystem"):
                yield f"{what}: may write its image"
            if "memory" not in container["resources"]["limits"]:
                yield f"{what}: has no limit of memory"


def test_containers_are_hardened():
    assert [fault for _, document in kubernetes() for fault in unsafe(document)] == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("StatefulSet", "spec.template.spec.securityContext", {}),
        ("Deployment", "spec.template.spec.containers.0.securityContext.readOnlyRootFilesystem", False),
        ("CronJob", "spec.jobTemplate.spec.template.spec.containers.0.securityContext.capabilities.drop", []),
        ("RayJob", "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.resources.limits", {}),
    ],
)
def test_a_container_that_is_not_hardened_is_found(kind, path, value):
    document = a(kind)
    put(document, path, value)
    assert list(unsafe(document))


@pytest.mark.parametrize("job", JOBS)
def test_each_job_has_its_values(job):
    values = yaml.safe_load((CHARTS[1] / f"{job}.yaml").read_text())
    assert values["command"][0] == job
    [(_, document)] = [(file, found) for file, found in kubernetes() if file.endswith(f"/{job}.yaml")]
    assert document["spec"]["entrypoint"] == f"hashlight {' '.join(values['command'])} --address auto"
    groups = document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert sum(group["minReplicas"] for group in groups) > 0


def test_every_value_is_used():
    """A value that no template names changes nothing."""
    for chart in CHARTS:
        templates = "".join(path.read_text() for path in (chart / "templates").iterdir())
        values = yaml.safe_load((chart / "values.yaml").read_text())
        for name, inner in values.items():
            paths = [f"{name}.{key}" for key in inner] if isinstance(inner, dict) and inner else [name]
            for path in paths:
                last = path.rpartition(".")[2]
                assert f".Values.{path}" in templates or f".{last}" in templates, f"{chart.name}: {path}"


def test_the_chart_takes_what_size_writes():
    from hashlight.pipelines.capacity.chart import chart_values
    from hashlight.pipelines.capacity.plan import plan
    from tests.pipelines.capacity.test_plan import ROUND, demand_of

    demand = demand_of(images=4 * 10**9, radius=4, replicas=3)
    values = yaml.safe_load(chart_values(demand, plan(demand, ROUND)))
    assert findings(CHARTS[0], values) == []
    sets = [document for document in rendered(CHARTS[0], values) if document["kind"] == "StatefulSet"]
    assert len(sets) == values["groups"] > 1
    assert {document["spec"]["replicas"] for document in sets} == {3}
