"""`perdure demo`: the story in a minute, with real processes, and every claim checked while it is made.

Agents answer, a person decides, a worker is killed with `kill -9`, a service is down. The model is simulated
and counts its calls. Nothing outside a temporary directory is touched.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import httpx
import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from perdure.cli.output import JsonFlag, fail, print_json
from perdure.cli.serve import settings_or_fail
from perdure.cli.stage import Child, DemoFailed, Interrupted, staged, until

WIDTH = 100
LEASE_SECONDS = 10.0  # the default: what a takeover would wait for if the kill were not noticed
RETRIES_SHOWN = 3

WEATHER = "What is the weather like in San Francisco?"
KILLED = "What is the weather like in Boston?"
DENVER = "What is the weather like in Denver?"
CLAIM = "Process my claim of 3000 USD for a hospital bill."
POEM, SHORTEN = "make a poem about durable execution", "shorten it to 2 lines"


def demo(as_json: JsonFlag = False) -> None:
    """Show in a minute what perdure does: agents, a person, kill -9 of a worker, an outage.

    Starts all it needs, touches no database or server of yours, and cleans up at the end. Exit code 1 if
    anything that it claims does not hold.
    """
    from perdure import logs
    from perdure.engine.postgres import EmbeddedPostgresError

    logs.setup(settings_or_fail(log_level="warning"))
    story = Story(Console(file=sys.stderr if as_json else sys.stdout, highlight=False))
    try:
        story.tell()
    except (DemoFailed, EmbeddedPostgresError) as exc:
        fail(f"the demo failed: {exc}")
    except Interrupted as exc:
        typer.echo("perdure: interrupted; everything is stopped and removed", err=True)
        raise typer.Exit(128 + exc.number) from None
    if as_json:
        print_json(asdict(story.report))


@dataclass
class Calls:
    """How often one call of a run was started, and how often it came to its end."""

    run: str
    call: str
    started: int
    finished: int


@dataclass
class Report:
    """What was seen; `claims` are those that hold, in the order of the story."""

    seconds: float = 0
    takeover_seconds: float = 0
    claims: list[str] = field(default_factory=list[str])
    retries: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    calls: list[Calls] = field(default_factory=list[Calls])
    attempts: dict[str, int] = field(default_factory=dict[str, int])


class Story:
    """The scenes, in order. Each raises DemoFailed where it does not go as told."""

    def __init__(self, console: Console) -> None:
        if not console.is_terminal or console.width > WIDTH:
            console.width = WIDTH
        self.console = console
        self.workers: list[Child] = []
        self.mark = "✓" if console.encoding.lower().startswith("utf") else "+"
        self.report = Report()

    def tell(self) -> None:
        began = time.monotonic()
        with staged() as (self.stage, start_database):
            try:
                self.start(start_database)
                self.an_agent_answers()
                self.a_conversation_remembers()
                self.a_person_decides()
                self.a_worker_is_killed()
                self.a_service_is_down()
                self.count()
            except (DemoFailed, httpx.HTTPError) as exc:
                self.console.print(Text(self.stage.logs(), style="dim"))
                raise DemoFailed(str(exc) or repr(exc)) from exc
        self.report.seconds = round(time.monotonic() - began, 1)
        held = f"\n[bold green]{len(self.report.claims)} claims hold[/], {self.report.seconds:.1f} s."
        self.console.print(f"{held} Everything is stopped and removed.")
        self.console.print("Your turn: [bold]perdure serve[/], then [bold]perdure invoke weather -i '{...}'[/]")

    # -- the scenes

    def start(self, start_database: Callable[[], str]) -> None:
        self.console.print("[bold]perdure[/]: durable agents on LangGraph and PostgreSQL")
        self.scene("Start", f"real processes, in {self.stage.folder}. The model is SIMULATED: its answers are rules.")
        stage = self.stage
        with self.doing("embedded PostgreSQL; the model and the weather service, which count their calls"):
            stage.start_services()
            dsn = start_database()
            stage.find_services()
        with self.doing("an API server without slots; two workers, A and B"):
            api = stage.start_api(dsn)
            self.workers = [stage.start_worker(name) for name in "AB"]
            url = stage.connect(api)
            for worker in self.workers:
                worker.says("perdure worker")
        self.note(f"{url}, workers {' and '.join(str(worker.popen.pid) for worker in self.workers)}")

    def an_agent_answers(self) -> None:
        self.scene("An agent answers over HTTP", "it asks the model, calls a tool, and asks the model again")
        with self.doing("POST /agents/weather/run"):
            answer = self.stage.call("POST", "/agents/weather/run", {"prompt": WEATHER})["answer"]
        self.dialogue(WEATHER, answer)
        self.claim("the agent answers with what its tool found", "San Francisco" in answer and "16.4" in answer)

    def a_conversation_remembers(self) -> None:
        self.scene("A conversation remembers", "two calls with one key are one thread")
        said: list[str] = []
        with self.doing("POST /agents/chat/session123/run, twice"):
            for message in (POEM, SHORTEN):
                said.append(self.stage.call("POST", "/agents/chat/session123/run", {"message": message})["answer"])
        for message, answer in zip((POEM, SHORTEN), said, strict=True):
            self.dialogue(message, answer)
        self.claim("the second answer builds on the first", said[1].splitlines() == said[0].splitlines()[:2])
        history = self.stage.call("GET", "/agents/chat/session123/history")
        self.claim("the history holds both messages and both answers", len(history) == 4)

    def a_person_decides(self) -> None:
        self.scene("A person decides", "claims above 1000 USD wait for an answer: a row, no worker, no memory")
        with self.doing("POST /agents/approval/run"):
            asking = self.stage.call("POST", "/agents/approval/run", {"prompt": CLAIM}, expect=202)
        question = asking["interrupts"][0]
        self.dialogue(CLAIM, question["question"]["question"])
        path = f"/interrupts/{question['token']}/resolve"
        self.claim("nothing is paid while the question is open", self.stage.payments() == 0)
        with self.doing("POST /interrupts/<token>/resolve: true"):
            run = self.stage.call("POST", path, True, expect=202)
            answer = self.stage.call("GET", f"/threads/{run['thread_id']}/runs/{run['run_id']}/join")["answer"]
        self.note(answer)
        self.claim("approved, and paid once", "Approved" in answer and self.stage.payments() == 1)
        self.stage.call("POST", path, False, expect=409)
        self.claim("a second answer is refused (409)", self.stage.payments() == 1)

    def a_worker_is_killed(self) -> None:
        stage = self.stage
        self.scene("kill -9", "the worker dies in the middle of a run: between its tool and its answer")
        # only the second call shows the model what the tool found
        stage.fail_model(hang=300, match="temperature_celsius")
        with self.doing("the model has chosen a tool, the tool has answered, the model is asked again, and hangs"):
            run = self.send(KILLED)
            until("the second model call", lambda: stage.model_calls(KILLED, tools_answered=True) or None)
            owner = until("the run's worker", lambda: self.owner(run))
        other = next(worker for worker in self.workers if worker is not owner)
        self.workers.remove(owner)
        with self.doing(f"kill -9 of {owner.name} ({owner.popen.pid}); {other.name} takes the run over") as took:
            owner.kill()
            until("the takeover", lambda: other.claimed(run["run_id"]) or None)
        self.report.takeover_seconds = round(took(), 2)
        self.claim(
            f"taken over {self.report.takeover_seconds:.2f} s after the kill, without waiting for the lease to end",
            self.report.takeover_seconds < LEASE_SECONDS,
        )
        with self.doing("the run goes on"):
            answer = self.join(run)["answer"]
        self.dialogue(KILLED, answer)
        first = stage.model_calls(KILLED, tools_answered=False)
        second = stage.model_calls(KILLED, tools_answered=True)
        tools = stage.tool_calls("Boston")
        once = (len(first), len(tools)) == (1, 1)
        self.claim("what was finished is not done again: one first model call, one tool call", once)
        self.claim("only the model call in flight at the kill is made again", len(second) == 2)
        self.attempts("Boston, killed", run, exactly=2)

    def a_service_is_down(self) -> None:
        stage = self.stage
        self.scene("An outage", "Denver's weather service fails: the run is tried again, later each time")
        run = self.send(DENVER)
        with self.doing(f"{RETRIES_SHOWN} attempts fail"):
            waits = [self.retry(run) for _ in range(RETRIES_SHOWN)]
        self.claim("each wait is longer than the one before", waits == sorted(set(waits)))
        with self.doing("the fix: the worker stops (SIGTERM), a new one starts with FAIL_ON_DENVER=false"):
            for worker in self.workers:
                worker.stop()
            self.workers = [stage.start_worker("C", FAIL_ON_DENVER="false")]
            self.workers[0].says("perdure worker")
        with self.doing("the same run goes on"):
            answer = self.join(run)["answer"]
        self.dialogue(DENVER, answer)
        self.claim("the same run finishes", "Denver" in answer and "24.1" in answer)
        self.claim(
            "without asking the model again which tool to call",
            len(stage.model_calls(DENVER, tools_answered=False)) == 1,
        )
        self.attempts("Denver, outage", run, more_than=RETRIES_SHOWN)

    def count(self) -> None:
        self.scene("What was called how often", "as the model, the weather service and the payments saw it")
        in_flight = {("Boston, killed", "model: answer")}
        for run, prompt, city in (
            ("San Francisco", WEATHER, "San Francisco"),
            ("Boston, killed", KILLED, "Boston"),
            ("Denver, outage", DENVER, "Denver"),
        ):
            self.model_calls(run, "model: which tool", prompt, tools_answered=False)
            tools = self.stage.tool_calls(city)
            self.report.calls.append(Calls(run, "tool: get_weather", len(tools), tools.count(200)))
            self.model_calls(run, "model: answer", prompt, tools_answered=True)
        self.model_calls("claim of 3000 USD", "model: which tool", CLAIM, tools_answered=False)
        paid = self.stage.payments()
        self.report.calls.append(Calls("claim of 3000 USD", "payment", paid, paid))
        self.model_calls("claim of 3000 USD", "model: answer", CLAIM, tools_answered=True)
        table = Table("run", "call", box=None, pad_edge=False, header_style="bold")
        for title in ("started", "finished"):
            table.add_column(title, justify="right")
        table.add_column("")
        shown = ""
        for row in self.report.calls:
            note = "in flight at the kill" if (row.run, row.call) in in_flight else ""
            table.add_row("" if row.run == shown else row.run, row.call, str(row.started), str(row.finished), note)
            shown = row.run
        self.console.print(Padding(table, (0, 0, 0, 2), expand=False))
        self.claim("every call finished exactly once", all(row.finished == 1 for row in self.report.calls))
        twice = {(row.run, row.call) for row in self.report.calls if row.started != 1}
        self.claim("only the one that the kill cut off was started twice", twice == in_flight)

    # -- what the scenes do

    def send(self, prompt: str) -> dict[str, Any]:
        return self.stage.call("POST", "/agents/weather/send", {"prompt": prompt}, expect=202)

    def join(self, run: dict[str, Any]) -> Any:
        values = self.stage.call("GET", f"/threads/{run['thread_id']}/runs/{run['run_id']}/join")
        if "answer" not in values:
            raise DemoFailed(f"run {run['run_id']} has no answer: {values}")
        return values

    def record(self, run: dict[str, Any]) -> dict[str, Any]:
        return self.stage.call("GET", f"/threads/{run['thread_id']}/runs/{run['run_id']}")

    def owner(self, run: dict[str, Any]) -> Child | None:
        return next((worker for worker in self.workers if worker.claimed(run["run_id"])), None)

    def retry(self, run: dict[str, Any]) -> float:
        """Wait for the next failed attempt, show it, and return the seconds until the one after it."""
        seen = self.report.retries[-1]["attempt"] if self.report.retries else 0

        def failed() -> dict[str, Any] | None:
            record = self.record(run)
            waits = record["status"] == "pending" and record.get("next_at") and record["attempt"] > seen
            return record if waits else None

        record = until(f"failure {seen + 1} of the run", failed)
        due, ended = (datetime.fromisoformat(record[name]) for name in ("next_at", "updated_at"))
        wait = round((due - ended).total_seconds(), 2)
        error, attempt = record["error"]["message"], record["attempt"]
        self.report.retries.append({"attempt": attempt, "error": error, "next_at": record["next_at"], "wait": wait})
        self.note(f"attempt {attempt}: {error}; next_at {due.astimezone():%H:%M:%S}, after {wait:g} s")
        return wait

    def attempts(self, name: str, run: dict[str, Any], *, exactly: int | None = None, more_than: int = 0) -> None:
        found = self.report.attempts[name] = self.record(run)["attempt"]
        self.claim(f"it took {found} attempts", found == exactly if exactly else found > more_than)

    def model_calls(self, run: str, call: str, prompt: str, *, tools_answered: bool) -> None:
        outcomes = self.stage.model_calls(prompt, tools_answered=tools_answered)
        self.report.calls.append(Calls(run, call, len(outcomes), outcomes.count("answered")))

    # -- how it is shown

    def scene(self, title: str, text: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}[/]", align="left", style="dim")
        self.console.print(Text(text, style="dim"))

    @contextmanager
    def doing(self, what: str) -> Iterator[Callable[[], float]]:
        """Show `what` while it is done, and how long it took; gives a function that tells the seconds."""
        began = time.monotonic()
        taken: list[float] = []
        if self.console.is_terminal:
            with self.console.status(Text(what)):
                yield lambda: taken[0]
        else:
            yield lambda: taken[0]
        taken.append(time.monotonic() - began)
        line = Table.grid(expand=True)
        line.add_column(ratio=1)
        line.add_column(justify="right", style="dim")
        line.add_row(Text.assemble(("  > ", "cyan"), what), f"{taken[0]:.2f} s")
        self.console.print(line)

    def dialogue(self, asked: str, answer: str) -> None:
        self.note(f"- {asked}")
        self.note(answer)

    def note(self, text: str) -> None:
        self.console.print(Padding(Text(text, style="italic"), (0, 0, 0, 4), expand=False))

    def claim(self, what: str, holds: bool) -> None:
        """A sentence that is true, with a check mark; DemoFailed with it if it is not."""
        if not holds:
            raise DemoFailed(f"this does not hold: {what}")
        self.report.claims.append(what)
        self.console.print(Text.assemble((f"  {self.mark} ", "bold green"), what))
