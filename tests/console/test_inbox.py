"""Questions are seen, answered in every way they can be, and tell who was first; on any replica, live."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.console.conftest import WAIT_SECONDS, Open, Replicas, axe, eventually, key_of, opening, replicate, session

CLAIM = {"claim": {"amount": 3000, "reason": "a broken leg"}}
TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def asking(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Servers of `asking.py` that want a key."""
    folder = tmp_path_factory.mktemp("asking")
    file = Path(__file__).with_name("asking.py")
    graphs = {name: f"{file}:{name}" for name in ("schema", "actions", "words", "two")}
    config = folder / "langgraph.json"
    config.write_text(json.dumps({"dependencies": ["."], "graphs": graphs}))
    with replicate(database_url, folder, config, PERDURE_AUTH="keys") as found:
        yield found


class Ann:
    """Somebody with a key: asks through the API, and opens pages that are signed in."""

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        key = key_of(replicas, "ann")["key"]
        self.api = httpx.Client(base_url=replicas.url, headers={"x-api-key": key}, timeout=WAIT_SECONDS)
        self.cookies = session(replicas, key)

    def ask(self, agent: str) -> dict[str, Any]:
        answer = self.api.post(f"/agents/{agent}/run", json={})
        assert answer.status_code == 202, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def page(self, open_page: Open, path: str, **how: Any) -> Page:
        page = open_page("/console/login", **how)
        page.context.add_cookies([{"name": k, "value": v, "url": self.replicas.url} for k, v in self.cookies.items()])
        page.goto(self.replicas.url + path)
        return page

    def answer(self, thread_id: str, name: str = "answer") -> Any:
        """What the run has made of it."""
        state = eventually(lambda: self.api.get(f"/threads/{thread_id}/state").json(), lambda s: name in s["values"])
        return state["values"][name]


@pytest.fixture(scope="module")
def ann(asking: Replicas) -> Iterator[Ann]:
    someone = Ann(asking)
    yield someone
    someone.api.close()


@pytest.fixture
def open_guarded(browser: Browser, asking: Replicas) -> Iterator[Open]:
    with opening(browser, asking.url) as open_page:
        yield open_page


def ask(api: httpx.Client, claim: dict[str, Any] = CLAIM) -> dict[str, Any]:
    answer = api.post("/agents/human_approval/run", json=claim)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def path_of(asked: dict[str, Any]) -> str:
    return f"/console/inbox/{asked['interrupts'][0]['token']}"


def result(api: httpx.Client, asked: dict[str, Any]) -> dict[str, Any]:
    def look() -> dict[str, Any]:
        found: dict[str, Any] = api.get(f"/threads/{asked['thread_id']}/state").json()["values"]
        return found

    return eventually(look, lambda values: "approved" in values)


def test_a_question_is_found_read_and_approved_and_the_run_goes_on(open_page: Open, api: httpx.Client) -> None:
    asked = ask(api, {"claim": {"amount": 3141, "reason": "a broken leg"}})
    page = open_page("/console/inbox?agent=human_approval")
    page.get_by_role("link", name="Approve this claim of 3141 USD").click()
    expect(page.locator(".action .tree")).to_contain_text("3141")  # the arguments, not only the question
    page.get_by_role("button", name="Approve", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("the agent goes on")
    expect(page.get_by_role("heading", name="What became of it")).to_be_visible()
    assert result(api, asked)["approved"] is True
    assert page.url.endswith(path_of(asked))


def test_an_open_inbox_shows_new_questions_and_drops_answered_ones(open_page: Open, api: httpx.Client) -> None:
    page = open_page("/console/inbox")
    asked = ask(api, {"claim": {"amount": 2718, "reason": "a broken leg"}})
    link = page.get_by_role("link", name="Approve this claim of 2718 USD")
    expect(link).to_be_visible()
    assert api.post(f"/interrupts/{asked['interrupts'][0]['token']}/resolve", json=True).status_code == 202
    expect(link).to_have_count(0)


def test_a_rejection_takes_its_reason_along(open_page: Open, api: httpx.Client) -> None:
    asked = ask(api)
    page = open_page(path_of(asked))
    page.locator("summary", has_text="Reject").click()
    page.get_by_label("Reason, if you like").fill("not covered <b>")
    page.get_by_role("button", name="Reject").click()
    expect(page.get_by_role("heading", name="What became of it")).to_be_visible()
    assert result(api, asked) | {"claim": None} == {"approved": False, "reason": "not covered <b>", "claim": None}
    page.goto(page.url.partition("/console")[0] + f"/console/inbox?status=rejected&thread={asked['thread_id']}")
    expect(page.locator(".questions li")).to_have_count(1)


def test_changed_arguments_reach_the_agent_with_their_types(open_page: Open, api: httpx.Client) -> None:
    asked = ask(api)
    page = open_page(path_of(asked))
    page.locator("summary", has_text="Change the arguments").click()
    page.get_by_label("amount").fill("250.5")
    page.get_by_label("reason", exact=True).fill("a sprained ankle")
    page.get_by_role("button", name="Approve with these").click()
    expect(page.get_by_role("heading", name="What became of it")).to_be_visible()
    claim = result(api, asked)["claim"]
    assert (claim["amount"], claim["reason"]) == (250.5, "a sprained ankle")


def test_an_answer_by_a_schema_has_a_field_for_each_part(open_guarded: Open, ann: Ann) -> None:
    asked = ann.ask("schema")
    page = ann.page(open_guarded, path_of(asked))
    page.get_by_label("weight").fill("2.5")
    page.get_by_label("pieces").fill("3")
    page.get_by_label("way").select_option("air")
    page.get_by_label("fragile").check()
    page.get_by_label("receiver").fill("Bob <script>")
    page.get_by_label("labels").fill('["a", "b"]')
    assert axe(page) == []
    page.get_by_role("button", name="Send answer").click()
    expect(page.get_by_role("heading", name="What became of it")).to_be_visible()
    expect(page.locator("dt:text-is('By') + dd")).to_have_text("ann")
    parcel = {"weight": 2.5, "pieces": 3, "way": "air", "fragile": True, "receiver": "Bob <script>"}
    assert ann.answer(asked["thread_id"]) == {**parcel, "labels": ["a", "b"]}


def test_what_does_not_fit_is_said_and_nothing_typed_is_lost(open_guarded: Open, ann: Ann) -> None:
    asked = ann.ask("schema")
    page = ann.page(open_guarded, path_of(asked), allow=("422",))
    for name, value in {"weight": "1", "pieces": "1", "receiver": "Bob", "labels": "no JSON"}.items():
        page.get_by_label(name).fill(value)
    page.get_by_role("button", name="Send answer").click()
    expect(page.get_by_role("alert")).to_contain_text("labels: this is not JSON")
    expect(page.get_by_label("receiver")).to_have_value("Bob")
    expect(page.get_by_label("labels")).to_have_value("no JSON")


@pytest.mark.parametrize("labels", ["[" * 400 + "]" * 400, '["\\u0000"]', "[NaN]", "99999999999999999999", '"\\ud800"'])
def test_what_the_api_refuses_the_form_refuses(ann: Ann, labels: str) -> None:
    asked = ann.ask("schema")
    parts = {"weight": "1", "pieces": "1", "way": '"air"', "receiver": "x", "labels": labels}
    form = {"decision": "answer", **{f"value.{name}": value for name, value in parts.items()}}
    answer = httpx.post(ann.replicas.url + path_of(asked), data=form, cookies=ann.cookies, timeout=WAIT_SECONDS)
    assert answer.status_code == 422, answer.text


def test_each_of_several_actions_gets_its_own_decision(open_guarded: Open, ann: Ann) -> None:
    asked = ann.ask("actions")
    page = ann.page(open_guarded, path_of(asked))
    mail, file = page.get_by_role("group", name="send_mail"), page.get_by_role("group", name="delete_file")
    expect(file.get_by_label("Approve with changes")).to_have_count(0)  # its review_config does not allow it
    mail.get_by_label("Approve with changes").check()
    mail.locator("summary").click()
    mail.get_by_label("copies").fill("2")
    file.get_by_label("Reject").check()
    file.get_by_label("Reason or answer").fill("keep it")
    assert axe(page) == []
    page.get_by_role("button", name="Send decisions").click()
    expect(page.get_by_role("heading", name="What became of it")).to_be_visible()
    edited = {"name": "send_mail", "args": {"to": "ann@example.com", "copies": 2}}
    assert ann.answer(asked["thread_id"]) == {
        "decisions": [{"type": "edit", "edited_action": edited}, {"type": "reject", "message": "keep it"}]
    }


def test_a_hostile_question_of_a_megabyte_is_text_and_is_answered_in_words(open_guarded: Open, ann: Ann) -> None:
    asked = ann.ask("words")
    page = ann.page(open_guarded, path_of(asked), phone=True)
    expect(page.get_by_role("heading", level=1)).to_contain_text("<img src=x onerror=alert(1)> Which colour?")
    assert page.locator("main img").count() == 0
    assert len(page.content()) < 200_000
    assert page.evaluate(TOO_WIDE) <= 0
    assert axe(page) == []
    page.get_by_label("Text or JSON").fill("green")
    page.get_by_role("button", name="Send answer").click()
    expect(page.get_by_role("heading", name="What became of it")).to_be_visible()
    assert ann.answer(asked["thread_id"]) == "green"


def test_what_a_person_types_survives_a_live_refresh(open_guarded: Open, ann: Ann) -> None:
    asked = ann.ask("two")
    one, other = asked["interrupts"]
    page = ann.page(open_guarded, f"/console/inbox/{one['token']}")
    page.get_by_label("Text or JSON").fill("half an ans")
    with page.expect_response(lambda r: r.url.endswith(one["token"]) and "hx-request" in r.request.headers):
        assert ann.api.post(f"/interrupts/{other['token']}/resolve", json=1).status_code == 202
    expect(page.get_by_label("Text or JSON")).to_have_value("half an ans")
    page.get_by_label("Text or JSON").press_sequentially("wer")
    page.get_by_role("button", name="Send answer").click()
    expect(page.get_by_role("heading", name="What became of it")).to_be_visible()
    assert {ann.answer(asked["thread_id"], "answer"), ann.answer(asked["thread_id"], "other")} == {"half an answer", 1}


def test_whoever_comes_second_is_told_who_was_first(browser: Browser, ann: Ann) -> None:
    """Without scripts, so that the page does not hear that the question is closed."""
    asked = ann.ask("actions")
    token = asked["interrupts"][0]["token"]
    context = browser.new_context(java_script_enabled=False)
    context.add_cookies([{"name": k, "value": v, "url": ann.replicas.url} for k, v in ann.cookies.items()])
    page = context.new_page()
    page.goto(ann.replicas.url + path_of(asked))
    given = {"decisions": [{"type": "approve"}, {"type": "approve"}]}
    assert ann.api.post(f"/interrupts/{token}/resolve", json=given).status_code == 202
    for name in ("send_mail", "delete_file"):
        page.get_by_role("group", name=name).get_by_label("Reject").check()
    page.get_by_role("button", name="Send decisions").click()
    expect(page.get_by_role("alert")).to_contain_text("Your answer was not taken: this question was answered by ann")
    expect(page.get_by_role("button", name="Send decisions")).to_have_count(0)
    context.close()
    assert ann.answer(asked["thread_id"]) == given


def test_an_open_page_tells_at_once_that_somebody_else_has_answered(open_guarded: Open, ann: Ann) -> None:
    asked = ann.ask("words")
    page = ann.page(open_guarded, path_of(asked))
    ann.api.post(f"/interrupts/{asked['interrupts'][0]['token']}/resolve", json="red")
    expect(page.get_by_role("heading", name="What became of it")).to_be_visible()
    expect(page.get_by_role("button", name="Send answer")).to_have_count(0)


def test_the_signed_link_opens_the_question_without_a_login(open_guarded: Open, ann: Ann) -> None:
    page = ann.page(open_guarded, path_of(ann.ask("schema")))
    link = page.get_by_label("Link").input_value()
    button = page.locator("copy-text button")
    button.evaluate(
        "one => { new MutationObserver(() => { one.dataset.said = one.textContent + (one.dataset.said ?? ''); })"
        ".observe(one, { childList: true }); }"
    )
    button.click()
    expect(button).to_have_attribute("data-said", re.compile("Copied$"))  # it says so for two seconds only
    answer = httpx.get(link, timeout=WAIT_SECONDS)
    assert answer.status_code == 200
    assert "How shall the parcel travel?" in answer.text


def test_a_deadline_counts_down_and_then_the_question_is_closed(
    open_page: Open, replicas: Replicas, api: httpx.Client
) -> None:
    claim = {"prompt": "Process my hospital bill of 3000USD.", "within_seconds": 3600}
    asked = api.post("/agents/approval_with_timeout/run", json=claim).json()
    page = open_page(path_of(asked))
    expect(page.locator("count-down")).to_contain_text(re.compile(r"5\d min"))
    with psycopg.connect(replicas.dsn, autocommit=True) as conn:
        # the answer of a passed deadline is the one that was asked with
        conn.execute(
            "UPDATE interrupts SET deadline = now() WHERE token = %(token)s", {"token": asked["interrupts"][0]["token"]}
        )
    expect(page.locator(".headline .badge")).to_have_text("timed out")


def test_others_questions_do_not_exist(ann: Ann) -> None:
    asked = ann.ask("words")
    cookies = session(ann.replicas, key_of(ann.replicas, "bob")["key"])
    with httpx.Client(base_url=ann.replicas.url, cookies=cookies, timeout=WAIT_SECONDS) as bob:
        assert bob.get(path_of(asked)).status_code == 404
        assert bob.post(path_of(asked), data={"decision": "answer", "text": "x"}).status_code == 404
        assert asked["interrupts"][0]["token"] not in bob.get("/console/inbox").text
        assert asked["interrupts"][0]["token"] not in bob.get("/console/inbox?status=all&agent=words").text


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/console/inbox?status=closed", 422, "status"),
        ("/console/inbox?thread=x", 422, "thread"),
        ("/console/inbox?cursor=unknown", 404, "token"),
        ("/console/inbox/unknown", 404, "No question has this token"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(replicas: Replicas, path: str, status: int, told: str) -> None:
    answer = httpx.get(replicas.url + path, timeout=WAIT_SECONDS)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text


@pytest.mark.parametrize("form", [{}, {"decision": "pay"}, {"decision": "edit"}, {"decision": "respond", "text": " "}])
def test_a_form_that_says_nothing_changes_nothing(replicas: Replicas, api: httpx.Client, form: dict[str, str]) -> None:
    asked = ask(api)
    answer = httpx.post(replicas.url + path_of(asked), data=form, timeout=WAIT_SECONDS)
    assert answer.status_code == 422
    assert api.get(f"/interrupts/{asked['interrupts'][0]['token']}").json()["status"] == "open"


@pytest.mark.parametrize("phone", [False, True], ids=["wide", "phone"])
def test_the_inbox_can_be_read_by_all_and_on_a_phone(open_page: Open, api: httpx.Client, phone: bool) -> None:
    asked = ask(api, {"claim": {"amount": 3000, "reason": "<script>alert(1)</script>" + "x" * 400}})
    page = open_page("/console/inbox", phone=phone)
    link = page.locator(f".questions a[href='{path_of(asked)}']")
    expect(link).to_contain_text("<script>alert(1)</script>")
    assert axe(page) == []
    assert page.evaluate(TOO_WIDE) <= 0
