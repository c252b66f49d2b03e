"""A collection does what a dict does, whatever is done to it, in a folder and in a bucket."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.engine.living.machine import Machine

STEPS = int(os.environ.get("HASHLIGHT_TEST_STEPS", "3000"))


def machine_at(place, kind=Machine):
    numbers = itertools.count()

    class Placed(kind):
        changes = 0

        def place(self):
            return place(next(numbers))

    return Placed


def run_steps(machine, steps, *, each=30, examples=5):
    """Run rounds of examples of so many steps each until so many changes were made or refused, besides questions."""
    # Hypothesis draws the same examples in each round where it finds that it runs in CI, maybe ones without any change.
    how = settings(max_examples=examples, stateful_step_count=each, derandomize=False, deadline=None, database=None,
                   print_blob=True, suppress_health_check=list(HealthCheck))  # fmt: skip
    while machine.changes < steps:
        run_state_machine_as_test(machine, settings=how)


def in_folder(tmp_path, kind=Machine):
    return machine_at(lambda number: (
        str(tmp_path / str(number)), lambda name: (tmp_path / str(number) / name).read_bytes()), kind)  # fmt: skip


def in_bucket(bucket):
    return machine_at(lambda number: (bucket.uri(f"c{number}"), lambda name: bucket.get(f"c{number}/{name}")))


def test_a_collection_is_a_dict(tmp_path):
    run_steps(in_folder(tmp_path), 150)


def test_a_collection_in_a_bucket_is_a_dict(bucket):
    run_steps(in_bucket(bucket), 12, each=20, examples=2)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_collection_is_a_dict_for_many_steps(tmp_path):
    run_steps(in_folder(tmp_path), STEPS)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_collection_in_a_bucket_is_a_dict_for_many_steps(bucket):
    run_steps(in_bucket(bucket), STEPS // 10)
