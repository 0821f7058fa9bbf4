"""Who signs in with a key sees the console as the API shows it to that key; nobody else gets in."""

import subprocess
import sys

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import START_SECONDS, clean_environment
from tests.console.conftest import WAIT_SECONDS, Replicas, axe, key_of, opening, session


def test_a_page_leads_to_the_login_and_back(browser: Browser, guarded: Replicas) -> None:
    key = key_of(guarded, "ann")["key"]
    with opening(browser, guarded.url) as open_page:
        page = open_page("/console/?hours=2", allow=("401",))
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert axe(page) == []
        page.get_by_label("API key").fill("prk_wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("Not accepted")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(guarded.url + "/console/?hours=2")
        (cookie,) = [one for one in page.context.cookies() if one["name"] == "perdure_session"]
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Lax"
        assert key not in cookie["value"]
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_the_cookie_opens_the_api_to_our_own_pages_only(guarded: Replicas) -> None:
    cookies = session(guarded, key_of(guarded, "ann")["key"])
    with httpx.Client(base_url=guarded.url, cookies=cookies, timeout=WAIT_SECONDS) as client:

        def search(**headers: str) -> int:
            return client.post("/threads/search", json={}, headers=headers).status_code

        assert search(**{"sec-fetch-site": "same-origin"}) == 200
        assert search(**{"sec-fetch-site": "cross-site"}) == 401
        assert search(**{"sec-fetch-site": "same-site"}) == 401
        assert search(origin="http://elsewhere.example") == 401
        assert search(**{"sec-fetch-site": "same-origin", "x-api-key": "prk_other"}) == 401


def test_a_revoked_key_ends_its_logins_at_once(guarded: Replicas) -> None:
    made = key_of(guarded, "carl")
    cookies = session(guarded, made["key"])
    with httpx.Client(base_url=guarded.url, cookies=cookies, timeout=WAIT_SECONDS) as client:
        assert client.get("/console/threads").status_code == 200
        command = [sys.executable, "-m", "perdure.cli", "keys", "revoke", made["key_id"]]
        env = clean_environment(DATABASE_URL=guarded.dsn)
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=START_SECONDS)
        answers = [client.get("/console/threads") for _ in range(2)]  # one from each server
        assert [answer.status_code for answer in answers] == [303, 303]


@pytest.mark.parametrize("cookie", ["", "x", "gAAAAA", "é", "a" * 5000])
def test_a_made_up_cookie_is_nobody(guarded: Replicas, cookie: str) -> None:
    headers = {"cookie": f"perdure_session={cookie}".encode()}
    answer = httpx.get(f"{guarded.url}/console/threads", headers=headers, timeout=WAIT_SECONDS)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/console/login?next=")


@pytest.mark.parametrize(
    "next", ["//evil.example/console/", "https://evil.example/console/", "/\\evil.example/console", "javascript:x"]
)
def test_the_login_leads_to_no_other_site(guarded: Replicas, next: str) -> None:
    form = {"header": "x-api-key", "credential": key_of(guarded, "ann")["key"], "next": next}
    answer = httpx.post(f"{guarded.url}/console/login", data=form, timeout=WAIT_SECONDS)
    assert answer.headers["location"] == "/console/"


def test_a_form_of_another_site_is_refused(replicas: Replicas) -> None:
    for headers in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
    ):
        answer = httpx.post(f"{replicas.url}/console/logout", headers=headers, timeout=WAIT_SECONDS)
        assert answer.status_code == 403


def test_only_administrators_see_what_belongs_to_nobody(guarded: Replicas) -> None:
    for owner, status in (("ann", 200), ("carl", 403)):
        cookies = session(guarded, key_of(guarded, owner)["key"])
        for page in ("sql", "workers", "doctor"):
            answer = httpx.get(f"{guarded.url}/console/{page}", cookies=cookies, timeout=WAIT_SECONDS)
            assert (page, answer.status_code) == (page, status)
