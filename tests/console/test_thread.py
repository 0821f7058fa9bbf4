"""One thread: the chat, changing the state, time travel with both branches in sight, and the queue."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from playwright.sync_api import Page, expect

from perdure.console import bounds, chat, history
from tests.console.conftest import WAIT_SECONDS, Open, Replicas, axe, eventually, key_of, session

TOO_WIDE = "document.documentElement.scrollWidth > innerWidth"
TABS = ("chat", "state", "history", "runs")


def talk(api: httpx.Client, *messages: dict[str, Any]) -> str:
    """A thread of the chat with these messages."""
    made = api.post("/threads", json={"metadata": {"graph_id": "chat"}}).raise_for_status().json()
    body = {"values": {"messages": list(messages)}, "as_node": "turn"}
    api.post(f"/threads/{made['thread_id']}/state", json=body).raise_for_status()
    return made["thread_id"]


def weather(api: httpx.Client) -> str:
    """A thread with a model call, a tool call and an answer."""
    body = {"assistant_id": "weather", "input": {"prompt": "What is the weather like in San Francisco?"}}
    thread_id = api.post("/threads", json={}).raise_for_status().json()["thread_id"]
    api.post(f"/threads/{thread_id}/runs/wait", json=body).raise_for_status()
    return thread_id


def held(api: httpx.Client, count: int = 1) -> tuple[str, list[str]]:
    """A thread whose first run sleeps for an hour, with others behind it."""
    thread_id = api.post("/threads", json={}).raise_for_status().json()["thread_id"]
    body = {"assistant_id": "scheduled", "input": {"topic": "tea", "pause_seconds": 3600}}
    runs = [api.post(f"/threads/{thread_id}/runs", json=body).raise_for_status().json() for _ in range(count)]
    return thread_id, [run["run_id"] for run in runs]


# --- the chat --------------------------------------------------------------------------------------


def test_a_script_in_a_message_is_text_and_a_megabyte_is_cut(open_page: Open, api: httpx.Client) -> None:
    evil = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
    thread_id = talk(
        api,
        {"role": "human", "content": evil},
        {"role": "assistant", "content": "abcdefg " * 131_072 + "THE-END"},
        {"role": "human", "content": "w" * 3000},
    )
    for phone in (False, True):
        page = open_page(f"/console/threads/{thread_id}", phone=phone)
        expect(page.locator("#message-0")).to_contain_text(evil)
        expect(page.locator("#message-1")).to_contain_text("the first 20,000 of 1,048,583 characters")
        assert "taken" not in page.title()
        assert not page.evaluate(TOO_WIDE)
    whole = page.get_by_role("link", name="the whole state from the API").get_attribute("href")
    assert whole
    assert "THE-END" in api.get(whole).text
    for tab in TABS:
        answer = api.get(f"/console/threads/{thread_id}?tab={tab}")
        assert answer.status_code == 200
        assert len(answer.content) < 100_000
        assert "<script>document" not in answer.text


def test_the_newest_messages_come_first_and_older_ones_on_demand(open_page: Open, api: httpx.Client) -> None:
    thread_id = talk(api, *({"role": "human", "content": f"message number {n}."} for n in range(120)))
    page = open_page(f"/console/threads/{thread_id}")
    expect(page.locator(".turn")).to_have_count(50)
    expect(page.get_by_text("message number 119.")).to_be_visible()
    page.get_by_role("link", name="Older").click()
    expect(page.get_by_text("message number 69.")).to_be_visible()
    page.get_by_role("link", name="Older").click()
    expect(page.locator(".turn")).to_have_count(20)
    expect(page.get_by_text("message number 0.")).to_be_visible()
    page.get_by_role("link", name="Newest").click()
    expect(page.get_by_text("message number 119.")).to_be_visible()


def test_a_new_answer_appears_by_itself(open_page: Open, api: httpx.Client) -> None:
    key = uuid4().hex
    api.post(f"/agents/chat/{key}/run", json={"message": "make a poem about durable execution"}).raise_for_status()
    page = open_page(f"/console/threads?agent=chat&key={key}")
    expect(page.locator(".turn")).to_have_count(2)
    api.post(f"/agents/chat/{key}/send", json={"message": "shorten it to 2 lines"}).raise_for_status()
    expect(page.locator(".turn")).to_have_count(4)


def test_tools_and_questions_are_shown_where_they_belong(open_page: Open, api: httpx.Client) -> None:
    body = {"prompt": "Process my hospital bill of 3000USD for a broken leg."}
    asking = api.post("/agents/approval/run", json=body)
    assert asking.status_code == 202
    thread_id, [question] = asking.json()["thread_id"], asking.json()["interrupts"]
    page = open_page(f"/console/threads/{thread_id}")
    expect(page.locator(".turn-call")).to_contain_text("Calls")
    expect(page.locator(".open-question")).to_contain_text("3000")
    page.get_by_role("link", name="Answer it").click()
    page.wait_for_url(f"**/console/inbox/{question['token']}")


def test_without_messages_there_is_no_chat(open_page: Open, api: httpx.Client) -> None:
    page = open_page(f"/console/threads/{held(api)[0]}?tab=chat")
    expect(page.get_by_role("link", name="State")).to_have_attribute("aria-current", "page")
    expect(page.get_by_role("link", name="Chat")).to_have_count(0)


def test_content_blocks_become_parts_that_can_be_shown() -> None:
    blocks: list[Any] = [
        "plain",
        {"type": "text", "text": "words"},
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "thinking", "thinking": "hm, hm"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4000}},
        {"type": "image", "source_type": "url", "url": "https://elsewhere.example/x.png"},
        {"type": "tool_use", "name": "comes with tool_calls"},
        {"type": "new_kind", "x": [1]},
        7,
        None,
    ]
    shown = chat.view(AIMessage(blocks[:8], tool_calls=[{"name": "find", "args": {"q": 1}, "id": "c"}]), 0)  # type: ignore[arg-type]
    kinds = [part["kind"] for part in shown["parts"]]
    assert kinds == ["text", "text", "reasoning", "reasoning", "note", "note", "json"]
    assert "about 3 kB" in shown["parts"][4]["text"]
    assert "AAAA" not in shown["parts"][4]["text"]
    assert shown["calls"] == [{"name": "find", "args": {"q": 1}}]
    assert [part["kind"] for part in chat.view({"role": "user", "content": blocks[8:]}, 0)["parts"]] == ["json"]
    assert chat.messages_of({"n": 1, "talk": [HumanMessage("x")]}) == [HumanMessage("x")]
    assert chat.messages_of({"messages": [], "rows": [{"content": "x", "type": "page"}]}) == []


def test_what_is_too_deep_or_too_much_is_named_instead_of_shown() -> None:
    deep: Any = "leaf"
    for _ in range(150):
        deep = [deep]
    wide = {f"key {n}": n for n in range(1000)}
    assert "left out" in str(bounds.bounded(deep))
    assert len(bounds.bounded(wide)) == bounds.ENTRIES + 1
    many = bounds.bounded([[n] * 100 for n in range(200)])
    assert len(str(many)) < 100_000
    texts = bounds.bounded(["x" * 1_000_000] * 100)
    assert sum(len(text) > 1000 for text in texts) <= 20


# --- state -----------------------------------------------------------------------------------------


def change(page: Page, what: str) -> None:
    page.locator("summary", has_text=what).click()


def test_the_state_can_be_edited(open_page: Open, api: httpx.Client) -> None:
    thread_id = talk(api, {"role": "human", "content": "hello"})
    page = open_page(f"/console/threads/{thread_id}?tab=state")
    change(page, "State")
    page.get_by_label("Values that change").fill('{"answer": "edited <b>by hand</b>"}')
    page.get_by_label("As node").fill("turn")
    page.get_by_role("button", name="Change the state").click()
    expect(page.get_by_role("status")).to_contain_text("State changed")
    expect(page.locator(".tree").first).to_contain_text("edited <b>by hand</b>")
    assert api.get(f"/threads/{thread_id}/state").json()["values"]["answer"] == "edited <b>by hand</b>"


@pytest.mark.parametrize(
    ("values", "node", "told"),
    [
        ('{"answer": ', "turn", "values: this is not JSON"),
        ('{"answer": "\\u0000"}', "turn", "NUL"),
        ('{"answer": "x"}', "no_such_node", "no_such_node"),
        ('"neither"', "turn", "dict"),
    ],
)
def test_what_was_typed_stays_when_it_is_refused(
    open_page: Open, api: httpx.Client, values: str, node: str, told: str
) -> None:
    thread_id = talk(api, {"role": "human", "content": "hello"})
    before = api.get(f"/threads/{thread_id}/state").json()["checkpoint_id"]
    page = open_page(f"/console/threads/{thread_id}?tab=state", allow=("400", "422"))
    change(page, "State")
    page.get_by_label("Values that change").fill(values)
    page.get_by_label("As node").fill(node)
    page.get_by_role("button", name="Change the state").click()
    expect(page.get_by_role("alert")).to_contain_text(told)
    expect(page.get_by_label("Values that change")).to_have_value(values)
    assert api.get(f"/threads/{thread_id}/state").json()["checkpoint_id"] == before


def test_what_is_being_typed_survives_a_change_of_the_thread(open_page: Open, api: httpx.Client) -> None:
    key = uuid4().hex
    api.post(f"/agents/chat/{key}/run", json={"message": "hello"}).raise_for_status()
    page = open_page(f"/console/threads?agent=chat&key={key}")
    page.get_by_role("link", name="State").click()
    change(page, "State")
    page.get_by_label("Values that change").fill('{"answer": "half')
    page.get_by_role("heading", name="Values").click()  # the focus is elsewhere
    expect(page.locator(".tree").first).to_contain_text("[] 2")
    api.post(f"/agents/chat/{key}/run", json={"message": "again"}).raise_for_status()
    expect(page.locator(".tree").first).to_contain_text("[] 4")
    expect(page.get_by_label("Values that change")).to_have_value('{"answer": "half')


def test_a_busy_thread_refuses_edits(open_page: Open, api: httpx.Client) -> None:
    thread_id, _ = held(api)
    page = open_page(f"/console/threads/{thread_id}?tab=state", allow=("409",))
    change(page, "State")
    page.get_by_label("Values that change").fill("{}")
    page.get_by_role("button", name="Change the state").click()
    expect(page.get_by_role("alert")).to_contain_text("has an active run")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Keep newest state").click()
    expect(page.get_by_role("alert")).to_contain_text("before you prune")


def test_metadata_and_time_to_live_can_be_set(open_page: Open, api: httpx.Client) -> None:
    thread_id = talk(api, {"role": "human", "content": "hello"})
    page = open_page(f"/console/threads/{thread_id}?tab=state")
    change(page, "Metadata")
    page.get_by_label("Metadata to merge").fill('{"user": "ann"}')
    page.get_by_role("button", name="Merge").click()
    expect(page.get_by_role("status")).to_contain_text("Metadata changed")
    change(page, "Time to live")
    page.get_by_label("Minutes after").fill("90")
    page.get_by_label("Then").select_option("keep_latest")
    page.get_by_role("button", name="Set", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("Time to live set")
    expect(page.locator(".facts")).to_contain_text("Pruned to its newest state 1 h 30 min after")
    found = api.get(f"/threads/{thread_id}?include=ttl").json()
    assert found["metadata"] == {"graph_id": "chat", "user": "ann"}
    assert found["ttl"]["strategy"] == "keep_latest"
    for minutes in ("-1", "x", "nan", "1e300", ""):
        answer = api.post(f"/console/threads/{thread_id}/ttl", data={"minutes": minutes})
        assert answer.status_code == 422, minutes


# --- history ---------------------------------------------------------------------------------------


def test_a_fork_shows_both_branches(open_page: Open, api: httpx.Client) -> None:
    thread_id = weather(api)
    past = api.post(f"/threads/{thread_id}/history", json={"limit": 50}).json()
    fork = next(one for one in past if one["next"] == ["tools"])
    page = open_page(f"/console/threads/{thread_id}?tab=history")
    rows = page.locator(".checkpoints > li")
    expect(rows).to_have_count(len(past))

    page.locator(f"#at-{fork['checkpoint_id']}").get_by_role("link", name="Step").click()
    opened = page.get_by_role("region", name="Checkpoint")
    expect(opened).to_contain_text(fork["checkpoint_id"])
    edit = '{"messages": [{"role": "human", "content": "And in Boston <i>tomorrow</i>?"}]}'
    opened.get_by_label("Values that change").fill(edit)
    opened.get_by_label("As node").fill("tools")
    opened.get_by_role("button", name="Edit and fork").click()
    expect(page.get_by_role("status")).to_contain_text("A new branch begins")
    expect(rows).to_have_count(len(past) + 1)
    expect(rows.first).to_contain_text("head")
    expect(rows.first).to_contain_text("edited by hand")
    expect(rows.first).to_contain_text("human: And in Boston <i>tomorrow</i>?")
    expect(page.locator(f"#at-{fork['checkpoint_id']}")).to_contain_text("2 branches")

    rows.first.get_by_role("button", name="Run from here").click()
    expect(page.get_by_role("status")).to_contain_text("goes on from that checkpoint")
    eventually(lambda: api.get(f"/threads/{thread_id}").json()["status"], lambda status: status == "idle")
    expect(rows.first).to_contain_text("answer")
    # the first answer is still there, on its own line of the drawing
    for one in past:
        expect(page.locator(f"#at-{one['checkpoint_id']}")).to_be_visible()
    lanes = page.locator(".checkpoints circle").evaluate_all("dots => dots.map(dot => dot.getAttribute('cx'))")
    assert len(set(lanes)) >= 2
    said = [one["content"] for one in api.get(f"/threads/{thread_id}/state").json()["values"]["messages"]]
    assert "And in Boston <i>tomorrow</i>?" in said
    assert axe(page) == []


def test_a_run_can_begin_again_at_a_checkpoint(open_page: Open, api: httpx.Client) -> None:
    thread_id = weather(api)
    past = api.post(f"/threads/{thread_id}/history", json={"limit": 50}).json()
    model = next(one for one in past if one["next"] == ["model"])
    page = open_page(f"/console/threads/{thread_id}?tab=history&checkpoint={model['checkpoint_id']}")
    page.get_by_role("button", name="Run again from here").click()
    expect(page.get_by_role("status")).to_contain_text("goes on from that checkpoint")
    eventually(lambda: len(api.get(f"/threads/{thread_id}/runs").json()), lambda count: count == 2)
    eventually(lambda: api.get(f"/threads/{thread_id}").json()["status"], lambda status: status == "idle")
    expect(page.locator(".checkpoints .hint:text-is('run again')")).to_have_count(1)
    answer = api.post(f"/console/threads/{thread_id}/rerun", data={"checkpoint_id": past[0]["checkpoint_id"]})
    assert answer.status_code == 409
    answer = api.post(f"/console/threads/{thread_id}/rerun", data={"checkpoint_id": "nowhere"})
    assert answer.status_code == 404


def test_long_histories_come_in_pages(open_page: Open, api: httpx.Client) -> None:
    thread_id = talk(api, {"role": "human", "content": "0"})
    for n in range(24):
        body = {"values": {"answer": f"answer {n}."}, "as_node": "turn"}
        api.post(f"/threads/{thread_id}/state", json=body).raise_for_status()
    page = open_page(f"/console/threads/{thread_id}?tab=history")
    expect(page.locator(".checkpoints > li")).to_have_count(history.PAGE)
    expect(page.locator(".checkpoints > li").first).to_contain_text("answer 22. → answer 23.")
    page.get_by_role("link", name="Older").click()
    expect(page.locator(".checkpoints > li")).to_have_count(25 - history.PAGE)
    expect(page.locator(".checkpoints > li").first).to_contain_text("answer 2. → answer 3.")


def test_branches_keep_their_columns_and_meet_at_their_parent() -> None:
    rows = history.lay([("e", "d"), ("d", "a"), ("c", "b"), ("b", "a"), ("a", None)])
    assert [rows[one]["lane"] for one in "edcba"] == [0, 0, 1, 1, 0]
    assert rows["c"]["through"] == [0]
    assert not rows["c"]["above"]
    assert rows["a"]["joins"] == [1]
    assert rows["a"]["below"] is False


def test_changes_name_what_is_new_in_a_list_of_messages() -> None:
    old = {"messages": [HumanMessage("a", id="1"), AIMessage("b", id="2")], "n": 1, "gone": "x"}
    new = {
        "messages": [HumanMessage("a", id="1"), AIMessage("B", id="2"), HumanMessage("c", id="3")],
        "n": 2,
        "new": [],
    }
    found = {one["key"]: one for one in history.changes(old, new)}
    assert found["messages"]["added"] == [{"role": "human", "text": "c"}]
    assert found["messages"]["rewritten"] == 1
    assert (found["n"]["before"], found["n"]["after"]) == ("1", "2")
    assert found["gone"]["kind"] == "removed"
    assert found["new"]["kind"] == "added"
    assert history.changes(new, new) == []


# --- runs and the rest -----------------------------------------------------------------------------


def test_the_queue_stands_in_its_order_and_can_be_cancelled(open_page: Open, api: httpx.Client) -> None:
    thread_id, runs = held(api, 4)
    page = open_page(f"/console/threads/{thread_id}?tab=runs")
    page.on("dialog", lambda dialog: dialog.accept())
    waiting = page.locator("tr[id^=line-]")
    ids = "rows => rows.map(row => row.id.slice('line-'.length))"
    assert waiting.evaluate_all(ids) == runs
    expect(waiting.first).to_contain_text("now")
    waiting.nth(1).get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("status")).to_contain_text("Run cancelled")
    expect(waiting).to_have_count(3)
    page.get_by_role("button", name="Cancel all that wait").click()
    expect(page.get_by_role("status")).to_contain_text("2 waiting runs cancelled")
    expect(waiting).to_have_count(1)
    assert waiting.evaluate_all(ids) == runs[:1]
    expect(page.locator("tr[id^=past-]")).to_have_count(3)
    expect(page.locator(f"#past-{runs[1]} a")).to_have_attribute("href", f"/console/runs/{thread_id}/{runs[1]}")
    assert f"thread={thread_id}" in (page.get_by_role("link", name="Send a message").get_attribute("href") or "")


def test_copy_keep_newest_and_delete(open_page: Open, api: httpx.Client) -> None:
    thread_id = weather(api)
    page = open_page(f"/console/threads/{thread_id}?tab=state", allow=("404",))
    page.on("dialog", lambda dialog: dialog.accept())
    change(page, "State")
    page.get_by_label("Values that change").fill("typed for the original")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("status")).to_contain_text("This is the copy")
    copy = page.url.rsplit("/", 1)[1]
    assert copy != thread_id
    page.get_by_role("link", name="State").click()
    expect(page.locator("form.stack").first).to_have_attribute("action", f"/console/threads/{copy}/state")
    page.get_by_role("button", name="Keep newest state").click()
    expect(page.locator(".checkpoints > li")).to_have_count(1)
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("status")).to_contain_text(f"Thread {copy} deleted")
    assert api.get(f"/threads/{copy}").status_code == 404
    assert api.get(f"/threads/{thread_id}").status_code == 200


@pytest.mark.parametrize("tab", TABS)
def test_every_tab_fits_a_phone_and_satisfies_axe(open_page: Open, api: httpx.Client, tab: str) -> None:
    thread_id = weather(api)
    for phone in (False, True):
        page = open_page(f"/console/threads/{thread_id}?tab={tab}", phone=phone)
        for summary in page.locator("main details:not([open]) > summary").all():
            if summary.is_visible():
                summary.click()
        assert axe(page) == []
        assert not page.evaluate(TOO_WIDE)


def test_what_is_not_there_is_a_404_and_nonsense_a_422(api: httpx.Client) -> None:
    thread_id = talk(api, {"role": "human", "content": "hello"})
    for path, status in (
        (f"/console/threads/{uuid4()}", 404),
        ("/console/threads/not-an-id", 422),
        (f"/console/threads/{thread_id}?tab=nowhere", 422),
        (f"/console/threads/{thread_id}?messages=-1", 422),
        (f"/console/threads/{thread_id}?messages=99999999", 200),
        (f"/console/threads/{thread_id}?tab=history&before=nowhere", 200),
        (f"/console/threads/{thread_id}?tab=history&checkpoint=nowhere", 404),
        (f"/console/threads/{thread_id}?tab=runs&cursor=nowhere", 422),
    ):
        assert api.get(path).status_code == status, path


FORMS = ("state", "metadata", "ttl", "copy", "prune", "delete", "rerun", "runs/cancel", f"runs/{uuid4()}/cancel")


def test_a_thread_of_somebody_else_is_not_there(guarded: Replicas) -> None:
    alice, mallory = key_of(guarded, "alice")["key"], key_of(guarded, "mallory")["key"]
    with httpx.Client(base_url=guarded.url, headers={"x-api-key": alice}, timeout=WAIT_SECONDS) as client:
        thread_id = talk(client, {"role": "human", "content": "alices secret"})
        head = client.get(f"/threads/{thread_id}/state").json()["checkpoint_id"]
    data = {
        "values": '{"answer": "x"}',
        "as_node": "turn",
        "metadata": '{"a": 1}',
        "minutes": "1",
        "checkpoint_id": head,
    }
    with httpx.Client(base_url=guarded.url, cookies=session(guarded, mallory), timeout=WAIT_SECONDS) as client:
        for tab in TABS:
            assert client.get(f"/console/threads/{thread_id}?tab={tab}").status_code == 404
        for form in FORMS:
            assert client.post(f"/console/threads/{thread_id}/{form}", data=data).status_code == 404, form
    with httpx.Client(base_url=guarded.url, cookies=session(guarded, alice), timeout=WAIT_SECONDS) as client:
        assert "alices secret" in client.get(f"/console/threads/{thread_id}").text
        assert client.get(f"/threads/{thread_id}/state", headers={"x-api-key": alice}).json()["checkpoint_id"] == head
        answer = client.post(f"/console/threads/{thread_id}/metadata", data={"metadata": '{"owner": "mallory"}'})
        assert answer.status_code == 303
        assert client.get(f"/console/threads/{thread_id}").status_code == 200  # it stays hers
