"""agent: a child run is started once, waited for in suspension, and its output recorded."""

import gc
import warnings
from typing import Any

import pytest

from perdure import Cancelled, TerminalError, agent, step
from perdure.durable.suspend import Suspend
from tests.durable.fakes import Bench, crash_everywhere, graph_of


async def ask() -> Any:
    return await agent("helper", {"q": 1}, key="k")


async def test_child_is_started_once_and_its_output_comes_back():
    bench = Bench()
    for _ in range(3):
        with pytest.raises(Suspend):
            await bench.run(ask)
        assert bench.journal.waits == ["run-0"]
    bench.journal.end(0, {"answer": 42})
    assert await bench.run(ask) == {"answer": 42}
    bench.journal.outcomes.clear()
    assert [child["agent"] for child in bench.journal.children.values()] == ["helper"]
    assert next(iter(bench.journal.children.values())) | {"run_id": ""} == {
        "agent": "helper",
        "input": {"q": 1},
        "key": "k",
        "delay": 0.0,
        "bound": True,
        "run_id": "",
    }


async def test_crash_at_each_point_starts_one_child_and_keeps_its_outcome():
    @step
    async def after(value: Any) -> Any:
        return value

    async def node() -> Any:
        return await after(await ask())

    async def scenario(bench: Bench) -> None:
        assert await bench.until_done(node, lambda: bench.journal.end(0, "out")) == "out"
        assert len(bench.journal.children) == 1

    assert await crash_everywhere(scenario) == 4  # start, its row, the outcome, the step


async def test_outcome_is_recorded():
    bench = Bench()

    async def node() -> Any:
        value = await ask()
        if first:
            first.clear()
            raise RuntimeError("crash after the outcome")
        return value

    first = [True]
    with pytest.raises(Suspend):
        await bench.run(node)
    bench.journal.end(0, "one")
    with pytest.raises(RuntimeError):
        await bench.run(node)
    bench.journal.end(0, "two")
    assert await bench.run(node) == "one"


async def test_failed_child_is_a_terminal_error_with_its_class_text_and_status():
    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(ask)
    bench.journal.end(0, status="failed", error="CardDeclined", message="no money", status_code=None)
    run_id = bench.journal.children[next(iter(bench.journal.children))]["run_id"]
    bench.journal.outcomes[run_id]["error"] = {"error": "CardDeclined", "message": "no money", "status": 402}
    for _ in range(2):  # and on replay
        with pytest.raises(TerminalError, match="Agent 'helper' failed with CardDeclined: no money") as caught:
            await bench.run(ask)
        assert caught.value.status == 402
        assert caught.value.retryable is False


@pytest.mark.parametrize(("status", "word"), [("cancelled", "cancelled"), ("gone", "deleted")])
async def test_cancelled_or_deleted_child_is_a_terminal_error(status: str, word: str):
    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(ask)
    bench.journal.end(0, status=status)
    with pytest.raises(TerminalError, match=word):
        await bench.run(ask)


async def test_send_returns_the_run_id_at_once_and_starts_once():
    bench = Bench()

    async def node() -> str:
        return await agent.send("mail", {"to": "x"}, delay=5)

    assert await bench.run(node) == "run-0"
    child = next(iter(bench.journal.children.values()))
    assert (child["delay"], child["bound"]) == (5.0, False)

    async def scenario(bench: Bench) -> None:
        assert await bench.until_done(node) == "run-0"
        assert len(bench.journal.children) == 1

    assert await crash_everywhere(scenario) == 2


async def test_equal_calls_are_two_children():
    bench = Bench()

    async def node() -> list[str]:
        return [await agent.send("mail", {}), await agent.send("mail", {})]

    assert await bench.run(node) == ["run-0", "run-1"]


async def test_cancelling_attempt_starts_no_child_and_waits_for_none():
    bench = Bench()
    bench.journal.cancelling = True
    with pytest.raises(Cancelled):
        await bench.run(ask)
    assert not bench.journal.children
    bench = Bench()
    with pytest.raises(Suspend):
        await bench.run(ask)
    bench.journal.cancelling = True
    with pytest.raises(Cancelled):
        await bench.run(ask)


async def test_without_a_server_a_name_is_a_clear_error_and_a_graph_is_called():
    async def inner() -> str:
        return "in process"

    graph = graph_of(inner)

    async def node() -> Any:
        return (await agent(graph, {}))["out"]

    assert await graph_of(node).ainvoke({}) == {"out": "in process"}
    assert await Bench().run(node) == "in process"
    with pytest.raises(RuntimeError, match="needs a perdure server"):
        await graph_of(ask).ainvoke({})
    with pytest.raises(RuntimeError, match="needs a perdure server"):
        await agent.send("x", {})


async def test_misuse_is_named():
    with pytest.raises(TypeError, match="name of an assistant"):
        agent(3, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name of an assistant"):
        await agent.send(graph_of(ask), {})
    with pytest.raises(ValueError, match="delay"):
        await agent.send("x", {}, delay=-1)

    async def node() -> None:
        await agent("x", {"client": object()})

    with pytest.raises(TypeError, match="input of agent 'x'"):
        await Bench().run(node)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        agent("forgotten", {})
        gc.collect()
    assert "agent('forgotten') was never awaited" in str(seen[0].message)
