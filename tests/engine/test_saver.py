"""LangGraph's checkpointer with a fence: same tables, same answers, no write without ownership."""

import asyncio
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.types import INTERRUPT
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Interrupt, Send, interrupt
from typing_extensions import TypedDict

from perdure.engine.errors import LeaseLost, StorageError
from perdure.engine.saver import FencedSaver

ODD_TEXTS = ["", "plain", "a\x00b", "\x00", "é漢字😀", "\\u0000", '"\\']
BROKEN_TEXTS = ["lone \ud800", "\udfff\x00", "\ud83d"]
ODD_NUMBERS = [0, -1, 2**63, 1.5, -0.0, 1e308, float("inf"), float("-inf"), True, False, None]


def saver_for(lab, thread: UUID, fence: int = 0) -> FencedSaver:
    return FencedSaver(lab.engine.pool, lab.group(), thread, fence)


def address(thread: UUID, ns: str = "", **more: str) -> RunnableConfig:
    return {"configurable": {"thread_id": str(thread), "checkpoint_ns": ns, **more}}


async def put(saver: Any, config: RunnableConfig, values: dict[str, Any]) -> RunnableConfig:
    versions: dict[str, Any] = {name: saver.get_next_version(None, None) for name in values}
    checkpoint = {**empty_checkpoint(), "channel_values": values, "channel_versions": versions}
    return await saver.aput(config, checkpoint, {"source": "loop", "step": 1, "parents": {}}, versions)


class _AnyThread(FencedSaver):
    """The saver under LangGraph's test suite: makes the thread that a write names, whatever it is called.

    A FencedSaver writes one thread only, and the thread's row must be there: deleting and pruning belong to
    `perdure.engine.threads`, so those go straight to LangGraph's own saver.
    """

    def _own(self, config: RunnableConfig) -> RunnableConfig:
        configurable = config.get("configurable", {})
        return {**config, "configurable": {**configurable, "thread_id": _uuid(configurable["thread_id"])}}

    async def _owned(self, config: RunnableConfig) -> RunnableConfig:
        own = self._own(config)
        self.thread_id = UUID(own["configurable"]["thread_id"])  # type: ignore[typeddict-item]
        async with self.pool.connection() as conn:
            statement = "INSERT INTO threads (thread_id, fence) VALUES (%s, 0) ON CONFLICT DO NOTHING"
            await conn.execute(statement, [self.thread_id])
        return own

    async def aput(self, config, checkpoint, metadata, new_versions):
        given = config["configurable"]["thread_id"]
        stored = await super().aput(await self._owned(config), checkpoint, metadata, new_versions)
        assert stored["configurable"]["thread_id"] == _uuid(given)
        return {"configurable": {**stored["configurable"], "thread_id": given}}

    async def aput_writes(self, config, writes, task_id, task_path=""):
        await super().aput_writes(await self._owned(config), writes, task_id, task_path)

    async def aget_tuple(self, config):
        found = await super().aget_tuple(self._own(config))
        return found and _renamed(found, config["configurable"]["thread_id"])

    async def alist(self, config, **options):
        if config is None:
            async for found in super().alist(None, **options):
                yield found
            return
        async for found in super().alist(self._own(config), **options):
            yield _renamed(found, config["configurable"]["thread_id"])

    async def adelete_thread(self, thread_id):
        await super().adelete_thread(_uuid(thread_id))

    async def aprune(self, thread_ids, *, strategy="keep_latest"):
        await super().aprune([_uuid(one) for one in thread_ids], strategy=strategy)


def _uuid(thread_id: str) -> str:
    try:
        return str(UUID(thread_id))
    except ValueError:
        return str(uuid5(NAMESPACE_OID, thread_id))


def _renamed(found: CheckpointTuple, thread_id: str) -> CheckpointTuple:
    def rename(config: Any) -> Any:
        return config and {"configurable": {**config["configurable"], "thread_id": thread_id}}

    return found._replace(config=rename(found.config), parent_config=rename(found.parent_config))


async def test_saver_passes_the_conformance_suite_of_langgraph(lab):
    @checkpointer_test(name="FencedSaver")
    async def fenced():
        yield _AnyThread(lab.engine.pool, lab.group(), UUID(int=0), 0)

    @checkpointer_test(name="AsyncPostgresSaver")
    async def stock():
        yield AsyncPostgresSaver(lab.engine.pool)

    ours, theirs = await validate(fenced), await validate(stock)
    failed = {name: result.failures for name, result in ours.results.items() if result.tests_failed}
    assert failed == {}
    tested = {name for name, result in ours.results.items() if result.detected}
    assert tested == {name for name, result in theirs.results.items() if result.detected}
    assert {"put", "put_writes", "get_tuple", "list", "delete_thread", "prune"} == tested


async def test_stale_owner_can_store_neither_checkpoints_nor_pending_writes(lab):
    thread = await lab.thread_at_zero()
    saver = saver_for(lab, thread)
    stored = await put(saver, address(thread), {"text": "mine", "list": [1]})
    await saver.aput_writes(stored, [("text", "a")], "task")
    await lab.fence_off(thread)
    before = await lab.everything()
    with pytest.raises(LeaseLost):
        await put(saver, stored, {"text": "stolen", "list": [2]})
    with pytest.raises(LeaseLost):
        await saver.aput_writes(stored, [("text", "b")], "another")
    with pytest.raises(LeaseLost):
        await saver.aput_writes(stored, [(INTERRUPT, (Interrupt("?"),))], "task")
    assert await lab.everything() == before


async def test_thread_without_a_row_accepts_no_write(lab):
    thread = UUID(int=7)
    with pytest.raises(LeaseLost):
        await put(saver_for(lab, thread), address(thread), {})
    assert (await lab.everything())["checkpoints"] == []


async def test_stock_saver_and_ours_read_the_same_from_what_either_has_stored(lab):
    values = {"text": "t", "number": 3, "list": [1, {"a": b"b"}], "none": None, "send": Send("node", {"x": 1})}
    savers = {}
    for name in ("ours", "stock"):
        thread = await lab.thread_at_zero()
        ours, stock = saver_for(lab, thread), AsyncPostgresSaver(lab.engine.pool)
        writer = ours if name == "ours" else stock
        first = await put(writer, address(thread), values)
        second = await put(writer, first, {**values, "text": "new"})
        await writer.aput_writes(second, [("text", "w"), ("list", [9])], "task-1", "path")
        await writer.aput_writes(second, [(INTERRUPT, (Interrupt("?", id="i"),))], "task-2")
        savers[name] = thread
        for config in (first, second, address(thread)):
            assert await ours.aget_tuple(config) == await stock.aget_tuple(config)
        assert [t async for t in ours.alist(address(thread))] == [t async for t in stock.alist(address(thread))]
        newest = await stock.aget_tuple(address(thread))
        assert newest is not None
        assert newest.checkpoint["channel_values"] == {**values, "text": "new"}
        assert len(newest.pending_writes or []) == 3
    # and the rows themselves look alike
    columns = "checkpoint_ns, type, idx, channel, task_id, task_path, blob"
    rows = [
        await lab.rows(
            f"SELECT {columns} FROM checkpoint_writes WHERE thread_id = %(id)s ORDER BY task_id, idx", id=str(thread)
        )
        for thread in savers.values()
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("value", [*ODD_TEXTS, *ODD_NUMBERS], ids=ascii)
async def test_primitive_channel_value_comes_back_as_it_was(lab, value):
    thread = await lab.thread_at_zero()
    saver = saver_for(lab, thread)
    config = await put(saver, address(thread), {"value": value, "nested": {"value": value}})
    await saver.aput_writes(config, [("value", value)], "task")
    for reader in (saver, AsyncPostgresSaver(lab.engine.pool)):
        found = await reader.aget_tuple(address(thread))
        assert found is not None
        for back in (
            found.checkpoint["channel_values"]["value"],
            found.checkpoint["channel_values"]["nested"]["value"],
            (found.pending_writes or [])[0][2],
        ):
            assert (type(back), back) == (type(value), value)


@pytest.mark.parametrize("value", BROKEN_TEXTS, ids=ascii)
async def test_text_with_half_a_character_is_stored_as_langgraph_serializes_it(lab, value):
    """PostgreSQL has no place for it, and LangGraph's serializer puts a question mark there."""
    thread = await lab.thread_at_zero()
    saver = saver_for(lab, thread)
    config = await put(saver, address(thread), {"value": value})
    await saver.aput_writes(config, [("value", value)], "task")
    found = await saver.aget_tuple(address(thread))
    assert found is not None
    known = value.encode(errors="replace").decode()
    assert found.checkpoint["channel_values"] == {"value": known}
    assert [write[2] for write in found.pending_writes or []] == [known]


async def test_channel_that_changes_between_odd_and_plain_text_has_its_newest_value(lab):
    thread = await lab.thread_at_zero()
    saver = saver_for(lab, thread)
    config = address(thread)
    for value in ("plain", "a\x00", "plain again", float("inf"), "\x00", None, "end"):
        config = await put(saver, config, {"value": value})
        found = await saver.aget_tuple(config)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"value": value}


async def test_reads_of_one_saver_run_side_by_side(lab):
    thread = await lab.thread_at_zero()
    saver = saver_for(lab, thread)
    await put(saver, address(thread), {"value": 1})
    async with asyncio.timeout(60):
        async for _ in saver.alist(address(thread)):  # holds its connection while others read
            assert await saver.aget_tuple(address(thread)) is not None


async def test_lost_database_is_a_storage_error(lab):
    thread = await lab.thread_at_zero()
    saver = saver_for(lab, thread)
    await lab.engine.pool.resize(1, 1)
    await lab.execute("SELECT 1")
    await lab.cut_connections()
    with pytest.raises(StorageError) as caught:
        await saver.aget_tuple(address(thread))
    assert caught.value.retryable is True


# --- questions


class State(TypedDict, total=False):
    answers: str


def _line(name: str, node: Any) -> StateGraph:
    graph = StateGraph(State)
    graph.add_node(name, node)
    graph.add_edge(START, name)
    graph.add_edge(name, END)
    return graph


def ask_two(state: State) -> State:
    return {"answers": f"{interrupt('first')}+{interrupt('second')}"}


def ask_one(state: State) -> State:
    return {"answers": interrupt({"question": "ok?"})}


_innermost = _line("ask", ask_one).compile()
_middle = _line("inner", _innermost).compile()


async def _by_hand(state: State) -> State:
    return await _innermost.ainvoke(state)


def _pair() -> StateGraph:
    graph = StateGraph(State)
    for side in ("left", "right"):
        graph.add_node(side, lambda state, side=side: {"answers": str(interrupt(side))})
        graph.add_edge(START, side)
    return graph


async def ask(lab, builder: StateGraph, *given: Any):
    """Run a graph until it asks, once per input; a new saver each time, as each attempt has."""
    thread = await lab.thread_at_zero()
    graph = builder.compile()
    saver = None
    for one in given or ({"answers": ""},):
        saver = saver_for(lab, thread)
        graph.checkpointer = saver
        await graph.ainvoke(one, {"configurable": {"thread_id": str(thread)}})
    assert saver is not None
    graph.checkpointer = saver
    return thread, saver, await graph.aget_state({"configurable": {"thread_id": str(thread)}}, subgraphs=True)


async def test_question_of_a_plain_node_is_noted_with_its_task(lab):
    _, saver, state = await ask(lab, _line("ask", ask_one))
    (question,) = saver.questions.values()
    assert (question.value, question.checkpoint_ns, question.n) == ({"question": "ok?"}, "", 0)
    assert question.task_id == state.tasks[0].id
    assert question.checkpoint_id == state.config["configurable"]["checkpoint_id"]
    assert saver.head == question.checkpoint_id
    assert [i.id for i in saver.asked[question.task_id]] == [question.interrupt_id]


@pytest.mark.parametrize(
    "builder", [_line("outer", _innermost), _line("outer", _by_hand), _line("outer", _middle)], ids=["1", "hand", "2"]
)
async def test_question_of_a_nested_graph_is_noted_at_the_innermost_task_and_asked_at_the_root(lab, builder):
    _, saver, state = await ask(lab, builder)
    (question,) = saver.questions.values()
    (root,) = state.tasks
    depth = 2 if "outer" in builder.nodes and builder.nodes["outer"].runnable is _middle else 1
    assert question.checkpoint_ns.count(":") == depth
    assert question.checkpoint_ns.startswith(f"outer:{root.id}")
    assert question.task_id != root.id
    assert list(saver.asked) == [root.id]
    assert [i.id for i in saver.asked[root.id]] == [question.interrupt_id] == [i.id for i in state.interrupts]
    row = await lab.one(
        "SELECT count(*) AS n FROM checkpoint_writes WHERE checkpoint_ns = %(ns)s AND checkpoint_id = %(id)s "
        "AND task_id = %(task)s AND channel = '__interrupt__'",
        ns=question.checkpoint_ns,
        id=question.checkpoint_id,
        task=question.task_id,
    )
    assert row == {"n": 1}


async def test_second_question_of_a_task_is_told_apart_from_the_first(lab):
    builder = _line("ask", ask_two)
    _, saver, _ = await ask(lab, builder, {"answers": ""}, Command(resume="yes"))
    (question,) = saver.questions.values()
    assert (question.value, question.n) == ("second", 1)


async def test_parallel_questions_are_all_noted(lab):
    _, saver, _ = await ask(lab, _pair())
    assert sorted(question.value for question in saver.questions.values()) == ["left", "right"]
    assert len(saver.asked) == 2
