"""Every file that a job resumes from, mutated; see `fuzz`."""

from __future__ import annotations

import pytest

from tests.engine.storage.test_fuzz import MUTATIONS, run_fuzz
from tests.pipelines.jobs.fuzz import KINDS

PROGRAM = "tests.pipelines.jobs.fuzz"


def check(outcomes, count):
    for kind, (refused, answered) in outcomes.items():
        assert refused + answered == count
        assert refused > count // 20, kind


def test_a_few_mutations_of_what_jobs_resume_from_are_refused_by_name_or_read_rightly(tmp_path):
    check(run_fuzz(PROGRAM, tmp_path, 1000, 20, *KINDS), 20)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutations_of_what_jobs_resume_from_are_refused_by_name_or_read_rightly(tmp_path, kind):
    check(run_fuzz(PROGRAM, tmp_path, 0, MUTATIONS, kind), MUTATIONS)
