"""The event protocol against a real server: commands, channels, reconnects, the SDK and the socket."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
from langgraph_sdk import get_client, get_sync_client
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.api.conftest import serve
from tests.conftest import eventually

GRAPHS = '''
"""Graphs of the protocol tests."""

import asyncio
from operator import add
from typing import Annotated, Any

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

import perdure


class State(TypedDict, total=False):
    log: Annotated[list[str], add]
    seconds: float
    answer: Any


async def work(state: State) -> State:
    perdure.emit({"plain": 1})
    perdure.emit("progress", {"done": 1})
    await asyncio.sleep(state.get("seconds", 0))
    return {"log": ["worked"]}


async def fail(state: State) -> State:
    raise ValueError("boom")


async def ask(state: State) -> State:
    return {"answer": interrupt("really?")}


class Pair(TypedDict, total=False):
    log: Annotated[list[Any], add]


async def left(state: Pair) -> Pair:
    return {"log": [interrupt("left?")]}


async def right(state: Pair) -> Pair:
    return {"log": [interrupt("right?")]}


async def read(state: State) -> State:
    for _ in range(1200):
        if messages := await perdure.mailbox():
            return {"answer": messages}
        await asyncio.sleep(0.05)
    return {"answer": "nothing came"}


@tool
def double(n: int) -> int:
    """Twice n."""
    return 2 * n


async def talk(state: MessagesState) -> Any:
    model = GenericFakeChatModel(messages=iter([AIMessage("one two", id="m1")]))
    await double.ainvoke({"name": "double", "args": {"n": 4}, "id": "c1", "type": "tool_call"})
    return {"messages": [await model.ainvoke(state["messages"]), AIMessage("not streamed")]}


def single(node: Any, schema: Any = State, name: str = "node") -> Any:
    return StateGraph(schema).add_node(name, node).add_edge(START, name).compile()


works, fails, asks, reads, talks = single(work), single(fail), single(ask), single(read), single(talk, MessagesState)
twice = StateGraph(Pair).add_node("left", left).add_node("right", right)
asks_twice = twice.add_edge(START, "left").add_edge(START, "right").compile()
outer, asks_inside = single(works, name="inner"), single(single(ask), name="inner")
'''

NAMES = ("works", "fails", "asks", "reads", "talks", "outer", "asks_inside", "asks_twice")
ALL = ["values", "updates", "messages", "tools", "lifecycle", "input", "checkpoints", "tasks", "custom"]
Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def live(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the graphs of this file."""
    folder = tmp_path_factory.mktemp("protocol")
    (folder / "wired.py").write_text(GRAPHS)
    graphs = {name: f"./wired.py:{name}" for name in NAMES}
    (folder / "langgraph.json").write_bytes(orjson.dumps({"graphs": graphs}))
    with serve(database_url, folder / "langgraph.json") as url:
        yield url


class Thread:
    """A thread that need not exist yet, seen through the protocol."""

    def __init__(self, url: str) -> None:
        self.id = str(uuid4())
        self.http = httpx.Client(base_url=f"{url}/threads/{self.id}", timeout=30)
        self.socket = f"{url.replace('http', 'ws', 1)}/threads/{self.id}/stream/events"

    def command(self, method: str, /, **params: Any) -> dict[str, Any]:
        answer = self.http.post("/commands", json={"id": 1, "method": method, "params": params})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def start(self, graph: str, input: Any = None, **more: Any) -> dict[str, Any]:
        answer = self.command("run.start", assistant_id=graph, input={} if input is None else input, **more)
        assert answer["type"] == "success", answer
        return answer

    def run(self, graph: str, input: Any = None) -> Events:
        """Start a run; all events until it has ended or paused."""
        since = self.start(graph, input)["meta"]["applied_through_seq"]
        return self.events(since=since)

    def events(self, *channels: str, until: Callable[[dict[str, Any]], bool] | None = None, **body: Any) -> Events:
        """Events until a root lifecycle that ends a run, and the values after a pause."""
        found: Events = []
        wanted = {"channels": channels or ALL, **body}
        with self.http.stream("POST", "/stream/events", json=wanted) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            for line in lines:
                if line.startswith("data: "):
                    found.append(orjson.loads(line[6:]))
                    assert next(lines) == f"id: {found[-1]['seq']}"
                    if (until or paused_or_ended)(found[-1]):
                        return found
                    if until is None and values_after_pause(found):
                        return found
        return found


def paused_or_ended(event: dict[str, Any]) -> bool:
    return event["method"] == "lifecycle" and not place(event) and data(event)["event"] in ("completed", "failed")


def values_after_pause(found: Events) -> bool:
    if len(found) < 2:
        return False
    before, last = found[-2:]
    return last["method"] == "values" and before["method"] == "lifecycle" and data(before)["event"] == "interrupted"


def data(event: dict[str, Any]) -> Any:
    return event["params"]["data"]


def place(event: dict[str, Any]) -> list[str]:
    return event["params"]["namespace"]


def of(found: Events, method: str) -> list[Any]:
    return [data(event) for event in found if event["method"] == method]


@pytest.fixture
def thread(live: str) -> Iterator[Thread]:
    made = Thread(live)
    yield made
    made.http.close()


def test_a_run_shows_every_channel_and_replays_the_same(thread: Thread) -> None:
    found = thread.run("works", {"log": ["in"]})
    assert of(found, "lifecycle") == [
        {"event": "running", "graph_name": "works"},
        {"event": "completed", "graph_name": "works"},
    ]
    assert of(found, "values") == [{"log": ["in"]}, {"log": ["in", "worked"]}]
    assert of(found, "updates") == [{"node": "node", "values": {"log": ["worked"]}}]
    assert of(found, "custom") == [{"payload": {"plain": 1}}, {"name": "progress", "payload": {"done": 1}}]
    assert [task.get("result") for task in of(found, "tasks")] == [None, {"log": ["worked"]}]
    checkpoints = of(found, "checkpoints")
    assert [(one["step"], one["source"]) for one in checkpoints] == [(-1, "input"), (0, "loop"), (1, "loop")]
    assert checkpoints[1]["parent_id"] == checkpoints[0]["id"]
    assert [event["type"] for event in found] == ["event"] * len(found)
    assert len({event["event_id"] for event in found}) == len(found)
    assert thread.events() == found
    assert thread.events(since=found[3]["seq"]) == found[4:]
    assert thread.events("values", "lifecycle") == [e for e in found if e["method"] in ("values", "lifecycle")]
    assert of(thread.events("custom:progress", "lifecycle"), "custom") == of(found, "custom")[1:]


def test_messages_are_content_blocks_and_tools_have_their_channel(thread: Thread) -> None:
    found = thread.run("talks", {"messages": "hi"})
    messages = of(found, "messages")
    assert [message["event"] for message in messages] == [
        "message-start",
        "content-block-start",
        *["content-block-delta"] * 3,
        "content-block-finish",
        "message-finish",
    ]
    assert (messages[0]["role"], messages[0]["id"]) == ("ai", "m1")
    assert "".join(m["delta"]["text"] for m in messages if "delta" in m) == "one two"
    assert messages[5]["content"] == {"type": "text", "text": "one two"}
    assert [m["content"] for m in of(found, "values")[-1]["messages"]] == ["hi", "one two", "not streamed"]
    tools = of(found, "tools")
    assert [tool["event"] for tool in tools] == ["tool-started", "tool-finished"]
    assert (tools[0]["tool_name"], tools[0]["input"], tools[1]["output"]["content"]) == ("double", {"n": 4}, "8")


def test_subgraphs_have_their_namespace_and_lifecycle(thread: Thread) -> None:
    found = thread.run("outer", {})
    inner = [event for event in found if place(event)]
    [where] = {tuple(place(event)) for event in inner}
    task = where[0].removeprefix("inner:")
    started, completed = of(inner, "lifecycle")
    assert started == {"event": "started", "namespace": [*where], "graph_name": "inner", "trigger_call_id": task}
    assert completed == {"event": "completed", "namespace": [*where]}
    assert [place(event) for event in inner if event["method"] == "custom"] == [[*where]] * 2

    def ended(event: dict[str, Any]) -> bool:
        return event["seq"] >= inner[-1]["seq"]

    for filters in ({"namespaces": [["inner"]]}, {"namespaces": [list(where)]}, {"namespaces": [["x"], ["inner"]]}):
        assert thread.events(**filters, until=ended) == inner
    assert thread.events(namespaces=[[]], depth=0) == [event for event in found if not place(event)]


def test_a_question_is_told_before_the_pause_and_answered_once(thread: Thread) -> None:
    found = thread.run("asks_inside", {"log": ["in"]})
    methods = [event["method"] for event in found]
    assert methods[-3:] == ["input.requested", "lifecycle", "values"]
    question = data(found[-3])
    assert (question["payload"], question["value"]) == ("really?", "really?")
    assert place(found[-3])[0].startswith("inner:")
    assert data(found[-2]) == {"event": "interrupted", "graph_name": "asks_inside"}
    assert data(found[-1]) == {"log": ["in"]}
    assert "__interrupt__" not in str(of(found, "values"))
    assert {"event": "interrupted", "namespace": place(found[-3])} in of(found, "lifecycle")
    wrong = thread.command("input.respond", namespace=[], interrupt_id="nope", response=1)
    assert (wrong["type"], wrong["error"]) == ("error", "no_such_interrupt")
    answer = {"namespace": place(found[-3]), "interrupt_id": question["interrupt_id"], "response": None}
    done = thread.command("input.respond", responses=[answer])
    assert (done["type"], done["result"]) == ("success", {})
    later = thread.events("values", "lifecycle", since=done["meta"]["applied_through_seq"])
    assert data(later[-1])["event"] == "completed"
    again = thread.command("input.respond", **answer)
    assert again["error"] == "no_such_interrupt"


@pytest.mark.parametrize("at_once", [True, False])
def test_two_questions_are_answered_at_once_or_one_by_one(thread: Thread, at_once: bool) -> None:
    asked = of(thread.run("asks_twice"), "input.requested")
    answers = [{"interrupt_id": one["interrupt_id"], "response": one["value"].upper()} for one in asked]
    if at_once:
        done = thread.command("input.respond", responses=answers)
    else:
        first = thread.command("input.respond", **answers[0])
        left = thread.events(since=first["meta"]["applied_through_seq"])
        assert [one["interrupt_id"] for one in of(left, "input.requested")] == [answers[1]["interrupt_id"]]
        done = thread.command("input.respond", **answers[1])
    found = thread.events(since=done["meta"]["applied_through_seq"])
    assert sorted(of(found, "values")[-1]["log"]) == ["LEFT?", "RIGHT?"]


def test_failures_carry_their_error(thread: Thread) -> None:
    assert of(thread.run("fails"), "lifecycle")[-1] == {"event": "failed", "graph_name": "fails", "error": "boom"}


def test_the_stream_waits_for_a_thread_and_stays_open_across_runs(thread: Thread) -> None:
    ends = 0

    def second(event: dict[str, Any]) -> bool:
        nonlocal ends
        ends += paused_or_ended(event)
        if paused_or_ended(event) and ends == 1:
            thread.start("works")
        return ends == 2

    with thread.http.stream("POST", "/stream/events", json={"channels": ["lifecycle"]}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": heartbeat"
        thread.start("works")
        found = []
        for line in lines:
            if line.startswith("data: "):
                found.append(orjson.loads(line[6:]))
                if second(found[-1]):
                    break
    assert [data(event)["event"] for event in found] == ["running", "completed"] * 2


@pytest.mark.parametrize("modes", [["values"], ["updates"]])
def test_runs_of_other_calls_appear_with_lifecycle_and_values(thread: Thread, modes: list[str]) -> None:
    body = {"assistant_id": "works", "input": {"log": ["in"]}, "if_not_exists": "create", "stream_mode": modes}
    run = thread.http.post("/runs", json=body).json()
    found = thread.events()
    assert [data(event)["event"] for event in found if event["method"] == "lifecycle"] == ["running", "completed"]
    assert of(found, "values")[-1] == {"log": ["in", "worked"]}
    assert of(found, "updates") == [{"node": "node", "values": {"log": ["worked"]}}] * ("updates" in modes)
    asks = {"assistant_id": "asks", "input": {}, "stream_mode": modes}
    thread.http.post("/runs", json=asks)
    paused = thread.events(since=found[-1]["seq"])
    assert [event["method"] for event in paused][-3:] == ["input.requested", "lifecycle", "values"]
    assert thread.http.get(f"/runs/{run['run_id']}").json()["kwargs"].get("protocol") is None


def test_other_streams_of_a_protocol_run_show_no_protocol_frames(thread: Thread) -> None:
    run = thread.start("asks")["result"]["run_id"]
    answer = thread.http.get(f"/runs/{run}/stream", headers={"Last-Event-ID": "-"})
    names = {line[7:] for line in answer.text.splitlines() if line.startswith("event: ")}
    assert names <= {"metadata", "values"}
    assert thread.http.get(f"/runs/{run}/join").json()["__interrupt__"][0]["value"] == "really?"


def test_the_state_commands(thread: Thread) -> None:
    assert thread.command("agent.getTree")["error"] == "no_such_run"
    assert (
        thread.command("input.inject", namespace=[], message={"role": "user", "content": "x"})["error"] == "no_such_run"
    )
    thread.run("works", {"log": ["in"]})
    assert thread.command("agent.getTree")["error"] == "no_such_run"
    got = thread.command("state.get", namespace=[], keys=["log", "nothing"])["result"]
    assert got["values"] == {"log": ["in", "worked"]}
    listed = thread.command("state.listCheckpoints", limit=2)["result"]["checkpoints"]
    assert [one["step"] for one in listed] == [1, 0]
    assert got["checkpoint"]["id"] == listed[0]["id"]
    older = thread.command("state.listCheckpoints", before=listed[1]["id"])["result"]["checkpoints"]
    assert [one["step"] for one in older] == [-1]
    forked = thread.command("state.fork", checkpoint_id=listed[1]["id"])
    assert (forked["result"]["thread_id"], list(forked["result"])) == (thread.id, ["run_id", "thread_id"])
    events = thread.events(since=forked["meta"]["applied_through_seq"])
    assert of(events, "values")[-1] == {"log": ["in", "worked"]}
    assert thread.command("state.fork", checkpoint_id=str(uuid4()))["error"] == "no_such_checkpoint"
    assert thread.command("state.get", namespace=["nothing"])["error"] == "no_such_namespace"


def test_a_message_is_injected_into_the_active_run_and_the_tree_shows_it(thread: Thread) -> None:
    thread.start("reads")
    eventually(lambda: thread.command("agent.getTree").get("result", {}).get("tree", {}).get("status") == "running")
    sent = thread.command("input.inject", namespace=[], message={"role": "user", "content": "hurry"})
    assert (sent["type"], sent["result"]) == ("success", {})
    assert of(thread.events(), "values")[-1]["answer"] == [{"role": "user", "content": "hurry"}]


def test_bad_commands_name_what_is_wrong(thread: Thread) -> None:
    for envelope in (1, {}, {"id": "1", "method": "x"}, {"id": True, "method": "x"}, {"id": 1, "method": 2}):
        answer = thread.http.post("/commands", json=envelope)
        assert answer.status_code == 400
        assert (answer.json()["id"], answer.json()["error"]) == (None, "invalid_argument")
    for method, params, code in (
        ("run.start", {}, "invalid_argument"),
        ("run.start", {"assistant_id": "nobody"}, "unknown_error"),
        ("run.start", {"assistant_id": "works", "config": 1}, "invalid_argument"),
        ("run.start", {"assistant_id": "works", "multitaskStrategy": "x"}, "invalid_argument"),
        ("input.respond", {}, "invalid_argument"),
        ("input.respond", {"responses": []}, "invalid_argument"),
        ("input.respond", {"responses": [1]}, "invalid_argument"),
        ("input.inject", {"message": "x"}, "invalid_argument"),
        ("agent.getTree", {"run_id": "x"}, "invalid_argument"),
        ("state.get", {"namespace": "x"}, "invalid_argument"),
        ("state.get", {}, "unknown_error"),
        ("state.fork", {}, "invalid_argument"),
        ("subscription.subscribe", {"channels": ["x"]}, "invalid_argument"),
        ("run.stop", {}, "unknown_command"),
    ):
        answer = thread.command(method, **params)
        assert (answer["type"], answer["id"], answer["error"]) == ("error", 1, code), (method, params, answer)
        assert answer["message"]
    assert thread.command("subscription.subscribe", channels=["values"])["result"]["replayed_events"] == 0


@pytest.mark.parametrize("channels", [None, [], ["x"], "values", [1], ["custom:"], [[]]])
def test_channels_that_do_not_exist_are_a_400(thread: Thread, channels: Any) -> None:
    answer = thread.http.post("/stream/events", json={"channels": channels})
    assert (answer.status_code, answer.json()["detail"][:9]) == (400, "channels:")


def test_a_filter_of_a_wrong_type_is_a_422(thread: Thread) -> None:
    for wrong in ({"since": -1}, {"since": "1"}, {"depth": -1}, {"namespaces": ["x"]}, {"since": 2**63}):
        assert thread.http.post("/stream/events", json={"channels": ["values"], **wrong}).status_code == 422


def test_a_socket_takes_commands_and_gives_events(thread: Thread) -> None:
    with connect(thread.socket) as socket:

        def call(ident: int, method: str, /, **params: Any) -> dict[str, Any]:
            socket.send(orjson.dumps({"id": ident, "method": method, "params": params}).decode())
            while "id" not in (got := receive()) or got["id"] != ident:
                seen.append(got)
            return got

        def receive() -> dict[str, Any]:
            return orjson.loads(socket.recv(timeout=30))

        def until_ended() -> None:
            while not any(paused_or_ended(event) for event in seen):
                seen.append(receive())

        seen: Events = []
        for bad in ("{oops", "1", '{"id": "x"}'):
            socket.send(bad)
            answer = receive()
            assert (answer["type"], answer["id"], answer["error"]) == ("error", None, "invalid_argument")
        first = call(1, "subscription.subscribe", channels=["values"])
        assert first["result"]["replayed_events"] == 0
        call(2, "subscription.subscribe", channels=["values", "lifecycle"])
        assert call(3, "run.start", assistant_id="works", input={"log": ["in"]})["result"]["run_id"]
        until_ended()
        assert sorted(e["seq"] for e in seen) == sorted({e["seq"] for e in seen})  # two want them, one sends them
        assert of(seen, "values") == [{"log": ["in"]}, {"log": ["in", "worked"]}]
        assert call(4, "subscription.unsubscribe", subscription_id=first["result"]["subscription_id"])["result"] == {}
        assert call(5, "subscription.unsubscribe", subscription_id="x")["error"] == "no_such_subscription"
        assert call(6, "subscription.subscribe", channels=["x"])["error"] == "invalid_argument"
        replayed = call(7, "subscription.subscribe", channels=["custom:progress"])
        assert replayed["result"]["replayed_events"] == 1
        assert data(receive()) == {"name": "progress", "payload": {"done": 1}}


def test_a_socket_is_closed_with_the_code_that_says_why(thread: Thread, live: str) -> None:
    with connect(thread.socket.replace(thread.id, "x")) as socket:
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=30)
        assert socket.close_code == 4422
    thread.run("works")
    with connect(thread.socket) as socket:
        socket.send('{"id":1,"method":"subscription.subscribe","params":{"channels":["lifecycle"]}}')
        for _ in range(3):
            socket.recv(timeout=30)
        assert httpx.delete(f"{live}/threads/{thread.id}", timeout=30).status_code == 204
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=30)
        assert socket.close_code == 4404


@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_the_sdk_streams(live: str, transport: Any) -> None:
    client = get_client(url=live)
    async with asyncio.timeout(120):
        async with client.threads.stream(assistant_id="works", transport=transport) as stream:
            await stream.run.start(input={"log": ["in"]})
            assert [values async for values in stream.values][-1] == {"log": ["in", "worked"]}
            assert await stream.output == {"log": ["in", "worked"]}
        async with client.threads.stream(assistant_id="talks", transport=transport) as stream:
            await stream.run.start(input={"messages": "hi"})
            messages = [message async for message in stream.messages]
            assert [[text async for text in message.text] for message in messages] == [["one", " ", "two"]]
        async with client.threads.stream(assistant_id="asks_inside", transport=transport) as stream:
            await stream.run.start(input={})
            _ = [values async for values in stream.values]
            assert [question["value"] for question in stream.interrupts] == ["really?"]
            await stream.run.respond("yes")
            assert (await stream.output)["answer"] == "yes"
        async with client.threads.stream(assistant_id="outer", transport=transport) as stream:
            await stream.run.start(input={})
            assert [graph.graph_name async for graph in stream.subgraphs] == ["inner"]
        async with client.threads.stream(assistant_id="fails", transport=transport) as stream:
            await stream.run.start(input={})
            with pytest.raises(RuntimeError, match="boom"):
                await stream.output
    await client.aclose()


def test_the_sync_sdk_streams(live: str) -> None:
    with get_sync_client(url=live) as client:
        with client.threads.stream(assistant_id="works") as stream:
            stream.run.start(input={"log": ["in"]})
            assert stream.output == {"log": ["in", "worked"]}
        with client.threads.stream(assistant_id="talks") as stream:
            stream.run.start(input={"messages": "hi"})
            assert ["".join(message.text) for message in stream.messages] == ["one two"]
