"""The calls that LangGraph Studio and chat front ends make, from a page of another origin.

A browser asks before each of them whether the page may, also because the server is on a private network.
"""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.wire.sse import frames

ORIGIN = "https://smith.langchain.com"
ASKED = "content-type,x-api-key,x-auth-scheme,last-event-id,prefer"
EXPOSED = {"content-location", "location", "x-pagination-total", "x-pagination-next"}

Fetch = Callable[..., httpx.Response]


@pytest.fixture
def fetch(http: httpx.Client) -> Fetch:
    """What `fetch` of a browser does: the preflight, then the request if it is allowed; checks the headers."""

    def preflight(method: str, path: str) -> None:
        headers = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": ASKED,
            "Access-Control-Request-Private-Network": "true",
        }
        answer = http.options(path, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in ("*", ORIGIN)
        assert method in answer.headers["access-control-allow-methods"]
        assert set(ASKED.split(",")) <= set(answer.headers["access-control-allow-headers"].replace(" ", "").split(","))
        assert answer.headers["access-control-allow-private-network"] == "true"
        assert answer.headers["access-control-max-age"] == "600"

    def fetch(method: str, path: str, body: Any = None) -> httpx.Response:
        preflight(method, path)
        headers = {"Origin": ORIGIN, "x-auth-scheme": "langsmith", "x-api-key": "any"}
        answer = http.request(method, path, headers=headers, **({} if body is None else {"json": body}))
        assert answer.headers["access-control-allow-origin"] in ("*", ORIGIN)
        exposed = answer.headers["access-control-expose-headers"].lower().replace(" ", "").split(",")
        assert EXPOSED.issubset(exposed)
        return answer

    return fetch


def test_it_finds_the_server_and_its_graphs(fetch: Fetch) -> None:
    assert fetch("GET", "/ok").json()["ok"] is True
    info = fetch("GET", "/info").json()
    assert info["version"]
    assert info["flags"]["assistants"] is True
    page = fetch("POST", "/assistants/search", {"limit": 5, "offset": 0, "sort_by": "name", "sort_order": "asc"})
    assert len(page.json()) == 5
    assert page.headers["x-pagination-next"] == "5"
    assert int(page.headers["x-pagination-total"]) >= 14
    [nested] = fetch("POST", "/assistants/search", {"graph_id": "nested", "metadata": {"created_by": "system"}}).json()
    assistant = f"/assistants/{nested['assistant_id']}"
    assert fetch("GET", assistant).json() == nested
    inside = {node["id"] for node in fetch("GET", f"{assistant}/graph?xray=true").json()["nodes"]}
    assert {"child:draft", "child:confirm"} <= inside
    assert fetch("GET", f"{assistant}/schemas").json()["state_schema"]["properties"]["topic"]
    assert "child" in fetch("GET", f"{assistant}/subgraphs?recurse=true").json()


def test_it_runs_a_graph_and_shows_its_thread(fetch: Fetch) -> None:
    thread = fetch("POST", "/threads", {"metadata": {"graph_id": "asks"}}).json()["thread_id"]
    body = {"assistant_id": "asks", "input": {"log": []}, "stream_mode": ["debug", "messages", "values"]}
    streamed = fetch("POST", f"/threads/{thread}/runs/stream", {**body, "stream_subgraphs": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    run = streamed.headers["content-location"].rpartition("/")[2]
    assert streamed.headers["location"].endswith(f"{run}/stream")
    events = list(frames(streamed.text.splitlines()))
    assert events[0].data["run_id"] == run
    assert {"metadata", "debug", "values"} <= {frame.event for frame in events}

    state = fetch("GET", f"/threads/{thread}/state?subgraphs=true").json()
    assert state["next"] == ["ask"]
    [question] = state["tasks"][0]["interrupts"]
    history = fetch("POST", f"/threads/{thread}/history", {"limit": 10}).json()
    at = {"checkpoint": history[-1]["checkpoint"], "subgraphs": True}
    assert fetch("POST", f"/threads/{thread}/state/checkpoint", at).json()["next"] == ["__start__"]

    answer = {"assistant_id": "asks", "command": {"resume": {question["id"]: "yes"}}}
    assert fetch("POST", f"/threads/{thread}/runs/wait", answer).json()["answer"] == "yes"
    forked = {"values": {"answer": "no"}, "as_node": "ask", "checkpoint": history[0]["checkpoint"]}
    fetch("POST", f"/threads/{thread}/state", forked)
    assert fetch("GET", f"/threads/{thread}/state").json()["next"] == ["after"]
    assert fetch("GET", f"/threads/{thread}/runs").json()[0]["status"] == "success"
    found = fetch("POST", "/threads/search", {"metadata": {"graph_id": "asks"}, "limit": 1}).json()
    assert found[0]["thread_id"] == thread
    assert fetch("PATCH", f"/threads/{thread}", {"metadata": {"title": "x"}}).json()["metadata"]["title"] == "x"
    assert fetch("DELETE", f"/threads/{thread}").status_code == 204


def test_it_can_read_errors_too(fetch: Fetch, thread: str) -> None:
    for method, path, body, status in (
        ("GET", "/nothing", None, 404),
        ("DELETE", "/ok", None, 405),
        ("POST", f"/threads/{thread}/runs/wait", {"assistant_id": 5}, 422),
        ("GET", f"/threads/{'0' * 32}/state", None, 404),
        ("POST", f"/threads/{thread}/runs/{thread}/cancel", None, 404),
    ):
        answer = fetch(method, path, body)
        assert answer.status_code == status
        assert isinstance(answer.json()["detail"], str)
