"""The playground talks to an agent over the public API: it shows tokens as they come, asks the agent's questions in
place, and goes on after a reload or a lost connection, at whatever replica answers."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

from tests.console.balancer import Balancer
from tests.console.conftest import WAIT_SECONDS, Open, Replicas, axe, eventually, opening, replicate

BILL = "Process my hospital bill of 3000USD for a broken leg."
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror=window.hacked=1>"
GROWTH = """() => {
    window.grown = [];
    window.lit = [];
    new MutationObserver((changes) => {
        const text = [...document.querySelectorAll(".said.ai .text")].at(-1)?.textContent ?? "";
        if (text.length !== window.grown.at(-1)) window.grown.push(text.length);
        for (const { target, attributeName } of changes) {
            const { node, state } = target.dataset ?? {};
            if (attributeName === "data-state" && node) window.lit.push([node, state]);
        }
    }).observe(document.querySelector("play-ground"),
        { childList: true, characterData: true, subtree: true, attributes: true, attributeFilter: ["data-state"] });
}"""


def run(page: Page) -> None:
    page.get_by_role("button", name="Run", exact=True).click()


def thread_of(page: Page) -> str:
    return parse_qs(urlsplit(page.url).query)["thread"][0]


def status(page: Page, text: str) -> None:
    expect(page.get_by_role("status")).to_contain_text(text)


def test_tokens_grow_and_nodes_light_while_two_replicas_answer(open_page: Open) -> None:
    page = open_page("/console/playground?agent=chat")
    expect(page.get_by_label("message", exact=True)).to_have_value("make a poem about durable execution")
    expect(page.locator('agent-graph [data-node="turn"]')).to_be_visible()  # what is not drawn yet cannot light
    page.evaluate(GROWTH)
    run(page)
    status(page, "Success in")
    grown = page.evaluate("window.grown")
    assert len(grown) > 5, grown
    assert grown == sorted(grown)
    lit = page.evaluate("window.lit")
    assert ["turn", "running"] in lit
    assert lit[-1] == ["turn", "done"]
    expect(page.locator(".said")).to_have_count(2)
    expect(page.locator(".said").nth(0)).to_contain_text("make a poem")
    expect(page.locator(".steps > li")).to_contain_text("turn")
    expect(page.locator("[data-part=state]")).to_contain_text("messages")
    expect(page.get_by_role("link", name="This run")).to_have_attribute("href", re.compile(r"^/console/runs/.+/.+"))


def test_the_second_message_goes_to_the_same_thread(open_page: Open) -> None:
    page = open_page("/console/playground?agent=chat")
    run(page)
    status(page, "Success in")
    thread = thread_of(page)
    page.get_by_label("message", exact=True).fill("shorten it to 2 lines")
    run(page)
    expect(page.locator(".said")).to_have_count(4)
    status(page, "Success in")
    assert thread_of(page) == thread
    page.reload()
    expect(page.locator(".said")).to_have_count(4)
    expect(page.locator(".said").nth(2)).to_contain_text("shorten it")


def test_a_question_is_approved_in_place_and_the_run_that_goes_on_is_shown(api: httpx.Client, open_page: Open) -> None:
    page = open_page("/console/playground?agent=approval")
    run(page)
    card = page.locator(".said.question")
    expect(card).to_contain_text("Approve this claim of 3000 USD")
    status(page, "Asked a question")
    expect(page.locator('agent-graph [data-node="tools"]')).to_have_attribute("data-state", "waiting")
    card.get_by_role("button", name="Approve", exact=True).click()
    status(page, "Success in")
    expect(card).to_contain_text("You answered it")
    expect(page.locator(".said").last).to_contain_text("Approved by a person and paid")
    (question,) = api.get("/interrupts", params={"thread_id": thread_of(page)}).json()
    assert (question["status"], question["answer"]) == ("answered", True)


def test_a_question_is_rejected_with_its_reason(api: httpx.Client, open_page: Open) -> None:
    page = open_page("/console/playground?agent=approval")
    run(page)
    card = page.locator(".said.question")
    card.locator("summary", has_text="Reject").click()
    card.get_by_label("Reason").fill("too expensive")
    card.get_by_role("button", name="Reject").click()
    status(page, "Success in")
    (question,) = api.get("/interrupts", params={"thread_id": thread_of(page)}).json()
    assert question["status"] == "rejected"
    assert question["answer"]["reason"] == "too expensive"


def test_arguments_are_edited_and_what_is_no_json_is_refused(api: httpx.Client, open_page: Open) -> None:
    page = open_page("/console/playground?agent=approval")
    run(page)
    card = page.locator(".said.question")
    card.locator("summary", has_text="Edit and approve").click()
    box = card.get_by_label("Arguments of pay")
    args = json.loads(box.input_value())
    box.fill("{")
    card.get_by_role("button", name="Approve as edited").click()
    expect(card.get_by_role("alert")).to_contain_text("not JSON")
    box.fill(json.dumps({**args, "amount": 2500}))
    card.get_by_role("button", name="Approve as edited").click()
    status(page, "Success in")
    (question,) = api.get("/interrupts", params={"thread_id": thread_of(page)}).json()
    assert question["answer"]["decisions"][0]["edited_action"]["args"]["amount"] == 2500


def test_an_answer_that_somebody_else_gives_is_followed(api: httpx.Client, open_page: Open) -> None:
    page = open_page("/console/playground?agent=approval")
    run(page)
    expect(page.locator(".said.question")).to_be_visible()
    status(page, "Asked a question")
    (question,) = api.get("/interrupts", params={"thread_id": thread_of(page)}).json()
    assert api.post(f"/interrupts/{question['token']}/resolve", json=True).status_code == 202
    status(page, "Success in")
    expect(page.locator(".said.question")).to_contain_text("no longer open")
    expect(page.locator(".said").last).to_contain_text("Approved by a person")


def test_an_answer_that_is_under_way_is_not_taken_for_that_of_somebody_else(open_page: Open) -> None:
    page = open_page("/console/playground?agent=approval")
    page.clock.install()
    page.reload()
    run(page)
    status(page, "Asked a question")
    look = f"fetch('/interrupts?status=open&thread_id={thread_of(page)}').then(answer => answer.text())"

    def late(route: Route) -> None:
        answer = route.fetch()
        page.clock.fast_forward(10_000)  # the page looks whether the question is still open
        page.evaluate(look)  # and what it has asked for is there
        route.fulfill(response=answer)

    page.route("**/interrupts/*/resolve", late)
    card = page.locator(".said.question")
    card.get_by_role("button", name="Approve", exact=True).click()
    status(page, "Success in")
    expect(card).to_contain_text("You answered it")


def test_a_reload_keeps_the_question_and_it_can_still_be_answered(open_page: Open) -> None:
    page = open_page("/console/playground?agent=approval")
    run(page)
    expect(page.locator(".said.question")).to_be_visible()
    page.reload()
    expect(page.locator(".said.human")).to_contain_text(BILL)
    page.locator(".said.question").get_by_role("button", name="Approve", exact=True).click()
    status(page, "Success in")


@pytest.fixture(scope="module")
def writers(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replicas, Path]]:
    """Servers of `writing.py`, and the file that holds its runs: a machine may be too busy for any length of a run."""
    folder = tmp_path_factory.mktemp("writing")
    config, hold = folder / "langgraph.json", folder / "hold"
    graphs = {"report": f"{Path(__file__).with_name('writing.py')}:report"}
    config.write_text(json.dumps({"dependencies": ["."], "graphs": graphs}))
    with replicate(database_url, folder, config, HOLD=str(hold)) as found:
        yield found, hold


def begin_report(page: Page, hold: Path) -> None:
    """A run that has said one thing and does not go on before `hold` is taken away."""
    hold.touch()
    page.get_by_label("topic").fill("lighthouses")
    run(page)
    expect(reported(page)).to_have_count(1)


def reported(page: Page) -> Locator:
    return page.locator(".said.note", has=page.locator(".who", has_text="Progress"))


def test_a_reload_in_the_middle_of_a_run_goes_on_with_it(browser: Browser, writers: tuple[Replicas, Path]) -> None:
    servers, hold = writers
    with opening(browser, servers.url) as open_page, httpx.Client(base_url=servers.url, timeout=WAIT_SECONDS) as api:
        page = open_page("/console/playground?agent=report")
        begin_report(page, hold)
        thread = thread_of(page)
        page.reload()
        expect(page.get_by_role("button", name="Cancel")).to_be_visible()
        assert api.get(f"/threads/{thread}").json()["status"] == "busy"
        hold.unlink()
        status(page, "Success in")
        assert len(api.get(f"/threads/{thread}/runs").json()) == 1
        expect(reported(page)).to_have_count(4)  # that before the reload, too
        expect(page.locator(".said.result")).to_contain_text("answer")


def test_a_lost_connection_is_taken_up_again_without_loss_or_repetition(
    browser: Browser, writers: tuple[Replicas, Path]
) -> None:
    servers, hold = writers
    with (
        Balancer(*(server.url for server in servers.servers)) as balancer,
        opening(browser, balancer.url) as open_page,
    ):
        page = open_page("/console/playground?agent=report", allow=("net::",))
        begin_report(page, hold)
        with page.expect_request(takes_up_again):
            balancer.cut()
        hold.unlink()
        status(page, "Success in")
        expect(reported(page)).to_have_count(4)
        texts = reported(page).all_inner_texts()
        assert len(set(texts)) == 4


def takes_up_again(request: Request) -> bool:
    last = request.headers.get("last-event-id", "")
    return "/runs/" in request.url and re.fullmatch(r"\d+-\d+", last) is not None


def test_a_run_is_cancelled(api: httpx.Client, open_page: Open) -> None:
    page = open_page("/console/playground?agent=progress")
    page.get_by_label("topic").fill("lighthouses")
    page.locator("summary", has_text="More fields").click()
    page.get_by_label("pause_seconds").fill("3600")
    run(page)
    expect(reported(page)).to_have_count(1)
    page.get_by_role("button", name="Cancel").click()
    status(page, "Cancelled")
    (cancelled,) = api.get(f"/threads/{thread_of(page)}/runs").json()
    assert cancelled["status"] == "interrupted"
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()


def test_an_error_of_the_agent_is_shown(open_page: Open) -> None:
    page = open_page("/console/playground?agent=fail_on_terminal")
    run(page)
    status(page, "Failed")
    expect(page.locator(".said.bad")).to_contain_text("TerminalError")
    expect(page.locator('agent-graph [data-state="error"]').first).to_be_visible()


def test_an_input_that_the_api_refuses_is_told(open_page: Open) -> None:
    page = open_page("/console/playground?agent=chat", allow=("422",))
    page.locator("summary", has_text="Context and config").click()
    page.get_by_label("Config (JSON)").fill("[")
    run(page)
    status(page, "config: is not JSON")
    page.get_by_label("Config (JSON)").fill("[1]")
    run(page)
    expect(page.locator(".said.bad")).to_contain_text("config")
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()


def test_a_hostile_message_is_text(open_page: Open) -> None:
    page = open_page("/console/playground?agent=chat")
    page.get_by_label("message", exact=True).fill(HOSTILE)
    run(page)
    status(page, "Success in")
    expect(page.locator(".said.human .text")).to_have_text(HOSTILE)
    page.reload()
    expect(page.locator(".said.human .text")).to_have_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert page.locator(".talk script, .talk img, [data-part=state] script").count() == 0


def test_a_message_of_a_megabyte_is_cut(open_page: Open) -> None:
    page = open_page("/console/playground?agent=weather")
    box = page.get_by_label("prompt", exact=True)
    expect(box).to_be_visible()
    box.evaluate("one => { one.value = 'What is the weather in Boston? ' + 'long '.repeat(200_000) }")
    run(page)
    status(page, "Success in")
    said = page.locator(".said.human .text")
    expect(said).to_contain_text("cut, 1,000,031 characters")
    page.reload()
    expect(said).to_contain_text("cut, 1,000,031 characters")
    assert page.evaluate("document.querySelector('play-ground').textContent.length") < 200_000


def test_a_session_is_opened_by_its_key_and_kept(api: httpx.Client, open_page: Open) -> None:
    page = open_page("/console/playground?agent=chat")
    page.get_by_label("Session key").fill("müller/1")
    page.get_by_role("button", name="Open").click()
    page.wait_for_url(re.compile("key="))
    run(page)
    status(page, "Success in")
    assert "thread=" not in page.url
    assert len(api.get("/agents/chat/müller/1/history").json()) == 2
    page.reload()
    expect(page.locator(".said")).to_have_count(2)


def test_the_copied_command_makes_the_same_call(api: httpx.Client, open_page: Open) -> None:
    page = open_page("/console/playground?agent=approval&example=1")
    expect(page.get_by_label("prompt")).to_be_visible()
    page.locator("summary", has_text="As curl").click()
    shown = page.locator("[data-part=curlText]")
    expect(shown).to_contain_text("curl -N")  # made when the box is open
    text = shown.inner_text()
    body = json.loads(re.search(r"-d '(.*)'$", text, re.DOTALL)[1].replace("'\\''", "'"))  # type: ignore[index]
    answer = api.post("/runs/stream", json=body)
    assert answer.status_code == 200
    assert "event: values" in answer.text


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("agent=chat&example=99", "example"),
        ("agent=chat&example=x", "example"),
        ("agent=chat&thread=x", "thread"),
        (f"key={'a' * 201}", "key"),
        ("key=a&thread=00000000-0000-0000-0000-000000000001", "key"),
    ],
)
def test_what_is_malformed_is_refused_by_name(api: httpx.Client, query: str, field: str) -> None:
    answer = api.get(f"/console/playground?{query}")
    assert answer.status_code == 422
    assert field in answer.text


@pytest.mark.parametrize("query", ["agent=nobody", "thread=00000000-0000-0000-0000-000000000001"])
def test_what_is_not_there_is_a_page_that_says_so(api: httpx.Client, query: str) -> None:
    assert api.get(f"/console/playground?{query}").status_code == 404


FIELDS: list[tuple[str, Callable[[Page], Any], Any]] = [
    ("human_approval", lambda page: json.loads(page.get_by_label("claim").input_value())["amount"], 3000),
    ("scheduled", lambda page: page.get_by_label("pause_seconds").input_value(), "2"),
    ("multi_agent", lambda page: page.get_by_label("amount").get_attribute("type"), "number"),
]


@pytest.mark.parametrize(("agent", "read", "expected"), FIELDS, ids=[one[0] for one in FIELDS])
def test_the_form_follows_the_schema(open_page: Open, agent: str, read: Callable[[Page], Any], expected: Any) -> None:
    page = open_page(f"/console/playground?agent={agent}")
    expect(page.locator(".field").first).to_be_visible()
    assert eventually(lambda: read(page)) == expected


@pytest.mark.parametrize("phone", [False, True])
def test_the_page_is_accessible_and_fits_with_a_question_open(open_page: Open, phone: bool) -> None:
    page = open_page("/console/playground?agent=approval", phone=phone, dark=phone)
    run(page)
    status(page, "Asked a question")
    page.locator("summary", has_text="Edit and approve").click()
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
