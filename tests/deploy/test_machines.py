"""systemd accepts the units, and Ray's launcher its clusters."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import yaml

from .files import DEPLOY, LAUNCHER, UNITS, environment, unit

MAX_EXPOSURE = 20  # of 100, as `systemd-analyze security` counts; a service that is not restricted has 96


def analyze(*arguments, units):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed: Debian's package systemd has it")
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False,
        env={"SYSTEMD_UNIT_PATH": f"{units}:", "SYSTEMD_LOG_LEVEL": "warning", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


@pytest.fixture
def installed(tmp_path):
    """The units, with a program that there is in the place of ours."""
    for path in UNITS:
        text = path.read_text().replace("/opt/hashlight/bin/hashlight", shutil.which("true"))
        (tmp_path / path.name).write_text(text)
    return tmp_path


def verified(folder):
    names = [path.name.replace("@.", "@1.") for path in UNITS]
    for name in names:
        if "@1." in name:
            (folder / name).write_text((folder / name.replace("@1.", "@.")).read_text())
    return analyze("verify", "--man=no", *(folder / name for name in names), units=folder)


def test_systemd_accepts_the_units(installed):
    done = verified(installed)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ProtectSystem=strict", "ProtectSystem=strictly"),
        ("Restart=on-failure", "Restarts=on-failure"),
        ("RestartSec=2", "RestartSec=two"),
        ("[Service]", "[Services]"),
    ],
)
def test_a_fault_in_a_unit_is_found(right, wrong, installed):
    path = installed / "hashlight-gateway.service"
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    done = verified(installed)
    assert done.returncode != 0 or done.stderr != ""


@pytest.mark.parametrize("path", [path for path in UNITS if path.suffix == ".service"], ids=lambda path: path.name)
def test_units_are_confined(path, installed):
    check = ("security", "--offline=true", f"--threshold={MAX_EXPOSURE}")
    done = analyze(*check, installed / path.name, units=installed)
    assert done.returncode == 0, done.stdout + done.stderr
    loose = [line for line in path.read_text().splitlines() if not line.startswith(("Protect", "Restrict", "Private"))]
    (installed / path.name).write_text("\n".join(loose))
    assert analyze(*check, installed / path.name, units=installed).returncode != 0


def test_what_units_name_is_there():
    wanted = unit(DEPLOY / "systemd" / "hashlight.target")["Unit"]["Wants"].split()
    files = {path.name for path in UNITS}
    assert {name.replace("@1.", "@.").replace("@2.", "@.") for name in wanted} <= files
    groups = json.loads((DEPLOY / "systemd" / "map.json").read_text())["groups"]
    servers = [name for name in wanted if name.startswith("hashlight-shard-server@")]
    assert len(groups) == len(servers) == int(environment()["HASHLIGHT_GROUPS"])
    assert "hashlight-compaction.service" in files


def prepared(path):
    """Return a cluster's file as the launcher has it, with its defaults."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load(path.read_text()))


def check(config):
    from ray.autoscaler._private.util import validate_config

    validate_config(config)


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
def test_rays_launcher_accepts_the_cluster(path):
    check(prepared(path))


@pytest.mark.parametrize("path", LAUNCHER, ids=lambda path: path.name)
@pytest.mark.parametrize(
    "fault",
    [
        lambda config: config.pop("cluster_name"),
        lambda config: config["docker"].update(images="hashlight-jobs"),
        lambda config: config.update(max_workers="many"),
        lambda config: config.update(setup="pip install hashlight"),
    ],
    ids=["no name", "unknown option of docker", "wrong type", "unknown option"],
)
def test_a_fault_in_a_cluster_is_found(path, fault):
    config = prepared(path)
    fault(config)
    with pytest.raises(Exception, match=r"cluster_name|images|max_workers|many|setup"):
        check(config)


def test_the_cloud_has_processors_and_gpus_that_come_and_go():
    kinds = yaml.safe_load((DEPLOY / "ray" / "aws.yaml").read_text())["available_node_types"]
    assert kinds["cpu"]["max_workers"] > kinds["cpu"]["min_workers"]
    assert kinds["gpu"]["max_workers"] > kinds["gpu"]["min_workers"]
    assert kinds["gpu"]["docker"]["worker_image"].startswith("hashlight-gpu:")
    assert kinds["head"]["resources"] == {"CPU": 0}
