"""A question as a form, and the form as an answer that whoever asked understands.

Three kinds of questions: actions to decide (`action_requests`, of `approval()` or of LangChain's
human-in-the-loop middleware), data by a JSON Schema (`schema`), and anything else an agent may ask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from perdure.console import jsonform
from perdure.console.bounds import bounded
from perdure.console.jsonform import Field
from perdure.console.shown import duration
from perdure.engine import interrupts
from perdure.engine.errors import InvalidInput

MAX_ANSWER = 100_000
MAX_ACTIONS = 50  # with a form of their own; the others of a question are decided together
MAX_NAMED = 10
MAX_EDITED_FIELDS = 800  # of all actions; a form may have `pages.MAX_FIELDS`
MAX_EDITED = 60_000  # characters of their values: what is typed besides has to fit into MAX_ANSWER
DECISIONS = ("approve", "edit", "reject", "respond")
BECAME = {"answered": "answered", "rejected": "rejected", "timed_out": "timed out", "superseded": "superseded"}


@dataclass(frozen=True, kw_only=True)
class Given:
    """An answer; `status` is what the question becomes."""

    value: Any
    status: Literal["answered", "rejected"] = "answered"


@dataclass(frozen=True, kw_only=True)
class Action:
    """One of the actions in question; `allowed` are the decisions that it takes, `fields` hold its arguments.

    `args` and `description` are cut, over all actions of a question, to what a page can show.
    """

    name: str
    description: str
    args: Any
    allowed: tuple[str, ...]
    fields: list[Field]


@dataclass(frozen=True, kw_only=True)
class Forms:
    """What the page offers. `kind`: one action, several, data by a schema, or any answer.

    `actions` are the first ones, and `more` how many follow. Which of "approve" and "reject" all of a question's
    actions take is `together`, which all of those that follow take is `rest`.
    """

    kind: Literal["action", "actions", "schema", "any"]
    actions: list[Action] = field(default_factory=list[Action])
    fields: list[Field] = field(default_factory=list[Field])
    more: int = 0
    together: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()


def text_of(question: Any) -> str:
    """The words of a question; of one without words, what it is about."""
    if isinstance(question, str):
        return question
    asked = _object(question)
    if isinstance(asked.get("question"), str):
        return asked["question"]
    if names := list(dict.fromkeys(_name(one) for one in _requests(asked))):
        more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
        return f"May it call {', '.join(names[:MAX_NAMED])}{more}?"
    for value in asked.values():
        if isinstance(value, str) and value.strip():
            return value
    return "A question without words"


def forms(question: Any, form: dict[str, str]) -> Forms:
    """What a person can answer, filled in with what they have already sent."""
    asked = _object(question)
    requests, allowed = _requests(asked), _allowed(asked)
    actions = _actions(asked, requests[:MAX_ACTIONS], allowed, form)
    more = len(requests) - len(actions)
    if "schema" in asked:
        fields = jsonform.filled(jsonform.of_schema(asked["schema"]), form)
        return Forms(kind="schema", actions=actions, fields=fields, more=more)
    if len(actions) < 2:
        return Forms(kind="action" if actions else "any", actions=actions)
    return Forms(
        kind="actions",
        actions=actions,
        more=more,
        together=_common(requests, allowed),
        rest=_common(requests[MAX_ACTIONS:], allowed),
    )


def read(question: Any, form: dict[str, str]) -> Given:
    """The answer that a form gives. Raises InvalidInput for one that gives none."""
    offered = forms(question, {})
    if sum(map(len, form.values())) > MAX_ANSWER:
        raise InvalidInput("", f"An answer of more than {MAX_ANSWER} characters must be given by the API")
    reason = form.get("reason", "").strip() or None
    chosen = form.get("decision")
    if offered.kind == "action" and chosen not in offered.actions[0].allowed:
        raise InvalidInput("", "Choose one of the answers")
    if offered.kind == "actions" and chosen in ("approve", "reject") and chosen not in offered.together:
        raise InvalidInput("", f"Not every action takes {chosen!r}: decide them one by one")
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
            return _decided(offered, form)
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


def _decided(offered: Forms, form: dict[str, str]) -> Given:
    """One decision for each action, in their order; those without a form of their own get the same."""
    decisions: list[dict[str, Any]] = []
    for n, action in enumerate(offered.actions):
        kind = form.get(f"decision.{n}", "")
        if kind not in action.allowed:
            raise InvalidInput(action.name, "choose what to do")
        match kind:
            case "edit":
                decisions.append(_edited(action, form))
            case "respond":
                decisions.append({"type": "respond", "message": _needed(form, f"text.{n}", action.name)})
            case _:
                decisions.append(_yes_or_no(kind, form.get(f"text.{n}", "")))
    if offered.more:
        kind = form.get("decision.rest", "")
        if kind not in offered.rest:
            raise InvalidInput(f"the other {offered.more:,} actions", "choose what to do")
        decisions += [_yes_or_no(kind, form.get("text.rest", ""))] * offered.more
    rejected = all(one["type"] == "reject" for one in decisions)
    return Given(value={"decisions": decisions}, status="rejected" if rejected else "answered")


def _yes_or_no(kind: str, reason: str) -> dict[str, Any]:
    if kind == "approve":
        return {"type": "approve"}
    return {"type": "reject", **({"message": reason.strip()} if reason.strip() else {})}


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


def _requests(asked: dict[str, Any]) -> list[Any]:
    found: Any = asked.get("action_requests")
    return cast("list[Any]", found) if isinstance(found, list) else []


def _allowed(asked: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """By the name of an action: which decisions its config allows. Whoever has none takes all of them."""
    configs: Any = asked.get("review_configs")
    found: dict[str, tuple[str, ...]] = {}
    for config in cast("list[Any]", configs) if isinstance(configs, list) else []:
        one = _object(config)
        name, may = one.get("action_name"), one.get("allowed_decisions")
        if isinstance(name, str) and isinstance(may, list) and may:
            found[name] = tuple(kind for kind in DECISIONS if kind in cast("list[Any]", may))
    return found


def _common(requests: list[Any], allowed: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Which of approve and reject all of them take."""
    names = {_name(one) for one in requests}
    return tuple(kind for kind in ("approve", "reject") if all(kind in allowed.get(name, DECISIONS) for name in names))


def _name(request: Any) -> str:
    return str(_object(request).get("name") or "action")


def _actions(
    asked: dict[str, Any], requests: list[Any], allowed: dict[str, tuple[str, ...]], form: dict[str, str]
) -> list[Action]:
    shown = bounded([_object(one).get("args") for one in requests])
    descriptions = bounded([_object(one).get("description") for one in requests])
    count, characters = 0, 0
    found: list[Action] = []
    for n, request in enumerate(requests):
        args, said, fields = _object(request).get("args"), descriptions[n], list[Field]()
        if args and count < MAX_EDITED_FIELDS and characters < MAX_EDITED:
            fields = jsonform.of_values(args, f"args.{n}")
            count += len(fields)
            characters += sum(len(one.value) for one in fields)
            if count > MAX_EDITED_FIELDS or characters > MAX_EDITED:
                fields = []
        found.append(
            Action(
                name=_name(request),
                description="" if said in (None, "", asked.get("question")) else str(said),
                args=shown[n],
                allowed=allowed.get(_name(request), DECISIONS),
                fields=jsonform.filled(fields, form),
            )
        )
    return found


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
