"""Checks that hang, crash, fail or talk: each is a finding, and the others go on."""

from __future__ import annotations

import os
import time

import pytest

from hashlight.pipelines.doctor import running
from hashlight.pipelines.doctor.findings import Asked, Finding, worst
from hashlight.pipelines.doctor.running import Check, run_check, run_checks

CHECKS = """
import os, signal, subprocess, sys, time
from hashlight.pipelines.doctor.findings import Finding

def fine(asked):
    print("a library says hello")
    os.write(1, b"so does its C code")
    yield Finding(check="made", state="warning", found=f"asked of {asked.collection}", advice="do it", numbers={"n": 7})
    yield Finding(check="made", state="ok", found="fine")

def hangs(asked):
    open(os.environ["MARK"], "w").write(str(subprocess.Popen(["sleep", "600"]).pid))
    time.sleep(600)

def fails(asked):
    raise RuntimeError("the library is broken")

def crashes(asked):
    os.kill(os.getpid(), signal.SIGILL)

def is_killed(asked):
    os.kill(os.getpid(), signal.SIGKILL)

def exits(asked):
    sys.exit(3)
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    (tmp_path / "made_checks.py").write_text(CHECKS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))

    def make(function, limit_s=120.0):
        return Check(name="made", title="a made check", module="made_checks", function=function, limit_s=limit_s)

    return make


def test_findings_come_back_whatever_a_library_prints(check):
    assert run_check(check("fine"), Asked(collection="c")) == [
        Finding(check="made", state="warning", found="asked of c", advice="do it", numbers={"n": 7}),
        Finding(check="made", state="ok", found="fine"),
    ]


def test_a_check_that_hangs_is_ended_with_what_it_has_started(check, tmp_path):
    while not (tmp_path / "mark").exists():  # a busy machine may not get to it within the limit
        start_s = time.monotonic()
        [finding] = run_check(check("hangs", limit_s=3.0), Asked())
        assert time.monotonic() - start_s < 60
    assert (finding.check, finding.state) == ("made", "problem")
    assert finding.found == "a made check did not end within 3 s"
    assert "dmesg" in finding.advice
    child = int((tmp_path / "mark").read_text())
    until_s = time.monotonic() + 60
    while is_running(child):
        assert time.monotonic() < until_s
        time.sleep(0.05)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("function", "found", "advice"),
    [
        ("fails", "a made check failed: RuntimeError: the library is broken", "mend what it says"),
        ("crashes", "a made check ended by SIGILL", "built for another kind of processor"),
        ("is_killed", "a made check ended by SIGKILL", "want of memory"),
        ("exits", "a made check failed: without a word", "mend what it says"),
        ("missing", "a made check failed: AttributeError: module 'made_checks' has no attribute 'missing'", "mend"),
    ],
)
def test_a_check_that_fails_is_a_problem(check, function, found, advice):
    [finding] = run_check(check(function), Asked())
    assert (finding.check, finding.state, finding.found) == ("made", "problem", found)
    assert advice in finding.advice


def test_the_others_go_on(check):
    said = []
    findings = run_checks([check("crashes"), check("fine")], Asked(), say=said.append)
    assert [finding.state for finding in findings] == ["problem", "warning", "ok"]
    assert said == ["a made check", "a made check"]


def test_a_machine_that_starts_no_process_is_told(check, monkeypatch):
    monkeypatch.setattr(running.sys, "executable", "/nowhere/python")
    [finding] = run_check(check("fine"), Asked())
    assert finding.state == "problem"
    assert "no process can be started" in finding.found


def test_the_worst_state_counts():
    fine, slow, broken = (
        Finding(check="made", state=state, found="", advice="" if state == "ok" else "do it")
        for state in ("ok", "warning", "problem")
    )
    assert [worst([]), worst([fine]), worst([fine, slow, fine]), worst([broken, slow])] == [
        "ok", "ok", "warning", "problem",
    ]  # fmt: skip


def test_whoever_reads_of_a_fault_is_told_what_to_do():
    with pytest.raises(AssertionError, match="told what to do"):
        Finding(check="made", state="warning", found="it is slow")
