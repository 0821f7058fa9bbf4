"""The OpenAI chat completions format: requests read and checked, replies and errors written.

Only shapes, no HTTP. Checks what the real API refuses and agents get wrong: a tool message that answers no
call, and a tool call that nothing answers. Source: OpenAI API reference, "Chat Completions", openai 3.54.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, cast
from uuid import uuid4

import orjson

from perdure.simulator.rules import ChatRequest, Json, Reply, text_of

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class BadRequest(Exception):
    """The request is one that the real API refuses with 400; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def loads(text: Any) -> Any:
    """Parsed JSON, or None for what is none."""
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, TypeError):
        return None


def error(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> Json:
    """The body of a failed request."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def read(body: Any) -> ChatRequest:
    """The request in `body` (parsed JSON). Raises BadRequest with what the real API would complain about."""
    if not isinstance(body, dict):
        raise BadRequest("We could not parse the JSON body of your request: an object is expected.")
    data = cast("Json", body)
    if not isinstance(data.get("model"), str):
        raise BadRequest("You must provide a model parameter.", "model")
    _check_messages(data.get("messages"))
    tools = _tools(data.get("tools"))
    forced = _forced_tool(data.get("tool_choice"), tools)
    return ChatRequest(
        model=data["model"],
        messages=data["messages"],
        tools={} if data.get("tool_choice") == "none" else tools,
        forced_tool=forced,
        schema=_schema(data.get("response_format")),
        parallel_tool_calls=data.get("parallel_tool_calls") is not False,
        stream=data.get("stream") is True,
        include_usage=_include_usage(data.get("stream_options")),
    )


def message(request: ChatRequest, reply: Reply) -> Json:
    """The assistant message that says `reply`, with fresh ids for its tool calls."""
    calls = [(call.name, call.args) for call in reply.tool_calls]
    text = reply.text
    if reply.data is not None and request.forced_tool:
        calls = [(request.forced_tool, reply.data)]
    elif reply.data is not None:
        text = orjson.dumps(reply.data).decode()
    if not request.parallel_tool_calls:
        calls = calls[:1]
    said: Json = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if calls:
        said["tool_calls"] = [
            {
                "id": f"call_{uuid4().hex[:24]}",
                "type": "function",
                "function": {"name": name, "arguments": orjson.dumps(args).decode()},
            }
            for name, args in calls
        ]
    return said


def completion(request: ChatRequest, said: Json) -> Json:
    """The whole answer of a request that does not stream."""
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": _finish_reason(said)}
    return _envelope(request, "chat.completion") | {"choices": [choice], "usage": usage(request, said)}


def chunks(request: ChatRequest, said: Json) -> Iterator[Json]:
    """The same answer for a request that streams: role, text word by word, tool calls, reason, usage."""
    envelope = _envelope(request, "chat.completion.chunk")

    def chunk(delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return envelope | {"choices": [choice]} | ({"usage": None} if request.include_usage else {})

    yield chunk({"role": "assistant", "content": "" if said["content"] is not None else None})
    for word in words(said["content"] or ""):
        yield chunk({"content": word})
    for index, call in enumerate(said.get("tool_calls") or []):
        function = call["function"]
        yield chunk({"tool_calls": [call | {"index": index, "function": function | {"arguments": ""}}]})
        for part in words(function["arguments"]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
    yield chunk({}, _finish_reason(said))
    if request.include_usage:
        yield envelope | {"choices": [], "usage": usage(request, said)}


def words(text: str) -> list[str]:
    """`text` cut before each word, so that joining the parts gives it back."""
    return re.findall(r"\s*\S+|\s+$", text)


def usage(request: ChatRequest, said: Json) -> Json:
    """Token counts: about four characters a token, which is enough to see them add up."""
    prompt = sum(4 + _tokens(text_of(m)) + _tokens(m.get("tool_calls")) for m in request.messages)
    answered = 1 + _tokens(said["content"]) + _tokens(said.get("tool_calls"))
    return {"prompt_tokens": prompt, "completion_tokens": answered, "total_tokens": prompt + answered}


def _envelope(request: ChatRequest, kind: str) -> Json:
    return {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
    }


def _finish_reason(said: Json) -> str:
    return "tool_calls" if said.get("tool_calls") else "stop"


def _tokens(value: Any) -> int:
    if not value:
        return 0
    return (len(value if isinstance(value, str) else orjson.dumps(value)) + 3) // 4


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a list of at least one message.", "messages")
    open_calls: set[str] = set()
    for index, item in enumerate(cast("list[Any]", messages)):
        at = f"messages.[{index}]"
        if not isinstance(item, dict):
            raise BadRequest(f"{at} must be an object.", at)
        said = cast("Json", item)
        role = said.get("role")
        if role not in ROLES:
            raise BadRequest(f"{at}.role {role!r} is not one of {', '.join(ROLES)}.", f"{at}.role")
        _check_content(said.get("content"), f"{at}.content")
        if role == "tool":
            if str(said.get("tool_call_id")) not in open_calls:
                raise BadRequest(
                    f"{at} has role 'tool' and must answer a preceding message with 'tool_calls'; "
                    f"no open call has the id {said.get('tool_call_id')!r}.",
                    f"{at}.tool_call_id",
                )
            open_calls.discard(str(said["tool_call_id"]))
            continue
        if open_calls:
            break
        open_calls = _call_ids(said.get("tool_calls"), f"{at}.tool_calls")
    if open_calls:
        raise BadRequest(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. These had no response: {', '.join(sorted(open_calls))}",
            "messages",
        )


def _check_content(content: Any, at: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list) or any(
        not isinstance(block, dict) or not isinstance(block.get("text", ""), str)  # pyright: ignore[reportUnknownMemberType]
        for block in cast("list[Any]", content)
    ):
        raise BadRequest(f"{at} must be a string or a list of content parts.", at)


def _call_ids(calls: Any, at: str) -> set[str]:
    ids: set[str] = set()
    if calls is not None and not isinstance(calls, list):
        raise BadRequest(f"{at} must be a list.", at)
    for call in cast("list[Any]", calls or []):
        match call:
            case {"id": str(call_id), "function": {"name": str()}}:
                ids.add(call_id)
            case _:
                raise BadRequest(f"{at} must each have an id and a function with a name.", at)
    return ids


def _tools(tools: Any) -> dict[str, Json]:
    found: dict[str, Json] = {}
    if tools is not None and not isinstance(tools, list):
        raise BadRequest("'tools' must be a list.", "tools")
    for index, tool in enumerate(cast("list[Any]", tools or [])):
        match tool:
            case {"type": "function", "function": {"name": str(name), **function}}:
                parameters = function.get("parameters")
                found[name] = cast("Json", parameters) if isinstance(parameters, dict) else {}
            case _:
                raise BadRequest(f"tools.[{index}] must be a function with a name.", f"tools.[{index}]")
    return found


def _forced_tool(choice: Any, tools: dict[str, Json]) -> str | None:
    match choice:
        case {"function": {"name": str(name)}}:
            if name not in tools:
                raise BadRequest(f"tool_choice names the tool {name!r}, which 'tools' lacks.", "tool_choice")
            return name
        case "required":
            return next(iter(tools)) if len(tools) == 1 else None
        case _:
            return None


def _schema(response_format: Any) -> Json | None:
    match response_format:
        case {"type": "json_schema", "json_schema": {"schema": schema}} if isinstance(schema, dict):
            return cast("Json", schema)
        case {"type": "json_object"}:
            return {}
        case None | {"type": "text"}:
            return None
        case _:
            raise BadRequest("'response_format' must be text, json_object or a json_schema.", "response_format")


def _include_usage(options: Any) -> bool:
    return isinstance(options, dict) and cast("Json", options).get("include_usage") is True
