"""The wheel as users get it: what is in it, and that it serves projects with folders called as ours are."""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, STOP_SECONDS, Process, clean_environment

RUN_SECONDS = 60.0

GRAPH = """
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict


{note}

class State(TypedDict):
    notes: list[Note]


def node(state: State) -> State:
    seen = state.get("notes") or []
    assert all(isinstance(note, Note) for note in seen), seen
    return {{"notes": [*seen, Note(f"note {{len(seen) + 1}}")]}}


builder = StateGraph(State)
builder.add_node("node", node)
builder.add_edge(START, "node")
graph = builder.compile()
"""
NOTE = """
from dataclasses import dataclass


@dataclass
class Note:
    text: str
"""

PROJECTS: dict[str, dict[str, str]] = {
    # kind: its files; the first is the one that langgraph.json names
    "graphs.py": {"graphs.py": GRAPH.format(note=NOTE)},
    "graphs folder": {
        "graphs/notes.py": GRAPH.format(note="from graphs.helpers import Note"),
        "graphs/__init__.py": "",
        "graphs/helpers.py": NOTE,
    },
    "server.py": {"server.py": GRAPH.format(note=NOTE)},
}
"""Graphs that keep an object of a class of their own in their state: a checkpoint names its module."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, env=clean_environment(), check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path) -> Iterator[Path]:
    """The Python of an environment with the wheel in it, and our dependencies without our checkout."""
    with tempfile.TemporaryDirectory(prefix="perdure-wheel-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        venv.create(folder, symlinks=True, with_pip=False)
        site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        # A folder that is added this way is searched for packages, but its own .pth files, of which one names
        # the checkout, are not read.
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        yield folder / "bin" / "python"


def environment(**given: str) -> dict[str, str]:
    """Where nothing but the wheel says what `perdure` is."""
    return {name: value for name, value in clean_environment(**given).items() if name != "PYTHONPATH"}


def ask(python: Path, code: str, cwd: Path) -> str:
    done = subprocess.run(
        [str(python), "-c", code], cwd=cwd, env=environment(), check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def serve(python: Path, dsn: str, tmp_path: Path) -> Iterator[Callable[[Path], Process]]:
    """Start `perdure serve` in a project, with the wheel."""
    started: list[Process] = []

    def start(project: Path) -> Process:
        log = tmp_path / f"server-{len(started)}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [str(python), "-m", "perdure.cli", "serve", "--port", "0", "--slots", "2"],
                cwd=project,
                env=environment(DATABASE_URL=dsn),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = Process(popen, log)
        started.append(process)
        process.url = process.until(r"http://127\.0\.0\.1:\d+")[0]
        return process

    yield start
    for process in started:
        process.stop()


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(name for name in names if name.endswith("/entry_points.txt"))).decode()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"perdure", next(top for top in tops if top.endswith(".dist-info"))}
    assert "perdure = perdure.cli:main" in entry_points
    assert "perdure/py.typed" in names
    for file in [*(ROOT / "server").rglob("*.py"), *(ROOT / "server").rglob("*.sql")]:
        assert str(file.relative_to(ROOT / "server")) in names
    assert "perdure/examples/langgraph.json" in names
    for file in (ROOT / "graphs").rglob("*.py"):
        assert f"perdure/examples/{file.relative_to(ROOT)}" in names
    odd = [name for name in names if "test" in name or "__pycache__" in name or name.endswith((".pyc", ".env"))]
    assert odd == []
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_environment_has_the_wheel_and_not_the_checkout(python: Path, tmp_path: Path) -> None:
    assert Path(ask(python, "import perdure; print(perdure.__file__)", tmp_path)).is_relative_to(python.parents[1])
    for name in ("graphs", "server"):
        found = ask(python, f"import importlib.util as u; print(u.find_spec({name!r}))", tmp_path)
        assert found == "None", f"the wheel takes the name {name}: {found}"
    paths = ask(python, "import sys; print('\\n'.join(sys.path))", tmp_path).splitlines()
    assert str(ROOT) not in paths
    assert str(ROOT / "server") not in paths


@pytest.mark.parametrize("kind", PROJECTS)
def test_project_is_served_and_its_checkpoints_are_read_after_a_restart(
    kind: str, serve: Callable[[Path], Process], tmp_path: Path
) -> None:
    files = PROJECTS[kind]
    project = tmp_path / "project"
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    (project / "langgraph.json").write_text(f'{{"graphs": {{"notes": "./{next(iter(files))}:graph"}}}}')

    first = serve(project)
    answer = httpx.post(f"{first.url}/agents/notes/mine/run", json={}, timeout=RUN_SECONDS)
    assert (answer.status_code, answer.json()) == (200, {"notes": [{"text": "note 1"}]}), first.output
    assert first.stop() == 0

    second = serve(project)
    answer = httpx.get(f"{second.url}/agents/notes/mine/state", timeout=RUN_SECONDS)
    assert (answer.status_code, answer.json()) == (200, {"notes": [{"text": "note 1"}]}), second.output
    answer = httpx.post(f"{second.url}/agents/notes/mine/run", json={}, timeout=RUN_SECONDS)
    assert answer.json() == {"notes": [{"text": "note 1"}, {"text": "note 2"}]}, second.output
    assert second.stop() == 0


def test_demo_is_in_the_wheel_and_finds_its_graphs(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(python), "-m", "perdure.cli", "demo", "--help"],
        cwd=tmp_path,
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=STOP_SECONDS,
    )
    assert "kill -9" in done.stdout
    examples = Path(ask(python, "from perdure.cli.stage import examples; print(examples())", tmp_path))
    assert examples.is_relative_to(python.parents[1])
    # the graphs that it serves can be imported from there, under their own names
    load = "from pathlib import Path; from perdure.engine.registry import Registry; "
    load += f"r = Registry.load(Path({str(examples)!r}) / 'langgraph.json'); import graphs; print(graphs.__file__)"
    assert Path(ask(python, load, tmp_path).splitlines()[-1]).is_relative_to(examples)
    assert os.listdir(tmp_path) == []
