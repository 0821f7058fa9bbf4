"""A chat page built on `useStream`, in headless Chromium, from another origin than the server's.

Each test goes by the older run streams and by the event protocol, over server-sent events and WebSocket.
"""

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.conftest import eventually
from tests.wire.conftest import JS, WAIT_SECONDS
from tests.wire.link import Link

# Nothing in the background: it would look for hosts on the internet.
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
]
FIRST, LAST = "You said hello: w0 w1", "w28 w29"
WHOLE = "You said hello:" + "".join(f" w{n}" for n in range(30))

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(node: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page, bundled into a temporary directory."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([node, "bundle.mjs", str(folder)], cwd=JS, check=True, timeout=300)
    (folder / "index.html").write_text('<!doctype html><body><script type="module" src="page.js"></script>')
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def open_page(browser: Browser, site: str) -> Iterator[Open]:
    """Open the page; the test fails with what the page has written to its console."""
    context = browser.new_context()
    written: list[str] = []

    def write(message: ConsoleMessage) -> None:
        written.append(f"{message.type}: {message.text}")

    def open(api: str, assistant: str, protocol: str, hold: Path | None = None) -> Page:
        page = context.new_page()
        page.set_default_timeout(WAIT_SECONDS * 1000)
        page.on("console", write)
        page.on("pageerror", lambda error: written.append(f"uncaught: {error}"))
        told = {"api": api, "assistant": assistant, "protocol": protocol, **({"hold": str(hold)} if hold else {})}
        page.goto(f"{site}/?{urlencode(told)}")
        return page

    expect.set_options(timeout=WAIT_SECONDS * 1000)
    yield open
    print(*written, sep="\n")
    context.close()


by_each_protocol = pytest.mark.parametrize("protocol", ["legacy", "sse", "websocket"])


@by_each_protocol
def test_tokens_come_one_by_one_and_a_reload_finds_them(open_page: Open, wire: str, protocol: str, hold: Path) -> None:
    page = open_page(wire, "chat", protocol, hold)
    page.click("#send")
    page.wait_for_function(_in_the_middle())
    hold.unlink()
    expect(page.locator("li.ai")).to_have_text(WHOLE)
    expect(page.locator("#status")).to_have_text("idle")
    page.reload()
    expect(page.locator("li")).to_have_text(["hello", WHOLE])


@by_each_protocol
def test_a_person_approves_on_the_page_also_after_a_reload(open_page: Open, wire: str, protocol: str) -> None:
    page = open_page(wire, "approve", protocol)
    page.click("#send")
    expect(page.locator("#approve")).to_have_text("Pays 5 USD")
    page.reload()
    expect(page.locator("li")).to_have_text(["hello", "May I?"])
    page.click("#approve")
    expect(page.locator("li")).to_have_text(["hello", "May I?", "paid"])
    expect(page.locator("#approve")).to_have_count(0)
    expect(page.locator("#status")).to_have_text("idle")


@by_each_protocol
def test_a_page_whose_connection_breaks_catches_up(open_page: Open, link: Link, protocol: str, hold: Path) -> None:
    page = open_page(link.url, "chat", protocol, hold)
    page.click("#send")
    page.wait_for_function(_in_the_middle())
    before = link.connections
    assert link.cut() > 0
    eventually(lambda: link.connections > before)
    hold.unlink()
    expect(page.locator("li")).to_have_text(["hello", WHOLE])
    expect(page.locator("#status")).to_have_text("idle")


@by_each_protocol
def test_a_page_that_is_reloaded_in_mid_stream_goes_on(open_page: Open, wire: str, protocol: str, hold: Path) -> None:
    page = open_page(wire, "chat", protocol, hold)
    page.click("#send")
    page.wait_for_function(_in_the_middle())
    page.reload()
    hold.unlink()
    expect(page.locator("li")).to_have_text(["hello", WHOLE])
    expect(page.locator("#status")).to_have_text("idle")


def _in_the_middle() -> str:
    """JavaScript that is true while a part of the answer is on the page."""
    return f"""() => {{
        const text = document.querySelector("li.ai")?.textContent ?? "";
        return text.startsWith("{FIRST}") && !text.includes("{LAST}");
    }}"""


def test_the_page_reaches_the_server_from_another_origin(open_page: Open, wire: str) -> None:
    """What a page may read of an answer: the run's address among it."""
    page = open_page(wire, "line", "legacy")
    read = page.evaluate(
        """async (api) => {
            const body = JSON.stringify({assistant_id: "line", input: {log: []}});
            const headers = {"content-type": "application/json", "x-api-key": "any"};
            const answer = await fetch(`${api}/runs/wait`, {method: "POST", headers, body});
            const missing = await fetch(`${api}/nothing`);
            return [location.origin, (await answer.json()).log, answer.headers.get("content-location"),
                    missing.status, (await missing.json()).detail];
        }""",
        wire,
    )
    origin, log, address, status, detail = read
    assert not wire.startswith(origin)
    assert log == ["a", "b", "c"]
    assert re.fullmatch(r"/threads/[^/]+/runs/[^/]+", address)
    assert (status, detail) == (404, "Not Found")
