"""Schedules are made, seen, changed and deleted in the console as by the API."""

from typing import Any

import httpx
import psycopg
import pytest
from playwright.sync_api import Route, expect

from tests.console.conftest import WAIT_SECONDS, Open, Replicas, axe, eventually, key_of, session

TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"


def make(api: httpx.Client, **given: Any) -> dict[str, Any]:
    cron = {"assistant_id": "scheduled", "schedule": "0 5 29 2 *", "input": {"topic": "tea"}, **given}
    answer = api.post("/runs/crons", json=cron)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_schedule_is_made_by_a_form_that_shows_when_it_comes(open_page: Open, api: httpx.Client) -> None:
    page = open_page("/console/schedules/new")
    page.get_by_label("Agent").select_option("scheduled")
    page.get_by_label("Schedule", exact=True).fill("30 8 1 1 *")
    page.get_by_label("Time zone").fill("Europe/Berlin")
    expect(page.locator("#ticks li").first).to_contain_text("-01-01 08:30 CET")
    expect(page.locator("#ticks li")).to_have_count(5)
    page.get_by_label("Input").fill('{"topic": "new year <b>"}')
    assert axe(page) == []
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("status")).to_contain_text("The schedule is there")
    cron = api.get(f"/runs/crons/{page.url.rpartition('/')[2]}").json()
    assert (cron["schedule"], cron["timezone"], cron["enabled"]) == ("30 8 1 1 *", "Europe/Berlin", True)
    assert cron["payload"]["input"] == {"topic": "new year <b>"}
    expect(page.locator("main")).to_contain_text("new year <b>")


def test_only_what_was_typed_last_tells_when_a_schedule_comes(open_page: Open) -> None:
    page = open_page("/console/schedules/new")
    held: list[Route] = []
    page.route("**/schedules/ticks?*", lambda one: one.continue_() if "Berlin" in one.request.url else held.append(one))
    page.get_by_label("Schedule", exact=True).fill("30 8 1 1 *")
    eventually(lambda: [page.wait_for_timeout(50), held][1])
    with page.expect_event("requestfailed", lambda request: request == held[0].request):  # nobody waits for it
        page.get_by_label("Time zone").fill("Europe/Berlin")
    expect(page.locator("#ticks li").first).to_contain_text("-01-01 08:30 CET")


def test_what_is_wrong_with_a_schedule_is_said_and_nothing_typed_is_lost(open_page: Open) -> None:
    page = open_page("/console/schedules/new", allow=("422",))
    page.get_by_label("Schedule", exact=True).fill("61 * * * *")
    expect(page.locator("#ticks .notice")).to_contain_text("schedule")
    page.get_by_label("Input").fill('{"topic": "tea"}')
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("alert")).to_contain_text("schedule: '61 * * * *' is no cron expression")
    expect(page.get_by_label("Input")).to_have_value('{"topic": "tea"}')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", "* * * * * *"),
        ("timezone", "Mars/Olympus"),
        ("timezone", "../etc/passwd"),
        ("end_time", "tomorrow"),
        ("input", "{"),
        ("thread", "x"),
        ("thread", "00000000-0000-4000-8000-000000000000"),
        ("agent", ""),
        ("on_run_completed", "burn"),
        ("multitask_strategy", "dance"),
    ],
)
def test_a_form_that_the_api_would_refuse_is_refused(replicas: Replicas, field: str, value: str) -> None:
    form = {"agent": "scheduled", "schedule": "0 5 * * *", "input": "{}", field: value}
    answer = httpx.post(f"{replicas.url}/console/schedules/new", data=form, timeout=WAIT_SECONDS)
    assert answer.status_code == 422, answer.text
    assert "notice bad" in answer.text


def test_a_schedule_is_changed_disabled_and_deleted(open_page: Open, api: httpx.Client) -> None:
    cron = make(api, timezone="Europe/Berlin", end_time="2090-01-01T00:00:00Z")
    # it may ask for itself again when the schedule is deleted and it is still there
    page = open_page(f"/console/schedules/{cron['cron_id']}", allow=("404",))
    page.locator("summary", has_text="Change").click()
    page.get_by_label("Schedule", exact=True).fill("0 6 * * *")
    page.get_by_label("Time zone").fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_have_text("Changed.")
    changed = api.get(f"/runs/crons/{cron['cron_id']}").json()
    assert (changed["schedule"], changed["timezone"], changed["end_time"]) == ("0 6 * * *", "UTC", cron["end_time"])
    page.get_by_role("button", name="Disable").click()
    expect(page.locator(".headline .badge")).to_have_text("disabled")
    after = api.get(f"/runs/crons/{cron['cron_id']}").json()
    assert (after["enabled"], after["end_time"]) == (False, cron["end_time"])
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Schedules")).to_be_visible()
    assert api.get(f"/runs/crons/{cron['cron_id']}").status_code == 404


def test_a_tick_shows_its_run_in_the_open_page(open_page: Open, replicas: Replicas, api: httpx.Client) -> None:
    cron = make(api, on_run_completed="keep")
    page = open_page(f"/console/schedules/{cron['cron_id']}")
    expect(page.get_by_text("It has started no run yet.")).to_be_visible()
    due(replicas, cron)
    row = page.get_by_role("region", name="Recent runs").locator("tbody tr")
    expect(row).to_have_count(1)
    expect(row.locator(".badge")).to_have_text("success")


def test_a_tick_that_has_started_no_run_says_why(open_page: Open, replicas: Replicas, api: httpx.Client) -> None:
    cron = make(api)
    with psycopg.connect(replicas.dsn, autocommit=True) as conn:
        error = (
            '{"error": "RunRejected", "message": "busy <script>alert(1)</script>", "at": "2026-01-01T00:00:00+00:00"}'
        )
        conn.execute(
            "UPDATE crons SET error = %(error)s WHERE cron_id = %(cron_id)s",
            {"error": error, "cron_id": cron["cron_id"]},
        )
    page = open_page(f"/console/schedules/{cron['cron_id']}")
    expect(page.locator(".notice.bad")).to_contain_text("RunRejected: busy <script>alert(1)</script>")
    page.goto(f"{replicas.url}/console/schedules")
    expect(page.locator("tbody")).to_contain_text("busy <script>")
    assert axe(page) == []


def due(replicas: Replicas, cron: dict[str, Any]) -> None:
    with psycopg.connect(replicas.dsn, autocommit=True) as conn:
        conn.execute(
            "UPDATE crons SET next_run_at = now() - interval '1 s' WHERE cron_id = %(id)s", {"id": cron["cron_id"]}
        )


def test_others_schedules_do_not_exist(guarded: Replicas) -> None:
    key, other = key_of(guarded, "dora")["key"], key_of(guarded, "emil")["key"]
    with httpx.Client(base_url=guarded.url, headers={"x-api-key": key}, timeout=WAIT_SECONDS) as dora:
        cron = make(dora)
        path = f"/console/schedules/{cron['cron_id']}"
        assert dora.get(path).status_code == 200
    with httpx.Client(base_url=guarded.url, cookies=session(guarded, other), timeout=WAIT_SECONDS) as emil:
        form = {"schedule": "0 6 * * *", "input": "{}"}
        asked = [emil.get(path), emil.post(path, data=form), emil.post(path, data={**form, "schedule": "x"})]
        asked += [emil.post(f"{path}/enabled", data={"enabled": "false"}), emil.post(f"{path}/delete")]
        assert [answer.status_code for answer in asked] == [404] * 5
        assert cron["cron_id"] not in emil.get("/console/schedules").text


@pytest.mark.parametrize("phone", [False, True], ids=["wide", "phone"])
def test_the_pages_can_be_read_by_all_and_on_a_phone(open_page: Open, api: httpx.Client, phone: bool) -> None:
    cron = make(api, input={"topic": "<script>alert(1)</script>" + "x" * 300}, metadata={"k" * 80: "v" * 300})
    page = open_page("/console/schedules", phone=phone)
    for path in ("/console/schedules", f"/console/schedules/{cron['cron_id']}", "/console/schedules/new"):
        page.goto(page.url.partition("/console")[0] + path)
        for details in page.locator("main details").all():
            details.evaluate("element => { element.open = true; }")
        assert axe(page) == []
        assert page.evaluate(TOO_WIDE) <= 0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/console/schedules?page=0", 422),
        ("/console/schedules?enabled=maybe", 422),
        ("/console/schedules?agent=unknown", 404),
        ("/console/schedules/x", 422),
        ("/console/schedules/00000000-0000-4000-8000-000000000000", 404),
        ("/console/schedules?page=2", 200),
    ],
)
def test_an_address_that_leads_nowhere_says_so(replicas: Replicas, path: str, status: int) -> None:
    assert httpx.get(replicas.url + path, timeout=WAIT_SECONDS).status_code == status
