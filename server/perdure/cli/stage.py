"""The stage of `perdure demo`: real processes in a temporary directory, and what each of them has seen.

Model and weather service are processes of their own, so their logs tell how often each was called, whichever
worker was killed meanwhile. Everything is stopped and removed when the block ends, however it ends.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

import httpx
import orjson
import psutil

from perdure.config import child_environment

START_SECONDS = 60.0
PATIENCE_SECONDS = 60.0
STOP_SECONDS = 15.0
URL = r"http://127\.0\.0\.1:\d+"
TOOL_REQUEST = re.compile(r'"GET (?P<url>/v1/(?:search|forecast)\S*) HTTP/[\d.]+" (?P<status>\d+)')

T = TypeVar("T")


class DemoFailed(Exception):
    """Something that the demo claims does not hold, or did not happen in time."""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP has arrived; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def examples() -> Path:
    """The folder of the patterns' langgraph.json: shipped inside the package, or the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "examples", package.parents[1]):
        if (folder / "langgraph.json").is_file() and (folder / "graphs" / "weather.py").is_file():
            return folder
    raise DemoFailed(f"the example graphs are missing from {package}; install perdure again")


def until(what: str, found: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """Ask again and again until there is an answer. Raises DemoFailed when the time is over."""
    end = time.monotonic() + seconds
    while (answer := found()) is None:
        if time.monotonic() > end:
            raise DemoFailed(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.01)
    return answer


@dataclass(frozen=True)
class Child:
    """One process. All it prints is in `log`."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def says(self, pattern: str) -> str:
        """Wait until its output matches; what matched. Raises DemoFailed, also when it ends before."""

        def found() -> str | None:
            ended = self.popen.poll() is not None
            if match := re.search(pattern, self.output):
                return match[0]
            if ended:
                raise DemoFailed(f"the {self.name} ended with code {self.popen.returncode} while it was starting")
            return None

        return until(f"the {self.name} to start", found, START_SECONDS)

    def kill(self) -> None:
        """kill -9: no clean-up of any kind."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> None:
        """SIGTERM, as a deploy does it."""
        self.popen.terminate()
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise DemoFailed(f"the {self.name} did not stop within {STOP_SECONDS:g} s") from None

    def claimed(self, run_id: str) -> bool:
        """Whether this worker has taken the run."""
        lines = (line for line in self.output.splitlines() if line.startswith("{") and run_id in line)
        return any(_json(line).get("event") == "claimed" for line in lines)


class Stage:
    """The processes of the demo and the questions that it asks them."""

    def __init__(self, folder: Path, examples: Path) -> None:
        self.folder = folder
        self.examples = examples
        self.children: list[Child] = []
        self.ledger = folder / "payments.jsonl"
        self._env = child_environment(
            PYTHONUNBUFFERED="1",
            PYTHONUTF8="1",
            PERDURE_LOG_JSON="true",
            PERDURE_CONFIG=str(examples / "langgraph.json"),
            PERDURE_SIMULATED="true",
            PERDURE_MODEL="openai:simulated-1",
            OPENAI_API_KEY="simulated",
            PAYMENTS_LEDGER=str(self.ledger),
        )
        self._http: dict[str, httpx.Client] = {}

    def start_services(self) -> None:
        """The model and the weather service: what the agents call, outside of the workers. See `find_services`."""
        rules = cast("str", _json((self.examples / "langgraph.json").read_bytes())["simulator"]["rules"])
        simulator = ["-m", "perdure.simulator", "--rules", rules, "--config-dir", str(self.examples)]
        weather = ["-m", "uvicorn", "graphs.tools.open_meteo_fixture:app", "--app-dir", str(self.examples)]
        self._simulator = self._start("simulator", *simulator)
        self._weather = self._start("weather service", *weather, "--port", "0", "--no-use-colors")

    def find_services(self) -> None:
        """Wait for them; workers that start from now on know where they are."""
        model = self._simulator.says(URL)
        self._http["model"] = httpx.Client(base_url=model, trust_env=False, timeout=10)
        self._env |= {"OPENAI_BASE_URL": f"{model}/v1", "OPEN_METEO_URL": self._weather.says(URL)}

    def start_api(self, dsn: str) -> Child:
        """An API that executes nothing itself; not awaited, see `connect`."""
        self._env["DATABASE_URL"] = dsn
        return self._start("API server", *["-m", "perdure.cli", "serve", "--slots", "0", "--port", "0"])

    def start_worker(self, name: str, **env: str) -> Child:
        """A worker; not awaited, see `Child.says`."""
        return self._start(f"worker {name}", *["-m", "perdure.cli", "worker", "--slots", "4"], **env)

    def connect(self, api: Child) -> str:
        """Wait for the API server; its URL."""
        url = api.says(URL)
        self._http["api"] = httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE_SECONDS)
        return url

    def call(self, method: str, path: str, body: Any = None, *, expect: int = 200) -> Any:
        """The JSON of the API's answer. Raises DemoFailed when its status is not the expected one."""
        try:
            answer = self._http["api"].request(method, path, **({} if body is None else {"json": body}))
        except httpx.HTTPError as exc:
            raise DemoFailed(f"{method} {path} got no answer: {exc!r}") from exc
        if answer.status_code != expect:
            raise DemoFailed(f"{method} {path} answered {answer.status_code} and not {expect}: {answer.text[:500]}")
        return answer.json()

    def fail_model(self, **fault: Any) -> None:
        """What goes wrong with the next matching call of the model."""
        self._http["model"].post("/faults", json=[fault]).raise_for_status()

    def model_calls(self, prompt: str, *, tools_answered: bool) -> list[str]:
        """How each model call about this prompt came out, before or after the tools have answered it."""
        return [
            entry["outcome"]
            for entry in self._http["model"].get("/requests").json()
            if _last_prompt(entry["messages"]) == prompt and (entry["messages"][-1]["role"] == "tool") is tools_answered
        ]

    def tool_calls(self, city: str) -> list[int]:
        """The HTTP status of each look-up of a city at the weather service."""
        found = TOOL_REQUEST.finditer(self._weather.output)
        return [int(m["status"]) for m in found if parse_qs(urlsplit(m["url"]).query).get("name") == [city]]

    def payments(self) -> int:
        """How often the payment service was asked to pay."""
        return len(self.ledger.read_text().splitlines()) if self.ledger.exists() else 0

    def logs(self) -> str:
        """The last lines of every process, for whoever has to find out what went wrong."""
        tails = (f"--- {child.name}\n" + "\n".join(child.output.splitlines()[-8:]) for child in self.children)
        return "\n".join(tails)

    def close(self) -> None:
        """Stop every child, also one that was being started; within STOP_SECONDS."""
        for http in self._http.values():
            http.close()
        running = psutil.Process().children()
        for process in running:
            with suppress(psutil.Error):
                process.terminate()
        for process in psutil.wait_procs(running, timeout=STOP_SECONDS)[1]:
            with suppress(psutil.Error):
                process.kill()

    def _start(self, name: str, *words: str, **env: str) -> Child:
        log = self.folder / f"{len(self.children)}-{name.replace(' ', '-')}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, *words],
                cwd=self.folder,
                env={**self._env, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the demo only, which then stops its children
            )
        self.children.append(Child(name, popen, log))
        return self.children[-1]


@contextmanager
def staged() -> Iterator[tuple[Stage, Callable[[], str]]]:
    """A stage, and the function that starts its database and returns the DSN.

    Raises Interrupted out of the block on the first SIGINT, SIGTERM or SIGHUP; later ones change nothing, as
    the clean-up is bounded in time. Must be used in the main thread.
    """
    from perdure.engine.postgres import embedded, location

    with _signals() as ignore, ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-demo-"))).resolve()
        if folder.stat().st_uid == 0:
            folder.chmod(0o755)  # PostgreSQL does not run as root; its account must get to its data
        if (home := location(folder)) != folder:  # the data of root may have to live elsewhere
            stack.callback(shutil.rmtree, home, ignore_errors=True)
        stage = Stage(folder, examples())
        database = stack.enter_context(ExitStack())
        stack.callback(stage.close)
        stack.callback(ignore)
        yield stage, lambda: database.enter_context(embedded(folder))


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    def handle(number: int, frame: FrameType | None) -> None:
        ignore()
        raise Interrupted(number)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield ignore
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _json(text: str | bytes) -> dict[str, Any]:
    """A JSON object; empty for a line that is still being written."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}


def _last_prompt(messages: list[dict[str, Any]]) -> str:
    return next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")
