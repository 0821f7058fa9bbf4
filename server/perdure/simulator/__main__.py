"""`python -m perdure.simulator`: a simulator as a process of its own, until SIGTERM or Ctrl-C.

Its URL is the one line it prints, once it answers.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from threading import Event
from types import FrameType

from perdure.simulator.server import start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perdure.simulator", description="A stand-in for a model.")
    parser.add_argument("--rules", required=True, help="./graphs/rules.py:rules or package.module:rules")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--config-dir", type=Path, default=None, help="what --rules is relative to")
    parser.add_argument("--token-delay-seconds", type=float, default=0, help="wait after each streamed word")
    options = parser.parse_args()
    ended = Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with start(
        options.rules,
        config_dir=options.config_dir,
        port=options.port,
        token_delay_seconds=options.token_delay_seconds,
    ) as simulator:
        sys.stdout.write(f"{simulator.base_url}\n")
        sys.stdout.flush()
        ended.wait()


if __name__ == "__main__":
    main()
