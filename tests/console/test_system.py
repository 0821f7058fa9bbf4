"""Workers, keys, SQL and the doctor: what they show, what they refuse, and to whom."""

import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import ROOT, START_SECONDS, Launch, Process, clean_environment
from tests.console.conftest import WAIT_SECONDS, Open, Replicas, axe, eventually, key_of, opening, session

TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"
HOSTILE = "<script>alert(1)</script>"


# -- workers


def test_the_worker_of_each_server_is_there(open_page: Open) -> None:
    page = open_page("/console/workers")

    def alive() -> int:
        page.reload()  # that a worker has come is not announced
        return page.locator("main .card .badge", has_text="alive").count()

    eventually(alive, (2).__eq__)


def test_a_worker_shows_the_run_that_it_executes_and_lets_it_go(
    browser: Browser, server: Launch, tmp_path: Path
) -> None:
    hold = tmp_path / "effects.hold.b"
    hold.touch()
    process = server(config=ROOT / "tests" / "crash" / "langgraph.json", env={"EFFECTS": str(tmp_path / "effects")})
    with opening(browser, process.url) as open_page:
        page = open_page("/console/workers")
        body = {"assistant_id": "sequential", "input": {"log": []}}
        started = httpx.post(f"{process.url}/runs", json=body, timeout=WAIT_SECONDS)
        assert started.status_code == 200, started.text
        run = started.json()
        link = page.locator(f"main details a[href='/console/runs/{run['thread_id']}/{run['run_id']}']")
        expect(link).to_have_count(1)
        assert axe(page) == []
        hold.unlink()
        expect(link).to_have_count(0)  # when it has ended


# -- keys


def signed_in(open_page: Open, replicas: Replicas, owner: str, path: str, **how: bool) -> Page:
    page = open_page("/console/login", **how)
    cookies = session(replicas, key_of(replicas, owner)["key"])
    page.context.add_cookies([{"name": k, "value": v, "url": replicas.url} for k, v in cookies.items()])
    page.goto(replicas.url + path)
    return page


def client_of(replicas: Replicas, owner: str) -> httpx.Client:
    """Somebody with a new key."""
    headers = {"x-api-key": key_of(replicas, owner)["key"]}
    return httpx.Client(base_url=replicas.url, headers=headers, timeout=WAIT_SECONDS)


def test_a_key_is_made_works_at_the_api_and_is_revoked(browser: Browser, guarded: Replicas) -> None:
    with opening(browser, guarded.url) as open_page:
        page = signed_in(open_page, guarded, "carl", "/console/keys", phone=True)
        page.locator("summary", has_text="New key").click()
        expect(page.get_by_label("Owner")).to_have_count(0)
        page.get_by_label("Name").fill(f"laptop {HOSTILE}" + "x" * 100)
        page.get_by_label("Ends after days").fill("7")
        page.get_by_role("button", name="Create").click()
        shown = page.get_by_label("Copy it now")
        expect(shown).to_be_visible()
        key = shown.input_value()
        assert page.evaluate(TOO_WIDE) <= 0
        expect(page.get_by_label("Name")).to_have_value("")
        assert key not in page.url
        assert key not in str(page.context.cookies())
        assert axe(page) == []

        headers = {"x-api-key": key}

        def works() -> list[int]:
            return [
                httpx.post(f"{guarded.url}/threads/search", json={}, headers=headers, timeout=WAIT_SECONDS).status_code
                for _ in range(2)  # one at each server
            ]

        assert works() == [200, 200]
        page.reload()
        expect(page.get_by_label("Copy it now")).to_have_count(0)
        assert key not in page.content()
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("row", name="laptop").first.get_by_role("button", name="Revoke").click()
        expect(page.get_by_role("status")).to_contain_text("is revoked")
        assert works() == [401, 401]
        assert page.evaluate(TOO_WIDE) <= 0


def test_a_key_makes_no_better_keys_than_it_is(guarded: Replicas) -> None:
    command = [sys.executable, "-m", "perdure.cli", "keys", "create", "small", "--owner", "fred", "--json"]
    given = subprocess.run(
        [*command, "--days", "1", "--rate-limit", "500"],
        env=clean_environment(DATABASE_URL=guarded.dsn),
        check=True,
        capture_output=True,
        timeout=START_SECONDS,
        text=True,
    )
    key = httpx.Response(200, text=given.stdout).json()["key"]
    with httpx.Client(base_url=guarded.url, headers={"x-api-key": key}, timeout=WAIT_SECONDS) as fred:
        answer = fred.post("/console/keys", data={"name": "big", "days": "365", "rate_limit": "100000"})
        assert answer.status_code == 200
        assert "At most 500 requests a minute" in answer.text
        assert "It ends" in answer.text
        assert "365 d" not in answer.text
        assert "364 d" not in answer.text


def test_a_form_that_is_sent_twice_makes_one_key(guarded: Replicas) -> None:
    """As browsers do when somebody reloads the page that shows the key."""
    with client_of(guarded, "jo") as jo:
        found = re.search(r'name="id" value="([0-9a-f-]{36})"', jo.get("/console/keys").text)
        assert found is not None
        form = {"name": "twice", "id": found[1]}
        answers = [jo.post("/console/keys", data=form) for _ in range(2)]
        assert [one.status_code for one in answers] == [200, 409]
        assert "This key has been made already" in answers[1].text
        assert jo.get("/console/keys").text.count("twice") == 2  # its name, and the question before it is revoked


def test_nobody_sees_or_revokes_the_keys_of_others_but_administrators(browser: Browser, guarded: Replicas) -> None:
    made = key_of(guarded, "gina")
    for owner, sees in (("hans", False), ("ann", True)):
        with client_of(guarded, owner) as client:
            assert ("key of gina" in client.get("/console/keys").text) == sees
            assert client.post("/console/keys", data={"name": "n", "owner": "gina"}).status_code == 200
            assert client.post(f"/console/keys/{made['key_id']}/revoke").status_code == (303 if sees else 404)
    with opening(browser, guarded.url) as open_page:
        page = signed_in(open_page, guarded, "gina", "/console/keys")
        expect(page.locator("tbody tr")).to_have_count(3)  # hers twice, and the one that ann has made


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"name": ""}, "name"),
        ({"name": "x", "id": "1"}, "id"),
        ({"name": "x" * 201}, "name"),
        ({"name": "x", "days": "-1"}, "days"),
        ({"name": "x", "days": "nan"}, "days"),
        ({"name": "x", "days": "1e9"}, "days"),
        ({"name": "x", "rate_limit": "0.5"}, "rate limit"),
        ({"name": "x", "rate_limit": "9" * 30}, "rate limit"),
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(guarded: Replicas, form: dict[str, str], told: str) -> None:
    with client_of(guarded, "ida") as ida:
        answer = ida.post("/console/keys", data=form)
        assert (answer.status_code, told in answer.text) == (422, True)
        assert answer.headers["cache-control"] == "no-store"


def test_without_keys_the_page_says_how_to_switch_them_on(open_page: Open, replicas: Replicas) -> None:
    page = open_page("/console/keys")
    expect(page.locator("main")).to_contain_text("Authentication is off")
    expect(page.locator("main")).to_contain_text("PERDURE_AUTH=keys")
    assert axe(page) == []
    assert httpx.post(f"{replicas.url}/console/keys", data={"name": "x"}, timeout=WAIT_SECONDS).status_code == 404


# -- SQL


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server with an embedded PostgreSQL, which has a role that only reads."""
    folder = tmp_path_factory.mktemp("embedded")
    folder.chmod(0o755)
    log = folder / "server.log"
    command = [sys.executable, "-m", "perdure.cli", "serve", "--config", str(ROOT / "langgraph.json"), "--port", "0"]
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command,
            cwd=folder,
            env=clean_environment(PERDURE_DATA_DIR=str(folder / "data")),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    process = Process(popen, log)
    try:
        process.url = process.until(r"http://127\.0\.0\.1:\d+", START_SECONDS)[0]
        yield process
    finally:
        process.stop()


@pytest.fixture
def open_sql(browser: Browser, embedded: Process) -> Iterator[Open]:
    with opening(browser, embedded.url) as open_page:
        yield open_page


def test_a_statement_is_run_saved_shared_and_exported(open_sql: Open, embedded: Process) -> None:
    page = open_sql("/console/sql")
    assert axe(page) == []
    page.get_by_label("One statement that reads").fill(
        f"SELECT n, '{HOSTILE}' AS text, NULL AS none FROM generate_series(1, 3) n"
    )
    page.get_by_role("button", name="Run").click()
    expect(page.locator("main")).to_contain_text("3 rows in")
    expect(page.locator("table.cells tbody tr").first).to_contain_text(HOSTILE)
    page.get_by_label("Save this statement as").fill("three <b>")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("Saved as three <b>")
    assert axe(page) == []
    with page.expect_download() as download:
        page.get_by_role("link", name="Export as CSV").click()
    rows = list(csv.reader(io.StringIO(download.value.path().read_text())))
    assert rows == [["n", "text", "none"], *([str(n), HOSTILE, ""] for n in (1, 2, 3))]
    page.goto(f"{embedded.url}/console/sql")
    page.get_by_role("link", name="three <b>").click()
    expect(page.locator("main")).to_contain_text("3 rows in")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("link", name="three <b>")).to_have_count(0)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM runs",
        "WITH gone AS (DELETE FROM runs RETURNING *) SELECT * FROM gone",
        "SELECT 1; DELETE FROM runs",
        "SELECT * FROM secrets",
        "SELECT hash FROM public.api_keys",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT set_config('role', 'postgres', true), pg_read_file('/etc/passwd')",
        "SELECT pg_sleep(60)",
        "SELECT * FROM no_such_table",
    ],
)
def test_what_is_no_reading_is_refused_with_the_reason(embedded: Process, statement: str) -> None:
    answer = httpx.get(f"{embedded.url}/console/sql", params={"q": statement}, timeout=WAIT_SECONDS)
    assert answer.status_code == 422, answer.text
    assert 'class="notice bad"' in answer.text
    assert (
        httpx.get(f"{embedded.url}/console/sql/export", params={"q": statement}, timeout=WAIT_SECONDS).status_code
        == 422
    )


def test_a_spreadsheet_takes_no_cell_for_a_formula(embedded: Process) -> None:
    query = "SELECT '=1+1' AS a, '-2.5' AS b, '@SUM(A1)' AS c, '-cmd' AS d"
    answer = httpx.get(f"{embedded.url}/console/sql/export", params={"q": query}, timeout=WAIT_SECONDS)
    assert answer.headers["content-disposition"].startswith("attachment")
    assert list(csv.reader(io.StringIO(answer.text)))[1] == ["'=1+1", "-2.5", "'@SUM(A1)", "'-cmd"]


def test_more_than_a_thousand_rows_are_cut_and_scroll_in_their_box(open_sql: Open) -> None:
    page = open_sql("/console/sql?q=SELECT+n,+repeat('x',5000)+AS+long+FROM+generate_series(1,2000)+n", phone=True)
    expect(page.locator("main")).to_contain_text("there is more")
    assert page.evaluate(TOO_WIDE) <= 0


def test_without_a_role_that_only_reads_the_page_says_what_to_set(open_page: Open) -> None:
    page = open_page("/console/sql?q=SELECT+1")
    expect(page.locator(".notice")).to_contain_text("PERDURE_SQL_URL")
    expect(page.get_by_role("button", name="Run")).to_be_disabled()


# -- the doctor


def test_the_doctor_tells_settings_versions_migrations_and_checks(open_page: Open, replicas: Replicas) -> None:
    page = open_page("/console/doctor")
    for text in ("DATABASE_URL", "PERDURE_LEASE_SECONDS", "0001_engine.sql"):
        expect(page.locator(f"td:first-child code:text-is('{text}')")).to_be_visible()
    for text in ("langgraph", "PostgreSQL"):
        expect(page.locator(f"dt:text-is('{text}') + dd")).to_be_visible()
    expect(page.locator(".checks .badge", has_text="wrong")).to_have_count(0)
    assert replicas.dsn not in page.content()
    assert axe(page) == []


# -- to whom


def test_who_is_no_administrator_is_refused(guarded: Replicas) -> None:
    with client_of(guarded, "carl") as carl:
        for path in ("sql", "sql?q=SELECT+1", "sql/export?q=SELECT+1", "workers", "doctor"):
            assert (path, carl.get(f"/console/{path}").status_code) == (path, 403)
        for path in ("sql/saved", "sql/forget"):
            assert (path, carl.post(f"/console/{path}", data={"name": "x", "q": "SELECT 1"}).status_code) == (path, 403)
        home = carl.get("/console/").text
        assert "/console/sql" not in home
        assert "/console/doctor" not in home


@pytest.mark.parametrize("phone", [False, True], ids=["wide", "phone"])
def test_the_pages_can_be_read_by_all_and_on_a_phone(browser: Browser, guarded: Replicas, phone: bool) -> None:
    with opening(browser, guarded.url) as open_page:
        page = signed_in(open_page, guarded, "bob", "/console/keys", phone=phone)
        for path in ("keys", "workers", "doctor", "sql"):
            page.goto(f"{guarded.url}/console/{path}")
            assert axe(page) == []
            assert page.evaluate(TOO_WIDE) <= 0
