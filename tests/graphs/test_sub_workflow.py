from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from graphs.sub_workflow import graph, pay_small_claim
from perdure.simulator import RunningSimulator
from tests.conftest import Launch, eventually
from tests.graphs.office import LARGE, Books

CONFIG: Any = {"configurable": {"thread_id": "1"}}


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Books:
    books = Books(tmp_path / "ledger.jsonl")
    monkeypatch.setenv("PAYMENTS_LEDGER", str(books.ledger))
    return books


async def test_small_claim_is_decided_by_the_agent(simulator: RunningSimulator, served: Any, books: Books) -> None:
    result = await served(graph).ainvoke({"prompt": "Process my dental bill of 300USD."}, CONFIG)
    assert "Paid: receipt-" in result["answer"]
    assert books.paid == [300]


async def test_tool_holds_the_limit_whatever_the_model_says(books: Books) -> None:
    claim = {"amount": 3000, "reason": "broken leg"}
    assert "need request_review" in await pay_small_claim.ainvoke({"claim": claim})
    assert books.asked == 0


class Office:
    """A claimant and a person, as clients of one server."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def claim(self) -> str:
        """Send a large claim; the path of its run, once it waits for its question to be answered."""
        run = self.http.post("/agents/sub_workflow/send", json=LARGE).headers["content-location"]
        eventually(lambda: self.http.get(run).json().get("suspended"))
        return run

    def question(self, run: str) -> dict[str, Any]:
        """What the child of this run asks, once it does."""

        def asked() -> dict[str, Any] | None:
            found = self.http.get("/interrupts", params={"status": "open", "agent": "human_approval"}).json()
            return next((one for one in found if self.child(one)["metadata"]["parent_run_id"] in run), None)

        return eventually(asked)

    def child(self, question: dict[str, Any]) -> dict[str, Any]:
        return self.http.get(f"/threads/{question['thread_id']}/runs/{question['run_id']}").json()

    def answer(self, question: dict[str, Any], how: str, body: Any) -> int:
        return self.http.post(f"/interrupts/{question['token']}/{how}", json=body).status_code

    def result(self, run: str) -> str:
        return self.http.get(f"{run}/join").json()["answer"]


@contextmanager
def office(url: str) -> Iterator[Office]:
    with httpx.Client(base_url=url, timeout=30) as http:
        yield Office(http)


def test_worker_killed_while_the_child_waits_changes_nothing_and_the_claim_is_paid_once(
    serve: Launch, books: Books, simulator: RunningSimulator
) -> None:
    patterns, env = ("sub_workflow", "human_approval"), {"PAYMENTS_LEDGER": str(books.ledger)}
    first = serve(*patterns, env=env)
    with office(first.url) as before:
        run = before.claim()
        asked = before.question(run)
        waiting = before.http.get(run).json()
        assert (waiting["status"], waiting["suspended"]) == ("running", True)
        thread = before.http.get(run.rpartition("/runs/")[0]).json()
        assert (thread["status"], thread["interrupts"]) == ("busy", {})
        assert before.child(asked)["metadata"]["parent_thread_id"] == waiting["thread_id"]
    first.kill()
    second = serve(*patterns, env=env)
    with office(second.url) as after:
        assert after.question(run)["token"] == asked["token"]
        assert after.http.get(run).json()["suspended"]
        assert after.answer(asked, "resolve", True) == 202
        assert "Approved in the review and paid: receipt-" in after.result(run)
        assert after.answer(asked, "resolve", True) == 409
        runs = after.http.post("/runs/search", json={"agent": "sub_workflow"}).json()
        assert [found["status"] for found in runs] == ["success"]
    assert books.asked == 1
    assert books.paid == [3000]
    assert len(simulator.requests) == 2


def test_waiting_claims_hold_no_slot_and_each_hears_of_its_own_decision(serve: Launch, books: Books) -> None:
    server = serve("sub_workflow", "human_approval", slots=1, env={"PAYMENTS_LEDGER": str(books.ledger)})
    with office(server.url) as clients:
        approved, rejected, cancelled = (clients.claim() for _ in range(3))
        questions = {run: clients.question(run) for run in (approved, rejected, cancelled)}
        assert clients.answer(questions[rejected], "reject", {"reason": "no receipt"}) == 202
        assert clients.http.post(f"{cancelled}/cancel", params={"wait": True}).status_code < 300
        assert clients.answer(questions[approved], "resolve", True) == 202
        assert "Rejected in the review: no receipt" in clients.result(rejected)
        assert "Approved in the review and paid" in clients.result(approved)
        assert clients.http.get(cancelled).json()["status"] == "interrupted"
    assert books.paid == [3000]
