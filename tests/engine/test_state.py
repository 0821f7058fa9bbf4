"""Reading and changing a thread's state, on real PostgreSQL, with graphs like those clients have."""

import asyncio
import operator
import threading
from types import SimpleNamespace
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

from perdure.engine import db, editing, state
from perdure.engine.errors import (
    CheckpointNotFound,
    GraphNotFound,
    InvalidInput,
    ThreadBusy,
    ThreadNotFound,
)
from perdure.engine.jsonable import jsonable
from perdure.engine.registry import GraphEntry, Registry

EMPTY = {
    "values": {},
    "next": [],
    "tasks": [],
    "metadata": None,
    "created_at": None,
    "checkpoint": None,
    "parent_checkpoint": None,
    "interrupts": [],
    "checkpoint_id": None,
    "parent_checkpoint_id": None,
}


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    note: str
    topic: str
    answer: Any


def line(**nodes):
    g = StateGraph(Log)
    before = START
    for name, node in nodes.items():
        g.add_node(name, node)
        g.add_edge(before, name)
        before = name
    g.add_edge(before, END)
    return g


def says(name):
    return lambda s: {"log": [name]}


def boom(s):
    raise ValueError("boom happened")


steps = line(a=says("a"), b=says("b"), c=says("c")).compile()
approval = line(
    prepare=says("prepare"),
    ask=lambda s: {"answer": interrupt({"question": "ok?"})},
    finish=says("finish"),
).compile()
failing = line(ok=says("ok"), boom=boom).compile()
child = line(draft=lambda s: {"topic": "t!"}, confirm=lambda s: {"answer": interrupt({"confirm": s["topic"]})})
nested = line(child=child.compile(), wrap=says("wrap")).compile()

_two = StateGraph(Log)
for side in ("left", "right"):
    _two.add_node(side, lambda s, side=side: {"log": [f"{side}={interrupt(side)}"]})
    _two.add_edge(START, side)
double = _two.compile()

_chat = StateGraph(MessagesState)
_chat.add_node("echo", lambda s: {"messages": [AIMessage(f"echo: {s['messages'][-1].content}", id="m2")]})
_chat.add_edge(START, "echo")
chat = _chat.compile()

ROUTED: dict[str, Any] = {}


def route(s):
    """A conditional edge: author code that an update runs."""
    ROUTED["thread"] = threading.current_thread().name
    if s.get("note") == "block":
        ROUTED["blocks"].set()
        ROUTED["released"] = ROUTED["release"].wait(60)
    if s.get("note") == "send":
        return [Send("b", {"note": "sent"})]
    return END if s.get("note") == "end" else "b"


async def route_async(s):
    return route(s)


def branching(by):
    g = StateGraph(Log)
    g.add_node("a", says("a"))
    g.add_node("b", says("b"))
    g.add_edge(START, "a")
    g.add_conditional_edges("a", by, ["b", END])
    return g.compile()


class Strict(BaseModel):
    n: int = 0


_strict = StateGraph(Strict)
_strict.add_node("a", lambda s: {"n": s.n + 1})
_strict.add_node("b", lambda s: {"n": s.n + 1})
_strict.add_edge(START, "a")
_strict.add_edge("a", "b")
strict = _strict.compile()


def by_config(config):
    return steps if config["configurable"].get("long") else line(only=says("only")).compile()


GRAPHS = {
    "steps": steps,
    "approval": approval,
    "failing": failing,
    "nested": nested,
    "double": double,
    "chat": chat,
    "routed": branching(route),
    "routed_async": branching(route_async),
    "strict": strict,
}


@pytest.fixture
async def engine(dsn):
    entries = {name: GraphEntry(name, name, None, graph) for name, graph in GRAPHS.items()}
    entries["factory"] = GraphEntry("factory", "factory", None, None, by_config, takes_config=True)
    pool = await db.open_pool(dsn, size=4, name="test")
    yield SimpleNamespace(registry=Registry({}, entries), pool=pool, dsn=dsn)
    await pool.close()


async def new_thread(engine, graph_id: Any, config: dict[str, Any] | None = None) -> UUID:
    thread_id = uuid4()
    metadata = {} if graph_id is None else {"graph_id": graph_id}
    async with engine.pool.connection() as conn:
        await conn.execute(
            "INSERT INTO threads (thread_id, metadata, config, fence) VALUES (%(id)s, %(metadata)s, %(config)s, 0)",
            {"id": thread_id, "metadata": db.jsonb(metadata), "config": db.jsonb(config or {})},
        )
    return thread_id


async def run(engine, thread_id: UUID, graph_id: str, given: Any) -> Any:
    saver = AsyncPostgresSaver(engine.pool)
    async with engine.registry.open(graph_id, {"configurable": {}}, checkpointer=saver) as graph:
        return await graph.ainvoke(given, {"configurable": {"thread_id": str(thread_id)}})


async def row(engine, thread_id: UUID) -> dict[str, Any]:
    async with engine.pool.connection() as conn:
        cursor = await conn.execute("SELECT * FROM threads WHERE thread_id = %(id)s", {"id": thread_id})
        return await cursor.fetchone()


async def execute(engine, statement: str, **params: Any) -> None:
    async with engine.pool.connection() as conn:
        await conn.execute(statement, params)


async def history(engine, thread_id, **options):
    return [one async for one in state.history(engine, thread_id, **options)]


# --- reading ---------------------------------------------------------------------------------


async def test_thread_without_a_run_has_the_empty_state(engine):
    for graph_id in (None, "steps"):
        thread_id = await new_thread(engine, graph_id)
        assert await state.read(engine, thread_id) == EMPTY
        assert await history(engine, thread_id) == []
        assert await state.values(engine, await row(engine, thread_id)) is None


async def test_unknown_thread(engine):
    for call in (state.read, history, editing.update):
        with pytest.raises(ThreadNotFound):
            await call(engine, uuid4())


async def test_state_after_a_run(engine):
    thread_id = await new_thread(engine, "steps")
    await run(engine, thread_id, "steps", {"log": []})
    found = await state.read(engine, thread_id)
    assert found["values"] == {"log": ["a", "b", "c"]}
    assert (found["next"], found["tasks"], found["interrupts"]) == ([], [], [])
    assert (found["metadata"]["source"], found["metadata"]["step"]) == ("loop", 3)
    assert found["checkpoint"] == {
        "thread_id": str(thread_id),
        "checkpoint_ns": "",
        "checkpoint_id": found["checkpoint_id"],
    }
    assert found["parent_checkpoint"]["checkpoint_id"] == found["parent_checkpoint_id"]
    assert found["created_at"].endswith("+00:00")
    assert await state.values(engine, await row(engine, thread_id)) == found["values"]
    async with engine.pool.connection() as conn, conn.transaction():
        assert await state.read(engine, thread_id, conn=conn) == found
        assert await state.values(engine, await row(engine, thread_id), conn) == found["values"]


async def test_history_is_newest_first_and_pages(engine):
    thread_id = await new_thread(engine, "steps")
    await run(engine, thread_id, "steps", {"log": []})
    rows = await history(engine, thread_id, limit=50)
    assert [r["next"] for r in rows] == [[], ["c"], ["b"], ["a"], ["__start__"]]
    assert [r["metadata"]["step"] for r in rows] == [3, 2, 1, 0, -1]
    assert [r["parent_checkpoint_id"] for r in rows] == [r["checkpoint_id"] for r in rows[1:]] + [None]
    assert rows[-1]["parent_checkpoint"] is None
    assert rows[1]["tasks"][0]["result"] == {"log": ["c"]}
    assert rows[1]["tasks"][0]["path"] == ["__pregel_pull", "c"]

    assert await history(engine, thread_id, limit=2) == rows[:2]
    before = rows[1]["checkpoint_id"]
    assert await history(engine, thread_id, limit=2, before=before) == rows[2:4]
    assert await history(engine, thread_id, metadata={"step": 0}) == [rows[3]]
    assert await history(engine, thread_id, metadata={"source": "input"}) == [rows[4]]
    assert await history(engine, thread_id, metadata={"step": "0"}) == []
    for nothing in (
        {"before": "\x00"},
        {"metadata": {"a": "\x00"}},
        {"checkpoint": {"checkpoint_ns": "\x00"}},
    ):
        assert await history(engine, thread_id, **nothing) == []
    assert await history(engine, thread_id, checkpoint={"checkpoint_ns": "zzz:1"}) == []
    assert await history(engine, thread_id, checkpoint={}, before="zzz") == rows


async def test_a_long_history_is_read_a_few_states_at_a_time(engine, monkeypatch):
    thread_id = await new_thread(engine, "steps")
    for n in range(11):
        await editing.update(engine, thread_id, values={"note": f"{n}", "log": ["x"]}, as_node="abc"[n % 3])
    monkeypatch.setattr(state, "STATES_AT_ONCE", 100)
    rows = await history(engine, thread_id, limit=100)
    assert [row["values"]["note"] for row in rows] == [f"{n}" for n in range(10, -1, -1)]
    limits, alist = [], AsyncPostgresSaver.alist

    def listing(self, *args, limit, **options):
        limits.append(limit)
        return alist(self, *args, limit=limit, **options)

    monkeypatch.setattr(AsyncPostgresSaver, "alist", listing)
    monkeypatch.setattr(state, "STATES_AT_ONCE", 4)
    assert await history(engine, thread_id, limit=100) == rows
    assert limits == [4, 4, 4]
    assert await history(engine, thread_id, limit=9, before=rows[1]["checkpoint_id"]) == rows[2:]
    assert limits == [4, 4, 4, 4, 4, 1]
    at = {"checkpoint_id": rows[5]["checkpoint_id"]}
    assert await history(engine, thread_id, limit=100, checkpoint=at) == [rows[5]]
    assert await history(engine, thread_id, limit=8, metadata={"source": "update"}) == rows[:8]


async def test_state_at_a_checkpoint(engine):
    thread_id = await new_thread(engine, "steps")
    await run(engine, thread_id, "steps", {"log": []})
    rows = await history(engine, thread_id)
    found = await state.read(engine, thread_id, checkpoint_id=rows[2]["checkpoint_id"])
    assert found == rows[2]
    assert (found["values"], found["next"]) == ({"log": ["a"]}, ["b"])
    assert await state.read(engine, thread_id, checkpoint_map={"": rows[2]["checkpoint_id"]}) == found


@pytest.mark.parametrize("checkpoint_id", ["00000000-0000-0000-0000-000000000000", "zzz", "\x00", "a" * 10_000])
async def test_unknown_checkpoint_gives_the_empty_state_and_echoes_it(engine, checkpoint_id):
    thread_id = await new_thread(engine, "steps")
    await run(engine, thread_id, "steps", {"log": []})
    found = await state.read(engine, thread_id, checkpoint_id=checkpoint_id)
    echoed = {"checkpoint_id": checkpoint_id, "thread_id": str(thread_id), "checkpoint_ns": ""}
    assert found == {**EMPTY, "checkpoint": echoed, "checkpoint_id": checkpoint_id}


async def test_messages_are_flat_in_json(engine):
    thread_id = await new_thread(engine, "chat")
    await run(engine, thread_id, "chat", {"messages": [{"role": "user", "content": "hi"}]})
    messages = jsonable(await state.read(engine, thread_id))["values"]["messages"]
    assert [(m["type"], m["content"]) for m in messages] == [("human", "hi"), ("ai", "echo: hi")]
    assert messages[1]["tool_calls"] == []


async def test_question_shows_in_the_task_and_at_the_top(engine):
    thread_id = await new_thread(engine, "approval")
    out = await run(engine, thread_id, "approval", {"log": []})
    found = await state.read(engine, thread_id)
    assert found["next"] == ["ask"]
    [task] = found["tasks"]
    assert set(task) == {"id", "name", "path", "error", "interrupts", "checkpoint", "state", "result"}
    assert (task["name"], task["error"], task["checkpoint"], task["state"]) == ("ask", None, None, None)
    assert task["interrupts"] == [{"id": out["__interrupt__"][0].id, "value": {"question": "ok?"}}]
    assert found["interrupts"] == task["interrupts"]


async def test_an_answered_question_is_gone_from_the_present_and_kept_in_the_record(engine):
    thread_id = await new_thread(engine, "double")
    out = await run(engine, thread_id, "double", {"log": []})
    left, right = sorted(out["__interrupt__"], key=lambda i: i.value)
    await run(engine, thread_id, "double", Command(resume={left.id: "L"}))
    found = await state.read(engine, thread_id)
    assert found["next"] == ["right"]
    assert found["interrupts"] == [{"id": right.id, "value": "right"}]
    assert found["values"] == {"log": ["left=L"]}
    record = await state.read(engine, thread_id, checkpoint_id=found["checkpoint_id"])
    assert record["next"] == ["left", "right"]
    assert record["values"] == {"log": []}


async def test_failed_task_has_the_error_as_text(engine):
    thread_id = await new_thread(engine, "failing")
    with pytest.raises(ValueError, match="boom"):
        await run(engine, thread_id, "failing", {"log": []})
    found = await state.read(engine, thread_id)
    assert found["next"] == ["boom"]
    assert found["tasks"][0]["error"] == "ValueError('boom happened')"


async def test_subgraph_states(engine):
    thread_id = await new_thread(engine, "nested")
    await run(engine, thread_id, "nested", {"log": []})
    found = await state.read(engine, thread_id)
    [task] = found["tasks"]
    ns = f"child:{task['id']}"
    assert task["checkpoint"] == {"thread_id": str(thread_id), "checkpoint_ns": ns}
    assert task["state"] is None
    assert found["interrupts"][0]["value"] == {"confirm": "t!"}

    [task] = (await state.read(engine, thread_id, subgraphs=True))["tasks"]
    assert task["checkpoint"] is None
    inner = task["state"]
    assert (inner["values"]["topic"], inner["next"]) == ("t!", ["confirm"])
    assert inner["checkpoint"]["checkpoint_ns"] == ns
    assert inner["checkpoint"]["checkpoint_map"] == {
        "": found["checkpoint_id"],
        ns: inner["checkpoint"]["checkpoint_id"],
    }
    assert await state.read(engine, thread_id, checkpoint_ns=ns) == inner
    by_map = inner["checkpoint"]["checkpoint_map"]
    at = await state.read(engine, thread_id, checkpoint_ns=ns, checkpoint_map=by_map)
    assert at["checkpoint"] == inner["checkpoint"]
    rows = await history(engine, thread_id, checkpoint={"checkpoint_ns": ns})
    assert [r["next"] for r in rows] == [["confirm"], ["draft"], ["__start__"]]
    assert rows[0]["checkpoint"] == inner["checkpoint"]
    unknown = await state.read(engine, thread_id, checkpoint_ns="child:zzz")
    assert unknown == {
        **EMPTY,
        "checkpoint": {"thread_id": str(thread_id), "checkpoint_ns": "child:zzz"},
    }
    jsonable(await state.read(engine, thread_id, subgraphs=True))


async def test_a_factory_is_given_the_config_of_the_threads_runs(engine):
    thread_id = await new_thread(engine, "factory", {"configurable": {"long": True}})
    await run(engine, thread_id, "steps", {"log": []})
    old = (await history(engine, thread_id))[2]
    assert old["next"] == ["b"]
    thread = await row(engine, thread_id)
    assert (await state.values(engine, thread))["log"] == ["a", "b", "c"]


async def test_values_stay_readable_when_the_graph_is_gone(engine):
    thread_id = await new_thread(engine, "removed")
    await run(engine, thread_id, "steps", {"log": []})
    found = await state.read(engine, thread_id)
    assert found["values"] == {"log": ["a", "b", "c"]}
    assert found["metadata"]["step"] == 3
    assert [r["metadata"]["step"] for r in await history(engine, thread_id)] == [3, 2, 1, 0, -1]
    assert await state.values(engine, await row(engine, thread_id)) == found["values"]
    with pytest.raises(GraphNotFound):
        await editing.update(engine, thread_id, values={"note": "x"})


async def test_values_stay_readable_when_the_schema_refuses_them(engine):
    thread_id = await new_thread(engine, "strict")
    await run(engine, thread_id, "steps", {"log": []})
    with pytest.raises(ValueError, match="valid integer"):
        await run(engine, thread_id, "strict", {"n": "not a number"})
    found = await state.read(engine, thread_id)
    assert found["checkpoint_id"]
    assert await history(engine, thread_id)


async def test_reads_run_side_by_side(engine):
    thread_id = await new_thread(engine, "nested")
    await run(engine, thread_id, "nested", {"log": []})
    found = await state.read(engine, thread_id, subgraphs=True)
    reads = await asyncio.gather(*(state.read(engine, thread_id, subgraphs=True) for _ in range(20)))
    assert reads == [found] * 20


# --- changing --------------------------------------------------------------------------------


async def test_update_as_a_node_moves_next(engine):
    thread_id = await new_thread(engine, "steps")
    await run(engine, thread_id, "steps", {"log": []})
    before = await row(engine, thread_id)
    old = await state.read(engine, thread_id)
    made = await editing.update(engine, thread_id, values={"log": ["manual"]}, as_node="a")
    assert made["checkpoint"] == made["configurable"]
    assert made["checkpoint"] == {
        "thread_id": str(thread_id),
        "checkpoint_ns": "",
        "checkpoint_id": made["checkpoint_id"],
    }
    found = await state.read(engine, thread_id)
    assert found["checkpoint_id"] == made["checkpoint_id"]
    assert found["parent_checkpoint_id"] == old["checkpoint_id"]
    assert found["values"]["log"] == ["a", "b", "c", "manual"]
    assert (found["next"], found["metadata"]["source"]) == (["b"], "update")
    after = await row(engine, thread_id)
    assert (after["status"], after["interrupts"], after["error"]) == ("interrupted", {}, None)
    assert after["fence"] == before["fence"] + 1
    assert after["state_updated_at"] > before["state_updated_at"]
    assert await run(engine, thread_id, "steps", None) == {"log": ["a", "b", "c", "manual", "b", "c"]}


async def test_update_without_next_leaves_the_thread_idle_and_clears_the_error(engine):
    thread_id = await new_thread(engine, "steps")
    await run(engine, thread_id, "steps", {"log": []})
    await execute(
        engine,
        "UPDATE threads SET status = 'error', error = '{\"error\": \"X\"}' WHERE thread_id = %(id)s",
        id=thread_id,
    )
    await editing.update(engine, thread_id, values={"note": "n"}, as_node="c")
    after = await row(engine, thread_id)
    assert (after["status"], after["error"]) == ("idle", None)
    assert (await state.read(engine, thread_id))["values"]["note"] == "n"


async def test_update_from_a_checkpoint_forks(engine):
    thread_id = await new_thread(engine, "steps")
    await run(engine, thread_id, "steps", {"log": []})
    rows = await history(engine, thread_id)
    base = rows[2]["checkpoint_id"]
    for way in (
        {"checkpoint_id": base},
        {"checkpoint": {"checkpoint_id": base}},
        {"checkpoint": rows[2]["checkpoint"]},
    ):
        made = await editing.update(engine, thread_id, values={"log": ["fork"]}, as_node="b", **way)
        found = await state.read(engine, thread_id)
        assert (found["checkpoint_id"], found["parent_checkpoint_id"]) == (made["checkpoint_id"], base)
        assert (found["values"], found["next"]) == ({"log": ["a", "fork"]}, ["c"])
    for unknown in ("zzz", "\x00", str(uuid4())):
        with pytest.raises(CheckpointNotFound):
            await editing.update(engine, thread_id, values={}, as_node="b", checkpoint_id=unknown)


async def test_update_of_a_thread_that_never_ran(engine):
    thread_id = await new_thread(engine, "steps")
    await editing.update(engine, thread_id, values={"log": ["x"]}, as_node="a")
    assert (await state.read(engine, thread_id))["next"] == ["b"]
    other = await new_thread(engine, "steps")
    await editing.update(engine, other, values={"log": ["x"]}, as_node="__input__")
    assert (await state.read(engine, other))["next"] == ["__start__"]


async def test_update_with_null(engine):
    thread_id = await new_thread(engine, "approval")
    await run(engine, thread_id, "approval", {"log": []})
    await editing.update(engine, thread_id, values=None, as_node="__end__")
    found = await state.read(engine, thread_id)
    assert (found["next"], found["values"]) == ([], {"log": ["prepare"]})
    assert (await row(engine, thread_id))["status"] == "idle"
    again = await editing.update(engine, thread_id, as_node="prepare")
    assert (await state.read(engine, thread_id))["values"] == {"log": ["prepare"]}
    copied = await editing.update(engine, thread_id, as_node="__copy__", checkpoint_id=again["checkpoint_id"])
    assert copied["checkpoint_id"] != again["checkpoint_id"]
    assert (await state.read(engine, thread_id))["metadata"]["source"] == "fork"


async def test_update_supersedes_open_questions(engine):
    thread_id = await new_thread(engine, "approval")
    await run(engine, thread_id, "approval", {"log": []})
    found = await state.read(engine, thread_id)
    await execute(
        engine,
        """
        INSERT INTO interrupts (thread_id, checkpoint_id, task_id, n, checkpoint_ns, interrupt_id, run_id,
                                graph_id, assistant_id, token, question)
        VALUES (%(id)s, %(checkpoint)s, %(task)s, 0, '', 'i', %(id)s, 'approval', %(id)s, %(token)s, '{}')
        """,
        id=thread_id,
        checkpoint=found["checkpoint_id"],
        task=found["tasks"][0]["id"],
        token=str(uuid4()),
    )
    await editing.update(engine, thread_id, values={"answer": "by hand"}, as_node="ask")
    async with engine.pool.connection() as conn:
        cursor = await conn.execute("SELECT status FROM interrupts WHERE thread_id = %(id)s", {"id": thread_id})
        assert await cursor.fetchall() == [{"status": "superseded"}]
    found = await state.read(engine, thread_id)
    assert (found["next"], found["interrupts"], found["values"]["answer"]) == (["finish"], [], "by hand")


async def test_update_of_a_subgraph(engine):
    thread_id = await new_thread(engine, "nested")
    await run(engine, thread_id, "nested", {"log": []})
    inner = (await state.read(engine, thread_id, subgraphs=True))["tasks"][0]["state"]
    made = await editing.update(
        engine, thread_id, values={"topic": "changed"}, as_node="draft", checkpoint=inner["checkpoint"]
    )
    assert made["checkpoint"]["checkpoint_ns"] == inner["checkpoint"]["checkpoint_ns"]
    assert made["checkpoint"]["checkpoint_map"][""] == inner["checkpoint"]["checkpoint_map"][""]
    found = (await state.read(engine, thread_id, subgraphs=True))["tasks"][0]["state"]
    assert found["values"]["topic"] == "changed"
    with pytest.raises(InvalidInput, match="Subgraph zzz not found"):
        await editing.update(engine, thread_id, values={}, checkpoint={"checkpoint_ns": "zzz:1"})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"values": {"log": ["x"]}, "as_node": "zzz"}, "^Node zzz does not exist$"),
        ({"values": {"log": 5}, "as_node": "a"}, "TypeError"),
        ({"values": "text", "as_node": "a"}, "Expected dict, got text"),
        ({"values": [{"log": []}], "as_node": "a"}, "Expected dict"),
        ({"values": None, "as_node": "__input__"}, "no input writes"),
        ({"values": {}, "as_node": "__copy__", "checkpoint": {"checkpoint_ns": "zzz:1"}}, "not found"),
        ({"values": {"log": ["x"]}, "as_node": "\x00"}, "does not exist"),
        ({"values": {"log": ["x"]}, "checkpoint": {"checkpoint_ns": "\x00"}}, "."),
    ],
)
async def test_bad_update_is_refused_and_changes_nothing(engine, given, problem):
    thread_id = await new_thread(engine, "steps")
    await run(engine, thread_id, "steps", {"log": []})
    before = await row(engine, thread_id), await history(engine, thread_id)
    with pytest.raises(InvalidInput, match=problem) as refused:
        await editing.update(engine, thread_id, **given)
    assert refused.value.status == 400
    assert before == (await row(engine, thread_id), await history(engine, thread_id))


async def test_update_that_the_schema_refuses_is_undone(engine):
    thread_id = await new_thread(engine, "strict")
    with pytest.raises(InvalidInput, match="valid integer"):
        await editing.update(engine, thread_id, values={"n": "x"}, as_node="a")
    assert await state.read(engine, thread_id) == EMPTY


async def test_bad_messages_are_refused(engine):
    thread_id = await new_thread(engine, "chat")
    for messages in (5, [{"role": "nobody", "content": "x"}], [{}], [[]], {"a": 1}):
        with pytest.raises(InvalidInput):
            await editing.update(engine, thread_id, values={"messages": messages}, as_node="echo")
    await editing.update(engine, thread_id, values={"messages": [{"type": "human", "content": "hi"}]}, as_node="echo")
    assert jsonable(await state.read(engine, thread_id))["values"]["messages"][0]["content"] == "hi"


@pytest.mark.parametrize("text", ["a\x00b", "\\u0000", "é" * 1000, "\U0001f600"])
async def test_any_text_can_be_a_value(engine, text):
    thread_id = await new_thread(engine, "steps")
    await editing.update(engine, thread_id, values={"note": text, "log": [text]}, as_node="a")
    assert (await state.read(engine, thread_id))["values"] == {"note": text, "log": [text]}


async def test_update_without_a_graph_says_what_to_do(engine):
    with pytest.raises(InvalidInput, match=r"has no graph yet: run it once, or set metadata\.graph_id") as refused:
        await editing.update(engine, await new_thread(engine, None), values={})
    assert refused.value.status == 400


@pytest.mark.parametrize("graph_id", [5, ["steps"], {"a": 1}, ""])
async def test_a_graph_id_that_is_no_name_counts_as_none(engine, graph_id):
    thread_id = await new_thread(engine, graph_id)
    assert await state.read(engine, thread_id) == EMPTY
    assert await history(engine, thread_id) == []
    with pytest.raises(InvalidInput, match="has no graph yet"):
        await editing.update(engine, thread_id, values={})


async def test_update_of_a_busy_thread_is_a_conflict(engine):
    thread_id = await new_thread(engine, "steps")
    for status in ("pending", "running", "paused"):
        await execute(
            engine,
            """
            INSERT INTO runs (thread_id, run_id, assistant_id, graph_id, status)
            VALUES (%(id)s, %(run)s, %(id)s, 'steps', %(status)s)
            """,
            id=thread_id,
            run=uuid4(),
            status=status,
        )
        with pytest.raises(ThreadBusy):
            await editing.update(engine, thread_id, values={"log": ["x"]}, as_node="a")
        await execute(engine, "UPDATE runs SET status = 'success' WHERE thread_id = %(id)s", id=thread_id)
    await execute(engine, "UPDATE threads SET run_id = %(id)s WHERE thread_id = %(id)s", id=thread_id)
    with pytest.raises(ThreadBusy):
        await editing.update(engine, thread_id, values={"log": ["x"]}, as_node="a")
    await execute(engine, "UPDATE threads SET run_id = NULL WHERE thread_id = %(id)s", id=thread_id)
    await editing.update(engine, thread_id, values={"log": ["x"]}, as_node="a")
    assert (await row(engine, thread_id))["fence"] == 1


async def blocked_update(engine, graph_id: str = "routed") -> tuple[UUID, asyncio.Task[Any]]:
    """An update whose author code blocks, until ROUTED["release"] is set."""
    thread_id = await new_thread(engine, graph_id)
    ROUTED.update(blocks=threading.Event(), release=threading.Event(), released=None)
    updating = asyncio.create_task(editing.update(engine, thread_id, values={"note": "block"}, as_node="a"))
    assert await asyncio.to_thread(ROUTED["blocks"].wait, 60)
    return thread_id, updating


async def test_author_code_runs_beside_the_event_loop(engine):
    thread_id, slow = await blocked_update(engine)
    ROUTED["release"].set()
    await slow
    assert ROUTED["released"], "it has waited in vain for this loop to turn"
    assert ROUTED["thread"] != threading.current_thread().name
    assert (await state.read(engine, thread_id))["next"] == ["b"]
    await editing.update(engine, thread_id, values={"note": "end"}, as_node="a")
    assert (await row(engine, thread_id))["status"] == "idle"


async def test_a_send_from_a_conditional_edge_becomes_a_task(engine):
    thread_id = await new_thread(engine, "routed")
    await editing.update(engine, thread_id, values={"note": "send"}, as_node="a")
    found = await state.read(engine, thread_id)
    assert found["next"] == ["b"]
    assert found["tasks"][0]["path"][0] == "__pregel_push"
    assert await run(engine, thread_id, "routed", None) == {"log": ["b"], "note": "send"}


@pytest.mark.parametrize("graph_id", ["routed", "routed_async"])
async def test_author_code_that_blocks_too_long_loses_the_thread(engine, monkeypatch, graph_id):
    monkeypatch.setattr(editing, "UPDATE_SECONDS", 1)
    thread_id, slow = await blocked_update(engine, graph_id)
    await asyncio.wait_for(execute(engine, "SELECT 1 FROM threads FOR UPDATE"), 30)  # it blocks for 60 s
    ROUTED["release"].set()
    with pytest.raises(InvalidInput, match="took longer than 1 s"):
        await slow
    assert await state.read(engine, thread_id) == EMPTY
    assert (await row(engine, thread_id))["fence"] == 0


async def test_a_cancelled_caller_leaves_a_whole_update(engine):
    thread_id, slow = await blocked_update(engine)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    ROUTED["release"].set()
    async with asyncio.timeout(60):
        while (await row(engine, thread_id))["fence"] == 0:  # noqa: ASYNC110  # it is done on another loop
            await asyncio.sleep(0.02)
    assert (await state.read(engine, thread_id))["next"] == ["b"]


async def test_updates_of_one_thread_follow_each_other(engine):
    thread_id = await new_thread(engine, "steps")
    made = await asyncio.gather(
        *(editing.update(engine, thread_id, values={"log": [str(i)]}, as_node="a") for i in range(6))
    )
    found = await state.read(engine, thread_id)
    assert sorted(found["values"]["log"]) == [str(i) for i in range(6)]
    assert len({m["checkpoint_id"] for m in made}) == len(await history(engine, thread_id)) == 6
    assert (await row(engine, thread_id))["fence"] == 6


async def test_replay_makes_checkpoints_as_a_run_would(engine):
    thread_id = await new_thread(engine, "steps")
    supersteps = [
        {"updates": [{"values": {"log": []}, "as_node": "__input__"}]},
        {"updates": [{"values": {"log": []}, "as_node": "__start__"}]},
        {"updates": [{"values": {"log": ["a"]}, "as_node": "a"}]},
        {"updates": [{"command": {"update": {"log": ["b"]}}, "as_node": "b"}]},
    ]
    await editing.replay(engine, thread_id, supersteps)
    rows = await history(engine, thread_id)
    assert [r["next"] for r in rows] == [["c"], ["b"], ["a"], ["__start__"]]
    assert rows[0]["values"] == {"log": ["a", "b"]}
    assert (await row(engine, thread_id))["status"] == "interrupted"
    assert await editing.replay(engine, thread_id, []) is None
    for bad in ([{"updates": []}, *supersteps], [{"updates": [{"values": {}}, {"values": {}}]}]):
        with pytest.raises(InvalidInput):
            await editing.replay(engine, thread_id, bad)
