"""Items found by meaning: LangGraph's store with vectors, table `store_vectors` (LangGraph's).

A search with a `query` is exact: all items below its namespace are compared. LangGraph's own index over all
vectors is not made: filled by many users, the nearest it finds may all be of others, and a search
among few items then finds none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias, cast

from langchain_core.embeddings import Embeddings
from langgraph.store.base import (
    NOT_PROVIDED,
    BaseStore,
    NotProvided,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
)
from langgraph.store.postgres.aio import AsyncPostgresStore

from perdure.engine.db import Pool
from perdure.engine.embedding import Embedder
from perdure.engine.errors import InvalidInput

MAX_VECTORS = 1000  # of one item

Puts: TypeAlias = tuple[list[tuple[str, Sequence[Any]]], tuple[str, Sequence[tuple[str, str, str, str]]] | None]
"""Statements, and the one that writes vectors with its rows: prefix, key, field, text to embed."""

_known: ContextVar[Mapping[str, list[float]]] = ContextVar("known vectors")

FORGET = """
DELETE FROM store_vectors v USING unnest(%s::text[], %s::text[]) AS written (prefix, key)
 WHERE v.prefix = written.prefix AND v.key = written.key
"""
WRITE = """
INSERT INTO store_vectors (prefix, key, field_name, embedding) VALUES """


class VectorStore(AsyncPostgresStore):
    """LangGraph's store; with an embedder, one whose items are found by meaning.

    Upstream embeds while it holds a connection, and for all callers of a moment together: one failure
    would be everybody's. Here each caller embeds for itself, before a connection is taken. An item that is
    written again loses the vectors that it had, and a page of a search begins where the last one ended.
    """

    def __init__(self, pool: Pool, ttl: TTLConfig, embedder: Embedder | None) -> None:
        index: Any = None
        if embedder:
            index = {"dims": embedder.index.dims, "fields": list(embedder.index.fields) or None, "embed": _Known()}
        super().__init__(conn=cast(Any, pool), ttl=ttl, index=index)
        self._embedder = embedder

    async def aput(
        self,
        namespace: tuple[str, ...],
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None = None,
        *,
        ttl: float | NotProvided | None = NOT_PROVIDED,
    ) -> None:
        if self._embedder is None or index is False:
            await super().aput(namespace, key, value, index, ttl=ttl)
        else:
            await BaseStore.aput(self, namespace, key, cast("dict[str, Any]", value), index, ttl=ttl)

    async def asearch(
        self,
        namespace_prefix: tuple[str, ...],
        /,
        *,
        query: str | None = None,
        filter: dict[str, Any] | None = None,
        limit: int = 10,
        offset: int = 0,
        refresh_ttl: bool | None = None,
    ) -> list[SearchItem]:
        asked: Any = {"query": query, "filter": filter, "limit": limit, "offset": offset, "refresh_ttl": refresh_ttl}
        if self._embedder is None or not query:
            return await super().asearch(namespace_prefix, **asked)
        return await BaseStore.asearch(self, namespace_prefix, **asked)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Raises EmbeddingFailed, and InvalidInput for an item of too many texts; nothing has changed then."""
        ops = list(ops)
        texts = self._texts(ops) if self._embedder else []
        if self._embedder is None or not texts:
            return await super().abatch(ops)
        token = _known.set(dict(zip(texts, await self._embedder.embed(texts), strict=True)))
        try:
            return await super().abatch(ops)
        finally:
            _known.reset(token)

    def _texts(self, ops: list[Op]) -> list[str]:
        """What must be embedded to carry these out, each text once."""
        puts = [(n, op) for n, op in enumerate(ops) if isinstance(op, PutOp)]
        _, request = self._prepare_batch_PUT_queries(puts)
        texts = [row[-1] for row in request[1]] if request else []
        texts += [op.query for op in ops if isinstance(op, SearchOp) and op.query]
        return list(dict.fromkeys(texts))

    def _prepare_batch_PUT_queries(self, put_ops: Sequence[tuple[int, PutOp]]) -> Puts:
        queries, request = cast(Puts, cast(Any, super())._prepare_batch_PUT_queries(put_ops))
        if self._embedder is None:
            return queries, request
        written = [op for _, op in put_ops if op.value is not None]
        if written:
            queries.append((FORGET, ([".".join(op.namespace) for op in written], [op.key for op in written])))
        # two paths may lead to one name, and what is blank has no meaning
        texts = {row[:3]: row[3] for row in (request[1] if request else ()) if row[3].strip()}
        if not texts:
            return queries, None
        if len(texts) > MAX_VECTORS * len(written):
            raise InvalidInput("index", f"the fields have {len(texts)} texts; an item may have {MAX_VECTORS}")
        return queries, (
            WRITE + ", ".join(["(%s, %s, %s, %s)"] * len(texts)),
            [(*k, text) for k, text in texts.items()],
        )

    def _prepare_batch_search_queries(
        self, search_ops: Sequence[tuple[int, SearchOp]]
    ) -> tuple[list[tuple[str, list[Any]]], list[tuple[int, str]]]:
        queries, requests = super()._prepare_batch_search_queries(search_ops)
        for n, _ in requests:
            # how many vectors upstream looks at: too few for items that have many, and for later pages
            queries[n][1][-3] = None
        return cast(Any, queries), requests


class _Known(Embeddings):
    """Gives upstream the vectors that were made before. Its synchronous half is abstract and never called."""

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        known = _known.get()
        return [known[text] for text in texts]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise NotImplementedError

    def embed_query(self, text: str) -> list[float]:
        raise NotImplementedError
