"""Schedules: crons, what they start and when; create, change, stop, delete, as the API does it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from perdure.api import crons as api
from perdure.api import schemas
from perdure.api.context import EngineDep
from perdure.api.errors import validation_detail
from perdure.api.fields import CronId
from perdure.api.gate import DeleteCron, Gate, GateDep, ReadCron
from perdure.console import jsonform
from perdure.console.pages import PageRoute, done, form, page
from perdure.console.shown import MAX_TEXT, as_json
from perdure.engine import crons
from perdure.engine.errors import InvalidInput, ThreadNotFound
from perdure.engine.schedule import next_tick

router = APIRouter(prefix="/console/schedules", include_in_schema=False, route_class=PageRoute, tags=["console"])

PER_PAGE = 50
MAX_PAGE = 10_000
TICKS = 5
MULTITASK = ("enqueue", "reject", "interrupt", "rollback")
NEW = {"schedule": "0 9 * * 1-5", "timezone": "UTC", "enabled": "true", "input": "{}"}

Body = TypeVar("Body", bound=schemas.Body)


@router.get("")
async def show_schedules(
    request: Request,
    engine: EngineDep,
    gate: GateDep,
    agent: Annotated[str, Query(max_length=200)] = "",
    enabled: Literal["", "true", "false"] = "",
    at: Annotated[int, Query(ge=1, le=MAX_PAGE, alias="page")] = 1,
) -> Response:
    """All of the caller's crons, newest first."""
    offset = (at - 1) * PER_PAGE
    body = schemas.CronSearch(assistant_id=agent or None, enabled=enabled == "true" if enabled else None, offset=offset)
    metadata, within = await gate.search("crons", body)
    rows, total = await crons.search(
        engine,
        assistant=body.assistant_id,
        enabled=body.enabled,
        metadata=metadata,
        limit=PER_PAGE,
        offset=offset,
        within=within,
    )
    return page(
        request,
        "schedules.html",
        title="Schedules",
        live="all",
        crons=[{**row, "agent": _agent(gate, row)} for row in rows],
        given={"agent": agent, "enabled": enabled},
        at=at,
        more=total > offset + len(rows),
        agents=engine.registry.graph_ids,
    )


@router.get("/new")
async def show_new(request: Request, gate: GateDep, agent: Annotated[str, Query(max_length=200)] = "") -> Response:
    """The form of a new cron."""
    await gate.search("crons", schemas.CronSearch())
    return _new(request, gate, {**NEW, "agent": agent})


@router.post("/new")
async def create(request: Request, gate: GateDep) -> Response:
    """A new cron, on a thread or with a thread of its own for each run."""
    given = await form(request)
    try:
        fields = _options(given)
        fields |= {"assistant_id": given.get("agent", "").strip()}
        if thread := given.get("thread", "").strip():
            body = _body(schemas.ThreadCronCreate, fields)
            cron = await api.create(gate, _uuid(thread), body)
        else:
            fields["on_run_completed"] = given.get("on_run_completed", "delete")
            cron = await api.create(gate, None, _body(schemas.CronCreate, fields))
    except (InvalidInput, ThreadNotFound) as exc:
        return _new(request, gate, given, str(exc))
    return done(request, f"/console/schedules/{cron['cron_id']}", "The schedule is there.")


def _new(request: Request, gate: Gate, given: dict[str, str], problem: str = "") -> Response:
    return page(
        request,
        "schedule_new.html",
        title="New schedule",
        given=given,
        problem=problem,
        status=422 if problem else 200,
        agents=gate.engine.registry.graph_ids,
        multitask=MULTITASK,
        next=_ticks_or_none(given),
    )


@router.get("/ticks")
async def show_ticks(
    request: Request,
    gate: GateDep,
    schedule: Annotated[str, Query(max_length=500)] = "",
    timezone: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """When a schedule that is being written would start runs; part of a page."""
    await gate.search("crons", schemas.CronSearch())
    try:
        next, problem = list(ticks(schedule, timezone.strip() or None, datetime.now(UTC))), ""
    except InvalidInput as exc:
        next, problem = [], str(exc)
    answer = page(request, "ticks.html", title="Next runs", next=next, problem=problem)
    if "HX-Push-Url" in answer.headers:
        del answer.headers["HX-Push-Url"]  # it is no page of its own
    return answer


@router.get("/{cron_id}")
async def show_schedule(request: Request, cron_id: ReadCron, gate: GateDep) -> Response:
    """One cron: when it comes next, what it has started, and its form."""
    return await _schedule(request, gate, cron_id)


async def _schedule(
    request: Request, gate: Gate, cron_id: UUID, given: dict[str, str] | None = None, problem: str = ""
) -> Response:
    cron = await crons.get(gate.engine, cron_id)
    _, within = await gate.search("threads", schemas.ThreadSearch())
    due = cron["next_run_date"]
    try:
        later = ticks(cron["schedule"], cron["timezone"], due, until=cron["end_time"], count=TICKS - 1) if due else ()
        next = [*later]
        next = [_tick(due, cron["timezone"]), *next] if due else next
    except InvalidInput:  # its time zone is gone
        next = []
    return page(
        request,
        "schedule.html",
        title=f"{_agent(gate, cron)}, {cron['schedule']}",
        live="all",
        status=422 if problem else 200,
        cron=cron,
        agent=_agent(gate, cron),
        next=next,
        runs=await crons.runs_of(gate.engine, cron_id, within=within),
        problem=problem,
        given=given or _given(cron),
        multitask=MULTITASK,
    )


@router.post("/{cron_id}")
async def change(request: Request, cron_id: CronId, gate: GateDep) -> Response:
    """Change a cron; runs that it has started stay as they are."""
    given = await form(request)
    try:
        fields = _options(given)
        fields["timezone"] = fields["timezone"] or "UTC"
        if given.get("on_run_completed"):
            fields["on_run_completed"] = given["on_run_completed"]
        await api.change(gate, cron_id, _body(schemas.CronPatch, fields))
    except InvalidInput as exc:
        await gate.cron("read", cron_id)
        return await _schedule(request, gate, cron_id, given, str(exc))
    return done(request, f"/console/schedules/{cron_id}", "Changed.")


@router.post("/{cron_id}/enabled")
async def switch(request: Request, cron_id: CronId, gate: GateDep) -> Response:
    """Let it start runs, or not."""
    on = (await form(request)).get("enabled") == "true"
    await api.change(gate, cron_id, _body(schemas.CronPatch, {"enabled": on}, but_end=True))
    return done(request, f"/console/schedules/{cron_id}", "It starts runs again." if on else "It starts no more runs.")


@router.post("/{cron_id}/delete")
async def delete(request: Request, cron_id: DeleteCron, engine: EngineDep) -> Response:
    """Delete a cron; runs that it has started go on."""
    await crons.delete(engine, cron_id)
    return done(request, "/console/schedules", "The schedule is deleted.")


# -- forms


def _options(given: dict[str, str]) -> dict[str, Any]:
    """What the forms of a new and of an old cron have in common, as the API's body. Raises InvalidInput."""
    multitask = given.get("multitask_strategy", "")
    return {
        "schedule": " ".join(given.get("schedule", "").split()),
        "timezone": given.get("timezone", "").strip() or None,
        "end_time": given.get("end_time", "").strip() or None,
        "enabled": given.get("enabled") == "true",
        **({"input": jsonform.json_of(given["input"].strip() or "null", "input")} if "input" in given else {}),
        **({"multitask_strategy": multitask} if multitask else {}),
    }


def _given(cron: dict[str, Any]) -> dict[str, str]:
    """The form of a cron as it is; without its input if that is too large to be edited on a page."""
    payload, end = cron["payload"], cron["end_time"]
    text = as_json(payload.get("input"), MAX_TEXT + 1)
    return {
        "schedule": cron["schedule"],
        "timezone": cron["timezone"] or "UTC",
        "end_time": end.astimezone(UTC).isoformat(timespec="seconds") if end else "",
        "enabled": "true" if cron["enabled"] else "",
        **({"input": text} if len(text) <= MAX_TEXT else {}),
        "on_run_completed": cron["on_run_completed"] or "",
        "multitask_strategy": payload.get("multitask_strategy") or "enqueue",
    }


def _body(kind: type[Body], fields: dict[str, Any], *, but_end: bool = False) -> Body:
    """The API's body. `but_end`: the end is not among the fields, and stays."""
    given = {name: value for name, value in fields.items() if value is not None or name == "end_time"}
    if but_end:
        given.pop("end_time", None)
    try:
        return kind.model_validate(given)
    except ValidationError as exc:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in exc.errors()]
        raise InvalidInput("", validation_detail(errors)) from exc


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as exc:
        raise InvalidInput("thread", "must be the id of a thread, or empty") from exc


def _agent(gate: Gate, cron: dict[str, Any]) -> str:
    """What a person calls the assistant of a cron: its graph, or else what the client has sent."""
    names = {gate.engine.registry.default_assistant_id(name): name for name in gate.engine.registry.graph_ids}
    return names.get(cron["assistant_id"], str(cron["payload"].get("assistant_id") or cron["assistant_id"]))


# -- times


def ticks(
    schedule: str, timezone: str | None, after: datetime, *, until: datetime | None = None, count: int = TICKS
) -> Iterator[tuple[datetime, datetime]]:
    """The next times, each in UTC and in the time zone. Raises InvalidInput."""
    for _ in range(count):
        tick = next_tick(schedule, timezone, after, until=until)
        if tick is None:
            return
        yield _tick(tick, timezone)
        after = tick


def _tick(at: datetime, timezone: str | None) -> tuple[datetime, datetime]:
    zone: tzinfo = ZoneInfo(timezone) if timezone else UTC
    return at, at.astimezone(zone)


def _ticks_or_none(given: dict[str, str]) -> list[tuple[datetime, datetime]]:
    try:
        return list(ticks(given.get("schedule", ""), given.get("timezone", "").strip() or None, datetime.now(UTC)))
    except InvalidInput:
        return []
