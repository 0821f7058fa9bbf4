"""gather and race: all are started, the run waits once, and a replay sees the same."""

import asyncio
from typing import Any

import pytest
from langgraph.types import RetryPolicy

from perdure import Cancelled, RetryableError, TerminalError, agent, gather, race, step
from perdure.durable.suspend import Suspend
from tests.durable.fakes import Bench, Killed, crash_everywhere, graph_of

ran: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_ran():
    ran.clear()


@step
async def work(n: int, seconds: float = 0) -> int:
    await asyncio.sleep(seconds)
    ran.append(n)
    return n


@step
async def fail(text: str) -> int:
    ran.append(text)
    raise TerminalError(text)


async def three() -> Any:
    return await gather(*[agent("child", {"n": n}) for n in range(3)])


async def race_three() -> Any:
    return await race(*[agent("child", {"n": n}) for n in range(3)])


async def test_gather_starts_all_children_and_suspends_once():
    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(three)
    assert bench.journal.waits == ["run-0", "run-1", "run-2"]
    bench.journal.end(1, "b")
    with pytest.raises(Suspend):
        await bench.run(three)
    assert bench.journal.waits == ["run-0", "run-2"]
    bench.journal.end(0, "a")
    bench.journal.end(2, "c")
    assert await bench.run(three) == ["a", "b", "c"]
    assert [child["input"]["n"] for child in bench.journal.children.values()] == [0, 1, 2]


async def test_gather_of_agents_survives_a_crash_at_each_point():
    async def scenario(bench: Bench) -> None:
        def end_one() -> None:
            running = [n for n in range(3) if f"run-{n}" not in bench.journal.outcomes]
            bench.journal.end(running[0], running[0])

        assert await bench.until_done(three, end_one) == [0, 1, 2]
        assert len(bench.journal.children) == 3

    assert await crash_everywhere(scenario) == 9


async def test_gather_waits_for_all_children_before_it_raises_the_first_error():
    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(three)
    bench.journal.end(2, status="failed", error="E", message="third")
    with pytest.raises(Suspend):
        await bench.run(three)
    bench.journal.end(0, "a")
    bench.journal.end(1, status="failed", error="E", message="second")
    with pytest.raises(TerminalError, match="second"):
        await bench.run(three)


async def test_gather_runs_steps_concurrently_and_repeats_none():
    async def node() -> Any:
        values = await gather(work(1, 0.05), work(2, 0.01), work(1))
        if len(ran) == 3:
            ran.append("crash")
            raise RuntimeError
        return values

    bench = Bench()
    with pytest.raises(RuntimeError):
        await bench.run(node)
    assert sorted(ran[:3]) == [1, 1, 2]
    assert await bench.run(node) == [1, 2, 1]
    assert len(ran) == 4


async def test_gather_lets_all_steps_end_before_it_raises():
    async def node() -> Any:
        return await gather(fail("x"), work(1, 0.05), fail("y"))

    with pytest.raises(TerminalError, match="x"):
        await Bench().run(node)
    assert sorted(map(str, ran)) == ["1", "x", "y"]


async def test_step_that_waits_lets_the_others_finish_and_suspends():
    @step(retry=RetryPolicy(initial_interval=60, jitter=False))
    async def flaky() -> str:
        ran.append("flaky")
        if ran.count("flaky") < 2:
            raise ValueError
        return "ok"

    async def node() -> Any:
        return await gather(flaky(), work(1, 0.02))

    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(node)
    assert ran == ["flaky", 1]
    assert await bench.until_done(node) == ["ok", 1]
    assert ran == ["flaky", 1, "flaky"]


async def test_error_that_will_be_tried_again_leaves_before_one_for_good():
    @step(retry=RetryPolicy(max_attempts=1))
    async def down() -> None:
        raise RetryableError("down")

    async def node() -> Any:
        return await gather(fail("x"), down())

    with pytest.raises(RetryableError):
        await Bench().run(node)


async def test_cancelling_attempt_leaves_gather_and_race_with_cancelled():
    async def steps() -> Any:
        return await gather(work(1), work(2))

    for node in (three, race_three, steps):
        bench = Bench()
        bench.journal.cancelling = True
        with pytest.raises(Cancelled):
            await bench.run(node)
    assert ran == []


async def test_race_of_agents_keeps_its_winner_and_cancels_the_losers_once():
    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(race_three)
    assert bench.journal.waits == ["run-0", "run-1", "run-2"]
    bench.journal.end(1, "second")

    async def node() -> Any:
        value = await race_three()
        if len(ran) < 20:
            ran.append(value)
            bench.journal.end(0, "first")  # too late
            raise RuntimeError
        return value

    for _ in range(20):
        with pytest.raises(RuntimeError):
            await bench.run(node)
    assert await bench.run(node) == "second"
    assert set(ran) == {"second"}
    assert bench.journal.cancelled == ["run-0", "run-2"]


async def test_race_of_agents_survives_a_crash_at_each_point():
    @step
    async def after(value: Any) -> Any:
        ran.append(value)
        return value

    async def node() -> Any:
        return await after(await race_three())

    async def scenario(bench: Bench) -> None:
        ran.clear()
        assert await bench.until_done(node, lambda: bench.journal.end(2, "c")) == "c"
        assert set(bench.journal.cancelled) == {"run-0", "run-1"}
        assert set(ran) == {"c"}

    assert await crash_everywhere(scenario) == 13


async def test_child_that_fails_is_out_of_the_race():
    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(race_three)
    bench.journal.end(0, status="failed", error="E", message="first")
    with pytest.raises(Suspend):
        await bench.run(race_three)
    assert bench.journal.waits == ["run-1", "run-2"]
    bench.journal.end(1, status="cancelled")
    bench.journal.end(2, status="failed", error="E", message="third")
    with pytest.raises(TerminalError, match="first"):
        await bench.run(race_three)


async def test_race_of_steps_replays_the_same_winner_and_leaves_later_calls_in_place():
    async def node() -> Any:
        winner = await race(work(1, 60), work(2, 0.02), work(1, 60), fail("x"))
        later = await work(1)
        if ran.count("crash") < 20:
            ran.append("crash")
            raise RuntimeError
        return winner, later

    bench = Bench()
    for _ in range(20):
        with pytest.raises(RuntimeError):
            await bench.run(node)
    assert await bench.run(node) == (2, 1)
    assert [value for value in ran if value != "crash"] == ["x", 2, 1]


async def test_race_of_equal_steps_finds_the_winner_again():
    """Calls with the same arguments are told apart by their order, so the losers must be counted."""

    @step
    async def same() -> int:
        n = len(ran)
        ran.append(n)
        await asyncio.sleep(0.02 if n == 1 else 60)
        return n

    async def node() -> Any:
        winner = await race(same(), same(), same())
        if "crash" not in ran:
            ran.append("crash")
            raise RuntimeError
        return winner

    bench = Bench()
    with pytest.raises(RuntimeError):
        await bench.run(node)
    assert await bench.run(node) == 1
    assert ran == [0, 1, 2, "crash"]


async def test_race_of_steps_survives_a_crash_at_each_point():
    async def node() -> Any:
        return await race(work(1, 0.03), work(2, 0.01))

    async def scenario(bench: Bench) -> None:
        assert await bench.until_done(node) in (1, 2)

    assert await crash_everywhere(scenario) >= 2


async def test_lost_lease_in_one_step_stops_the_others():
    @step
    async def lost() -> None:
        raise Killed

    async def node() -> Any:
        return await gather(work(1, 120), lost())

    async with asyncio.timeout(60):
        with pytest.raises(Killed):
            await Bench().run(node)
    assert ran == []


async def test_cancelling_the_task_cancels_the_steps_in_it():
    async def node() -> Any:
        return await gather(work(1, 30), work(2, 30))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await Bench().run(node)
    assert ran == []


async def test_without_a_journal_both_work_in_process():
    async def inner() -> str:
        return "graph"

    graph = graph_of(inner)

    async def node() -> Any:
        graphs = await gather(agent(graph, {}), agent(graph, {}))
        return [*graphs, await gather(work(1), work(2)), await race(work(3, 60), work(4)), await race(agent(graph, {}))]

    out = (await graph_of(node).ainvoke({}))["out"]
    assert out == [{"out": "graph"}, {"out": "graph"}, [1, 2], 4, {"out": "graph"}]
    for word in (gather, race):

        async def by_name(word: Any = word) -> Any:
            return await word(agent("x", {}), agent("y", {}))

        with pytest.raises(RuntimeError, match=r"agent\('x'\): no such graph"):  # see test_outside.py
            await graph_of(by_name).ainvoke({})


async def test_misuse_is_named_and_leaves_no_unawaited_call():
    async def plain() -> int:
        return 1

    for word in (gather, race):
        with pytest.raises(TypeError, match="either agents or steps"):
            await word(agent("x", {}), work(1))
        with pytest.raises(TypeError, match="is neither"):
            await word(work(1), plain())
        with pytest.raises(TypeError, match="is neither"):
            await word(3)  # type: ignore[arg-type]
    assert await gather() == []
    with pytest.raises(ValueError, match="at least one"):
        await race()

    async def graphs() -> Any:
        return await race(agent(graph_of(plain), {}))

    with pytest.raises(TypeError, match="by name"):
        await Bench().run(graphs)
