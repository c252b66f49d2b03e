"""Every file of a folder of codes, mutated under right checksums; see `fuzz`."""

from __future__ import annotations

import pytest

from tests.engine.storage.test_fuzz import MUTATIONS, run_fuzz
from tests.pipelines.codes.fuzz import KINDS, NEVER_REFUSED

PROGRAM = "tests.pipelines.codes.fuzz"


def check(outcomes, count):
    for kind, (refused, answered) in outcomes.items():
        assert refused + answered == count
        assert (refused == 0) if kind in NEVER_REFUSED else refused > count // 20, kind


def test_a_few_mutations_of_codes_are_refused_by_name_or_read_rightly(tmp_path):
    check(run_fuzz(PROGRAM, tmp_path, 1000, 30, *KINDS), 30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutations_of_codes_are_refused_by_name_or_read_rightly(tmp_path, kind):
    check(run_fuzz(PROGRAM, tmp_path, 0, MUTATIONS, kind), MUTATIONS)
