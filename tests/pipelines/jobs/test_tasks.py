"""Tasks on Ray: no more at once than were asked for, wherever they run."""

from __future__ import annotations

import pytest
import ray

from hashlight.pipelines.jobs.tasks import run_tasks


@pytest.mark.parametrize("max_running", [1, 3])
def test_no_more_tasks_run_than_were_asked_for(ray_session, max_running):
    task = ray.remote(num_cpus=0)(lambda item: item * 2)
    running, most, found = 0, 0, {}

    def submit(item):
        nonlocal running, most
        running += 1
        most = max(most, running)
        return task.remote(item)

    for item, result in run_tasks(submit, range(12), max_running=max_running):
        running -= 1
        found[item] = result
    assert found == {item: 2 * item for item in range(12)}
    assert most == max_running
