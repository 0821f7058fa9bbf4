"""The page behind a signed link: one question, and a form to answer it, for people who cannot log in.

Looking changes nothing: programs that scan mails follow links, so only the form's POST answers. Once
the question is closed the page says what became of it. It needs no script, loads nothing, and shows
what the agent has written as text only.
"""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from html import escape
from typing import Any, cast
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from starlette.responses import HTMLResponse, RedirectResponse

from perdure.api.body import BodyRefused, parse
from perdure.api.context import EngineDep
from perdure.api.errors import status_of
from perdure.engine import interrupts, links
from perdure.engine.core import Engine
from perdure.engine.errors import EngineError, QuestionClosed
from perdure.engine.jsonable import jsonable

router = APIRouter(prefix=links.PATH.rstrip("/"), include_in_schema=False)

MAX_NAME, MAX_TEXT = 100, 10_000
MAX_FIELDS = 20  # of the form
MAX_ACTIONS = 50
STYLE = """
body{margin:0;background:#f4f4f2;color:#1c1c1a;font:16px/1.5 system-ui,sans-serif}
main{max-width:38rem;margin:8vh auto;padding:2rem;background:#fff;border:1px solid #d9d9d4;border-radius:8px}
h1{font-size:1.35rem;margin:.2rem 0 1rem;white-space:pre-wrap;overflow-wrap:anywhere}
p{margin:.4rem 0;overflow-wrap:anywhere}.quiet{color:#6a6a64;font-size:.9rem}
pre{background:#f4f4f2;padding:.8rem;border-radius:6px;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}
label{display:block;margin-top:1rem;font-size:.9rem}
input,textarea{width:100%;box-sizing:border-box;font:inherit;padding:.5rem;border:1px solid #b9b9b2;border-radius:6px}
button{font:inherit;margin:1.2rem .6rem 0 0;padding:.55rem 1.4rem;border-radius:6px;border:1px solid #1c1c1a;
background:#fff;cursor:pointer}button.yes{background:#1c1c1a;color:#fff}
"""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
BECAME = {
    "answered": "has been answered",
    "rejected": "has been rejected",
    "timed_out": "was not answered in time",
    "superseded": "is no longer asked: the conversation went on without an answer",
}


@router.get("/{signed}")
async def show_question(signed: str, engine: EngineDep) -> Response:
    """The question as it stands; answers nothing."""
    try:
        return _page(await _question(engine, signed))
    except EngineError as exc:
        return _refused(exc)


@router.post("/{signed}")
async def answer_question(signed: str, request: Request, engine: EngineDep) -> Response:
    """Answer by the form; then the same page tells what was answered. Who comes too late sees who was first (409)."""
    try:
        question = await _question(engine, signed)
        form = _form_of(await request.body())
        value = _answer(question["question"], form, engine.settings.max_json_depth)
        if value is None:
            return _page(question, 422, "Choose one of the answers.")
        status = "rejected" if form["decision"] == "reject" else "answered"
        name = _line(form, "name")[:MAX_NAME]
        by = f"{name} (by link)" if name else "link"
        try:
            await interrupts.resolve(engine, question["token"], value[0], by=by, status=status)
        except QuestionClosed:
            return _page(await interrupts.get(engine, question["token"]), 409)
    except EngineError as exc:
        return _refused(exc)
    return RedirectResponse(signed, 303, headers=HEADERS)  # relative: a proxy may serve us below a path


async def _question(engine: Engine, signed: str) -> dict[str, Any]:
    return await interrupts.get(engine, await links.token_of(engine, signed))


def _form_of(body: bytes) -> dict[str, str]:
    """Its fields; of a name that came twice, the first. Empty, so that nothing is answered, for no form of ours."""
    try:
        found = parse_qs(body.decode(errors="replace"), max_num_fields=MAX_FIELDS)
    except ValueError:
        return {}
    return {name: values[0] for name, values in found.items()}


def _answer(question: Any, form: dict[str, str], max_depth: int) -> tuple[Any] | None:
    """What the form says, as who asked understands it; None if it says nothing.

    A text that the API would not take as JSON is a text.
    """
    match form.get("decision"):
        case "approve":
            return (interrupts.decision(question, True),)
        case "reject":
            return (interrupts.decision(question, False, _line(form, "text") or None),)
        case "answer" if _line(form, "text"):
            text = _line(form, "text")
            try:
                return (parse(text.encode(), max_depth=max_depth),)
            except BodyRefused:
                return (text,)
        case _:
            return None


def _line(form: dict[str, str], name: str) -> str:
    return form.get(name, "").replace("\0", "").strip()[:MAX_TEXT]


def _refused(exc: EngineError) -> Response:
    """The link is not ours, or has ended, or the run cannot go on."""
    status = 410 if isinstance(exc, QuestionClosed) else status_of(exc)
    return _html("No answer possible", f"<h1>{escape(str(exc))}</h1>", status)


def _page(question: dict[str, Any], status: int = 200, problem: str = "") -> Response:
    value: Any = question["question"]
    asked = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    text = value if isinstance(value, str) else asked.get("question")
    if text is None and "action_requests" in asked:
        text = "May it do this?"
    parts = [f'<p class="quiet">The agent {_text(question["agent"])} asks</p>']
    parts.append(f"<h1>{_text(text)}</h1>" if isinstance(text, str) else f"<pre>{_text(value)}</pre>")
    if isinstance(text, str):
        parts += _actions(asked)
    if question["status"] != "open":
        parts.append(_closed(question))
        return _html("Question", "\n".join(parts), status)
    if question["deadline"]:
        parts.append(f"<p>To be answered before {_time(question['deadline'])}.</p>")
    if asked.get("problem"):
        parts.append(f"<p>The answer before did not fit: {_text(asked['problem'])}</p>")
    if problem:
        parts.append(f"<p><strong>{escape(problem)}</strong></p>")
    parts.append(_form(asked))
    return _html("Question", "\n".join(parts), status)


def _actions(asked: dict[str, Any]) -> list[str]:
    """The tool calls in question, and what is asked for besides."""
    parts: list[str] = []
    actions: Any = asked.get("action_requests")
    listed = cast("list[Any]", actions) if isinstance(actions, list) else []
    for action in listed[:MAX_ACTIONS]:
        one = cast("dict[str, Any]", action) if isinstance(action, dict) else {}
        if one.get("description") not in (None, "", asked.get("question")):
            parts.append(f"<p>{_text(one['description'])}</p>")
        if one.get("args"):
            parts.append(f"<p>{_text(one.get('name'))}</p><pre>{_text(one['args'])}</pre>")
    if len(listed) > MAX_ACTIONS:
        parts.append(f'<p class="quiet">and {len(listed) - MAX_ACTIONS:,} more, which the same answer is for</p>')
    if "schema" in asked:
        parts.append(f'<p class="quiet">The answer is JSON of this form:</p><pre>{_text(asked["schema"])}</pre>')
    return parts


def _form(asked: dict[str, Any]) -> str:
    """Yes and no where they can be said; else, or for data, a text to send."""
    decides = "action_requests" in asked and "schema" not in asked
    label = "Reason, if you reject" if decides else "Your answer, as text or JSON"
    yes = '<button class="yes" name="decision" value="approve">Approve</button>'
    send = '<button class="yes" name="decision" value="answer">Send answer</button>'
    buttons = yes if decides else send if "schema" in asked else send + yes.replace(' class="yes"', "")
    return (
        '<form method="post">'
        f'<label>{label}<textarea name="text" rows="3" maxlength="{MAX_TEXT}"></textarea></label>'
        f'<label>Your name (optional)<input name="name" maxlength="{MAX_NAME}"></label>'
        f'{buttons}<button name="decision" value="reject">Reject</button></form>'
    )


def _closed(question: dict[str, Any]) -> str:
    by = f" by {_text(question['answered_by'])}" if question["answered_by"] else ""
    at = f" on {_time(question['answered_at'])}" if question["answered_at"] else ""
    told = f"<p><strong>This question {BECAME[question['status']]}{by}{at}.</strong></p>"
    return told + (f"<pre>{_text(question['answer'])}</pre>" if question["answer"] is not None and by else "")


def _time(when: datetime) -> str:
    utc = when.astimezone(UTC)
    return f'<time datetime="{utc.isoformat()}">{utc:%Y-%m-%d %H:%M} UTC</time>'


def _text(value: Any) -> str:
    """Anything as escaped text."""
    text = value if isinstance(value, str) else json.dumps(jsonable(value), indent=2, ensure_ascii=False)
    return escape(text[:MAX_TEXT].encode(errors="replace").decode())


def _html(title: str, body: str, status: int) -> Response:
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>"
    )
    return HTMLResponse(page, status, headers=HEADERS)
