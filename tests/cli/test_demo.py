"""`perdure demo`: the story comes true from beginning to end, and nothing of it stays behind."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from perdure.cli import app
from perdure.cli.demo import Story
from perdure.cli.stage import DemoFailed
from perdure.engine.postgres import location
from tests.conftest import clean_environment

DEMO_SECONDS = 300.0  # half a minute on an idle machine; tests run on busy ones
STOP_SECONDS = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """What the demo takes for the machine's temporary directory."""
    with tempfile.TemporaryDirectory(prefix="perdure-test-demo-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def demo(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """`perdure demo --json` in an environment that must not matter: its story on stderr, its report on stdout."""
    env = clean_environment(TMPDIR=str(folder), FAIL_ON_DENVER="false", PERDURE_SLOTS="1", DATABASE_URL="nonsense")
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure.cli", "demo", "--json"],
        cwd=folder,
        env=env
        | {"OPENAI_API_KEY": "sk-real", "HTTP_PROXY": "http://127.0.0.1:9", "PERDURE_MODEL": "openai:gpt-5-mini"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.terminate()


def left_of(folder: Path) -> list[str]:
    """Processes that belong to a demo in this temporary directory, and what it has left there."""
    homes = (str(folder), str(location(folder / "perdure-demo-x").parent / "perdure-demo-"))
    found: list[str] = []
    for process in psutil.process_iter(["cmdline", "cwd", "pid"]):
        words = [*(process.info["cmdline"] or []), process.info["cwd"] or ""]
        if process.pid != os.getpid() and any(home in word for word in words for home in homes):
            found.append(" ".join(words))
    return found + [path.name for path in folder.iterdir()]


def test_every_claim_of_the_story_holds(demo: "subprocess.Popen[str]", folder: Path) -> None:
    stdout, story = demo.communicate(timeout=DEMO_SECONDS)
    assert demo.returncode == 0, story
    report = json.loads(stdout)

    assert {row["call"]: (row["started"], row["finished"]) for row in report["calls"] if "killed" in row["run"]} == {
        "model: which tool": (1, 1),
        "tool: get_weather": (1, 1),
        "model: answer": (2, 1),
    }
    assert all((row["started"], row["finished"]) == (1, 1) for row in report["calls"] if "killed" not in row["run"])
    assert report["attempts"]["Boston, killed"] == 2
    assert 0 < report["takeover_seconds"] < 10
    assert len(report["retries"]) == 3
    for retry in report["retries"]:  # those that it has seen: a short wait may be over before it looks
        assert retry["wait"] == pytest.approx(0.5 * 2 ** (retry["attempt"] - 1), abs=0.05)
    assert report["attempts"]["Denver, outage"] > 3

    assert "SIMULATED" in story
    for claim in report["claims"]:
        assert claim in story
    for part in ("San Francisco", "Approve this claim of 3000 USD", "kill -9 of worker", "next_at", "FAIL_ON_DENVER"):
        assert part in story
    assert f"{len(report['claims'])} claims hold" in story
    assert "\x1b" not in story  # readable in a pipe
    assert max(map(len, story.splitlines())) <= 100
    assert left_of(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_and_removes_everything(
    demo: "subprocess.Popen[str]", folder: Path, number: signal.Signals
) -> None:
    assert demo.stderr
    for line in demo.stderr:
        if "embedded PostgreSQL" in line:  # it runs; API server and workers are being started
            break
    else:
        pytest.fail("the demo ended by itself")
    children = psutil.Process(demo.pid).children(recursive=True)
    assert len(children) >= 2  # the model and the weather service
    demo.send_signal(number)
    demo.communicate(timeout=STOP_SECONDS)
    assert demo.returncode == 128 + number
    assert psutil.wait_procs(children, timeout=30)[1] == []
    end = time.monotonic() + 30
    while left_of(folder) and time.monotonic() < end:
        time.sleep(0.05)  # looks at the folder again
    assert left_of(folder) == []


def test_claim_that_does_not_hold_ends_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    output = StringIO()
    story = Story(Console(file=output))
    story.claim("water is wet", True)
    with pytest.raises(DemoFailed, match="this does not hold: water is dry"):
        story.claim("water is dry", False)
    assert re.search(r"✓ water is wet", output.getvalue())
    assert "dry" not in output.getvalue()

    monkeypatch.setattr(Story, "tell", lambda self: self.claim("water is dry", False))
    monkeypatch.setattr("perdure.logs.setup", lambda settings: None)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    assert "the demo failed: this does not hold: water is dry" in result.output
