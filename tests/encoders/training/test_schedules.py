import math

import pytest

from hashlight.encoders.training.schedules import FINAL_BETAS, SCHEDULES, constant, released, stages


def test_stages_rise_in_ten_steps_by_equal_ratios():
    assert [stages(i / 10 + 0.05, 512.0) for i in range(10)] == pytest.approx([2.0**i for i in range(10)])
    assert stages(0.0, 30.0) == 1.0
    assert stages(1.0, 30.0) == 30.0
    assert stages(0.1, 10.0) == stages(0.19, 10.0)


@pytest.mark.parametrize("iteration", [0, 199, 200, 5_000, 9_999])
def test_released_equals_the_authors_rule(iteration):
    refreshed = iteration // 200 * 200
    final = math.sqrt(1 + 0.005 * 9_800)
    assert released(iteration / 10_000, final) == pytest.approx(math.sqrt(1 + 0.005 * refreshed))
    assert FINAL_BETAS["released"] == pytest.approx(final)


def test_the_schedules_of_this_project_end_where_codes_are_sharp():
    assert {FINAL_BETAS["stages"], FINAL_BETAS["constant"]} == {30.0}


def test_constant_has_no_continuation():
    assert {constant(p, 8.0) for p in (0.0, 0.5, 1.0)} == {8.0}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_rises_to_its_end_and_refuses_progress_outside_0_to_1(name):
    values = [SCHEDULES[name](step / 97, 12.0) for step in range(98)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(12.0)
    with pytest.raises(ValueError, match=r"0 to 1, got 1\.5"):
        SCHEDULES[name](1.5, 12.0)
