"""The command line understands every command in deploy/ and in the page about it, with values and all."""

from __future__ import annotations

import re
import shlex

import pytest

from hashlight.engine.cache.size import VARIABLE

from .commands import UsageError, parse
from .files import DEPLOY, LAUNCHER, ROOT, UNITS, compose, kubernetes, mentioned, pods_of, relative, started_by, unit
from .processes import PLATFORMS

# Any place of a collection, in the words of pages.
PLACES = {"COLLECTION": "s3://bucket/collection", "photos": "/srv/photos", "map.json": "/etc/map.json", "N": "3"}


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.setenv(VARIABLE, "1G")  # what `--cache-size` sets


def of_kubernetes():
    for file, document in kubernetes():
        if document["kind"] == "RayJob":
            program, *words = shlex.split(document["spec"]["entrypoint"])
            assert program == "hashlight"
            yield file, words
        elif document["kind"] == "CronJob":
            [pod] = pods_of(document["spec"]["jobTemplate"])
            yield file, pod["spec"]["containers"][0]["args"]


def of_servers():
    for processes in PLATFORMS.values():
        for process in processes():
            yield process.file, process.words


def of_units():
    for path in UNITS:
        if path.suffix == ".service":
            program, *words = started_by(path)
            assert program == "/opt/hashlight/bin/hashlight"
            yield relative(path), words


def of_texts():
    pages = [ROOT / "docs" / "deploying.md", ROOT / "docs" / "runbook.md"]
    for path in [DEPLOY / "compose.yaml", DEPLOY / "Dockerfile", *LAUNCHER, *UNITS, *pages]:
        for words in mentioned(path):
            yield relative(path), [PLACES.get(word, word) for word in words]


WRITTEN = [*of_kubernetes(), *of_servers(), *of_units(), *of_texts()]


@pytest.mark.parametrize(("file", "words"), WRITTEN, ids=lambda value: value if isinstance(value, str) else value[0])
def test_the_command_line_understands(file, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse(words, tmp_path)


def test_commands_were_found_everywhere():
    verbs = {verb for _, (verb, *_) in WRITTEN}
    assert verbs >= {"gateway", "shard-server", "compact", "encode", "build", "dedup", "serve"}
    files = {file for file, _ in WRITTEN}
    expected = {"hashlight.yaml", "encode.yaml", "build.yaml", "dedup.yaml", "compose.yaml", "aws.yaml"}
    expected |= {"on-premises.yaml", "hashlight-gateway.service", "hashlight-compaction.service", "deploying.md"}
    assert {file.rpartition("/")[2] for file in files} >= expected


@pytest.mark.parametrize(
    "fault",
    [
        lambda words: [*words, "--verbose-please"],
        lambda words: [*words, "--drain-delay=soon"],
        lambda words: [*words, "another", "argument"],
        lambda words: ["shard-sever", *words[1:]],
        lambda words: [word.replace("--listen", "--lisen") for word in words],
    ],
)
def test_a_fault_in_a_command_is_found(fault, tmp_path):
    [process, *_] = [process for process in PLATFORMS["kubernetes"]() if process.words[0] == "shard-server"]
    with pytest.raises(UsageError):
        parse(fault(process.words), tmp_path)


def test_every_process_of_compose_that_is_ours_was_parsed():
    ours = {name for name, service in compose()["services"].items() if service["image"].startswith("hashlight-")}
    assert ours == {"gateway", "shard-1", "shard-2", "jobs", "load"}


def test_units_restart_what_fails():
    for path in UNITS:
        if path.suffix == ".service" and "compaction" not in path.name:
            assert unit(path)["Service"]["Restart"] == "on-failure"
            assert re.search(r"--drain-delay (\d+)", unit(path)["Service"]["ExecStart"])
