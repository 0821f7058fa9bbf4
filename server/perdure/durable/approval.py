"""`approval`: ask a person and wait, for weeks if need be, at no cost.

The question is a LangGraph interrupt, so any client that can answer one will do. Its value is what Agent Chat
UI and agent-inbox show:

    {"question": text, "deadline": ISO 8601 (only with within=), "schema": JSON schema (only with schema=),
     "action_requests": [{"name", "args", "description"}],
     "review_configs": [{"action_name", "allowed_decisions"}]}
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NotRequired, cast

from langgraph.errors import GraphInterrupt
from langgraph.types import interrupt
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from perdure.durable.errors import ApprovalTimeout
from perdure.durable.journal import here
from perdure.durable.once import seconds
from perdure.durable.step import step
from perdure.durable.suspend import unfinished

TIMEOUT_KEY = "__timeout__"
DECISIONS = ["approve", "edit", "reject", "respond"]

_YES = {"yes", "y", "true", "ok", "okay", "approve", "approved", "accept", "accepted"}
_NO = {"no", "n", "false", "reject", "rejected", "deny", "denied", "decline", "declined"}


class Action(TypedDict):
    """What is to be approved, as a reviewer's screen shows it."""

    name: str
    args: NotRequired[dict[str, Any]]
    description: NotRequired[str]


@dataclass(frozen=True)
class Answer:
    """What the person said."""

    approved: bool
    """True only if the answer clearly says so; with `schema=`, also if it fits the schema."""
    value: Any = None
    """What was answered besides a decision: text, or any JSON."""
    edited_args: dict[str, Any] | None = None
    """The arguments of the action as the person changed them; approved then."""
    reason: str | None = None
    by: str | None = None
    """Who answered, if the answer tells."""


async def approval(
    question: str,
    *,
    within: timedelta | float | None = None,
    schema: type[Any] | dict[str, Any] | None = None,
    action: Action | None = None,
) -> Answer:
    """Ask a person; goes on, perhaps weeks later and on another machine, with the answer.

    Example:
        try:
            answer = await approval(f"Pay {amount} USD?", within=timedelta(hours=3))
        except ApprovalTimeout:
            ...
        if not answer.approved:
            return {"decision": "rejected", "reason": answer.reason}

    The node ends here and is executed again from its top when the answer comes: what stands above must be a
    step or without effect. Several approvals in one node are answered in the order of their calls; don't call
    two at once.

    - `within`: seconds or timedelta. The deadline is fixed when the question is first asked and recorded, so
      a restart keeps the remaining time. Outside of a perdure server it is shown but not enforced.
    - `action`: `{"name", "args", "description"}` of the tool call in question, for the reviewer to see and
      edit.
    - `schema`: asks for data instead of yes or no. A type (pydantic model, TypedDict, dataclass, `int`): an
      answer that does not fit is asked again, with the `problem` in the question; `value` has that type. A
      dict is a JSON schema, which is shown and not checked.

    Understood as a decision: true and false; `{"approved": bool, "reason", "value", "edited_args", "by"}`;
    `{"decisions": [{"type": "approve" | "edit" | "reject" | "respond", …}]}` and `[{"type": "accept" | "edit"
    | "ignore" | "response", "args"}]`; a lone word such as "yes" or "no". The text of a `respond` counts as
    if it had been sent alone. Anything else is not approved and stands in `value`.

    Raises ApprovalTimeout at the deadline. ValueError if `within` is not positive.
    """
    limit = seconds(within)
    deadline = await _deadline(limit) if limit is not None else None
    adapter = TypeAdapter[Any](schema) if schema is not None and not isinstance(schema, dict) else None
    payload = _payload(question, deadline, action)
    if schema is not None:
        payload["schema"] = adapter.json_schema() if adapter else schema
    while True:
        try:
            raw: Any = interrupt(payload)
        except GraphInterrupt:
            unfinished(here().journal)
            raise
        if isinstance(raw, dict) and TIMEOUT_KEY in raw:
            if deadline is not None and raw[TIMEOUT_KEY] == deadline:
                raise ApprovalTimeout(
                    f"Nobody answered {question!r} before {deadline}", question=question, deadline=deadline
                )
            continue  # the timer of another question: this one stays open
        raw = _unwrapped(raw)
        answer = _decided(raw)
        if schema is None:
            return answer or _loose(raw)
        if answer is not None and not answer.approved:
            return answer
        data = raw if answer is None else answer.value if answer.value is not None else answer.edited_args
        try:
            value = adapter.validate_python(data) if adapter else data
        except ValidationError as exc:
            if answer is None and _word(raw) in _NO:
                return _loose(raw)
            payload = {**payload, "problem": str(exc)}
            continue
        if answer is None:
            return Answer(True, value)
        return replace(answer, value=value)


# The key is fixed: a new wording of the question or another limit does not move a deadline that is already
# running.
@step(name="approval", key="deadline")
async def _deadline(limit: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=limit)).isoformat()


def _payload(question: str, deadline: str | None, action: Action | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": "approval", "args": {}, "description": question, **(action or {})}
    payload: dict[str, Any] = {"question": question}
    if deadline is not None:
        payload["deadline"] = deadline
    payload["action_requests"] = [shown]
    payload["review_configs"] = [{"action_name": shown["name"], "allowed_decisions": DECISIONS}]
    return payload


def _unwrapped(raw: Any) -> Any:
    """The one decision of `{"decisions": […]}` or `[…]`, and of a respond the text."""
    found = raw
    if isinstance(found, dict):
        found = cast("dict[str, Any]", found).get("decisions", raw)
    if isinstance(found, list) and len(cast("list[Any]", found)) == 1:
        found = cast("list[Any]", found)[0]
    if not isinstance(found, dict) or "type" not in found:
        return raw
    decision = cast("dict[str, Any]", found)
    if decision["type"] in ("respond", "response"):
        return decision.get("message", decision.get("args"))
    return decision


def _decided(raw: Any) -> Answer | None:
    """The answer if it has the form of a decision. None: it is text or data."""
    if isinstance(raw, bool):
        return Answer(raw)
    if not isinstance(raw, dict):
        return None
    given = cast("dict[str, Any]", raw)
    approved: Any = given.get("approved")
    edited: Any = given.get("edited_args")
    match given.get("type"):
        case "approve" | "accept":
            approved = True
        case "reject" | "ignore":
            approved = False
        case "edit":
            # LangChain: {"edited_action": {"name", "args"}}; agent-inbox: {"args": {"action", "args"}}
            changed: Any = given.get("edited_action", given.get("args"))
            approved, edited = True, changed
            if isinstance(changed, dict):
                edited = cast("dict[str, Any]", changed).get("args", changed)
        case _:
            pass
    if not isinstance(approved, bool):
        return None
    reason = given.get("reason", given.get("message"))
    by = given.get("by")
    return Answer(
        approved,
        given.get("value"),
        cast("dict[str, Any]", edited) if approved and isinstance(edited, dict) else None,
        reason if isinstance(reason, str) else None,
        by if isinstance(by, str) else None,
    )


def _loose(raw: Any) -> Answer:
    """Text or data where yes or no was asked for: only a lone word decides."""
    approved = _word(raw) in _YES
    return Answer(approved, raw, reason=raw if isinstance(raw, str) and not approved else None)


def _word(raw: Any) -> str:
    return raw.strip().rstrip(".!").lower() if isinstance(raw, str) else ""
