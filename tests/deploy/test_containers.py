"""hadolint accepts the Dockerfile and compose its file; images hold what they need; nothing runs as root."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from hashlight.engine.extras import EXTRAS

from .files import DEPLOY, ROOT, SECRETS, compose

BIN = Path(sys.executable).parent
EXTRA = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def run(program, *arguments, **more):
    if not (BIN / program).exists():
        pytest.skip(f"{program} is not installed: the extra `dev` has it")
    command = [str(BIN / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def test_hadolint_finds_no_fault_and_finds_a_planted_one(tmp_path):
    done = run("hadolint", DEPLOY / "Dockerfile")
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "Dockerfile"
    broken.write_text((DEPLOY / "Dockerfile").read_text() + "RUN cd /tmp && sudo pip install torch\n")
    assert "DL3004" in run("hadolint", broken).stdout


def test_compose_accepts_its_file_and_finds_a_planted_fault(tmp_path):
    text = (DEPLOY / "compose.yaml").read_text()
    command = ("-f", DEPLOY / "compose.yaml", "config", "-q")
    assert run("docker-compose", *command, env=SECRETS).returncode == 0
    unset = run("docker-compose", *command, env={})
    assert unset.returncode != 0
    assert "put it into .env" in unset.stderr
    broken = tmp_path / "compose.yaml"
    broken.write_text(text.replace("restart:", "restarts:"))
    assert run("docker-compose", "-f", broken, "config", "-q", env=SECRETS).returncode != 0


def stages():
    """Return the stages of the Dockerfile: name -> (the stage that it is from, its instructions)."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    found = {}
    for line in text.splitlines():
        if match := re.match(r"FROM (\S+) AS (\S+)", line):
            base, name = match.groups()
            found[name] = base, []
        elif found and line and not line.startswith("#"):
            found[name][1].append(line)
    return found


def chain(name, found):
    while name in found:
        yield from reversed(found[name][1])
        name = found[name][0]


@pytest.mark.parametrize("target", ["server", "jobs", "gpu"])
def test_images_run_as_an_ordinary_user(target):
    users = [line.split()[1] for line in chain(target, stages()) if line.startswith("USER")]
    assert users[0] == "1000"


def test_the_server_has_onnx_runtime_and_neither_torch_nor_ray():
    found = stages()
    [installs] = [line for line in found["server-environment"][1] if "pip install" in line]
    [wanted] = re.findall(r"\.\[([a-z,]+)\]", installs)
    packages = {re.split(r"[<>=\[]", package)[0] for extra in wanted.split(",") for package in EXTRA[extra]}
    assert {"onnxruntime", "pillow", "uvicorn"} <= packages
    assert not packages & {"torch", "torchvision", "ray", "faiss-cpu", "hashlight"}
    assert list(found)[-1] == "server"


def test_an_extra_that_brings_a_module_is_named():
    for module in ("PIL", "onnxruntime"):
        assert "onnxruntime" in EXTRAS[module]


def test_services_of_ours_may_write_nothing_but_their_volumes():
    for name, service in compose()["services"].items():
        if service["image"].startswith("hashlight-"):
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert "no-new-privileges:true" in service["security_opt"], name


def test_nothing_is_open_to_other_machines_unless_it_is_said():
    text = (DEPLOY / "compose.yaml").read_text()
    ports = [port for service in yaml.safe_load(text)["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(re.match(r"(\$\{\w+:-)?127\.0\.0\.1:", port) for port in ports)
