"""Signs of life of one attempt: when it last wrote something, or looked for a step."""

from __future__ import annotations

import time
from asyncio import Future
from uuid import UUID

from perdure.engine.groupcommit import GroupCommit, Write


class Pulse(GroupCommit):
    """The worker's group commit as one attempt uses it: every write is a sign of life."""

    def __init__(self, group: GroupCommit) -> None:
        self._group = group
        self._at = time.monotonic()

    def seconds(self) -> float:
        """Since the last sign of life."""
        return time.monotonic() - self._at

    def beat(self) -> None:
        self._at = time.monotonic()

    def enqueue(self, write: Write) -> Future[int]:
        self.beat()
        return self._group.enqueue(write)

    async def barrier(self, thread_id: UUID) -> None:
        self.beat()
        await self._group.barrier(thread_id)
