"""`perdure invoke`: start an agent and show what it answers."""

import sys
from typing import Annotated, Any, cast
from urllib.parse import quote

import httpx
import orjson
import typer

from perdure.cli.client import Client, refuse
from perdure.cli.output import Exit, JsonFlag, UrlOption, fail, print_json, question_text


def invoke(
    agent: Annotated[str, typer.Argument(help="Name of the graph, or id of an assistant.")],
    input_text: Annotated[
        str, typer.Option("--input", "-i", help="The graph's input as JSON; '-' reads it from stdin.")
    ] = "{}",
    key: Annotated[str | None, typer.Option(help="Session: calls with the same key share a thread.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show steps and tokens as they come.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start the run and do not wait for it.")] = False,
    delay: Annotated[str | None, typer.Option(help="With --detach: start later, e.g. 10s.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Calls with the same key and input start one run.")
    ] = None,
    as_json: JsonFlag = False,
    url: UrlOption = None,
) -> None:
    """Run an agent: its output as JSON, exit code 1 if it failed, 3 if a person has to answer first."""
    if stream and detach:
        raise typer.BadParameter("--stream and --detach exclude each other")
    if delay and not detach:
        raise typer.BadParameter("--delay needs --detach")
    body = _parsed(sys.stdin.read() if input_text == "-" else input_text)
    client = Client(url)
    path = f"/agents/{quote(agent, safe='')}" + (f"/{quote(key, safe='')}" if key else "")
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    if detach or stream:
        sent = client.json("POST", f"{path}/send", body, headers=headers, delay=delay)
        if detach:
            _print_sent(sent, as_json=as_json)
        else:
            _follow(client, sent, as_json=as_json)
        return
    _print_outcome(client.send("POST", f"{path}/run", body, headers=headers), as_json=as_json)


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise typer.BadParameter(f"--input is not JSON: {exc}") from exc


def _print_sent(sent: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(sent)
    else:
        typer.echo(f"run {sent['run_id']}  thread {sent['thread_id']}  {sent.get('status', '')}".rstrip())


def _print_outcome(response: httpx.Response, *, as_json: bool) -> None:
    if response.status_code == 202:
        _print_waiting(response.json(), as_json=as_json)
    if response.is_error:
        run_id = _field(response, "run_id")
        if run_id:  # the run was accepted and failed
            fail(f"{_field(response, 'detail')} (run {run_id})", Exit.FAILED)
        refuse(response)
    print_json(response.json())


def _print_waiting(body: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(body)
    else:
        typer.echo(f"run {body.get('run_id')} waits for a person:")
        for question in cast("list[dict[str, Any]]", body.get("interrupts") or []):
            typer.echo(f"  {question_text(question.get('question'))}")
            typer.echo(f"  perdure approvals approve {question.get('token')}")
    raise typer.Exit(int(Exit.WAITING))


def _field(response: httpx.Response, name: str) -> Any:
    try:
        body: Any = response.json()
    except ValueError:
        return None
    return cast("dict[str, Any]", body).get(name) if isinstance(body, dict) else None


def _follow(client: Client, sent: dict[str, Any], *, as_json: bool) -> None:
    """Print the events of a run until it ends, then its outcome; with --json one object a line.

    Steps go to stderr, tokens and the outcome to stdout.
    """
    path = f"/threads/{sent['thread_id']}/runs/{sent['run_id']}"
    in_text = False
    streamed: set[Any] = set()  # ids of messages whose chunks were printed: the whole message follows them
    for event, data in client.events(f"{path}/stream"):
        token = _token(data, streamed) if event.startswith("messages") else None
        if as_json:
            typer.echo(orjson.dumps({"event": event, "data": data}).decode())
        elif token is not None:
            typer.echo(token, nl=False)
        elif event.split("|")[0] in ("updates", "custom"):
            typer.echo(("\n" if in_text else "") + orjson.dumps(data).decode(), err=True)
        in_text = token is not None or (in_text and event.startswith("messages"))
    if in_text and not as_json:
        typer.echo()
    outcome: Any = client.json("GET", f"{path}/join")
    ended = cast("dict[str, Any]", outcome) if isinstance(outcome, dict) else {}
    if error := ended.get("__error__"):
        fail(f"{error['error']}: {error['message']} (run {sent['run_id']})")
    if as_json:
        typer.echo(orjson.dumps({"event": "end", "data": outcome}).decode())
    else:
        print_json(outcome)
    if "__interrupt__" in ended:
        raise typer.Exit(int(Exit.WAITING))


def _token(data: Any, streamed: set[Any]) -> str | None:
    """What a model said in one event, [message, metadata]; None if it is not the model's, or was printed."""
    message: Any = cast("list[Any]", data)[0] if isinstance(data, list) and data else None
    if not isinstance(message, dict):
        return None
    said = cast("dict[str, Any]", message)
    if said.get("type") == "AIMessageChunk":
        streamed.add(said.get("id"))
    elif said.get("type") != "ai" or said.get("id") in streamed:
        return None
    content = said.get("content")
    return content if isinstance(content, str) else None
