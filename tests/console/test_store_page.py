"""The store page: namespaces level by level, items, searching, writing and deleting by hand."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from playwright.sync_api import expect

from perdure.engine.core import Engine
from perdure.engine.views import browsing
from tests.console.conftest import WAIT_SECONDS, Open, Replicas, axe, key_of, session

TOO_WIDE = "document.documentElement.scrollWidth > innerWidth"


def put(api: httpx.Client, namespace: list[str], key: str, value: dict[str, Any], **more: Any) -> None:
    body = {"namespace": namespace, "key": key, "value": value, **more}
    api.put("/store/items", json=body).raise_for_status()


def get(api: httpx.Client, namespace: str, key: str) -> Any:
    return api.get("/store/items", params={"namespace": namespace, "key": key}).raise_for_status().json()


def test_namespaces_open_level_by_level(open_page: Open, api: httpx.Client) -> None:
    top = f"top-{uuid4().hex}"
    put(api, [top, "ann", "memories"], "food", {"text": "likes soup"})
    put(api, [top, "ann"], "profile", {"name": "Ann", "address": {"city": "Berlin"}})
    put(api, [top, "ann-marie"], "profile", {"name": "Ann-Marie"})
    page = open_page(f"/console/store?prefix={top}")
    labels = page.locator(".store-labels a")
    assert labels.all_inner_texts() == ["ann", "ann-marie"]
    labels.first.click()
    expect(labels).to_have_text(["memories"])
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("link", name="profile").click()
    expect(page.locator(".tree").first).to_contain_text("Berlin")
    expect(page.locator(".facts")).to_contain_text("never")
    page.get_by_role("link", name=top).click()
    expect(labels).to_have_count(2)


def test_items_can_be_added_changed_and_deleted(open_page: Open, api: httpx.Client) -> None:
    top = f"made-{uuid4().hex}"
    page = open_page(f"/console/store?prefix={top}", allow=("422",))
    expect(page.locator(".empty")).to_contain_text("Nothing is stored here")
    page.locator(".store-add summary").click()
    page.get_by_label("Key").fill("a/b c?d&e=<i>")
    page.get_by_label("Value, as").fill('["not an object"]')
    page.get_by_label("Lives for").fill("90")
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("alert")).to_contain_text("value: must be a JSON object")
    expect(page.get_by_label("Value, as")).to_have_value('["not an object"]')
    page.get_by_label("Value, as").fill('{"n": 1}')
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("status")).to_contain_text("Item written")
    expect(page.get_by_role("heading", level=1)).to_have_text("a/b c?d&e=<i>")
    expect(page.locator(".facts")).to_contain_text("1 h 30 min after its last use")

    page.get_by_label("Value, as").fill('{"n": 2}')
    page.get_by_role("button", name="Write").click()
    expect(page.locator(".tree").first).to_contain_text("2")
    assert get(api, top, "a/b c?d&e=<i>")["value"] == {"n": 2}
    expect(page.locator(".facts")).to_contain_text("1 h 30 min")  # as it was

    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("status")).to_contain_text("deleted")
    assert get(api, top, "a/b c?d&e=<i>") is None


def test_a_filter_finds_items_below_a_namespace(open_page: Open, api: httpx.Client) -> None:
    top = f"found-{uuid4().hex}"
    put(api, [top, "one"], "small", {"n": 3, "kind": "food"})
    put(api, [top, "two"], "large", {"n": 10, "kind": "food"})
    page = open_page(f"/console/store?prefix={top}")
    page.get_by_label("Filter").fill('{"kind": "food", "n": {"$gt": 5}}')
    page.get_by_role("button", name="Search").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("link", name="large").click()
    expect(page.get_by_role("link", name="two")).to_be_visible()
    for wrong in ("x", "[1]", '{"n": {"$near": 1}}'):
        answer = api.get("/console/store", params={"prefix": top, "filter": wrong})
        assert answer.status_code == 422, wrong
        assert ">filter" in answer.text


def test_many_items_come_in_pages(open_page: Open, api: httpx.Client) -> None:
    top = f"many-{uuid4().hex}"
    for n in range(53):
        put(api, [top], f"key {n:03}", {"n": n})
    page = open_page(f"/console/store?prefix={top}")
    expect(page.locator("tbody tr")).to_have_count(50)
    page.get_by_role("link", name="More").click()
    expect(page.locator("tbody tr")).to_have_count(3)
    expect(page.get_by_role("link", name="key 050")).to_be_visible()
    page.goto(page.url.split("?")[0] + f"?prefix={top}&filter=%7B%7D&offset=50")
    expect(page.locator("tbody tr")).to_have_count(3)


def test_hostile_and_large_values_are_text_and_cut(open_page: Open, api: httpx.Client) -> None:
    top = f"hostile-{uuid4().hex}"
    evil = "<script>document.body.remove()</script>"
    put(api, [top, evil[:10]], "deeper", {"a": 1})
    put(api, [top], evil, {"text": evil, "large": "x" * 1_000_000, "wide": {f"k{n}": [n] for n in range(5000)}})
    for phone in (False, True):
        page = open_page(f"/console/store?prefix={top}", phone=phone)
        expect(page.locator("tbody")).to_contain_text(evil)
        assert axe(page) == []
        assert not page.evaluate(TOO_WIDE)
        page.locator("tbody a").click()
        expect(page.locator(".tree").first).to_contain_text(evil)
        expect(page.locator("main")).to_contain_text("too large to be edited here")
        expect(page.locator(".tree").first).to_contain_text("4,800 entries left out")
        assert axe(page) == []
        assert not page.evaluate(TOO_WIDE)
    assert len(api.get("/console/store", params={"namespace": top, "key": evil}).content) < 200_000


def test_what_is_not_there_is_said(api: httpx.Client) -> None:
    answer = api.get("/console/store", params={"namespace": "no.where", "key": "x"})
    assert answer.status_code == 404
    assert "There is no item with this key here" in answer.text
    assert api.get("/console/store", params={"namespace": "a..b", "key": "x"}).status_code == 422
    assert api.get("/console/store", params={"prefix": "no.where"}).status_code == 200
    assert api.get("/console/store", params={"offset": "-1"}).status_code == 422
    assert api.post("/console/store/put", data={"namespace": "", "key": "x", "value": "{}"}).status_code == 400
    assert api.post("/console/store/put", data={"namespace": "langgraph", "key": "x", "value": "{}"}).status_code == 400


def test_looking_does_not_lengthen_a_life(replicas: Replicas, api: httpx.Client) -> None:
    top = f"life-{uuid4().hex}"
    put(api, [top], "x", {"n": 1}, ttl=60)
    with psycopg.connect(replicas.dsn) as conn:
        expires = "SELECT expires_at FROM store WHERE prefix = %s"
        before = conn.execute(expires, (top,)).fetchone()
        for query in (f"namespace={top}&key=x", f"prefix={top}", f"prefix={top}&filter=%7B%7D"):
            assert api.get(f"/console/store?{query}").status_code == 200
        assert conn.execute(expires, (top,)).fetchone() == before


def test_items_of_somebody_else_are_not_there(guarded: Replicas) -> None:
    alice, mallory = key_of(guarded, "alice")["key"], key_of(guarded, "mallory")["key"]
    with httpx.Client(base_url=guarded.url, headers={"x-api-key": alice}, timeout=WAIT_SECONDS) as client:
        put(client, ["notes", "private"], "alices-key", {"text": "alices secret"})
    with httpx.Client(base_url=guarded.url, cookies=session(guarded, mallory), timeout=WAIT_SECONDS) as client:
        for query in (
            "",
            "prefix=notes",
            "prefix=notes.private",
            "prefix=alice",
            "filter=%7B%7D",
            "prefix=alice.notes",
        ):
            assert "alices" not in client.get(f"/console/store?{query}").text.replace("prefix=alice", ""), query
        asked = {"namespace": "notes.private", "key": "alices-key"}
        assert client.get("/console/store", params=asked).status_code == 404
        assert client.post("/console/store/put", data={**asked, "value": '{"text": "hers"}'}).status_code == 303
        assert client.post("/console/store/delete", data=asked).status_code == 303
    with httpx.Client(base_url=guarded.url, cookies=session(guarded, alice), timeout=WAIT_SECONDS) as client:
        assert "private" in client.get("/console/store?prefix=notes").text
        assert "alices secret" in client.get("/console/store", params=asked).text
        found = client.get("/console/store?filter=%7B%7D&prefix=notes").text
        assert "/console/store?prefix=notes.private" in found  # as she knows it, without her own label


class Pool:
    """What `browsing` needs of an engine."""

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.pool, self.conn = self, conn

    def connection(self) -> Any:
        outer = self

        class Borrowed:
            async def __aenter__(self) -> Any:
                return outer.conn

            async def __aexit__(self, *exc: object) -> None:
                await outer.conn.commit()

        return Borrowed()


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_labels_are_found_by_jumping_over_what_lies_below(dsn: str, limit: int) -> None:
    """However many items a label has, it costs one look; also where labels sort around the dot."""

    async def look() -> tuple[list[str], list[str]]:
        async with await psycopg.AsyncConnection.connect(dsn, row_factory=psycopg.rows.dict_row) as conn:
            rows = [("a", "k"), ("a-b", "k"), ("a.c", "k"), ("a.c.d", "k"), ("a/", "k"), ("ab", "k"), ("é.x", "k")]
            rows += [("many.below", f"{n}") for n in range(200)]
            cursor = conn.cursor()
            await cursor.executemany("INSERT INTO store (prefix, key, value) VALUES (%s, %s, '{}')", rows)
            await conn.commit()
            engine: Engine = Pool(conn)  # type: ignore[assignment]
            top: list[str] = []
            cursor_text: str | None = None
            for _ in range(20):
                found, cursor_text = await browsing.labels(engine, [], cursor=cursor_text, limit=limit)
                top += found
                if cursor_text is None:
                    break
            below, _ = await browsing.labels(engine, ["a"], limit=100)
            return list(dict.fromkeys(top)), below

    with ThreadPoolExecutor() as aside:  # Playwright's loop runs in this thread
        top, below = aside.submit(asyncio.run, look()).result(WAIT_SECONDS)
    assert top == ["a", "a-b", "a/", "ab", "many", "é"]
    assert below == ["c"]
