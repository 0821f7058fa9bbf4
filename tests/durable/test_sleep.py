"""sleep: the deadline is a row, the wait a suspension."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from perdure import Cancelled, sleep, sleep_until, step
from perdure.durable.suspend import Suspend
from tests.durable.fakes import Bench, crash_everywhere, graph_of


async def test_sleep_suspends_once_and_keeps_its_deadline():
    bench = Bench()

    async def node() -> str:
        await sleep(timedelta(hours=3))
        return "awake"

    deadlines, began = [], time.time()
    for _ in range(3):
        with pytest.raises(Suspend):
            await bench.run(node)
        deadlines.append(bench.journal.waits[0])
    assert len(set(deadlines)) == 1
    assert began <= deadlines[0] - 3 * 3600 <= time.time()
    bench.journal.age(3 * 3600)
    assert await bench.run(node) == "awake"
    assert len(bench.journal.named("sleep")) == 1


async def test_short_sleep_stays_in_memory_and_runs_its_time():
    async def node() -> None:
        await sleep(0.05)
        await sleep(0)

    started = time.monotonic()
    bench = Bench()
    await bench.run(node)
    assert time.monotonic() - started > 0.04
    assert bench.journal.waits == []


async def test_sleeps_one_after_the_other_survive_a_crash_at_each_point():
    ran: list[str] = []

    @step
    async def mark(name: str) -> None:
        ran.append(name)

    async def node() -> str:
        await mark("a")
        await sleep(60)
        await mark("b")
        await sleep(60)
        return "end"

    async def scenario(bench: Bench) -> None:
        ran.clear()
        assert await bench.until_done(node) == "end"
        assert set(ran) == {"a", "b"}

    assert await crash_everywhere(scenario) == 4


async def test_sleep_until_waits_for_a_point_in_time():
    bench = Bench()
    when = datetime.now(UTC) + timedelta(days=1)

    async def node() -> str:
        await sleep_until(when)
        await sleep_until(datetime(2020, 1, 1, tzinfo=UTC))
        return "awake"

    with pytest.raises(Suspend):
        await bench.run(node)
    assert bench.journal.waits == [when.timestamp()]
    assert await bench.until_done(node) == "awake"


async def test_sleep_that_has_not_ended_raises_cancelled():
    bench = Bench()

    async def node() -> str:
        await sleep(1000)
        return "awake"

    with pytest.raises(Suspend):
        await bench.run(node)
    bench.journal.cancelling = True
    with pytest.raises(Cancelled):
        await bench.run(node)
    bench.journal.age(1000)
    assert await bench.run(node) == "awake"


async def test_without_a_journal_sleep_is_asyncio_sleep():
    async def node() -> str:
        await sleep(0.01)
        await sleep_until(datetime.now(UTC) + timedelta(seconds=0.01))
        return "awake"

    assert await graph_of(node).ainvoke({}) == {"out": "awake"}
    await node()


@pytest.mark.parametrize("duration", [-1, float("nan"), float("inf"), timedelta(seconds=-1)])
async def test_impossible_durations_are_refused(duration: float):
    with pytest.raises(ValueError, match="0 seconds or more"):
        await sleep(duration)


async def test_time_without_zone_is_refused():
    with pytest.raises(ValueError, match="zone"):
        await sleep_until(datetime(2030, 1, 1))
