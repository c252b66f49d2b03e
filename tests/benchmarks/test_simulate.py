"""The simulator against closed forms of queueing theory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.simulate import Policy, System, exponential, measured, simulate, with_stalls

IDLE = 1e-3  # queries per second, too few to overlap


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_server_waits_as_m_m_1(load):
    outcome = simulate(
        System(groups=1, replicas=1, service=exponential(1.0)), Policy(), qps=load, queries=120_000, seed=1
    )
    # The time in an M/M/1 system is exponential with mean 1 / (mu - lambda).
    assert outcome.latency_s.mean() == pytest.approx(1 / (1 - load), rel=0.05)
    assert outcome.quantile(0.99) == pytest.approx(-math.log(0.01) / (1 - load), rel=0.1)
    assert outcome.busy == pytest.approx(load, rel=0.02)


def test_several_cores_wait_as_m_m_c():
    cores, load = 4, 0.8
    offered = cores * load
    terms = [offered**k / math.factorial(k) for k in range(cores)]
    last = offered**cores / math.factorial(cores) / (1 - load)
    erlang_c = last / (sum(terms) + last)
    outcome = simulate(
        System(groups=1, replicas=1, cores=cores, service=exponential(1.0)), Policy(), qps=offered, queries=150_000
    )
    assert outcome.latency_s.mean() == pytest.approx(1 + erlang_c / (cores - offered), rel=0.05)


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_fan_out_takes_the_longest_of_its_calls(groups):
    outcome = simulate(
        System(groups=groups, replicas=1, service=exponential(1.0)), Policy(), qps=IDLE, queries=20_000, seed=2
    )
    assert outcome.latency_s.mean() == pytest.approx(sum(1 / n for n in range(1, groups + 1)), rel=0.03)
    for share in (0.5, 0.95):
        assert outcome.quantile(share) == pytest.approx(-math.log(1 - share ** (1 / groups)), rel=0.05)


def test_a_hedge_races_two_exponentials():
    system = System(groups=1, replicas=2, service=exponential(1.0))
    delay = 1.5
    outcome = simulate(system, Policy(hedge_after_s=delay, budget=1.0), qps=IDLE, queries=60_000)
    # P(T > t) is exp(-t) before the hedge and exp(-t) exp(-(t - delay)) after it.
    for time in (1.0, 2.0, 3.0):
        expected = math.exp(-time - max(time - delay, 0))
        assert np.mean(outcome.latency_s > time) == pytest.approx(expected, rel=0.08)
    assert outcome.hedges / outcome.calls == pytest.approx(math.exp(-delay), rel=0.05)


def test_a_hedge_that_is_not_cancelled_is_worked_on():
    system = System(groups=1, replicas=2, service=exponential(1.0))
    busy = [
        simulate(system, Policy(hedge_after_s=0.0, budget=1.0, cancel=cancel), qps=0.8, queries=50_000).busy
        for cancel in (True, False)
    ]
    # Every call is worked on twice, on two replicas.
    assert busy[1] == pytest.approx(0.8, rel=0.03)
    assert 0.4 < busy[0] < 0.75


def test_the_hedge_waits_for_the_observed_quantile_and_keeps_its_budget():
    system = System(groups=2, replicas=2, service=exponential(1.0))
    observed = simulate(system, Policy(hedge_quantile=0.95, budget=1.0), qps=IDLE, queries=30_000)
    fixed = simulate(system, Policy(hedge_after_s=0.5, budget=0.05), qps=IDLE, queries=30_000)
    # Observed times include hedged calls: 0.95 = 1 - exp(-t) up to the delay itself.
    assert observed.hedges / observed.calls == pytest.approx(0.05, rel=0.1)
    assert fixed.hedges / fixed.calls == pytest.approx(0.05, rel=0.02)
    assert fixed.hedges / fixed.calls <= 0.05 + 20 / fixed.calls


def test_the_better_of_two_queues_is_the_supermarket_model():
    load, system = 0.9, System(groups=1, replicas=100, service=exponential(1.0))
    two = simulate(system, Policy(), qps=load * 100, queries=150_000)
    one = simulate(system, Policy(choice="random"), qps=load * 100, queries=150_000)
    # Mitzenmacher, 2001: the mean time in the system for many queues and two choices.
    expected = sum(load ** (2**i - 2) for i in range(1, 12))
    assert two.latency_s.mean() == pytest.approx(expected, rel=0.05)
    assert one.latency_s.mean() == pytest.approx(1 / (1 - load), rel=0.15)


def test_a_dead_replica_costs_one_refusal_or_the_query():
    dead = System(groups=4, replicas=2, service=exponential(1e-3), refusing=1, refusal_s=5e-3)
    lost = simulate(dead, Policy(retry=False, breaker_s=0.0), qps=10, queries=20_000)
    assert lost.failed / (lost.failed + len(lost.latency_s)) == pytest.approx(0.5, rel=0.05)
    again = simulate(dead, Policy(breaker_s=0.0), qps=10, queries=20_000)
    assert again.failed == 0
    assert np.mean(again.latency_s > 5e-3) > 0.45
    shut = simulate(dead, Policy(breaker_s=10.0), qps=10, queries=20_000)
    assert shut.failed == 0
    # One query in a hundred and more finds the breaker open again.
    assert np.mean(shut.latency_s > 5e-3) < 0.1
    alone = simulate(System(groups=1, replicas=1, service=exponential(1.0), refusing=1), Policy(), qps=1, queries=10)
    assert (alone.failed, len(alone.latency_s)) == (9, 0)


@pytest.mark.parametrize("gateways", [1, 3])
def test_gateways_share_queries_which_wait_twice(gateways):
    load, at_once = 0.6, measured(np.array([1e-9]))
    system = System(groups=2, replicas=1, service=at_once, gateways=gateways, before=exponential(1.0))
    outcome = simulate(system, Policy(), qps=load * gateways, queries=120_000, seed=3)
    # As in M/M/1 until it asks; then its answers, whose merging takes no time, wait for as many as it leaves behind.
    assert outcome.latency_s.mean() == pytest.approx(1 / (1 - load) + load / (1 - load), rel=0.05)


def test_an_idle_gateway_adds_its_work_before_and_after():
    before, after, service = (measured(np.array([seconds])) for seconds in (1.0, 0.25, 3.0))
    system = System(groups=4, replicas=1, service=service, gateways=2, before=before, after=after)
    assert simulate(system, Policy(), qps=IDLE, queries=100).quantile(0.5) == pytest.approx(4.25)


def test_the_same_seed_is_the_same_run():
    system = System(groups=3, replicas=2, service=with_stalls(measured(np.array([1.0, 2.0])), share=0.1, stall_s=5.0))
    runs = [simulate(system, Policy(hedge_quantile=0.9), qps=0.8, queries=3_000, seed=seed) for seed in (4, 4, 5)]
    np.testing.assert_array_equal(runs[0].latency_s, runs[1].latency_s)
    assert not np.array_equal(runs[0].latency_s, runs[2].latency_s)
    assert runs[0].latency_s.min() >= 1.0


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="`groups`, `replicas` and `cores` must be at least 1, got 0, 1, 1"):
        System(groups=0, replicas=1, service=exponential(1.0))
    with pytest.raises(ValueError, match="`refusing` must be 0 to 2, the groups, got 3"):
        System(groups=2, replicas=1, service=exponential(1.0), refusing=3)
    with pytest.raises(ValueError, match="`gateways` must be at least 0, got -1"):
        System(groups=2, replicas=1, service=exponential(1.0), gateways=-1)
    with pytest.raises(ValueError, match="random or power-of-two, got 'best'"):
        Policy(choice="best")
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        Policy(hedge_quantile=95)
    with pytest.raises(ValueError, match="`qps` must be above 0 and `queries` at least 1, got 0 and 5"):
        simulate(System(groups=1, replicas=1, service=exponential(1.0)), Policy(), qps=0, queries=5)
