"""The store over HTTP: items, filters, namespaces, and what is refused."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from langgraph_sdk import get_sync_client
from starlette.testclient import TestClient


def put(client: TestClient, namespace: Any, key: Any = "k", value: Any = None, **more: Any) -> httpx.Response:
    body = {"namespace": namespace, "key": key, "value": {} if value is None else value, **more}
    return client.put("/store/items", json=body)


def get(client: TestClient, namespace: str, key: str = "k") -> Any:
    answer = client.get("/store/items", params={"namespace": namespace, "key": key})
    assert answer.status_code == 200
    return answer.json()


def found(client: TestClient, **body: Any) -> list[str]:
    answer = client.post("/store/items/search", json=body)
    assert answer.status_code == 200, answer.text
    return sorted(item["key"] for item in answer.json()["items"])


def test_items_live_until_deleted_and_keep_their_creation_time(client: TestClient) -> None:
    written = put(client, ["a", "b"], value={"n": 1})
    assert (written.status_code, written.content) == (204, b"")
    first = get(client, "a.b")
    assert first["namespace"] == ["a", "b"]
    put(client, ["a", "b"], value={"n": 2})
    second = get(client, "a.b")
    assert (second["value"], second["created_at"]) == ({"n": 2}, first["created_at"])
    for _ in range(2):
        gone = client.request("DELETE", "/store/items", json={"namespace": ["a", "b"], "key": "k"})
        assert (gone.status_code, gone.content) == (204, b"")
    assert get(client, "a.b") is None


@pytest.mark.parametrize(
    ("namespace", "status"), [([], 400), (["langgraph", "x"], 400), (["a.b"], 422), ([""], 422), (["a", ""], 422)]
)
def test_bad_namespaces_are_refused(client: TestClient, namespace: list[str], status: int) -> None:
    answer = put(client, namespace)
    assert answer.status_code == status
    assert "namespace" in answer.json()["detail"]
    assert found(client) == []


def test_names_that_do_not_fit_an_index_are_refused(client: TestClient) -> None:
    assert put(client, ["a"], "k" * 2001).status_code == 422
    assert put(client, ["ä" * 1500]).status_code == 422
    assert put(client, ["a"], "k" * 1900).status_code == 204


def test_filters_compare_numbers_and_skip_items_that_lack_the_field(client: TestClient) -> None:
    for key, value in {"nine": {"n": 9}, "ten": {"n": 10}, "text": {"n": "x"}, "none": {"m": {"deep": 1}}}.items():
        put(client, ["f"], key, value)
    assert found(client, filter={"n": {"$gt": 9}}) == ["ten"]
    assert found(client, filter={"n": {"$gte": 9, "$lt": 9.5}}) == ["nine"]
    assert found(client, filter={"n": {"$lte": 1e300}}) == ["nine", "ten"]
    assert found(client, filter={"n": {"$gt": "a"}}) == ["text"]
    assert found(client, filter={"n": 10}) == ["ten"]
    assert found(client, filter={"n": {"$eq": "x"}}) == ["text"]
    assert found(client, filter={"n": {"$ne": 10}}) == ["nine", "none", "text"]
    assert found(client, filter={"m": {"deep": 1}}) == ["none"]
    unknown = client.post("/store/items/search", json={"filter": {"n": {"$in": [1]}}})
    assert (unknown.status_code, unknown.json()["detail"][:9]) == (422, "filter.n:")


def test_search_takes_an_empty_body_a_null_prefix_and_pages(client: TestClient) -> None:
    for n in range(12):
        put(client, ["p_1" if n < 6 else "p21", str(n)], f"{n:02}")
    assert len(found(client)) == 10
    assert len(found(client, namespace_prefix=None, limit=100)) == 12
    assert found(client, namespace_prefix=["p_1"], limit=2, offset=4) == ["00", "01"]
    assert found(client, namespace_prefix=["p"]) == []
    item = client.post("/store/items/search", json={"limit": 1}).json()["items"][0]
    assert (item["key"], item["score"]) == ("11", None)
    for body in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"namespace_prefix": ["a.b"]}, {"filter": [1]}):
        assert client.post("/store/items/search", json=body).status_code == 422
    assert client.post("/store/items/search").status_code == 422


def test_namespaces_are_listed_by_prefix_suffix_and_depth(client: TestClient) -> None:
    for namespace in (["u", "1", "notes"], ["u", "2", "notes"], ["u", "2", "files"], ["other"]):
        put(client, namespace)

    def names(**body: Any) -> list[list[str]]:
        answer = client.post("/store/namespaces", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["namespaces"]

    assert names() == [["other"], ["u", "1", "notes"], ["u", "2", "files"], ["u", "2", "notes"]]
    assert names(prefix=["u", "*", "notes"]) == [["u", "1", "notes"], ["u", "2", "notes"]]
    assert names(suffix=["files"], max_depth=2) == [["u", "2"]]
    assert names(prefix=["u"], max_depth=2, limit=1, offset=1) == [["u", "2"]]
    assert names(prefix=["*"] * 900) == []
    assert client.post("/store/namespaces", json={"max_depth": 0}).status_code == 422


def test_items_expire(client: TestClient) -> None:
    put(client, ["t"], ttl=0)
    put(client, ["t"], "kept", ttl=5)
    assert get(client, "t") is None
    assert found(client) == ["kept"]
    assert client.post("/store/namespaces", json={}).json() == {"namespaces": [["t"]]}
    assert put(client, ["t"], ttl=-1).status_code == 422


def test_the_sdk_reads_what_it_wrote(live: str) -> None:
    with get_sync_client(url=live) as sdk:
        namespace = ["sdk", str(uuid4())]
        sdk.store.put_item(namespace, "k", {"x": [1]}, index=False, ttl=10)
        assert sdk.store.get_item(namespace, "k")["value"] == {"x": [1]}
        assert [item["key"] for item in sdk.store.search_items(namespace, filter={"x": [1]})["items"]] == ["k"]
        assert sdk.store.list_namespaces(prefix=namespace)["namespaces"] == [namespace]
        sdk.store.delete_item(namespace, "k")
        assert sdk.store.get_item(namespace, "k") is None


def test_a_short_life_is_extended_by_a_fraction_of_a_minute(client: TestClient) -> None:
    put(client, ["t"], ttl=0.4)
    for _ in range(2):
        assert get(client, "t") is not None
        assert found(client, namespace_prefix=["t"], refresh_ttl=True) == ["k"]


def test_an_index_is_false_or_a_list_of_fields(client: TestClient) -> None:
    for index, status in ((False, 204), (["a"], 204), (None, 204), (True, 422), ("a", 422)):
        assert put(client, ["i"], index=index).status_code == status, index
