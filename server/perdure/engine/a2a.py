"""Tasks as JSON of the Agent2Agent protocol, in the words of its versions 0.3 and 1.0.

Both say the same: 0.3 marks objects with `kind` and ends a stream with `final`, 1.0 has upper-case
enums and wraps what may be of several kinds. The history is made from the runs: the request and
the answers of a person are stored with them anyway. Wire source: a2a-protocol.org; a2a-sdk 1.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import UUID, uuid5

import orjson

from perdure.engine import push, tasks
from perdure.engine.a2aparts import Version, data_part, file_parts, message_parts, parts_of, text_of, text_part
from perdure.engine.errors import InvalidInput, RunNotFound
from perdure.engine.jsonable import dumps
from perdure.engine.tasks import Task

if TYPE_CHECKING:
    from perdure.engine.core import Engine

VERSIONS: tuple[Version, ...] = ("1.0", "0.3")
MESSAGE_ID, TEXT_FIELD = "a2a_message_id", "a2a_text_field"  # in the metadata of a task's runs
ANSWER = "answer"
"""Id of the artifact that holds the output; while it is made, the text of the model so far."""


def task_id(thread_id: UUID, run_id: UUID) -> str:
    return f"{thread_id}:{run_id}"


def task(found: Task, version: Version, *, history: int | None = None) -> dict[str, Any]:
    """A Task object; `history`: how many of the last messages, None for all."""
    shown: dict[str, Any] = {"id": task_id(found.thread_id, found.run_id), "contextId": str(found.thread_id)}
    shown["status"] = status(found, version)
    messages = _history(found, version)
    kept = messages if history is None else messages[-history:] if history else []
    if kept:
        shown["history"] = kept
    if found.state == "completed":
        shown["artifacts"] = [answer(found, version)]
    last = found.last
    metadata: dict[str, Any] = {"run_id": str(last["run_id"])}
    metadata |= {name: last[name] for name in ("attempt", "paused", "suspended", "next_at") if last.get(name)}
    if found.open:
        asked = ("interrupt_id", "question", "deadline")
        metadata["questions"] = [{name: one[name] for name in asked} for one in found.open]
    shown["metadata"] = orjson.loads(dumps(metadata))
    return shown if version == "1.0" else {**shown, "kind": "task"}


def status(found: Task, version: Version) -> dict[str, Any]:
    """Where the task stands; `message` says what it asks, or why it failed."""
    shown: dict[str, Any] = {"state": _state(found.state, version), "timestamp": _time(found.last["updated_at"])}
    error = found.last.get("error")
    if found.open:
        parts = [part for one in found.open for part in _question(one["question"], version)]
        shown["message"] = _message(found, found.open[0]["token"], "agent", parts, version)
    elif error and found.state in ("failed", "working"):
        text = f"{error.get('error')}: {error.get('message')}"
        shown["message"] = _message(
            found, f"error {found.last['attempt']}", "agent", [text_part(text, version)], version
        )
    return shown


def answer(found: Task, version: Version) -> dict[str, Any]:
    """The artifact of a completed task: a text to read if there is one, files, and the output as data."""
    output: Any = orjson.loads(dumps(found.output))
    values: dict[str, Any] = cast("dict[str, Any]", output) if isinstance(output, dict) else {"result": output}
    given: Any = found.runs[0]["kwargs"].get("input")
    known: set[str] = set(cast("dict[str, Any]", given)) if isinstance(given, dict) else set()
    messages: Any = values.get("messages")
    rest = {name: value for name, value in values.items() if name != "messages"}
    last: Any = cast("list[Any]", messages)[-1] if isinstance(messages, list) and messages else None
    text, files = text_of(last), file_parts(last, version)
    if not text and not files:
        texts = [value for name, value in rest.items() if name not in known and isinstance(value, str)]
        text = texts[0] if len(texts) == 1 else ""
    parts = [*([text_part(text, version)] if text else []), *files]
    if rest or not parts:
        parts.append(data_part(rest, version))
    return {"artifactId": ANSWER, "name": ANSWER, "parts": parts}


def status_update(found: Task, version: Version, *, final: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"taskId": task_id(found.thread_id, found.run_id), "contextId": str(found.thread_id)}
    shown["status"] = status(found, version)
    return {"statusUpdate": shown} if version == "1.0" else {**shown, "kind": "status-update", "final": final}


def artifact_update(
    found: Task, artifact: dict[str, Any], version: Version, *, append: bool, last: bool
) -> dict[str, Any]:
    shown: dict[str, Any] = {"taskId": task_id(found.thread_id, found.run_id), "contextId": str(found.thread_id)}
    shown |= {"artifact": artifact, "append": append, "lastChunk": last}
    return {"artifactUpdate": shown} if version == "1.0" else {**shown, "kind": "artifact-update"}


def text_artifact(text: str, version: Version) -> dict[str, Any]:
    return {"artifactId": ANSWER, "name": ANSWER, "parts": [text_part(text, version)]}


def wrapped(shown: dict[str, Any], version: Version) -> dict[str, Any]:
    """A task as the result of sending a message, or as an event of a stream."""
    return {"task": shown} if version == "1.0" else shown


async def notification(engine: Engine, push_id: UUID, thread_id: UUID) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of a push notification: the task as it is when it is sent.

    Raises InvalidInput when task or config have been deleted meanwhile: there is nothing to tell.
    """
    found = await push.get(engine.pool, push_id)
    if found is None:
        raise InvalidInput("", "the push notification config was deleted")
    run_id, config = found
    version: Version = "1.0" if config.version == "1.0" else "0.3"
    try:
        shown = task(await tasks.get(engine, thread_id, run_id), version)
    except RunNotFound as exc:
        raise InvalidInput("", "the task was deleted") from exc
    headers = {"a2a-version": version}
    if config.token:
        headers["x-a2a-notification-token"] = config.token
    if config.scheme and config.credentials:
        headers["authorization"] = f"{config.scheme} {config.credentials}"
    return wrapped(shown, version), headers


def _state(state: str, version: Version) -> str:
    return f"TASK_STATE_{state.upper().replace('-', '_')}" if version == "1.0" else state


def _time(when: Any) -> str:
    return when.isoformat().replace("+00:00", "Z")


def _question(question: Any, version: Version) -> list[dict[str, Any]]:
    """What is asked, as text; what else a form would show, as data."""
    if not isinstance(question, dict):
        return parts_of(question, version)
    asked = cast("dict[str, Any]", question)
    text = asked.get("question")
    return ([text_part(text, version)] if isinstance(text, str) else []) + [data_part(asked, version)]


def _message(
    found: Task, name: str, role: Literal["user", "agent"], parts: list[dict[str, Any]], version: Version
) -> dict[str, Any]:
    """`name`: from what its id is made, if it is not an id that the client gave."""
    shown: dict[str, Any] = {"messageId": str(uuid5(found.run_id, name))}
    shown |= {"role": f"ROLE_{role.upper()}" if version == "1.0" else role, "parts": parts}
    shown |= {"taskId": task_id(found.thread_id, found.run_id), "contextId": str(found.thread_id)}
    return shown if version == "1.0" else {**shown, "kind": "message"}


def _history(found: Task, version: Version) -> list[dict[str, Any]]:
    """The request, then each question that is not open any more with its answer."""
    first = found.runs[0]
    request = _message(found, "request", "user", _request(first, version), version)
    if given := first["metadata"].get(MESSAGE_ID):
        request["messageId"] = given
    shown = [request]
    for one in found.questions:
        if one["status"] == "open":
            continue
        shown.append(_message(found, one["token"], "agent", _question(one["question"], version), version))
        if one["status"] in ("answered", "rejected"):
            reply = _message(found, f"{one['token']} answer", "user", parts_of(one["answer"], version), version)
            if given := _answered_with(found, one):
                reply["messageId"] = given
            shown.append(reply)
    return shown


def _answered_with(found: Task, question: dict[str, Any]) -> str | None:
    """The id of the message that answered a question; None if it was answered by another way."""
    later = [run for run in found.runs if question["interrupt_id"] in (run["kwargs"].get("answered") or [])]
    taken = [run["metadata"].get(MESSAGE_ID) for run in later if run["created_at"] >= question["created_at"]]
    return taken[0] if taken else None


def _request(run: dict[str, Any], version: Version) -> list[dict[str, Any]]:
    given: Any = run["kwargs"].get("input")
    values: dict[str, Any] = dict(cast("dict[str, Any]", given)) if isinstance(given, dict) else {}
    field = run["metadata"].get(TEXT_FIELD)
    if not isinstance(field, str) or field not in values:
        return parts_of(given, version)
    value = values.pop(field)
    said = (
        [text_part(value, version)] if isinstance(value, str) else message_parts(cast("list[Any]", value)[-1], version)
    )
    return [*said, *([data_part(values, version)] if values else [])]
