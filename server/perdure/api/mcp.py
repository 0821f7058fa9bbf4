"""The assistants as tools: the Model Context Protocol over streamable HTTP, stateless, JSON answers only.

A call is a durable run on a thread of its own: it goes on when the client leaves or the worker dies.
Revisions 2024-11-05 to 2025-11-25 begin with `initialize`; in 2026-07-28 each request carries its
version (`_meta` and headers) and is checked as that revision says. No session is kept, so any
replica answers any request. Wire source: modelcontextprotocol.io, "Streamable HTTP".
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any, cast
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from perdure.api import records
from perdure.api.answers import Json
from perdure.api.assistants import named
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep, IdempotencyKey
from perdure.api.cors import origin_allowed
from perdure.api.gate import Gate, GateDep, gate
from perdure.api.jsonrpc import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    Call,
    RpcError,
    as_rpc,
    error_of,
    read,
    refusal,
    result_of,
    unknown_method,
)
from perdure.api.sse import Live, closing
from perdure.engine import assistants, events, runs
from perdure.engine.core import Engine
from perdure.engine.errors import AssistantNotFound, EngineError, GraphNotFound, RunNotFound
from perdure.engine.jsonable import dumps
from perdure.engine.newrun import NewRun
from perdure.engine.views import questions

router = APIRouter(route_class=JsonRoute, tags=["mcp"])

HANDSHAKE = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
STATELESS = "2026-07-28"
HEADER_MISMATCH = -32020
UNSUPPORTED_VERSION = -32022
META = "io.modelcontextprotocol/"
ENCODED = re.compile(r"=\?base64\?(.*)\?=")
PAGE = 100
LIST_TTL_MS = 60_000
INSTRUCTIONS = "Each tool is an agent. A call may take long: it is durable, and goes on if you leave."
MESSAGES_SCHEMA = {
    "type": "array",
    "description": "The conversation; the last message is the request.",
    "items": {
        "type": "object",
        "properties": {"role": {"type": "string", "enum": ["user", "assistant", "system"]}, "content": {}},
        "required": ["role", "content"],
    },
}
OWN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
OTHERS = re.compile(r"[A-Za-z0-9_.-]*_([0-9a-f]{32})")
NAME_CHARS = 31  # of an assistant's name; with `_` and its id a tool's name has 64 characters at most


@router.post("/mcp", responses={202: {"description": "A notification"}, **records.ANY}, openapi_extra=records.ANY_BODY)
async def model_context_protocol(request: Request, engine: EngineDep, gate: GateDep, key: IdempotencyKey) -> Response:
    """MCP: `initialize`, `ping`, `server/discover`, `tools/list`, `tools/call`."""
    try:
        _check_headers(request, engine)
        asked = read(request)
        if asked is None:
            return Response(status_code=202)
        stateless = _stateless(request, asked)
        if asked.notification:
            return Response(status_code=202)
        if asked.method == "tools/call":
            return await _call_tool(gate, asked, key, stateless)
        answer = await _answer(gate, asked, stateless)
    except (RpcError, EngineError) as exc:
        return refusal(request, exc)
    return Json(result_of(asked.id, answer))


@router.delete("/mcp", include_in_schema=False, dependencies=[Depends(gate)])
async def end_session() -> Response:
    """Clients that were given a session end it so; nobody is given one."""
    raise HTTPException(404, "There are no sessions to end")


def _check_headers(request: Request, engine: Engine) -> None:
    """Raises RpcError: a foreign web page (403), a client that takes no JSON (406)."""
    origin = request.headers.get("origin")
    if origin and not origin_allowed(origin, engine.registry.config):
        raise RpcError(INVALID_REQUEST, "Origin: not allowed by http.cors of langgraph.json", status=403)
    accept = request.headers.get("accept", "*/*")
    if not any(kind in accept for kind in ("application/json", "application/*", "*/*")):
        raise RpcError(INVALID_REQUEST, "Accept: must include application/json", status=406)


def _stateless(request: Request, asked: Call) -> bool:
    """Whether the request is of the revision without a handshake. Raises RpcError for a version that is not spoken."""
    header = request.headers.get("mcp-protocol-version")
    given: Any = asked.params.get("_meta")
    meta: dict[str, Any] = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    if header in HANDSHAKE or (header is None and META + "protocolVersion" not in meta):
        return False
    if asked.notification:
        _check_version(header)
        return True
    if missing := [name for name in ("protocolVersion", "clientCapabilities") if META + name not in meta]:
        _check_version(header)
        raise RpcError(INVALID_PARAMS, f"params._meta lacks {META}{missing[0]}", status=400)
    wanted = {"mcp-protocol-version": meta[META + "protocolVersion"], "mcp-method": asked.method}
    if asked.method == "tools/call" and isinstance(asked.params.get("name"), str):
        wanted["mcp-name"] = asked.params["name"]
    for name, value in wanted.items():
        if _decoded(request.headers.getlist(name)) != value:
            raise RpcError(HEADER_MISMATCH, f"The header {name} differs from the body", status=400)
    _check_version(header)
    return True


def _check_version(given: str | None) -> None:
    if given != STATELESS:
        data = {"supported": [STATELESS], "requested": given}
        raise RpcError(UNSUPPORTED_VERSION, "Unsupported protocol version", data=data, status=400)


def _decoded(values: list[str]) -> str | None:
    """A header that stands there once, out of the base64 form for what is not ASCII."""
    if len(values) != 1:
        return None
    if not (encoded := ENCODED.fullmatch(values[0])):
        return values[0]
    try:
        return base64.b64decode(encoded[1], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


async def _answer(gate: Gate, asked: Call, stateless: bool) -> dict[str, Any]:
    about = {"capabilities": {"tools": {"listChanged": False}}, "instructions": INSTRUCTIONS}
    server = {"name": "perdure", "version": version("perdure")}
    if stateless:
        cached = {"resultType": "complete", "ttlMs": LIST_TTL_MS, "cacheScope": "private"}
        if asked.method == "server/discover":
            versions = [*HANDSHAKE, STATELESS]
            return {**about, **cached, "supportedVersions": versions, "_meta": {META + "serverInfo": server}}
        if asked.method == "tools/list":
            return {**await _list(gate, asked.params), **cached}
        raise unknown_method(asked.method, status=404)
    if asked.method == "initialize":
        wanted = asked.params.get("protocolVersion")
        return {**about, "protocolVersion": wanted if wanted in HANDSHAKE else HANDSHAKE[-1], "serverInfo": server}
    if asked.method == "ping":
        return {}
    if asked.method == "tools/list":
        return await _list(gate, asked.params)
    raise unknown_method(asked.method)


async def _list(gate: Gate, params: dict[str, Any]) -> dict[str, Any]:
    """A page of tools, oldest assistant first; the cursor is the number of assistants before it."""
    cursor = params.get("cursor")
    if cursor is not None and not (isinstance(cursor, str) and re.fullmatch(r"[0-9]{1,9}", cursor)):
        raise RpcError(INVALID_PARAMS, "cursor: not one of this server's")
    engine, offset = gate.engine, int(cursor or 0)
    page: dict[str, Any] = {"limit": PAGE, "offset": offset}
    within = await gate.allow("assistants", "search", {"metadata": {}, **page})
    rows, total = await assistants.search(engine, sort_by="created_at", sort_order="asc", within=within, **page)
    names = [row["name"] for row in rows if may_be_plain(engine, row["name"])]
    oldest = await assistants.oldest(engine, names, within=within)
    tools = [await _tool(engine, row, oldest) for row in rows if row["graph_id"] in engine.registry.graphs]
    more = rows and offset + len(rows) < total
    return {"tools": tools, **({"nextCursor": str(offset + len(rows))} if more else {})}


async def _tool(engine: Engine, assistant: dict[str, Any], oldest: dict[str, UUID]) -> dict[str, Any]:
    described = assistant["description"] or engine.registry.graphs[assistant["graph_id"]].description
    schema = (await engine.registry.schemas(assistant["graph_id"]))["input_schema"]
    return {
        "name": tool_name(engine, assistant, oldest),
        "title": assistant["name"],
        "description": described or f"The agent {assistant['name']}",
        "inputSchema": plain(schema),
    }


def may_be_plain(engine: Engine, name: str) -> bool:
    """Whether a tool can have an assistant's name as it is: it means nothing else."""
    return bool(OWN_NAME.fullmatch(name)) and name not in engine.registry.graphs and not OTHERS.fullmatch(name)


def tool_name(engine: Engine, assistant: dict[str, Any], oldest: dict[str, UUID]) -> str:
    """The graph's name for its default assistant; for another one its name, or name and id: names are not unique.

    `oldest`: by plain name the assistant that has it as its tool's.
    """
    default = assistant["assistant_id"] == engine.registry.default_assistant_id(assistant["graph_id"])
    if default and OWN_NAME.fullmatch(assistant["graph_id"]):
        return assistant["graph_id"]
    if oldest.get(assistant["name"]) == assistant["assistant_id"]:
        return assistant["name"]
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", assistant["name"])[:NAME_CHARS]
    return f"{clean}_{assistant['assistant_id'].hex}"


def plain(schema: dict[str, Any] | None) -> dict[str, Any]:
    """An input schema that a model can follow: an object, its messages without LangChain's classes."""
    if not schema or schema.get("type") != "object":
        return {"type": "object"}
    shown = dict(schema)
    if "messages" in shown.get("properties", {}):
        shown["properties"] = {**shown["properties"], "messages": MESSAGES_SCHEMA}
    definitions: dict[str, Any] = shown.pop("$defs", {})
    used: dict[str, Any] = {}
    new: Any = shown
    while names := set(re.findall(rb'"#/\$defs/([^"]+)"', dumps(new))) - {n.encode() for n in used}:
        new = {name.decode(): definitions.get(name.decode(), {}) for name in names}
        used |= new
    return {**shown, "$defs": used} if used else shown


async def _call_tool(gate: Gate, asked: Call, key: str | None, stateless: bool) -> Response:
    """Start a run and answer when it has ended, with a newline for each heartbeat until then."""
    name, arguments = asked.params.get("name"), asked.params.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        raise RpcError(INVALID_PARAMS, "name must be a text, arguments an object", status=400 if stateless else 200)
    engine = gate.engine
    agent = await _agent(gate, name)
    try:
        await gate.assistant("read", (await named(engine, agent))["assistant_id"])
    except (GraphNotFound, AssistantNotFound) as exc:
        raise RpcError(INVALID_PARAMS, f"Unknown tool: {name[:200]}", status=400 if stateless else 200) from exc
    given = cast("dict[str, Any]", arguments or {})
    new = NewRun(assistant=agent, input=given, stream_mode=["updates"], on_completion="keep", idempotency_key=key)
    run = await runs.enqueue(engine, None, await gate.starting(new, None))
    extra = {"resultType": "complete"} if stateless else {}

    async def chunks() -> AsyncIterator[bytes]:
        try:
            async with closing(events.ended(engine, run["thread_id"], run["run_id"])) as beats:
                async for _ in beats:
                    yield b"\n"
            answer = result_of(asked.id, {**await _outcome(engine, run), **extra})
        except RunNotFound:
            answer = result_of(asked.id, {**_failed("The run was rolled back or deleted"), **extra})
        except EngineError as exc:
            answer = error_of(asked.id, as_rpc(exc))
        yield dumps(answer)

    headers = {"Content-Location": f"/threads/{run['thread_id']}/runs/{run['run_id']}"}
    return Live(chunks(), media_type="application/json", headers=headers)


async def _agent(gate: Gate, tool: str) -> str:
    """The id or the graph's name of a tool's assistant, see `tool_name`; an unknown name stays as it is."""
    engine = gate.engine
    if may_be_plain(engine, tool):
        within = await gate.allow("assistants", "search", {"metadata": {}, "name": tool})
        found = (await assistants.oldest(engine, [tool], within=within)).get(tool)
        return str(found) if found else tool
    other = OTHERS.fullmatch(tool)
    return tool if not other or tool in engine.registry.graphs else str(UUID(other[1]))


async def _outcome(engine: Engine, run: dict[str, Any]) -> dict[str, Any]:
    """A run that has ended, as the result of a tool."""
    thread_id, run_id = run["thread_id"], run["run_id"]
    output: Any = await runs.result(engine, thread_id, run_id)
    values = cast("dict[str, Any]", output) if isinstance(output, dict) else {"result": output}
    ids = {"run_id": str(run_id), "thread_id": str(thread_id)}
    if failure := values.get("__error__"):
        return _failed(f"{failure.get('error')}: {failure.get('message')}", **ids)
    if (await runs.get(engine, thread_id, run_id))["status"] == "interrupted":
        return _failed("The run was cancelled", **ids)
    if "__interrupt__" in values:
        asked = await questions.search(engine, status="open", thread_id=thread_id)
        own = [question for question in asked if question["run_id"] == run_id]
        texts = [_question(question) for question in own]
        text = "The agent waits for a person, and goes on when somebody has answered.\n" + "\n".join(texts)
        return {**_content(text, {"status": "input_required", **ids, "interrupts": own}), "isError": False}
    return {**_content(dumps(values).decode(), values), "isError": False}


def _question(question: dict[str, Any]) -> str:
    asked: Any = question["question"]
    text = cast("dict[str, Any]", asked).get("question") if isinstance(asked, dict) else asked
    shown = text if isinstance(text, str) else dumps(cast("Any", asked)).decode()
    return f"{shown} To answer: {question['url']} or POST /interrupts/{question['token']}/resolve"


def _failed(text: str, **ids: str) -> dict[str, Any]:
    return {**_content(text, {"error": text, **ids}), "isError": True}


def _content(text: str, structured: dict[str, Any]) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "structuredContent": structured}
