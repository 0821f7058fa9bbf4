"""A second server that an example needs: the one that is there already, or one for the duration of the tour."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from perdure.cli.stage import URL, Child, DemoFailed, examples
from perdure.config import child_environment

PROBE_SECONDS = 2.0
QUIET_SECONDS = 15.0


@contextmanager
def running(name: str, port: int, quiet: Callable[[], bool]) -> Iterator[None]:
    """The server of `langgraph.<name>.json` at this port, with a database of its own.

    It is stopped when the block ends and `quiet` says that nobody waits for it any more, or soon after. Raises
    DemoFailed if there is no such file, or the server does not start.
    """
    if _answers(port):
        yield
        return
    config = _config(name)
    with tempfile.TemporaryDirectory(prefix=f"perdure-{name}-") as made:
        folder = Path(made).resolve()
        if folder.stat().st_uid == 0:
            folder.chmod(0o755)  # PostgreSQL does not run as root; its account must get to its data
        child = _started(name, config, port, folder)
        try:
            child.says(URL)
            yield
            end = time.monotonic() + QUIET_SECONDS
            while not quiet() and time.monotonic() < end:
                time.sleep(0.1)
        except DemoFailed as exc:
            raise DemoFailed(f"{exc}:\n{child.output}") from exc
        finally:
            child.stop()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ok", timeout=PROBE_SECONDS, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _config(name: str) -> Path:
    file = f"langgraph.{name}.json"
    for folder in (Path.cwd(), examples()):
        if (folder / file).is_file():
            return folder / file
    raise DemoFailed(f"an example needs the server of {file}, which is not in {Path.cwd()}")


def _started(name: str, config: Path, port: int, folder: Path) -> Child:
    words = ["-m", "perdure.cli", "serve", "--config", str(config), "--port", str(port), "--slots", "4"]
    log = folder / "log"
    with log.open("wb") as output:
        popen = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,  # no .env, no data of whoever runs the tour
            env=child_environment(PYTHONUNBUFFERED="1", PYTHONUTF8="1", PERDURE_DATA_DIR=str(folder / "data")),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the tour only, which then stops it
        )
    return Child(f"server {name}", popen, log)
