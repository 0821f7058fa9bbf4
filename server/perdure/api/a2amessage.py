"""What A2A clients send: messages and push notification configs, checked, in the words of 0.3 and 1.0."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

from perdure.api.agentcard import text_field
from perdure.api.jsonrpc import INVALID_PARAMS, RpcError
from perdure.engine.a2aparts import Version, file_block
from perdure.engine.push import Config
from perdure.engine.urls import check_url, webhooks_off

NO_PUSH = -32003
CONTENT_TYPE = -32005
MAX_TEXT_CHARS = 255
MAX_PARTS = 100
MAX_URL_CHARS = 2**16
MAX_HISTORY = 2**31 - 1
MAX_SECRET_CHARS = 4000
HEADER_TEXT = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
MIME = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*(?:;[ -~]*)?")
WEB = re.compile(r"https?://[^\s/]", re.IGNORECASE)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,50}")


@dataclass(frozen=True)
class Message:
    """`text` is what its text parts say, "" if it has none; `data` its data parts; `files` as content blocks."""

    id: str
    context_id: str | None
    task_id: str | None
    text: str
    data: list[Any]
    files: list[dict[str, Any]]


def message_of(given: Any, version: Version) -> Message:
    """Raises RpcError for a malformed message. Files are not looked at, nor fetched: the agent's model does that."""
    if not isinstance(given, dict):
        raise _wrong("message", "must be an object")
    message = cast("dict[str, Any]", given)
    if message.get("role") != ("ROLE_USER" if version == "1.0" else "user"):
        raise _wrong("message.role", "must be the user's")
    parts: Any = message.get("parts")
    if not isinstance(parts, list) or not 0 < len(cast("list[Any]", parts)) <= MAX_PARTS:
        raise _wrong("message.parts", f"must be a list of 1 to {MAX_PARTS} parts")
    texts: list[str] = []
    data: list[Any] = []
    files: list[dict[str, Any]] = []
    for part in cast("list[Any]", parts):
        one = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
        if isinstance(one.get("text"), str):
            texts.append(one["text"])
        elif "data" in one:
            data.append(one["data"])
        elif isinstance(one.get("file"), dict):
            files.append(_file(one["file"], "bytes", "uri", "mimeType", "name"))
        elif one.keys() & {"raw", "url"}:
            files.append(_file(one, "raw", "url", "mediaType", "filename"))
        else:
            raise _wrong("message.parts", "each must have text, data or a file")
    ids = (text(message, "messageId"), _optional(message, "contextId"), _optional(message, "taskId"))
    return Message(*ids, "\n".join(texts), data, files)


def _file(given: dict[str, Any], raw_key: str, url_key: str, type_key: str, name_key: str) -> dict[str, Any]:
    """A content block, from the keys that the version has. Raises RpcError."""
    raw, url, mime = given.get(raw_key), given.get(url_key), _optional(given, type_key)
    if mime is not None and not MIME.fullmatch(mime):
        raise _wrong(type_key, "must be a media type such as image/png")
    if isinstance(raw, str) and url is None:
        try:
            base64.b64decode(raw, validate=True)
        except ValueError as exc:
            raise _wrong(raw_key, "must be base64") from exc
        return file_block(base64=raw, mime_type=mime, name=_optional(given, name_key))
    if not isinstance(url, str) or raw is not None or len(url) > MAX_URL_CHARS or not WEB.match(url):
        raise _wrong("message.parts", f"a file has either {raw_key} or {url_key}, an http or https URL")
    return file_block(url=url, mime_type=mime, name=_optional(given, name_key))


def input_of(message: Message, schema: dict[str, Any] | None) -> tuple[dict[str, Any], str | None]:
    """The graph's input, and the field of it that holds the text. Raises RpcError.

    A data part is input as it is; text goes where `text_field` says, and files with it if that is `messages`.
    """
    given: dict[str, Any] = {}
    for one in message.data:
        if not isinstance(one, dict):
            raise _wrong("message.parts", "data must be an object: the agent's input")
        given |= cast("dict[str, Any]", one)
    if not message.text and not message.files:
        return given, None
    field = text_field(schema)
    if field is None:
        names = ", ".join(cast("dict[str, Any]", (schema or {}).get("properties") or {}))
        raise RpcError(CONTENT_TYPE, f"This agent takes no text; send its input as a data part: {names}")
    if field == "messages":
        before = given.get("messages")
        content: Any = message.text
        if message.files:
            content = [*([{"type": "text", "text": message.text}] if message.text else []), *message.files]
        said = {"role": "user", "content": content, "id": message.id}
        given["messages"] = [*(cast("list[Any]", before) if isinstance(before, list) else []), said]
    elif message.files:
        raise RpcError(CONTENT_TYPE, "This agent takes no files, only text and data")
    else:
        given[field] = message.text
    return given, field


def answer_of(message: Message, open_ids: list[str]) -> dict[str, Any]:
    """Answers by the ids of their questions. Raises RpcError if it cannot be told which is meant."""
    if message.files:
        raise RpcError(CONTENT_TYPE, "An answer to a question has no files, only text and data")
    value: Any = message.data[0] if message.data else message.text
    if len(message.data) > 1:
        raise _wrong("message.parts", "an answer has one data part at most")
    if len(open_ids) == 1 and not (isinstance(value, dict) and value.keys() == set(open_ids)):
        return {open_ids[0]: value}
    if not isinstance(value, dict) or not value or not value.keys() <= set(open_ids):
        names = ", ".join(open_ids)
        raise _wrong("message.parts", f"several questions are open: send a data part with answers by id ({names})")
    return cast("dict[str, Any]", value)


def push_config_of(given: Any, version: Version, rules: dict[str, Any]) -> Config:
    """Raises RpcError, and InvalidInput for an address that the operator's rules refuse."""
    if webhooks_off(rules):
        raise RpcError(NO_PUSH, "Push notifications are switched off here")
    if not isinstance(given, dict):
        raise _wrong("pushNotificationConfig", "must be an object")
    config = cast("dict[str, Any]", given)
    authentication: Any = config.get("authentication")
    auth = cast("dict[str, Any]", authentication) if isinstance(authentication, dict) else {}
    named: Any = auth.get("scheme") if version == "1.0" else auth.get("schemes")
    scheme: Any = cast("list[Any]", named or [None])[0] if isinstance(named, list) else named
    if scheme is not None and not (isinstance(scheme, str) and SCHEME.fullmatch(scheme)):
        raise _wrong("authentication", "the scheme must be a word such as Bearer")
    return Config(
        config_id=_optional(config, "id") or str(uuid4()),
        url=check_url(text(config, "url", most=MAX_URL_CHARS), rules),
        version=version,
        token=_header(config, "token"),
        scheme=scheme,
        credentials=_header(auth, "credentials"),
    )


def text(params: dict[str, Any], name: str, *, most: int = MAX_TEXT_CHARS) -> str:
    """A text that must be there."""
    value = params.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise _wrong(name, f"must be a text of 1 to {most} characters")
    return value


def optional_int(params: dict[str, Any], name: str) -> int | None:
    value = params.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_HISTORY:
        raise _wrong(name, "must be a number of messages, 0 or more")
    return value


def _optional(params: dict[str, Any], name: str) -> str | None:
    return text(params, name) if params.get(name) not in (None, "") else None


def _header(params: dict[str, Any], name: str) -> str | None:
    value = params.get(name)
    if value in (None, ""):
        return None
    if not isinstance(value, str) or len(value) > MAX_SECRET_CHARS or not HEADER_TEXT.fullmatch(value):
        raise _wrong(name, "must be a text that fits into an HTTP header")
    return value


def _wrong(field: str, problem: str) -> RpcError:
    return RpcError(INVALID_PARAMS, f"{field}: {problem}")
