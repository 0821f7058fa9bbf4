"""Agent cards: what an assistant says about itself to other agents, in A2A 0.3 and 1.0 at once.

A card of both versions is one object: 1.0 reads `supportedInterfaces`, 0.3 `url` and `protocolVersion`.
"""

from __future__ import annotations

from typing import Any, cast

from fastapi import APIRouter, Request, Response

from perdure.api import records
from perdure.api.answers import Json
from perdure.api.assistants import named
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep
from perdure.api.gate import Gate, GateDep
from perdure.engine.errors import InvalidInput
from perdure.engine.jsonable import dumps
from perdure.engine.urls import webhooks_off

router = APIRouter(route_class=JsonRoute, tags=["a2a"])

MODES = ["text/plain", "application/json"]
FILES = ["image/*", "audio/*", "video/*", "application/*"]
"""What goes into a conversation beside its text; whether the agent's model can read it, it tells itself."""
TEXT_FIELDS = ("messages", "prompt", "message")
MAX_EXAMPLES = 5


@router.get("/.well-known/agent-card.json", responses=records.ANY)
async def get_agent_card(
    request: Request, engine: EngineDep, gate: GateDep, assistant_id: str | None = None
) -> Response:
    """The A2A card of an assistant; it may be left out where there is only one graph."""
    if not assistant_id:
        if len(engine.registry.graph_ids) != 1:
            names = ", ".join(engine.registry.graph_ids)
            raise InvalidInput("assistant_id", f"must name an assistant: a graph ({names}) or an id")
        assistant_id = engine.registry.graph_ids[0]
    return Json(await card(gate, request, assistant_id))


@router.get("/a2a/{assistant_id}/.well-known/agent-card.json", responses=records.ANY)
async def get_agent_card_of_assistant(assistant_id: str, request: Request, gate: GateDep) -> Response:
    """The same card where clients look that were given the address of the agent."""
    return Json(await card(gate, request, assistant_id))


async def card(gate: Gate, request: Request, name: str) -> dict[str, Any]:
    engine = gate.engine
    assistant = await named(engine, name)
    await gate.assistant("read", assistant["assistant_id"])
    graph_id = assistant["graph_id"]
    entry = engine.registry.entry(graph_id)
    base = (engine.settings.public_url or str(request.base_url)).rstrip("/")
    url = f"{base}/a2a/{assistant['assistant_id']}"
    description = assistant["description"] or entry.description or f"The agent {assistant['name']}"
    field = text_field((await engine.registry.schemas(graph_id))["input_schema"])
    takes = f"Text goes to `{field}`." if field else "It takes data only, no text."
    skill = {
        "id": graph_id,
        "name": assistant["name"],
        "description": f"{description} {takes}",
        "tags": [graph_id],
        "examples": [_example(one.get("input"), field) for one in entry.examples[:MAX_EXAMPLES]],
    }
    return {
        "name": assistant["name"],
        "description": description,
        "version": str(assistant["version"]),
        "provider": {"organization": "perdure", "url": base},
        "protocolVersion": "0.3.0",
        "url": url,
        "preferredTransport": "JSONRPC",
        "supportedInterfaces": [
            {"url": url, "protocolBinding": "JSONRPC", "protocolVersion": spoken} for spoken in ("1.0", "0.3")
        ],
        "capabilities": {
            "streaming": True,
            "pushNotifications": not webhooks_off(engine.registry.config),
            "extendedAgentCard": False,
            "stateTransitionHistory": False,
        },
        "supportsAuthenticatedExtendedCard": False,
        "defaultInputModes": [*MODES, *FILES] if field == "messages" else MODES if field else MODES[1:],
        "defaultOutputModes": MODES,
        "skills": [skill],
        "documentationUrl": f"{base}/docs",
    }


def text_field(schema: dict[str, Any] | None) -> str | None:
    """Where the text of a message goes: `messages`, `prompt`, `message`, else the only text of the input."""
    properties = cast("dict[str, Any]", (schema or {}).get("properties") or {})
    for name in TEXT_FIELDS:
        if name in properties:
            return name
    texts = [name for name, one in properties.items() if one.get("type") == "string"]
    return texts[0] if len(texts) == 1 else None


def _example(given: Any, field: str | None) -> str:
    text = cast("dict[str, Any]", given).get(field or "") if isinstance(given, dict) else None
    return text if isinstance(text, str) else dumps(cast("Any", given)).decode()
