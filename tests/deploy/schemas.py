"""Strict JSON Schemas of what Kubernetes does not know itself: KubeRay's jobs, the Prometheus operator's objects.

They have fields that KubeRay knows from 1.3 on and prometheus-operator from 0.70 on, and refuse all others. Pods are
left to Kubernetes's own schema of a pod template.
"""

from __future__ import annotations

TEXT, WHOLE, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def strict(required=(), **properties):
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def items(schema, minimum=0):
    return {"type": "array", "items": schema, "minItems": minimum}


METADATA = strict(["name", "labels"], name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
TEMPLATE = strict(["spec"], metadata=strict(labels=TEXTS, annotations=TEXTS), spec={"type": "object"})

HEAD = strict(
    ["rayStartParams", "template"],
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, headService={"type": "object"}, enableIngress=FLAG,
    rayStartParams=TEXTS, template=TEMPLATE,
)  # fmt: skip
WORKERS = strict(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName={"type": "string", "pattern": "^[a-z0-9-]+$"}, replicas=WHOLE, minReplicas=WHOLE,
    maxReplicas={"type": "integer", "minimum": 1}, numOfHosts=WHOLE,
    rayStartParams=TEXTS, template=TEMPLATE, scaleStrategy=strict(workersToDelete=items(TEXT)),
)  # fmt: skip
AUTOSCALER = strict(
    resources={"type": "object"}, image=TEXT, imagePullPolicy=TEXT, env={"type": "array"}, envFrom={"type": "array"},
    volumeMounts={"type": "array"}, securityContext={"type": "object"}, idleTimeoutSeconds=WHOLE,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
)  # fmt: skip
CLUSTER = strict(
    ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
    rayVersion=TEXT, enableInTreeAutoscaling=FLAG, autoscalerOptions=AUTOSCALER, headServiceAnnotations=TEXTS,
    suspend=FLAG, managedBy=TEXT, headGroupSpec=HEAD,
    workerGroupSpecs=items(WORKERS, 1),
)  # fmt: skip
RAY_JOB = strict(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=TEXT, activeDeadlineSeconds=WHOLE, backoffLimit=WHOLE, rayClusterSpec=CLUSTER,
    submitterPodTemplate=TEMPLATE, metadata=TEXTS, clusterSelector=TEXTS,
    submitterConfig=strict(backoffLimit=WHOLE), managedBy=TEXT, runtimeEnvYAML=TEXT,
    jobId=TEXT, submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    entrypointResources=TEXT, entrypointNumCpus={"type": "number"}, entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=WHOLE, shutdownAfterJobFinishes=FLAG, suspend=FLAG,
)  # fmt: skip

DURATION = {"type": "string", "pattern": "^(([0-9]+)(ms|s|m|h|d|w|y))+$"}
RELABELING = strict(
    sourceLabels=items({"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}), separator=TEXT, targetLabel=TEXT,
    regex=TEXT, modulus=WHOLE, replacement=TEXT, action=TEXT,
)  # fmt: skip
ENDPOINT = strict(
    ["port"],
    port=TEXT, path=TEXT, scheme={"enum": ["http", "https"]}, params={"type": "object"}, interval=DURATION,
    scrapeTimeout=DURATION, tlsConfig={"type": "object"}, honorLabels=FLAG, honorTimestamps=FLAG,
    relabelings=items(RELABELING), metricRelabelings=items(RELABELING), authorization={"type": "object"},
    basicAuth={"type": "object"}, followRedirects=FLAG, enableHttp2=FLAG,
)  # fmt: skip
SERVICE_MONITOR = strict(
    ["selector", "endpoints"],
    jobLabel=TEXT, targetLabels=items(TEXT), podTargetLabels=items(TEXT), endpoints=items(ENDPOINT, 1),
    selector=strict(matchLabels=TEXTS, matchExpressions={"type": "array"}),
    namespaceSelector=strict(any=FLAG, matchNames=items(TEXT)), sampleLimit=WHOLE, attachMetadata=strict(node=FLAG),
)  # fmt: skip
RULE = strict(
    ["expr"],
    alert=TEXT, record=TEXT, expr={"type": ["string", "integer"]}, labels=TEXTS, annotations=TEXTS,
    **{"for": DURATION},
)  # fmt: skip
PROMETHEUS_RULE = strict(
    ["groups"],
    groups=items(
        strict(["name", "rules"], name=TEXT, interval=DURATION, limit=WHOLE, labels=TEXTS, rules=items(RULE, 1)), 1
    ),
)

OBJECTS = {
    ("ray.io/v1", "RayJob"): RAY_JOB,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): SERVICE_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PROMETHEUS_RULE,
}


def schema_of(document):
    """Return the schema of a whole document; None if Kubernetes has it itself."""
    spec = OBJECTS.get((document["apiVersion"], document["kind"]))
    if spec is None:
        return None
    return strict(["metadata", "spec"], apiVersion=TEXT, kind=TEXT, metadata=METADATA, spec=spec)
