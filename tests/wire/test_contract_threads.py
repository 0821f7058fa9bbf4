"""The wire contract of assistants, threads and their states, call by call."""

from typing import Any
from uuid import UUID, uuid4, uuid5

import httpx
import pytest

NAMESPACE = UUID("6ba7b821-9dad-11d1-80b4-00c04fd430c8")
UNKNOWN = "01900000-0000-7000-8000-000000000000"


def run(http: httpx.Client, thread: str, graph: str, **body: Any) -> Any:
    answer = http.post(f"/threads/{thread}/runs/wait", json={"assistant_id": graph, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


# Assistants


def test_each_graph_has_an_assistant_whose_id_clients_can_compute(http: httpx.Client) -> None:
    known = str(uuid5(NAMESPACE, "line"))
    found = http.get(f"/assistants/{known}").json()
    assert (found["graph_id"], found["name"], found["version"]) == ("line", "line", 1)
    assert found["metadata"]["created_by"] == "system"
    assert (found["config"], found["context"]) == ({}, {})
    assert http.get("/assistants/line").json() == found


def test_an_assistant_is_created_once(http: httpx.Client) -> None:
    body = {"graph_id": "line", "assistant_id": str(uuid4()), "metadata": {"a": 1}, "name": "Mine"}
    made = http.post("/assistants", json=body)
    assert made.status_code == 200
    assert http.post("/assistants", json=body).status_code == 409
    again = http.post("/assistants", json={**body, "name": "Other", "if_exists": "do_nothing"})
    assert again.json() == made.json()
    assert http.delete(f"/assistants/{body['assistant_id']}").status_code == 204
    assert http.get(f"/assistants/{body['assistant_id']}").status_code == 404


def test_an_assistant_of_an_unknown_graph_names_the_known_ones(http: httpx.Client) -> None:
    answer = http.post("/assistants", json={"graph_id": "nothing"})
    assert answer.status_code == 404
    assert "line" in answer.json()["detail"]


def test_config_and_context_mirror_each_other_and_are_not_given_both(http: httpx.Client) -> None:
    by_context = http.post("/assistants", json={"graph_id": "tone", "context": {"tone": "dry"}}).json()
    assert by_context["config"]["configurable"] == {"tone": "dry"}
    by_config = http.post("/assistants", json={"graph_id": "tone", "config": {"configurable": {"tone": "x"}}}).json()
    assert by_config["context"] == {"tone": "x"}
    both = {"graph_id": "tone", "context": {"tone": "a"}, "config": {"configurable": {"tone": "b"}}}
    assert http.post("/assistants", json=both).status_code == 400


def test_each_patch_is_a_version_and_an_older_one_comes_back_whole(http: httpx.Client) -> None:
    made = http.post("/assistants", json={"graph_id": "line", "metadata": {"a": 1}, "name": "One"}).json()
    path = f"/assistants/{made['assistant_id']}"
    second = http.patch(path, json={"graph_id": "tone", "metadata": {"b": 2}, "name": "Two"}).json()
    assert (second["version"], second["metadata"]) == (2, {"a": 1, "b": 2})
    assert http.patch(path, json={}).json()["version"] == 3
    rows = http.post(f"{path}/versions", json={}).json()
    assert [row["version"] for row in rows] == [3, 2, 1]
    assert "updated_at" not in rows[0]
    first = http.post(f"{path}/latest", json={"version": 1}).json()
    assert [first[name] for name in ("version", "graph_id", "name", "metadata")] == [1, "line", "One", {"a": 1}]
    assert http.patch(path, json={}).json()["version"] == 4
    assert http.post(f"{path}/latest", json={"version": 99}).status_code == 404


def test_search_pages_selects_sorts_and_counts(http: httpx.Client) -> None:
    mark = {"mark": str(uuid4())}
    for name in ("Alpha", "Beta", "alphabet"):
        http.post("/assistants", json={"graph_id": "line", "name": name, "metadata": mark})
    body = {"metadata": mark, "sort_by": "name", "sort_order": "asc", "limit": 2, "select": ["name"]}
    first = http.post("/assistants/search", json=body)
    assert (first.headers["x-pagination-next"], first.headers["x-pagination-total"]) == ("2", "3")
    assert all(set(row) == {"name"} for row in first.json())
    last = http.post("/assistants/search", json={**body, "offset": 2})
    assert "x-pagination-next" not in last.headers
    assert len(last.json()) == 1
    assert http.post("/assistants/count", json={"metadata": mark}).json() == 3
    named = http.post("/assistants/search", json={"metadata": mark, "name": "ALPHA"}).json()
    assert {row["name"] for row in named} == {"Alpha", "alphabet"}
    for wrong in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"select": ["nothing"]}, {"sort_by": "nothing"}):
        assert http.post("/assistants/search", json=wrong).status_code == 422
    assert http.post("/assistants/search", json={"graph_id": "nothing"}).status_code == 404


def test_schemas_and_drawings(http: httpx.Client) -> None:
    schemas = http.get("/assistants/tone/schemas").json()
    assert schemas["graph_id"] == "tone"
    assert "tone" in schemas["context_schema"]["properties"]
    assert "text" in schemas["input_schema"]["properties"]
    assert http.get("/assistants/line/schemas").json()["context_schema"] is None
    flat = http.get("/assistants/nested/graph").json()
    assert {node["id"] for node in flat["nodes"]} == {"__start__", "child", "last", "__end__"}
    assert {"source": "child", "target": "last"} in flat["edges"]
    assert http.get("/assistants/nested/graph?xray=many").status_code == 422
    assert list(http.get("/assistants/nested/subgraphs").json()) == ["child"]
    assert http.get("/assistants/nested/subgraphs/nothing").json() == {}


# Threads


def test_a_new_thread(http: httpx.Client) -> None:
    made = http.post("/threads", json={"metadata": {"a": {"b": 1}}}).json()
    assert UUID(made["thread_id"])
    assert (made["status"], made["values"], made["metadata"]) == ("idle", None, {"a": {"b": 1}})
    assert made["created_at"].endswith("+00:00")
    given = {"thread_id": made["thread_id"], "metadata": {"other": 1}}
    assert http.post("/threads", json=given).status_code == 409
    assert http.post("/threads", json={**given, "if_exists": "do_nothing"}).json()["metadata"] == {"a": {"b": 1}}


def test_patch_merges_and_can_answer_with_nothing(http: httpx.Client, thread: str) -> None:
    http.patch(f"/threads/{thread}", json={"metadata": {"a": 1, "b": {"c": 1}}})
    merged = http.patch(f"/threads/{thread}", json={"metadata": {"b": {"d": 2}}}).json()
    assert merged["metadata"] == {"a": 1, "b": {"d": 2}}
    minimal = http.patch(f"/threads/{thread}", json={"metadata": {"e": 1}}, headers={"Prefer": "return=minimal"})
    assert (minimal.status_code, minimal.content) == (204, b"")


def test_threads_are_found_by_metadata_status_and_values(http: httpx.Client) -> None:
    mark = {"mark": {"of": str(uuid4())}}
    idle, asking = (http.post("/threads", json={"metadata": {**mark, "x": 1}}).json()["thread_id"] for _ in range(2))
    run(http, asking, "asks", input={"topic": "tea"})
    search = {"metadata": mark}
    assert [row["thread_id"] for row in http.post("/threads/search", json=search).json()] == [asking, idle]
    found = http.post("/threads/search", json={**search, "status": "interrupted"}).json()
    assert [row["thread_id"] for row in found] == [asking]
    by_values = http.post("/threads/search", json={**search, "values": {"topic": "tea"}}).json()
    assert [row["thread_id"] for row in by_values] == [asking]
    body = {**search, "select": ["thread_id"], "extract": {"topic": "values.topic", "mark": "metadata.mark.of"}}
    [first, _] = http.post("/threads/search", json=body).json()
    assert first["extracted"] == {"topic": "tea", "mark": mark["mark"]["of"]}
    assert http.post("/threads/search", json={"ids": [idle]}).json()[0]["thread_id"] == idle
    assert http.post("/threads/count", json=search).json() == 2
    assert http.post("/threads/search", json={"status": "nothing"}).status_code == 422


def test_the_first_run_says_whose_thread_it_is(http: httpx.Client, thread: str) -> None:
    run(http, thread, "line", input={"log": ["in"]})
    after = http.get(f"/threads/{thread}").json()
    assert after["metadata"]["graph_id"] == "line"
    assert after["metadata"]["assistant_id"] == str(uuid5(NAMESPACE, "line"))
    assert after["values"] == {"log": ["in", "a", "b", "c"]}
    assert (after["status"], after["interrupts"], after["error"]) == ("idle", {}, None)


def test_a_deleted_thread_is_gone_everywhere(http: httpx.Client, thread: str) -> None:
    run(http, thread, "line", input={"log": []})
    assert http.delete(f"/threads/{thread}").status_code == 204
    for path in ("", "/state", "/history", "/runs", "/stream", f"/runs/{UNKNOWN}", f"/state/{UNKNOWN}"):
        answer = http.get(f"/threads/{thread}{path}")
        assert answer.status_code == 404, path
        assert isinstance(answer.json()["detail"], str)
    assert http.delete(f"/threads/{thread}").status_code == 404


def test_a_copy_has_the_past_and_a_future_of_its_own(http: httpx.Client, thread: str) -> None:
    run(http, thread, "line", input={"log": []})
    copy = http.post(f"/threads/{thread}/copy").json()["thread_id"]
    ids = [
        [state["checkpoint"]["checkpoint_id"] for state in http.post(f"/threads/{t}/history", json={"limit": 9}).json()]
        for t in (thread, copy)
    ]
    assert ids[0] == ids[1]
    run(http, copy, "line", input={"log": ["more"]})
    assert http.get(f"/threads/{thread}").json()["values"]["log"] == ["a", "b", "c"]
    assert http.post(f"/threads/{UNKNOWN}/copy").status_code == 404


def test_prune_deletes_or_keeps_the_last_state(http: httpx.Client) -> None:
    gone, kept = (http.post("/threads", json={}).json()["thread_id"] for _ in range(2))
    run(http, kept, "line", input={"log": []})
    assert http.post("/threads/prune", json={"thread_ids": [gone, UNKNOWN]}).json() == {"pruned_count": 1}
    assert http.get(f"/threads/{gone}").status_code == 404
    http.post("/threads/prune", json={"thread_ids": [kept], "strategy": "keep_latest"})
    assert len(http.post(f"/threads/{kept}/history", json={"limit": 9}).json()) == 1
    assert http.get(f"/threads/{kept}").json()["values"] == {"log": ["a", "b", "c"]}


# States


def test_the_state_of_a_thread_without_runs_is_empty(http: httpx.Client, thread: str) -> None:
    state = http.get(f"/threads/{thread}/state").json()
    assert (state["values"], state["next"], state["tasks"]) == ({}, [], [])
    assert state["checkpoint"] is None
    assert http.get(f"/threads/{thread}/history").json() == []


def test_history_has_a_state_per_step_newest_first(http: httpx.Client, thread: str) -> None:
    run(http, thread, "line", input={"log": []})
    history = http.post(f"/threads/{thread}/history", json={"limit": 10}).json()
    assert [state["metadata"]["step"] for state in history] == [3, 2, 1, 0, -1]
    assert [state["metadata"]["source"] for state in history] == ["loop"] * 4 + ["input"]
    assert history[2]["tasks"][0]["result"] == {"log": ["b"]}
    assert history[2]["parent_checkpoint"] == history[3]["checkpoint"]
    for state in history:
        assert state["checkpoint_id"] == state["checkpoint"]["checkpoint_id"]
        assert state["metadata"]["graph_id"] == "line"
    assert len(http.post(f"/threads/{thread}/history", json={}).json()) == 1
    [third] = http.post(f"/threads/{thread}/history", json={"limit": 9, "metadata": {"step": 1}}).json()
    assert third == history[2]


def test_history_before_a_state_in_each_form(http: httpx.Client, thread: str) -> None:
    run(http, thread, "line", input={"log": []})
    history = http.post(f"/threads/{thread}/history", json={"limit": 10}).json()
    at: str = history[1]["checkpoint_id"]
    for before in (at, {"configurable": {"checkpoint_id": at}}, history[1]["checkpoint"]):
        found = http.post(f"/threads/{thread}/history", json={"limit": 10, "before": before}).json()
        assert found == history[2:]


def test_one_state_by_its_checkpoint(http: httpx.Client, thread: str) -> None:
    run(http, thread, "line", input={"log": []})
    history = http.post(f"/threads/{thread}/history", json={"limit": 10}).json()
    at = history[2]
    assert http.get(f"/threads/{thread}/state/{at['checkpoint_id']}").json()["values"] == at["values"]
    posted = http.post(f"/threads/{thread}/state/checkpoint", json={"checkpoint": at["checkpoint"]}).json()
    assert posted["next"] == ["b"]
    unknown = http.get(f"/threads/{thread}/state/{UNKNOWN}").json()
    assert unknown["values"] == {}
    assert unknown["checkpoint"]["checkpoint_id"] == UNKNOWN


def test_a_state_is_updated_as_a_node_and_from_an_older_one_it_forks(http: httpx.Client, thread: str) -> None:
    run(http, thread, "line", input={"log": []})
    history = http.post(f"/threads/{thread}/history", json={"limit": 10}).json()
    body = {"values": {"log": ["by hand"]}, "as_node": "b", "checkpoint_id": history[2]["checkpoint_id"]}
    updated = http.post(f"/threads/{thread}/state", json=body).json()
    assert updated["checkpoint"]["checkpoint_id"] == updated["checkpoint_id"]
    state = http.get(f"/threads/{thread}/state").json()
    assert (state["values"]["log"], state["next"]) == (["a", "by hand"], ["c"])
    assert state["parent_checkpoint_id"] == history[2]["checkpoint_id"]
    assert http.get(f"/threads/{thread}").json()["status"] == "interrupted"
    assert run(http, thread, "line", input=None)["log"] == ["a", "by hand", "c"]
    wrong = http.post(f"/threads/{thread}/state", json={"values": {}, "as_node": "nothing"})
    assert wrong.status_code == 400
    assert "nothing" in wrong.json()["detail"]


def test_a_state_before_any_run_needs_to_know_the_graph(http: httpx.Client, thread: str) -> None:
    assert http.post(f"/threads/{thread}/state", json={"values": {"log": []}}).status_code == 400


@pytest.mark.parametrize("path", ["/threads/nothing", "/threads/nothing/state", "/threads/nothing/runs"])
def test_a_malformed_id_is_422_and_says_so(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 422
    assert "UUID" in answer.json()["detail"]
