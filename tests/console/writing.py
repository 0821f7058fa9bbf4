"""A report that a test can hold in the middle; loaded by servers of the tests, not imported by them."""

import asyncio
import os
from pathlib import Path
from typing import NotRequired

from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from perdure import emit

CHAPTERS = 4


class Job(TypedDict):
    topic: str


class Report(Job):
    answer: NotRequired[str]


async def write(state: Report) -> Report:
    """Announces each chapter. Behind the first it waits while the file `HOLD` exists."""
    for n in range(CHAPTERS):
        emit("progress", {"done": n + 1, "of": CHAPTERS, "says": f"Written: {state['topic']}, part {n + 1}"})
        while n == 0 and Path(os.environ["HOLD"]).exists():  # noqa: ASYNC110 - another process takes it away
            await asyncio.sleep(0.02)
    return {"topic": state["topic"], "answer": f"All about {state['topic']}"}


report = StateGraph(Report, input_schema=Job).add_node(write).add_edge(START, "write").compile()
