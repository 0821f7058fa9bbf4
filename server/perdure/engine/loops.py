"""Event loops of the engine's own threads, on uvloop.

Measured on two busy cores: the server uses 14 to 20 % less CPU for a run that streams 200 tokens
than on asyncio's loop; for a run of five steps the difference drowns in the noise (6 % more in
one series, 6 % less in another). Measure again: `python -m bench.loops`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import uvloop


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on a new loop in the calling thread, until it ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
