"""docs/guides/add-a-pattern.md, followed literally in a copy of the repository."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from psycopg.conninfo import make_conninfo

from tests.conftest import ROOT, START_SECONDS, STOP_SECONDS, clean_environment

GUIDE = (ROOT / "docs" / "guides" / "add-a-pattern.md").read_text(encoding="utf-8")
COPIED = ("graphs", "tests", "docs")
"""Folders in which the reader writes; the others are only linked."""
COMMAND_SECONDS = 400.0


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def named(title: str) -> str:
    """The file that a section is about: the first path in it."""
    found = re.search(r"`([\w/]+\.\w+)`", section(title))
    assert found, title
    return found[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository as a reader has it, without what `git clone` does not bring."""
    folder = tmp_path / "perdure"
    folder.mkdir()
    for source in [*ROOT.glob("[!.]*"), ROOT / ".venv"]:
        target = folder / source.name
        if source.name in COPIED:
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, target)
        else:
            target.symlink_to(source)
    return folder


def follow(folder: Path) -> None:
    """Write what the guide tells to write."""
    (folder / named("One file")).write_text(blocks(section("One file"), "python")[0])
    (folder / named("One test")).write_text(blocks(section("One test"), "python")[0])

    rules = folder / named("One rule")
    text = rules.read_text()
    assert text.count("\nrules = [") == 1
    rule = blocks(section("One rule"), "python")[0]
    rules.write_text(text.replace("\nrules = [", f"\n{rule}\n\nrules = [\n    slogan,"))

    file = folder / named("One entry")
    config: dict[str, Any] = json.loads(file.read_text())
    config["graphs"] |= json.loads(blocks(section("One entry"), "json")[0])
    file.write_text(json.dumps(config, indent=2))

    readme = folder / "README.md"
    lines = readme.read_text().splitlines(keepends=True)
    head = next(n for n, line in enumerate(lines) if line.startswith("| id | request |"))
    lines.insert(head + 2, blocks(section("One row"), "markdown")[0])
    readme.write_text("".join(lines))


def commands(text: str) -> list[str]:
    lines = [
        line.split("  #")[0].split(" # ")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()
    ]
    return [line for line in lines if line]


def shell(command: str, folder: Path, env: dict[str, str]) -> str:
    # Packages are there: this test installs nothing, however old the mark of the last installation is.
    command = command.replace("make ", "make -o .venv/.ready ")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def test_the_guide_leads_to_a_pattern(
    copy: Path, database_url: str, dsn: str, free_port: Callable[[], int], tmp_path: Path
) -> None:
    follow(copy)
    env = clean_environment(TEST_DATABASE_URL=database_url, PYTEST_ADDOPTS=f"--basetemp={tmp_path / 'inner'}")
    words = ("ruff", "check", "--no-cache", "graphs/slogan.py", "tests/graphs/test_slogan.py", named("One rule"))
    subprocess.run([str(ROOT / ".venv/bin" / words[0]), *words[1:]], cwd=copy, check=True, capture_output=True)

    tests, tries = re.split(r"^Then with a server.*$", section("See it"), flags=re.MULTILINE)
    [command] = commands(tests)
    passed = re.search(r"\b(\d+) passed", shell(command, copy, env))
    assert passed
    assert int(passed[1]) >= 2 + 3 + 1  # its own, title and row and test, its example

    port = free_port()
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        serving = subprocess.Popen(
            ["make", "-o", ".venv/.ready", "serve", f"PORT={port}"],
            cwd=copy,
            env={**env, "DATABASE_URL": make_conninfo(dsn)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        answers(f"http://127.0.0.1:{port}", serving, log)
        curl, tour = (command.replace("localhost:2024", f"localhost:{port}") for command in commands(tries))
        assert json.loads(shell(curl, copy, env))["slogan"] == "Bicycle bell: never without."
        assert "1 example, 2 model calls, 2 steps" in shell(f"{tour} PORT={port}", copy, env)
    finally:
        os.killpg(serving.pid, 15)
        serving.wait(STOP_SECONDS)


def answers(url: str, serving: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and serving.poll() is None:
        try:
            httpx.get(f"{url}/ok", timeout=30, trust_env=False).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)  # asks a real server again
    pytest.fail(f"no server at {url}:\n{log.read_text(errors='replace')}")
