"""A simulator in a thread of its own, on a port of this machine that nobody else can reach."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn

from perdure.simulator.app import LoggedRequest, Simulator
from perdure.simulator.faults import Fault
from perdure.simulator.rules import Rule, load

START_SECONDS = 60


class RunningSimulator:
    """A simulator that answers at `base_url` until `stop()`; also a context manager.

    Everything here may be called from any thread.
    """

    def __init__(self, simulator: Simulator, port: int = 0) -> None:
        self.simulator = simulator
        listener = socket.create_server(("127.0.0.1", port))
        self.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            simulator.app,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # a cut connection is no error here
            access_log=False,
            timeout_graceful_shutdown=1,  # a hanging request does not hold up the end
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="perdure-simulator", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"The simulator did not start at {self.base_url}")
            time.sleep(0.005)

    @property
    def openai_url(self) -> str:
        """What OpenAI clients call `base_url`."""
        return f"{self.base_url}/v1"

    @property
    def requests(self) -> list[LoggedRequest]:
        """The request log, oldest first."""
        return list(self.simulator.log)

    def fail(self, *faults: Fault | Mapping[str, Any]) -> None:
        """Queue faults for the next requests, as `POST /faults` does: `fail({"status": 429, "times": 2})`."""
        self.simulator.faults.add([Fault.model_validate(fault) for fault in faults])

    def stop(self) -> None:
        """Stop answering and free the port; requests still open are broken off after a second.

        May be called twice.
        """
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def start(
    rules: str | Rule | Sequence[Rule],
    *,
    config_dir: Path | None = None,
    port: int = 0,
    token_delay_seconds: float = 0,
) -> RunningSimulator:
    """Start a simulator and return when it answers.

    `rules` is one rule, a list, or where they are: "./graphs/rules.py:rules", relative to `config_dir` (the
    working directory by default). `port` 0 takes a free one. `token_delay_seconds` passes after each
    streamed word.

    Raises ValueError or FileNotFoundError for rules that cannot be found, OSError for a port that is taken.
    """
    simulator = Simulator(load(rules, config_dir), token_delay_seconds=token_delay_seconds)
    return RunningSimulator(simulator, port)
