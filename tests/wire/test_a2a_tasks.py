"""A2A: tasks listed by state, context and page, and files in both directions, by the client of `a2a-sdk`."""

import base64
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from a2a.types import a2a_pb2 as a2a

from tests.conftest import Database, Process
from tests.wire.assistants import WAIT_SECONDS, get, make_project, rpc, served
from tests.wire.test_a2a import VERSIONS, agent, message, send, state, task_of, texts, until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:google.*", "ignore::DeprecationWarning:a2a.*")
PICTURE = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def process(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    config = make_project(tmp_path_factory.mktemp("a2a_tasks"))
    with Database(database_url) as (_, dsn), served(dsn, config) as process:
        yield process


def listed(url: str, **params: Any) -> dict[str, Any]:
    return rpc(url, "ListTasks", params)["result"]


async def test_tasks_are_listed_page_by_page_last_changed_first(process: Process) -> None:
    async with agent(process, "talks", "1.0", streaming=False) as client:
        first = await task_of(client, message("hi"))
        others = [await task_of(client, message("hi")) for _ in range(4)]
        again = await task_of(client, message("again", context_id=first.context_id))
        newest = [again.id, *(task.id for task in reversed(others)), first.id]
        seen: list[str] = []
        token = ""
        while True:
            page = await client.list_tasks(a2a.ListTasksRequest(page_size=4, page_token=token))
            assert (page.total_size, page.page_size) == (6, 4)
            seen += [task.id for task in page.tasks]
            if not (token := page.next_page_token):
                break
        assert seen == newest
        one = (await client.list_tasks(a2a.ListTasksRequest(page_size=1))).tasks[0]
        assert not one.artifacts
        assert [texts(said.parts) for said in one.history] == [["again"]]
        full = await client.list_tasks(a2a.ListTasksRequest(page_size=1, include_artifacts=True, history_length=0))
        assert texts(full.tasks[0].artifacts[0].parts) == ["turn 2: hello my dear friend"]
        assert not full.tasks[0].history
        context = await client.list_tasks(a2a.ListTasksRequest(context_id=first.context_id))
        assert [task.id for task in context.tasks] == [again.id, first.id]
        later = await client.list_tasks(a2a.ListTasksRequest(status_timestamp_after=again.status.timestamp))
        assert [task.id for task in later.tasks] == [again.id]
    for nowhere in (str(uuid4()), "x"):
        assert listed(f"{process.url}/a2a/talks", contextId=nowhere)["tasks"] == []
    assert listed(f"{process.url}/a2a/claims") == {"tasks": [], "nextPageToken": "", "pageSize": 50, "totalSize": 0}


def test_each_task_is_listed_under_the_state_that_it_shows(process: Process) -> None:
    url = f"{process.url}/a2a/asks"
    asking = send(url, "eat")["result"]
    held = send(url, "drink", contextId=asking["contextId"])["result"]
    half = send(url, "sleep")["result"]
    send(url, "yes", taskId=half["id"])
    done = send(url, "rest")["result"]
    send(url, "yes", taskId=done["id"])
    send(url, "Ada", taskId=done["id"])
    withdrawn = send(url, "run")["result"]
    rpc(url, "tasks/cancel", {"id": withdrawn["id"]})
    wanted = {
        "SUBMITTED": {held["id"]},
        "INPUT_REQUIRED": {asking["id"], half["id"]},
        "COMPLETED": {done["id"]},
        "CANCELED": {withdrawn["id"]},
        "WORKING": set[str](),
        "FAILED": set[str](),
        "REJECTED": set[str](),
    }
    for name, ids in wanted.items():
        page = listed(url, status=f"TASK_STATE_{name}")
        assert {task["id"] for task in page["tasks"]} == ids, name
        assert {task["status"]["state"] for task in page["tasks"]} <= {f"TASK_STATE_{name}"}
        assert page["totalSize"] == len(ids)
    assert listed(url, status="TASK_STATE_UNSPECIFIED")["totalSize"] == 5
    failed = send(f"{process.url}/a2a/fails", "soup")["result"]
    assert [task["id"] for task in listed(f"{process.url}/a2a/fails", status="TASK_STATE_FAILED")["tasks"]] == [
        failed["id"]
    ]
    hangs = f"{process.url}/a2a/hangs"
    works = send(hangs, "x", configuration={"blocking": False})["result"]
    until(hangs, works["id"], {"working"})
    assert [task["id"] for task in listed(hangs, status="TASK_STATE_WORKING")["tasks"]] == [works["id"]]
    rpc(hangs, "tasks/cancel", {"id": works["id"]})


def test_a_page_behind_the_last_one_is_empty_and_knows_the_total(process: Process) -> None:
    url = f"{process.url}/a2a/works"
    for _ in range(2):
        send(url, "x")
    token = listed(url, pageSize=1)["nextPageToken"]
    place = json.loads(base64.urlsafe_b64decode(token))
    last = base64.urlsafe_b64encode(json.dumps(["2000-01-01T00:00:00+00:00", place[1]]).encode()).decode()
    page = listed(url, pageToken=last)
    assert (page["tasks"], page["nextPageToken"], page["totalSize"]) == ([], "", listed(url)["totalSize"])


@pytest.mark.parametrize("version", VERSIONS)
async def test_files_reach_the_graph_as_content_blocks_and_come_back_as_parts(process: Process, version: str) -> None:
    said = a2a.Message(message_id=str(uuid4()), role=a2a.ROLE_USER)
    said.parts.add(text="What is this?")
    said.parts.add(raw=PICTURE, media_type="image/png", filename="cat.png")
    said.parts.add(url="https://example.com/report.pdf", media_type="application/pdf")
    async with agent(process, "sees", version, streaming=False) as client:
        task = await task_of(client, a2a.SendMessageRequest(message=said))
        assert state(task) == "completed"
        text, drawn, linked, *_ = task.artifacts[0].parts
        blocks = [json.loads(block) for block in text.text.split("; ")]
        assert blocks == [
            {"type": "text", "text": "What is this?"},
            {
                "type": "image",
                "base64": base64.b64encode(PICTURE).decode(),
                "mime_type": "image/png",
                "extras": {"filename": "cat.png"},
            },
            {"type": "file", "url": "https://example.com/report.pdf", "mime_type": "application/pdf"},
        ]
        assert (drawn.raw, drawn.media_type, drawn.filename) == (b"\x89PNG\r\n\x1a\n", "image/png", "drawn.png")
        assert linked.url == "https://example.com/cat.jpg"
        assert "secret" not in str(task.artifacts[0])
        asked = task.history[0].parts
        assert [part.WhichOneof("content") for part in asked] == ["text", "raw", "url"]
        assert (asked[1].raw, asked[1].filename) == (PICTURE, "cat.png")


async def test_a_stream_ends_with_the_files_of_the_answer(process: Process) -> None:
    async with agent(process, "sees", "1.0") as client:
        events = [event async for event in client.send_message(message("draw"))]
    last = [event.artifact_update.artifact for event in events if event.HasField("artifact_update")][-1]
    assert [part.WhichOneof("content") for part in last.parts[:3]] == ["text", "raw", "url"]


def test_files_have_their_limits(process: Process) -> None:
    modes = {
        name: get(f"{process.url}/a2a/{name}/.well-known/agent-card.json")["defaultInputModes"]
        for name in ("sees", "works")
    }
    assert "image/*" in modes["sees"]
    assert "image/*" not in modes["works"]
    large = {"kind": "file", "file": {"bytes": "A" * (8 * 1024 * 1024), "mimeType": "image/png"}}
    said = {"kind": "message", "role": "user", "messageId": "1", "parts": [large]}
    body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": said}}
    assert httpx.post(f"{process.url}/a2a/sees", json=body, timeout=WAIT_SECONDS).status_code == 413
    task = send(f"{process.url}/a2a/asks", "eat")["result"]
    answer = send(f"{process.url}/a2a/asks", "", taskId=task["id"], parts=[{"kind": "file", "file": {"bytes": "aGk="}}])
    assert answer["error"]["code"] == -32005
