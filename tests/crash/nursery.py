"""A parent that has imported everything, and forks workers: a new worker process in a tenth of a second.

Run as a program. Each line on standard input is a JSON order; each order is answered by one
line: `{"fork": {...}}` gives `{"pid": n}` once that worker claims runs. The parent has no
threads and no event loop when it forks.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import perdure.engine.worker
from perdure.config import load_settings
from perdure.engine.registry import Registry
from tests.crash import commits


def child(order: dict[str, Any], ready: int) -> None:
    """Be a worker until SIGTERM. `kill` and `record` say what the commit hook does."""
    os.setsid()
    os.environ.update(order["env"])
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    settings = load_settings(config=Path(order["config"]), **order["settings"])
    registry = Registry.load(settings.config)
    commits.install(kill=order.get("kill"), record=order.get("record"))
    worker = perdure.engine.worker.Worker(settings, registry, order["dsn"])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    worker.start()
    os.write(ready, b"ready\n")
    os.close(ready)
    signal.sigwait({signal.SIGTERM})
    worker.stop()
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    for line in sys.stdin:
        order = json.loads(line)["fork"]
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
        print(json.dumps({"pid": pid, "ready": came_up}), flush=True)


if __name__ == "__main__":
    main()
