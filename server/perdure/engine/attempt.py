"""One attempt: a claimed run on its graph, from the first frame to the transaction that ends it.

What a crash leaves behind decides how an attempt begins (`_delivery`); how it ends is one
transaction in every case: finished, asked a question, to be retried, failed. An attempt that
has lost its run writes nothing any more and just stops.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import psycopg
import structlog
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END
from langgraph.pregel import Pregel
from langgraph.store.base import BaseStore
from langgraph.types import Command, Send
from psycopg_pool import PoolTimeout

from perdure.engine import interrupts, queue, runs
from perdure.engine.channels import MODES, Channels, asked_frames
from perdure.engine.errors import LeaseLost
from perdure.engine.events import STATE, Frame, Outbox
from perdure.engine.frames import Frames, graph_modes
from perdure.engine.groupcommit import GroupCommit
from perdure.engine.hub import Event, Hub
from perdure.engine.queue import Claimed
from perdure.engine.saver import FencedSaver
from perdure.engine.steps import Journal

if TYPE_CHECKING:
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

JOURNAL = "__perdure_journal"  # where graph code finds the step journal in its config
RECOMMIT_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What the attempts of one worker share."""

    engine: Engine
    group: GroupCommit
    store: BaseStore
    hub: Hub | None


class Attempt:
    """Executes one claimed run once. `stop` may be called at any time when the run is taken away."""

    def __init__(self, shop: Workshop, run: Claimed) -> None:
        self.shop = shop
        self.run = run
        self.lost = False
        self._broken: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._saver = FencedSaver(shop.engine.pool, shop.group, run.thread_id, run.fence, stores_answers=False)
        self._journal = Journal(shop.engine, shop.group, run)
        self._outbox = Outbox(
            *(shop.group, shop.hub, run.thread_id, run.run_id, run.fence),
            flush_seconds=shop.engine.settings.event_flush_ms / 1000,
            on_broken=self._break_off,
        )
        self._log = log.bind(run_id=str(run.run_id), thread_id=str(run.thread_id), attempt=run.attempt)

    def stop(self) -> None:
        """The run has another owner: stop executing it."""
        self.lost = True
        if self._task is not None:
            self._task.cancel()

    def _break_off(self, error: BaseException) -> None:
        """Events cannot be written any more: the run is lost, or it is tried again."""
        if isinstance(error, LeaseLost):
            self.stop()
        elif self._task is not None and not self.lost:
            self._broken = error
            self._task.cancel()

    async def execute(self) -> None:
        """Run the graph and end the attempt. Returns when the run is settled or lost."""
        started = time.monotonic()
        self._task = asyncio.current_task()
        self._log.info("claimed", graph_id=self.run.graph_id)
        try:
            ended = await self._execute()
        except (LeaseLost, asyncio.CancelledError) as exc:
            if isinstance(exc, asyncio.CancelledError) and not self.lost:
                raise
            ended = "lost"
        finally:
            self.shop.group.forget(self.run.thread_id)
        self._log.info(ended, seconds=round(time.monotonic() - started, 3))

    async def _execute(self) -> str:
        run = self.run
        self._outbox.add(Frame.of("metadata", {"run_id": run.run_id, "attempt": run.attempt}))
        running = {"event": "running", "graph_name": run.graph_id, "attempt": run.attempt}
        self._outbox.add(Frame.of("lifecycle", running))
        waits = stopped = False
        try:
            stopped = await self._run_graph()
        except asyncio.CancelledError:
            if not isinstance(self._broken, Exception) or self.lost:
                raise
            cast("asyncio.Task[None]", self._task).uncancel()
            return await self._fail(self._broken)
        except BaseException as exc:  # the edge of one attempt: every failure becomes the run's
            waits = _suspends(exc)
            if not waits:
                if not isinstance(exc, Exception):
                    raise
                return await self._fail(exc)
        if self._journal.waits and (waits or self._saver.asked or run.cancelling):
            return await self._suspend()
        if run.cancelling:
            return await self._end_cancelled()
        try:
            return await self._succeed(stopped)
        except psycopg.Error as exc:  # the database refuses the end, e.g. a question that it cannot hold
            return await self._fail(exc)

    async def _run_graph(self) -> bool:
        """Execute the graph; True when it stopped before its end without asking.

        A cancelled run with an open saga is executed once more to compensate: it replays, and
        the first word that has not been finished leaves it. Then its tasks are closed.
        """
        run = self.run
        config = self._config()
        registry = self.shop.engine.registry
        async with registry.open(run.graph_id, config, checkpointer=self._saver, store=self.shop.store) as graph:
            if not run.cancelling:
                return await self._stream(graph, config)
            if run.head_run_id == str(run.run_id) or self._delivery() is None:
                try:
                    await self._stream(graph, config)
                except BaseException as exc:
                    if not getattr(exc, "cancels", False):
                        raise
            if not self._journal.waits:
                thread: RunnableConfig = {"configurable": {"thread_id": str(run.thread_id), "checkpoint_ns": ""}}
                await graph.aupdate_state(thread, None, as_node=END)
            return False

    # -- the beginning

    def _config(self) -> RunnableConfig:
        """What the nodes see; the run's own keys win over what clients sent."""
        run = self.run
        given: dict[str, Any] = run.kwargs.get("config") or {}
        configurable: dict[str, Any] = given.get("configurable") or {}
        own = {
            "run_id": str(run.run_id),
            "thread_id": str(run.thread_id),
            "assistant_id": str(run.assistant_id),
            "graph_id": run.graph_id,
        }
        context: dict[str, Any] = run.kwargs.get("context") or {}
        clean = {k: v for k, v in {**context, **configurable}.items() if not k.startswith("__")}
        for key in ("checkpoint_id", "checkpoint_ns", "checkpoint_map"):
            clean.pop(key, None)
        metadata: dict[str, Any] = {
            **(given.get("metadata") or {}),
            **run.metadata,
            **own,
            "run_attempt": run.attempt,
        }
        config: dict[str, Any] = {
            **{key: given[key] for key in ("tags", "recursion_limit", "max_concurrency", "run_name") if given.get(key)},
            "run_id": run.run_id,
            "metadata": metadata,
            "configurable": {"user_id": "", **clean, **own, JOURNAL: self._journal},
        }
        checkpoint: dict[str, Any] = run.kwargs.get("checkpoint") or {}
        target = run.kwargs.get("checkpoint_id") or checkpoint.get("checkpoint_id") or configurable.get("checkpoint_id")
        # LangGraph forks each time it is given a checkpoint: only as long as the head is not this run's
        if target and run.head_run_id != str(run.run_id):
            config["configurable"]["checkpoint_id"] = target
        return cast(RunnableConfig, config)

    def _delivery(self) -> Any:
        """What LangGraph is given: the input, a command, or None to go on from the head.

        The input may be given again: under the same `metadata.run_id` LangGraph continues
        from this run's checkpoint. An answer stands in the checkpoint already. A command's
        update and goto are given only while the head is the checkpoint they were meant for
        and does not hold them yet.
        """
        kwargs = self.run.kwargs
        command: dict[str, Any] | None = kwargs.get("command")
        if command is None:
            return kwargs.get("input")
        wanted = {key: command[key] for key in ("update", "goto") if command.get(key) is not None}
        if kwargs.get("answered") is None and command.get("resume") is not None:
            wanted["resume"] = command["resume"]
        elif kwargs.get("answered") is not None and not wanted:
            return None
        applied = (self.run.head or "") != self.run.base_checkpoint_id or self.run.head_commanded
        if applied and self.run.attempt > 1:
            return None
        if "goto" in wanted:
            wanted["goto"] = _goto(wanted["goto"])
        return Command(**wanted)

    # -- the middle

    async def _stream(self, graph: Pregel[Any, Any, Any, Any], config: RunnableConfig) -> bool:
        """Execute the graph and pass on its frames; True when it stopped before its end without asking."""
        kwargs = self.run.kwargs
        asked: list[str] = kwargs.get("stream_mode") or ["values"]
        protocol = bool(kwargs.get("protocol"))
        frames = Channels() if protocol else Frames(asked)
        shown: str | None = None
        subgraphs = protocol or bool(kwargs.get("subgraphs"))
        chunks: AsyncIterator[Any] = cast(Any, graph).astream(
            self._delivery(),
            config,
            context=_context(graph, kwargs.get("context") or {}, config),
            stream_mode=MODES if protocol else graph_modes(asked),
            subgraphs=subgraphs,
            durability="sync",
            interrupt_before=kwargs.get("interrupt_before"),
            interrupt_after=kwargs.get("interrupt_after"),
        )
        try:
            async for chunk in chunks:
                namespace, mode, data = cast("tuple[tuple[str, ...], str, Any]", chunk if subgraphs else ((), *chunk))
                for event, payload in frames.of(namespace, mode, data):
                    checkpoint_id = None
                    if event == "values" and (self._saver.head != shown or b'"__interrupt__"' in payload):
                        # this state is the newest checkpoint's; what was written since belongs to no checkpoint
                        checkpoint_id = shown = self._saver.head
                    self._outbox.add(Frame(event, payload, checkpoint_id))
        except Exception as exc:
            if not _suspends(exc):
                self._show(frames.close(str(exc)))
            raise
        self._show(frames.close())
        breakpoints = kwargs.get("interrupt_before") or kwargs.get("interrupt_after")
        if breakpoints or graph.interrupt_before_nodes or graph.interrupt_after_nodes:
            thread: RunnableConfig = {"configurable": {"thread_id": str(self.run.thread_id)}}
            return bool((await graph.aget_state(thread)).next)
        return False

    def _show(self, frames: Iterable[tuple[str, bytes]]) -> None:
        for event, payload in frames:
            self._outbox.add(Frame(event, payload))

    def _streams_values(self) -> bool:
        kwargs = self.run.kwargs
        return bool(kwargs.get("protocol")) or "values" in (kwargs.get("stream_mode") or ["values"])

    # -- the end

    async def _succeed(self, stopped: bool) -> str:
        questions = list(self._saver.questions.values())
        asked = {
            task_id: [{"id": question.id, "value": question.value} for question in asked]
            for task_id, asked in self._saver.asked.items()
            if asked
        }
        event = "interrupted" if asked or stopped else "completed"
        last: dict[str, Any] = {"event": event, "graph_name": self.run.graph_id, "final": True}
        if asked:
            flat = [question for group in asked.values() for question in group]
            last["interrupts"] = flat
        frames = [*asked_frames(questions), Frame.of("lifecycle", last)]
        if self._saver.head and (asked or stopped or not self._streams_values()):
            # the protocol's last `values`, after a pause and before an end
            frames.insert(len(frames) if asked or stopped else 0, Frame(STATE, b"", self._saver.head))
        status = "interrupted" if asked or stopped else "idle"

        opened: list[dict[str, Any]] = []

        async def commit(left: list[Frame]) -> None:
            run = self.run
            async with self.shop.engine.pool.connection() as conn, conn.transaction():
                await queue.settle_thread(
                    conn,
                    run.thread_id,
                    run.run_id,
                    fence=run.fence,
                    status=status,
                    error=None,
                    interrupts=asked,
                )
                await queue.end_run(conn, run.thread_id, run.run_id, "success", None)
                opened[:] = await interrupts.record(conn, run, questions)
                published = await queue.events.append(conn, run.thread_id, run.run_id, [*left, *frames])
                await queue.promote(conn, run.thread_id)
            self._publish(published)

        await self._settle(commit)
        for question in opened:
            self._log.info("question", token=question["token"], deadline=question["deadline"])
        return "interrupted" if asked else "finished"

    async def _suspend(self) -> str:
        """The run waits for a timer or a child: it gives up its slot until then."""
        run = self.run
        times = [when for when in self._journal.waits if when is not None]
        until = min(times, default=None)
        frame = Frame.of("lifecycle", {"event": "suspended", "until": until, "attempt": run.attempt})
        questions = list(self._saver.questions.values())

        async def commit(left: list[Frame]) -> None:
            async with self.shop.engine.pool.connection() as conn, conn.transaction():
                published = await queue.suspend(conn, run, until=until, frames=[*left, frame])
                if questions:
                    await interrupts.record(conn, run, questions)
            self._publish(published)

        await self._settle(commit)
        return "suspended"

    async def _end_cancelled(self) -> str:
        """The undos have run: the cancel that asked for them is carried out."""
        run = self.run
        last = {"event": "cancelled", "action": run.cancelling, "graph_name": run.graph_id, "final": True}

        async def commit(left: list[Frame]) -> None:
            async with self.shop.engine.pool.connection() as conn, conn.transaction():
                frames = [*left, Frame.of("lifecycle", last)]
                published = await runs.end_compensated(conn, run, frames)
            self._publish(published)

        await self._settle(commit)
        return "cancelled"

    def _publish(self, published: list[Event]) -> None:
        if self.shop.hub:
            self.shop.hub.publish(self.run.thread_id, published)

    async def _fail(self, exc: Exception) -> str:
        settings = self.shop.engine.settings
        run = self.run
        error: dict[str, Any] = {"error": type(exc).__name__, "message": _text(exc)}
        # a lost database is worth another attempt, whoever noticed it: the store of the graph, or its code
        retryable = getattr(exc, "retryable", isinstance(exc, psycopg.OperationalError)) is True
        paused = retryable and run.failures + 1 >= settings.max_attempts
        error_status = getattr(exc, "status", None)
        if isinstance(error_status, int):
            error["status"] = error_status
        lifecycle: dict[str, Any] = {
            "graph_name": run.graph_id,
            "error": error["message"],
            "attempt": run.attempt,
        }
        wire_error = Frame.of("error", {"error": error["error"], "message": error["message"]})

        async def again(left: list[Frame]) -> None:
            after = _seconds(getattr(exc, "retry_after", None))
            backoff = min(settings.retry_cap_seconds, settings.retry_initial_seconds * 2.0 ** min(run.failures, 30))
            delay = backoff if after is None else after
            if paused:
                frames = [wire_error, Frame.of("lifecycle", {"event": "paused", **lifecycle, "final": True})]
            else:
                frames = [Frame.of("lifecycle", {"event": "retrying", **lifecycle, "seconds": delay})]
            async with self.shop.engine.pool.connection() as conn:
                ended = [*left, *frames]
                published = await queue.retry(conn, run, error=error, delay=delay, paused=paused, frames=ended)
            self._publish(published)

        async def failed(left: list[Frame]) -> None:
            frames = [
                *left,
                wire_error,
                Frame.of("lifecycle", {"event": "failed", **lifecycle, "final": True}),
            ]
            async with self.shop.engine.pool.connection() as conn, conn.transaction():
                await queue.settle_thread(
                    conn,
                    run.thread_id,
                    run.run_id,
                    fence=run.fence,
                    status="error",
                    error=error,
                    interrupts={},
                )
                await queue.end_run(conn, run.thread_id, run.run_id, "error", error)
                published = await queue.events.append(conn, run.thread_id, run.run_id, frames)
                await queue.promote(conn, run.thread_id)
            self._publish(published)

        self._log.warning("attempt failed", error=error["error"], retryable=retryable, exc_info=not retryable)
        await self._settle(again if retryable else failed)
        return "paused" if paused else "retried" if retryable else "failed"

    async def _settle(self, commit: Any) -> None:
        """Write what is left and end the attempt; goes on trying while the database is away.

        When a commit's outcome is unknown, the next try finds a changed fence if it had
        succeeded: LeaseLost.
        """
        left: list[Frame] | None = None
        while True:
            try:
                left = await self._outbox.close(self.shop.engine.pool) if left is None else left
                return await commit(left)
            except (psycopg.OperationalError, PoolTimeout) as exc:
                self._log.warning("cannot end the attempt, trying again", error=str(exc).strip())
            await asyncio.sleep(RECOMMIT_SECONDS)


def _seconds(asked: Any) -> float | None:
    """The wait that an exception asks for, if it is one that makes sense; a month at most."""
    if isinstance(asked, timedelta):
        asked = asked.total_seconds()
    if isinstance(asked, bool) or not isinstance(asked, int | float) or not math.isfinite(asked) or asked < 0:
        return None
    return min(float(asked), 30 * 86400.0)


def _text(exc: BaseException) -> str:
    """The text of any exception, also of one that cannot be printed."""
    try:
        return str(exc)
    except Exception:  # author code
        return f"{type(exc).__name__} without a text"


def _suspends(exc: BaseException) -> bool:
    """Whether a word has left the graph to wait; what it waits for stands in the journal."""
    return bool(getattr(exc, "suspends", False))


def _goto(goto: Any) -> Any:
    if isinstance(goto, list):
        return [_goto(one) for one in cast("list[Any]", goto)]
    if isinstance(goto, dict):
        return Send(str(goto.get("node")), goto.get("input"))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return goto


def _context(graph: Pregel[Any, Any, Any, Any], given: dict[str, Any], config: RunnableConfig) -> Any:
    """The run's context (`configurable` reaches it too), without the keys that the graph's schema does not know."""
    schema = graph.context_schema
    if schema is None:
        return given or None
    if dataclasses.is_dataclass(schema):
        names = {field.name for field in dataclasses.fields(schema)}
    else:
        names = set(getattr(schema, "model_fields", None) or getattr(schema, "__annotations__", {}))
    values: dict[str, Any] = config.get("configurable", {})
    return {key: value for key, value in values.items() if key in names}
