"""The patterns under `langgraph dev`: LangGraph's own server loads and runs every one of them, with less.

There a step is kept by LangGraph's own means, a child assistant is called in this process, and nobody enforces a
deadline. The server is used as anybody uses it, from its command line; perdure does not depend on it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from perdure.simulator import start
from tests.conftest import ROOT, clean_environment, reserved_port

START_SECONDS = 180.0
RUN_SECONDS = 120.0
MAX_QUESTIONS = 5

CONFIG: dict[str, Any] = json.loads((ROOT / "langgraph.json").read_text(encoding="utf-8"))
GRAPHS: dict[str, dict[str, Any]] = {
    graph_id: entry for graph_id, entry in CONFIG["graphs"].items() if isinstance(entry, dict) and entry.get("examples")
}
OFFLINE = {
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGGRAPH_CLI_NO_ANALYTICS": "1",
    "HTTP_PROXY": "http://127.0.0.1:9",  # whatever wants to leave this machine fails
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
}


ERRORS = {
    "support": "step.transaction() needs perdure's database",
}
"""What these end with there, and nowhere else: a clear error."""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One `langgraph dev` with all graphs of langgraph.json and the simulated model."""
    folder = tmp_path_factory.mktemp("langgraph-dev")
    graphs = {
        graph_id: {**entry, "path": str(ROOT / entry["path"].removeprefix("./"))} for graph_id, entry in GRAPHS.items()
    }
    (folder / "langgraph.json").write_text(json.dumps({"dependencies": [str(ROOT)], "graphs": graphs}))
    log = folder / "log"
    with start("./graphs/rules.py:rules", config_dir=ROOT) as model, log.open("wb") as output, reserved_port() as port:
        env = clean_environment(
            **OFFLINE,
            OPENAI_API_KEY="simulated",
            OPENAI_BASE_URL=model.openai_url,
            PERDURE_MODEL="openai:simulated-1",
            CODING_SANDBOX=str(folder / "sandbox"),
        )
        words = ["dev", "--no-browser", "--no-reload", "--port", str(port), "--n-jobs-per-worker", "4"]
        process = subprocess.Popen(
            [sys.executable, "-m", "langgraph_cli", *words],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with connected(process, f"http://127.0.0.1:{port}", log) as client:
                yield client
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def connected(process: "subprocess.Popen[bytes]", url: str, log: Path) -> httpx.Client:
    """A client, once the server answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            httpx.get(f"{url}/ok", timeout=RUN_SECONDS, trust_env=False).raise_for_status()
            return httpx.Client(base_url=url, timeout=RUN_SECONDS, trust_env=False)
        except httpx.HTTPError:
            time.sleep(0.1)  # asks a real server again
    pytest.fail(f"langgraph dev did not start:\n{log.read_text(errors='replace')[-5000:]}")


def run(dev: httpx.Client, graph_id: str, example: dict[str, Any]) -> dict[str, Any]:
    """The final values of the example, its questions answered."""
    thread = dev.post("/threads", json={}).raise_for_status().json()["thread_id"]
    body: dict[str, Any] = {"input": example["input"]}
    for _ in range(MAX_QUESTIONS):
        path = f"/threads/{thread}/runs/wait"
        values = dev.post(path, json={"assistant_id": graph_id, **body}).raise_for_status().json()
        asked = values.get("__interrupt__")
        if not asked:
            return values
        body = {"command": {"resume": {question["id"]: example.get("answer", True) for question in asked}}}
    pytest.fail(f"{graph_id} still asks after {MAX_QUESTIONS} answers: {asked}")


def test_every_graph_is_loaded_with_its_schemas(dev: httpx.Client) -> None:
    found = dev.post("/assistants/search", json={"limit": 1000}).raise_for_status().json()
    assert {row["graph_id"] for row in found} == GRAPHS.keys()
    for row in found:
        schemas = dev.get(f"/assistants/{row['assistant_id']}/schemas").raise_for_status().json()
        assert schemas["input_schema"]["properties"], row["graph_id"]


@pytest.mark.parametrize("graph_id", GRAPHS)
def test_first_example_runs(dev: httpx.Client, graph_id: str) -> None:
    example = GRAPHS[graph_id]["examples"][0]
    values = run(dev, graph_id, example)
    if graph_id in ERRORS:
        assert ERRORS[graph_id] in "{error}: {message}".format(**values["__error__"])
    elif example.get("status", 200) >= 400:
        assert "__error__" in values
    else:
        assert "__error__" not in values
        assert any(values.values()), "an answer"
