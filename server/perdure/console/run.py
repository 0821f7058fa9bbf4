"""One run: what it did and when, what went in and came out, its events, its graph; and what can be done to it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException

from perdure.api.context import EngineDep
from perdure.api.fields import RunId, ThreadId
from perdure.api.gate import DeleteThread, GateDep, ReadThread, UpdateThread
from perdure.console import waterfall
from perdure.console.bounds import bounded
from perdure.console.pages import PageRoute, done, form, link, page
from perdure.console.shown import short
from perdure.engine import control, runs, stop
from perdure.engine.core import Engine
from perdure.engine.errors import RunFinished, RunNotFound
from perdure.engine.tracing import ids
from perdure.engine.views import rundetail, timeline

router = APIRouter(prefix="/console/runs", include_in_schema=False, route_class=PageRoute, tags=["console"])

PER_PAGE = 100
MOST_ERRORS = 20_000
Tab = Literal["timeline", "values", "events", "graph"]
TABS: dict[Tab, str] = {"timeline": "Timeline", "values": "Input and output", "events": "Events", "graph": "Graph"}
_NAMES = re.compile(r"([^|:]+):[0-9a-f-]{36}")


@router.get("/{thread_id}/{run_id}")
async def show_run(
    request: Request,
    thread_id: ReadThread,
    run_id: RunId,
    engine: EngineDep,
    tab: Tab = "timeline",
    offset: Annotated[int, Query(ge=0, le=timeline.MAX_ROWS)] = 0,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
) -> Response:
    """One run; the tabs `timeline` (from the entry `offset` on) and `events` (after a seq) go page by page."""
    run = await rundetail.describe(engine, thread_id, run_id)
    context: dict[str, Any] = {}
    if tab == "timeline":
        story = await rundetail.story(engine, run, limit=PER_PAGE, offset=offset)
        context = {"story": story, "fall": waterfall.draw(run, story), "offset": offset, "per_page": PER_PAGE}
    elif tab == "values":
        context = await _values(engine, thread_id, run_id)
    elif tab == "events":
        found, further = await rundetail.events_of(engine, run, after=after, limit=PER_PAGE)
        context = {"events": found, "further": further, "after": after}
    elif run["agent"] in engine.registry.graphs:
        context = {"lit": await _lit(engine, run)}
    return page(
        request,
        "run.html",
        title=f"Run {short(run_id)} of {run['agent']}",
        live=thread_id,
        run=run,
        tab=tab,
        tabs=TABS,
        actions=possible(run),
        most_error=MOST_ERRORS,
        trace_link=_trace_link(engine, run),
        **context,
    )


def _trace_link(engine: Engine, run: dict[str, Any]) -> str | None:
    """Where the run's trace can be looked at, if the settings say so."""
    address = engine.settings.trace_url
    if address is None:
        return None
    trace_id = ids.trace_of(run["run_id"], run["trace"])
    values = {"trace_id": f"{trace_id:032x}", "run_id": str(run["run_id"]), "thread_id": str(run["thread_id"])}
    for name, value in values.items():
        address = address.replace(f"{{{name}}}", value)
    return address


def possible(run: dict[str, Any]) -> set[str]:
    """What can be done to a run in its present state."""
    if run["status"] not in runs.ACTIVE:
        return {"restart", "delete"}
    found = {"cancel", "kill"}
    found.add("resume" if run["status"] == "paused" else "pause")
    if run["status"] == "pending" and run["failures"] and run["is_head"]:
        found.add("retry")
    return found


async def _values(engine: Engine, thread_id: UUID, run_id: UUID) -> dict[str, Any]:
    record = await runs.get(engine, thread_id, run_id)
    kwargs: dict[str, Any] = record["kwargs"]
    ended = record["status"] not in runs.ACTIVE and not record.get("paused")
    output = await runs.result(engine, thread_id, run_id) if ended and record["status"] == "success" else None
    given = {name: kwargs[name] for name in ("input", "command", "context") if kwargs.get(name) not in (None, {})}
    config: dict[str, Any] = kwargs.get("config") or {}
    shown = {name: config[name] for name in ("configurable", "tags", "recursion_limit") if config.get(name)}
    return {
        "given": {name: bounded(value) for name, value in given.items()},
        "config": bounded(shown) if shown else None,
        "metadata": bounded(record["metadata"]),
        "ended": ended,
        "output": bounded(output),
    }


async def _lit(engine: Engine, run: dict[str, Any]) -> dict[str, str]:
    """The state of each node that has run: `done`, `error`, `waiting` or `running`; the last time counts."""
    lit: dict[str, str] = {}
    entries, _ = await timeline.read(engine, run["thread_id"], run["run_id"], limit=1000)
    for entry in entries:
        names: list[str] = _NAMES.findall(entry["scope"] or "")
        for depth in range(2, len(names) + 1):
            lit[":".join(names[:depth])] = "done"
    words = {"done": "done", "error": "error", "question": "waiting"}
    for node in await rundetail.nodes(engine, run):
        now = "running" if run["status"] == "running" else "waiting" if run["ended_at"] is None else None
        state = words.get(node["ended"]) if node["ended"] else now
        if state:
            lit[node["node"]] = state
    return lit


@router.get("/{thread_id}/{run_id}/entries/{entry_id}")
async def show_entry(
    request: Request,
    thread_id: ReadThread,
    run_id: RunId,
    entry_id: str,
    engine: EngineDep,
    offset: Annotated[int, Query(ge=0, le=timeline.MAX_ROWS)] = 0,
) -> Response:
    """What a step gave back, or a question and its answer: read only when somebody opens it."""
    found, _ = await timeline.read(engine, thread_id, run_id, limit=PER_PAGE, offset=offset, values=True)
    entry = next((one for one in found if waterfall.entry_id(one) == entry_id), None)
    if entry is None:
        raise HTTPException(404, "This entry is not on this page of the timeline any more: load it again")
    answer = page(request, "runentry.html", title="", entry={"truncated": False, **entry})
    if "HX-Push-Url" in answer.headers:  # it is a part of the page that is there
        del answer.headers["HX-Push-Url"]
    return answer


# --- what is done to it ----------------------------------------------------------------------------


@router.post("/{thread_id}/{run_id}/delete")
async def delete_run(request: Request, thread_id: DeleteThread, run_id: RunId, engine: EngineDep) -> Response:
    """Forget a run that has ended; 409 while it is active."""
    await runs.delete(engine, thread_id, run_id)
    return done(request, "/console/runs", f"Run {short(run_id)} is deleted; its checkpoints stay.")


@router.post("/{thread_id}/{run_id}/restart")
async def restart_run(
    request: Request, thread_id: ThreadId, run_id: RunId, engine: EngineDep, gate: GateDep
) -> Response:
    """A new run with the same input, or from a checkpoint on; goes to its page. 409 while the run is active."""
    actor = await gate.acting(thread_id, {"run_id": run_id, "if_not_exists": "reject"})
    checkpoint_id = (await form(request)).get("checkpoint_id") or None
    if checkpoint_id and not re.fullmatch(r"[0-9a-f-]{1,100}", checkpoint_id):
        raise HTTPException(422, "checkpoint_id: is not one")
    new = await control.restart(engine, thread_id, run_id, checkpoint_id=checkpoint_id, actor=actor)
    return done(request, f"/console/runs/{thread_id}/{new['run_id']}", "This is the new run.")


@router.post("/{thread_id}/{run_id}/{action}")
async def change_run(
    request: Request,
    thread_id: UpdateThread,
    run_id: RunId,
    action: Literal["cancel", "kill", "pause", "resume", "retry"],
    engine: EngineDep,
) -> Response:
    """Cancel, kill, pause, resume, or retry now; 409 where the state of the run forbids it."""
    if action == "pause":
        await control.pause(engine, thread_id, run_id)
    elif action == "resume":
        await control.resume(engine, thread_id, run_id)
    elif action == "retry":
        await control.retry(engine, thread_id, run_id)
    else:
        run = await runs.get(engine, thread_id, run_id)  # 404 if there is none
        try:
            await stop.cancel(engine, thread_id, run_id, compensate=action == "cancel")
        except RunNotFound as exc:
            raise RunFinished(f"Run {run_id} is {run['status']}: it cannot be cancelled") from exc
    words = {
        "cancel": "The run is being cancelled.",
        "kill": "The run was killed: nothing was undone.",
        "pause": "The run is paused.",
        "resume": "The run goes on.",
        "retry": "The run is tried again now.",
    }
    return done(request, link("", f"/console/runs/{thread_id}/{run_id}"), words[action])
