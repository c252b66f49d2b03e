from __future__ import annotations

import socket

import pytest

from hashlight.pipelines.doctor import software
from hashlight.pipelines.doctor.checks import checks_of
from hashlight.pipelines.doctor.findings import GIB, Asked
from hashlight.pipelines.doctor.running import run_check
from hashlight.pipelines.doctor.software import Gpus

REQUIREMENTS = [
    "numba>=0.61",
    "numpy>=2.0",
    'tomli>=2; python_version < "3.0"',
    'torch<3,>=2.5; extra == "jobs"',
    'hashlight[jobs]; extra == "cpu"',
    'numpy>=1.0; extra == "serve"',
    "this is not a requirement at all ===",
]


@pytest.mark.parametrize(
    ("installed", "found"),
    [
        ({"numba": "0.61.0", "numpy": "2.1"}, []),
        ({"numba": "0.61.0", "numpy": "2.1", "torch": "2.13.0+cpu"}, []),
        ({"numba": "0.100.0", "numpy": "2.1"}, []),  # which is above 0.61; as text it is not
        ({"numba": "0.60.1", "numpy": "2.1"}, ["numba 0.60.1 is installed, expected >=0.61"]),
        ({"numpy": "2.1"}, ["numba is not installed"]),
        (
            {"numba": "0.61.0", "numpy": "1.26", "torch": "3.0"},
            ["numpy 1.26 is installed, expected >=1.0,>=2.0", "torch 3.0 is installed, expected <3,>=2.5"],
        ),
    ],
)
def test_packages_against_what_is_required(installed, found):
    findings = list(software.unmet(REQUIREMENTS, installed.get))
    assert [finding.found for finding in findings] == found
    assert all(finding.state == "problem" and finding.advice.startswith("pip install '") for finding in findings)


def test_two_packages_of_faiss_are_a_problem():
    assert list(software.both_faiss(["faiss-cpu"])) == []
    [finding] = software.both_faiss(["faiss-cpu", "faiss-gpu"])
    assert (finding.state, finding.found) == ("problem", "faiss-cpu and faiss-gpu are both installed")
    assert "pip uninstall faiss-cpu faiss-gpu" in finding.advice


@pytest.mark.parametrize(
    ("options", "features", "state"),
    [
        ("OPTIMIZE DD AVX2 AVX512 AVX512_VPOPCNT ", {"avx2": True}, "ok"),
        ("OPTIMIZE AVX512 ", {"avx2": True}, "ok"),
        ("OPTIMIZE GENERIC ", {"avx2": True}, "warning"),
        ("OPTIMIZE GENERIC ", {"avx2": False}, "ok"),
        ("OPTIMIZE GENERIC NEON ", {"neon": True}, "ok"),
    ],
)
def test_how_faiss_was_built(options, features, state):
    finding = software.build_of("1.13.0", options, features)
    assert finding.state == state
    assert finding.found == f"FAISS 1.13.0, built with {options.strip()}"


@pytest.mark.parametrize(
    ("found", "state", "text", "advice"),
    [
        (Gpus(0, "2.9", None, []), "ok", "none: processors encode", ""),
        (Gpus(2, None, None, []), "ok", "2 NVIDIA GPUs, and no torch that would use it", ""),
        (Gpus(1, "2.9+cpu", None, []), "warning", "1 NVIDIA GPU, and torch 2.9+cpu was built without", "with CUDA"),
        (Gpus(2, "2.9", "12.8", ["H200"]), "warning", "2 NVIDIA GPUs, of which torch 2.9 (CUDA 12.8) can use 1", "smi"),
        (Gpus(1, "2.9", "12.8", ["H200"]), "ok", "H200, by torch 2.9 (CUDA 12.8)", ""),
    ],
)
def test_gpus(found, state, text, advice):
    finding = software.gpus_of(found)
    assert finding.state == state
    assert text in finding.found
    assert advice in finding.advice


@pytest.mark.parametrize(("shared", "state"), [(64 / 1024, "warning"), (2, "ok")])
def test_shared_memory(shared, state):
    finding = software.shared_memory_of(int(shared * GIB), 16 * GIB)
    assert finding.state == state
    assert ("--shm-size" in finding.advice) == (state == "warning")


def node(alive=True, **resources):
    return {"Alive": alive, "Resources": resources}


def test_nodes_of_a_cluster():
    whole = software.nodes_of("head:6379", [node(CPU=8.0), node(CPU=4.0, GPU=1.0)])
    assert (whole.state, whole.found) == ("ok", "the cluster at head:6379 has 2 nodes with 12 cores and 1 GPUs")
    less = software.nodes_of("head:6379", [node(CPU=8.0), node(False, CPU=4.0)])
    assert less.state == "warning"
    assert less.numbers == {"address": "head:6379", "alive": 1, "dead": 1, "cores": 8.0, "gpus": 0}


def test_a_cluster_that_does_not_answer_is_a_problem(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        findings = list(software.ray(Asked()))
    assert [finding.state for finding in findings][-1] == "problem"
    assert f"the Ray cluster at {address} does not answer" in findings[-1].found
    assert "RAY_ADDRESS names it" in findings[-1].found


def test_a_cluster_that_this_machine_was_a_part_of_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert [finding.state for finding in software.ray(Asked())].count("problem") == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free.getsockname()[1]}\n")
        assert "was made a part of it" in list(software.ray(Asked()))[-1].found


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_that_answers_is_asked_for_its_nodes(monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    asked = Asked()
    [check] = [check for check in checks_of(asked) if check.name == "ray"]
    *_, finding = run_check(check, asked)
    assert (finding.state, finding.numbers.get("alive"), finding.numbers.get("cores")) == ("ok", 1, 2), finding


def test_this_machine_is_looked_at():
    first, *others = software.versions(Asked())
    assert first.found.startswith("hashlight ")
    assert first.numbers["python"] in first.found
    assert others == []
    [built] = software.faiss(Asked())
    assert built.state == "ok"
    [gpu] = software.gpu(Asked())
    assert gpu.check == "gpu"
