"""One real server for the wire tests, reached only over TCP, and the programs that some of them need."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import START_SECONDS, Database, Process, clean_environment
from tests.wire.link import Link

HERE = Path(__file__).parent
JS = HERE / "js"
WAIT_SECONDS = 60.0

REQUIRED = os.environ.get("CI") == "true"
"""In CI a missing program is a failure: a skipped test would hide that nothing was tested."""


@contextmanager
def serving(database_url: str, folder: Path, **env: str) -> Iterator[Process]:
    """`perdure serve` with the graphs of this folder and a new database."""
    log = folder / "serve.log"
    with Database(database_url) as (_, dsn), log.open("wb") as output:
        command = ["serve", "--config", str(HERE / "langgraph.json"), "--port", "0", "--slots", "8"]
        popen = subprocess.Popen(
            [sys.executable, "-m", "perdure.cli", *command],
            cwd=folder,
            env=clean_environment(DATABASE_URL=dsn, **env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        process = Process(popen, log)
        try:
            process.url = process.until(r"http://127\.0\.0\.1:\d+", START_SECONDS)[0]
            assert httpx.get(f"{process.url}/ok", timeout=START_SECONDS).status_code == 200
            yield process
        finally:
            process.stop()


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a line for each time that the server has built the graph `built`."""
    return tmp_path_factory.mktemp("builds") / "builds"


@pytest.fixture(scope="session")
def wire(database_url: str, tmp_path_factory: pytest.TempPathFactory, builds: Path) -> Iterator[str]:
    """The address of the server that all these tests share: no test may count on being alone."""
    env = {"PERDURE_HEARTBEAT_SECONDS": "0.5", "WIRED_BUILDS": str(builds)}
    with serving(database_url, tmp_path_factory.mktemp("wire"), **env) as process:
        yield process.url


@pytest.fixture(scope="session")
def http(wire: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=wire, timeout=WAIT_SECONDS) as client:
        yield client


@pytest.fixture
def thread(http: httpx.Client) -> str:
    """The id of a new thread."""
    return http.post("/threads", json={}).json()["thread_id"]


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """A file that holds a run of `slow` or `chat` which names it in its input, until it is taken away."""
    (tmp_path / "hold").touch()
    return tmp_path / "hold"


@pytest.fixture
def link(wire: str) -> Iterator[Link]:
    """A connection to the server that a test can cut."""
    with Link(wire) as link:
        yield link


def missing(what: str) -> None:
    """Skip the test because `what` is not there; in CI, fail it."""
    text = f"needs {what}: make test-deps installs it"
    if REQUIRED:
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def node() -> str:
    """Path of Node.js; the packages of `js/` are installed."""
    found = shutil.which("node")
    if not found:
        missing("Node.js 20 or newer")
    if not (JS / "node_modules" / ".package-lock.json").exists():
        missing("the npm packages of tests/wire/js")
    return str(found)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium on this machine; no browser is ever downloaded."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        missing("Chromium")
    return str(found)
