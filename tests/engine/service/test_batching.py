from __future__ import annotations

import asyncio

import pytest

from hashlight.engine.service.asking.batching import MicroBatcher


class Work:
    """Negates numbers; a batch waits for the gate of its first number, if `gates` has one."""

    def __init__(self, gates=None):
        self.batches = []
        self.gates = gates or {}

    async def __call__(self, items):
        self.batches.append(list(items))
        if items[0] in self.gates:
            await asyncio.wait_for(self.gates[items[0]].wait(), 60)
        if "refused" in items:
            raise ValueError("refused")
        return [-item for item in items][: 1 if "short" in self.gates else None]


async def until(true):
    """Wait until a condition holds."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.001)


def negated(numbers):
    return [-number for number in numbers]


def test_items_that_arrive_during_a_batch_form_the_next_batch():
    async def run():
        gate = asyncio.Event()
        work = Work({0: gate})
        batcher = MicroBatcher(work, batch_size=4)
        assert batcher.idle
        futures = [batcher.submit(number) for number in range(10)]
        await until(lambda: work.batches == [[0]])
        assert not batcher.idle
        gate.set()
        assert await asyncio.gather(*futures) == negated(range(10))
        assert work.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
        assert await batcher.submit(10) == -10
        await until(lambda: batcher.idle)

    asyncio.run(run())


def test_while_batches_are_slow_items_do_not_wait_for_each_other():
    async def run():
        gates = {number: asyncio.Event() for number in (0, 2, 3, 4, 5)}
        work = Work(gates)
        batcher = MicroBatcher(work, batch_size=8, patience_s=0.01)
        futures = [batcher.submit(number) for number in range(4)]
        # Number 0 does not finish in time: waiting and later numbers then run at once, each alone.
        await until(lambda: work.batches == [[0], [1], [2], [3]])
        futures += [batcher.submit(4), batcher.submit(5)]
        await until(lambda: work.batches[4:] == [[4], [5]])
        assert await futures[1] == -1
        assert not futures[0].done()
        for gate in gates.values():
            gate.set()
        assert await asyncio.gather(*futures) == negated(range(6))
        await until(lambda: batcher.idle)

    asyncio.run(run())


def test_batch_sizes_double_again_after_batches_in_time():
    async def run():
        slow, last = asyncio.Event(), asyncio.Event()
        work = Work({0: slow, 1: last})
        batcher = MicroBatcher(work, batch_size=8, patience_s=0.01)
        late = batcher.submit(0)
        await until(lambda: batcher._size == 0)
        batcher._patience_s = 60.0
        futures = [batcher.submit(1)]
        last.set()
        await until(futures[0].done)
        gate = work.gates[2] = asyncio.Event()
        futures += [batcher.submit(number) for number in range(2, 14)]
        gate.set()
        assert await asyncio.gather(*futures) == negated(range(1, 14))
        assert work.batches == [[0], [1], [2], [3, 4], [5, 6, 7, 8], [9, 10, 11, 12, 13]]
        slow.set()
        assert await late == 0

    asyncio.run(run())


def test_a_cancelled_request_is_left_out():
    async def run():
        gate = asyncio.Event()
        work = Work({0: gate})
        batcher = MicroBatcher(work, batch_size=4)
        futures = [batcher.submit(number) for number in range(4)]
        await until(lambda: work.batches)
        futures[0].cancel()
        futures[2].cancel()
        gate.set()
        assert await asyncio.gather(futures[1], futures[3]) == [-1, -3]
        assert work.batches == [[0], [1, 3]]

    asyncio.run(run())


def test_a_failing_batch_fails_only_its_own_items():
    async def run():
        work = Work()
        batcher = MicroBatcher(work, batch_size=2)
        futures = [batcher.submit(item) for item in (0, "refused", 1, 2, 3)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [str(result) for result in results] == ["0", "refused", "refused", "-2", "-3"]
        with pytest.raises(ValueError, match="refused"):
            await batcher.submit("refused")
        assert await batcher.submit(4) == -4

    asyncio.run(run())


def test_a_short_or_cancelled_batch_leaves_no_item_waiting():
    async def run():
        gate = asyncio.Event()
        batcher = MicroBatcher(Work({0: gate, "short": None}), batch_size=2)
        futures = [batcher.submit(number) for number in range(3)]
        gate.set()
        assert await futures[0] == 0
        for future in futures[1:]:
            with pytest.raises(ValueError, match="zip"):
                await future

        async def cancelled(items):
            raise asyncio.CancelledError

        batcher = MicroBatcher(cancelled, batch_size=2)
        with pytest.raises(asyncio.CancelledError):
            await batcher.submit(0)

    asyncio.run(run())
