"""A collection that is served does what a dict does, whoever changes it, through the server or beside it."""

from __future__ import annotations

import pytest

from hashlight.engine.service.asking import following
from tests.engine.living.served import ServedMachine
from tests.engine.living.test_machine import STEPS, in_folder, run_steps


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(following, "LOOK_S", 0.01)
    return in_folder(tmp_path, ServedMachine)


def test_a_served_collection_is_a_dict(machine):
    run_steps(machine, 20, each=20, examples=2)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_served_collection_is_a_dict_for_many_steps(machine):
    run_steps(machine, STEPS, each=80)
