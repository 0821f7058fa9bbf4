"""Details of the wire contract: what states name, what `durability: exit` leaves, values of any JSON, times, sizes."""

from datetime import datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.wire.sse import frames


def wait(http: httpx.Client, thread: str, graph: str, **body: Any) -> Any:
    answer = http.post(f"/threads/{thread}/runs/wait", json={"assistant_id": graph, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def history(http: httpx.Client, thread: str) -> Any:
    return http.post(f"/threads/{thread}/history", json={"limit": 100}).json()


def test_the_checkpoints_of_a_run_name_their_thread_and_the_versions(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "line", input={"log": []}, metadata={"mine": 1})
    copy = http.post(f"/threads/{thread}/copy").json()["thread_id"]
    for one in (thread, copy):
        for found in history(http, one):
            metadata = found["metadata"]
            assert (metadata["thread_id"], metadata["mine"], metadata["run_attempt"]) == (one, 1, 1)
            assert metadata["langgraph_version"]
    http.post(f"/threads/{thread}/state", json={"values": {"topic": "by hand"}})
    assert "thread_id" not in history(http, thread)[0]["metadata"]


# durability


def test_exit_leaves_one_checkpoint_for_each_run(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "line", input={"log": []}, durability="exit")
    [first] = history(http, thread)
    assert (first["values"], first["parent_checkpoint"]) == ({"log": ["a", "b", "c"]}, None)
    wait(http, thread, "line", input={"log": ["more"]}, checkpoint_during=False)
    second, kept = history(http, thread)
    assert kept == first
    assert second["parent_checkpoint_id"] == first["checkpoint_id"]
    wait(http, thread, "line", input={"log": []}, durability="async")
    assert len(history(http, thread)) == 2 + 5


def test_exit_keeps_what_a_question_needs(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "nested", input={"topic": "tea"}, durability="exit")
    assert len(history(http, thread)) == 1
    [task] = http.get(f"/threads/{thread}/state?subgraphs=true").json()["tasks"]
    assert task["state"]["values"] == {"topic": "tea!"}
    done = wait(http, thread, "nested", command={"resume": "yes"}, durability="exit")
    assert (done["topic"], done["answer"], done["log"]) == ("tea!", "yes", ["last"])


def test_exit_keeps_what_mends_a_failure(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "fails", input={"log": []}, durability="exit")
    [failed] = history(http, thread)
    assert failed["next"] == ["boom"]
    assert "boom happened" in failed["tasks"][0]["error"]
    http.post(f"/threads/{thread}/state", json={"values": {"topic": "mended"}})
    assert wait(http, thread, "fails", input=None)["log"] == ["good", "boom"]


def test_the_stream_of_an_exit_run_is_replayed_whole(http: httpx.Client, thread: str) -> None:
    body = {"assistant_id": "line", "input": {"log": ["x" * 5000]}, "durability": "exit", "stream_resumable": True}
    live = http.post(f"/threads/{thread}/runs/stream", json=body)
    again = http.get(live.headers["location"], headers={"Last-Event-ID": "-1"})
    found = list(frames(again.text.splitlines()))
    assert found == list(frames(live.text.splitlines()))
    assert [len(frame.data["log"]) for frame in found if frame.event == "values"] == [1, 2, 3, 4]


# Search by values


def test_threads_are_found_by_values_of_any_json(http: httpx.Client) -> None:
    mark = {"mark": str(uuid4())}
    listed, spoken = (http.post("/threads", json={"metadata": mark}).json()["thread_id"] for _ in range(2))
    wait(http, listed, "line", input={"log": ["in"], "topic": "tea"})
    wait(http, spoken, "chat", input={"messages": [{"role": "user", "content": "hello"}]})

    def found(values: Any, **body: Any) -> list[str]:
        answer = http.post("/threads/search", json={"metadata": mark, "values": values, **body})
        assert answer.status_code == 200, answer.text
        count = http.post("/threads/count", json={"metadata": mark, "values": values}).json()
        assert int(answer.headers["x-pagination-total"]) == count
        return [row["thread_id"] for row in answer.json()]

    assert found({"log": ["in", "a", "b", "c"]}) == [listed]
    assert found({"log": ["c"], "topic": "tea"}) == [listed]
    assert found({"log": ["c"], "topic": "coffee"}) == []
    assert found({"log": ["d"]}) == []
    assert found({"messages": [{"type": "human", "content": "hello"}]}) == [spoken]
    assert found({"log": []}, limit=1, offset=1) == []


# Times and sizes


def test_a_time_to_live_is_told_with_microseconds(http: httpx.Client) -> None:
    for minutes in (5, 0.5, 7.25):
        thread = http.post("/threads", json={"ttl": {"ttl": minutes}}).json()["thread_id"]
        shown = http.get(f"/threads/{thread}?include=ttl").json()
        assert (shown["ttl"]["ttl_minutes"], shown["ttl"]["strategy"]) == (minutes, "delete")
        assert len(shown["ttl"]["expires_at"]) == len("2030-01-31T12:00:00.000000+00:00")
        left = datetime.fromisoformat(shown["ttl"]["expires_at"]) - datetime.fromisoformat(shown["updated_at"])
        assert left.total_seconds() == minutes * 60


def test_a_thread_tells_how_many_bytes_it_takes(http: httpx.Client, thread: str) -> None:
    empty = http.get(f"/threads/{thread}/storage").json()
    assert (empty["thread_id"], empty["total"]) == (thread, 0)
    wait(http, thread, "line", input={"log": ["x" * 100]})
    sizes = http.get(f"/threads/{thread}/storage").json()
    assert sizes["checkpoints"] > 100
    assert sizes["events"] > 0
    assert sizes["total"] == sum(size for name, size in sizes.items() if name not in ("thread_id", "total"))
    assert http.get(f"/threads/{uuid4()}/storage").status_code == 404


@pytest.mark.parametrize("update", [5, "text", True])
def test_an_update_that_is_no_object_is_malformed(http: httpx.Client, thread: str, update: Any) -> None:
    refused = http.post(f"/threads/{thread}/runs", json={"assistant_id": "router", "command": {"update": update}})
    assert refused.status_code == 422
    assert "command.update" in refused.json()["detail"]


def test_a_run_of_another_graph_answers_in_its_own_values(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "line", input={"log": []})
    assert wait(http, thread, "fan", input={"n": 3})["total"] == 5
    assert http.get(f"/threads/{thread}").json()["values"] == {"log": ["a", "b", "c"]}


def test_every_field_of_a_thread_can_be_selected_before_its_first_run(http: httpx.Client, thread: str) -> None:
    fields = ["thread_id", "created_at", "updated_at", "state_updated_at", "metadata", "config", "status", "interrupts"]
    [found] = http.post("/threads/search", json={"ids": [thread], "select": [*fields, "values"]}).json()
    assert set(found) == {*fields, "values"}
    assert (found["interrupts"], found["values"], found["status"]) == ({}, None, "idle")
