"""Runs: the table of all of them with filters, and what is done to many at once."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Annotated, Any, cast, get_args
from urllib.parse import parse_qsl
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError, field_validator
from starlette.exceptions import HTTPException

from perdure.api import agents
from perdure.api.context import EngineDep
from perdure.api.control import RunSearch, Status
from perdure.api.fields import Moment, ThreadId
from perdure.api.gate import Gate, GateDep
from perdure.console.given import Blank
from perdure.console.pages import PageRoute, done, fields, link, page
from perdure.engine import control
from perdure.engine.core import Engine
from perdure.engine.errors import InvalidInput
from perdure.engine.runs import ACTIVE, ENDED
from perdure.engine.views import runlist

router = APIRouter(prefix="/console/runs", include_in_schema=False, route_class=PageRoute, tags=["console"])

PER_PAGE = 50
MAX_BULK = 500
"""Runs that one click changes."""
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cancel": ("cancelled", ACTIVE),
    "retry": ("tried again", ("pending",)),
    "resume": ("resumed", ("paused",)),
    "delete": ("deleted", ENDED),
}
"""What can be done to many runs: the word for it, and the runs that it can be done to."""


Text = Annotated[Annotated[str, Field(max_length=200)] | None, Blank]


class Filter(BaseModel):
    """What the address says. A `thread` may be named by a caller's `key`, too, which needs the `agent`."""

    status: Annotated[Status | None, Blank] = None
    agent: Text = None
    thread: Annotated[ThreadId | None, Blank] = None
    key: Text = None
    since: Annotated[Moment | None, Blank] = None
    until: Annotated[Moment | None, Blank] = None
    error: Annotated[Annotated[str, Field(max_length=1000)] | None, Blank] = None
    cursor: Text = None

    @field_validator("agent", "key", "error", "cursor")
    @classmethod
    def has_no_nul(cls, value: str | None) -> str | None:
        """PostgreSQL cannot hold it, so nothing matches."""
        if value and "\0" in value:
            raise ValueError("must not have a NUL character in it")
        return value

    def query(self) -> dict[str, Any]:
        """For links and the form: the same filter, from its first page."""
        moments = {"since": _written(self.since), "until": _written(self.until)}
        return {**self.model_dump(exclude={"cursor"}), **moments}

    async def asked(self, gate: Gate) -> dict[str, Any]:
        """As `runlist` takes it, without status and error. Raises InvalidInput, AssistantNotFound."""
        thread = self.thread
        if self.key:
            if not self.agent:
                raise InvalidInput("key", "belongs to an agent: choose the agent, too")
            thread = await agents.session(gate, self.agent, self.key)
            if self.thread not in (None, thread):
                raise InvalidInput("thread", "is not the one of this key")
        return {"agent": self.agent, "thread_id": thread, "since": self.since, "until": self.until}


def _written(moment: datetime | None) -> str | None:
    """As a field for date and time has it, in UTC."""
    return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%S").removesuffix(":00")


async def _within(gate: Gate, asked: dict[str, Any]) -> Any:
    """As POST /runs/search asks."""
    return (await gate.search("threads", RunSearch(**asked)))[1]


@router.get("")
async def show_runs(request: Request, engine: EngineDep, gate: GateDep, given: Annotated[Filter, Query()]) -> Response:
    """A page of runs, newest first; how many there are of each status."""
    asked = await given.asked(gate)
    status = [given.status] if given.status else None
    within = await _within(gate, {**asked, "status": status, "error": given.error})
    about = {**asked, "within": within}
    found = await runlist.find_runs(
        engine, **about, status=status, error=given.error, cursor=given.cursor, limit=PER_PAGE
    )
    counts = await runlist.count_runs(engine, **about)
    agent = given.agent
    known = engine.registry.graph_ids
    return page(
        request,
        "runs.html",
        title="Runs",
        live=asked["thread_id"] or "all",
        rows=found["rows"],
        older=found["cursor"],
        partial=found["partial"],
        first=given.cursor is None,
        counts=counts,
        filters=given.query(),
        agents=known if agent is None or agent in known else [*known, agent],
        statuses=get_args(Status),
        commands=COMMANDS,
        most=MAX_BULK,
        scan=runlist.SCAN,
    )


@router.post("")
async def change_runs(request: Request, engine: EngineDep, gate: GateDep) -> Response:
    """Cancel, retry, resume or delete the ticked runs, or those that match the filter."""
    given = await fields(request)
    name = given.get("action", [""])[-1]
    if name not in COMMANDS:
        raise HTTPException(422, f"action: must be one of {', '.join(COMMANDS)}")
    command = cast("control.Command", name)
    query = given.get("filter", [""])[-1]
    everything = given.get("which", [""])[-1] == "all"
    found = await _matching(engine, gate, query, command) if everything else _ticked(given.get("ticked", []))
    run_ids = found[:MAX_BULK]
    about = {"action": command, "run_ids": run_ids}
    within = await gate.allow("threads", "delete" if command == "delete" else "update", about)
    reasons: Counter[str] = Counter()
    async for error in control.each(engine, command, run_ids, within=within):
        if error is not None:
            reasons[str(error)] += 1
    text = _told(run_ids, command, reasons)
    if len(found) > MAX_BULK:
        text += f" There are more: one click changes {MAX_BULK} at most."
    kept = {name: value for name, value in parse_qsl(query) if name in Filter.model_fields}
    return done(request, link("", "/console/runs", **kept), text)


def _ticked(values: list[str]) -> list[UUID]:
    """The runs of the boxes, each `thread/run`."""
    try:
        return list(dict.fromkeys(UUID(value.rpartition("/")[2]) for value in values))
    except ValueError as exc:
        raise HTTPException(422, "ticked: must name a thread and a run") from exc


async def _matching(engine: Engine, gate: Gate, query: str, command: str) -> list[UUID]:
    """The newest runs of the filter in the address to which this can be done; one more than is changed."""
    try:
        given = Filter.model_validate(dict(parse_qsl(query)))
    except ValidationError as exc:
        raise RequestValidationError(exc.errors()) from exc
    possible = [one for one in COMMANDS[command][1] if given.status in (None, one)]
    narrowed = await given.asked(gate)
    within = await _within(gate, {**narrowed, "error": given.error})
    found = await runlist.find_runs(
        engine, status=possible, error=given.error, limit=MAX_BULK + 1, within=within, **narrowed
    )
    return [row["run_id"] for row in found["rows"]]


def _told(run_ids: list[UUID], command: str, reasons: Counter[str]) -> str:
    failed = sum(reasons.values())
    number = len(run_ids) - failed
    if not run_ids:
        return f"No run was {COMMANDS[command][0]}: none was chosen that could be."
    text = f"{number} {'run' if number == 1 else 'runs'} {COMMANDS[command][0]}."
    if failed:
        short: Counter[str] = Counter()
        for reason, n in reasons.items():
            for run_id in run_ids:
                reason = reason.replace(f"Run with ID {run_id} ", "").replace(f"Run {run_id} ", "")
            short[reason] += n
        text += f" {failed} left alone: " + "; ".join(f"{n} {reason}" for reason, n in short.most_common(3)) + "."
    return text
