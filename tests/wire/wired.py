"""Graphs of the wire tests: no model, no network, the same answer each time."""

import asyncio
import os
from collections.abc import AsyncIterator
from operator import add
from pathlib import Path
from typing import Annotated, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.config import get_store, get_stream_writer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, Send, interrupt
from typing_extensions import TypedDict


async def held(file: str | None) -> None:
    """As long as this file is there."""
    while file and Path(file).exists():  # noqa: ASYNC110 - another process takes it away
        await asyncio.sleep(0.02)


class Line(TypedDict, total=False):
    log: Annotated[list[str], add]
    seconds: float
    hold: str
    topic: str
    answer: Any


def wrote(text: str) -> Any:
    def node(state: Line) -> Line:
        return {"log": [text]}

    return node


def sequence(*names: str) -> Any:
    builder = StateGraph(Line)
    builder.add_sequence([(name, wrote(name)) for name in names])
    return builder.add_edge(START, names[0]).compile()


line = sequence("a", "b", "c")


# A model that streams its answer word by word, and may be held after some of them.
HELD_AFTER = 10


class Talker(BaseChatModel):
    words: int
    pause: float
    hold: str | None

    @property
    def _llm_type(self) -> str:
        return "talker"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        text = "".join(self._answer(messages))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text))])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for number, word in enumerate(self._answer(messages)):
            await asyncio.sleep(self.pause)
            await held(self.hold if number == HELD_AFTER else None)
            chunk = ChatGenerationChunk(message=AIMessageChunk(word))
            if run_manager:
                await run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk

    def _answer(self, messages: list[BaseMessage]) -> list[str]:
        return [f"You said {messages[-1].text}:", *(f" w{n}" for n in range(self.words))]


class Chat(MessagesState, total=False):
    words: int
    pause: float
    hold: str | None


async def talk(state: Chat) -> Any:
    talker = Talker(words=state.get("words", 3), pause=state.get("pause", 0), hold=state.get("hold"))
    return {"messages": [await talker.ainvoke(state["messages"])]}


chat = StateGraph(Chat).add_node("talk", talk).add_edge(START, "talk").compile()

# Two models that speak at the same time.
both = StateGraph(Chat).add_node("high", talk).add_node("low", talk)
duet = both.add_edge(START, "high").add_edge(START, "low").compile()


# A person decides about a tool call, as chat front ends show it.
def propose(state: MessagesState) -> Any:
    call = {"name": "pay", "args": {"amount": 5}, "id": "call-1", "type": "tool_call"}
    return {"messages": [AIMessage("May I?", tool_calls=[call])]}


def decide(state: MessagesState) -> Any:
    request = {"name": "pay", "args": {"amount": 5}, "description": "Pays 5 USD"}
    review = {"action_name": "pay", "allowed_decisions": ["approve", "reject"]}
    answer = interrupt({"action_requests": [request], "review_configs": [review]})
    done = "paid" if answer["decisions"][0]["type"] == "approve" else "refused"
    return {"messages": [ToolMessage(done, tool_call_id="call-1", name="pay")]}


approve = (
    StateGraph(MessagesState)
    .add_node("propose", propose)
    .add_node("decide", decide)
    .add_edge(START, "propose")
    .add_edge("propose", "decide")
    .compile()
)


def ask(state: Line) -> Line:
    return {"answer": interrupt({"question": "really?"}), "log": ["asked"]}


asks = (
    StateGraph(Line)
    .add_node("before", wrote("before"))
    .add_node("ask", ask)
    .add_node("after", wrote("after"))
    .add_edge(START, "before")
    .add_edge("before", "ask")
    .add_edge("ask", "after")
    .compile()
)


async def ask_thrice(state: Line) -> Line:
    answers = [interrupt(1)]
    await asyncio.sleep(state.get("seconds", 0))
    return {"answer": [*answers, interrupt(2), interrupt(3)]}


thrice = StateGraph(Line).add_node("ask", ask_thrice).add_edge(START, "ask").compile()


def left(state: Line) -> Line:
    return {"log": [f"left={interrupt('left?')}"]}


def right(state: Line) -> Line:
    return {"log": [f"right={interrupt('right?')}"]}


two = (
    StateGraph(Line)
    .add_node("left", left)
    .add_node("right", right)
    .add_edge(START, "left")
    .add_edge(START, "right")
    .compile()
)


# A question inside a subgraph, which also writes custom data.
class Inner(TypedDict, total=False):
    topic: str
    answer: Any


def draft(state: Inner) -> Inner:
    get_stream_writer()({"drafting": state["topic"]})
    return {"topic": state["topic"] + "!"}


def confirm(state: Inner) -> Inner:
    return {"answer": interrupt({"confirm": state["topic"]})}


child = (
    StateGraph(Inner)
    .add_node("draft", draft)
    .add_node("confirm", confirm)
    .add_edge(START, "draft")
    .add_edge("draft", "confirm")
    .compile()
)
nested = (
    StateGraph(Line)
    .add_node("child", child)
    .add_node("last", wrote("last"))
    .add_edge(START, "child")
    .add_edge("child", "last")
    .compile()
)


async def wait(state: Line) -> Line:
    await asyncio.sleep(state.get("seconds", 0))
    await held(state.get("hold"))
    return {"log": ["waited"]}


slow = (
    StateGraph(Line)
    .add_node("begin", wrote("begin"))
    .add_node("wait", wait)
    .add_edge(START, "begin")
    .add_edge("begin", "wait")
    .compile()
)


def boom(state: Line) -> Line:
    if state.get("topic") == "mended":
        return {"log": ["boom"]}
    raise ValueError("boom happened")


fails = (
    StateGraph(Line)
    .add_node("good", wrote("good"))
    .add_node("boom", boom)
    .add_edge(START, "good")
    .add_edge("good", "boom")
    .compile()
)


class Squares(TypedDict, total=False):
    n: int
    squares: Annotated[list[int], add]
    total: int


def spread(state: Squares) -> list[Send]:
    return [Send("square", {"i": i}) for i in range(state["n"])]


fan = (
    StateGraph(Squares)
    .add_node("square", lambda item: {"squares": [item["i"] ** 2]})
    .add_node("sum", lambda state: {"total": sum(state["squares"])})
    .add_conditional_edges(START, spread, ["square"])
    .add_edge("square", "sum")
    .compile()
)


# Writes to the store that the server brings and reads it back.
class Note(TypedDict, total=False):
    user: str
    fact: str
    facts: list[str]


async def remember(state: Note) -> Note:
    store, namespace = get_store(), ("wired", state["user"])
    if state.get("fact"):
        await store.aput(namespace, state["fact"], {"fact": state["fact"]})
    return {"facts": sorted(item.key for item in await store.asearch(namespace))}


notes = StateGraph(Note).add_node("remember", remember).add_edge(START, "remember").compile()


class Tone(TypedDict, total=False):
    tone: str


class Told(TypedDict, total=False):
    text: str
    heard: Any


def hear(state: Told, runtime: Runtime[Tone]) -> Told:
    return {"heard": (runtime.context or {}).get("tone")}


tone = StateGraph(Told, context_schema=Tone).add_node("hear", hear).add_edge(START, "hear").compile()


def choose(state: Line) -> Command[Any]:
    return Command(goto=state.get("topic", "red"), update={"log": ["choose"]})


router = (
    StateGraph(Line)
    .add_node("choose", choose, destinations=("red", "blue"))
    .add_node("red", wrote("red"))
    .add_node("blue", wrote("blue"))
    .add_edge(START, "choose")
    .compile()
)

endless = StateGraph(Line).add_node("again", wrote("x")).add_edge(START, "again").add_edge("again", "again").compile()


def built(config: dict[str, Any]) -> Any:
    """A graph that is built when it is needed; each time leaves a line in the file WIRED_BUILDS."""
    if path := os.environ.get("WIRED_BUILDS"):
        with Path(path).open("a") as file:
            file.write("built\n")
    return sequence("first", "second")
