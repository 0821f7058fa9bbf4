"""A2A: the client of `a2a-sdk` in both versions, and raw requests, against real servers."""

import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any
from uuid import uuid4

import httpx
import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.client.card_resolver import A2ACardResolver
from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import TaskNotCancelableError, TaskNotFoundError, UnsupportedOperationError

from tests.conftest import Database, Process, eventually
from tests.wire.assistants import NAMES, WAIT_SECONDS, get, make_project, post, rpc, served

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:google.*", "ignore::DeprecationWarning:a2a.*")
VERSIONS = ("0.3", "1.0")
ENDED = {"completed", "failed", "canceled", "input-required"}


@pytest.fixture(scope="module")
def process(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    config = make_project(tmp_path_factory.mktemp("a2a"))
    with Database(database_url) as (_, dsn), served(dsn, config) as process:
        yield process


@asynccontextmanager
async def agent(process: Process, name: str, version: str, *, streaming: bool = True) -> AsyncIterator[Any]:
    """The SDK's client, from the agent's own card, held to one version."""
    async with httpx.AsyncClient(timeout=WAIT_SECONDS) as http:
        card = await A2ACardResolver(http, f"{process.url}/a2a/{name}").get_agent_card()
        spoken = [one for one in card.supported_interfaces if one.protocol_version.startswith(version)]
        del card.supported_interfaces[:]
        card.supported_interfaces.extend(spoken)
        yield ClientFactory(ClientConfig(httpx_client=http, streaming=streaming)).create(card)


def message(text: str, **ids: str) -> a2a.SendMessageRequest:
    said = a2a.Message(message_id=str(uuid4()), role=a2a.ROLE_USER, parts=[a2a.Part(text=text)], **ids)
    return a2a.SendMessageRequest(message=said)


async def sent(client: Any, request: a2a.SendMessageRequest) -> list[a2a.StreamResponse]:
    return [event async for event in client.send_message(request)]


async def task_of(client: Any, request: a2a.SendMessageRequest) -> a2a.Task:
    """The task after a message, without streaming."""
    (event,) = await sent(client, request)
    return event.task


def state(task: a2a.Task) -> str:
    return a2a.TaskState.Name(task.status.state).removeprefix("TASK_STATE_").lower().replace("_", "-")


def texts(parts: Any) -> list[str]:
    return [part.text for part in parts if part.HasField("text")]


def send(url: str, text: str, **more: Any) -> dict[str, Any]:
    """`message/send` of 0.3, raw; `configuration` is beside the message, all else in it."""
    configuration = {"configuration": more.pop("configuration")} if "configuration" in more else {}
    said = {"kind": "message", "role": "user", "messageId": str(uuid4()), "parts": [{"kind": "text", "text": text}]}
    return rpc(url, "message/send", {"message": {**said, **more}, **configuration})


def until(url: str, name: str, wanted: set[str]) -> dict[str, Any]:
    """The task as soon as it is in one of these states."""

    def look() -> dict[str, Any]:
        return rpc(url, "tasks/get", {"id": name})["result"]

    return eventually(look, lambda task: task["status"]["state"] in wanted)


def test_cards(process: Process) -> None:
    for name in NAMES:
        card = get(f"{process.url}/.well-known/agent-card.json?assistant_id={name}")
        assert card == get(f"{process.url}/a2a/{name}/.well-known/agent-card.json")
        assert card["name"] == name
        assert card["url"] == card["supportedInterfaces"][0]["url"]
        assert {one["protocolVersion"] for one in card["supportedInterfaces"]} == set(VERSIONS)
        assert card["capabilities"]["streaming"]
        assert card["capabilities"]["pushNotifications"]
    assert get(f"{process.url}/a2a/claims/.well-known/agent-card.json")["defaultInputModes"] == ["application/json"]
    assert httpx.get(f"{process.url}/.well-known/agent-card.json", timeout=WAIT_SECONDS).status_code == 422
    unknown = f"{process.url}/.well-known/agent-card.json?assistant_id=nope"
    assert httpx.get(unknown, timeout=WAIT_SECONDS).status_code == 404


@pytest.mark.parametrize("version", VERSIONS)
async def test_turns_of_a_context(process: Process, version: str) -> None:
    async with agent(process, "talks", version, streaming=False) as client:
        first = await task_of(client, message("hi"))
        assert state(first) == "completed"
        assert texts(first.artifacts[0].parts) == ["turn 1: hello my dear friend"]
        second = await task_of(client, message("again", context_id=first.context_id))
        assert texts(second.artifacts[0].parts) == ["turn 2: hello my dear friend"]
        assert second.id != first.id
        seen = await client.get_task(a2a.GetTaskRequest(id=first.id))
        assert texts(seen.artifacts[0].parts) == ["turn 1: hello my dear friend"]
        assert [texts(one.parts) for one in seen.history] == [["hi"]]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_stream_builds_the_answer(process: Process, version: str) -> None:
    async with agent(process, "talks", version) as client:
        events = await sent(client, message("hi"))
    kinds = [event.WhichOneof("payload") for event in events]
    assert kinds[0] == "task"
    assert kinds[-1] == "status_update"
    assert events[-1].status_update.status.state == a2a.TASK_STATE_COMPLETED
    said = ""
    pieces = [event.artifact_update for event in events if event.HasField("artifact_update")]
    for piece in pieces[:-1]:
        said = said * piece.append + "".join(texts(piece.artifact.parts))
    assert len(pieces) > 3
    assert said == "turn 1: hello my dear friend" == texts(pieces[-1].artifact.parts)[0]
    assert pieces[-1].last_chunk


@pytest.mark.parametrize("version", VERSIONS)
async def test_questions_are_answered_in_the_task(process: Process, version: str) -> None:
    async with agent(process, "asks", version, streaming=False) as client:
        task = await task_of(client, message("eat"))
        assert state(task) == "input-required"
        assert texts(task.status.message.parts) == ["May I eat?"]
        held = await task_of(client, message("drink", context_id=task.context_id))
        assert state(held) == "submitted"  # behind the question; the answer does not wait for weeks
        task = await task_of(client, message("yes", task_id=task.id, context_id=task.context_id))
        assert state(task) == "input-required"
        assert texts(task.status.message.parts) == ["Under which name?"]
        last = message("Ada", task_id=task.id)
        task = await task_of(client, last)
        assert state(task) == "completed"
        assert texts(task.artifacts[0].parts) == ["eat as Ada"]
        said = [texts(one.parts) for one in task.history]
        assert said == [["eat"], ["May I eat?"], ["yes"], ["Under which name?"], ["Ada"]]
        assert task.history[-1].message_id == last.message.message_id
        assert (await task_of(client, last)).id == task.id  # sent again, it changes nothing
        with pytest.raises(UnsupportedOperationError):
            await task_of(client, message("Bob", task_id=task.id))
        held = await client.get_task(a2a.GetTaskRequest(id=held.id, history_length=0))
        assert not held.history


@pytest.mark.parametrize("version", VERSIONS)
async def test_cancelling(process: Process, version: str) -> None:
    async with agent(process, "hangs", version) as client:
        events = client.send_message(message("x"))
        task = (await anext(events)).task
        assert (await anext(events)).status_update.status.state == a2a.TASK_STATE_WORKING
        assert state(await client.cancel_task(a2a.CancelTaskRequest(id=task.id))) == "canceled"
        assert [event async for event in events][-1].status_update.status.state == a2a.TASK_STATE_CANCELED
        with pytest.raises(TaskNotCancelableError):
            await client.cancel_task(a2a.CancelTaskRequest(id=task.id))
    async with agent(process, "asks", version, streaming=False) as client:
        asking = await task_of(client, message("eat"))
        assert state(await client.cancel_task(a2a.CancelTaskRequest(id=asking.id))) == "canceled"
        with pytest.raises(UnsupportedOperationError):
            await task_of(client, message("yes", task_id=asking.id))
        with pytest.raises(TaskNotFoundError):
            await client.get_task(a2a.GetTaskRequest(id=f"{uuid4()}:{uuid4()}"))


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_second_reader_gets_it_all(process: Process, version: str, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    said = a2a.Message(message_id=str(uuid4()), role=a2a.ROLE_USER)
    part = said.parts.add()
    part.data.struct_value.update({"seconds": 1, "effects": str(effects), "prompt": "dishes"})
    async with agent(process, "works", version) as client:
        events = client.send_message(a2a.SendMessageRequest(message=said))
        task = (await anext(events)).task
        await events.aclose()  # the reader goes, the task goes on
        again = client.subscribe(a2a.SubscribeToTaskRequest(id=task.id))
        assert (await anext(again)).task.id == task.id
        Path(f"{effects}.go").touch()
        rest = [event async for event in again]
    assert rest[-1].status_update.status.state == a2a.TASK_STATE_COMPLETED
    assert texts(rest[-2].artifact_update.artifact.parts) == ["did dishes"]
    assert effects.read_text().splitlines() == ["before", "after"]


async def test_a_failed_task_says_why(process: Process) -> None:
    for version in VERSIONS:
        async with agent(process, "fails", version, streaming=False) as client:
            task = await task_of(client, message("soup"))
        assert state(task) == "failed"
        assert texts(task.status.message.parts) == ["TerminalError: the stove is broken"]


def test_a_message_sent_twice_starts_one_task(process: Process) -> None:
    url, ident = f"{process.url}/a2a/works", str(uuid4())
    first, second = (send(url, "x", messageId=ident)["result"] for _ in range(2))
    assert first["id"] == second["id"]
    other = send(url, "something else", messageId=ident)
    assert other["error"]["code"] == -32602
    assert send(url, "x", messageId="1")["result"]["id"] != send(url, "x", messageId="1")["result"]["id"]


def test_not_waiting(process: Process) -> None:
    url = f"{process.url}/a2a/works"
    task = send(url, "x", configuration={"blocking": False})["result"]
    assert until(url, task["id"], ENDED)["status"]["state"] == "completed"


def test_several_questions_are_answered_by_their_ids_or_refused(process: Process) -> None:
    url = f"{process.url}/a2a/asks"
    task = send(url, "eat")["result"]
    (question,) = task["metadata"]["questions"]
    named = {"kind": "data", "data": {question["interrupt_id"]: {"approved": False, "reason": "too late"}}}
    done = send(url, "", taskId=task["id"], parts=[named])["result"]
    assert done["artifacts"][0]["parts"][0]["text"] == "refused: too late"


def test_an_answer_by_another_way_is_the_tasks_as_well(process: Process) -> None:
    url = f"{process.url}/a2a/asks"
    task = send(url, "eat")["result"]
    (row,) = get(f"{process.url}/interrupts?status=open&thread_id={task['contextId']}")
    assert post(f"{process.url}/interrupts/{row['token']}/reject", {"reason": "no"}).status_code == 202
    done = until(url, task["id"], {"completed"})
    assert done["artifacts"][0]["parts"][0]["text"] == "refused: no"


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("nope", {}, -32601),
        ("message/send", {}, -32602),
        ("message/send", {"message": 1}, -32602),
        ("message/send", {"message": {"role": "agent", "messageId": "1", "parts": [{"text": "x"}]}}, -32602),
        ("message/send", {"message": {"role": "user", "messageId": "", "parts": [{"text": "x"}]}}, -32602),
        ("message/send", {"message": {"role": "user", "messageId": "1", "parts": []}}, -32602),
        ("message/send", {"message": {"role": "user", "messageId": "1", "parts": [{"kind": "odd"}]}}, -32602),
        ("message/send", {"message": {"role": "user", "messageId": "1", "parts": [{"file": {}}]}}, -32602),
        ("message/send", {"message": {"role": "user", "messageId": "1", "parts": [{"file": {"bytes": "?"}}]}}, -32602),
        ("message/send", {"message": {"role": "user", "messageId": "1", "parts": [{"file": {"uri": "file:///etc"}}]}},
         -32602),
        ("message/send", {"message": {"role": "user", "messageId": "1", "parts": [{"file": {"bytes": "", "uri": "http://x"}}]}},
         -32602),
        ("message/send", {"message": {"role": "user", "messageId": "1",
                                      "parts": [{"file": {"bytes": "", "mimeType": "picture"}}]}}, -32602),
        ("message/send", {"message": {"role": "user", "messageId": "1", "parts": [{"file": {"bytes": "aGk="}}]}},
         -32005),
        ("message/send", {"message": {"role": "user", "messageId": "1", "parts": [{"data": [1]}]}}, -32602),
        ("message/send", {"message": {"role": "user", "messageId": "1", "contextId": "x", "parts": [{"text": "x"}]}},
         -32602),
        ("message/send", {"message": {"role": "user", "messageId": "1", "taskId": "x", "parts": [{"text": "x"}]}},
         -32001),
        ("message/stream", {"message": {"role": "user", "messageId": "1", "parts": [{"text": 5}]}}, -32602),
        ("SendMessage", {"message": {"role": "user", "messageId": "1", "parts": [{"text": "x"}]}}, -32602),
        ("tasks/get", {"id": 5}, -32602),
        ("tasks/get", {"id": "x:y"}, -32001),
        ("tasks/get", {"id": f"{uuid4()}:{uuid4()}", "historyLength": -1}, -32602),
        ("tasks/cancel", {"id": f"{uuid4()}:{uuid4()}"}, -32001),
        ("tasks/resubscribe", {"id": ""}, -32602),
        ("tasks/pushNotificationConfig/set", {"taskId": f"{uuid4()}:{uuid4()}"}, -32001),
        ("agent/getAuthenticatedExtendedCard", None, -32007),
        ("ListTasks", {"pageSize": 0}, -32602),
        ("ListTasks", {"pageSize": 101}, -32602),
        ("ListTasks", {"pageToken": "x"}, -32602),
        ("ListTasks", {"pageToken": "WyIyMDI2LTAxLTAxIiwgMV0="}, -32602),
        ("ListTasks", {"status": "completed"}, -32602),
        ("ListTasks", {"contextId": 5}, -32602),
        ("ListTasks", {"historyLength": -1}, -32602),
        ("ListTasks", {"statusTimestampAfter": "yesterday"}, -32602),
    ],
)  # fmt: skip
def test_what_is_wrong_gets_its_code(process: Process, method: str, params: Any, code: int) -> None:
    assert rpc(f"{process.url}/a2a/works", method, params)["error"]["code"] == code


def test_bodies_that_are_no_requests(process: Process) -> None:
    url = f"{process.url}/a2a/works"
    for body, code in ((b"{oops", -32700), (b"", -32700), (b"[]", -32600), (b"{}", -32600),
                       (b'{"jsonrpc":"2.0","method":"tasks/get"}', -32600)):  # fmt: skip
        answer = httpx.post(url, content=body, timeout=WAIT_SECONDS)
        assert (answer.status_code, answer.json()["error"]["code"]) == (200, code), body
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tasks/get"}
    unknown = httpx.post(f"{process.url}/a2a/nope", json=asked, timeout=WAIT_SECONDS)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, -32602)
    assert rpc(url, "tasks/get", {"id": "x"}, **{"a2a-version": "7.1"})["error"]["code"] == -32009
    reason = rpc(url, "GetTask", {"id": "x"})["error"]["data"][0]["reason"]
    assert reason == "TASK_NOT_FOUND"


def test_tasks_and_contexts_belong_to_their_agent(process: Process) -> None:
    task = send(f"{process.url}/a2a/works", "x")["result"]
    other = f"{process.url}/a2a/fails"
    assert rpc(other, "tasks/get", {"id": task["id"]})["error"]["code"] == -32001
    assert send(other, "x", contextId=task["contextId"])["error"]["code"] == -32602
    assert send(f"{process.url}/a2a/claims", "text")["error"]["code"] == -32005


class Receiver(ThreadingHTTPServer):
    """Takes push notifications."""

    def __init__(self) -> None:
        told: Queue[tuple[dict[str, str], Any]] = Queue()
        self.told = told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                told.put(({name.lower(): value for name, value in self.headers.items()}, json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_push_notifications_tell_of_questions_and_ends(process: Process, receiver: Receiver) -> None:
    url = f"{process.url}/a2a/asks"
    config = {"url": receiver.url, "token": "s3cret", "id": "mine",
              "authentication": {"schemes": ["Bearer"], "credentials": "abc"}}  # fmt: skip
    task = send(url, "eat", configuration={"pushNotificationConfig": config})["result"]
    headers, told = receiver.told.get(timeout=WAIT_SECONDS)
    assert (told["id"], told["status"]["state"]) == (task["id"], "input-required")
    assert headers["x-a2a-notification-token"] == "s3cret"
    assert headers["authorization"] == "Bearer abc"
    send(url, "no", taskId=task["id"])
    _, told = receiver.told.get(timeout=WAIT_SECONDS)
    assert (told["id"], told["status"]["state"]) == (task["id"], "completed")


async def test_push_configs_of_both_versions(process: Process, receiver: Receiver, tmp_path: Path) -> None:
    for version in VERSIONS:
        async with agent(process, "hangs", version) as client:
            events = client.send_message(message("x"))
            task = (await anext(events)).task
            wanted = a2a.TaskPushNotificationConfig(task_id=task.id, id="one", url=receiver.url, token="t")
            made = await client.create_task_push_notification_config(wanted)
            assert (made.id, made.url) == ("one", receiver.url)
            second = a2a.TaskPushNotificationConfig(task_id=task.id, id="two", url=receiver.url)
            await client.create_task_push_notification_config(second)
            listed = await client.list_task_push_notification_configs(
                a2a.ListTaskPushNotificationConfigsRequest(task_id=task.id)
            )
            assert [one.id for one in listed.configs] == ["one", "two"]
            wanted_one = a2a.DeleteTaskPushNotificationConfigRequest(task_id=task.id, id="two")
            await client.delete_task_push_notification_config(wanted_one)
            found = await client.get_task_push_notification_config(
                a2a.GetTaskPushNotificationConfigRequest(task_id=task.id, id="one")
            )
            assert found.token == "t"
            await client.cancel_task(a2a.CancelTaskRequest(id=task.id))
            await events.aclose()
        _, told = receiver.told.get(timeout=WAIT_SECONDS)
        shown = told["task"] if version == "1.0" else told
        assert (shown["id"], shown["status"]["state"].lower().endswith("canceled")) == (task.id, True)
        assert receiver.told.empty()  # nothing for the one that was deleted


def test_addresses_that_the_rules_refuse_are_not_taken(process: Process) -> None:
    url = f"{process.url}/a2a/works"
    for bad in ("http://169.254.169.254/latest", "ftp://example.com", "/hook", "", 5):
        answer = send(url, "x", configuration={"pushNotificationConfig": {"url": bad}})
        assert answer["error"]["code"] == -32602, answer
    injected = {"url": "https://example.com", "token": "a\r\nx-evil: 1"}
    assert send(url, "x", configuration={"pushNotificationConfig": injected})["error"]["code"] == -32602


def test_tasks_survive_their_server_and_their_worker(
    database_url: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config, other = (make_project(tmp_path_factory.mktemp(name)) for name in ("api", "worker"))
    effects = tmp_path / "effects"
    said = {"kind": "data", "data": {"seconds": 1, "effects": str(effects), "prompt": "dishes"}}
    with Database(database_url) as (_, dsn):
        with served(dsn, config, slots=0) as api, served(dsn, other, command="worker") as worker:
            asking = send(f"{api.url}/a2a/asks", "eat")["result"]
            url = f"{api.url}/a2a/works"
            task = send(url, "", parts=[said], configuration={"blocking": False})["result"]
            until(url, task["id"], {"working"})
            eventually(Path(f"{effects}.held").exists)
            worker.kill()  # in the middle of the task
            api.kill()
        with served(dsn, config, slots=4) as api:
            url = f"{api.url}/a2a/works"
            assert until(url, task["id"], {"working", "completed"})["contextId"] == task["contextId"]
            Path(f"{effects}.go").touch()
            done = until(url, task["id"], {"completed"})
            assert done["artifacts"][0]["parts"][0]["text"] == "did dishes"
            answered = send(f"{api.url}/a2a/asks", "no", taskId=asking["id"])["result"]
            assert answered["status"]["state"] == "completed"
    assert effects.read_text().splitlines() == ["before", "after"]
