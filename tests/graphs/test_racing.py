import asyncio
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from graphs.racing import PLAN, QUICK, graph
from perdure.engine.groupcommit import Write
from perdure.simulator import RunningSimulator
from tests.durable.fakes import FakeJournal
from tests.engine.conftest import DyingGroup, Killed, Lab, lab, module_dsn, settings  # noqa: F401  fixtures
from tests.graphs.claimants import calls, dies

GRAPHS = {"racing": graph}
QUESTION = {"message": "What's the best approach to learn machine learning?"}
SHORT = "start with a small project"
LONG = "On machine learning, thoroughly."
PLANS, ANSWERS, QUIPS = (
    "List the three aspects that matter most for a thorough answer to the question, one per line",
    "Think it through and answer thoroughly, aspect by aspect",
    "Answer in one sentence, with what comes to mind first",
)
"""First sentences of the three prompts."""


async def test_first_answer_wins_and_the_other_way_is_cancelled(simulator: RunningSimulator, served: Any) -> None:
    simulator.fail({"hang": 300, "match": PLAN})
    async with asyncio.timeout(60):
        result = await served(graph).ainvoke(QUESTION, {"configurable": {"thread_id": "1"}})
    assert result.keys() == {"answer"}
    assert SHORT in result["answer"]
    assert calls(simulator) == {PLANS: 1, QUIPS: 1}


async def test_thorough_answer_wins_when_it_is_there_first(simulator: RunningSimulator) -> None:
    journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
    simulator.fail({"hang": 60, "match": QUICK})
    result = await agent.ainvoke(QUESTION, journal.config())
    assert result["answer"].startswith(LONG)
    assert "Practice: plan a month" in result["answer"]
    assert calls(simulator) == {PLANS: 1, ANSWERS: 1, QUIPS: 1}
    assert journal.named("respond_quickly") == []


async def test_way_that_fails_is_out_of_the_race(simulator: RunningSimulator) -> None:
    journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
    simulator.fail({"status": 500, "times": 100, "match": QUICK})
    assert (await agent.ainvoke(QUESTION, journal.config()))["answer"].startswith(LONG)


async def test_run_is_tried_again_when_both_ways_fail(simulator: RunningSimulator) -> None:
    journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
    simulator.fail({"status": 500, "times": 3, "match": QUICK}, {"status": 500, "times": 3, "match": PLAN})
    with pytest.raises(Exception, match="500") as failure:
        await agent.ainvoke(QUESTION, journal.config())
    assert getattr(failure.value, "retryable", None) is True
    assert calls(simulator) == {PLANS: 3, QUIPS: 3}


async def test_crash_before_anyone_has_won_keeps_what_was_thought(simulator: RunningSimulator) -> None:
    journal, agent = FakeJournal(), graph.copy({"checkpointer": InMemorySaver()})
    simulator.fail({"hang": 60, "match": QUICK}, {"hang": 60, "match": ANSWERS})
    await dies(agent.ainvoke(QUESTION, journal.config()), lambda: calls(simulator, "left")[ANSWERS] == 1)
    simulator.fail({"hang": 60, "match": QUICK})
    result = await agent.ainvoke(None, journal.restart().config())
    assert result["answer"].startswith(LONG)
    assert calls(simulator) == {PLANS: 1, ANSWERS: 2, QUIPS: 2}  # only what was in flight is asked again


class DiesOnceItIsDecided(DyingGroup):
    """The process dies when the node of the race is about to store its answer; the winner is recorded then."""

    def __init__(self, pool: Any) -> None:
        super().__init__(pool, left=1_000)
        self.decided = False
        self.answer = ""

    def enqueue(self, write: Write) -> "asyncio.Future[int]":
        self.decided |= any("race" in row for row in write.steps)
        told = repr([write.writes, write.blobs, write.checkpoints])
        if SHORT in told or LONG in told:
            self.answer = told
            self.left = 0
        return super().enqueue(write)


async def dies_at_the_end(lab: Lab) -> DiesOnceItIsDecided:  # noqa: F811
    """Execute the run by a worker that dies right before its answer is stored; its loss is noticed at once."""
    await lab.retries_are_due()
    group = DiesOnceItIsDecided(lab.engine.pool)
    attempt = lab.attempt(await lab.claim_one(), group=group)

    async def dead(commit: Any) -> None:
        raise Killed

    attempt._settle = dead
    await lab.play(attempt)
    await lab.until(lambda: group._task is None)
    assert await lab.release(worker_id=lab.worker_id)
    assert group.died
    return group


@pytest.mark.parametrize(("loser", "winner"), [(PLAN, SHORT), (QUICK, LONG)])
async def test_twenty_replays_have_the_same_winner_and_never_start_the_loser_again(
    simulator: RunningSimulator,
    lab: Lab,  # noqa: F811
    loser: str,
    winner: str,
) -> None:
    simulator.fail({"hang": 60, "match": loser})  # once: the loser would be quick in a replay
    run = await lab.enqueue(await lab.thread(), QUESTION, assistant="racing")
    first = await dies_at_the_end(lab)
    assert first.decided
    assert winner in first.answer
    asked = calls(simulator)
    for _ in range(20):
        replay = await dies_at_the_end(lab)
        assert not replay.decided  # it was before
        assert winner in replay.answer
    await lab.retries_are_due()
    await lab.work()
    row = await lab.run(run)
    assert (row["status"], row["attempt"]) == ("success", 22)
    assert calls(simulator) == asked
    steps = await lab.rows("SELECT name FROM steps WHERE thread_id = %(id)s", id=run["thread_id"])
    of_winner = {"respond_quickly"} if winner == SHORT else {"list_aspects", "think_longer"}
    assert {step["name"] for step in steps} == {"race", *of_winner}
