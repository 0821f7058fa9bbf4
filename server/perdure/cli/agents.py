"""`perdure agents`: what a server offers, how its graphs look, and what they take."""

from typing import Annotated, Any

import typer

from perdure.cli.client import Client
from perdure.cli.output import Exit, JsonFlag, UrlOption, fail, print_json, print_rows

app = typer.Typer(help="List agents, show their graphs and schemas.", no_args_is_help=True)

AgentArgument = Annotated[str, typer.Argument(help="Name of the graph, from `perdure agents list`.")]


@app.command("list")
def list_(as_json: JsonFlag = False, url: UrlOption = None) -> None:
    """The agents of a server, in the order of its langgraph.json."""
    rows: list[dict[str, Any]] = Client(url).json("GET", "/agents")
    if not as_json:
        rows = [{**row, "examples": len(row["examples"])} for row in rows]
    print_rows(rows, ("agent", "description", "examples"), as_json=as_json, empty="no agents")


@app.command()
def graph(
    agent: AgentArgument,
    xray: Annotated[bool, typer.Option("--xray", help="Show the graphs inside of its nodes, too.")] = False,
    as_json: JsonFlag = False,
    url: UrlOption = None,
) -> None:
    """Nodes and edges of an agent's graph; a dotted edge is taken on a condition."""
    client = Client(url)
    found = client.json("GET", f"/assistants/{_assistant(client, agent)}/graph", xray=xray or None)
    if as_json:
        print_json(found)
        return
    for edge in found["edges"]:
        arrow = "··>" if edge.get("conditional") else "-->"
        typer.echo(f"{edge['source']} {arrow} {edge['target']}")


@app.command()
def schema(
    agent: AgentArgument,
    everything: Annotated[bool, typer.Option("--all", help="Output, state and context as well.")] = False,
    as_json: JsonFlag = False,
    url: UrlOption = None,
) -> None:
    """The JSON schema of an agent's input; JSON either way."""
    client = Client(url)
    found = client.json("GET", f"/assistants/{_assistant(client, agent)}/schemas")
    print_json(found if everything else found["input_schema"])


def _assistant(client: Client, agent: str) -> str:
    """The id of the agent's default assistant. Ends the command if there is no such agent."""
    rows: list[dict[str, Any]] = client.json("GET", "/agents")
    ids: dict[str, str] = {row["agent"]: row["assistant_id"] for row in rows}
    if agent not in ids:
        fail(f"agent '{agent}' not found; the server has: {', '.join(ids)}", Exit.REFUSED)
    return ids[agent]
