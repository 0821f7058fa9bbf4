"""Items found by meaning: what is indexed, ranked, forgotten and refused, with an embedder that counts words."""

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from langgraph.store.base import PutOp, SearchOp, ensure_embeddings
from psycopg import sql
from psycopg.conninfo import make_conninfo

from perdure.engine import embedding
from perdure.engine.db import MigrationError, migrate, open_pool
from perdure.engine.embedding import Embedder, Index, configured
from perdure.engine.errors import EmbeddingFailed, InvalidInput
from perdure.engine.registry import ConfigError, Registry
from perdure.engine.store import Store
from tests.conftest import eventually

WORDS = ("cat", "dog", "sea")


def count_words(texts: list[str]) -> list[list[float]]:
    """How often each word is in a text; a text with `fail` in it fails."""
    if any("fail" in text for text in texts):
        raise RuntimeError("the model is away, its key is secret")
    return [[float(text.count(word)) + 0.01 for word in WORDS] for text in texts]


@asynccontextmanager
async def opened(dsn: str, embed: Any = count_words, fields: tuple[str, ...] = ("text",)) -> AsyncIterator[Store]:
    migrate(dsn, dims=len(WORDS))
    pool = await open_pool(dsn, size=4, name="test")
    try:
        index = Index(len(WORDS), "./words.py:count", fields)
        yield Store(pool, {"omit_expired": True}, Embedder(index, ensure_embeddings(embed)))
    finally:
        await pool.close(timeout=2)


async def found(store: Store, query: str, *prefix: str, **more: Any) -> list[str]:
    return [item.key for item in await store.asearch(prefix or ("n",), query=query, **more)]


def rows(dsn: str) -> list[tuple[str, str]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute("SELECT key, field_name FROM store_vectors ORDER BY 1, 2").fetchall()


async def test_the_nearest_come_first_with_their_score(dsn: str) -> None:
    async with opened(dsn) as store:
        await store.aput(("n",), "pets", {"text": "cat cat dog"})
        await store.aput(("n", "deep"), "beach", {"text": "sea"})
        await store.aput(("n",), "hound", {"text": "dog dog dog"})
        await store.aput(("nearby",), "other", {"text": "dog"})
        await store.aput(("n",), "plain", {"text": "dog"}, index=False)
        ranked = await store.asearch(("n",), query="dog")
        assert [item.key for item in ranked] == ["hound", "pets", "beach"]
        scores = [item.score or 0 for item in ranked]
        assert scores[0] > 0.99
        assert scores == sorted(scores, reverse=True)
        assert await found(store, "dog", filter={"text": "sea"}) == ["beach"]
        assert {item.key: item.score for item in await store.asearch(("n",))}["plain"] is None


async def test_an_item_is_found_by_what_it_says_now(dsn: str) -> None:
    async with opened(dsn) as store:
        await store.aput(("n",), "a", {"text": "cat", "title": "sea"}, index=["text", "title"])
        assert rows(dsn) == [("a", "text"), ("a", "title")]
        await store.aput(("n",), "a", {"text": "dog"})
        assert rows(dsn) == [("a", "text")]
        (item,) = await store.asearch(("n",), query="cat")
        assert (item.score or 0) < 0.1
        await store.aput(("n",), "a", {"text": "dog"}, index=False)
        assert rows(dsn) == []
        await store.aput(("n",), "a", {"text": "dog"})
        await store.adelete(("n",), "a")
        assert rows(dsn) == []


async def test_every_page_is_full_however_many_texts_an_item_has(dsn: str) -> None:
    async with opened(dsn, fields=("notes[*]",)) as store:
        for n in range(12):
            await store.aput(("n",), f"{n:02}", {"notes": ["dog " * (n + 1)] * 20 + ["sea"]})
        pages = [await found(store, "dog", limit=5, offset=offset) for offset in (0, 5, 10)]
        assert [len(page) for page in pages] == [5, 5, 2]
        assert len({key for page in pages for key in page}) == 12
        assert len(await found(store, "dog", limit=5, offset=5, refresh_ttl=True)) == 5


async def test_names_of_fields_that_meet_and_blank_texts_are_no_error(dsn: str) -> None:
    async with opened(dsn) as store:
        value = {"a": [{"0": "cat"}, {"1": "dog"}], "blank": " "}
        await store.aput(("n",), "k", value, index=["a[*]", "a[*].0", "a[*]", "blank", "missing"])
        assert rows(dsn) == [("k", "a[*].0"), ("k", "a[*].1")]
        with pytest.raises(InvalidInput, match="an item may have"):
            await store.aput(("n",), "many", {"a": [str(n) for n in range(1001)]}, index=["a[*]"])


async def test_a_failing_embedder_writes_nothing_and_fails_nobody_else(dsn: str) -> None:
    async with opened(dsn) as store:
        await store.aput(("n",), "a", {"text": "cat"})
        attempts = await asyncio.gather(
            store.aput(("n",), "a", {"text": "fail"}),
            store.aput(("n",), "b", {"text": "dog"}),
            store.aget(("n",), "a"),
            store.asearch(("n",), query="fail"),
            return_exceptions=True,
        )
        failed = [one for one in attempts if isinstance(one, BaseException)]
        assert [type(one) for one in failed] == [EmbeddingFailed, EmbeddingFailed]
        assert str(failed[0]) == "store.index.embed (./words.py:count) failed: RuntimeError"
        item = await store.aget(("n",), "a")
        assert item is not None
        assert item.value == {"text": "cat"}
        assert await found(store, "dog") == ["b", "a"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([[1.0, 2.0]], "a vector of 2 numbers; store.index.dims is 3"),
        ([[1.0, 2.0, float("nan")]], "not finite"),
        ([], "0 vectors for 1 texts"),
        (None, "TypeError"),
    ],
)
async def test_a_wrong_answer_of_the_embedder_is_an_error_of_it(dsn: str, answer: Any, says: str) -> None:
    async with opened(dsn, lambda texts: answer) as store:
        with pytest.raises(EmbeddingFailed, match=says):
            await store.aput(("n",), "a", {"text": "cat"})
        assert await store.aget(("n",), "a") is None


async def test_code_that_blocks_blocks_neither_the_loop_nor_the_connections(dsn: str) -> None:
    release = threading.Event()

    async def blocks(texts: list[str]) -> list[list[float]]:
        assert release.wait(120)
        return count_words(texts)

    async with opened(dsn, blocks) as store:
        puts = [asyncio.create_task(store.aput(("n",), str(n), {"text": "cat"})) for n in range(10)]
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await store.aput(("n",), "plain", {"text": "sea"}, index=False)  # there are four connections
        assert not any(put.done() for put in puts)
        release.set()
        await asyncio.gather(*puts)
        assert len(await found(store, "cat", limit=20)) == 10


async def test_a_hanging_embedder_is_given_up(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(texts: list[str]) -> list[list[float]]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(embedding, "EMBED_SECONDS", 0.1)
    async with opened(dsn, hangs) as store:
        with pytest.raises(EmbeddingFailed, match="TimeoutError"):
            await found(store, "cat")


async def test_a_batch_of_an_author_embeds_each_text_once(dsn: str) -> None:
    asked: list[list[str]] = []

    def counting(texts: list[str]) -> list[list[float]]:
        asked.append(texts)
        return count_words(texts)

    async with opened(dsn, counting) as store:
        await store.abatch([PutOp(("n",), "a", {"text": "cat"}), PutOp(("n",), "b", {"text": "cat"})])
        results = await store.abatch([SearchOp(("n",), query="cat"), PutOp(("n",), "c", None)])
        assert asked == [["cat"], ["cat"]]
        found: Any = results[0]
        assert {item.key for item in found} == {"a", "b"}


def test_the_vectors_that_are_there_must_have_the_size_that_is_asked_for(dsn: str) -> None:
    migrate(dsn, dims=3)
    migrate(dsn, dims=3)
    migrate(dsn)
    with pytest.raises(MigrationError, match=r"store\.index\.dims .* is 4, but the vectors in the database have 3"):
        migrate(dsn, dims=4)


def test_without_pgvector_the_start_names_the_setting(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA bare CREATE VIEW pg_available_extensions AS SELECT '' AS name")
    bare = make_conninfo(dsn, options="-c search_path=public,bare,pg_catalog")
    with pytest.raises(MigrationError, match=r"store\.index .* needs the PostgreSQL extension pgvector.* install it"):
        migrate(bare, dims=3)
    migrate(bare)


def test_without_the_right_to_make_the_extension_the_start_says_who_has_it(dsn: str) -> None:
    name = f"limited_{uuid4().hex}"
    role = sql.Identifier(name)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE ROLE {}").format(role))
        try:
            conn.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(role))
            conn.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA public TO {}").format(role))
            with pytest.raises(MigrationError, match=r"let an administrator .* execute CREATE EXTENSION vector"):
                migrate(make_conninfo(dsn, options=f"-c role={name}"), dims=3)
        finally:
            conn.execute(sql.SQL("DROP OWNED BY {}").format(role))
            conn.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ([], r"store\.index: \[\] is not an object"),
        ({}, r"store\.index\.dims: None"),
        ({"dims": 0, "embed": "a:b"}, r"store\.index\.dims: 0"),
        ({"dims": True, "embed": "a:b"}, r"store\.index\.dims: True"),
        ({"dims": 3, "embed": "openai"}, r"store\.index\.embed: 'openai'"),
        ({"dims": 3, "embed": "a:b", "fields": ["x" * 501]}, r"store\.index\.fields"),
        ({"dims": 3, "embed": "a:b", "fields": 5}, r"store\.index\.fields"),
        ({"dims": 3, "embed": "a:b", "kind": "hnsw"}, r"store\.index: 'kind' is not known"),
    ],
)
def test_a_wrong_setting_is_named(index: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        configured({"store": {"index": index}})


@pytest.mark.parametrize(
    ("embed", "says"),
    [
        ("./words_of_test.py:missing", "has no attribute 'missing'"),
        ("./words_of_test.py:NUMBER", "is a int; expected a function or Embeddings"),
        ("nobody:model", "cannot be used"),
    ],
)
def test_an_embedder_that_cannot_be_loaded_is_named_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embed: str, says: str
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    module = f"words_{uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(
        "from langgraph.graph import StateGraph\nNUMBER = 1\n"
        "graph = StateGraph(dict).add_node('n', lambda s: s).set_entry_point('n').compile()\n"
    )
    file = tmp_path / "langgraph.json"
    index = {"dims": 3, "embed": embed.replace("words_of_test", module)}
    file.write_text(json.dumps({"graphs": {"g": f"./{module}.py:graph"}, "store": {"index": index}}))
    with pytest.raises(ConfigError, match=r"store\.index\.embed") as caught:
        Registry.load(file)
    assert says in str(caught.value)


SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON store_vectors FOR EACH ROW EXECUTE FUNCTION slow();
"""
SLEEPING = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"


async def test_a_connection_that_dies_between_an_item_and_its_vectors_leaves_both_as_they_were(dsn: str) -> None:
    """The item and the removal of its old vectors have been executed; the new vectors are being written."""
    async with opened(dsn) as store:
        await store.aput(("n",), "a", {"text": "cat"})
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(SLOW)
            writing = asyncio.create_task(store.aput(("n",), "a", {"text": "dog"}))
            await asyncio.to_thread(
                eventually, lambda: conn.execute("SELECT count(*) " + SLEEPING).fetchone(), lambda row: row == (1,)
            )
            conn.execute("SELECT pg_terminate_backend(pid) " + SLEEPING)
            with pytest.raises(psycopg.OperationalError):
                await writing
            assert conn.execute("SELECT value FROM store").fetchall() == [({"text": "cat"},)]
        assert rows(dsn) == [("a", "text")]
        (item,) = await store.asearch(("n",), query="cat")
        assert (item.score or 0) > 0.9
