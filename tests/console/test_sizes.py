"""However much agents and clients have stored, a page of it stays one that a browser can show."""

from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb
from starlette.testclient import TestClient

from perdure.console import chat, jsonform
from perdure.console.bounds import KEY, bounded
from perdure.engine import state
from tests.console.test_gates import things
from tests.console.test_hostile import MOST_BYTES
from tests.console.test_hostile import open_client as open_client

LONG_KEYS = {f"{n}-" + "k" * 20_000: 1 for n in range(100)}
LEFT_OUT = "left out here: the API has the whole"


def page_of(client: TestClient, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200
    assert len(answer.content) < MOST_BYTES
    return answer.text


def test_long_keys_are_cut(open_client: TestClient) -> None:
    item = {"namespace": ["a"], "key": "k", "value": LONG_KEYS}
    assert open_client.put("/store/items", json=item).status_code == 204
    page = page_of(open_client, "/console/store?namespace=a&key=k")
    assert "99-" + "k" * (KEY - 3) + "… (20,003 characters)" in page


def test_keys_that_begin_alike_all_stay() -> None:
    cut = bounded({"k" * 1000 + str(n): n for n in range(3)})
    assert list(cut.values()) == [0, 1, 2]


def test_keys_take_room_from_what_follows() -> None:
    many: dict[str, Any] = {str(n): {"k" * (KEY - 4) + f"{m:04}": {} for m in range(150)} for n in range(15)}
    assert bounded([{}, "a text"])[1] == "a text"
    assert bounded([many, "a text"])[1] == f"… 6 characters {LEFT_OUT}"


def test_assistants_that_hold_much_share_a_page(open_client: TestClient) -> None:
    for n in range(8):
        made = {"graph_id": "echo", "name": f"assistant {n}", "metadata": {str(m): "x" * 19_000 for m in range(15)}}
        assert open_client.post("/assistants", json=made).status_code == 200
    page = page_of(open_client, "/console/agents/echo")
    assert LEFT_OUT in page
    assert all(f"assistant {n}" in page for n in range(8))


def test_messages_that_hold_much_share_a_page_newest_first(open_client: TestClient) -> None:
    thread = open_client.post("/threads", json={"metadata": {"graph_id": "echo"}}).json()["thread_id"]
    blocks = [{"type": "text", "text": "x" * 15_000}] * 10
    messages = [{"type": "human", "content": [{"type": "text", "text": f"number {n}."}, *blocks]} for n in range(30)]
    values = {"values": {"text": messages}, "as_node": "echo"}
    assert open_client.post(f"/threads/{thread}/state", json=values).status_code == 200
    page = page_of(open_client, f"/console/threads/{thread}?tab=chat")
    assert page.count(LEFT_OUT) == 27
    assert "number 29.</" in page


def test_the_history_reads_once_what_many_checkpoints_hold(open_client: TestClient) -> None:
    thread = open_client.post("/threads", json={"metadata": {"graph_id": "echo"}}).json()["thread_id"]
    for text in ({"n": 1}, {"n": 1}, {"n": 2}):
        values = {"values": {"text": text}, "as_node": "echo"}
        assert open_client.post(f"/threads/{thread}/state", json=values).status_code == 200
    engine: Any = open_client.app.state.engine  # type: ignore[attr-defined]

    async def history() -> list[dict[str, Any]]:
        return [one async for one in state.history(engine, UUID(thread))]

    assert open_client.portal
    newest, *older = open_client.portal.call(history)
    assert [one["values"]["text"] for one in (newest, *older[:2])] == [{"n": 2}, {"n": 1}, {"n": 1}]
    assert older[0]["values"]["text"] is older[1]["values"]["text"]
    assert page_of(open_client, f"/console/threads/{thread}?tab=history").count("no value changed") == 1


def test_one_message_is_shown_however_much_it_holds() -> None:
    calls = [{"name": "act", "args": {"text": "x" * 20_000}}] * 200
    found = chat.conversation([{"type": "ai", "content": "here I am", "tool_calls": calls}], None)
    [message] = found["messages"]
    assert len(message["calls"]) == chat.PAGE
    assert [part.get("shown", part.get("text")) for part in message["parts"]] == [
        "here I am",
        "150 more calls: the API has them all",
    ]


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"k" * 1_000_000: {"type": "string"}}},
        {"properties": {"a": {"enum": ["x" * 19_000] * 100}}},
        {"properties": {"a": {"type": "string", "default": "x" * 2_000_000}}},
        {"title": "x" * 2_000_000},
    ],
    ids=["key", "choices", "default", "title"],
)
def test_the_form_of_a_large_schema_is_small(open_client: TestClient, dsn: str, schema: Any) -> None:
    token = things(open_client, dsn, {})["token"]
    with psycopg.connect(dsn) as conn:
        question = Jsonb({"question": "Which?", "schema": schema})
        conn.execute("UPDATE interrupts SET question = %s WHERE token = %s", (question, token))
    assert len(page_of(open_client, f"/console/inbox/{token}")) < 50_000
    fields = jsonform.of_schema(schema)
    assert jsonform.read(fields, {fields[0].name: '"answer"'}) in ("answer", {"a": "answer"}, {"a": '"answer"'})
