"""The benchmarks run: every case and every way of keeping checkpoints gives numbers without an error."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, clean_environment

CASES = ["seq", "steps", "stateless", "chat", "fanout", "approval", "stream", "burst"]
SECONDS = 300


def measured(tmp_path: Path, dsn: str, module: str, *arguments: str) -> tuple[str, Any]:
    """What a benchmark prints and what it writes."""
    file = tmp_path / "numbers.json"
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--database-url", dsn, "--json", str(file)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout, json.loads(file.read_text())


def test_every_case_is_measured_without_an_error(tmp_path: Path, dsn: str) -> None:
    printed, numbers = measured(tmp_path, dsn, "bench", "--n", "3", "--concurrency", "2")
    assert [line.split()[0] for line in printed.splitlines()] == ["case", *CASES]
    assert [result["case"] for result in numbers["cases"]] == CASES
    for result in numbers["cases"]:
        assert result["errors"] == 0
        assert result["ok"] > 0
        assert result["per_s"] > 0
        assert 0 < result["p50_ms"] <= result["p99_ms"]


def test_cases_can_be_chosen(tmp_path: Path, dsn: str) -> None:
    _, numbers = measured(tmp_path, dsn, "bench", "seq", "--n", "1")
    assert [result["case"] for result in numbers["cases"]] == ["seq"]


def test_checkpointers_are_compared(tmp_path: Path, dsn: str) -> None:
    small = ("--runs", "4", "--rounds", "2", "--nodes", "3", "--concurrency", "2")
    printed, numbers = measured(tmp_path, dsn, "bench.saver", *small)
    for way in ("no checkpointer", "stock", "stock, one per run", "perdure"):
        assert way in printed
        assert [one["steps_per_s"] > 0 for one in numbers["rounds"][way]] == [True, True]
    statements = {way: min(one["statements"] for one in rounds) for way, rounds in numbers["rounds"].items()}
    assert statements["no checkpointer"] == 0 < statements["perdure"] < statements["stock"]
    assert numbers["ratios"]["stock"]["steps_per_s"]["min"] > 0


def test_bytes_of_a_turn_are_measured(tmp_path: Path, dsn: str) -> None:
    printed, numbers = measured(tmp_path, dsn, "bench.messages", "--lengths", "4", "40", "--turns", "2")
    for way in ("stock saver", "perdure's saver", "perdure, whole run"):
        assert way in printed
        assert all(size > 0 for _, size in numbers["bytes_per_turn"][way])


@pytest.mark.parametrize("module", ["bench", "bench.saver", "bench.messages", "bench.loops"])
def test_benchmark_explains_its_options(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=True
    )
    assert f"python -m {module}" in done.stdout
