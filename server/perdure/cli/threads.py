"""`perdure threads`: the threads of a server and the state of one."""

from typing import Annotated, Any

import typer

from perdure.cli.client import Client
from perdure.cli.output import JsonFlag, UrlOption, print_json, print_rows

app = typer.Typer(help="List threads and show their state.", no_args_is_help=True)


@app.command("list")
def list_(
    status: Annotated[str | None, typer.Option(help="idle, busy, interrupted, error")] = None,
    agent: Annotated[str | None, typer.Option(help="Only threads of this graph.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: JsonFlag = False,
    url: UrlOption = None,
) -> None:
    """The threads that changed last."""
    body: dict[str, Any] = {"limit": limit, "select": ["thread_id", "status", "metadata", "updated_at"]}
    if status:
        body["status"] = status
    if agent:
        body["metadata"] = {"graph_id": agent}
    rows: list[dict[str, Any]] = Client(url).json("POST", "/threads/search", body)
    if not as_json:
        rows = [{**row, "agent": row["metadata"].get("graph_id")} for row in rows]
    print_rows(rows, ("thread_id", "agent", "status", "updated_at"), as_json=as_json, empty="no threads")


@app.command()
def state(
    thread: Annotated[str, typer.Argument(help="Id of the thread.")],
    values: Annotated[bool, typer.Option("--values", help="Only the graph's state, not its envelope.")] = False,
    as_json: JsonFlag = False,
    url: UrlOption = None,
) -> None:
    """The state of a thread as JSON."""
    found = Client(url).json("GET", f"/threads/{thread}/state")
    print_json(found["values"] if values else found)
