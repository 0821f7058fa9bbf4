"""The table of threads: what its filters find, how it follows changes, and what "delete" deletes."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.console.conftest import WAIT_SECONDS, Open, Replicas, axe, key_of, opening, session

TOO_WIDE = "document.documentElement.scrollWidth > innerWidth"


def thread(api: httpx.Client, **metadata: Any) -> str:
    return api.post("/threads", json={"metadata": metadata}).raise_for_status().json()["thread_id"]


def row(page: Any, thread_id: str) -> Any:
    return page.locator(f"#thread-{thread_id}")


def test_filters_find_threads(open_page: Open, api: httpx.Client) -> None:
    mark = uuid4().hex
    mine, other = thread(api, mark=mark, graph_id="chat"), thread(api, mark=mark, graph_id="weather")
    page = open_page("/console/threads")
    page.get_by_label("Metadata").fill(f"mark={mark}")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url(f"**mark%3D{mark}**")  # and until its scripts are there: without them a choice sends nothing
    expect(row(page, mine)).to_be_visible()
    expect(row(page, other)).to_be_visible()
    page.get_by_label("Agent").select_option("chat")  # sends the form by itself
    page.wait_for_url("**agent=chat**")
    expect(row(page, other)).to_have_count(0)
    expect(row(page, mine)).to_contain_text(mark)
    assert f"mark%3D{mark}" in page.url
    page.get_by_label("Status").select_option("error")
    expect(page.locator(".empty")).to_contain_text("Take a filter away")


def test_an_id_or_a_key_leads_straight_to_the_thread(open_page: Open, api: httpx.Client) -> None:
    mine, key = thread(api), uuid4().hex
    page = open_page("/console/threads")
    page.get_by_label("Thread id").fill(mine[:13])
    page.get_by_role("button", name="Search").click()
    expect(row(page, mine)).to_be_visible()
    page.get_by_label("Thread id").fill(mine)
    page.get_by_role("button", name="Search").click()
    page.wait_for_url(f"**/console/threads/{mine}")

    page.goto(page.url.replace(f"/{mine}", f"?key={key}"))
    expect(page.get_by_role("status")).to_contain_text("choose the agent")
    page.get_by_label("Agent").select_option("chat")
    expect(page.get_by_role("status")).to_contain_text("has no session with the key")
    api.post(f"/agents/chat/{key}/run", json={"message": "hello"}).raise_for_status()
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("heading", name="Thread", exact=True)).to_be_visible()
    expect(page.locator("dt:text-is('Id') + dd")).to_contain_text("the session of a key")


def test_new_threads_come_by_themselves_and_ticks_stay_where_they_were(open_page: Open, api: httpx.Client) -> None:
    mark = uuid4().hex
    first = thread(api, mark=mark)
    page = open_page(f"/console/threads?metadata=mark%3D{mark}")
    row(page, first).get_by_role("checkbox").check()
    second = thread(api, mark=mark)
    api.post(f"/threads/{second}/runs", json={"assistant_id": "chat", "input": {"message": "hi"}}).raise_for_status()
    expect(row(page, second)).to_be_visible()
    expect(row(page, second).get_by_role("checkbox")).not_to_be_checked()
    expect(row(page, first).get_by_role("checkbox")).to_be_checked()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete ticked").click()
    expect(page.get_by_role("status")).to_contain_text("1 thread deleted")
    assert api.get(f"/threads/{first}").status_code == 404
    assert api.get(f"/threads/{second}").status_code == 200


def test_pages_go_on_where_the_last_one_ended(open_page: Open, api: httpx.Client) -> None:
    mark = uuid4().hex
    made = {thread(api, mark=mark) for _ in range(53)}
    page = open_page(f"/console/threads?metadata=mark%3D{mark}")
    ids = "trs => trs.map(tr => tr.id.slice('thread-'.length))"
    seen = page.locator("tbody tr").evaluate_all(ids)
    page.get_by_role("link", name="Older").click()
    page.wait_for_url("**cursor=**")
    seen += page.locator("tbody tr").evaluate_all(ids)
    assert len(seen) == 53
    assert set(seen) == made
    expect(page.get_by_role("link", name="Newest")).to_be_visible()
    expect(page.get_by_role("link", name="Older")).to_have_count(0)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("status=asleep", "status"),
        ("id=zebra", "id"),
        ("metadata=%5B1%5D", "metadata"),
        ("metadata=%7Bx", "metadata"),
        ("cursor=nowhere", "cursor"),
        ("key=" + "k" * 300, "key"),
    ],
)
def test_a_filter_that_makes_no_sense_names_its_field(api: httpx.Client, query: str, names: str) -> None:
    answer = api.get(f"/console/threads?{query}")
    assert answer.status_code == 422
    assert f">{names}: " in answer.text


def test_hostile_and_long_metadata_harm_nothing(open_page: Open, api: httpx.Client) -> None:
    mark = uuid4().hex
    mine = thread(
        api, mark=mark, **{"<script>alert(1)</script>": "x" * 5000, "graph_id": "<img src=x onerror=alert(2)>"}
    )
    for phone in (False, True):
        page = open_page(f"/console/threads?metadata=mark%3D{mark}", phone=phone)
        expect(row(page, mine)).to_contain_text("<script>alert(1)</script>")
        expect(row(page, mine)).to_contain_text("<img src=x onerror=")
        assert axe(page) == []
        assert not page.evaluate(TOO_WIDE)


def test_threads_of_others_are_neither_seen_nor_deleted(browser: Browser, guarded: Replicas) -> None:
    alice, mallory = key_of(guarded, "alice")["key"], key_of(guarded, "mallory")["key"]
    with httpx.Client(base_url=guarded.url, headers={"x-api-key": alice}, timeout=WAIT_SECONDS) as client:
        theirs = thread(client, note="alices")
        key = uuid4().hex
        client.post(f"/agents/chat/{key}/run", json={"message": "hello"}, timeout=WAIT_SECONDS).raise_for_status()
    with opening(browser, guarded.url) as open_page:
        page = open_page("/console/login")
        cookies = session(guarded, mallory)
        page.context.add_cookies([{"name": k, "value": v, "url": guarded.url} for k, v in cookies.items()])
        page.goto(guarded.url + "/console/threads?metadata=note%3Dalices")
        expect(page.locator(".empty")).to_be_visible()
        page.goto(guarded.url + f"/console/threads?id={theirs}")
        expect(page.get_by_role("status")).to_contain_text("There is no thread")
        page.goto(guarded.url + f"/console/threads?agent=chat&key={key}")
        expect(page.get_by_role("status")).to_contain_text("has no session")
    with httpx.Client(base_url=guarded.url, cookies=cookies, timeout=WAIT_SECONDS) as client:
        answer = client.post("/console/threads/delete", data={"thread_id": theirs})
        assert answer.status_code == 303
    headers = {"x-api-key": alice}
    assert httpx.get(f"{guarded.url}/threads/{theirs}", headers=headers, timeout=WAIT_SECONDS).status_code == 200
