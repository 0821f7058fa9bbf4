"""The event protocol of a thread: following its events, and the runs that commands start.

`showing` makes protocol events of the event log. Types: `langchain-protocol` 0.0.20.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import orjson

from perdure.engine import events, finding, runs
from perdure.engine.access import Actor
from perdure.engine.errors import QuestionNotFound, RunNotFound
from perdure.engine.events import PROTOCOL
from perdure.engine.newrun import NewRun
from perdure.engine.showing import Interest, Namespace, Showing, Shown, Wanted
from perdure.engine.views import questions

if TYPE_CHECKING:
    from perdure.engine.core import Engine


async def follow(engine: Engine, thread_id: UUID, wanted: Wanted, *, since: int = 0) -> AsyncIterator[Shown | None]:
    """Protocol events with `seq > since`, across runs; ends only when the thread is deleted.

    The thread need not exist yet. Yields None after about every `heartbeat_seconds` of silence.
    """
    heartbeat = engine.settings.heartbeat_seconds
    silent_since = time.monotonic()
    showing = Showing(engine, thread_id)
    log = events.follow_thread(engine, thread_id, after=since, expected=True, states=False)
    async with aclosing(cast(Any, log)) as source:
        async for event in source:
            shown = [] if event is None else await showing.of(event, wanted)
            for one in shown:
                yield one
            if shown or event is None or time.monotonic() - silent_since >= heartbeat:
                silent_since = time.monotonic()
                if not shown:
                    yield None


async def replay(
    engine: Engine, thread_id: UUID, wanted: Interest, *, since: int = 0, until: int | None = None, states: bool = True
) -> AsyncIterator[Shown]:
    """The stored protocol events with `since < seq <= until`, one at a time; see `Showing` for `states`."""
    showing = Showing(engine, thread_id, states=states)
    async with aclosing(cast(Any, events.stored(engine, thread_id, since, states=False))) as source:
        async for event in source:
            if until is not None and event.seq > until:
                return
            for shown in await showing.of(event, wanted):
                yield shown


async def start(engine: Engine, thread_id: UUID, new: NewRun) -> tuple[dict[str, Any], int]:
    """Accept a run; returns it and the seq of the event before its own. Raises as `runs.enqueue` does."""
    async with engine.pool.connection() as conn, conn.transaction():
        run, published = await runs.enqueue_in(engine, conn, thread_id, new)
    engine.hub.publish(thread_id, published)
    return run, max((event.seq for event in published), default=0)


async def respond(
    engine: Engine,
    thread_id: UUID,
    answers: dict[str, Any],
    *,
    command: dict[str, Any],
    config: dict[str, Any],
    metadata: dict[str, Any],
    actor: Actor | None = None,
) -> tuple[dict[str, Any], int]:
    """Answer open questions of a thread by their interrupt ids, in one run of the assistant that asked.

    `command` may hold `update` and `goto`. Raises QuestionNotFound, QuestionClosed, InvalidInput.
    """
    within = actor.threads if actor else None
    found = await questions.search(engine, status="open", thread_id=thread_id, limit=1000, within=within)
    asked = {row["interrupt_id"]: row for row in found}
    for interrupt_id in answers:
        if interrupt_id not in asked:
            raise QuestionNotFound(f"The thread has no open question {interrupt_id!r}")
    asker = await runs.get(engine, thread_id, asked[next(iter(answers))]["run_id"])
    new = NewRun(
        assistant=str(asker["assistant_id"]),
        command={**command, "resume": answers},
        config=config,
        metadata=metadata,
        protocol=True,
        actor=actor,
    )
    return await start(engine, thread_id, new)


async def tree(engine: Engine, thread_id: UUID, run_id: UUID | None = None) -> dict[str, Any]:
    """A run and the graphs inside of it, with their states; without `run_id` the thread's active run.

    Raises RunNotFound, ThreadNotFound.
    """
    if run_id is None:
        active = await finding.list_runs(engine, thread_id, status="running", limit=1)
        active = active or await finding.list_runs(engine, thread_id, status="pending", limit=1)
        if not active:
            raise RunNotFound(f"Thread {thread_id} has no active run")
        run = active[0]
    else:
        run = await runs.get(engine, thread_id, run_id)
    states = {"success": "completed", "error": "failed", "timeout": "failed", "interrupted": "interrupted"}
    root: dict[str, Any] = {
        "namespace": [],
        "status": states.get(run["status"], "running" if run["status"] == "running" else "started"),
        "graph_name": run["metadata"]["graph_id"],
        "children": [],
        "metadata": {"run_id": run["run_id"]},
    }
    nodes: dict[Namespace, dict[str, Any]] = {(): root}
    for event in await events.named(engine, thread_id, run["run_id"], [PROTOCOL + "lifecycle"]):
        told = orjson.loads(event.data)
        namespace = tuple(told["namespace"])
        node = nodes.get(namespace)
        if node is None:
            node = nodes[namespace] = {"namespace": namespace, "graph_name": told.get("graph_name"), "children": []}
            nodes.get(namespace[:-1], root)["children"].append(node)
        node["status"] = told["event"]
    return root
