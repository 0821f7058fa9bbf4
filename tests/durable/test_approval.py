"""A question waits; every client's form of an answer is understood; an unclear one never approves."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from langchain.tools import tool
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command
from pydantic import BaseModel
from typing_extensions import TypedDict

from perdure import Answer, ApprovalTimeout, TerminalError, approval
from tests.durable.fakes import FakeJournal, tool_call


class State(TypedDict, total=False):
    answer: Any


class Amount(BaseModel):
    amount: int


class Bench:
    def __init__(self, journal: FakeJournal | None = None, **options: Any) -> None:
        self.journal, self.options = journal, options
        self.saver, self.text = InMemorySaver(), "Pay 3000 USD?"

    async def run(self, entry: Any) -> Any:
        async def node(state: State) -> State:
            answer = await approval(self.text, **self.options)
            return {"answer": [answer.approved, answer.value, answer.edited_args, answer.reason, answer.by]}

        graph: Any = StateGraph(State).add_node("node", node).add_edge(START, "node").compile(self.saver)
        config: Any = {"configurable": {"thread_id": "t"}}
        return await graph.ainvoke(entry, self.journal.restart().config() if self.journal else config)

    async def ask(self) -> Any:
        (question,) = (await self.run({}))["__interrupt__"]
        return question.value

    async def answer(self, value: Any) -> Any:
        result = await self.run(Command(resume=value))
        if "__interrupt__" in result:
            return result["__interrupt__"][0].value
        return Answer(*result["answer"])


EDITED = {"amount": 5}
FORMS: list[tuple[Any, Answer]] = [
    (True, Answer(True)),
    (False, Answer(False)),
    ({"approved": True, "by": "ann", "value": 7}, Answer(True, 7, by="ann")),
    ({"approved": False, "reason": "no budget"}, Answer(False, reason="no budget")),
    ({"approved": True, "edited_args": EDITED}, Answer(True, edited_args=EDITED)),
    ({"approved": False, "edited_args": EDITED}, Answer(False)),
    ({"approved": "yes"}, Answer(False, {"approved": "yes"})),
    ({"decisions": [{"type": "approve"}]}, Answer(True)),
    ({"decisions": [{"type": "reject", "message": "no"}]}, Answer(False, reason="no")),
    (
        {"decisions": [{"type": "edit", "edited_action": {"name": "pay", "args": EDITED}}]},
        Answer(True, edited_args=EDITED),
    ),
    ({"decisions": [{"type": "respond", "message": "ask Bob"}]}, Answer(False, "ask Bob", reason="ask Bob")),
    ({"type": "approve"}, Answer(True)),
    ([{"type": "accept", "args": None}], Answer(True)),
    ([{"type": "ignore", "args": None}], Answer(False)),
    ([{"type": "edit", "args": {"action": "pay", "args": EDITED}}], Answer(True, edited_args=EDITED)),
    ([{"type": "response", "args": "ask Bob"}], Answer(False, "ask Bob", reason="ask Bob")),
    ("Yes", Answer(True, "Yes")),
    ("no.", Answer(False, "no.", reason="no.")),
    ("yes, but only half", Answer(False, "yes, but only half", reason="yes, but only half")),
    (7, Answer(False, 7)),
    (1, Answer(False, 1)),
    ({"type": "launch"}, Answer(False, {"type": "launch"})),
    ({"decisions": []}, Answer(False, {"decisions": []})),
    ({"decisions": [{"type": "approve"}] * 2}, Answer(False, {"decisions": [{"type": "approve"}] * 2})),
    ({"decisions": {"type": "approve"}}, Answer(True)),
    ({"type": "edit"}, Answer(True)),
    ([], Answer(False, [])),
]


@pytest.mark.parametrize(("raw", "expected"), FORMS, ids=lambda value: str(value)[:40])
async def test_every_form_of_an_answer_is_understood(raw: Any, expected: Answer):
    bench = Bench()
    await bench.ask()
    assert await bench.answer(raw) == expected


async def test_question_is_what_chat_clients_show():
    assert await Bench().ask() == {
        "question": "Pay 3000 USD?",
        "action_requests": [{"name": "approval", "args": {}, "description": "Pay 3000 USD?"}],
        "review_configs": [{"action_name": "approval", "allowed_decisions": ["approve", "edit", "reject", "respond"]}],
    }
    value = await Bench(action={"name": "pay", "args": {"amount": 3000}}).ask()
    assert value["action_requests"] == [{"name": "pay", "args": {"amount": 3000}, "description": "Pay 3000 USD?"}]
    assert value["review_configs"][0]["action_name"] == "pay"


async def test_deadline_is_fixed_when_the_question_is_first_asked():
    journal = FakeJournal()
    bench = Bench(journal, within=timedelta(hours=3))
    began = datetime.now(UTC)
    value = await bench.ask()
    deadline = datetime.fromisoformat(value["deadline"])
    assert began <= deadline - timedelta(hours=3) <= datetime.now(UTC)
    assert [row["name"] for row in journal.saves] == ["approval"]
    # A restart, with new code: another wording and another limit.
    bench.options, bench.text = {"within": 60}, "Pay?"
    (again,) = (await bench.run(None))["__interrupt__"]
    assert again.value["deadline"] == value["deadline"]
    assert (await bench.answer(True)).approved
    assert len(journal.saves) == 1


@pytest.mark.parametrize("journal", [None, FakeJournal()], ids=["without journal", "with journal"])
async def test_deadline_raises_approval_timeout_that_ends_the_run(journal: FakeJournal | None):
    bench = Bench(journal, within=10)
    deadline = (await bench.ask())["deadline"]
    with pytest.raises(ApprovalTimeout, match="Nobody answered 'Pay 3000 USD\\?' before") as caught:
        await bench.answer({"__timeout__": deadline})
    assert (caught.value.question, caught.value.deadline) == ("Pay 3000 USD?", deadline)
    assert caught.value.retryable is False
    assert isinstance(caught.value, TerminalError)


async def test_timer_of_another_question_leaves_this_one_open():
    bench = Bench(FakeJournal(), within=10)
    value = await bench.ask()
    assert await bench.answer({"__timeout__": "2020-01-01T00:00:00+00:00"}) == value
    assert (await bench.answer(True)).approved


@pytest.mark.parametrize("within", [0, -1, timedelta(0)])
async def test_limit_that_is_not_positive_is_refused(within: Any):
    with pytest.raises(ValueError, match="positive"):
        await approval("?", within=within)


async def test_answer_that_does_not_fit_the_schema_is_asked_again():
    class Typed(Bench):
        async def run(self, entry: Any) -> Any:
            async def node(state: State) -> State:
                answer = await approval("How much?", schema=Amount)
                value = answer.value.amount if answer.approved else None
                return {"answer": [answer.approved, value, None, answer.reason, None]}

            graph: Any = StateGraph(State).add_node("node", node).add_edge(START, "node").compile(self.saver)
            return await graph.ainvoke(entry, {"configurable": {"thread_id": "t"}})

    bench = Typed()
    value = await bench.ask()
    assert value["schema"]["properties"]["amount"]["type"] == "integer"
    again = await bench.answer({"amount": "much"})
    assert "amount" in again["problem"]
    assert await bench.answer({"amount": 5}) == Answer(True, 5)

    for raw in ({"decisions": [{"type": "reject"}]}, False):
        bench = Typed()
        await bench.ask()
        assert await bench.answer(raw) == Answer(False)
    for raw in ({"approved": True, "value": EDITED}, {"type": "edit", "args": EDITED}):
        bench = Typed()
        await bench.ask()
        assert await bench.answer(raw) == Answer(True, 5)


async def test_json_schema_is_shown_and_any_data_approved():
    bench = Bench(schema={"type": "string"})
    assert (await bench.ask())["schema"] == {"type": "string"}
    assert await bench.answer("a blue one") == Answer(True, "a blue one")


async def test_tool_may_ask():
    @tool
    async def pay(amount: int) -> str:
        """Pay."""
        answer = await approval(f"Pay {amount}?", within=60)
        return "paid" if answer.approved else "rejected"

    async def ask(state: MessagesState) -> Any:
        return {"messages": [AIMessage("", tool_calls=[tool_call("pay", "c1", amount=3)])]}

    builder = StateGraph(MessagesState).add_node("ask", ask).add_node("tools", ToolNode([pay]))
    graph: Any = builder.add_edge(START, "ask").add_edge("ask", "tools").compile(InMemorySaver())
    journal = FakeJournal()
    result = await graph.ainvoke({"messages": [HumanMessage("pay")]}, journal.config())
    assert result["__interrupt__"][0].value["question"] == "Pay 3?"
    result = await graph.ainvoke(Command(resume=True), journal.restart().config())
    assert result["messages"][-1].text == "paid"
