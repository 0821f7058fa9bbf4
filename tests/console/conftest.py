"""Two servers on one database behind a balancer that knows no sessions, and Chromium in front of it.

Each test's pages are watched: an error in the browser's console, a request to another origin or a second
event stream on one page fails the test, whatever it is about.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from perdure.engine import keys
from perdure.engine.db import connect
from tests import conftest
from tests.conftest import ROOT, START_SECONDS, Database, Process, T, clean_environment
from tests.console.balancer import Balancer

AXE = ROOT / "tests" / "wire" / "js" / "node_modules" / "axe-core" / "axe.min.js"
WAIT_SECONDS = 60.0
"""How long anything may take that a test waits for: only a machine with far too much to do takes seconds."""
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
]

Open = Callable[..., Page]


@dataclass(frozen=True)
class Replicas:
    """Two servers of one database; `url` is the balancer's."""

    url: str
    servers: tuple[Process, Process]
    dsn: str


@pytest.fixture(scope="session")
def replicas(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Shared by all tests of this folder: no test may count on being alone."""
    with replicate(database_url, tmp_path_factory.mktemp("replicas")) as found:
        yield found


class replicate:
    """Start two servers on a new database, with the project's own graphs; `env` are further settings."""

    def __init__(self, database_url: str, folder: Path, config: Path = ROOT / "langgraph.json", **env: str) -> None:
        self.database_url, self.folder, self.config, self.env = database_url, folder, config, env
        self.stack = ExitStack()

    def __enter__(self) -> Replicas:
        with ExitStack() as stack:
            _, dsn = stack.enter_context(Database(self.database_url))
            processes = [self._start(stack, dsn, n) for n in range(2)]
            for process in processes:
                process.url = process.until(r"http://127\.0\.0\.1:\d+", START_SECONDS)[0]
            balancer = stack.enter_context(Balancer(*(process.url for process in processes)))
            self.stack = stack.pop_all()
            return Replicas(balancer.url, (processes[0], processes[1]), dsn)

    def __exit__(self, *exc: object) -> None:
        self.stack.close()

    def _start(self, stack: ExitStack, dsn: str, n: int) -> Process:
        log = self.folder / f"server-{n}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", "perdure.cli", "serve", "--config", str(self.config), "--port", "0"],
                cwd=self.folder,
                env=clean_environment(DATABASE_URL=dsn, PERDURE_HEARTBEAT_SECONDS="0.5", **self.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        process = Process(popen, log)
        stack.callback(process.stop)
        return process


@pytest.fixture(scope="session")
def guarded(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Servers that want a key (`key_of`); ann and bob are administrators."""
    env = {"PERDURE_AUTH": "keys", "PERDURE_ADMINS": "ann, bob"}
    with replicate(database_url, tmp_path_factory.mktemp("guarded"), **env) as found:
        yield found


def key_of(replicas: Replicas, owner: str) -> dict[str, Any]:
    """A new key: its record, and `key`, what to send as x-api-key."""

    async def create() -> dict[str, Any]:
        async with await connect(replicas.dsn) as conn:
            made = await keys.create(conn, name=f"key of {owner}", owner=owner)
        return {**made, "key_id": str(made["key_id"])}

    with ThreadPoolExecutor(1) as elsewhere:  # Playwright's event loop runs in this thread
        return elsewhere.submit(asyncio.run, create()).result()


def session(replicas: Replicas, key: str) -> dict[str, str]:
    """The cookies of somebody who has signed in with that key."""
    form = {"header": "x-api-key", "credential": key, "next": "/console/"}
    answer = httpx.post(f"{replicas.url}/console/login", data=form, timeout=WAIT_SECONDS)
    assert answer.status_code == 303, answer.text
    return {"perdure_session": answer.cookies["perdure_session"]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Not for the whole session: Playwright runs an event loop in this thread, which async tests need."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        missing("Chromium")
    expect.set_options(timeout=WAIT_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS, timeout=START_SECONDS * 1000)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def api(replicas: Replicas) -> Iterator[httpx.Client]:
    """The HTTP API, through the balancer."""
    with httpx.Client(base_url=replicas.url, timeout=WAIT_SECONDS) as client:
        yield client


class Watched:
    """What a page may not do; `allowed` are texts of console messages that a test provokes."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page, self.origin = page, origin
        self.wrong: list[str] = []
        self.allowed: list[str] = []
        self.streams = 0
        page.on("console", lambda message: self._console(message.type, message.text))
        page.on("pageerror", lambda error: self.wrong.append(f"exception: {error}"))
        page.on("request", self._request)
        page.on("requestfinished", self._ended)
        page.on("requestfailed", self._ended)

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not any(part in text for part in self.allowed):
            self.wrong.append(f"{kind}: {text}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.origin, "data:")):
            self.wrong.append(f"request to {request.url}")
        if "/console/live" in request.url:
            self.streams += 1
            if self.streams > 1:
                self.wrong.append("a second event stream")

    def _ended(self, request: Request) -> None:
        if "/console/live" in request.url:
            self.streams -= 1


@pytest.fixture
def open_page(browser: Browser, replicas: Replicas) -> Iterator[Open]:
    """Open a page of the console: `open_page("/console/runs", dark=False, phone=False, url=…, allow=[…])`."""
    with opening(browser, replicas.url) as open:
        yield open


class opening:
    """Opens pages at `origin`; at the end none of them may have done what `Watched` forbids."""

    def __init__(self, browser: Browser, origin: str) -> None:
        self.browser, self.origin = browser, origin
        self.watched: list[Watched] = []
        self.contexts: list[Any] = []

    def __enter__(self) -> Open:
        return self.open

    def open(self, path: str, *, dark: bool = False, phone: bool = False, allow: tuple[str, ...] = ()) -> Page:
        """A page in a browser context of its own."""
        context = self.browser.new_context(
            viewport=PHONE if phone else WIDE,  # type: ignore[arg-type]
            color_scheme="dark" if dark else "light",
            has_touch=phone,
            locale="en-GB",
            timezone_id="UTC",
        )
        context.set_default_timeout(WAIT_SECONDS * 1000)
        self.contexts.append(context)
        page = context.new_page()
        self.watched.append(Watched(page, self.origin))
        self.watched[-1].allowed += allow
        page.goto(self.origin + path)
        return page

    def __exit__(self, kind: object, *exc: object) -> None:
        wrong = [text for one in self.watched for text in one.wrong]
        for context in self.contexts:
            context.close()
        if kind is None:
            assert wrong == []


LOOK = """async () => {
    let found, swapped = true;
    const note = () => { swapped = true; };
    document.addEventListener("htmx:after:swap", note);
    for (let n = 0; swapped && n < 20; n++) {
        swapped = false; // it looks at one thing after the other, and what it finds in two pages is of neither
        found = await axe.run(document, { resultTypes: ["violations"] });
    }
    document.removeEventListener("htmx:after:swap", note);
    return found;
}"""


def axe(page: Page) -> list[str]:
    """What axe finds serious or critical about a page: rule and element."""
    if not AXE.exists():
        missing("axe-core of tests/wire/js")
    page.evaluate(AXE.read_text(encoding="utf-8") + "; undefined")
    found = page.evaluate(LOOK)
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def eventually(look: Callable[[], T], is_right: Callable[[T], Any] = bool) -> T:
    """As `tests.conftest.eventually`, for what servers and a browser do together."""
    return conftest.eventually(look, is_right, seconds=WAIT_SECONDS)


def missing(what: str) -> None:
    """Skip the test because `what` is not there; in CI, fail it: a skipped test would hide that nothing was tested."""
    text = f"needs {what}: make test-deps installs it"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)
