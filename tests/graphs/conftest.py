"""Graphs in this process, against the simulator over real HTTP, with a saver in memory."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from langchain_openai import ChatOpenAI
from langchain_openai.chat_models import _client_utils
from langgraph.checkpoint.memory import InMemorySaver

from graphs import models
from perdure.simulator import RunningSimulator, start
from tests.conftest import Launch

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def simulator(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningSimulator]:
    """The rules of this repository, played to the model that the graphs use."""
    monkeypatch.setenv("OPENAI_API_KEY", "simulated")
    monkeypatch.setenv("PERDURE_MODEL", "openai:simulated-1")
    with start("./graphs/rules.py:rules", config_dir=ROOT) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.openai_url)
        models.made.cache_clear()
        yield running
        model = models.made(models.ModelSettings())
        assert isinstance(model, ChatOpenAI)
        await model.root_async_client.close()
    models.made.cache_clear()
    _client_utils._cached_async_httpx_client.cache_clear()  # a later simulator may get the same port


@pytest.fixture
def served() -> Callable[[Any], Any]:
    """Gives a graph the checkpointer that a server brings."""
    return lambda graph: graph.copy({"checkpointer": InMemorySaver()})


@pytest.fixture
def serve(server: Launch, simulator: RunningSimulator, tmp_path: Path) -> Launch:
    """Start a real server that has these patterns only, with the model of `simulator`.

    `port` is for a restart under the same address; `slots` and `env` are those of `server`.
    """

    def start(*graph_ids: str, env: dict[str, str] | None = None, **given: int) -> Any:
        graphs = {graph_id: f"{ROOT}/graphs/{graph_id}.py:graph" for graph_id in graph_ids}
        config = tmp_path / "patterns.json"
        config.write_bytes(orjson.dumps({"dependencies": [str(ROOT)], "graphs": graphs}))
        model = {
            "OPENAI_API_KEY": "simulated",
            "OPENAI_BASE_URL": simulator.openai_url,
            "PERDURE_MODEL": "openai:simulated-1",
        }
        return server(config=config, env={**model, **(env or {})}, **given)

    return start
