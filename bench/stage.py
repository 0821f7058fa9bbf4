"""What is measured: a PostgreSQL of its own in a temporary directory, and `perdure serve` as a process of its own."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from perdure.config import child_environment
from perdure.engine.postgres import embedded

CONFIG = Path(__file__).resolve().parent / "langgraph.json"
START_SECONDS = 60.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Server:
    """A server to measure; the CPU of what has no pid here cannot be told."""

    url: str
    pid: int | None = None
    postgres_pid: int | None = None


@contextmanager
def database(given: str | None) -> Iterator[str]:
    """The DSN of the given database, or of a new one that goes when the block ends."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as name:
        Path(name).chmod(0o755)  # under root PostgreSQL runs as another account
        with embedded(Path(name)) as dsn:
            yield dsn


@contextmanager
def serve(dsn: str, *, slots: int, patch: str = "") -> Iterator[tuple[str, int]]:
    """Start `perdure serve` with the five graphs on a free port; its URL and pid, until the block ends.

    `patch` is Python that it executes first, to compare ways of doing something.
    """
    program = f"{patch}\nfrom perdure.cli import main\nmain()"
    command = [sys.executable, "-c", program, "serve", "--config", str(CONFIG), "--port", "0"]
    env = child_environment(DATABASE_URL=dsn, PYTHONUNBUFFERED="1")
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder:  # no .env of the developer there
        log = Path(folder) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--slots", str(slots)],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours: the server is stopped below
            )
        try:
            yield _url(process, log), process.pid
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until it says where it listens."""
    end = time.monotonic() + START_SECONDS
    while True:
        ended = process.poll() is not None
        text = log.read_text(errors="replace")
        if found := re.search(r"http://127\.0\.0\.1:\d+", text):
            return found[0]
        if ended or time.monotonic() > end:
            raise RuntimeError(f"the server did not start:\n{text}")
        time.sleep(0.05)
