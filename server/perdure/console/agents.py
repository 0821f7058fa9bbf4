"""Agents: the graphs of langgraph.json. One page with all of them, and one for each: graph, schemas, assistants."""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from perdure.api.context import EngineDep
from perdure.api.gate import Gate, GateDep
from perdure.console.bounds import bounded
from perdure.console.outline import outline
from perdure.console.pages import PageRoute, page
from perdure.engine import assistants, versions
from perdure.engine.core import Engine
from perdure.engine.examples import Example
from perdure.engine.views import figures

router = APIRouter(prefix="/console", include_in_schema=False, route_class=PageRoute, tags=["console"])

HOURS = 24
MAX_ASSISTANTS = 20
MAX_VERSIONS = 10
HELD = ("config", "context", "metadata")
SCHEMAS = ("input", "output", "state", "context")


@router.get("/agents")
async def show_agents(request: Request, engine: EngineDep, gate: GateDep) -> Response:
    """All of them, in the order of langgraph.json."""
    await gate.allow("assistants", "search", {"metadata": {}, "limit": len(engine.registry.graphs), "offset": 0})
    found = await _figures(engine, gate)
    rows = [
        {"about": entry, "figures": found[graph_id], "title": graph_id}
        for graph_id, entry in engine.registry.graphs.items()
    ]
    return page(request, "agents.html", title="Agents", live="all", pace=5, agents=rows, hours=HOURS)


@router.get("/agents/{agent}")
async def show_agent(request: Request, agent: str, engine: EngineDep, gate: GateDep) -> Response:
    """One: its graph, schemas, assistants with their versions, and requests to try."""
    entry = engine.registry.entry(agent)
    await gate.allow("assistants", "read", {"assistant_id": engine.registry.default_assistant_id(agent)})
    schemas = await engine.registry.schemas(agent)
    base = str(request.base_url).rstrip("/")
    return page(
        request,
        "agent.html",
        title=agent,
        live="all",
        pace=5,
        agent=agent,
        about=entry,
        figures=(await _figures(engine, gate))[agent],
        hours=HOURS,
        schemas=[(name, outline(schemas[f"{name}_schema"])) for name in SCHEMAS],
        assistants=await _assistants(engine, gate, agent),
        more=MAX_ASSISTANTS,
        examples=[(example, curl(base, agent, example, gate)) for example in entry.examples],
    )


async def _figures(engine: Engine, gate: Gate) -> dict[str, dict[str, Any]]:
    within = await gate.allow("threads", "search", {"metadata": {}, "limit": figures.NEWEST, "offset": 0})
    found = await figures.overview(engine, within=within, hours=HOURS)
    return {one["agent"]: one for one in found["agents"]}


async def _assistants(engine: Engine, gate: Gate, agent: str) -> list[dict[str, Any]]:
    """The newest assistants of a graph that the caller may see, each with its last `versions`.

    What these hold (`holds`) is cut to what one page can show of all of them.
    """
    about: dict[str, Any] = {"graph_id": agent, "metadata": {}, "limit": MAX_ASSISTANTS + 1, "offset": 0}
    within = await gate.allow("assistants", "search", about)
    rows, _ = await assistants.search(engine, graph_id=agent, limit=MAX_ASSISTANTS + 1, within=within)
    for row in rows[:MAX_ASSISTANTS]:
        row["versions"] = await versions.search(engine, row["assistant_id"], limit=MAX_VERSIONS)
    shown = [version for row in rows[:MAX_ASSISTANTS] for version in row["versions"]]
    held = bounded([{name: version[name] for name in HELD if version[name]} for version in shown])
    for version, holds in zip(shown, held, strict=True):
        version["holds"] = holds
    return rows


def curl(base: str, agent: str, example: Example, gate: Gate) -> str:
    """The request as a command line."""
    key = example.get("key")
    path = "/".join(["agents", quote(agent, safe=""), *([quote(key)] if key else []), "run"])
    words = ["curl", "-s", f"{base}/{path}"]
    if gate.auth is not None:
        words += ["-H", "x-api-key: YOUR_KEY"]
    return shlex.join([*words, "-d", json.dumps(example["input"], ensure_ascii=False)])
