"""The folder of a job: what is finished counts once, and only for its own job."""

import json

import pytest

from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, JobKind, OtherJobError

KIND = JobKind(holds="sums", identified_by=("numbers",), entries=("sums.json", "sums"))
ASKED = {"numbers": [1, 2], "base": 10}


@pytest.fixture
def job(tmp_path):
    folder = JobFolder(tmp_path / "job", KIND)
    folder.begin(ASKED, overwrite=False)
    return folder


def test_the_first_sidecar_of_a_unit_counts(job):
    assert job.publish(3, {"sum": 6})["sum"] == 6
    assert job.publish(3, {"sum": 7})["sum"] == 6
    assert {unit: said["sum"] for unit, said in job.done()} == {3: 6}


def test_the_same_identity_resumes_and_another_is_refused_with_what_differs(job, tmp_path):
    job.publish(0, {"sum": 1})
    again = JobFolder(tmp_path / "job", KIND)
    again.begin(dict(reversed(ASKED.items())), overwrite=False)
    assert list(dict(again.done())) == [0]
    with pytest.raises(OtherJobError, match=r"base 10 \(asked: 16\)") as refused:
        again.begin({**ASKED, "base": 16}, overwrite=False)
    assert refused.value.different == ["base"]
    assert list(dict(again.done())) == [0], "a refused job removes nothing"
    again.begin({**ASKED, "base": 16}, overwrite=True)
    assert dict(again.done()) == {}


@pytest.mark.parametrize("damaged", [b"", b'{"job": "', b"[]", b"{}", b"\xff"])
def test_a_unit_with_a_damaged_sidecar_is_repeated(job, tmp_path, damaged):
    job.publish(0, {"sum": 1})
    job.publish(1, {"sum": 2})
    (tmp_path / "job" / "sidecars" / "00001.json").write_bytes(damaged)
    with pytest.raises(PipelineError, match=r"00001\.json is damaged: delete it and run the same command again"):
        job.sidecar(1)
    assert list(job.sidecars()) == [0]
    assert list(dict(job.done())) == [0]
    assert job.sidecar(1) is None
    assert job.publish(1, {"sum": 2})["sum"] == 2


def test_units_of_another_job_do_not_count(job, tmp_path):
    job.publish(0, {"sum": 1})
    path = tmp_path / "job" / "sidecars" / "00000.json"
    path.write_text(json.dumps({"job": "another", "sum": 5}))
    with pytest.raises(PipelineError, match=r"published by another job meanwhile \(another, this one is"):
        job.sidecar(0)
    assert dict(job.done()) == {}
    assert not path.exists()


def test_files_that_are_no_sidecars_are_left_alone(job, tmp_path):
    job.publish(12, {"sum": 1})
    (tmp_path / "job" / "sidecars" / "notes.txt").write_text("mine")
    assert job.units() == [12]
    assert list(dict(job.done())) == [12]


@pytest.mark.parametrize("marker", [None, {"pictures": 3}])
def test_a_folder_of_another_kind_is_refused(tmp_path, marker):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    if marker is not None:
        (tmp_path / "other" / "job.json").write_text(json.dumps(marker))
    with pytest.raises(PipelineError, match="is not empty and holds no sums"):
        JobFolder(tmp_path / "other", KIND).refuse_foreign()
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"
