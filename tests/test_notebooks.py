"""The notebooks tell the truth: each is executed against real processes, one of which it kills."""

import ast
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Launch, Process, clean_environment

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HTTP_ONLY = {"httpx", "json", "langgraph_sdk", "os", "signal", "time", "uuid"}
SECONDS = 300.0


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def source(notebook: Path) -> str:
    return "\n\n".join("".join(cell["source"]) for cell in cells(notebook, "code"))


def test_there_are_notebooks() -> None:
    assert [notebook.name for notebook in NOTEBOOKS] == ["01_tour.ipynb"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_stored_without_outputs(notebook: Path) -> None:
    assert cells(notebook, "code")
    for cell in cells(notebook, "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_talks_over_http_only_and_ends_in_asserts(notebook: Path) -> None:
    tree = ast.parse(source(notebook))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= HTTP_ONLY
    assert isinstance(tree.body[-1], ast.Assert)


def execute(notebook: Path, folder: Path, **env: str) -> "subprocess.Popen[bytes]":
    """Start nbmake on a notebook; what it says is in `nbmake.log` of the folder."""
    # Not the settings of this repository.
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    words = ["-m", "pytest", "-c", str(folder / "pytest.ini"), "-p", "no:cacheprovider", "--nbmake", str(notebook)]
    places = {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_RUNTIME_DIR": str(folder / "jupyter")}
    with (folder / "nbmake.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=clean_environment(**places, **env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def said(folder: Path) -> str:
    return (folder / "nbmake.log").read_text(errors="replace")


def ended(*processes: "subprocess.Popen[bytes]") -> None:
    """Wait until one of them has ended."""
    end = time.monotonic() + SECONDS
    while all(process.poll() is None for process in processes):
        assert time.monotonic() < end, "nothing has ended"
        time.sleep(0.05)  # looks again


def test_tour_survives_the_kill_of_the_worker(server: Launch, worker: Launch, tmp_path: Path) -> None:
    api: Process = server(slots=0)
    first: Process = worker()
    with execute(NOTEBOOKS[0], tmp_path, PERDURE_URL=api.url, WORKER_PID=str(first.pid)) as notebook:
        try:
            ended(first.popen, notebook)
            assert first.popen.returncode == -signal.SIGKILL, said(tmp_path)
            worker()  # as whatever supervises workers would
            assert notebook.wait(SECONDS) == 0, said(tmp_path)
        finally:
            notebook.kill()
    assert "1 passed" in said(tmp_path)


def test_tour_runs_without_a_process_to_kill(server: Launch, tmp_path: Path) -> None:
    api: Process = server()
    with execute(NOTEBOOKS[0], tmp_path, PERDURE_URL=api.url, WORKER_PID="") as notebook:
        try:
            assert notebook.wait(SECONDS) == 0, said(tmp_path)
        finally:
            notebook.kill()
    assert "1 passed" in said(tmp_path)
    assert api.popen.poll() is None
