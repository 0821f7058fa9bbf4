"""Questions to people: one answer answers one question, once."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure.engine import assistants, control, finding, interrupts, state, stop, threads
from perdure.engine.errors import InvalidInput, QuestionClosed, QuestionNotFound
from perdure.engine.views import questions

PAST = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
FUTURE = (datetime.now(UTC) + timedelta(days=1)).isoformat()


class State(TypedDict, total=False):
    left: Any
    right: Any
    deadline: str


def asking(*questions: str) -> Any:
    """A graph with one node per question, side by side; a question is asked with the state's deadline, if any."""

    def node(name: str) -> Any:
        def ask(given: State) -> Any:
            deadline = {"deadline": given["deadline"]} if given.get("deadline") else {}
            return {name: interrupt({"question": name, **deadline})}

        return ask

    graph = StateGraph(State)
    for name in questions:
        graph.add_node(f"ask {name}", node(name))
        graph.add_edge(START, f"ask {name}")
        graph.add_edge(f"ask {name}", END)
    return graph.compile()


def _twice(given: State) -> Any:
    return {"left": interrupt({"question": "first"}), "right": interrupt({"question": "second"})}


_again = StateGraph(State)
_again.add_node("ask", _twice)
_again.add_edge(START, "ask")


class Flaky(Exception):
    retryable = True


def failing(error: type[Exception]) -> Any:
    def fail(given: State) -> Any:
        raise error("no")

    graph = StateGraph(State)
    graph.add_node("fail", fail)
    graph.add_edge(START, "fail")
    return graph.compile()


GRAPHS = {
    "default": asking("left"),
    "pair": asking("left", "right"),
    "twice": _again.compile(),
    "failing": failing(ValueError),
    "flaky": failing(Flaky),
}


async def ask(lab, graph: str = "default", **given: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A thread whose run has asked; its open questions, by their text."""
    thread = await lab.thread()
    await lab.enqueue(thread, {"left": None, **given}, assistant=graph)
    await lab.work()
    return thread, await open_questions(lab, thread)


async def open_questions(lab, thread: Any) -> list[dict[str, Any]]:
    found = await questions.search(lab.engine, thread_id=thread, status="open")
    return sorted(found, key=lambda row: row["question"]["question"])


async def values(lab, thread: Any) -> Any:
    return await state.values(lab.engine, await threads.get(lab.engine, thread))


async def statuses(lab, thread: Any) -> list[str]:
    found = await questions.search(lab.engine, thread_id=thread)
    return [row["status"] for row in sorted(found, key=lambda row: row["created_at"])]


async def test_question_is_open_when_the_run_that_asked_has_ended(lab):
    thread, (question,) = await ask(lab, deadline=FUTURE)
    assert question["question"] == {"question": "left", "deadline": FUTURE}
    assert (question["agent"], question["status"], question["answer"]) == ("default", "open", None)
    assert question["deadline"] == datetime.fromisoformat(FUTURE)
    row = await threads.get(lab.engine, thread)
    assert row["status"] == "interrupted"
    ((asked,),) = row["interrupts"].values()
    assert asked == {"id": question["interrupt_id"], "value": question["question"]}
    (run,) = await finding.list_runs(lab.engine, thread)
    assert (run["status"], run["run_id"]) == ("success", question["run_id"])
    assert await interrupts.get(lab.engine, question["token"]) == question


@pytest.mark.parametrize("deadline", ["tomorrow", "2026-01-01", "2026-01-01T00:00:00", 7, None, {}])
async def test_what_is_no_point_in_time_is_no_deadline(lab, deadline):
    _, (question,) = await ask(lab, deadline=deadline)
    assert question["deadline"] is None


async def test_tokens_are_unguessable_and_unique(lab):
    tokens = set()
    for _ in range(5):
        _, questions = await ask(lab, "pair")
        tokens |= {question["token"] for question in questions}
    assert len(tokens) == 10
    assert all(len(token) >= 32 for token in tokens)
    with pytest.raises(QuestionNotFound):
        await interrupts.resolve(lab.engine, next(iter(tokens))[:-1], True)


@pytest.mark.parametrize("answer", [True, False, None, 0, "", [], {}, {"a": [1]}, "text"])
async def test_answer_by_token_is_what_interrupt_returns(lab, answer):
    thread, (question,) = await ask(lab)
    run = await interrupts.resolve(lab.engine, question["token"], answer, by="ada")
    assert run["status"] == "pending"
    closed = await interrupts.get(lab.engine, question["token"])
    assert (closed["status"], closed["answer"], closed["answered_by"]) == ("answered", answer, "ada")
    assert closed["answered_at"] is not None
    assert await lab.work() == 1
    assert await values(lab, thread) == {"left": answer}
    assert (await lab.thread_row(thread))["status"] == "idle"


async def test_rejection_is_an_answer_with_a_reason(lab):
    thread, (question,) = await ask(lab)
    await interrupts.reject(lab.engine, question["token"], "too dear", by="bob")
    await lab.work()
    assert await values(lab, thread) == {"left": {"approved": False, "reason": "too dear"}}
    assert await statuses(lab, thread) == ["rejected"]


async def test_of_many_answers_at_once_exactly_one_wins(lab):
    thread, (question,) = await ask(lab)

    async def by_token(n: int) -> Any:
        return await interrupts.resolve(lab.engine, question["token"], n)

    async def by_command(n: int) -> Any:
        return await lab.enqueue(thread, command={"resume": n})

    async def by_id(n: int) -> Any:
        return await lab.enqueue(thread, command={"resume": {question["interrupt_id"]: n}})

    calls = [call(n) for n, call in enumerate((by_token, by_command, by_id) * 3)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    winners = [n for n, end in enumerate(ends) if isinstance(end, dict)]
    assert len(winners) == 1
    assert all(isinstance(end, QuestionClosed) for end in ends if not isinstance(end, dict))
    assert len(await finding.list_runs(lab.engine, thread)) == 2
    await lab.work()
    assert await values(lab, thread) == {"left": winners[0]}


async def test_second_answer_is_refused_whichever_way_it_comes_and_changes_nothing(lab):
    thread, (question,) = await ask(lab)
    await lab.enqueue(thread, command={"resume": "first"})
    for worked in (0, 1):
        before = await lab.everything()
        for second in (
            lab.enqueue(thread, command={"resume": "second"}),
            lab.enqueue(thread, command={"resume": {question["interrupt_id"]: "second"}}),
            interrupts.resolve(lab.engine, question["token"], "second"),
            interrupts.reject(lab.engine, question["token"], None),
        ):
            with pytest.raises(QuestionClosed):
                await second
        assert await lab.everything() == before
        assert await lab.work() == 1 - worked
    assert await values(lab, thread) == {"left": "first"}


async def test_one_of_two_questions_is_answered_by_its_id(lab):
    thread, (left, right) = await ask(lab, "pair")
    await lab.enqueue(thread, assistant="pair", command={"resume": {right["interrupt_id"]: "R"}})
    assert [q["token"] for q in await open_questions(lab, thread)] == [left["token"]]
    await lab.work()
    # asked again, it is still the same question
    (still,) = await open_questions(lab, thread)
    assert still == left
    assert (await lab.thread_row(thread))["status"] == "interrupted"
    await interrupts.resolve(lab.engine, left["token"], "L")
    await lab.work()
    assert await values(lab, thread) == {"left": "L", "right": "R"}
    assert (await lab.thread_row(thread))["status"] == "idle"


async def test_two_questions_are_answered_by_one_command(lab):
    thread, (left, right) = await ask(lab, "pair")
    answers = {left["interrupt_id"]: "L", right["interrupt_id"]: "R"}
    await lab.enqueue(thread, assistant="pair", command={"resume": answers})
    await lab.work()
    assert await values(lab, thread) == {"left": "L", "right": "R"}


async def test_command_that_names_one_closed_question_answers_none(lab):
    thread, (left, right) = await ask(lab, "pair")
    await interrupts.resolve(lab.engine, left["token"], "L")
    await lab.work()
    before = await lab.everything()
    answers = {right["interrupt_id"]: "R", left["interrupt_id"]: "again"}
    with pytest.raises(QuestionClosed):
        await lab.enqueue(thread, assistant="pair", command={"resume": answers})
    with pytest.raises(QuestionClosed):
        await lab.enqueue(thread, assistant="pair", command={"resume": {"f" * 32: "unknown"}})
    assert await lab.everything() == before


async def test_two_questions_answered_at_the_same_time_are_both_answered(lab):
    thread, questions = await ask(lab, "pair")
    await asyncio.gather(*(interrupts.resolve(lab.engine, q["token"], q["question"]["question"]) for q in questions))
    await lab.work()
    assert await values(lab, thread) == {"left": "left", "right": "right"}
    assert await open_questions(lab, thread) == []


async def test_plain_answer_while_two_questions_are_open_fails_the_run(lab):
    thread, _ = await ask(lab, "pair")
    run = await lab.enqueue(thread, assistant="pair", command={"resume": "which?"})
    await lab.work()
    row = await lab.run(run)
    assert (row["status"], row["error"]["error"]) == ("error", "RuntimeError")


async def test_questions_stay_open_after_a_plain_answer_that_fitted_none(lab):
    thread, (left, right) = await ask(lab, "pair")
    await lab.enqueue(thread, assistant="pair", command={"resume": "which?"})
    await lab.work()
    for question in (left, right):
        await interrupts.resolve(lab.engine, question["token"], "ok")
        await lab.work()
    assert await values(lab, thread) == {"left": "ok", "right": "ok"}


async def test_answer_without_a_question_is_refused(lab):
    thread = await lab.thread()
    with pytest.raises(QuestionClosed):
        await lab.enqueue(thread, command={"resume": 1})
    assert await finding.list_runs(lab.engine, thread) == []


@pytest.mark.parametrize(
    "new", [{"input": {"left": 1}}, {"command": {"update": {"left": 1}}}, {"command": {"goto": []}}]
)
async def test_new_input_supersedes_the_open_question(lab, new):
    thread, (question,) = await ask(lab, deadline=PAST)
    await lab.enqueue(thread, **new)
    assert await statuses(lab, thread) == ["superseded"]
    with pytest.raises(QuestionClosed, match="superseded"):
        await interrupts.resolve(lab.engine, question["token"], 1)
    assert await interrupts.time_out(lab.engine) == 0


async def test_run_without_input_leaves_the_question_open(lab):
    thread, (question,) = await ask(lab)
    await lab.enqueue(thread)
    await lab.work()
    assert [q["token"] for q in await open_questions(lab, thread)] == [question["token"]]
    await interrupts.resolve(lab.engine, question["token"], "yes")
    await lab.work()
    assert await values(lab, thread) == {"left": "yes"}


async def test_passed_deadline_is_answered_once_with_its_timeout_by_however_many_sweepers(lab):
    asked = [(await ask(lab, deadline=PAST))[0] for _ in range(4)]
    later, _ = await ask(lab, deadline=FUTURE)
    counts = await asyncio.gather(*(interrupts.time_out(lab.engine) for _ in range(6)))
    assert sum(counts) == 4
    await lab.work()
    for thread in asked:
        assert await statuses(lab, thread) == ["timed_out"]
        assert (await values(lab, thread))["left"] == {"__timeout__": PAST}
        assert len(await finding.list_runs(lab.engine, thread)) == 2
    assert await statuses(lab, later) == ["open"]


async def test_answer_and_deadline_at_the_same_time_leave_one_of_them(lab):
    for _ in range(5):
        thread, (question,) = await ask(lab, deadline=PAST)
        late, _ = await asyncio.gather(
            interrupts.resolve(lab.engine, question["token"], "in time"),
            interrupts.time_out(lab.engine),
            return_exceptions=True,
        )
        await lab.work()
        left = (await values(lab, thread))["left"]
        if isinstance(late, QuestionClosed):
            assert (left, await statuses(lab, thread)) == ({"__timeout__": PAST}, ["timed_out"])
        else:
            assert (left, await statuses(lab, thread)) == ("in time", ["answered"])
        assert len(await finding.list_runs(lab.engine, thread)) == 2


async def test_question_that_cannot_be_resumed_does_not_hold_up_the_deadlines_of_others(lab):
    """Its assistant was deleted, or another deployment's graph asked it."""
    broken, _ = await ask(lab, deadline=(datetime.now(UTC) - timedelta(hours=2)).isoformat())
    custom = await assistants.create(lab.engine, graph_id="default")
    await lab.execute(
        "UPDATE interrupts SET assistant_id = %(id)s WHERE thread_id = %(thread)s",
        id=custom["assistant_id"],
        thread=broken,
    )
    await assistants.delete(lab.engine, custom["assistant_id"])
    thread, _ = await ask(lab, deadline=PAST)
    await interrupts.time_out(lab.engine)
    assert await statuses(lab, thread) == ["timed_out"]


@pytest.mark.parametrize("way", ["token", "plain", "id"])
async def test_answer_of_a_timeout_may_be_given_by_a_deadline_only(lab, way):
    thread, (question,) = await ask(lab, deadline=FUTURE)
    before = await lab.everything()
    answer = {"__timeout__": FUTURE}
    given = {question["interrupt_id"]: answer} if way == "id" else answer
    by_token = interrupts.resolve(lab.engine, question["token"], answer)
    by_command = lab.enqueue(thread, command={"resume": given})
    call, unused = (by_token, by_command) if way == "token" else (by_command, by_token)
    unused.close()
    with pytest.raises(InvalidInput, match="reserved"):
        await call
    assert await lab.everything() == before


async def test_token_of_an_answered_question_never_answers_the_next_one(lab):
    thread, (first,) = await ask(lab, "twice")
    await interrupts.resolve(lab.engine, first["token"], "one")
    await lab.work()
    (second,) = await open_questions(lab, thread)
    assert second["token"] != first["token"]
    with pytest.raises(QuestionClosed):
        await interrupts.resolve(lab.engine, first["token"], "again")
    await interrupts.resolve(lab.engine, second["token"], "two")
    await lab.work()
    assert await values(lab, thread) == {"left": "one", "right": "two"}


async def test_late_answer_never_answers_the_next_question_however_slow_it_is(lab, monkeypatch):
    """It has found its question open; then another answer wins, and the task asks the next one."""
    thread, (first,) = await ask(lab, "twice")
    look_up = interrupts._by_token

    async def slow(engine: Any, token: str) -> dict[str, Any]:
        row = await look_up(engine, token)
        monkeypatch.setattr(interrupts, "_by_token", look_up)
        await interrupts.resolve(engine, token, "quick")
        await lab.work()
        return row

    monkeypatch.setattr(interrupts, "_by_token", slow)
    with pytest.raises(QuestionClosed):
        await interrupts.resolve(lab.engine, first["token"], "slow")
    assert [q["question"]["question"] for q in await open_questions(lab, thread)] == ["second"]


@pytest.mark.parametrize("begun", [False, True], ids=["pending", "running"])
async def test_answer_that_is_rolled_back_leaves_a_question_that_can_be_answered(lab, begun):
    thread, (question,) = await ask(lab)
    run = await interrupts.resolve(lab.engine, question["token"], "wrong")
    if begun:
        await lab.claim_one()
    await stop.cancel(lab.engine, thread, run["run_id"], "rollback")
    await lab.enqueue(thread, command={"resume": "right"})
    await lab.work()
    assert await values(lab, thread) == {"left": "right"}


async def test_questions_are_found_by_status_agent_and_thread_newest_first_in_pages(lab):
    one, (first,) = await ask(lab)
    two, pair = await ask(lab, "pair")
    await interrupts.resolve(lab.engine, first["token"], 1)

    async def tokens(**given: Any) -> list[str]:
        return [row["token"] for row in await questions.search(lab.engine, **given)]

    everything = await tokens()
    assert everything[-1] == first["token"]
    assert set(everything[:2]) == {q["token"] for q in pair}
    assert await tokens(status="answered") == [first["token"]] == await tokens(thread_id=one)
    assert set(await tokens(agent="pair")) == set(await tokens(thread_id=two)) == {q["token"] for q in pair}
    pages = [await tokens(limit=1)]
    while page := await tokens(limit=1, cursor=pages[-1][-1]):
        pages.append(page)
    assert [token for page in pages for token in page] == everything
    with pytest.raises(QuestionNotFound):
        await tokens(cursor="unknown")


async def followed(lab, graph: str = "default") -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A thread with an open question, and a run with other input that was accepted before it was asked."""
    thread = await lab.thread()
    await lab.enqueue(thread, {"left": None})
    asking = await lab.claim_one()
    follower = await lab.enqueue(thread, {"left": None}, assistant=graph)
    await lab.play(lab.attempt(asking))
    (question,) = await open_questions(lab, thread)
    return thread, question, follower


async def test_answer_goes_before_a_run_that_is_ready_already(lab):
    """Also for a worker with one free slot: after that run nobody would hear the answer."""
    thread, question, follower = await followed(lab)
    answer = await interrupts.resolve(lab.engine, question["token"], "yes")
    claimed = await lab.claim_one()
    assert claimed.run_id == answer["run_id"]
    await lab.play(lab.attempt(claimed))
    assert (await values(lab, thread))["left"] == "yes"
    assert (await lab.claim_one()).run_id == follower["run_id"]


@pytest.mark.parametrize("graph", ["default", "failing", "flaky"])
async def test_question_that_other_input_has_overtaken_takes_no_answer(lab, graph):
    """Nobody would hear it: the thread has gone on."""
    _, question, follower = await followed(lab, graph)
    claimed = await lab.claim_one()
    assert claimed.run_id == follower["run_id"]
    if graph != "default":  # else: while it is being executed
        await lab.play(lab.attempt(claimed))
    with pytest.raises(QuestionClosed):
        await interrupts.resolve(lab.engine, question["token"], "yes")


async def test_answer_does_not_wait_behind_a_paused_run_that_has_never_started(lab):
    thread, question, follower = await followed(lab)
    await control.pause(lab.engine, thread, follower["run_id"])
    answer = await interrupts.resolve(lab.engine, question["token"], "yes")
    assert (await lab.claim_one()).run_id == answer["run_id"]
