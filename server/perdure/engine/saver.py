"""The checkpointer of one attempt: LangGraph's PostgreSQL saver with a fence.

Reads are LangGraph's own, on any pool connection (upstream serialises a whole process on
one lock). Writes go through the worker's group commit, in the order in which LangGraph
makes them: when a checkpoint or a step result is durable, everything that the run wrote
before it is durable too, the input checkpoint and all pending writes included. The layout
of the tables stays LangGraph's.

The saver also notices what the attempt needs to know when it ends: the newest checkpoint of
the root graph, and which task asked which question.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.types import INTERRUPT, RESUME
from langgraph.types import Interrupt
from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from perdure.engine.db import Pool
from perdure.engine.errors import StorageError
from perdure.engine.groupcommit import GroupCommit, Write


@dataclass(frozen=True)
class Question:
    """An interrupt and the task that waits for its answer.

    `n` is how many answers the task had before; together with checkpoint and task it
    names the question.
    """

    interrupt_id: str
    value: Any
    checkpoint_ns: str
    checkpoint_id: str
    task_id: str
    n: int


class FencedSaver(AsyncPostgresSaver):
    """Reads any thread; writes one thread, as long as `fence` is its owner's.

    Every write raises LeaseLost once the run has been taken away. Without `stores_answers`
    the answers that LangGraph repeats beside a question are left out: `interrupts.accept`
    has stored them, and perhaps a newer one since.
    """

    def __init__(
        self, pool: Pool, group: GroupCommit, thread_id: UUID, fence: int, *, stores_answers: bool = True
    ) -> None:
        super().__init__(conn=pool)
        self.pool = pool
        self.group = group
        self.thread_id = thread_id
        self.fence = fence
        self.stores_answers = stores_answers
        self.head: str | None = None  # newest checkpoint of the root graph, read or written
        self.questions: dict[str, Question] = {}  # by interrupt id, as raised in this attempt
        self.asked: dict[str, list[Interrupt[Any]]] = {}  # by task of the root graph

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        """A cursor on a connection of its own: reads of one process run side by side."""
        try:
            async with (
                self.pool.connection() as conn,
                conn.cursor(binary=True, row_factory=dict_row) as cursor,
            ):
                yield cursor
        except psycopg.OperationalError as exc:
            raise StorageError(f"The database could not be reached: {str(exc).strip()}") from exc

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        found = await super().aget_tuple(config)
        if found and not found.config.get("configurable", {}).get("checkpoint_ns"):
            self.head = found.checkpoint["id"]
        return found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint with the channel values that changed; durable on return."""
        configurable: dict[str, Any] = config.get("configurable", {})
        ns: str = configurable.get("checkpoint_ns", "")
        inline: dict[str, Any] = {}
        blobs: list[tuple[Any, ...]] = []
        size = 0
        for channel, value in checkpoint["channel_values"].items():
            if _fits_json(value):
                inline[channel] = value
                continue
            if type(value).__name__ == "_DeltaSnapshot":
                inline[channel] = True  # upstream's mark: the blob holds a snapshot
            if channel in new_versions:
                kind, blob = self.serde.dumps_typed(value)
                blobs.append((ns, channel, str(new_versions[channel]), kind, blob or b""))
                size += len(blob or b"")
        row = (
            ns,
            checkpoint["id"],
            configurable.get("checkpoint_id"),
            json.dumps({**checkpoint, "channel_values": inline}),
            json.dumps(get_serializable_checkpoint_metadata(config, metadata)),
        )
        if not ns:
            self.head = checkpoint["id"]
        size += len(row[3]) + len(row[4])
        await self.group.submit(Write(self.thread_id, self.fence, checkpoints=[row], blobs=blobs, size=size))
        return {
            "configurable": {
                "thread_id": configurable["thread_id"],
                "checkpoint_ns": ns,
                "checkpoint_id": checkpoint["id"],
            }
        }

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task has written; durable on return."""
        configurable: dict[str, Any] = config.get("configurable", {})
        ns: str = configurable.get("checkpoint_ns", "")
        checkpoint_id: str = configurable["checkpoint_id"]
        rows: list[tuple[Any, ...]] = []
        size = 0
        answers = cast("list[Any]", dict(writes).get(RESUME) or [])
        for index, (channel, value) in enumerate(writes):
            if channel == RESUME and not self.stores_answers:
                continue
            kind, blob = self.serde.dumps_typed(value)
            slot = WRITES_IDX_MAP.get(channel, index)
            rows.append((ns, checkpoint_id, task_id, task_path, slot, channel, kind, blob))
            size += len(blob)
            if channel == INTERRUPT:
                self._note(value, ns, checkpoint_id, task_id, len(answers))
        if rows:
            await self.group.submit(Write(self.thread_id, self.fence, writes=rows, size=size))

    def _note(self, value: Any, ns: str, checkpoint_id: str, task_id: str, n: int) -> None:
        """Remember who asked: the task of the innermost graph, not the parents it passes through."""
        raised = cast("Sequence[Any]", value) if isinstance(value, Sequence) else (value,)
        interrupts: list[Interrupt[Any]] = [one for one in raised if isinstance(one, Interrupt)]
        if not ns:
            self.asked[task_id] = interrupts
        for interrupt in interrupts:
            known = self.questions.get(interrupt.id)
            if known is None or len(ns) >= len(known.checkpoint_ns):
                self.questions[interrupt.id] = Question(interrupt.id, interrupt.value, ns, checkpoint_id, task_id, n)


def _fits_json(value: Any) -> bool:
    """Whether a channel value may stand in the checkpoint's JSONB.

    Text with NUL or lone surrogates may not (PostgreSQL refuses both) and goes into a blob,
    nor a number that JSON does not know, nor a large float: JSONB gives it back as an integer.
    """
    if isinstance(value, str):
        return "\x00" not in value and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) < 1e15
    return value is None or isinstance(value, bool | int)
