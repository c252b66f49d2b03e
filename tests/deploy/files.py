"""What lies in deploy/: documents of Kubernetes, compose's file, units of systemd, files of Ray's launcher."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHARTS = [DEPLOY / "helm" / "hashlight", DEPLOY / "helm" / "hashlight-job"]
LAUNCHER = sorted((DEPLOY / "ray").glob("*.yaml"))
UNITS = sorted(path for path in (DEPLOY / "systemd").iterdir() if path.suffix in (".service", ".timer", ".target"))
ALERTS = CHARTS[0] / "files" / "alerts.yaml"
DASHBOARD = CHARTS[0] / "files" / "dashboard.json"
# What compose's file asks of its environment.
SECRETS = {"S3_SECRET": "for-a-test", "SHARD_TOKEN": "for-a-test"}


def relative(path):
    return str(path.relative_to(ROOT))


def kubernetes():
    """Every document of the plain manifests: [(file, document)]."""
    return [
        (relative(path), document)
        for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if document
    ]


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def environment():
    """Return the variables of the units: name -> value."""
    lines = (DEPLOY / "systemd" / "environment").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def unit(path):
    """Return a unit: section -> setting -> text; the last wins of settings that stand twice."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes="#", delimiters="=")
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


def started_by(path, instance="1"):
    """Return the words of a unit's command, with its variables."""
    text = unit(path)["Service"]["ExecStart"].replace("%i", instance)
    for name, value in environment().items():
        text = text.replace(f"${{{name}}}", value)
    return shlex.split(text)


def pods_of(document):
    """Every pod template of a document."""
    if isinstance(document, dict):
        if isinstance(document.get("spec"), dict) and "containers" in document["spec"]:
            yield document
            return
        for value in document.values():
            yield from pods_of(value)
    elif isinstance(document, list):
        for value in document:
            yield from pods_of(value)


def mentioned(path):
    """Every command line of ours in a page, or in the comments of another file: its words after `hashlight`."""
    text = path.read_text()
    if path.suffix == ".md":
        for span in re.findall(r"`(hashlight [\w-]+ [^`]+)`", text):
            yield shlex.split(span)[1:]
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
        shell = "\n".join(block for language, block in blocks if language in ("", "bash"))
        lines = shell.replace("\\\n", " ").splitlines()
    else:
        lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    for line in lines:
        try:
            words = shlex.split(line.removesuffix("&"), comments=True)
        except ValueError:  # a sentence with an apostrophe
            continue
        if words[:1] == ["hashlight"]:
            yield words[1:]
        elif words[:5] == ["docker", "compose", "run", "--rm", "jobs"]:
            yield words[5:]
        else:
            yield from (shlex.split(word)[1:] for word in words if word.startswith("hashlight "))
