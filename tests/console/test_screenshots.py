"""Every page as people see it: light and dark, wide and phone. Without serious findings of axe, and never too wide.

With SCREENSHOTS=docs/images/console (`make screenshots`) the pictures of `docs/console.md` are made anew.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import ROOT
from tests.console.conftest import WAIT_SECONDS, Replicas, axe, key_of, opening, replicate, session
from tests.console.seed import Seeded, seed

PAGES: dict[str, Callable[[Seeded], str]] = {
    "overview": lambda s: "/console/",
    "inbox": lambda s: "/console/inbox",
    "question": lambda s: f"/console/inbox/{s.token}",
    "agents": lambda s: "/console/agents",
    "agent": lambda s: "/console/agents/booking",
    "playground": lambda s: "/console/playground?agent=weather",
    "runs": lambda s: "/console/runs",
    "run": lambda s: f"/console/runs/{s.booking_thread}/{s.booking_run}",
    "failed-run": lambda s: f"/console/runs/{s.error_thread}/{s.error_run}",
    "threads": lambda s: "/console/threads",
    "thread": lambda s: f"/console/threads/{s.chat_thread}",
    "state": lambda s: f"/console/threads/{s.chat_thread}?tab=state",
    "history": lambda s: f"/console/threads/{s.chat_thread}?tab=history",
    "queue": lambda s: f"/console/threads/{s.chat_thread}?tab=runs",
    "schedules": lambda s: "/console/schedules",
    "schedule": lambda s: f"/console/schedules/{s.cron_id}",
    "store": lambda s: "/console/store",
    "item": lambda s: "/console/store?namespace=users.user_1&key=preference-1",
    "sql": lambda s: "/console/sql",
    "workers": lambda s: "/console/workers",
    "keys": lambda s: "/console/keys",
    "doctor": lambda s: "/console/doctor",
    "missing": lambda s: "/console/no-such-page",
}
EMPTY = ("overview", "inbox", "runs", "threads", "schedules", "store")
"""Pages that also have to look right when there is nothing to show."""
NOTHING = Seeded("", "", "", "", "", "", "")
LOOKS = {
    "light": {"dark": False, "phone": False},
    "dark": {"dark": True, "phone": False},
    "phone": {"dark": False, "phone": True},
    "phone-dark": {"dark": True, "phone": True},
}
HIGHEST = 1400  # pixels of a picture: what is further down looks alike
TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def places(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Seeded, Path]]:
    """A server with runs, and where the pictures go."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder = folder if folder.is_absolute() else ROOT / folder
    folder.mkdir(parents=True, exist_ok=True)
    with replicate(database_url, tmp_path_factory.mktemp("seeded")) as found:
        with httpx.Client(base_url=found.url, timeout=WAIT_SECONDS) as api:
            seeded = seed(api)
        yield found.url, seeded, folder


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", PAGES)
def test_page_looks_right(browser: Browser, places: tuple[str, Seeded, Path], name: str, look: str) -> None:
    url, seeded, folder = places
    with opening(browser, url) as open_page:
        page = open_page(PAGES[name](seeded), **LOOKS[look], allow=("404",) if name == "missing" else ())
        page.locator("main h1").first.wait_for()
        expect(page.locator("agent-graph:not(:has(svg))")).to_have_count(0)  # all graphs are drawn
        width, height = page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        top = {"x": 0, "y": 0, "width": width, "height": min(height, HIGHEST)}
        page.screenshot(path=folder / f"{name}-{look}.png", full_page=True, clip=top)  # type: ignore[arg-type]
        assert axe(page) == []
        assert page.evaluate(TOO_WIDE) <= 0


@pytest.mark.parametrize("phone", [False, True], ids=["wide", "phone"])
def test_empty_pages_say_what_to_do(browser: Browser, guarded: Replicas, phone: bool) -> None:
    """Somebody new sees nothing of others, and a sentence instead of a bare table."""
    cookies = session(guarded, key_of(guarded, "newcomer")["key"])
    with opening(browser, guarded.url) as open_page:
        page = open_page("/console/login", phone=phone)
        page.context.add_cookies([{"name": k, "value": v, "url": guarded.url} for k, v in cookies.items()])
        for name in EMPTY:
            page.goto(guarded.url + PAGES[name](NOTHING))
            assert page.locator(".empty").first.is_visible(), name
            assert axe(page) == []
            assert page.evaluate(TOO_WIDE) <= 0


def test_the_document_shows_every_page() -> None:
    text = (ROOT / "docs" / "console.md").read_text(encoding="utf-8")
    missing = [
        f"{name}-{look}.png" for name in PAGES for look in LOOKS if f"images/console/{name}-{look}.png" not in text
    ]
    assert missing == []
