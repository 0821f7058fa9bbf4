"""Crons: runs that the clock starts, on a thread or each on its own; create, find, change, delete."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from fastapi import APIRouter, Response

from perdure.api import records, schemas
from perdure.api.answers import Json, no_content, page
from perdure.api.body import JsonRoute
from perdure.api.context import EngineDep
from perdure.api.fields import CronId, ThreadId
from perdure.api.gate import DeleteCron, Gate, GateDep, ReadCron
from perdure.api.runs import SERVER_OWNED
from perdure.api.webhook import check_webhook
from perdure.engine import crons
from perdure.engine.access import kept
from perdure.engine.core import Engine
from perdure.engine.errors import InvalidInput

router = APIRouter(route_class=JsonRoute, tags=["crons"])


def settled(body: schemas.CronOptions, engine: Engine) -> dict[str, Any]:
    """The fields that the client sent.

    Raises InvalidInput for a refused webhook, and (400) for a `context` beside a `configurable`.
    """
    fields = body.given()
    if body.webhook:
        check_webhook(body.webhook, engine.registry.config)
    if "config" in fields:
        fields["config"] = schemas.config_of(body.config)
        if body.context and fields["config"].get("configurable", {}).keys() - SERVER_OWNED - {"cron_id"}:
            raise InvalidInput("", "Cannot specify both configurable and context; give one", status=400)
    if fields.get("stream_mode") == []:
        del fields["stream_mode"]
    if fields.pop("checkpoint_during", None) is False:
        fields["durability"] = "exit"
    return fields


async def create(gate: Gate, thread_id: ThreadId | None, body: schemas.ThreadCronCreate) -> dict[str, Any]:
    """A cron of the caller's; its runs will act for the caller."""
    payload = settled(body, gate.engine)
    if gate.auth is not None:
        about = {"schedule": body.schedule, "end_time": body.end_time, "user_id": gate.identity}
        value = {"payload": payload, **about, "cron_id": None, "thread_id": thread_id, "metadata": body.metadata}
        payload["metadata"], _ = await gate.owned("crons", "create", value)
    run = {"assistant_id": body.assistant_id}
    actor = await (gate.actor(None, run, makes=True) if thread_id is None else gate.acting(thread_id, run))
    own = {"schedule", "timezone", "end_time", "enabled", "on_run_completed", "metadata"}
    given = {name: value for name, value in payload.items() if name in own}
    return await crons.create(
        gate.engine, thread_id, assistant=body.assistant_id, payload=payload, actor=actor, **given
    )


@router.post("/runs/crons", response_model=records.Cron)
async def create_cron(body: schemas.CronCreate, gate: GateDep) -> Response:
    """Start runs by the clock, each on a thread of its own."""
    return Json(await create(gate, None, body))


@router.post("/threads/{thread_id}/runs/crons", response_model=records.Cron)
async def create_thread_cron(thread_id: ThreadId, body: schemas.ThreadCronCreate, gate: GateDep) -> Response:
    """Start runs on a thread by the clock."""
    return Json(await create(gate, thread_id, body))


@router.post("/runs/crons/search", response_model=list[records.FoundCron])
async def search_crons(body: schemas.CronSearch, engine: EngineDep, gate: GateDep) -> Response:
    """Find crons."""
    metadata, within = await gate.search("crons", body)
    rows, total = await crons.search(
        engine,
        within=within,
        assistant=body.assistant_id,
        thread_id=body.thread_id,
        enabled=body.enabled,
        metadata=metadata,
        limit=body.limit,
        offset=body.offset,
        sort_by=body.sort_by,
        sort_order=body.sort_order,
    )
    return page(rows, total, offset=body.offset, select=cast("list[str]", body.select) or records.Cron.model_fields)


@router.post("/runs/crons/count", response_model=int)
async def count_crons(body: schemas.CronCount, engine: EngineDep, gate: GateDep) -> Response:
    """How many crons match."""
    metadata, within = await gate.search("crons", body)
    about: dict[str, Any] = {"assistant": body.assistant_id, "thread_id": body.thread_id, "enabled": body.enabled}
    found = await crons.count(engine, **about, metadata=metadata, within=within)
    return Json(found)


@router.get("/runs/crons/{cron_id}", response_model=records.Cron)
async def get_cron(cron_id: ReadCron, engine: EngineDep) -> Response:
    """One cron."""
    return Json(await crons.get(engine, cron_id))


@router.patch("/runs/crons/{cron_id}", response_model=records.Cron)
async def patch_cron(cron_id: CronId, body: schemas.CronPatch, gate: GateDep) -> Response:
    """Change a cron: metadata is merged at the top level, everything else replaced."""
    return Json(await change(gate, cron_id, body))


async def change(gate: Gate, cron_id: UUID, body: schemas.CronPatch) -> dict[str, Any]:
    """A cron of the caller's, changed. Raises CronNotFound, InvalidInput."""
    changes = settled(body, gate.engine)
    metadata: dict[str, Any] = changes.get("metadata") or {}
    value: dict[str, Any] = {"payload": changes, "schedule": changes.get("schedule"), "metadata": metadata}
    within = await gate.cron("update", cron_id, value)
    if value["metadata"]:
        changes["metadata"] = kept(value["metadata"], within)
    return await crons.patch(gate.engine, cron_id, changes)


@router.delete("/runs/crons/{cron_id}", status_code=204, response_class=Response)
async def delete_cron(cron_id: DeleteCron, engine: EngineDep) -> Response:
    """Delete a cron; runs that it has started go on."""
    await crons.delete(engine, cron_id)
    return no_content()
