"""What several test folders share: a real PostgreSQL, a fresh database per test, real server processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from xdist.scheduler import LoadScopeScheduling

from perdure.config import MODEL_KEYS
from perdure.engine.db import migrate
from perdure.engine.postgres import embedded

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 120.0
STOP_SECONDS = 60.0
WAIT_SECONDS = 30.0


TOGETHER = {
    "live": "api: crons links live metrics protocol sessions store",
    "guarded": "console: login oidc_login screenshots system",
    "replicas": "console: agents inbox overview playground run runs schedules store_page thread threads",
    "wire": "wire: browser contract_details contract_resuming contract_runs contract_streams contract_threads "
    "descriptions js_sdk remote_graph sdk studio",
}
"""By the fixture of servers that they share: test files that one process takes. Idle servers cost time, too."""

GROUPS = {
    f"tests/{folder}/test_{name}.py": fixture
    for fixture, (folder, _, names) in ((fixture, files.partition(": ")) for fixture, files in TOGETHER.items())
    for name in names.split()
}


class Distribution(LoadScopeScheduling):
    """Files as wholes, some of them together; crash tests share nothing and take long, so each is on its own."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if file.startswith("tests/crash/") else GROUPS.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Distribution | None:
    """What `make test` distributes tests by, see pytest-xdist."""
    return Distribution(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """A PostgreSQL server: TEST_DATABASE_URL, DATABASE_URL, or an embedded one in a temporary directory."""
    given = os.environ.get("TEST_DATABASE_URL") or os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="perdure-tests-") as folder:
        Path(folder).chmod(0o755)  # under root PostgreSQL runs as another account
        with embedded(Path(folder)) as url:
            yield url


@pytest.fixture(scope="session")
def template_database(database_url: str) -> Iterator[str]:
    """The name of a migrated, empty database; copying it is much quicker than migrating."""
    with Database(database_url) as (name, dsn):
        migrate(dsn)
        yield name


@pytest.fixture
def dsn(database_url: str, template_database: str) -> Iterator[str]:
    """A migrated database of this test's own."""
    with Database(database_url, template_database) as (_, dsn):
        yield dsn


@pytest.fixture
def empty_dsn(database_url: str) -> Iterator[str]:
    """A database of this test's own that has never been migrated."""
    with Database(database_url) as (_, dsn):
        yield dsn


class Database:
    """A new database, dropped at the end whoever is still connected."""

    def __init__(self, url: str, template: str = "template1") -> None:
        self.url, self.template, self.name = url, template, f"test_{uuid4().hex}"

    def __enter__(self) -> tuple[str, str]:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._execute(statement.format(sql.Identifier(self.name), sql.Identifier(self.template)))
        return self.name, make_conninfo(self.url, dbname=self.name)

    def __exit__(self, *exc: object) -> None:
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(self.name)))

    def _execute(self, statement: sql.Composed) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                with psycopg.connect(self.url, autocommit=True) as conn:
                    conn.execute(statement)
                return
            except psycopg.errors.ObjectInUse:  # PostgreSQL waits 5 s for those whom it has told to leave
                if time.monotonic() > end:
                    raise


T = TypeVar("T")


def eventually(look: Callable[[], T], is_right: Callable[[T], Any] = bool, *, seconds: float = WAIT_SECONDS) -> T:
    """What `look` returns as soon as it is right. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not is_right(found := look()):
        assert time.monotonic() < end, f"still {found!r} after {seconds} s"
        time.sleep(0.02)  # what another process does can only be asked again
    return found


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 that nobody is given by chance meanwhile: a server of ours may listen on it, and do so again.

    A socket that is bound and does not listen holds it. Only Linux lets another one listen there then; elsewhere the
    port is merely one that was free.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        if sys.platform != "linux":
            held.close()
        yield port


def clean_environment(**given: str) -> dict[str, str]:
    """The environment for a child process: no settings and no model key of whoever runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PERDURE_", "OTEL_"))}
    for name in ("DATABASE_URL", "DATABASE_URI", "POSTGRES_URI", "PORT", "N_JOBS_PER_WORKER", "LOG_LEVEL"):
        kept.pop(name, None)
    # Set and empty, so that a developer's .env does not fill them in.
    blank = dict.fromkeys((*MODEL_KEYS, "OPENAI_BASE_URL", "PERDURE_MODEL"), "")
    return {**kept, **blank, "PYTHONUNBUFFERED": "1", **given}


@dataclass
class Process:
    """A real `perdure` process."""

    popen: "subprocess.Popen[bytes]"
    log: Path
    url: str = ""

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def output(self) -> str:
        """All it has printed so far, log lines included."""
        return self.log.read_text(errors="replace")

    def stop(self) -> int:
        """SIGTERM; its exit code. Fails the test if it does not end in time."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL: no clean-up of any kind."""
        self.popen.kill()
        self.popen.wait()

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"process {self.pid} did not stop in {seconds} s:\n{self.output}")

    def until(self, pattern: str, seconds: float = START_SECONDS) -> "re.Match[str]":
        """Wait until its output matches. Fails the test if it ends first or takes too long."""
        end = time.monotonic() + seconds
        while True:
            ended = self.popen.poll() is not None
            if found := re.search(pattern, self.output):
                return found
            if ended or time.monotonic() > end:
                what = f"ended with {self.popen.returncode}" if ended else f"said nothing in {seconds} s"
                pytest.fail(f"process {self.pid} {what}, waiting for {pattern!r}:\n{self.output}")
            time.sleep(0.02)  # looks at the log again


Launch = Callable[..., Process]


@pytest.fixture
def free_port() -> Iterator[Callable[[], int]]:
    """Gives ports for this test's servers, see `reserved_port`."""
    with ExitStack() as held:
        yield lambda: held.enter_context(reserved_port())


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start `perdure <arguments>` in an empty directory; killed at the end of the test if it still runs."""
    started: list[Process] = []

    def start(*arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Process:
        log = tmp_path / f"process-{len(started)}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", "perdure.cli", *arguments],
                cwd=cwd or tmp_path,
                env=clean_environment(**(env or {})),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(Process(popen, log))
        return started[-1]

    yield start
    for process in started:
        if process.popen.poll() is None:
            process.popen.send_signal(signal.SIGTERM)
    for process in started:
        try:
            process.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture
def server(launch: Launch, request: pytest.FixtureRequest) -> Launch:
    """Start `perdure serve` on a free port and return once it answers /ok.

    `config` is its langgraph.json, `slots` 0 makes it an API without a worker, `port` is for a restart
    under the same address. It uses this test's database unless `env` says otherwise.
    """

    def start(
        *,
        config: Path = ROOT / "langgraph.json",
        slots: int = 4,
        port: int = 0,
        env: dict[str, str] | None = None,
    ) -> Process:
        arguments = ("serve", "--config", str(config), "--port", str(port), "--slots", str(slots))
        process = launch(*arguments, env=_with_database(request, env))
        process.url = process.until(r"http://127\.0\.0\.1:\d+")[0]
        assert httpx.get(f"{process.url}/ok", timeout=START_SECONDS).status_code == 200
        return process

    return start


@pytest.fixture
def worker(launch: Launch, request: pytest.FixtureRequest) -> Launch:
    """Start `perdure worker` on this test's database and return once it claims runs."""

    def start(*, config: Path = ROOT / "langgraph.json", slots: int = 4, env: dict[str, str] | None = None) -> Process:
        arguments = ("worker", "--config", str(config), "--slots", str(slots))
        process = launch(*arguments, env=_with_database(request, env))
        process.until(r"perdure worker")
        return process

    return start


def _with_database(request: pytest.FixtureRequest, env: dict[str, str] | None) -> dict[str, str]:
    if env and ("DATABASE_URL" in env or "PERDURE_DATA_DIR" in env):
        return env
    return {"DATABASE_URL": request.getfixturevalue("dsn"), **(env or {})}
