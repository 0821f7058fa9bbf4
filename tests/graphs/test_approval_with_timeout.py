import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.types import Command

from graphs.approval_with_timeout import TIMED_OUT, graph, timed_out
from graphs.claims import Claim
from perdure.simulator import RunningSimulator
from tests.conftest import Launch, eventually
from tests.graphs.office import LARGE, Books

CONFIG: Any = {"configurable": {"thread_id": "1"}}


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Books:
    books = Books(tmp_path / "ledger.jsonl")
    monkeypatch.setenv("PAYMENTS_LEDGER", str(books.ledger))
    return books


async def question(agent: Any) -> Any:
    [interrupt] = (await agent.aget_state(CONFIG)).interrupts
    return interrupt.value


async def times_out(agent: Any) -> Any:
    """What the server does at the deadline."""
    return await agent.ainvoke(Command(resume={"__timeout__": (await question(agent))["deadline"]}), CONFIG)


@pytest.mark.parametrize(
    ("given", "within"), [({}, timedelta(hours=3)), ({"within_seconds": 90}, timedelta(seconds=90))]
)
async def test_deadline_is_in_three_hours_or_when_the_request_says(
    simulator: RunningSimulator, served: Any, books: Books, given: Any, within: timedelta
) -> None:
    agent, asked_at = served(graph), datetime.now(UTC)
    await agent.ainvoke(LARGE | given, CONFIG)
    deadline = datetime.fromisoformat((await question(agent))["deadline"])
    assert asked_at + within < deadline < datetime.now(UTC) + within
    assert books.asked == 0


async def test_approved_in_time_is_paid_once(simulator: RunningSimulator, served: Any, books: Books) -> None:
    agent = served(graph)
    await agent.ainvoke(LARGE, CONFIG)
    result = await agent.ainvoke(Command(resume=True), CONFIG)
    assert "Approved by a person and paid: receipt-" in result["answer"]
    assert books.paid == [3000]
    assert len(simulator.requests) == 2


async def test_rejected_in_time_is_not_paid(simulator: RunningSimulator, served: Any, books: Books) -> None:
    agent = served(graph)
    await agent.ainvoke(LARGE, CONFIG)
    result = await agent.ainvoke(Command(resume={"approved": False, "reason": "no receipt"}), CONFIG)
    assert "Rejected by a person: no receipt" in result["answer"]
    assert books.asked == 0


async def test_after_the_deadline_the_agent_decides_by_itself(
    simulator: RunningSimulator, served: Any, books: Books
) -> None:
    agent = served(graph)
    await agent.ainvoke(LARGE, CONFIG)
    assert "Paid: receipt-" in (await times_out(agent))["answer"]
    tools = [message for message in (await agent.aget_state(CONFIG)).values["messages"] if message.type == "tool"]
    assert [message.name for message in tools] == ["human_approval", "pay_claim"]
    assert tools[0].text == TIMED_OUT
    assert books.paid == [3000]
    assert len(simulator.requests) == 3


async def test_crash_after_the_agent_has_decided_does_not_pay_again(
    simulator: RunningSimulator, served: Any, books: Books
) -> None:
    agent = served(graph)
    await agent.ainvoke(LARGE, CONFIG)
    simulator.fail({"status": 500, "times": 3, "match": "receipt-"})
    with pytest.raises(Exception, match="500"):
        await times_out(agent)
    assert "Paid: receipt-" in (await agent.ainvoke(None, CONFIG))["answer"]
    assert books.asked == 1


async def test_next_request_of_a_session_has_three_hours_again(
    simulator: RunningSimulator, served: Any, books: Books
) -> None:
    agent = served(graph)
    await agent.ainvoke(LARGE | {"within_seconds": 90}, CONFIG)
    await times_out(agent)
    await agent.ainvoke(LARGE, CONFIG)
    deadline = datetime.fromisoformat((await question(agent))["deadline"])
    assert deadline > datetime.now(UTC) + timedelta(hours=2)


def test_only_the_claim_that_timed_out_in_this_request_may_be_paid_without_a_person() -> None:
    claim: Claim = {"amount": 3000, "reason": "broken leg"}
    call: Any = {"name": "human_approval", "args": {"claim": claim}, "id": "1"}
    asked = [HumanMessage("…"), AIMessage("", tool_calls=[call])]
    answered = [*asked, ToolMessage(TIMED_OUT, tool_call_id="1")]
    assert timed_out(claim, answered)
    assert not timed_out(claim, asked)
    assert not timed_out(claim, [*asked, ToolMessage("Rejected by a person: no", tool_call_id="1")])
    assert not timed_out({**claim, "amount": 4000}, answered)
    assert not timed_out(claim, [*answered, HumanMessage("and again")])


def test_restart_keeps_the_remaining_time(serve: Launch, books: Books, dsn: str) -> None:
    within = 3600.0
    first = serve("approval_with_timeout", env={"PAYMENTS_LEDGER": str(books.ledger)})
    asked = httpx.post(
        f"{first.url}/agents/approval_with_timeout/run", json=LARGE | {"within_seconds": within}, timeout=30
    )
    assert asked.status_code == 202
    [open_question] = asked.json()["interrupts"]
    first.kill()
    second = serve("approval_with_timeout", env={"PAYMENTS_LEDGER": str(books.ledger)})
    restarted_at = time.time()
    with httpx.Client(base_url=second.url, timeout=30) as http, psycopg.connect(dsn, autocommit=True) as conn:
        path = f"/interrupts/{open_question['token']}"
        assert http.get(path).json()["deadline"] == open_question["deadline"]
        assert http.get(path).json()["status"] == "open"
        conn.execute("UPDATE interrupts SET deadline = deadline - interval '1 hour'")  # an hour passes
        closed: Any = eventually(lambda: found if (found := http.get(path).json())["status"] != "open" else None)
        assert closed["status"] == "timed_out"
        closed_at = datetime.fromisoformat(closed["answered_at"])
        assert datetime.fromisoformat(open_question["deadline"]) - timedelta(hours=1) <= closed_at
        assert closed_at.timestamp() < restarted_at + within, "the deadline began anew"
        assert http.post(f"{path}/resolve", json=True).status_code == 409
        thread = f"/threads/{open_question['thread_id']}"
        eventually(lambda: http.get(thread).json()["status"] == "idle")
        assert "Paid: receipt-" in http.get(f"{thread}/state").json()["values"]["answer"]
    assert books.paid == [3000]
