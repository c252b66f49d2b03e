"""`hashlight doctor` as a person and a program see it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from hashlight.pipelines.cli.main import app
from hashlight.pipelines.doctor import running
from hashlight.pipelines.doctor.checks import checks_of
from hashlight.pipelines.doctor.findings import Asked, Finding

FINDINGS = {
    "memory": Finding(check="memory", state="ok", found="plenty of it", numbers={"total": 7}),
    "disk": Finding(check="disk", state="warning", found="[red] it is slow", advice="use another"),
    "ray": Finding(check="ray", state="problem", found="it is gone", advice="start it"),
}


@pytest.fixture
def findings(monkeypatch):
    """What the checks find; they run elsewhere, which other tests see to."""
    found = {}
    monkeypatch.setattr(running, "run_check", lambda check, asked: [found[check.name]] if check.name in found else [])
    return found


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments])


@pytest.mark.parametrize(
    ("names", "status"), [((), 0), (("memory",), 0), (("memory", "disk"), 0), (("disk", "ray"), 1)]
)
def test_a_problem_is_the_exit_code(findings, names, status):
    findings |= {name: FINDINGS[name] for name in names}
    assert doctor().exit_code == status
    assert doctor("--json").exit_code == status


def test_what_was_found_and_what_to_do_about_it_are_shown(findings):
    findings |= FINDINGS
    lines = [line.split(maxsplit=2) for line in doctor().stdout.splitlines()]
    assert lines == [
        ["ok", "memory", "plenty of it"],
        ["warning", "disk", "[red] it is slow"],
        ["use", "another"],
        ["problem", "ray", "it is gone"],
        ["start", "it"],
        ["1", "ok,", "1 warnings, 1 problems"],
    ]


def test_programs_get_json(findings):
    findings |= FINDINGS
    told = json.loads(doctor("--json").stdout)
    assert told["state"] == "problem"
    assert told["findings"][0] == {
        "check": "memory", "state": "ok", "found": "plenty of it", "advice": "", "numbers": {"total": 7},
    }  # fmt: skip


def test_what_is_asked_for_is_checked():
    plain = [check.name for check in checks_of(Asked())]
    assert plain == [
        "versions", "faiss", "processor", "memory", "limits", "gpu", "disk", "cache", "ray", "kernels",
    ]  # fmt: skip
    assert [check.name for check in checks_of(Asked(collection="c"))] == [*plain, "collection"]
    assert [check.name for check in checks_of(Asked(gateway="http://host"))] == [*plain, "gateway"]
    for asked in (Asked(shards="dns:///s-{group}:1", groups=2), Asked(map="servers.json")):
        assert [check.name for check in checks_of(asked)] == [*plain, "shards"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shards", "dns:///s-{group}:1"), "goes with --groups"),
        (("--shards", "ray://s", "--map", __file__), "give either --shards or --map"),
        (("--shard-tls-cert", __file__), "go together"),
    ],
)
def test_what_is_asked_for_by_half_is_refused(findings, arguments, message):
    done = doctor(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_options_arrive_where_they_are_used(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(running, "run_check", lambda check, asked: seen.append(asked) or [])
    for name in ("map", "cert", "key", "authority"):
        (tmp_path / name).write_text("")
    paths = {name: str(tmp_path / name) for name in ("map", "cert", "key", "authority")}
    tls = [text for name in ("cert", "key", "authority") for text in (f"--shard-tls-{name}", paths[name])]
    assert doctor("c", "--gateway", "http://host", "--map", paths["map"], "--groups", "3", *tls).exit_code == 0
    assert seen[0] == Asked(
        collection="c", gateway="http://host", groups=3, map=paths["map"], shard_cert=paths["cert"],
        shard_key=paths["key"], shard_authority=paths["authority"],
    )  # fmt: skip


def test_every_check_is_there():
    asked = Asked(collection="c", gateway="http://host", map="servers.json")
    for check in checks_of(asked):
        module = __import__(check.module, fromlist=[check.function])
        assert callable(getattr(module, check.function))
        assert check.limit_s > 0


def test_checks_run_in_processes_of_their_own_and_come_back():
    asked = Asked()
    quick = [check for check in checks_of(asked) if check.name in ("versions", "limits")]
    found = running.run_checks(quick, asked)
    assert {finding.check for finding in found} == {"versions", "limits"}
    assert found[0].found.startswith("hashlight ")
