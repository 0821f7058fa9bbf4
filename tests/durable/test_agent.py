"""agent: a child run is started once, waited for in suspension, and its output recorded."""

import gc
import warnings
from typing import Any

import pytest

from perdure import Cancelled, TerminalError, agent, gather, race, step
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
        "server": None,
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


async def test_a_graph_object_is_called_in_process_everywhere():
    async def inner() -> str:
        return "in process"

    graph = graph_of(inner)

    async def node() -> Any:
        return (await agent(graph, {}))["out"]

    assert await graph_of(node).ainvoke({}) == {"out": "in process"}
    assert await Bench().run(node) == "in process"


async def test_a_child_on_another_server_is_a_child_like_any_other():
    bench = Bench()

    async def node() -> Any:
        return await agent("crm", {"q": 1}, server="http://crm:2024/")

    with pytest.raises(Suspend):
        await bench.run(node)
    (child,) = bench.journal.children.values()
    assert (child["agent"], child["server"], child["bound"]) == ("crm", "http://crm:2024", True)
    bench.journal.end(0, {"answer": 42})
    assert await bench.run(node) == {"answer": 42}

    async def scenario(bench: Bench) -> None:
        assert await bench.until_done(node, lambda: bench.journal.end(0, "out")) == "out"
        assert len(bench.journal.children) == 1

    assert await crash_everywhere(scenario) == 3


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [
        ("failed", "Agent 'crm' on http://crm:2024 failed with CardDeclined: no money", 402),
        ("cancelled", "Agent 'crm' on http://crm:2024 was cancelled", 409),
        ("gone", "Agent 'crm' on http://crm:2024 was deleted", 409),
    ],
)
async def test_failure_of_a_remote_child_names_the_server(status: str, text: str, code: int):
    bench = Bench()

    async def node() -> Any:
        return await agent("crm", {}, server="http://crm:2024")

    with pytest.raises(Suspend):
        await bench.run(node)
    bench.journal.end(0, status=status, error="CardDeclined", message="no money")
    bench.journal.outcomes["run-0"]["error"] = {"error": "CardDeclined", "message": "no money", "status": 402}
    for _ in range(2):  # and on replay
        with pytest.raises(TerminalError, match=text) as caught:
            await bench.run(node)
        assert caught.value.status == code


async def test_a_started_child_is_kept_when_the_address_of_its_server_changes():
    bench, address = Bench(), ["http://old:2024"]

    async def node() -> Any:
        return await agent("crm", {}, server=address[0])

    with pytest.raises(Suspend):
        await bench.run(node)
    address[0] = "http://new:2024"
    bench.journal.end(0, "found")
    assert await bench.run(node) == "found"
    assert len(bench.journal.children) == 1


async def test_local_and_remote_children_are_gathered_and_race_together():
    bench = Bench()

    async def node() -> Any:
        return await gather(agent("a", {}), agent("b", {}, server="http://b"))

    with pytest.raises(Suspend):
        await bench.run(node)
    bench.journal.end(0, 1)
    bench.journal.end(1, 2)
    assert await bench.run(node) == [1, 2]
    bench = Bench()

    async def racers() -> Any:
        return await race(agent("a", {}), agent("b", {}, server="http://b"), agent("c", {}, server="http://c"))

    with pytest.raises(Suspend):
        await bench.run(racers)
    bench.journal.end(1, "b wins")
    assert await bench.run(racers) == "b wins"
    assert bench.journal.cancelled == ["run-0", "run-2"]
    bench.journal.outcomes.clear()
    assert await bench.run(racers) == "b wins"
    assert bench.journal.cancelled == ["run-0", "run-2"]


async def test_send_to_another_server_gives_the_id_of_the_call():
    bench = Bench()

    async def node() -> str:
        return await agent.send("mail", {}, delay=5, server="https://mail.example")

    assert await bench.run(node) == "run-0"
    (child,) = bench.journal.children.values()
    assert (child["server"], child["delay"], child["bound"]) == ("https://mail.example", 5.0, False)


async def test_misuse_is_named():
    with pytest.raises(TypeError, match="name of an assistant"):
        agent(3, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name of an assistant"):
        await agent.send(graph_of(ask), {})
    with pytest.raises(TypeError, match="name of an assistant there"):
        agent(graph_of(ask), {}, server="http://crm:2024")
    for wrong in ("crm:2024", "ftp://crm", "http://", "http://crm/?x=1", "http://c rm", "http://crm:x", ""):
        with pytest.raises(ValueError, match="a server like http"):
            agent("x", {}, server=wrong)
    with pytest.raises(ValueError, match="PERDURE_REMOTE_KEYS") as caught:
        agent("x", {}, server="http://me:geheim@crm")
    assert "geheim" not in str(caught.value)
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
