"""Graphs that ask in all the ways a question can be asked; loaded by servers of the tests, not imported by them."""

from typing import Any, Literal, NotRequired

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from typing_extensions import TypedDict

from perdure import approval


class Asked(TypedDict, total=False):
    answer: Any
    other: Any


class Parcel(TypedDict):
    weight: float
    pieces: int
    way: Literal["road", "air"]
    fragile: bool
    receiver: str
    labels: list[str]
    note: NotRequired[str]


async def by_schema(state: Asked) -> Asked:
    answer = await approval("How shall the parcel travel?", schema=Parcel)
    return {"answer": answer.value if answer.approved else f"refused: {answer.reason}"}


async def by_actions(state: Asked) -> Asked:
    requests = [
        {"name": "send_mail", "args": {"to": "ann@example.com", "copies": 1}, "description": "Tell Ann"},
        {"name": "delete_file", "args": {"path": "/tmp/x"}},
    ]
    configs = [
        {"action_name": "send_mail", "allowed_decisions": ["approve", "edit", "reject"]},
        {"action_name": "delete_file", "allowed_decisions": ["approve", "reject"]},
    ]
    return {"answer": interrupt({"action_requests": requests, "review_configs": configs})}


async def in_words(state: Asked) -> Asked:
    return {"answer": interrupt({"ask": "<img src=x onerror=alert(1)> Which colour?", "size": "x" * 1_000_000})}


async def first(state: Asked) -> Asked:
    return {"answer": interrupt("The first question?")}


async def second(state: Asked) -> Asked:
    return {"other": interrupt("The second question?")}


def asks(*nodes: Any) -> Any:
    builder = StateGraph(Asked)
    for node in nodes:
        builder.add_node(node)
        builder.add_edge(START, node.__name__)
    return builder.compile()


schema = asks(by_schema)
actions = asks(by_actions)
words = asks(in_words)
two = asks(first, second)
