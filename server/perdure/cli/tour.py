"""`perdure tour`: every example of every agent of a running server, one line each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any, cast

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from perdure.cli import needed
from perdure.cli.client import Client
from perdure.cli.example import Played, play
from perdure.cli.output import Exit, JsonFlag, UrlOption, console, fail, print_json
from perdure.cli.stage import DemoFailed

SAID = ("answer", "result", "decision", "report")
"""Keys of an output that say by themselves what came of it."""


def tour(
    only: Annotated[str | None, typer.Option(help="Names of agents with commas between; all if not given.")] = None,
    needs_port: Annotated[
        int, typer.Option(help="Where the second server is, or is started, that some examples need.")
    ] = 2025,
    as_json: JsonFlag = False,
    url: UrlOption = None,
) -> None:
    """Run every example of every agent against a running server; exit code 1 if one goes wrong.

    Questions are answered as the example says. Where an example needs another server, that one is started from
    its langgraph.<name>.json for the duration of the tour.
    """
    client = Client(url)
    agents = _chosen(client.json("GET", "/agents"), only)
    examples = [(row["agent"], example) for row in agents for example in row["examples"]]
    if not examples:
        fail("no examples: add `examples` to the graphs in langgraph.json", Exit.REFUSED)
    with ExitStack() as stack:
        try:
            users: dict[str, set[str]] = {}
            for agent, example in examples:
                if "needs" in example:
                    users.setdefault(example["needs"], set()).add(agent)
            for name in users:
                stack.enter_context(needed.running(name, needs_port, partial(_quiet, client, users[name])))
            rows = _play_all(client, examples, as_json=as_json)
            stack.close()
        except DemoFailed as exc:
            fail(str(exc))
    failed = [row for row in rows if not row.ok]
    if as_json:
        print_json({"ok": not failed, "failed": len(failed), "rows": [row.as_json() for row in rows]})
    else:
        typer.echo(_summary(rows, failed))
    if failed:
        raise typer.Exit(int(Exit.FAILED))


def _chosen(agents: list[dict[str, Any]], only: str | None) -> list[dict[str, Any]]:
    if only is None:
        return agents
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    known = [row["agent"] for row in agents]
    if unknown := [name for name in wanted if name not in known]:
        fail(f"agent '{unknown[0]}' not found; the server has: {', '.join(known)}", Exit.REFUSED)
    return [row for row in agents if row["agent"] in wanted]


def _play_all(client: Client, examples: Sequence[tuple[str, dict[str, Any]]], *, as_json: bool) -> list[Played]:
    rows: list[Played] = []
    width = max(len(agent) for agent, _ in examples)
    lines, out = Console(stderr=True, highlight=False), console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out if out.is_terminal else lines, transient=True) as progress:
        bar = progress.add_task("tour", total=len(examples))
        for agent, example in examples:
            progress.update(bar, description=f"{agent:<{width}}")
            rows.append(play(client, agent, example))
            progress.advance(bar)
            if not as_json:
                out.print(_line(rows[-1], width, out.width), no_wrap=True, overflow="ellipsis")
    return rows


def _line(row: Played, width: int, columns: int) -> Text:
    """Agent, request, answer, numbers: in one line, the request in a third of what is left of it."""
    numbers = f"{_counted(row.model_calls, 'model call')}, {_counted(row.steps, 'step')}, {row.seconds:.1f} s"
    left = max(40, columns - width - len(numbers) - 11)
    asked = _cut(_words(row.input), left // 3)
    said = _cut(row.problem or _words(row.answer), left - len(asked))
    if row.status not in (0, 200):
        said = _cut(f"{row.status} {said}", left - len(asked))
    if row.problem is None and not row.ok:
        said = _cut(f"expected {row.expected}, got {said}", left - len(asked))
    mark = ("✓", "green") if row.ok else ("✗", "red")
    return Text.assemble(mark, " ", (f"{row.agent:<{width}}", "bold"), f"  {asked} → {said}  ", (numbers, "dim"))


def _words(value: Any) -> str:
    """What a request or an output says: the text in it, or all of it as JSON."""
    if isinstance(value, dict):
        found = cast("dict[str, Any]", value)
        texts = [text for text in found.values() if isinstance(text, str)]
        told = next((found[name] for name in SAID if isinstance(found.get(name), str)), None)
        if told is not None or len(texts) == len(found) == 1:
            return told or texts[0]
        prompts = [found[name] for name in ("prompt", "message", "topic") if isinstance(found.get(name), str)]
        if prompts:
            return prompts[0]
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _cut(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: max(1, length - 1)] + "…"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _summary(rows: list[Played], failed: list[Played]) -> str:
    calls, steps = sum(row.model_calls for row in rows), sum(row.steps for row in rows)
    seconds = sum(row.seconds for row in rows)
    numbers = f"{_counted(calls, 'model call')}, {_counted(steps, 'step')}, {seconds:.1f} s"
    verdict = f"{len(failed)} of {_counted(len(rows), 'example')} failed" if failed else "all as expected"
    return f"{_counted(len(rows), 'example')}, {numbers}: {verdict}"


def _quiet(client: Client, agents: set[str]) -> bool:
    """Whether none of these agents has anything to do any more that is due now."""
    active = ["pending", "running", "suspended"]
    return not any(client.json("POST", "/runs/search", {"agent": agent, "status": active}) for agent in agents)
