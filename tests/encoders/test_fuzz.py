"""Both files of an encoder, mutated under the right fingerprint; see `fuzz`."""

from __future__ import annotations

import pytest

from tests.encoders.fuzz import KINDS
from tests.engine.storage.test_fuzz import MUTATIONS, run_fuzz

PROGRAM = "tests.encoders.fuzz"


def check(outcomes, count):
    for kind, (refused, answered) in outcomes.items():
        assert refused + answered == count
        assert refused > count // 5, kind


def test_a_few_mutations_of_an_encoder_are_refused_by_name_or_encode(tmp_path):
    check(run_fuzz(PROGRAM, tmp_path, 1000, 20, *KINDS), 20)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutations_of_an_encoder_are_refused_by_name_or_encode(tmp_path, kind):
    check(run_fuzz(PROGRAM, tmp_path, 0, MUTATIONS, kind), MUTATIONS)
