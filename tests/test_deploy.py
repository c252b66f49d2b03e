"""The command line understands the commands in deploy/, and Ray's launcher accepts its cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml

from hashlight.pipelines.cli.main import app

DEPLOY = Path(__file__).parent.parent / "deploy"
COMMANDS = typer.main.get_command(app).commands


def written_commands():
    """Every hashlight command in the files and their comments: (file, words after `hashlight`)."""
    for path in sorted(DEPLOY.iterdir()):
        text = path.read_text()
        for words in re.findall(r"(?:hashlight|run --rm jobs) ([a-z][^'\n]*)", text):
            if words.split()[0] in COMMANDS:
                yield path.name, words.split()
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    yield "compose.yaml", compose["services"]["serve"]["command"].split()


@pytest.mark.parametrize(("file", "words"), list(written_commands()))
def test_commands_and_options_are_there(file, words):
    options = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_commands_were_found():
    assert {words[0] for _, words in written_commands()} == {"encode", "build", "serve", "search"}


def test_rays_launcher_accepts_the_cluster():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))
    del config["cluster_name"]
    with pytest.raises(Exception, match="cluster_name"):
        validate_config(config)
