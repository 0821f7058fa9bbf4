"""`perdure approvals`: the questions that wait for a person, and their answers."""

from typing import Annotated, Any

import orjson
import typer

from perdure.cli.client import Client
from perdure.cli.output import JsonFlag, UrlOption, print_record, print_rows, question_text

app = typer.Typer(help="List open questions, approve or reject them.", no_args_is_help=True)

TokenArgument = Annotated[str, typer.Argument(help="Token of the question, from `perdure approvals list`.")]


@app.command("list")
def list_(
    status: Annotated[str, typer.Option(help="open, answered, rejected, timed_out, superseded")] = "open",
    agent: Annotated[str | None, typer.Option(help="Only questions of this graph.")] = None,
    thread: Annotated[str | None, typer.Option("--thread", "-t", help="Only questions of this thread.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: JsonFlag = False,
    url: UrlOption = None,
) -> None:
    """Questions to people."""
    query = {"status": status, "agent": agent, "thread_id": thread, "limit": limit}
    rows: list[dict[str, Any]] = Client(url).json("GET", "/interrupts", **query)
    if not as_json:
        rows = [{**row, "question": question_text(row["question"])} for row in rows]
    columns = ("token", "agent", "question", "deadline", "created_at", "status")
    print_rows(rows, columns, as_json=as_json, empty=f"no {status} questions")


@app.command()
def approve(
    token: TokenArgument,
    value: Annotated[str, typer.Option("--value", "-v", help="The answer as JSON.")] = "true",
    as_json: JsonFlag = False,
    url: UrlOption = None,
) -> None:
    """Answer a question; the run that waits for it goes on."""
    try:
        answer = orjson.loads(value)
    except orjson.JSONDecodeError as exc:
        raise typer.BadParameter(f"--value is not JSON: {exc}") from exc
    print_record(Client(url).json("POST", f"/interrupts/{token}/resolve", answer), as_json=as_json)


@app.command()
def reject(
    token: TokenArgument,
    reason: Annotated[str, typer.Option("--reason", "-r", help="What the agent is told.")] = "",
    as_json: JsonFlag = False,
    url: UrlOption = None,
) -> None:
    """Answer no; the run that waits for it goes on."""
    answer = {"reason": reason} if reason else {}
    print_record(Client(url).json("POST", f"/interrupts/{token}/reject", answer), as_json=as_json)
