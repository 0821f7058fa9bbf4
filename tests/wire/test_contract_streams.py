"""The wire contract of streams: modes, order, joining again, the event protocol; and of store, crons and system."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from websockets.sync.client import connect

from tests.wire.conftest import WAIT_SECONDS
from tests.wire.sse import Frame, frames

SAID = {"messages": [{"role": "user", "content": "hi"}]}


def stream(http: httpx.Client, thread: str, graph: str, **body: Any) -> list[Frame]:
    answer = http.post(f"/threads/{thread}/runs/stream", json={"assistant_id": graph, **body})
    assert answer.status_code == 200, answer.text
    return list(frames(answer.text.splitlines()))


def follow(http: httpx.Client, path: str, body: Any, is_last: Callable[[Frame], bool]) -> list[Frame]:
    """Read an open stream up to and with a frame."""
    found: list[Frame] = []
    with http.stream("POST" if body else "GET", path, json=body) as answer:
        assert answer.status_code == 200
        for frame in frames(answer.iter_lines()):
            found.append(frame)
            if is_last(frame):
                return found
    raise AssertionError(f"the stream ended after {found}")


def command(http: httpx.Client, thread: str, method: str, **params: Any) -> Any:
    answer = http.post(f"/threads/{thread}/commands", json={"id": 1, "method": method, "params": params})
    assert answer.status_code == 200
    return answer.json()


def ended(frame: Frame) -> bool:
    said = frame.data["params"]
    return frame.event == "lifecycle" and not said["namespace"] and said["data"]["event"] != "running"


# Modes


def test_values_are_the_default_and_the_run_comes_first(http: httpx.Client, thread: str) -> None:
    answer = http.post(f"/threads/{thread}/runs/stream", json={"assistant_id": "line", "input": {"log": []}})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["location"] == answer.headers["content-location"] + "/stream"
    events = list(frames(answer.text.splitlines()))
    assert [frame.event for frame in events] == ["metadata"] + ["values"] * 4
    assert events[0].data == {"run_id": answer.headers["content-location"].rpartition("/")[2], "attempt": 1}
    assert events[-1].data == {"log": ["a", "b", "c"]}
    assert {frame.id for frame in events} == {None}


def test_updates_name_the_node_and_show_questions(http: httpx.Client, thread: str) -> None:
    events = stream(http, thread, "asks", input={"log": []}, stream_mode="updates")
    assert events[1].data == {"before": {"log": ["before"]}}
    assert events[2].data["__interrupt__"][0]["value"] == {"question": "really?"}


def test_messages_by_chunk_and_as_grown_so_far(http: httpx.Client, thread: str) -> None:
    events = stream(http, thread, "chat", input=SAID, stream_mode=["messages-tuple", "messages"])
    chunks = [frame.data for frame in events if frame.event == "messages"]
    assert "".join(chunk["content"] for chunk, _ in chunks) == "You said hi: w0 w1 w2"
    assert {chunk["type"] for chunk, _ in chunks} == {"AIMessageChunk"}
    assert {"run_id", "thread_id", "langgraph_step", "langgraph_node"} <= set(chunks[0][1])
    grown = [frame.data[0]["content"] for frame in events if frame.event == "messages/partial"]
    assert grown == sorted(grown, key=len)
    assert grown[-1] == "You said hi: w0 w1 w2"
    assert [frame for frame in events if frame.event == "messages/metadata"]


def test_custom_data_and_namespaces_of_subgraphs(http: httpx.Client, thread: str) -> None:
    body: Any = {"input": {"topic": "tea"}, "stream_mode": ["custom", "values"]}
    events = stream(http, thread, "nested", **body, stream_subgraphs=True)
    [custom] = [frame for frame in events if frame.event.startswith("custom|child:")]
    assert custom.data == {"drafting": "tea"}
    assert any(frame.event.startswith("values|child:") for frame in events)
    assert events[-1].data["__interrupt__"][0]["value"] == {"confirm": "tea!"}
    plain = stream(http, thread, "nested", **body)
    assert {frame.event for frame in plain} == {"metadata", "values"}


def test_tasks_checkpoints_and_debug(http: httpx.Client, thread: str) -> None:
    modes = ["tasks", "checkpoints", "debug"]
    events = stream(http, thread, "line", input={"log": []}, stream_mode=modes)
    tasks = [frame.data for frame in events if frame.event == "tasks"]
    assert [task["name"] for task in tasks] == ["a", "a", "b", "b", "c", "c"]
    assert "triggers" in tasks[0]
    assert tasks[1]["result"] in ({"log": ["a"]}, [["log", ["a"]]])
    points = [frame.data for frame in events if frame.event == "checkpoints"]
    assert [point["next"] for point in points] == [["__start__"], ["a"], ["b"], ["c"], []]
    kinds = [frame.data["type"] for frame in events if frame.event == "debug"]
    assert set(kinds) == {"checkpoint", "task", "task_result"}


def test_an_error_is_the_last_frame(http: httpx.Client, thread: str) -> None:
    last = stream(http, thread, "fails", input={"log": []})[-1]
    assert (last.event, last.data) == ("error", {"error": "ValueError", "message": "boom happened"})
    assert http.get(f"/threads/{thread}/runs").json()[0]["status"] == "error"


@pytest.mark.parametrize(("path", "heartbeat"), [("stream", "\n: heartbeat"), ("wait", "\n")])
def test_silence_is_filled_with_heartbeats(
    http: httpx.Client, thread: str, hold: Path, path: str, heartbeat: str
) -> None:
    body = {"assistant_id": "slow", "input": {"hold": str(hold)}}
    with http.stream("POST", f"/threads/{thread}/runs/{path}", json=body) as answer:
        chunks = answer.iter_text()
        text = ""
        while heartbeat not in text:
            text += next(chunks)
        assert "waited" not in text
        hold.unlink()
        assert "waited" in "".join(chunks)


# Coming back


def test_a_resumable_stream_is_read_again_from_any_frame(http: httpx.Client, thread: str) -> None:
    events = stream(http, thread, "line", input={"log": []}, stream_mode=["updates"], stream_resumable=True)
    run = events[0].data["run_id"]
    assert all(frame.id for frame in events)
    for n, last in ((0, "-1"), (1, events[0].id), (3, events[2].id), (4, events[3].id)):
        again = http.get(f"/threads/{thread}/runs/{run}/stream", headers={"Last-Event-ID": str(last)})
        assert list(frames(again.text.splitlines())) == events[n:]


def test_joining_filters_and_an_ended_run_closes(http: httpx.Client, thread: str, hold: Path) -> None:
    body = {"assistant_id": "slow", "input": {"hold": str(hold)}, "stream_mode": ["values", "updates"]}
    run = http.post(f"/threads/{thread}/runs", json=body).json()["run_id"]
    lines: list[str] = []
    with http.stream("GET", f"/threads/{thread}/runs/{run}/stream?stream_mode=updates") as joined:
        for line in joined.iter_lines():
            lines.append(line)
            if line == ": heartbeat":  # it has been joined
                hold.unlink(missing_ok=True)
    assert {frame.event for frame in frames(lines)} == {"updates"}
    assert http.get(f"/threads/{thread}/runs/{run}/stream").status_code == 200
    assert http.get(f"/threads/{thread}/runs/{uuid4()}/stream").status_code == 404


def test_a_reader_that_leaves_cancels_only_if_it_said_so(http: httpx.Client, thread: str) -> None:
    body = {"assistant_id": "slow", "input": {"seconds": 60}, "on_disconnect": "cancel"}
    with http.stream("POST", f"/threads/{thread}/runs/stream", json=body) as answer:
        run = answer.headers["content-location"]
        next(answer.iter_lines())
    joined = http.get(f"{run}/join")
    assert joined.status_code == 200
    assert http.get(run).json()["status"] == "interrupted"


def test_the_stream_of_a_thread_has_all_its_runs(http: httpx.Client, thread: str) -> None:
    for _ in range(2):
        stream(http, thread, "line", input={"log": []}, stream_mode="updates", stream_resumable=True)
    done: list[Frame] = []
    with http.stream("GET", f"/threads/{thread}/stream", headers={"Last-Event-ID": "0"}) as answer:
        for frame in frames(answer.iter_lines()):
            done.append(frame)
            if [f.data.get("status") for f in done].count("run_done") == 2:
                break
    assert [f.event for f in done] == (["metadata"] + ["updates"] * 3 + ["metadata"]) * 2
    assert all(frame.id for frame in done)
    assert http.get(f"/threads/{thread}/stream", headers={"Last-Event-ID": "nothing"}).status_code == 422


# The event protocol


def test_commands_and_events_over_http(http: httpx.Client) -> None:
    thread = str(uuid4())
    started = command(http, thread, "run.start", assistant_id="asks", input={"log": []})
    assert started["type"] == "success"
    assert started["result"]["run_id"]
    channels = {"channels": ["values", "updates", "lifecycle", "input"]}
    events = follow(http, f"/threads/{thread}/stream/events", channels, ended)
    numbers = [frame.data["seq"] for frame in events]
    assert numbers == sorted(set(numbers))
    assert [frame.id for frame in events] == [str(seq) for seq in numbers]
    assert len({frame.data["event_id"] for frame in events}) == len(events)
    [asked] = [frame.data["params"]["data"] for frame in events if frame.event == "input.requested"]
    assert asked["payload"] == asked["value"] == {"question": "really?"}
    assert events[-1].data["params"]["data"]["event"] == "interrupted"

    answer = {"namespace": [], "interrupt_id": asked["interrupt_id"], "response": "yes"}
    assert command(http, thread, "input.respond", **answer)["type"] == "success"
    since = {**channels, "since": numbers[-1]}
    more = follow(http, f"/threads/{thread}/stream/events", since, ended)
    assert more[0].data["seq"] > numbers[-1]
    assert more[-1].data["params"]["data"]["event"] == "completed"
    assert command(http, thread, "input.respond", **answer)["error"] == "no_such_interrupt"
    again = follow(http, f"/threads/{thread}/stream/events", channels, ended)
    assert [frame.data for frame in again] == [frame.data for frame in events]


def test_messages_come_as_content_blocks(http: httpx.Client) -> None:
    thread = str(uuid4())
    command(http, thread, "run.start", assistant_id="chat", input=SAID)
    events = follow(http, f"/threads/{thread}/stream/events", {"channels": ["messages", "lifecycle"]}, ended)
    said = [frame.data["params"]["data"] for frame in events if frame.event == "messages"]
    kinds = [part["event"] for part in said]
    assert kinds[0] == "message-start"
    assert kinds[-1] == "message-finish"
    text = "".join(part["delta"]["text"] for part in said if part["event"] == "content-block-delta")
    assert text == "You said hi: w0 w1 w2"


def test_commands_that_cannot_be_done_say_why(http: httpx.Client, thread: str) -> None:
    assert command(http, thread, "nothing.known")["error"] == "unknown_command"
    assert command(http, thread, "run.start", input={})["error"] == "invalid_argument"
    assert command(http, thread, "run.start", assistant_id="nothing")["type"] == "error"
    assert http.post(f"/threads/{thread}/commands", json={"id": "x"}).status_code == 400
    for channels in ([], ["nothing"], None):
        refused = http.post(f"/threads/{thread}/stream/events", json={"channels": channels})
        assert refused.status_code == 400


def test_a_failure_reaches_the_lifecycle_also_over_websocket(http: httpx.Client, wire: str) -> None:
    thread, address = str(uuid4()), urlsplit(wire).netloc
    with connect(f"ws://{address}/threads/{thread}/stream/events") as socket:
        socket.send(json.dumps({"id": 1, "method": "subscription.subscribe", "params": {"channels": ["lifecycle"]}}))
        start = {"assistant_id": "fails", "input": {"log": []}}
        socket.send(json.dumps({"id": 2, "method": "run.start", "params": start}))
        got: list[Any] = []
        while not got or got[-1].get("params", {}).get("data", {}).get("event") != "failed":
            got.append(json.loads(socket.recv(timeout=WAIT_SECONDS)))
        assert [part["id"] for part in got if part["type"] == "success"] == [1, 2]
        assert "boom happened" in got[-1]["params"]["data"]["error"]
        socket.send("no json")
        assert json.loads(socket.recv(timeout=WAIT_SECONDS))["id"] is None


def test_subscriptions_that_come_together_see_the_past_in_order(http: httpx.Client, wire: str) -> None:
    """As a client's do that comes back: else it sees the end of a run before what led to it, and stops reading."""
    thread = str(uuid4())
    command(http, thread, "run.start", assistant_id="chat", input=SAID)
    follow(http, f"/threads/{thread}/stream/events", {"channels": ["lifecycle"]}, ended)
    with connect(f"ws://{urlsplit(wire).netloc}/threads/{thread}/stream/events") as socket:
        for ident, channels in enumerate((["lifecycle", "input"], ["messages", "values", "lifecycle"])):
            filters = {"channels": channels}
            socket.send(json.dumps({"id": ident, "method": "subscription.subscribe", "params": filters}))
        answers = [json.loads(socket.recv(timeout=WAIT_SECONDS)) for _ in range(2)]
        assert [answer["type"] for answer in answers] == ["success"] * 2
        got: list[Any] = []
        while not got or got[-1]["params"]["data"].get("event") != "completed":
            got.append(json.loads(socket.recv(timeout=WAIT_SECONDS)))
    assert {event["method"] for event in got} == {"lifecycle", "messages", "values"}
    numbers = [event["seq"] for event in got]
    assert numbers == sorted(set(numbers))


# Store, crons, system


def test_items_of_the_store(http: httpx.Client) -> None:
    namespace = ["contract", uuid4().hex]
    for key, value in (("a", {"n": 1}), ("b", {"n": 2}), ("c", {"other": 1})):
        put = http.put("/store/items", json={"namespace": namespace, "key": key, "value": value})
        assert (put.status_code, put.content) == (204, b"")
    dotted = ".".join(namespace)
    assert http.get("/store/items", params={"namespace": dotted, "key": "a"}).json()["value"] == {"n": 1}
    assert http.get("/store/items", params={"namespace": dotted, "key": "z"}).json() is None
    search: Any = {"namespace_prefix": namespace, "filter": {"n": {"$gt": 1}}}
    assert [item["key"] for item in http.post("/store/items/search", json=search).json()["items"]] == ["b"]
    listed = http.post("/store/namespaces", json={"prefix": ["contract", "*"], "max_depth": 1}).json()
    assert listed["namespaces"] == [["contract"]]
    gone = {"namespace": namespace, "key": "a"}
    assert [http.request("DELETE", "/store/items", json=gone).status_code for _ in range(2)] == [204, 204]
    for ttl, code in ((0, 204), (1e-45, 204), (1e-7, 204), (0.5, 204), (-1, 422), (1e300, 422)):
        short = http.put("/store/items", json={"namespace": namespace, "key": "t", "value": {}, "ttl": ttl})
        assert short.status_code == code, ttl
    for bad, code in (([], 400), (["langgraph"], 400), (["a.b"], 422), ([""], 422)):
        refused = http.put("/store/items", json={"namespace": bad, "key": "k", "value": {}})
        assert refused.status_code == code, bad


def test_crons_of_assistants_and_threads(http: httpx.Client, thread: str) -> None:
    body = {"assistant_id": "line", "schedule": "30 9 * * 1-5", "timezone": "Europe/Berlin", "metadata": {"c": thread}}
    cron = http.post("/runs/crons", json={**body, "input": {"log": []}}).json()
    assert (cron["schedule"], cron["on_run_completed"], cron["enabled"]) == ("30 9 * * 1-5", "delete", True)
    assert cron["next_run_date"].endswith("+00:00")
    of_thread = http.post(f"/threads/{thread}/runs/crons", json=body).json()
    assert (of_thread["thread_id"], of_thread["on_run_completed"]) == (thread, None)
    found = http.post("/runs/crons/search", json={"metadata": {"c": thread}})
    assert {row["cron_id"] for row in found.json()} == {cron["cron_id"], of_thread["cron_id"]}
    assert found.headers["x-pagination-total"] == "2"
    assert http.post("/runs/crons/count", json={"thread_id": thread}).json() == 1
    path = f"/runs/crons/{cron['cron_id']}"
    changed = http.patch(path, json={"schedule": "0 0 1 1 *"}).json()
    assert changed["next_run_date"] != cron["next_run_date"]
    assert [http.delete(path).status_code, http.delete(path).status_code] == [204, 404]
    assert http.post("/runs/crons", json={**body, "schedule": "every day"}).status_code == 422
    assert http.post("/runs/crons", json={**body, "timezone": "Mars/Base"}).status_code == 422
    assert http.post(f"/threads/{uuid4()}/runs/crons", json=body).status_code == 404


def test_the_server_describes_itself(http: httpx.Client) -> None:
    assert http.get("/ok").json() == {"ok": True, "services": {}}
    assert http.head("/ok").status_code == 200
    assert http.get("/ok?check_db=1").status_code == 200
    info = http.get("/info").json()
    assert info["flags"]["crons"] is True
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/threads/{thread_id}/runs/stream", "/assistants/search", "/store/items"} <= set(paths)
    assert "html" in http.get("/docs").headers["content-type"]


@pytest.mark.parametrize("body", [b"", b"no json", b"[1,", b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}'])
def test_what_is_not_json_is_422(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/threads", content=body)
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], str)


def test_a_wrong_path_or_method_says_so(http: httpx.Client) -> None:
    unknown = http.get("/nothing/here")
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "Not Found"})
    assert http.put("/threads").status_code == 405


def test_a_debug_checkpoint_has_its_address_in_short(http: httpx.Client, thread: str) -> None:
    events = stream(http, thread, "nested", input={"topic": "tea"}, stream_mode="debug", stream_subgraphs=True)
    points = [frame.data["payload"] for frame in events[1:] if frame.data["type"] == "checkpoint"]
    outer = [one for one in points if not one["checkpoint"]["checkpoint_ns"]]
    inner = [one for one in points if one["checkpoint"]["checkpoint_ns"]]
    ident = outer[0]["config"]["configurable"]["checkpoint_id"]
    assert outer[0]["checkpoint"] == {"checkpoint_id": ident, "thread_id": thread, "checkpoint_ns": ""}
    assert outer[0]["parent_checkpoint"] is None
    assert outer[1]["parent_checkpoint"] == outer[0]["checkpoint"]
    assert inner[0]["checkpoint"]["checkpoint_map"][""] == outer[1]["checkpoint"]["checkpoint_id"]
    assert inner[1]["parent_checkpoint"] == inner[0]["checkpoint"]


def test_the_end_of_a_superseded_run_names_its_graph(http: httpx.Client, thread: str) -> None:
    path, body = f"/threads/{thread}/stream/events", {"channels": ["lifecycle"]}
    command(http, thread, "run.start", assistant_id="slow", input={"seconds": WAIT_SECONDS})
    follow(http, path, body, lambda frame: True)
    command(http, thread, "run.start", assistant_id="line", input={"log": []}, multitask_strategy="interrupt")
    told = follow(http, path, body, lambda frame: frame.data["params"]["data"]["event"] == "completed")
    assert [frame.data["params"]["data"] for frame in told] == [
        {"event": "running", "graph_name": "slow"},
        {"event": "interrupted", "graph_name": "slow"},
        {"event": "running", "graph_name": "line"},
        {"event": "completed", "graph_name": "line"},
    ]


def test_the_stream_of_a_thread_begins_at_an_id_or_at_the_beginning(http: httpx.Client, thread: str) -> None:
    shown = stream(http, thread, "line", input={"log": []}, stream_resumable=True)
    for start, skipped in (("0", 0), ("0-0", 0), ("-", 0), (shown[1].id or "", 2)):
        with http.stream("GET", f"/threads/{thread}/stream", headers={"Last-Event-ID": start}) as answer:
            replayed = frames(answer.iter_lines())
            assert [next(replayed).data for _ in shown[skipped:]] == [frame.data for frame in shown[skipped:]]
    for start in ("-1", "now", "12"):
        assert http.get(f"/threads/{thread}/stream", headers={"Last-Event-ID": start}).status_code == 422
