"""The messages of a state as a conversation: the newest ones, each in parts that a template can show.

What models and people have written is hostile and may be large: a text is cut after `MAX_TEXT` characters,
images are named and never loaded.
"""

from __future__ import annotations

from typing import Any, cast

from langchain_core.messages import BaseMessage

from perdure.console.bounds import bounded
from perdure.console.shown import MAX_TEXT, clip
from perdure.engine.jsonable import jsonable

PAGE = 50
SHORT = 4_000  # characters that are shown at once; more are folded away
CHARACTERS = 600_000  # of all messages of a page: the newest are shown
ROLES = {"user": "human", "assistant": "ai", "developer": "system", "function": "tool"}
KNOWN = {"human", "ai", "tool", "system"}
MEDIA = ("image", "audio", "video", "file")
TOKENS = ("input_tokens", "output_tokens")


def messages_of(values: Any) -> list[Any]:
    """The messages in the values of a state: those under `messages`, or else the first list of messages there is."""
    if isinstance(values, list):
        listed = cast("list[Any]", values)
        return listed if _are_messages(listed) else []
    state = cast("dict[str, Any]", values) if isinstance(values, dict) else {}
    for listed in (state.get("messages"), *state.values()):
        if isinstance(listed, list) and _are_messages(cast("list[Any]", listed)):
            return cast("list[Any]", listed)
    return []


def _are_messages(listed: list[Any]) -> bool:
    return bool(listed) and is_message(listed[0]) and is_message(listed[-1])


def is_message(one: Any) -> bool:
    """Whether this is a message of LangChain, as an object or as JSON."""
    if isinstance(one, BaseMessage):
        return True
    if not isinstance(one, dict) or "content" not in one:
        return False
    kind = role_of(cast("dict[str, Any]", one))
    return kind in KNOWN or kind.endswith("Chunk")


def role_of(message: dict[str, Any]) -> str:
    """Who speaks: human, ai, tool or system, or what else the message says of itself."""
    given = str(message.get("type") or message.get("role") or "")
    return ROLES.get(given, {"AIMessageChunk": "ai", "HumanMessageChunk": "human"}.get(given, given))


def conversation(listed: list[Any], before: int | None) -> dict[str, Any]:
    """A page of messages, oldest first, that ends before number `before` (None: with the newest)."""
    end = len(listed) if before is None else max(0, min(before, len(listed)))
    start = max(0, end - PAGE)
    room = CHARACTERS
    shown: list[dict[str, Any]] = []
    for number in reversed(range(start, end)):
        message = view(listed[number], number)
        room -= (size := _size(message))
        if room < 0 and shown:
            left_out = {"kind": "note", "text": f"{size:,} characters left out here: the API has the whole"}
            message |= {"parts": [left_out], "calls": [], "bad_calls": []}
        shown.append(message)
    return {
        "messages": shown[::-1],
        "total": len(listed),
        "start": start,
        "end": end,
        "older": start if start else None,
        "newer": end < len(listed),
    }


def view(given: Any, number: int) -> dict[str, Any]:
    """One message for the template."""
    found = jsonable(given)
    message: dict[str, Any] = cast("dict[str, Any]", found) if isinstance(found, dict) else {"content": found}
    role = role_of(message)
    parts, calls = _parts(message.get("content")), _dicts(message.get("tool_calls"))
    if len(calls) > PAGE:
        parts.append({"kind": "note", "text": f"{len(calls) - PAGE} more calls: the API has them all"})
    return {
        "number": number,
        "role": role if role in KNOWN else "other",
        "said_by": role[:60] or "message",
        "name": str(message.get("name") or "")[:200],
        "failed": message.get("status") == "error",
        "parts": parts,
        "calls": [_call(one) for one in calls[:PAGE]],
        "bad_calls": [bounded(one) for one in _dicts(message.get("invalid_tool_calls"))[:20]],
        "usage": _usage(message.get("usage_metadata")),
        "summary": clip(text_of(message), 140),
    }


def _size(shown: Any) -> int:
    """Characters of all texts in it."""
    if isinstance(shown, dict):
        return sum(len(key) + _size(one) for key, one in cast("dict[str, Any]", shown).items())
    if isinstance(shown, list):
        return sum(map(_size, cast("list[Any]", shown)))
    return len(shown) if isinstance(shown, str) else 8


def _usage(given: Any) -> dict[str, int]:
    """The counts of tokens, and no more of what a message may say there."""
    found = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    return {name: found[name] for name in TOKENS if isinstance(found.get(name), int)}


def text_of(message: dict[str, Any]) -> str:
    """The beginning of what a message says, in one line of plain text."""
    content: Any = message.get("content")
    if isinstance(content, str) and content.strip():
        return content[:2_000]
    texts = [str(one.get("text") or "")[:2_000] for one in _dicts(content) if isinstance(one.get("text"), str)]
    if texts:
        return " ".join(texts)[:2_000]
    calls = ", ".join(str(one.get("name"))[:100] for one in _dicts(message.get("tool_calls"))[:5])
    return f"calls {calls}" if calls else ""


def _dicts(given: Any) -> list[dict[str, Any]]:
    listed = cast("list[Any]", given) if isinstance(given, list) else []
    return [cast("dict[str, Any]", one) for one in listed if isinstance(one, dict)]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    return {"name": str(call.get("name") or "")[:200], "args": bounded(call.get("args"))}


def _parts(content: Any) -> list[dict[str, Any]]:
    """Content blocks, as LangChain and as providers write them; tool calls are shown apart."""
    if isinstance(content, str):
        return [_text(content)] if content else []
    blocks = cast("list[Any]", content) if isinstance(content, list) else [content]
    parts: list[dict[str, Any]] = []
    for block in blocks[:PAGE]:
        if isinstance(block, str):
            parts.append(_text(block))
        elif isinstance(block, dict):
            part = _block(cast("dict[str, Any]", block))
            parts += [part] if part else []
        elif block is not None:
            parts.append({"kind": "json", "name": "content", "value": bounded(block)})
    if len(blocks) > PAGE:
        parts.append({"kind": "note", "text": f"{len(blocks) - PAGE} more blocks: the API has them all"})
    return parts


def _block(block: dict[str, Any]) -> dict[str, Any] | None:
    kind = str(block.get("type") or "")
    if kind in ("tool_use", "tool_call", "function_call", "input_json_delta"):
        return None  # comes with the message's tool calls
    text = block.get("text", block.get(kind))
    if kind in ("text", "output_text", "refusal") and isinstance(text, str):
        return _text(text)
    if kind in ("reasoning", "thinking"):
        thought = next(
            (block[name] for name in ("reasoning", "thinking", "text") if isinstance(block.get(name), str)), ""
        )
        return {**_text(thought), "kind": "reasoning"} if thought else None
    if kind.startswith(MEDIA) or kind == "input_image":
        return {"kind": "note", "text": _media(kind, block)}
    return {"kind": "json", "name": kind[:60] or "block", "value": bounded(block)}


def _media(kind: str, block: dict[str, Any]) -> str:
    """What an image (or another file) is, without showing it."""
    source: Any = block.get("source", block.get(kind))
    inner = cast("dict[str, Any]", source) if isinstance(source, dict) else {}
    about = {**inner, **{key: value for key, value in block.items() if isinstance(value, str)}}
    name = kind.removesuffix("_url").removeprefix("input_")
    mime = next((about[key] for key in ("mime_type", "media_type") if isinstance(about.get(key), str)), "")
    data = next((about[key] for key in ("base64", "data") if isinstance(about.get(key), str)), "")
    url = next((about[key] for key in ("url", "image_url", "file_id") if isinstance(about.get(key), str)), "")
    if url.startswith("data:"):
        mime, data, url = mime or clip(url[5:60].split(";")[0], 40), url, ""
    said = [clip(mime, 60), f"about {max(1, len(data) * 3 // 4000):,} kB" if data else "", clip(url, 120)]
    return (
        f"{name}, not shown here: " + ", ".join(one for one in said if one) if any(said) else f"{name}, not shown here"
    )


def _text(text: str) -> dict[str, Any]:
    """`shown`, what is folded away behind it, and how many characters are left to the API."""
    return {
        "kind": "text",
        "shown": text[:SHORT],
        "folded": text[SHORT:MAX_TEXT],
        "cut": max(0, len(text) - MAX_TEXT),
        "length": len(text),
    }
