"""limit: places are counted over the fleet, given back on every way out, and waited for in suspension."""

import asyncio
from typing import Any

import pytest

from perdure import Cancelled, gather, limit, sleep, step
from perdure.durable.suspend import Suspend
from tests.durable.fakes import Bench, graph_of

peak: list[int] = []
now: list[int] = []


async def busy() -> str:
    now.append(1)
    peak.append(len(now))
    await asyncio.sleep(0.01)
    now.pop()
    return "ok"


@step
async def limited(n: int) -> str:
    async with limit("model", 2):
        return await busy()


@pytest.fixture(autouse=True)
def idle():
    peak.clear()
    now.clear()


async def one() -> str:
    async with limit("model", 2):
        return await busy()


async def test_full_limit_suspends_until_a_place_is_free():
    bench = Bench()
    bench.journal.elsewhere["model"] = 2
    with pytest.raises(Suspend):
        await bench.run(one)
    assert len(bench.journal.waits) == 1
    bench.journal.elsewhere["model"] = 1
    assert await bench.run(one) == "ok"
    assert bench.journal.places["model"] == 0


async def test_place_is_given_back_by_an_error_and_by_a_wait():
    async def fails() -> None:
        async with limit("model", 1):
            raise ValueError

    async def waits() -> None:
        async with limit("model", 1):
            await sleep(60)

    for node, error in ((fails, ValueError), (waits, Suspend)):
        bench = Bench()
        with pytest.raises(error):
            await bench.run(node)
        assert bench.journal.places["model"] == 0


async def test_neighbours_in_one_attempt_wait_in_memory():
    async def node() -> Any:
        return await gather(*[limited(n) for n in range(6)])

    bench = Bench()
    assert await bench.run(node) == ["ok"] * 6
    assert max(peak) == 2
    assert bench.journal.waits == []


async def test_cancelling_attempt_does_not_wait_for_a_place():
    bench = Bench()
    bench.journal.cancelling = True
    bench.journal.elsewhere["model"] = 2
    with pytest.raises(Cancelled):
        await bench.run(one)


async def test_without_a_journal_the_limit_holds_in_the_process():
    async def node() -> Any:
        return await gather(*[limited(n) for n in range(6)])

    assert (await graph_of(node).ainvoke({}))["out"] == ["ok"] * 6
    await asyncio.gather(*[one() for _ in range(6)])
    assert max(peak) == 2


async def test_misuse_is_named():
    with pytest.raises(ValueError, match="1 or more"):
        limit("x", 0)

    async def nested() -> None:
        async with limit("x", 1), limit("y", 1), limit("x", 1):
            pass

    with pytest.raises(RuntimeError, match="for ever"):
        await Bench().run(nested)
    with pytest.raises(RuntimeError, match="for ever"):
        await nested()
