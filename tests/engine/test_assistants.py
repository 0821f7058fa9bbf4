"""Assistants: versions that restore everything, filters that mean what they say."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from perdure.engine import assistants, db, defaults, threads, versions
from perdure.engine.errors import AssistantExists, AssistantNotFound, GraphNotFound, InvalidInput
from perdure.engine.registry import GraphEntry, Registry


@pytest.fixture
async def engine(dsn):
    """Two graphs that are never opened: assistants need their names only."""
    entries = {
        "chat": GraphEntry("chat", "m:chat", "Talks", graph=None),
        "steps": GraphEntry("steps", "m:steps", None, graph=None),
    }
    pool = await db.open_pool(dsn, size=4, name="test")
    yield SimpleNamespace(registry=Registry({}, entries), pool=pool, dsn=dsn)
    await pool.close()


async def test_defaults_are_made_once_by_any_number_of_starts(engine):
    await asyncio.gather(*(defaults.ensure_defaults(engine) for _ in range(8)))
    rows, total = await assistants.search(engine, sort_by="name", sort_order="asc")
    assert total == 2
    assert [(r["name"], r["graph_id"], r["version"], r["description"]) for r in rows] == [
        ("chat", "chat", 1, "Talks"),
        ("steps", "steps", 1, None),
    ]
    assert rows[0]["assistant_id"] == Registry.default_assistant_id("chat")
    assert rows[0]["metadata"] == {"created_by": "system"}
    assert rows[0]["config"] == rows[0]["context"] == {}
    assert [v["version"] for v in await versions.search(engine, rows[0]["assistant_id"])] == [1]


async def test_a_default_that_was_changed_stays_and_a_deleted_one_comes_back(engine):
    await defaults.ensure_defaults(engine)
    chat, steps = map(Registry.default_assistant_id, ("chat", "steps"))
    await assistants.patch(engine, chat, name="my chat")
    await assistants.delete(engine, steps)
    await defaults.ensure_defaults(engine)
    assert (await assistants.get(engine, chat))["name"] == "my chat"
    assert (await assistants.get(engine, steps))["version"] == 1


async def test_description_of_an_unchanged_default_is_that_of_today(engine):
    await defaults.ensure_defaults(engine)
    chat, steps = map(Registry.default_assistant_id, ("chat", "steps"))
    await assistants.patch(engine, chat, description="mine")
    for graph_id, entry in engine.registry.graphs.items():
        engine.registry.graphs[graph_id] = replace(entry, description="new")
    await asyncio.gather(*(defaults.ensure_defaults(engine) for _ in range(8)))
    assert (await assistants.get(engine, chat))["description"] == "mine"
    assert (await assistants.get(engine, steps))["description"] == "new"
    assert [v["description"] for v in await versions.search(engine, steps)] == ["new"]


async def test_create_with_defaults_and_with_everything(engine):
    plain = await assistants.create(engine, graph_id="chat")
    assert plain["name"] == "Untitled"
    assert (plain["version"], plain["config"], plain["context"], plain["metadata"]) == (1, {}, {}, {})
    assert plain["created_at"] == plain["updated_at"]
    assert plain["created_at"].utcoffset() is not None
    mine = uuid4()
    full = await assistants.create(
        engine, graph_id="chat", assistant_id=mine, name="n", description="d", metadata={"k": {"a": 1}}
    )
    assert (full["assistant_id"], full["description"], full["metadata"]) == (mine, "d", {"k": {"a": 1}})
    assert await assistants.get(engine, mine) == full


async def test_create_again(engine):
    first = await assistants.create(engine, graph_id="chat", name="first")
    again = {"graph_id": "steps", "assistant_id": first["assistant_id"], "name": "second"}
    with pytest.raises(AssistantExists, match=str(first["assistant_id"])):
        await assistants.create(engine, **again)
    assert await assistants.create(engine, **again, if_exists="do_nothing") == first
    assert len(await versions.search(engine, first["assistant_id"])) == 1


async def test_create_for_an_unknown_graph_names_the_known(engine):
    with pytest.raises(GraphNotFound, match="defines: chat, steps"):
        await assistants.create(engine, graph_id="zzz")


@pytest.mark.parametrize(
    ("given", "config", "context"),
    [
        ({"config": {"configurable": {"a": 1}}}, {"configurable": {"a": 1}}, {"a": 1}),
        ({"context": {"a": 1}}, {"configurable": {"a": 1}}, {"a": 1}),
        (
            {"config": {"tags": ["t"]}, "context": {"a": 1}},
            {"tags": ["t"], "configurable": {"a": 1}},
            {"a": 1},
        ),
        ({"config": {"tags": ["t"]}}, {"tags": ["t"]}, {}),
        ({"config": {"configurable": {}}, "context": {}}, {"configurable": {}}, {}),
    ],
)
async def test_configurable_and_context_mirror_each_other(engine, given, config, context):
    made = await assistants.create(engine, graph_id="chat", **given)
    assert (made["config"], made["context"]) == (config, context)
    patched = await assistants.patch(
        engine, (await assistants.create(engine, graph_id="chat"))["assistant_id"], **given
    )
    assert (patched["config"], patched["context"]) == (config, context)


async def test_both_configurable_and_context_is_an_error(engine):
    both = {"config": {"configurable": {"a": 1}}, "context": {"a": 1}}
    made = await assistants.create(engine, graph_id="chat")
    for call in (
        assistants.create(engine, graph_id="chat", **both),
        assistants.patch(engine, made["assistant_id"], **both),
    ):
        with pytest.raises(InvalidInput, match="both configurable and context") as refused:
            await call
        assert refused.value.status == 400


async def test_patch_makes_a_version_merges_metadata_and_replaces_config(engine):
    made = await assistants.create(
        engine,
        graph_id="chat",
        metadata={"a": 1, "deep": {"x": 1}},
        config={"tags": ["t"], "configurable": {"c": 1}},
    )
    key = made["assistant_id"]
    named = await assistants.patch(engine, key, name="renamed", metadata={"b": 2, "deep": {"y": 1}})
    assert (named["version"], named["name"]) == (2, "renamed")
    assert named["metadata"] == {"a": 1, "b": 2, "deep": {"y": 1}}
    assert (named["config"], named["context"]) == (made["config"], made["context"])
    assert named["created_at"] == made["created_at"] < named["updated_at"]
    context = await assistants.patch(engine, key, context={"c": 2})
    assert context["config"] == {"tags": ["t"], "configurable": {"c": 2}}
    config = await assistants.patch(engine, key, config={})
    assert (config["version"], config["config"], config["context"]) == (4, {}, {})
    assert (await assistants.patch(engine, key))["version"] == 5
    with pytest.raises(GraphNotFound):
        await assistants.patch(engine, key, graph_id="zzz")
    with pytest.raises(AssistantNotFound):
        await assistants.patch(engine, uuid4(), name="x")


async def test_concurrent_patches_get_consecutive_versions(engine):
    made = await assistants.create(engine, graph_id="chat")
    patches = (assistants.patch(engine, made["assistant_id"], metadata={str(i): i}) for i in range(10))
    rows = await asyncio.gather(*patches)
    assert sorted(r["version"] for r in rows) == list(range(2, 12))
    last = await assistants.get(engine, made["assistant_id"])
    assert last["version"] == 11
    assert len(last["metadata"]) == 10


async def test_set_latest_restores_everything_and_the_next_patch_takes_a_new_number(engine):
    first = await assistants.create(
        engine, graph_id="chat", name="one", description="d1", metadata={"v": 1}, context={"c": 1}
    )
    key = first["assistant_id"]
    await assistants.patch(
        engine, key, graph_id="steps", name="two", description="d2", metadata={"w": 2}, context={"c": 2}
    )
    back = await versions.set_latest(engine, key, 1)
    assert {k: v for k, v in back.items() if k != "updated_at"} == {k: v for k, v in first.items() if k != "updated_at"}
    assert (await assistants.patch(engine, key))["version"] == 3
    for unknown in (9, 0, -1, 10**30):
        with pytest.raises(AssistantNotFound, match=f"has no version {unknown}"):
            await versions.set_latest(engine, key, unknown)
    missing = uuid4()
    with pytest.raises(AssistantNotFound, match=f"{missing} not found"):
        await versions.set_latest(engine, missing, 1)


async def test_versions_are_newest_first_without_updated_at(engine):
    made = await assistants.create(engine, graph_id="chat", metadata={"a": 1})
    key = made["assistant_id"]
    await assistants.patch(engine, key, metadata={"b": 1})
    await assistants.patch(engine, key)
    rows = await versions.search(engine, key)
    assert [r["version"] for r in rows] == [3, 2, 1]
    assert set(made) - set(rows[0]) == {"updated_at"}
    assert [r["version"] for r in await versions.search(engine, key, limit=1, offset=1)] == [2]
    assert [r["version"] for r in await versions.search(engine, key, metadata={"b": 1})] == [3, 2]
    assert await versions.search(engine, key, offset=10**30) == []
    with pytest.raises(AssistantNotFound):
        await versions.search(engine, uuid4())


async def test_search_filters_sorts_and_counts(engine):
    for i, name in enumerate(("Refund bot", "refund_bot 50%", "Other")):
        graph = "chat" if i < 2 else "steps"
        await assistants.create(engine, graph_id=graph, name=name, metadata={"n": i, "deep": {"a": 1, "b": i}})

    async def names(**given):
        rows, total = await assistants.search(engine, **given)
        assert total == await assistants.count(
            engine, **{k: v for k, v in given.items() if k in ("graph_id", "name", "metadata")}
        )
        return [r["name"] for r in rows]

    assert await names() == ["Other", "refund_bot 50%", "Refund bot"]
    assert await names(graph_id="steps") == ["Other"]
    assert await names(name="REFUND") == ["refund_bot 50%", "Refund bot"]
    assert await names(name="d_b") == ["refund_bot 50%"]
    assert await names(name="0%") == ["refund_bot 50%"]
    assert await names(name="\\") == []
    assert await names(metadata={"deep": {"a": 1}}, sort_by="created_at", sort_order="asc", limit=2) == [
        "Refund bot",
        "refund_bot 50%",
    ]
    assert await names(metadata={"deep": {"b": 2}}) == ["Other"]
    assert await names(offset=10**30) == []
    for by in ("assistant_id", "created_at", "updated_at", "name", "graph_id"):
        up, down = await names(sort_by=by, sort_order="asc"), await names(sort_by=by, sort_order="desc")
        assert len(up) == 3
        if by != "graph_id":  # not unique
            assert up == down[::-1]
    rows, total = await assistants.search(engine, limit=1, offset=1)
    assert (len(rows), total) == (1, 3)
    with pytest.raises(GraphNotFound):
        await assistants.search(engine, graph_id="zzz")
    with pytest.raises(GraphNotFound):
        await assistants.count(engine, graph_id="zzz")
    with pytest.raises(InvalidInput, match="sort_by: must be one of"):
        await assistants.search(engine, sort_by="version; DROP TABLE assistants")


async def test_nul_in_text_is_refused(engine):
    made = await assistants.create(engine, graph_id="chat", metadata={"a\x00": "b\x00"})
    assert made["metadata"] == {"a": "b"}
    for call in (
        assistants.create(engine, graph_id="chat", name="a\x00"),
        assistants.patch(engine, made["assistant_id"], description="a\x00"),
        assistants.search(engine, name="a\x00"),
    ):
        with pytest.raises(InvalidInput, match="NUL"):
            await call


async def test_resolve_takes_a_uuid_or_a_graph_name(engine):
    await defaults.ensure_defaults(engine)
    made = await assistants.create(engine, graph_id="chat")
    async with engine.pool.connection() as conn:
        assert await assistants.resolve(engine, conn, str(made["assistant_id"])) == made
        default = await assistants.resolve(engine, conn, "chat")
        assert default["assistant_id"] == Registry.default_assistant_id("chat")
        with pytest.raises(AssistantNotFound):
            await assistants.resolve(engine, conn, str(UUID(int=5)))
        for text in ("zzz", "", "\x00", "a" * 10_000):
            with pytest.raises(GraphNotFound):
                await assistants.resolve(engine, conn, text)


@pytest.mark.parametrize("count", [4, 5])
async def test_delete_with_many_threads_goes_on_where_a_crash_has_cut_it_short(engine, monkeypatch, count):
    made = await assistants.create(engine, graph_id="chat")
    ident = made["assistant_id"]
    metadata = db.jsonb({"assistant_id": ident})
    async with engine.pool.connection() as conn:
        for _ in range(count):
            await conn.execute("INSERT INTO threads (thread_id, metadata) VALUES (%s, %s)", [uuid4(), metadata])

        async def threads_left() -> int:
            return len(await (await conn.execute("SELECT 1 FROM threads")).fetchall())

        monkeypatch.setattr(assistants, "THREADS_AT_ONCE", 2)
        really, batches = threads.delete_rows, []

        async def delete_rows(conn, ids):
            gone = await really(conn, ids)
            batches.append(len(ids))
            if len(batches) == 2:
                raise ConnectionError("the process has died before this commit")
            return gone

        monkeypatch.setattr(threads, "delete_rows", delete_rows)
        with pytest.raises(ConnectionError):
            await assistants.delete(engine, ident, delete_threads=True)
        assert await threads_left() == count - 2
        assert (await assistants.get(engine, ident))["assistant_id"] == ident
        await assistants.delete(engine, ident, delete_threads=True)
        assert await threads_left() == 0
        assert max(batches) == 2
    with pytest.raises(AssistantNotFound):
        await assistants.get(engine, ident)


async def test_delete_takes_versions_and_on_request_threads(engine):
    made, other = [await assistants.create(engine, graph_id="chat") for _ in range(2)]
    mine, kept = uuid4(), uuid4()
    async with engine.pool.connection() as conn:
        for thread_id, assistant in ((mine, made), (kept, other)):
            await conn.execute(
                "INSERT INTO threads (thread_id, metadata) VALUES (%(thread_id)s, %(metadata)s)",
                {"thread_id": thread_id, "metadata": db.jsonb({"assistant_id": assistant["assistant_id"]})},
            )
        await assistants.delete(engine, made["assistant_id"], delete_threads=True)
        await assistants.delete(engine, other["assistant_id"])
        left = await (await conn.execute("SELECT thread_id FROM threads")).fetchall()
        versions = await (await conn.execute("SELECT 1 FROM assistant_versions")).fetchall()
    assert [row["thread_id"] for row in left] == [kept]
    assert versions == []
    with pytest.raises(AssistantNotFound):
        await assistants.delete(engine, made["assistant_id"])
    with pytest.raises(AssistantNotFound):
        await assistants.get(engine, made["assistant_id"])
