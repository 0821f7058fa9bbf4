"""`perdure serve`, `perdure worker`, `perdure migrate`: the commands that are a process of the system.

What they run is imported when they run: LangGraph takes two seconds to import, which `perdure runs list`
need not wait for.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import structlog
import typer
from pydantic import ValidationError
from rich.panel import Panel
from rich.text import Text

from perdure.cli.output import Exit, JsonFlag, console, fail, print_json
from perdure.config import Settings, has_model_key, load_settings

if TYPE_CHECKING:
    from perdure.app import Started

T = TypeVar("T")

log = structlog.get_logger(__name__)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="[default: langgraph.json]")]
SlotsOption = Annotated[
    int | None, typer.Option("--slots", min=0, help="Runs at the same time; 0: API only. [default: 16]")
]


def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: a free one. [default: 2024]")] = None,
    slots: SlotsOption = None,
) -> None:
    """Serve the API and execute runs, until SIGTERM or Ctrl-C."""
    settings = settings_or_fail(config=config, host=host, port=port, slots=slots)
    _run(settings, http=True)


def worker(
    config: ConfigOption = None,
    slots: Annotated[int | None, typer.Option("--slots", min=1, help="Runs at the same time. [default: 16]")] = None,
) -> None:
    """Execute runs without serving the API; start as many as you like."""
    settings = settings_or_fail(config=config, slots=slots)
    if settings.slots == 0:
        fail("a worker needs at least one slot: give --slots or set PERDURE_SLOTS")
    _run(settings, http=False)


def migrate(as_json: JsonFlag = False) -> None:
    """Bring the database up to date. Safe to run at any time, by any number of processes."""
    settings = settings_or_fail()

    def work() -> list[str]:
        from perdure import app as wiring
        from perdure import logs
        from perdure.engine import db, embedding

        logs.setup(settings)
        with wiring.database(settings) as dsn:
            return db.migrate(dsn, dims=embedding.dims(settings.config))

    applied = guarded(work)
    if as_json:
        print_json({"applied": applied})
    else:
        typer.echo("\n".join(f"applied {name}" for name in applied) or "the database is up to date")


def settings_or_fail(**given: Any) -> Settings:
    """The settings; a value that does not fit ends the command and names the variable."""
    try:
        return load_settings(**given)
    except ValidationError as exc:
        problem = exc.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        fail(f"setting {name}: {problem['msg']} (got {problem['input']!r})", Exit(1))


def guarded(work: Callable[[], T]) -> T:
    """Do `work`; failures that a person at the terminal can mend end the command with one line."""
    import psycopg

    from perdure.app import StartError
    from perdure.engine.db import MigrationError
    from perdure.engine.postgres import EmbeddedPostgresError
    from perdure.engine.registry import ConfigError

    try:
        return work()
    except psycopg.OperationalError as exc:
        fail(f"the database cannot be reached: {exc}", Exit.UNREACHABLE)
    except (StartError, EmbeddedPostgresError, MigrationError, ConfigError) as exc:
        fail(str(exc))


def _run(settings: Settings, *, http: bool) -> None:
    """Run, then end the process at once: threads with author code must not hold it back."""
    from perdure import app as wiring
    from perdure import logs

    logs.setup(settings)
    code = 0
    try:
        guarded(lambda: wiring.run(settings, http=http, ready=_banner))
    except typer.Exit as exc:
        code = exc.exit_code
    except Exception:  # the edge of the process: the log has it, the exit code says so
        log.exception("cannot start")
        code = 1
    wiring.leave(code)


def _banner(started: "Started") -> None:
    lines: list[tuple[str, str]] = []
    if started.url:
        lines += [("API", started.url), ("Docs", f"{started.url}/docs")]
        lines.append(("Studio", f"https://smith.langchain.com/studio/?baseUrl={started.url}"))
    lines.append(("Graphs", ", ".join(started.graphs)))
    lines.append(("Database", started.database))
    lines.append(("Slots", str(started.slots) if started.slots else "none here: start `perdure worker`"))
    model = "from your environment" if has_model_key() else "none: no model key found"
    simulated = "SIMULATED (simulated-1): no model key found, answers are made up by rules"
    lines.append(("Model", simulated if started.simulated else model))
    if started.traces_to:
        lines.append(("Traces", started.traces_to))
    text = Text("\n").join(Text.assemble((f"{name:<10}", "bold"), value) for name, value in lines)
    title = "perdure" if started.url else "perdure worker"
    console().print(Panel(text, title=title, title_align="left", expand=False))
    sys.stdout.flush()
