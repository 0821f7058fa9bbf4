"""The parts of A2A's messages and artifacts: text, data and files, in the words of 0.3 and 1.0.

A file is a content block of LangChain: `{"type": "image", "base64" | "url", "mime_type"}`, or `audio`,
`video`, `file`, with its name in `extras`. Blocks that a model made for itself (reasoning, tool
calls) are nobody else's and become no parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, cast

Version = Literal["0.3", "1.0"]
Part = dict[str, Any]

KINDS = ("image", "audio", "video")
BYTES = "application/octet-stream"
DATA_URL = re.compile(r"data:([^;,]*)(?:;[^;,]+)*;base64,(.*)", re.DOTALL)


def text_part(text: str, version: Version) -> Part:
    return {"text": text} if version == "1.0" else {"kind": "text", "text": text}


def data_part(value: Any, version: Version) -> Part:
    if version == "1.0":
        return {"data": value}
    return {"kind": "data", "data": value if isinstance(value, dict) else {"value": value}}


def parts_of(value: Any, version: Version) -> list[Part]:
    """A value as one part: a text, or data."""
    return [text_part(value, version) if isinstance(value, str) else data_part(value, version)]


def message_parts(message: Any, version: Version) -> list[Part]:
    """What a LangChain message in JSON says: its text, if it has some, and its files."""
    text = text_of(message)
    return ([text_part(text, version)] if text else []) + file_parts(message, version)


def text_of(message: Any) -> str:
    """The text of a LangChain message in JSON, whichever form its content has."""
    texts = [block if isinstance(block, str) else block.get("text") for block in _blocks(message)]
    return "".join(text for text in texts if isinstance(text, str))


def file_parts(message: Any, version: Version) -> list[Part]:
    """The files of a LangChain message in JSON."""
    return [part for block in _blocks(message) if (part := _file_part(block, version))]


def file_block(*, mime_type: str | None, name: str | None, base64: str | None = None, url: str | None = None) -> Part:
    """A file for a LangChain message; `base64` or `url` is there."""
    kind = (mime_type or "").partition("/")[0]
    block: Part = {"type": kind if kind in KINDS else "file"}
    block |= {"url": url} if base64 is None else {"base64": base64}
    if mime_type or base64 is not None:
        block["mime_type"] = mime_type or BYTES
    return {**block, "extras": {"filename": name}} if name else block


def _blocks(message: Any) -> Iterator[Any]:
    content: Any = cast("Part", message).get("content") if isinstance(message, dict) else None
    for block in cast("list[Any]", content) if isinstance(content, list) else [content]:
        if isinstance(block, str | dict):
            yield block


def _file_part(block: Any, version: Version) -> Part | None:
    """Standard blocks, those of LangChain before 1.0 (`source_type`), and OpenAI's `image_url`."""
    if not isinstance(block, dict):
        return None
    given = cast("Part", block)
    extras: Any = given.get("extras") or given.get("metadata")
    name: Any = given.get("filename") or (cast("Part", extras).get("filename") if isinstance(extras, dict) else None)
    url, raw, mime = given.get("url"), given.get("base64"), given.get("mime_type")
    if given.get("type") == "image_url":
        image: Any = given.get("image_url")
        url, mime = (cast("Part", image).get("url") if isinstance(image, dict) else image), None
    elif given.get("type") not in (*KINDS, "file"):
        return None
    elif given.get("source_type") == "base64":
        raw = given.get("data")
    if isinstance(url, str) and (inline := DATA_URL.fullmatch(url)):
        mime, raw = inline[1] or None, inline[2]
    if not isinstance(raw, str) and not isinstance(url, str):
        return None
    if version == "1.0":
        file = {"raw": raw} if isinstance(raw, str) else {"url": url}
        return file | _named(mime, "mediaType", name, "filename")
    file = {"bytes": raw} if isinstance(raw, str) else {"uri": url}
    return {"kind": "file", "file": file | _named(mime, "mimeType", name, "name")}


def _named(mime: Any, mime_key: str, name: Any, name_key: str) -> Part:
    shown = {mime_key: mime, name_key: name}
    return {key: value for key, value in shown.items() if isinstance(value, str) and value}
