from typing import Any

import httpx
import psycopg
import pytest

from graphs import crm
from perdure import TerminalError
from tests.conftest import ROOT, Launch

TICKET = {"user_id": "user_12345", "title": "Login fails"}


def test_same_request_opens_one_ticket_whoever_asks_again(server: Launch, dsn: str) -> None:
    process = server(config=ROOT / "langgraph.crm.json")
    key = {"Idempotency-Key": "from support"}
    with httpx.Client(base_url=process.url, timeout=30) as http:
        answers = [http.post("/agents/crm/run", json=TICKET, headers=key).json() for _ in range(2)]
        process.kill()
    assert answers == [{"ticket": "T-1001"}] * 2
    process = server(config=ROOT / "langgraph.crm.json")
    with httpx.Client(base_url=process.url, timeout=30) as http:
        assert http.post("/agents/crm/run", json=TICKET, headers=key).json() == {"ticket": "T-1001"}
        assert http.post("/agents/crm/run", json=TICKET).json() == {"ticket": "T-1002"}
    with psycopg.connect(dsn) as conn:
        assert (
            conn.execute("SELECT user_id, title, description FROM crm.tickets").fetchall()
            == [("user_12345", "Login fails", "")] * 2
        )


@pytest.mark.parametrize(
    "wrong", [{"title": ""}, {"title": " "}, {"title": "x" * 201}, {"user_id": 5}, {"description": None}]
)
async def test_ticket_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TerminalError, match=f"{next(iter(wrong))} must be a text of up to"):
        await crm.graph.ainvoke({**TICKET, **wrong})
