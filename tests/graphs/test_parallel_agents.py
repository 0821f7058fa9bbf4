from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langgraph.checkpoint.memory import InMemorySaver

from graphs.parallel_agents import graph
from perdure import TerminalError
from perdure.durable.suspend import Suspend
from perdure.simulator import RunningSimulator
from tests.conftest import Launch, Process, eventually
from tests.durable.fakes import FakeJournal, Killed
from tests.graphs.claimants import CLAIM, SPECIALISTS, calls, only

DECIDING = "You decide insurance claims by the findings of specialists"
CHILDREN = ("eligibility", "rate_comparison", "fraud")
PASSED = {"passed": True, "answer": "Fine."}


# -- in this process, with children that the test ends


async def test_three_children_are_started_at_once_and_joined(simulator: RunningSimulator) -> None:
    journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
    given: Any = CLAIM
    for ended in (2, 0, 1):
        with pytest.raises(Suspend):
            await agent.ainvoke(given, journal.restart().config())
        assert [child["agent"] for child in journal.children.values()] == [*CHILDREN]
        assert all(child["input"] == CLAIM for child in journal.children.values())
        assert f"run-{ended}" in journal.waits
        journal.end(ended, PASSED)
        given = None
    result = await agent.ainvoke(None, journal.restart().config())
    assert result == {"answer": "Approved: hospital bill for a broken leg, 3000 USD. Fine. Fine. Fine."}
    assert calls(simulator) == {DECIDING: 1}


async def test_crash_before_any_write_starts_each_child_once_and_decides_once(simulator: RunningSimulator) -> None:
    for point in range(100):
        journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
        simulator.simulator.log.clear()
        journal.die_in = point
        given, result = CLAIM, None
        while result is None:
            try:
                result = await agent.ainvoke(given, journal.restart().config())
            except Suspend:
                for n in range(3):
                    journal.end(n, PASSED)
            except Killed:
                pass
            given = None
        assert result["answer"].startswith("Approved:")
        assert len(journal.children) == 3
        if journal.die_in is not None:
            break  # it was not killed any more
        assert calls(simulator)[DECIDING] in (1, 2)
    assert point == 10  # three starts and three outcomes, with a row for each start, and the decision
    assert calls(simulator) == {DECIDING: 1}


async def test_child_that_fails_fails_the_run_after_the_others_have_ended(simulator: RunningSimulator) -> None:
    journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
    with pytest.raises(Suspend):
        await agent.ainvoke(CLAIM, journal.config())
    journal.end(0, status="failed", error="TerminalError", message="The books are closed")
    with pytest.raises(Suspend):
        await agent.ainvoke(None, journal.restart().config())
    journal.end(1, PASSED)
    journal.end(2, PASSED)
    with pytest.raises(TerminalError, match="Agent 'eligibility' failed with TerminalError: The books are closed"):
        await agent.ainvoke(None, journal.restart().config())
    assert simulator.requests == []


# -- on a real server


@pytest.fixture
def model(simulator: RunningSimulator) -> dict[str, str]:
    """The simulator of this test as the model of a server, which outlives any worker."""
    return {
        "OPENAI_API_KEY": "simulated",
        "OPENAI_BASE_URL": simulator.openai_url,
        "PERDURE_MODEL": "openai:simulated-1",
    }


@pytest.fixture
def api(server: Launch, model: dict[str, str]) -> Iterator[httpx.Client]:
    """An API that executes nothing."""
    process: Process = server(slots=0, env=model)
    with httpx.Client(base_url=process.url, timeout=60) as client:
        yield client


def children(api: httpx.Client) -> dict[str, str]:
    """The status of each child run."""
    return {name: run["status"] for name in CHILDREN for run in api.post("/runs/search", json={"agent": name}).json()}


def test_kill_9_of_the_worker_while_the_children_run(
    api: httpx.Client, worker: Launch, model: dict[str, str], simulator: RunningSimulator
) -> None:
    simulator.fail({"hang": 60, "match": only("fraud")})
    first: Process = worker(env=model)
    sent = api.post("/agents/parallel_agents/send", json=CLAIM).json()
    run = f"/threads/{sent['thread_id']}/runs/{sent['run_id']}"
    running = {"eligibility": "success", "rate_comparison": "success", "fraud": "running"}
    eventually(lambda: children(api) == running and calls(simulator)["fraud"] == 1)
    eventually(lambda: api.get(run).json().get("suspended") is True)  # it holds no slot and no memory
    first.kill()
    worker(env=model)
    answer = api.get(f"{run}/join").json()["answer"]
    assert answer.startswith("Approved: hospital bill for a broken leg, 3000 USD. The policy was valid")
    assert children(api) == dict.fromkeys(CHILDREN, "success")
    assert calls(simulator) == {**SPECIALISTS, "fraud": 2, DECIDING: 1}
    assert calls(simulator, "answered") == {**SPECIALISTS, DECIDING: 1}  # the kill cut the other one off
