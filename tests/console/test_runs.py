"""The table of runs: filters, live changes, and what is done to many at once."""

from uuid import uuid4

import httpx
import psycopg
import pytest
from playwright.sync_api import Page, expect
from psycopg.types.json import Jsonb

from tests.console.conftest import Open, Replicas, axe, eventually

DELAYED = "?delay=3600s"
HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def key() -> str:
    """A session of this test's own: other tests use the same servers."""
    return f"mine-{uuid4()}"


def queue(api: httpx.Client, key: str, count: int) -> list[dict[str, str]]:
    """Runs that start in an hour."""
    sent = [api.post(f"/agents/scheduled/{key}/send{DELAYED}", json={"topic": f"tea {n}"}) for n in range(count)]
    assert {answer.status_code for answer in sent} == {202}
    return [answer.json() for answer in sent]


def box(page: Page, run: dict[str, str]) -> str:
    return f"#tick-{run['run_id']}"


def status_of(api: httpx.Client, run: dict[str, str]) -> int | str:
    answer = api.get(f"/threads/{run['thread_id']}/runs/{run['run_id']}")
    return answer.json()["status"] if answer.status_code == 200 else answer.status_code


def test_filter_and_bulk_cancel(api: httpx.Client, open_page: Open, key: str) -> None:
    runs = queue(api, key, 4)
    page = open_page("/console/runs")
    page.locator("select[name=agent]").select_option("scheduled")
    page.wait_for_url("**agent=scheduled**")
    page.locator("summary", has_text="Thread, key, time").click()
    page.get_by_label("Key, of the agent").fill(key)
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url(f"**key={key}**")
    expect(page.locator("tbody tr")).to_have_count(4)
    assert axe(page) == []
    page.on("dialog", lambda dialog: dialog.accept())
    for run in runs[:2]:
        page.check(box(page, run))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#notices .good")).to_have_text("2 runs cancelled.")
    assert [status_of(api, run) for run in runs] == ["interrupted", "interrupted", "pending", "pending"]
    page.get_by_label("Runs by status").get_by_role("link", name="pending 2").click()
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_label("Do this to").select_option("all")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#notices .good")).to_have_text("2 runs cancelled.")
    expect(page.locator(".empty")).to_contain_text("No run matches")
    assert {status_of(api, run) for run in runs} == {"interrupted"}


def test_ticks_stay_when_the_table_changes_under_them(api: httpx.Client, open_page: Open, key: str) -> None:
    runs = queue(api, key, 3)
    page = open_page(f"/console/runs?agent=scheduled&key={key}")
    page.check(box(page, runs[1]))
    page.get_by_label("Do this to").select_option("all")
    for n in range(2):
        (new,) = queue(api, key, 1)
        expect(page.locator(f"#run-{new['run_id']}")).to_be_visible()
        expect(page.locator("tbody tr")).to_have_count(4 + n)
        ticked = page.locator("input[name=ticked]:checked").evaluate_all("boxes => boxes.map(box => box.value)")
        assert ticked == [f"{runs[1]['thread_id']}/{runs[1]['run_id']}"]
    expect(page.get_by_label("Do this to")).to_have_value("all")


def test_a_filter_that_is_being_typed_is_not_overwritten(api: httpx.Client, open_page: Open, key: str) -> None:
    queue(api, key, 1)
    page = open_page(f"/console/runs?agent=scheduled&key={key}")
    page.get_by_label("Error contains").fill("Timeout")
    (new,) = queue(api, key, 1)
    expect(page.locator(f"#run-{new['run_id']}")).to_be_visible()
    expect(page.get_by_label("Error contains")).to_have_value("Timeout")


def test_it_tells_why_some_were_left_alone(api: httpx.Client, open_page: Open, key: str) -> None:
    runs = queue(api, key, 3)
    assert api.post(f"/threads/{runs[0]['thread_id']}/runs/{runs[0]['run_id']}/cancel?wait=true").status_code == 200
    page = open_page(f"/console/runs?agent=scheduled&key={key}")
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("[data-all]").check()
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("#notices .good")).to_contain_text("1 run deleted. 2 left alone: 2 is pending")
    assert [status_of(api, run) for run in runs] == [404, "pending", "pending"]
    page.get_by_role("button", name="Retry").click()  # the other two are still ticked
    expect(page.locator("#notices .good")).to_contain_text(
        "0 runs tried again. 2 left alone: 2 is pending: it cannot be retried"
    )


def test_a_paused_run_is_resumed(api: httpx.Client, open_page: Open, key: str) -> None:
    (run,) = queue(api, key, 1)
    assert api.post(f"/threads/{run['thread_id']}/runs/{run['run_id']}/pause").status_code == 202
    page = open_page(f"/console/runs?thread={run['thread_id']}")
    expect(page.locator("tbody .badge")).to_have_text("paused")
    page.check(box(page, run))
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#notices .good")).to_have_text("1 run resumed.")
    expect(page.locator("tbody .badge")).to_have_text("pending")


def test_hostile_text_is_text(api: httpx.Client, replicas: Replicas, open_page: Open, key: str) -> None:
    (run,) = queue(api, key, 1)
    error = Jsonb({"error": HOSTILE, "message": HOSTILE + "x" * 1_000_000})
    with psycopg.connect(replicas.dsn) as conn:
        conn.execute("UPDATE runs SET error = %s, failures = 1 WHERE run_id = %s", (error, run["run_id"]))
    page = open_page(f"/console/runs?thread={run['thread_id']}&error={HOSTILE}", phone=True)
    expect(page.locator("td.why")).to_contain_text(HOSTILE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert axe(page) == []
    page.goto(f"{replicas.url}/console/runs?agent=chat&key={HOSTILE}")
    expect(page.locator(".empty")).to_contain_text("No run matches")
    expect(page.get_by_label("Key, of the agent")).to_have_value(HOSTILE)


def test_pages_go_on_where_the_last_one_ended(api: httpx.Client, open_page: Open, key: str) -> None:
    runs = queue(api, key, 55)
    page = open_page(f"/console/runs?agent=scheduled&key={key}&status=pending")
    expect(page.locator("tbody tr")).to_have_count(50)
    page.get_by_role("link", name="Older").click()
    expect(page.locator("tbody tr")).to_have_count(5)
    assert page.locator("tbody tr").last.get_attribute("id") == f"run-{runs[0]['run_id']}"
    page.get_by_role("link", name="Newest").click()
    expect(page.locator("tbody tr")).to_have_count(50)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("status=odd", "status"),
        ("thread=1", "thread"),
        ("since=yesterday", "since"),
        ("key=a", "key"),
        ("cursor=zz", "cursor"),
        ("agent=" + "a" * 201, "agent"),
    ],
)
def test_a_bad_filter_is_named(api: httpx.Client, query: str, names: str) -> None:
    answer = api.get(f"/console/runs?{query}")
    assert answer.status_code == 422
    assert names in answer.text.partition('role="alert">')[2].partition("</p>")[0]


def test_bad_forms_change_nothing(api: httpx.Client, key: str) -> None:
    (run,) = queue(api, key, 1)
    for form in (
        {"action": "explode"},
        {"action": "cancel", "ticked": "x"},
        {"action": "cancel", "which": "all", "filter": "status=odd"},
        {"action": "cancel", "which": "all", "filter": "error=%00"},
    ):
        assert api.post("/console/runs", data=form).status_code == 422
    none = api.post("/console/runs", data={"action": "cancel", "ticked": f"{uuid4()}/{uuid4()}"})
    assert none.status_code == 303
    assert eventually(lambda: status_of(api, run)) == "pending"
