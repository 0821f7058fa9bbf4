"""Five graphs that any LangGraph-compatible server can load: no model, no network, nothing of perdure.

They do next to nothing, so what a run of them costs is the server's own work.
"""

import operator
import random
from typing import Annotated

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send, interrupt
from typing_extensions import TypedDict

TOKENS = 200


# -- steps5: five nodes in a row


class Log(TypedDict):
    log: Annotated[list[int], operator.add]


def steps(count: int) -> CompiledStateGraph:
    """`count` nodes, one after the other; each adds its number to the log."""
    builder = StateGraph(Log)

    def add(number: int) -> None:
        async def node(state: Log) -> Log:
            return {"log": [number]}

        builder.add_node(f"step{number}", node)
        builder.add_edge(f"step{number - 1}" if number else START, f"step{number}")

    for number in range(count):
        add(number)
    builder.add_edge(f"step{count - 1}", END)
    return builder.compile()


steps5 = steps(5)


# -- chat: one node answers

WORDS = [f"{random.Random(n).getrandbits(40):x}"[: 2 + n % 8] for n in range(4000)]


def prose(seed: int, words: int = 60) -> str:
    """About 360 characters that compress no better than prose, the same for the same seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


async def answer(state: MessagesState) -> MessagesState:
    return {"messages": [AIMessage(prose(len(state["messages"])))]}


chat = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").add_edge("answer", END).compile()


# -- fanout: n tasks in one superstep


class Fan(TypedDict):
    n: int
    done: Annotated[list[int], operator.add]


async def part(state: dict[str, int]) -> dict[str, list[int]]:
    return {"done": [state["part"]]}


def spread(state: Fan) -> list[Send]:
    return [Send("part", {"part": number}) for number in range(state["n"])]


fanout = (
    StateGraph(Fan)
    .add_node("part", part)
    .add_conditional_edges(START, spread, ["part"])
    .add_edge("part", END)
    .compile()
)


# -- approval: a question to a person


class Claim(TypedDict):
    amount: int
    approved: bool


async def ask(state: Claim) -> dict[str, bool]:
    return {"approved": interrupt({"question": "Pay?", "amount": state["amount"]})}


approval = StateGraph(Claim).add_node("ask", ask).add_edge(START, "ask").add_edge("ask", END).compile()


# -- tokens: a model streams its answer


async def talk(state: MessagesState) -> MessagesState:
    text = " ".join(f"token{n}" for n in range(TOKENS))
    model = GenericFakeChatModel(messages=iter([AIMessage(text)]))
    return {"messages": [await model.ainvoke(state["messages"])]}


tokens = StateGraph(MessagesState).add_node("talk", talk).add_edge(START, "talk").add_edge("talk", END).compile()
