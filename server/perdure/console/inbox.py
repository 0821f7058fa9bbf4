"""The inbox: what agents have asked people, and a form for each answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from perdure.api.context import EngineDep
from perdure.api.gate import GateDep
from perdure.api.interrupts import asked
from perdure.console import answering
from perdure.console.pages import PageRoute, done, form, page
from perdure.console.shown import clip
from perdure.engine import interrupts
from perdure.engine.errors import InvalidInput, QuestionClosed
from perdure.engine.views import questions

router = APIRouter(prefix="/console/inbox", include_in_schema=False, route_class=PageRoute, tags=["console"])

PER_PAGE = 50
Status = Literal["open", "answered", "rejected", "timed_out", "superseded", "all"]


@router.get("")
async def show_inbox(
    request: Request,
    engine: EngineDep,
    gate: GateDep,
    status: Status = "open",
    agent: Annotated[str, Query(max_length=200)] = "",
    thread: Annotated[str, Query(max_length=100)] = "",
    cursor: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Questions, newest first."""
    about: dict[str, Any] = {
        "status": None if status == "all" else status,
        "agent": agent or None,
        "thread_id": _thread_id(thread),
        "limit": PER_PAGE + 1,
    }
    within = await gate.allow("threads", "search", {**about, "offset": 0})
    rows = await questions.search(engine, **about, cursor=cursor or None, within=within, brief=True)
    return page(
        request,
        "inbox.html",
        title="Inbox",
        live="all",
        questions=[{**row, "text": answering.text_of(row["question"])} for row in rows[:PER_PAGE]],
        more=rows[PER_PAGE - 1]["token"] if len(rows) > PER_PAGE else None,
        given={"status": status, "agent": agent, "thread": thread.strip()},
        first=not cursor,
        agents=engine.registry.graph_ids,
    )


def _thread_id(text: str) -> UUID | None:
    try:
        return UUID(text.strip()) if text.strip() else None
    except ValueError as exc:
        raise InvalidInput("thread", f"{clip(text, 50)!r} is no thread id") from exc


@router.get("/{token}")
async def show_question(request: Request, token: str, gate: GateDep) -> Response:
    """One question, and how to answer it; once it is closed, who has answered what."""
    return _question(request, await asked(gate, token, "read"))


@router.post("/{token}")
async def answer_question(request: Request, token: str, gate: GateDep) -> Response:
    """Answer by the form. Whoever comes second is told who was first (409)."""
    question = await asked(gate, token, "create_run")
    given = await form(request)
    try:
        answer = answering.read(question["question"], given)
    except InvalidInput as exc:
        return _question(request, question, 422, str(exc), given)
    try:
        await interrupts.resolve(gate.engine, token, answer.value, by=gate.identity or None, status=answer.status)
    except QuestionClosed:
        question = await asked(gate, token, "read")
        return _question(request, question, 409, answering.too_late(question))
    except InvalidInput as exc:
        return _question(request, question, 422, str(exc), given)
    word = "Rejected" if answer.status == "rejected" else "Answered"
    return done(request, f"/console/inbox/{token}", f"{word}: the agent goes on.")


def _question(
    request: Request,
    question: dict[str, Any],
    status: int = 200,
    problem: str = "",
    given: dict[str, str] | None = None,
) -> Response:
    text = answering.text_of(question["question"])
    link: str = question["url"]
    if not link.startswith(("http://", "https://")):  # PERDURE_PUBLIC_URL is not set
        link = str(request.base_url).rstrip("/") + link
    return page(
        request,
        "question.html",
        title=clip(text, 80),
        live=question["thread_id"],
        status=status,
        asked=question,
        text=text,
        forms=answering.forms(question["question"], given or {}) if question["status"] == "open" else None,
        signed=link,
        problem=problem,
        given=given or {},
    )
