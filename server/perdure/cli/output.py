"""What the commands print: tables and lines for people on stdout, one JSON value with `--json`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import IntEnum
from typing import Annotated, Any, NoReturn, cast

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
UrlOption = Annotated[str | None, typer.Option("--url", help="Server to talk to [PERDURE_URL, http://127.0.0.1:2024].")]


class Exit(IntEnum):
    """Exit codes of every command; 2 is wrong usage."""

    FAILED = 1
    WAITING = 3
    REFUSED = 4
    UNREACHABLE = 5


def fail(message: str, code: Exit = Exit.FAILED) -> NoReturn:
    """Print one line on stderr and end the command."""
    typer.echo(f"perdure: {message}", err=True)
    raise typer.Exit(int(code))


def print_json(value: Any) -> None:
    """One JSON value, indented, to stdout."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode())


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    as_json: bool,
    empty: str,
    titles: Sequence[str] | None = None,
) -> None:
    """A table of `rows` with the given keys as columns, or under `titles` of their own; all keys with `as_json`."""
    if as_json:
        print_json(list(rows))
        return
    if not rows:
        typer.echo(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, title in zip(columns, titles or columns, strict=True):
        table.add_column(Text(title), no_wrap=column.endswith("_id") or column == "token", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(row.get(column))) for column in columns))
    console().print(table)


def print_record(record: Mapping[str, Any], *, as_json: bool) -> None:
    """One record, a line for each key."""
    if as_json:
        print_json(record)
        return
    width = max((len(name) for name in record), default=0)
    for name, value in record.items():
        typer.echo(f"{name:<{width}}  {shown(value)}")


def shown(value: Any) -> str:
    """A value in one line: times in local time, objects as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return " ".join(value.split())
        return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment.tzinfo else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (dict, list)):
        return orjson.dumps(cast("Any", value), default=str).decode()
    return str(value)


def question_text(question: Any) -> str:
    """The question of an interrupt in one line, whatever value the graph interrupted with."""
    if isinstance(question, dict):
        asked = cast("dict[str, Any]", question).get("question")
        return shown(asked if isinstance(asked, str) else cast("Any", question))
    return shown(question)


def console() -> Console:
    """A console on today's stdout; wide where stdout is no terminal, so that ids stay whole."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=200)
