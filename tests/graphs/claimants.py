"""What the tests of the claim patterns share: a claim, who was asked about it, and a process that dies."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from perdure.simulator import RunningSimulator

CLAIM: Any = {
    "date": "2024-10-01",
    "category": "orthopedic",
    "reason": "hospital bill for a broken leg",
    "amount": 3000,
    "placeOfService": "General Hospital",
}
SPECIALISTS = {"eligibility": 1, "rate comparison": 1, "fraud": 1}


def only(specialist: str) -> str:
    """What a fault of the simulator matches that is meant for this specialist."""
    return f"You are an insurance {specialist} specialist."


def calls(simulator: RunningSimulator, outcome: str | None = None) -> Counter[str]:
    """How often the model was called as whom, by the first sentence of its prompt; with this outcome if given."""
    asked = Counter[str]()
    for entry in filter(lambda entry: entry.messages, simulator.requests):
        who = entry.messages[0]["content"].split(".")[0].removeprefix("You are an insurance ")
        asked[who.removesuffix(" specialist")] += outcome in (None, entry.outcome)
    return +asked


async def dies(process: Coroutine[Any, Any, Any], when: Callable[[], bool]) -> None:
    """Executes this as a process that is killed as soon as the condition holds."""
    task = asyncio.create_task(process)
    async with asyncio.timeout(50):
        while not when():
            assert not task.done(), task
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
