"""`perdure runs`: what runs, what has run, and how to stop it."""

from typing import Annotated, Any

import typer

from perdure.cli.client import Client
from perdure.cli.output import Exit, JsonFlag, UrlOption, fail, print_record, print_rows

app = typer.Typer(help="List, describe and cancel runs.", no_args_is_help=True)

RunArgument = Annotated[str, typer.Argument(help="Id of the run.")]
ThreadOption = Annotated[
    str | None, typer.Option("--thread", "-t", help="Id of its thread; searched for if not given.")
]

SEARCHED = 100  # newest runs among which one is looked for by its id alone
COLUMNS = ("run_id", "thread_id", "status", "attempt", "created_at", "error")


@app.command("list")
def list_(
    thread: Annotated[str | None, typer.Option("--thread", "-t", help="Only runs of this thread.")] = None,
    status: Annotated[str | None, typer.Option(help="pending, running, success, error, interrupted")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: JsonFlag = False,
    url: UrlOption = None,
) -> None:
    """The newest runs, of all threads or of one."""
    rows = _newest(Client(url), thread, status=status, limit=limit)
    print_rows(rows, COLUMNS, as_json=as_json, empty="no runs")


@app.command()
def describe(run: RunArgument, thread: ThreadOption = None, as_json: JsonFlag = False, url: UrlOption = None) -> None:
    """Everything the server says about one run."""
    print_record(_find(Client(url), run, thread), as_json=as_json)


@app.command()
def cancel(
    run: RunArgument,
    thread: ThreadOption = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Also undo what the run wrote to its thread.")] = False,
    as_json: JsonFlag = False,
    url: UrlOption = None,
) -> None:
    """Stop a run and wait until it has stopped."""
    client = Client(url)
    found = _find(client, run, thread)
    path = f"/threads/{found['thread_id']}/runs/{run}"
    client.json("POST", f"{path}/cancel", wait="1", action="rollback" if rollback else "interrupt")
    result = {"run_id": run, "thread_id": found["thread_id"], "cancelled": True}
    print_record(result, as_json=as_json)


def _newest(client: Client, thread: str | None, *, status: str | None, limit: int) -> list[dict[str, Any]]:
    """The newest runs of a thread, or of the threads that changed last."""
    threads = [thread] if thread else _threads(client, limit)
    rows: list[dict[str, Any]] = []
    for thread_id in threads:
        rows += client.json("GET", f"/threads/{thread_id}/runs", status=status, limit=limit)
    return sorted(rows, key=lambda row: row["created_at"], reverse=True)[:limit]


def _threads(client: Client, limit: int) -> list[str]:
    body = {"limit": limit, "select": ["thread_id"], "sort_by": "updated_at", "sort_order": "desc"}
    return [row["thread_id"] for row in client.json("POST", "/threads/search", body)]


def _find(client: Client, run: str, thread: str | None) -> dict[str, Any]:
    if thread:
        return client.json("GET", f"/threads/{thread}/runs/{run}")
    found = [row for row in _newest(client, None, status=None, limit=SEARCHED) if row["run_id"] == run]
    if not found:
        fail(f"run {run} is not among the newest {SEARCHED}; name its thread with --thread", Exit.REFUSED)
    return found[0]
