"""One attempt: a claimed run on its graph, from the first frame to the transaction that ends it.

What a crash leaves behind decides how an attempt begins (`beginning`); how it ends is one
transaction in every case: finished, asked a question, to be retried, failed. An attempt that
has lost its run writes nothing any more and just stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import psycopg
import structlog
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END
from langgraph.pregel import Pregel
from langgraph.store.base import BaseStore
from psycopg_pool import PoolTimeout

from perdure.engine import beginning, chunks, interrupts, meters, prune, queue, stop, timelimits, tracing
from perdure.engine.channels import Channels, asked_frames
from perdure.engine.errors import IdleTimeout, LeaseLost
from perdure.engine.events import STATE, Frame
from perdure.engine.failure import failure_of
from perdure.engine.frames import Frames
from perdure.engine.groupcommit import GroupCommit
from perdure.engine.hub import Event, Hub
from perdure.engine.journal import Journal
from perdure.engine.pulse import Pulse
from perdure.engine.queue import Claimed
from perdure.engine.recording import Recording
from perdure.engine.saver import FencedSaver

if TYPE_CHECKING:
    from perdure.engine.core import Engine

log = structlog.get_logger(__name__)

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

    def __init__(self, shop: Workshop, run: Claimed, *, worker: str = "") -> None:
        self.shop = shop
        self.run = run
        self._worker = worker  # its name, told to whoever looks at the run
        self.lost = False
        self._broken: BaseException | None = None
        self._idle = False
        self._task: asyncio.Task[None] | None = None
        self._pulse = Pulse(shop.group)
        stores_answers = beginning.given_by_langgraph(run.kwargs)
        self._saver = FencedSaver(
            shop.engine.pool, self._pulse, run.thread_id, run.fence, stores_answers=stores_answers
        )
        self._trace = tracing.begin(run, worker)
        self._settled: str | None = None  # how it has ended, once that is committed
        self._error: dict[str, Any] | None = None
        self._journal = Journal(shop.engine, self._pulse, run, called=self._pulse.beat, trace=self._trace)
        self._recording = Recording(
            *(self._pulse, shop.hub, run.thread_id, run.run_id, run.fence),
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
            ended = self._settled = await self._execute()
        except (LeaseLost, asyncio.CancelledError) as exc:
            if isinstance(exc, asyncio.CancelledError) and not self.lost:
                raise
            ended = "lost"
        finally:
            self.shop.group.forget(self.run.thread_id, self.run.fence)
            if self._trace is not None:
                self._trace.finish(self._settled, self._error)
        seconds = time.monotonic() - started
        meters.attempts.labels(ended).inc()
        meters.attempt_seconds.labels(self.run.graph_id).observe(seconds)
        self._log.info(ended, seconds=round(seconds, 3))

    async def _execute(self) -> str:
        run = self.run
        if run.abandons_saga:
            return await self._give_way()
        self._recording.add(Frame.of("metadata", {"run_id": run.run_id, "attempt": run.attempt}))
        running = {"event": "running", "graph_name": run.graph_id, "attempt": run.attempt, "worker": self._worker}
        self._recording.add(Frame.of("lifecycle", running))
        waits = stopped = False
        try:
            stopped = await self._run_watched()
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

    async def _run_watched(self) -> bool:
        """As `_run_graph`, until it has shown no sign of life for longer than its graph may."""
        limit = timelimits.limits_of(self.shop.engine, self.run.graph_id).idle
        if limit is None:
            return await self._run_graph()
        watch = asyncio.create_task(self._watch(limit), name=f"watch {self.run.run_id}")
        try:
            return await self._run_graph()
        finally:
            if self._idle:
                raise LeaseLost("The attempt was idle for too long and has been ended")
            watch.cancel()

    async def _watch(self, limit: float) -> None:
        """End the attempt when it is idle; its code is stopped afterwards, and nobody waits for it."""
        while True:
            left = limit - self._pulse.seconds()
            if left <= 0:
                break
            await asyncio.sleep(left)
        self._idle = True
        with suppress(LeaseLost):  # taken away in the same moment
            await self._fail(IdleTimeout(f"No step, checkpoint or event for {limit:g} s"))
        self.stop()

    async def _run_graph(self) -> bool:
        """Execute the graph; True when it stopped before its end without asking.

        A cancelled run with an open saga is executed once more to compensate: it replays, and
        the first word that has not been finished leaves it. Then its tasks are closed.
        """
        run = self.run
        config = beginning.config_of(run, self._journal)
        if self._trace is not None:
            config["callbacks"] = [self._trace]
        registry = self.shop.engine.registry
        async with registry.open(run.graph_id, config, checkpointer=self._saver, store=self.shop.store) as graph:
            if not run.cancelling:
                return await self._stream(graph, config)
            if run.head_run_id == str(run.run_id) or beginning.delivery(run) is None:
                try:
                    await self._stream(graph, config)
                except BaseException as exc:
                    if not getattr(exc, "cancels", False):
                        raise
            if not self._journal.waits:
                thread: RunnableConfig = {"configurable": {"thread_id": str(run.thread_id), "checkpoint_ns": ""}}
                await graph.aupdate_state(thread, None, as_node=END)
            return False

    # -- the middle

    async def _stream(self, graph: Pregel[Any, Any, Any, Any], config: RunnableConfig) -> bool:
        """Execute the graph and pass on its frames; True when it stopped before its end without asking."""
        kwargs = self.run.kwargs
        frames = Channels() if kwargs.get("protocol") else Frames(chunks.modes_of(self.run))
        in_step = not chunks.tells_events(self.run) and not chunks.keeps_last_only(self.run)
        shown: str | None = None
        try:
            async for namespace, mode, data in chunks.stream(graph, self.run, config):
                for event, payload in frames.of(namespace, mode, data):
                    checkpoint_id = None
                    if event == "values" and in_step and (self._saver.head != shown or b'"__interrupt__"' in payload):
                        # this state is the newest checkpoint's; what was written since belongs to no checkpoint
                        checkpoint_id = shown = self._saver.head
                    self._recording.add(Frame(event, payload, checkpoint_id))
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
            self._recording.add(Frame(event, payload))

    def _streams_values(self) -> bool:
        return bool(self.run.kwargs.get("protocol")) or "values" in chunks.modes_of(self.run)

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
                if chunks.keeps_last_only(run):
                    await prune.keep_last_of(conn, run.thread_id, run.run_id)
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
        told: dict[str, Any] = {"event": "suspended", "until": until, "attempt": run.attempt}
        if self._journal.children:
            told["children"] = self._journal.children
        frame = Frame.of("lifecycle", told)
        questions = list(self._saver.questions.values())

        async def commit(left: list[Frame]) -> None:
            async with self.shop.engine.pool.connection() as conn, conn.transaction():
                published = await queue.suspend(conn, run, until=until, frames=[*left, frame])
                if questions:
                    await interrupts.record(conn, run, questions)
            self._publish(published)

        await self._settle(commit)
        return "suspended"

    async def _give_way(self) -> str:
        """The run's input would leave a saga open: it is undone first, and then this run begins."""

        async def commit(left: list[Frame]) -> None:
            async with self.shop.engine.pool.connection() as conn, conn.transaction():
                published = await stop.compensate_first(conn, self.run)
            self._publish(published)

        await self._settle(commit)
        return "waits for undos"

    async def _end_cancelled(self) -> str:
        """The undos have run: the cancel that asked for them is carried out."""
        run = self.run
        last = {"event": "cancelled", "action": run.cancelling, "graph_name": run.graph_id, "final": True}

        async def commit(left: list[Frame]) -> None:
            async with self.shop.engine.pool.connection() as conn, conn.transaction():
                frames = [*left, Frame.of("lifecycle", last)]
                published = await stop.end_compensated(conn, run, frames)
            self._publish(published)

        await self._settle(commit)
        return "cancelled"

    def _publish(self, published: list[Event]) -> None:
        if self.shop.hub:
            self.shop.hub.publish(self.run.thread_id, published)

    async def _fail(self, exc: Exception) -> str:
        settings = self.shop.engine.settings
        run = self.run
        failure = failure_of(exc)
        error, retryable = failure.error, failure.retryable
        paused = retryable and run.failures + 1 >= settings.max_attempts
        lifecycle: dict[str, Any] = {
            "graph_name": run.graph_id,
            "error": error["message"],
            "attempt": run.attempt,
        }
        wire_error = Frame.of("error", {"error": error["error"], "message": error["message"]})

        async def again(left: list[Frame]) -> None:
            backoff = min(settings.retry_cap_seconds, settings.retry_initial_seconds * 2.0 ** min(run.failures, 30))
            delay = backoff if failure.after is None else failure.after
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
                if chunks.keeps_last_only(run):
                    await prune.keep_last_of(conn, run.thread_id, run.run_id)
                if run.cancelling:
                    await stop.give_up_sagas(conn, run.thread_id)
                published = await queue.events.append(conn, run.thread_id, run.run_id, frames)
                await queue.promote(conn, run.thread_id)
            self._publish(published)

        self._log.warning("attempt failed", error=error["error"], retryable=retryable, exc_info=not retryable)
        await self._settle(again if retryable else failed)
        self._error = error
        self._settled = "paused" if paused else "retried" if retryable else "failed"
        return self._settled

    async def _settle(self, commit: Any) -> None:
        """Write what is left and end the attempt; goes on trying while the database is away.

        When a commit's outcome is unknown, the next try finds a changed fence if it had
        succeeded: LeaseLost.
        """
        left: list[Frame] | None = None
        while True:
            try:
                left = await self._recording.close(self.shop.engine.pool) if left is None else left
                return await commit(left)
            except (psycopg.OperationalError, PoolTimeout) as exc:
                self._log.warning("cannot end the attempt, trying again", error=str(exc).strip())
            await asyncio.sleep(RECOMMIT_SECONDS)


def _suspends(exc: BaseException) -> bool:
    """Whether a word has left the graph to wait; what it waits for stands in the journal."""
    return bool(getattr(exc, "suspends", False))
