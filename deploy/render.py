"""Render the charts into the plain manifests of deploy/kubernetes, for those who use no Helm.

    python deploy/render.py            # writes them
    python deploy/render.py --check    # says which are out of step with the charts, and exits with 1

Rendered by Helm's own library (`helm-python-sdk`), for a release `hashlight` in a namespace `hashlight`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import helm_python
import yaml

DEPLOY = Path(__file__).parent
OUTPUT = DEPLOY / "kubernetes"
CHART, JOB = DEPLOY / "helm" / "hashlight", DEPLOY / "helm" / "hashlight-job"
NAME = NAMESPACE = "hashlight"
HEADER = "# Rendered from {chart} by deploy/render.py: change the chart, and render it again.\n"


def render(chart: Path, name: str, values: dict[str, Any]) -> list[str]:
    """Return the documents of a chart as text, in the order of its templates."""
    with helm_python.Chart.load(chart) as loaded:
        rendered = loaded.render(values, name=name, namespace=NAMESPACE)
    texts = (text for path, text in sorted(rendered.items()) if path.endswith(".yaml"))
    documents = (document.strip("\n") for text in texts for document in f"\n{text}".split("\n---"))
    return [document for document in documents if yaml.safe_load(document) is not None]


def is_monitoring(document: str) -> bool:
    """Whether a document is for the Prometheus operator and Grafana."""
    return yaml.safe_load(document)["metadata"]["labels"].get("app.kubernetes.io/component") == "monitoring"


def manifests() -> dict[str, str]:
    """Return every manifest: name of the file -> text."""
    documents = render(CHART, NAME, {"monitoring": {"enabled": True}})
    found = {
        "hashlight.yaml": (CHART, [document for document in documents if not is_monitoring(document)]),
        "monitoring.yaml": (CHART, [document for document in documents if is_monitoring(document)]),
    }
    for job in ("encode", "build", "dedup"):
        values = yaml.safe_load((JOB / f"{job}.yaml").read_text(encoding="utf-8"))
        found[f"{job}.yaml"] = (JOB, render(JOB, f"{NAME}-{job}", values))
    return {
        name: HEADER.format(chart=chart.relative_to(DEPLOY.parent)) + "".join(f"---\n{text}\n" for text in texts)
        for name, (chart, texts) in found.items()
    }


def main() -> int:
    """Write the manifests, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    wanted = manifests()
    if not parser.parse_args().check:
        OUTPUT.mkdir(exist_ok=True)
        for name, text in wanted.items():
            (OUTPUT / name).write_text(text, encoding="utf-8")
        return 0
    there = {path.name: path.read_text(encoding="utf-8") for path in OUTPUT.glob("*.yaml")}
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if stale:
        sys.stderr.write(f"{', '.join(stale)} in {OUTPUT}: run `python deploy/render.py`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
