"""The overview says how the agents are doing, follows what happens, and can be read by everybody."""

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from playwright.sync_api import Route, expect
from starlette.testclient import TestClient

from perdure.console.overview import HEIGHT, chart
from perdure.engine.views import figures
from tests.conftest import ROOT, START_SECONDS, Launch
from tests.console.conftest import WAIT_SECONDS, Open, axe, eventually
from tests.console.test_hostile import open_client as open_client

CLAIM = {"prompt": "Process my dental bill of 300USD for a filling."}


def decide(api: httpx.Client) -> None:
    answer = api.post("/agents/approval/run", json=CLAIM)
    assert answer.status_code == 200, answer.text


def test_a_run_that_has_ended_is_counted_and_leads_to_the_runs_of_its_agent(api: httpx.Client, open_page: Open) -> None:
    decide(api)
    page = open_page("/console/")
    name = page.get_by_role("link", name="approval", exact=True)
    row = page.locator("tr[id^=agent-]").filter(has=name)
    badge = row.get_by_role("link", name="success")
    expect(badge).to_be_visible()
    assert badge.get_attribute("href") == "/console/runs?agent=approval&status=success"
    link = row.get_by_role("link", name="Runs of approval")
    assert link.get_attribute("href") == "/console/runs?agent=approval"
    expect(row).to_contain_text("%")
    expect(page.get_by_role("img", name="Runs that ended")).to_be_visible()
    row.get_by_role("link", name="approval", exact=True).click()
    expect(page.get_by_role("heading", name="approval", level=1)).to_be_visible()


def test_the_page_follows_what_happens(api: httpx.Client, open_page: Open) -> None:
    page = open_page("/console/")
    figure = page.locator(".figure", has_text="Runs ended").locator("b")
    before = int(figure.inner_text())

    def look() -> int:
        decide(api)  # again: what ends before the page has connected is not announced to it
        return int(figure.inner_text())

    assert eventually(look, lambda n: n > before)


def test_an_open_question_leads_to_the_inbox(api: httpx.Client, open_page: Open) -> None:
    asked = {"prompt": "Process my hospital bill of 3000USD for a broken leg.", "within_seconds": 3000}
    answer = api.post("/agents/approval_with_timeout/run", json=asked)
    assert answer.status_code == 202
    page = open_page("/console/")
    card = page.locator(".figure", has_text="Open questions")
    assert int(card.locator("b").inner_text()) >= 1
    expect(card.locator("count-down")).to_contain_text("left")
    card.get_by_role("link").click()
    page.wait_for_url("**/console/inbox")
    token = answer.json()["interrupts"][0]["token"]
    assert api.post(f"/interrupts/{token}/reject", json={}).status_code == 202


def test_other_times_can_be_chosen_and_shared(open_page: Open) -> None:
    page = open_page("/console/")
    page.get_by_role("link", name="24 hours").click()
    page.wait_for_url("**/console/?hours=24")
    expect(page.get_by_role("link", name="24 hours")).to_have_attribute("aria-current", "true")


@pytest.mark.parametrize("hours", ["0", "-1", "x", "nan", "inf", "1e9"])
def test_hours_that_are_none_are_refused_by_name(api: httpx.Client, hours: str) -> None:
    answer = api.get("/console/", params={"hours": hours})
    assert answer.status_code == 422
    assert "hours" in answer.text


@pytest.mark.parametrize("phone", [False, True])
def test_the_overview_is_accessible_and_fits(api: httpx.Client, open_page: Open, phone: bool) -> None:
    decide(api)
    page = open_page("/console/", phone=phone, dark=phone)
    expect(page.locator("#agents")).to_be_visible()
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_new_server_leads_to_the_playground_and_says_that_no_worker_is_there(launch: Launch, dsn: str) -> None:
    server = launch(
        "serve", "--config", str(ROOT / "langgraph.json"), "--slots", "0", "--port", "0", env={"DATABASE_URL": dsn}
    )
    url = server.until(r"http://127\.0\.0\.1:\d+", START_SECONDS)[0]
    text = eventually(lambda: httpx.get(f"{url}/console/", timeout=WAIT_SECONDS).text, lambda text: "Overview" in text)
    assert "Start one in the playground" in text
    assert "No worker" in text


def bucket(n: int, **counts: int) -> dict[str, Any]:
    return {
        "at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=n),
        "success": 0,
        "error": 0,
        "other": 0,
        **counts,
    }


def test_bars_are_stacked_from_the_bottom_and_scaled_to_the_highest() -> None:
    found = chart([bucket(0, success=3, error=1), bucket(1), bucket(2, success=1, other=1)])
    assert [(bar["kind"], bar["y"], bar["height"]) for bar in found["bars"]] == [
        ("success", HEIGHT * 0.25, HEIGHT * 0.75),
        ("error", 0, HEIGHT * 0.25),
        ("success", HEIGHT * 0.75, HEIGHT * 0.25),
        ("cancelled", HEIGHT * 0.5, HEIGHT * 0.25),
    ]
    assert found["text"].startswith(
        "Runs that ended: 4 with success, 1 with an error, 1 cancelled; most at 00:00 UTC, 4"
    )


def test_a_chart_of_nothing_has_no_bars() -> None:
    assert chart([])["bars"] == chart([bucket(0)])["bars"] == []


def test_what_happens_before_the_stream_is_there_is_not_missed(open_page: Open, api: httpx.Client) -> None:
    """A page is told at once of what has changed since it was made."""
    page = open_page("/console/login")
    held: list[Route] = []
    page.route("**/console/live?*", lambda route: held.append(route))
    page.goto(page.url.partition("/console/")[0] + "/console/runs?agent=racing")
    eventually(lambda: [page.wait_for_timeout(50), held][1])
    answer = api.post("/agents/racing/run", json={"message": "What's the best approach to learn machine learning?"})
    assert answer.status_code == 200
    row = page.locator(f"#run-{answer.headers['content-location'].rpartition('/')[2]}")
    assert row.count() == 0
    held[0].continue_()
    expect(row).to_be_visible()


def test_what_happens_while_a_page_is_made_is_not_missed(
    open_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes: the stream of the page begins before what it shows was read."""
    read: list[float] = []
    overview = figures.overview

    async def look(*args: Any, **given: Any) -> Any:
        read.append(time.time())
        return await overview(*args, **given)

    monkeypatch.setattr(figures, "overview", look)
    found = re.search(r"/console/live\?since=([\d.]+)", open_client.get("/console/").text)
    assert found is not None
    assert float(found[1]) <= read[0]


def test_the_stream_opens_also_when_its_script_comes_late(open_page: Open) -> None:
    """htmx looks for extensions once, when it begins: it must not begin before the slowest script is there."""
    page = open_page("/console/login")

    def late(route: Route) -> None:
        page.wait_for_timeout(300)
        route.continue_()

    page.route("**/hx-sse.min.js*", late)
    with page.expect_request("**/console/live?*"):
        page.goto(page.url.partition("/console/")[0] + "/console/runs")
