"""A parent that has imported everything, and forks workers: a new worker process in a tenth of a second.

Run as a program. Each line on standard input is a JSON order; each order is answered by one
line: `{"fork": {...}}` gives `{"pid": n}` once that worker claims runs, and `{"load": path, "warm": {graph: input}}`
does what the workers forked with this langgraph.json then need not do: import its graphs, and what is imported
when one is executed. The parent has no threads and no event loop when it forks.
"""

import asyncio
import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import perdure.engine.worker
from graphs import models
from perdure import logs
from perdure.config import load_settings
from perdure.engine.registry import Registry
from tests.crash import commits

loaded: dict[str, Registry] = {}


def load(config: str, warm: dict[str, Any]) -> None:
    """Import the graphs; execute some of them without a model, which fails as soon as they call it."""
    registry = loaded[config] = Registry.load(Path(config))
    unreachable = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "PERDURE_MODEL": "openai:simulated-1"}
    with patch.dict(os.environ, unreachable):
        for graph, given in warm.items():
            with suppress(Exception):
                asyncio.run(execute(registry, graph, given))
    models.made.cache_clear()
    assert threading.active_count() == 1, threading.enumerate()


async def execute(registry: Registry, graph: str, given: Any) -> None:
    async with registry.open(graph, {}, checkpointer=None) as found:
        await found.ainvoke(given)


def tell(worker: perdure.engine.worker.Worker) -> None:
    """Write what this worker is doing to its log."""
    faulthandler.dump_traceback(file=sys.stderr)
    for task in asyncio.all_tasks(worker._loop):  # pyright: ignore[reportPrivateUsage]
        task.print_stack(file=sys.stderr)
    sys.stderr.flush()


def child(order: dict[str, Any], ready: int) -> None:
    """Be a worker until SIGTERM; at SIGUSR1 tell what it does. `kill` and `record` say what the commit hook does."""
    os.setsid()
    os.environ.update(order["env"])
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    settings = load_settings(config=Path(order["config"]), **order["settings"])
    logs.setup(settings)
    registry = loaded.get(order["config"]) or Registry.load(settings.config)
    commits.install(kill=order.get("kill"), record=order.get("record"), arm=order.get("arm"))
    worker = perdure.engine.worker.Worker(settings, registry, order["dsn"])
    signals = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    worker.start()
    os.write(ready, b"ready\n")
    os.close(ready)
    while signal.sigwait(signals) == signal.SIGUSR1:
        tell(worker)
    worker.stop()
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is logged while graphs are loaded is no answer
    for line in sys.stdin:
        given = json.loads(line)
        if "load" in given:
            load(given["load"], given["warm"])
            print(json.dumps({"loaded": list(loaded)}), file=answers, flush=True)
            continue
        order = given["fork"]
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reading)
                child(order, writing)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as ready:
            came_up = ready.readline() == "ready\n"
        print(json.dumps({"pid": pid, "ready": came_up}), file=answers, flush=True)


if __name__ == "__main__":
    main()
