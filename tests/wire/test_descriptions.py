"""What a front end asks on every page: graph, schemas, info. They come from memory, not from the graph."""

import time
from pathlib import Path

import httpx

CALLS = 200


def test_a_graph_is_looked_at_once_however_often_it_is_asked_for(http: httpx.Client, builds: Path) -> None:
    paths = ("/assistants/built/graph", "/assistants/built/schemas", "/assistants/built/subgraphs")
    first = [http.get(path).json() for path in paths]
    assert [node["id"] for node in first[0]["nodes"]] == ["__start__", "first", "second", "__end__"]
    assert first[1]["input_schema"]["properties"]["topic"]
    before = builds.read_text()
    for _ in range(5):
        assert [http.get(path).json() for path in paths] == first
    assert builds.read_text() == before


def test_asking_again_costs_no_more_than_ok(http: httpx.Client) -> None:
    """Graph work takes milliseconds of the one event loop, and so would hold up every stream."""
    described = [_seconds(http, path) for path in ("/assistants/nested/graph?xray=true", "/assistants/nested/schemas")]
    assert max(*described, _seconds(http, "/info")) < 10 * _seconds(http, "/ok?check_db=true")


def _seconds(http: httpx.Client, path: str) -> float:
    """The quickest of many calls: what the machine does beside it does not count."""
    seconds: list[float] = []
    for _ in range(CALLS // 4):
        begin = time.perf_counter()
        assert http.get(path).status_code == 200
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
