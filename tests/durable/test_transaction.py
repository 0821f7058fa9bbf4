"""step.transaction: the effect and the journal row commit together."""

import asyncio
from typing import Any

import pytest
from langgraph.types import RetryPolicy

from perdure import TerminalError, step
from tests.durable.fakes import Bench, Killed, crash_everywhere, graph_of

QUICK = RetryPolicy(initial_interval=0, jitter=False)


@step(retry=QUICK)
async def pay(amount: int) -> int:
    async with step.transaction() as conn:
        conn.append(amount)
    return amount


async def node() -> int:
    return await pay(3)


class Refused(Exception):
    sqlstate = "23505"


async def test_effect_and_row_are_there_together():
    bench = Bench()
    assert await bench.run(node) == 3
    assert bench.journal.database == [3]
    row = bench.journal.named("pay")[0]
    assert (row["status"], len(row["attempts"])) == ("done", 1)
    assert len(bench.journal.saves) == 1  # no second write


async def test_crash_at_each_point_pays_once():
    async def twice() -> list[int]:
        return [await pay(3), await pay(4)]

    async def scenario(bench: Bench) -> None:
        assert await bench.until_done(twice) == [3, 4]
        assert bench.journal.database == [3, 4]

    assert await crash_everywhere(scenario) == 2


async def test_error_in_or_after_the_block_rolls_back_and_is_retried():
    failures: list[str] = []

    @step(retry=QUICK)
    async def book() -> str:
        async with step.transaction() as conn:
            conn.append("effect")
            if len(failures) == 0:
                failures.append("in")
                raise ValueError("in the block")
        if len(failures) == 1:
            failures.append("after")
            raise ValueError("after the block")
        return "ok"

    bench = Bench()
    assert await bench.run(book) == "ok"
    assert bench.journal.database == ["effect"]
    assert len(bench.journal.named("book")[0]["attempts"]) == 3


async def test_error_of_the_block_may_be_caught():
    @step
    async def book() -> str:
        try:
            async with step.transaction() as conn:
                conn.append("effect")
                raise Refused
        except Refused:
            return "duplicate"

    bench = Bench()
    assert await bench.run(book) == "duplicate"
    assert bench.journal.database == []


async def test_commit_that_the_database_refuses_is_a_failed_attempt():
    bench = Bench()
    bench.journal.commit_error = Refused("deferred constraint")
    assert await bench.run(node) == 3
    assert bench.journal.database == [3]
    assert len(bench.journal.named("pay")[0]["attempts"]) == 2


async def test_commit_without_an_answer_is_left_to_the_next_attempt_of_the_run():
    """It may have happened: executing the step again at once would do it twice."""
    bench = Bench()
    bench.journal.commit_error = ConnectionError("gone")
    with pytest.raises(Exception, match="was not confirmed") as caught:
        await bench.run(node)
    assert caught.value.retryable is True  # type: ignore[attr-defined]
    assert await bench.run(node) == 3
    assert bench.journal.database == [3]


async def test_value_that_cannot_be_stored_rolls_back():
    @step
    async def book() -> Any:
        async with step.transaction() as conn:
            conn.append("effect")
        return asyncio.get_running_loop()

    bench = Bench()
    with pytest.raises(TerminalError, match="can't be stored"):
        await bench.run(book)
    assert bench.journal.database == []
    assert bench.journal.named("book")[0]["status"] == "failed"


async def test_timeout_and_death_roll_back():
    @step(timeout=0.05, retry=RetryPolicy(max_attempts=1))
    async def slow() -> None:
        async with step.transaction() as conn:
            conn.append("effect")
        await asyncio.sleep(5)

    @step
    async def dies() -> None:
        async with step.transaction() as conn:
            conn.append("effect")
            raise Killed

    for function, error in ((slow, TimeoutError), (dies, Killed)):
        bench = Bench()
        with pytest.raises(error):
            await bench.run(function)
        assert bench.journal.database == []


async def test_misuse_is_named():
    @step(retry=RetryPolicy(max_attempts=1))
    async def two() -> None:
        async with step.transaction():
            pass
        async with step.transaction():
            pass

    with pytest.raises(RuntimeError, match="only one transaction"):
        await Bench().run(two)
    with pytest.raises(RuntimeError, match="inside of a @step"):
        step.transaction()

    async def once() -> Any:
        return await step(retry=RetryPolicy(max_attempts=1))(pay_now)()

    async def pay_now() -> None:
        async with step.transaction():
            pass

    with pytest.raises(RuntimeError, match="perdure server"):
        await graph_of(once).ainvoke({})
