from __future__ import annotations

import asyncio

import pytest

from engine.service.batching import MicroBatcher


class Work:
    """Negates numbers; batch number n waits for its gate if it has one."""

    def __init__(self, **gates):
        self.batches = []
        self.gates = {int(name.removeprefix("batch")): gate for name, gate in gates.items()}

    async def __call__(self, items):
        number = len(self.batches)
        self.batches.append(list(items))
        if number in self.gates:
            await asyncio.wait_for(self.gates[number].wait(), 60)
        await asyncio.sleep(0)
        if "refused" in items:
            raise ValueError("refused")
        return [-item for item in items]


def test_what_arrives_while_a_batch_is_at_work_goes_together():
    async def run():
        gate = asyncio.Event()
        work = Work(batch0=gate)
        batcher = MicroBatcher(work, batch_size=4)
        assert batcher.idle
        futures = [batcher.submit(number) for number in range(10)]
        await asyncio.sleep(0.01)
        assert work.batches == [[0]]
        assert not batcher.idle
        gate.set()
        assert await asyncio.gather(*futures) == [-number for number in range(10)]
        assert work.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
        assert await batcher.submit(10) == -10
        await asyncio.sleep(0)
        assert batcher.idle

    asyncio.run(run())


def test_nobody_waits_for_a_slow_batch_and_the_next_are_small_until_they_are_in_time():
    async def run():
        slow, quick = asyncio.Event(), asyncio.Event()
        work = Work(batch0=slow, batch1=quick)
        batcher = MicroBatcher(work, batch_size=8, patience_s=0.05)
        first = batcher.submit(0)
        while not batcher._late:  # the patience is lost
            await asyncio.sleep(0.01)
        second = batcher.submit(1)
        others = [batcher.submit(number) for number in range(2, 9)]
        quick.set()
        assert await asyncio.gather(second, *others) == [-number for number in range(1, 9)]
        assert not first.done()
        assert not batcher.idle
        assert work.batches == [[0], [1], [2, 3], [4, 5, 6, 7], [8]]
        slow.set()
        assert await first == 0

    asyncio.run(run())


def test_a_request_that_is_given_up_is_left_out():
    async def run():
        gate = asyncio.Event()
        work = Work(batch0=gate)
        batcher = MicroBatcher(work, batch_size=4)
        futures = [batcher.submit(number) for number in range(4)]
        await asyncio.sleep(0)
        futures[0].cancel()
        futures[2].cancel()
        gate.set()
        assert await asyncio.gather(futures[1], futures[3]) == [-1, -3]
        assert work.batches == [[0], [1, 3]]

    asyncio.run(run())


def test_a_batch_that_fails_fails_for_its_own_and_nobody_else():
    async def run():
        gate = asyncio.Event()
        work = Work(batch0=gate)
        batcher = MicroBatcher(work, batch_size=2)
        futures = [batcher.submit(item) for item in (0, "refused", 1, 2, 3)]
        gate.set()
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [str(result) for result in results] == ["0", "refused", "refused", "-2", "-3"]
        with pytest.raises(ValueError, match="refused"):
            await batcher.submit("refused")
        assert await batcher.submit(4) == -4

    asyncio.run(run())
