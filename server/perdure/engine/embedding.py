"""`store.index` of langgraph.json: which texts of the store's items become vectors, and who makes them.

    "store": {"index": {"dims": 1536, "embed": "openai:text-embedding-3-small", "fields": ["text"]}}

`embed` is a model of LangChain as `provider:model`, or `./file.py:attribute`: an `Embeddings` object, or a
function, async or not, from a list of texts to a list of vectors. `fields` are paths into an item's
value; without them the whole value is one text.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
import structlog
from langchain_core.embeddings import Embeddings
from langgraph.store.base import ensure_embeddings

from perdure.engine import loops
from perdure.engine.errors import EmbeddingFailed

log = structlog.get_logger(__name__)

MAX_DIMS = 16_000  # what pgvector's type holds
MAX_FIELDS = 100
MAX_FIELD_BYTES = 500  # with the name of the item an index row, which PostgreSQL limits to 2,704
EMBED_SECONDS = 60


@dataclass(frozen=True)
class Index:
    """What langgraph.json says."""

    dims: int
    embed: str
    fields: tuple[str, ...] = ()


def configured(config: Mapping[str, Any]) -> Index | None:
    """The index that langgraph.json asks for. Raises ValueError, which names the setting."""
    section: Any = config.get("store")
    given: Any = cast("dict[str, Any]", section).get("index") if isinstance(section, dict) else None
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ValueError(f"store.index: {given!r} is not an object like {{'dims': 1536, 'embed': 'provider:model'}}")
    values = cast("dict[str, Any]", given)
    if unknown := values.keys() - {"dims", "embed", "fields"}:
        raise ValueError(f"store.index: {sorted(unknown)[0]!r} is not known; there are dims, embed and fields")
    dims, embed, fields = values.get("dims"), values.get("embed"), values.get("fields")
    if not isinstance(dims, int) or isinstance(dims, bool) or not 1 <= dims <= MAX_DIMS:
        raise ValueError(f"store.index.dims: {dims!r} is no number of dimensions from 1 to {MAX_DIMS}")
    if not isinstance(embed, str) or not all(embed.rpartition(":")[::2]):
        raise ValueError(f"store.index.embed: {embed!r} is neither 'provider:model' nor './file.py:function'")
    paths = cast("list[Any]", fields or []) if isinstance(fields, list | None) else [fields]
    if len(paths) > MAX_FIELDS or not all(isinstance(path, str) and is_field(path) for path in paths):
        raise ValueError(f"store.index.fields: must be at most {MAX_FIELDS} paths such as 'text' or 'notes[*].title'")
    return Index(dims, embed, tuple(dict.fromkeys(paths)))


def is_field(path: str) -> bool:
    """Whether a path into a value may be indexed."""
    return len(path.encode()) <= MAX_FIELD_BYTES and "\0" not in path


def dims(config_path: Path) -> int | None:
    """How long the vectors are that this langgraph.json asks for; None without any.

    For migrations, which import no graph: whoever loads the graphs reports a broken file, with its cause.
    """
    try:
        raw: Any = orjson.loads(config_path.read_bytes())
        index = configured(cast("dict[str, Any]", raw)) if isinstance(raw, dict) else None
    except (OSError, ValueError):
        return None
    return index.dims if index else None


def load(config: Mapping[str, Any], named: Callable[[str, Any], Any]) -> Embedder | None:
    """The embedder of langgraph.json; `named` imports what a section names as `./file.py:attribute`.

    Raises ValueError, which names the setting, and what `named` raises.
    """
    index = configured(config)
    if index is None:
        return None
    where = index.embed.rpartition(":")[0]
    local = "/" in where or where.endswith(".py")
    made: Any = named("store.index.embed", index.embed) if local else index.embed
    if not isinstance(made, str | Embeddings) and not callable(made):
        kind = type(made).__name__
        raise ValueError(f"store.index.embed ({index.embed}) is a {kind}; expected a function or Embeddings")
    try:
        return Embedder(index, ensure_embeddings(cast(Any, made)))
    except Exception as exc:  # whatever a provider's client says when it is made: no key, no package
        raise ValueError(f"store.index.embed ({index.embed}) cannot be used: {type(exc).__name__}: {exc}") from exc


class Embedder:
    """Makes vectors, on an event loop of its own in a thread of its own, for all loops of the process.

    Author code that blocks blocks nothing else there, and an async client stays on the loop that it began on.
    """

    def __init__(self, index: Index, embeddings: Embeddings) -> None:
        self.index = index
        self._embeddings = embeddings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text. Raises EmbeddingFailed, also after `EMBED_SECONDS` and for a wrong size."""
        try:
            asked = asyncio.run_coroutine_threadsafe(self._embeddings.aembed_documents(texts), self._own_loop())
            async with asyncio.timeout(EMBED_SECONDS):
                made: Any = await asyncio.wrap_future(asked)
            return self._checked(made, len(texts))
        except Exception as exc:
            log.warning("embedding failed", texts=len(texts), error=repr(exc))
            name = f"store.index.embed ({self.index.embed})"
            said = str(exc) if isinstance(exc, _WrongAnswer) else type(exc).__name__
            raise EmbeddingFailed(f"{name} failed: {said}") from exc

    def _checked(self, made: Any, wanted: int) -> list[list[float]]:
        vectors = [[float(number) for number in vector] for vector in made]
        if len(vectors) != wanted:
            raise _WrongAnswer(f"{len(vectors)} vectors for {wanted} texts")
        for vector in vectors:
            if len(vector) != self.index.dims:
                raise _WrongAnswer(f"a vector of {len(vector)} numbers; store.index.dims is {self.index.dims}")
            if not all(map(math.isfinite, vector)):
                raise _WrongAnswer("a vector with a number that is not finite")
        return vectors

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                ready = threading.Event()
                threading.Thread(target=loops.run, args=(self._turn(ready),), name="perdure-embed", daemon=True).start()
                ready.wait()
            assert self._loop is not None
            return self._loop

    async def _turn(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        ready.set()
        await asyncio.Event().wait()  # until the process ends


class _WrongAnswer(Exception):
    """The embedder has answered, but not with what was asked for."""
