"""A question as a form, and the form as an answer that whoever asked understands.

Three kinds of questions: actions to decide (`action_requests`, of `approval()` or of LangChain's
human-in-the-loop middleware), data by a JSON Schema (`schema`), and anything else an agent may ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from perdure.console import jsonform
from perdure.console.jsonform import Field
from perdure.console.shown import duration
from perdure.engine import interrupts
from perdure.engine.errors import InvalidInput

MAX_ANSWER = 100_000
DECISIONS = ("approve", "edit", "reject", "respond")
BECAME = {"answered": "answered", "rejected": "rejected", "timed_out": "timed out", "superseded": "superseded"}


@dataclass(frozen=True, kw_only=True)
class Given:
    """An answer; `status` is what the question becomes."""

    value: Any
    status: Literal["answered", "rejected"] = "answered"


@dataclass(frozen=True, kw_only=True)
class Action:
    """One of the actions in question; `allowed` are the decisions that it takes, `fields` hold its arguments."""

    name: str
    description: str
    args: Any
    allowed: tuple[str, ...]
    fields: list[Field]


@dataclass(frozen=True, kw_only=True)
class Forms:
    """What the page offers. `kind`: one action, several, data by a schema, or any answer."""

    kind: Literal["action", "actions", "schema", "any"]
    actions: list[Action]
    fields: list[Field]


def text_of(question: Any) -> str:
    """The words of a question; of one without words, what it is about."""
    if isinstance(question, str):
        return question
    asked = _object(question)
    if isinstance(asked.get("question"), str):
        return asked["question"]
    names = ", ".join(action.name for action in _actions(asked, {}))
    if names:
        return f"May it call {names}?"
    for value in asked.values():
        if isinstance(value, str) and value.strip():
            return value
    return "A question without words"


def forms(question: Any, form: dict[str, str]) -> Forms:
    """What a person can answer, filled in with what they have already sent."""
    asked = _object(question)
    actions = _actions(asked, form)
    if "schema" in asked:
        fields = jsonform.filled(jsonform.of_schema(asked["schema"]), form)
        return Forms(kind="schema", actions=actions, fields=fields)
    if actions:
        return Forms(kind="action" if len(actions) == 1 else "actions", actions=actions, fields=[])
    return Forms(kind="any", actions=[], fields=[])


def read(question: Any, form: dict[str, str]) -> Given:
    """The answer that a form gives. Raises InvalidInput for one that gives none."""
    offered = forms(question, {})
    if sum(map(len, form.values())) > MAX_ANSWER:
        raise InvalidInput("", f"An answer of more than {MAX_ANSWER} characters must be given by the API")
    reason = form.get("reason", "").strip() or None
    chosen = form.get("decision")
    if offered.kind == "action" and chosen not in offered.actions[0].allowed:
        raise InvalidInput("", "Choose one of the answers")
    match chosen:
        case "approve":
            return Given(value=interrupts.decision(question, True))
        case "reject":
            return Given(value=interrupts.decision(question, False, reason), status="rejected")
        case "edit" if offered.kind == "action":
            return Given(value={"decisions": [_edited(offered.actions[0], form)]})
        case "respond" if offered.kind == "action":
            return Given(value={"decisions": [{"type": "respond", "message": _needed(form, "text", "Your answer")}]})
        case "decide" if offered.kind == "actions":
            return _decided(offered.actions, form)
        case "answer" if offered.kind == "schema":
            return Given(value=jsonform.read(offered.fields, form))
        case "answer" if offered.kind == "any":
            return Given(value=_text_or_json(_needed(form, "text", "Your answer")))
        case _:
            raise InvalidInput("", "Choose one of the answers")


def too_late(question: dict[str, Any]) -> str:
    """What somebody is told whose answer came second."""
    who = question["answered_by"]
    became = BECAME.get(question["status"], question["status"])
    since = question["answered_at"]
    ago = ""
    if since is not None:
        ago = f", {duration(max(0, round((datetime.now(UTC) - since).total_seconds())))} ago"
    return f"Your answer was not taken: this question was {became}{f' by {who}' if who else ''}{ago}."


def _decided(actions: list[Action], form: dict[str, str]) -> Given:
    """One decision for each action, in their order."""
    decisions: list[dict[str, Any]] = []
    for n, action in enumerate(actions):
        kind = form.get(f"decision.{n}", "")
        if kind not in action.allowed:
            raise InvalidInput(action.name, "choose what to do")
        text = form.get(f"text.{n}", "").strip()
        match kind:
            case "edit":
                decisions.append(_edited(action, form))
            case "respond":
                decisions.append({"type": "respond", "message": _needed(form, f"text.{n}", action.name)})
            case "reject":
                decisions.append({"type": "reject", **({"message": text} if text else {})})
            case _:
                decisions.append({"type": "approve"})
    rejected = all(one["type"] == "reject" for one in decisions)
    return Given(value={"decisions": decisions}, status="rejected" if rejected else "answered")


def _edited(action: Action, form: dict[str, str]) -> dict[str, Any]:
    if not action.fields:
        raise InvalidInput(action.name, "its arguments are too large to be edited here")
    args = jsonform.read(action.fields, form)
    return {"type": "edit", "edited_action": {"name": action.name, "args": args}}


def _text_or_json(text: str) -> Any:
    try:
        return jsonform.json_of(text, "Your answer")
    except InvalidInput:
        return text


def _needed(form: dict[str, str], name: str, label: str) -> str:
    text = form.get(name, "").strip()
    if not text:
        raise InvalidInput(label, "must not be empty")
    return text


def _actions(asked: dict[str, Any], form: dict[str, str]) -> list[Action]:
    requests: Any = asked.get("action_requests")
    configs: Any = asked.get("review_configs")
    allowed: dict[Any, Any] = {}
    for config in cast("list[Any]", configs) if isinstance(configs, list) else []:
        one = _object(config)
        if isinstance(one.get("action_name"), str):
            allowed[one["action_name"]] = one.get("allowed_decisions")
    found: list[Action] = []
    for n, request in enumerate(cast("list[Any]", requests) if isinstance(requests, list) else []):
        one = _object(request)
        name, args = str(one.get("name") or "action"), one.get("args")
        said = one.get("description")
        may: Any = allowed.get(name)
        taken = cast("list[Any]", may) if isinstance(may, list) and may else DECISIONS
        found.append(
            Action(
                name=name,
                description="" if said in (None, "", asked.get("question")) else str(said),
                args=args,
                allowed=tuple(one for one in DECISIONS if one in taken),
                fields=jsonform.filled(jsonform.of_values(args, f"args.{n}"), form) if args else [],
            )
        )
    return found


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
