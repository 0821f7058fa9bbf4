"""The page of one run: its timeline while it works, crashes and goes on; its values, events and graph; its actions."""

from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from playwright.sync_api import Browser, expect
from psycopg.types.json import Jsonb

from perdure.engine import sweeper
from tests.conftest import ROOT, Launch
from tests.console.balancer import Balancer
from tests.console.conftest import WAIT_SECONDS, Open, Replicas, axe, eventually, opening

CRASH = ROOT / "tests" / "crash" / "langgraph.json"
HOSTILE = "<script>alert('x')</script>"
TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"
DENVER = {"prompt": "What is the weather like in Denver?", "tool_attempts": 2}
TRIP = {"prompt": "Book a family trip to Miami from July 1 to 8, flying from Boston: a hotel by the beach and an SUV."}
CLAIM = {"prompt": "Process my hospital bill of 3000USD for a broken leg."}

BILL = {"date": "2024-10-01", "category": "orthopedic", "reason": "a bill", "amount": 300, "placeOfService": "here"}


def call(api: httpx.Client, agent: str, given: object) -> str:
    """The path of the run's page, once the call is answered."""
    answer = api.post(f"/agents/{agent}/run", json=given)
    _, _, thread, _, run = answer.headers["content-location"].split("/")[:5]
    return f"/console/runs/{thread}/{run}"


@pytest.mark.parametrize("killed", [True, False], ids=["kill-9", "sigterm"])
def test_live_timeline_while_a_worker_dies_and_another_goes_on(
    browser: Browser, server: Launch, worker: Launch, tmp_path: Path, killed: bool
) -> None:
    effects = tmp_path / "effects"
    hold = Path(f"{effects}.hold.b")
    hold.touch()
    env = {"EFFECTS": str(effects), "PERDURE_HEARTBEAT_SECONDS": "0.5"}
    first, second = (server(config=CRASH, slots=0, env=env) for _ in range(2))
    with (
        Balancer(first.url, second.url) as balancer,
        opening(browser, balancer.url) as open_page,
        httpx.Client(base_url=balancer.url, timeout=WAIT_SECONDS) as api,
    ):
        doomed = worker(config=CRASH, env=env)
        thread = api.post("/threads", json={}).json()["thread_id"]
        body = {"assistant_id": "sequential", "input": {"log": []}}
        run = api.post(f"/threads/{thread}/runs", json=body).json()["run_id"]
        page = open_page(f"/console/runs/{thread}/{run}")
        rows = page.locator(".waterfall li")
        expect(page.locator("[data-kind=step]")).to_have_count(1)
        expect(page.locator("[data-kind=node][data-status=running]")).to_contain_text("b")
        expect(page.locator("#row-attempt-1")).to_contain_text("running")
        page.evaluate("window.same = true")
        page.locator("#row-attempt-1 summary").click()
        worker(config=CRASH, env=env)
        doomed.kill() if killed else doomed.stop()
        word = "lost: its worker died" if killed else "handed back by its worker"
        expect(page.locator("#row-attempt-1")).to_contain_text(word)
        expect(page.locator("#row-attempt-2")).to_contain_text("took over" if killed else "at work")
        expect(page.locator("#row-attempt-1 .mark.lost")).to_have_count(1 if killed else 0)
        eventually(lambda: effects.read_text().count("b") == 2)
        hold.unlink()
        expect(page.locator(".headline .badge").first).to_have_text("success")
        expect(page.locator("#row-attempt-2")).to_contain_text("finished")
        expect(page.locator("[data-kind=node][data-status=done]")).to_have_count(3)
        expect(page.locator("[data-kind=step][data-status=done]")).to_have_count(3)
        assert rows.count() == 2 + 3 + 3
        assert page.evaluate("window.same")
        expect(page.locator("#row-attempt-1 details")).to_have_attribute("open", "")
        assert axe(page) == []
        page.locator("[data-kind=step] summary").first.click()
        expect(page.locator("[data-kind=step] .value").first).to_contain_text("did a")
    assert Counter(effects.read_text().split()) == {"a": 1, "b": 2, "c": 1}  # only the call in flight twice


def test_attempts_are_still_known_when_the_events_have_gone(
    api: httpx.Client, replicas: Replicas, open_page: Open
) -> None:
    sent = api.post("/agents/scheduled/send", json={"topic": "tea", "pause_seconds": 3600}).json()
    thread_id, run_id = sent["thread_id"], sent["run_id"]
    run = f"/threads/{thread_id}/runs/{run_id}"
    with psycopg.connect(replicas.dsn, autocommit=True) as conn:

        def attempt() -> Any:
            return conn.execute("SELECT attempt, status FROM runs WHERE run_id = %s", (run_id,)).fetchone()

        def kept() -> object:
            return conn.execute("SELECT DISTINCT event FROM run_events WHERE run_id = %s", (run_id,)).fetchall()

        first = eventually(attempt, lambda row: row[1] == "suspended")[0]
        assert api.post(f"{run}/pause").is_success
        assert api.post(f"{run}/resume").is_success
        second = eventually(attempt, lambda row: row[0] > first and row[1] == "suspended")[0]
        assert api.post(f"{run}/cancel").is_success
        eventually(attempt, lambda row: row[1] == "interrupted")
        conn.execute("UPDATE purges SET purge_at = now() - interval '1 s' WHERE run_id = %s", (run_id,))
        conn.execute(sweeper.PURGE)
        eventually(kept, [("lifecycle",)].__eq__)  # a server's own sweeper may be at it
    page = open_page(f"/console/runs/{thread_id}/{run_id}")
    for number in (first, second):
        expect(page.locator(f"#row-attempt-{number}")).to_contain_text("waits")
    expect(page.locator(".headline .badge").first).to_have_text("interrupted")


def test_a_failed_run_shows_its_error_and_its_tries(api: httpx.Client, open_page: Open) -> None:
    page = open_page(call(api, "fail_on_terminal", DENVER), dark=True)
    expect(page.locator(".headline .badge").first).to_have_text("error")
    expect(page.get_by_label("Error")).to_contain_text("TerminalError")
    expect(page.get_by_label("Error")).to_contain_text("The weather service of Denver is down")
    tool = page.locator("[data-kind=tool]")
    expect(tool).to_contain_text("2 tries")
    expect(tool.locator(".bar.bad")).to_have_count(2)
    tool.locator("summary").first.click()
    expect(tool.locator("tbody tr")).to_have_count(2)
    expect(page.locator("[data-kind=node]").last).to_contain_text("failed")
    assert axe(page) == []


def test_undos_of_a_saga_are_told_apart(api: httpx.Client, open_page: Open) -> None:
    page = open_page(call(api, "booking", TRIP), phone=True)
    expect(page.locator("[data-kind=undo]")).to_have_count(3)
    expect(page.locator("[data-kind=saga]")).to_contain_text("failed")
    expect(page.locator("[data-kind=model]")).to_contain_text("44 in, 27 out")
    assert page.evaluate(TOO_WIDE) <= 0
    assert axe(page) == []


def test_an_open_question_can_be_answered_from_here(api: httpx.Client, open_page: Open) -> None:
    page = open_page(call(api, "approval", CLAIM))
    expect(page.locator(".asks")).to_contain_text("Approve this claim of 3000 USD")
    expect(page.locator("[data-kind=question] .bar.beyond")).to_have_count(1)
    page.get_by_role("link", name="Answer", exact=True).click()
    page.wait_for_url("**/console/inbox/*")


def test_children_and_parent_lead_to_each_other(api: httpx.Client, open_page: Open) -> None:
    path = call(api, "parallel_agents", BILL)
    page = open_page(path)
    child = page.locator("[data-kind=child]").first
    child.locator("summary").first.click()
    child.locator(".inside a").first.click()
    expect(page.locator(".facts.head")).to_contain_text("Child of")
    page.locator("dt:text-is('Child of') + dd a[href*='/console/runs/']").click()
    page.wait_for_url(f"**{path}")


def test_values_events_and_graph(api: httpx.Client, replicas: Replicas, open_page: Open) -> None:
    hostile = api.post("/agents/chat/hostile/run", json={"message": HOSTILE + "y" * 30_000})
    _, _, thread, _, run = hostile.headers["content-location"].split("/")[:5]
    path = f"/console/runs/{thread}/{run}"
    page = open_page(path + "?tab=values")
    expect(page.locator(".card").first).to_contain_text(HOSTILE)
    assert len(page.content()) < 200_000
    page.get_by_role("link", name="Events").click()
    expect(page.locator(".events tbody tr")).not_to_have_count(0)
    expect(page.locator(".events")).to_contain_text("lifecycle")
    page.get_by_role("link", name="Graph").click()
    expect(page.locator("agent-graph svg [data-state=done]")).not_to_have_count(0)
    assert axe(page) == []


def test_a_long_hostile_error_is_shown_as_text(api: httpx.Client, replicas: Replicas, open_page: Open) -> None:
    path = call(api, "fail_on_terminal", DENVER)
    error = Jsonb({"error": HOSTILE, "message": HOSTILE + "z" * 1_000_000})
    with psycopg.connect(replicas.dsn) as conn:
        conn.execute("UPDATE runs SET error = %s WHERE run_id = %s", (error, path.rpartition("/")[2]))
    page = open_page(path, phone=True)
    expect(page.get_by_label("Error")).to_contain_text(HOSTILE)
    expect(page.get_by_label("Error")).to_contain_text("cut: the API has the whole")
    assert page.evaluate(TOO_WIDE) <= 0


def test_pause_resume_cancel_restart_delete(api: httpx.Client, open_page: Open) -> None:
    sent = api.post("/agents/scheduled/send?delay=3600s", json={"topic": "tea"}).json()
    path = f"/console/runs/{sent['thread_id']}/{sent['run_id']}"
    page = open_page(path, allow=("404",))  # it may ask for itself again when the run is deleted and it is still there
    page.on("dialog", lambda dialog: dialog.accept())
    status = page.locator(".headline .badge").first
    expect(status).to_have_text("pending")
    assert page.get_by_role("button", name="Restart").count() == 0
    page.get_by_role("button", name="Pause").click()
    expect(status).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(status).to_have_text("pending")
    page.get_by_role("button", name="Cancel").click()
    expect(status).to_have_text("interrupted")
    page.get_by_role("button", name="Restart").click()
    expect(page.locator(".facts.head")).to_contain_text("Restart of")
    expect(status).to_have_text("success")
    page.get_by_role("button", name="Delete").click()
    page.wait_for_url("**/console/runs")
    expect(page.locator("#notices .good")).to_contain_text("is deleted")


def test_restart_from_a_checkpoint_runs_the_rest_again(api: httpx.Client, open_page: Open) -> None:
    page = open_page(call(api, "weather", {"prompt": "What is the weather like in Boston?"}))
    page.on("dialog", lambda dialog: dialog.accept())
    last = page.locator("[data-kind=node]").last
    name = last.locator(".title").inner_text()
    last.locator("summary").click()
    last.get_by_role("button", name="Restart from here").click()
    expect(page.locator(".facts.head")).to_contain_text("Restart of")
    expect(page.locator(".headline .badge").first).to_have_text("success")
    expect(page.locator("[data-kind=node] .title")).to_have_text([name])


def test_long_runs_go_page_by_page(api: httpx.Client, replicas: Replicas, open_page: Open) -> None:
    path = call(api, "weather", {"prompt": "What is the weather like in Boston?"})
    run_id = path.rpartition("/")[2]
    with psycopg.connect(replicas.dsn) as conn:
        conn.execute(
            "INSERT INTO steps (thread_id, scope, name, identity, n, call, run_id, status, created_at, updated_at) "
            "SELECT thread_id, 'model:' || gen_random_uuid(), 'many', g::text, 0, g, run_id, 'done', "
            "ended_at + g * interval '1 ms', ended_at + g * interval '1 ms' "
            "FROM runs, generate_series(1, 3000) g WHERE run_id = %s",
            (run_id,),
        )
    page = open_page(path)
    assert page.locator("[data-kind=step], [data-kind=model], [data-kind=tool]").count() == 100
    page.get_by_role("link", name="Next 100 entries").click()
    page.wait_for_url("**offset=100")
    assert page.locator("[data-kind=step], [data-kind=model], [data-kind=tool]").count() == 100
    expect(page.locator("#row-attempt-1")).to_have_count(0)


def test_bad_addresses_and_forbidden_actions(api: httpx.Client) -> None:
    path = call(api, "weather", {"prompt": "What is the weather like in Boston?"})
    unknown = path[:-4] + ("0000" if path[-4:] != "0000" else "1111")
    for suffix in ("", "?tab=values", "?tab=events", "?tab=graph", "/entries/x"):
        assert api.get(unknown + suffix).status_code == 404
    assert api.get(path + "?tab=odd").status_code == 422
    assert api.get(path + "?offset=-1").status_code == 422
    assert api.get("/console/runs/x/y").status_code == 422
    assert api.get(path + "/entries/nothing").status_code == 404
    for action in ("cancel", "kill", "pause", "resume", "retry"):
        assert api.post(f"{path}/{action}").status_code == 409, action
    assert api.post(f"{path}/explode").status_code == 422
    assert api.post(f"{path}/restart", data={"checkpoint_id": "'"}).status_code == 422
