"""Graphs to kill workers in. Every effect is one line in the file EFFECTS, written before anything else can fail.

Loaded by `langgraph.json` in this folder. `pause` lets a test hold a run inside a step: while
the file `<EFFECTS>.hold.<name>` exists, the step of that name waits.
"""

import asyncio
import operator
import os
from pathlib import Path
from typing import Annotated, Any

from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt
from typing_extensions import TypedDict

from perdure import ApprovalTimeout, TerminalError, agent, approval, gather, limit, mailbox, race, saga, sleep, step


def effect(name: str) -> None:
    """The world outside: appended atomically, never undone by a crash."""
    handle = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(handle, f"{name}\n".encode())
    os.close(handle)


async def hold(name: str) -> None:
    while Path(f"{os.environ['EFFECTS']}.hold.{name}").exists():
        await asyncio.sleep(0.01)


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    answers: Annotated[list[Any], operator.add]


@step
async def work(name: str) -> str:
    effect(name)
    await hold(name)
    return f"did {name}"


def node(name: str) -> Any:
    async def run(state: State) -> State:
        return {"log": [await work(name)]}

    return run


def line(*names: str) -> Any:
    builder = StateGraph(State)
    previous = START
    for name in names:
        builder.add_node(name, node(name))
        builder.add_edge(previous, name)
        previous = name
    builder.add_edge(previous, END)
    return builder


sequential = line("a", "b", "c").compile()


# -- several steps in one node, at the same time and one after the other


async def together(state: State) -> State:
    done = await asyncio.gather(*(work(f"g{i}") for i in range(4)))
    last = await work("after")
    return {"log": [*done, last]}


builder = StateGraph(State)
builder.add_node("together", together)
builder.add_edge(START, "together")
builder.add_edge("together", END)
concurrent = builder.compile()


# -- a fan-out with Send


class Item(TypedDict):
    item: str


async def one(state: Item) -> State:
    return {"log": [await work(state["item"])]}


async def join(state: State) -> State:
    return {"log": [await work("join")]}


def spread(_: State) -> list[Send]:
    return [Send("one", {"item": f"s{i}"}) for i in range(3)]


builder = StateGraph(State)
builder.add_node("one", one)
builder.add_node("join", join)
builder.add_conditional_edges(START, spread, ["one"])
builder.add_edge("one", "join")
builder.add_edge("join", END)
fanout = builder.compile()


# -- a subgraph with steps of its own, then a question inside it

inner = line("in1", "in2")


async def confirm(state: State) -> State:
    return {"answers": [interrupt("inner?")]}


inner.add_node("confirm", confirm)
inner.add_edge("in2", "confirm")
inner.add_edge("confirm", END)

builder = StateGraph(State)
builder.add_node("before", node("before"))
builder.add_node("child", inner.compile())
builder.add_node("after", node("after"))
builder.add_edge(START, "before")
builder.add_edge("before", "child")
builder.add_edge("child", "after")
builder.add_edge("after", END)
subgraph = builder.compile()


# -- two questions in one node, with effects around them


async def ask_twice(state: State) -> State:
    before = await work("q0")
    first = interrupt("first?")
    between = await work(f"q1 {first}")
    second = interrupt("second?")
    after = await work(f"q2 {second}")
    return {"log": [before, between, after], "answers": [first, second]}


builder = StateGraph(State)
builder.add_node("ask_twice", ask_twice)
builder.add_edge(START, "ask_twice")
builder.add_edge("ask_twice", END)
questions = builder.compile()


# -- questions of two nodes at the same time


def asks(name: str) -> Any:
    async def run(state: State) -> State:
        answer = interrupt(name)
        return {"answers": [f"{name}={answer}"], "log": [await work(f"told {name}")]}

    return run


builder = StateGraph(State)
for name in ("left", "right"):
    builder.add_node(name, asks(name))
    builder.add_edge(START, name)
    builder.add_edge(name, END)
parallel = builder.compile()


# -- a step that fails twice, and one that never works


@step
async def shaky(name: str) -> str:
    effect(name)
    lines = Path(os.environ["EFFECTS"]).read_text().splitlines()
    if lines.count(name) < 3:
        raise ConnectionError("not yet")
    return name


async def try_hard(state: State) -> State:
    return {"log": [await shaky("shaky"), await work("then")]}


@step
async def refuse() -> None:
    effect("refused")
    raise TerminalError("No such thing")


async def catch(state: State) -> State:
    try:
        await refuse()
    except TerminalError as exc:
        return {"log": [str(exc), await work("instead")]}
    return {}


builder = StateGraph(State)
builder.add_node("try_hard", try_hard)
builder.add_node("catch", catch)
builder.add_edge(START, "try_hard")
builder.add_edge("try_hard", "catch")
builder.add_edge("catch", END)
errors = builder.compile()


# -- an approval with a deadline


async def decide(state: State) -> State:
    try:
        answer = await approval("Pay?", within=state.get("within", 3600))
    except ApprovalTimeout:
        return {"answers": ["nobody"], "log": [await work("alone")]}
    return {"answers": [answer.approved], "log": [await work("paid" if answer.approved else "kept")]}


class Deadline(State, total=False):
    within: float


builder = StateGraph(Deadline)
builder.add_node("decide", decide)
builder.add_edge(START, "decide")
builder.add_edge("decide", END)
deadline = builder.compile()


# -- a command from outside: goto and update


async def choose(state: State) -> Command[Any]:
    return Command(goto="red", update={"log": [await work("choose")]})


builder = StateGraph(State)
builder.add_node("choose", choose, destinations=("red", "blue"))
builder.add_node("red", node("red"))
builder.add_node("blue", node("blue"))
builder.add_edge(START, "choose")
builder.add_edge("red", END)
builder.add_edge("blue", END)
router = builder.compile()


def single(function: Any, state: Any = State) -> Any:
    """A graph of one node."""
    builder = StateGraph(state)
    builder.add_node(function.__name__, function)
    builder.add_edge(START, function.__name__)
    builder.add_edge(function.__name__, END)
    return builder.compile()


async def ask_once(state: State) -> State:
    before = await work("before asking")
    answer = interrupt("Shall I?")
    return {"answers": [answer], "log": [before, await work(f"told {answer}")]}


asking = single(ask_once)


# -- waits that cost a row only


async def nap(state: State) -> State:
    before = await work("before nap")
    await sleep(1.5)
    return {"log": [before, await work("after nap")]}


napping = single(nap)


async def ask_children(state: State) -> State:
    alone = await agent("sequential", {"log": ["child"]})
    several = await gather(*(agent("small", {"log": [f"child {i}"]}) for i in range(3)))
    return {"log": [*alone["log"], *(line for child in several for line in child["log"]), await work("parent")]}


parent = single(ask_children)


async def ask_another_server(state: State) -> State:
    server = os.environ["OTHER_SERVER"]
    alone = await agent("sequential", {"log": ["far"]}, server=server)
    several = await gather(agent("small", {"log": ["there"]}, server=server), agent("small", {"log": ["here"]}))
    return {"log": [*alone["log"], *(line for child in several for line in child["log"]), await work("parent")]}


distant = single(ask_another_server)


async def wait_for_another_server(state: State) -> State:
    await work("calling")
    return await agent("slow", {"log": ["far"]}, server=os.environ["OTHER_SERVER"])


waiting = single(wait_for_another_server)


async def be_small(state: State) -> State:
    return {"log": [await work(f"small {state['log'][0]}")]}


small = single(be_small)


async def run_race(state: State) -> State:
    winner = await race(agent("small", {"log": ["quick"]}), agent("slow", {"log": ["slow"]}))
    return {"log": [winner["log"][-1], await work("raced")]}


racing = single(run_race)


async def be_slow(state: State) -> State:
    await sleep(600)
    return {"log": [await work("slow one")]}


slow = single(be_slow)


async def ask_a_person(state: State) -> State:
    answer = await agent("questions", {"log": ["child"]})
    return {"answers": answer["answers"], "log": [await work("told")]}


delegate = single(ask_a_person)


# -- a saga


@step
async def undo(name: str) -> str:
    effect(f"undo {name}")
    await hold(f"undo {name}")
    return f"undid {name}"


@step
async def fail_for_good() -> None:
    effect("failed")
    raise TerminalError("No car left")


async def travel(state: State) -> State:
    try:
        async with saga() as trip:
            for name in ("hotel", "flight"):
                trip.undo(undo, name)
                await work(name)
            await fail_for_good()
    except TerminalError as exc:
        return {"log": [str(exc), await work("sorry")]}
    return {}


trip = single(travel)


async def travel_slowly(state: State) -> State:
    async with saga() as trip:
        for name in ("hotel", "flight", "car"):
            trip.undo(undo, name)
            await work(name)
    return {"log": ["booked"]}


long_trip = single(travel_slowly)


async def travel_if_wanted(state: State) -> State:
    async with saga() as trip:
        for name in ("hotel", "flight"):
            trip.undo(undo, name)
            await work(name)
        interrupt("book?")
    return {"log": ["booked"]}


asking_trip = single(travel_if_wanted)


# -- an effect in the same database, exactly once


@step
async def count_in_database() -> int:
    async with step.transaction() as conn:
        row = await (await conn.execute("UPDATE counter SET n = n + 1 RETURNING n")).fetchone()
    return row["n"]


async def count(state: State) -> State:
    return {"answers": [await count_in_database(), await count_in_database()]}


counting = single(count)


# -- one at a time, over the whole fleet


async def one_at_a_time(state: State) -> State:
    async with limit("door", 1):
        effect("in")
        done = await work(state["log"][0])
        effect("out")
    return {"log": [done]}


limited = single(one_at_a_time)


# -- messages to a running run


async def listen(state: State) -> State:
    heard = []
    for turn in range(3):
        await work(f"turn {turn}")
        heard += await mailbox()
    return {"answers": heard}


listening = single(listen)
