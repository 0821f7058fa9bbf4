"""`store.index` of langgraph.json on a real server: over HTTP and in graphs, one store that is searched by meaning."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_sync_client

from tests.conftest import Launch, Process

GRAPHS = """
from langgraph.config import get_store
from langgraph.graph import StateGraph


def embed(texts):
    if any("fail" in text for text in texts):
        raise RuntimeError("secret-key was refused")
    return [[float(text.count(word)) + 0.01 for word in ("cat", "dog", "sea")] for text in texts]


async def remember(state):
    store = get_store()
    await store.aput(("notes",), state["key"], {"text": state["text"]})
    return {"found": [[item.key, item.score] for item in await store.asearch(("notes",), query=state["query"])]}


def remember_sync(state):
    store = get_store()
    store.put(("notes",), state["key"], {"text": state["text"]})
    return {"found": [[item.key, item.score] for item in store.search(("notes",), query=state["query"])]}


remembers = StateGraph(dict).add_node("n", remember).set_entry_point("n").compile()
remembers_sync = StateGraph(dict).add_node("n", remember_sync).set_entry_point("n").compile()
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "meaning.py").write_text(GRAPHS)
    graphs = {name: f"./meaning.py:{name}" for name in ("remembers", "remembers_sync")}
    index = {"dims": 3, "embed": "./meaning.py:embed", "fields": ["text"]}
    (tmp_path / "langgraph.json").write_text(json.dumps({"graphs": graphs, "store": {"index": index}}))
    return tmp_path / "langgraph.json"


def test_clients_and_graphs_find_each_others_items_by_meaning(server: Launch, config: Path) -> None:
    url = server(config=config).url
    with get_sync_client(url=url) as sdk:
        sdk.store.put_item(["notes"], "pets", {"text": "cat and dog", "title": "sea sea sea"})
        sdk.store.put_item(["notes"], "beach", {"title": "sea"}, index=["title"])
        sdk.store.put_item(["notes"], "hidden", {"text": "dog"}, index=False)
        found = sdk.store.search_items(["notes"], query="sea")["items"]
        assert [item["key"] for item in found] == ["beach", "pets"]
        assert found[0]["score"] > 0.99 > found[1]["score"]
        assert [item["score"] for item in sdk.store.search_items(["notes"])["items"]] == [None] * 3
        for graph, key in (("remembers", "by-graph"), ("remembers_sync", "by-thread")):
            given = {"key": key, "text": "dog dog", "query": "dog"}
            output: Any = sdk.runs.wait(None, graph, input=given)
            assert [key for key, _ in output["found"][:1]] == ["by-graph"]
            assert "hidden" not in [key for key, _ in output["found"]]
        assert len(sdk.store.search_items(["notes"], query="dog")["items"]) == 4


def test_a_failing_embedder_is_a_424_that_keeps_its_secrets(server: Launch, config: Path) -> None:
    url = server(config=config).url
    item = {"namespace": ["notes"], "key": "k", "value": {"text": "fail"}}
    for answer in (
        httpx.put(f"{url}/store/items", json=item, timeout=30),
        httpx.post(f"{url}/store/items/search", json={"query": "fail"}, timeout=30),
    ):
        assert answer.status_code == 424
        assert answer.json() == {"detail": "store.index.embed (./meaning.py:embed) failed: RuntimeError"}
    assert httpx.get(f"{url}/store/items?namespace=notes&key=k", timeout=30).json() is None
    for index in (["x" * 501], ["x"] * 101):
        refused = httpx.put(f"{url}/store/items", json={**item, "index": index}, timeout=30)
        assert refused.status_code == 422
        assert refused.json()["detail"].startswith("index: ")
    run = {"assistant_id": "remembers", "input": {"key": "k", "text": "fail", "query": "cat"}}
    failed = httpx.post(f"{url}/runs/wait", json=run, timeout=30).json()
    assert failed["__error__"]["error"] == "EmbeddingFailed"


def test_another_size_of_vectors_ends_the_start_with_the_settings_name(
    server: Launch, launch: Launch, config: Path, dsn: str
) -> None:
    first: Process = server(config=config)
    first.stop()
    config.write_text(config.read_text().replace('"dims": 3', '"dims": 4'))
    for command in (("serve", "--config", str(config), "--port", "0"), ("migrate",)):
        refused = launch(*command, env={"DATABASE_URL": dsn, "PERDURE_CONFIG": str(config)})
        assert refused.wait() == 1
        assert "store.index.dims in langgraph.json is 4, but the vectors in the database have 3" in " ".join(
            refused.output.split()
        )
