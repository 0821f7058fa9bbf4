"""What the tests of the approval patterns share: a claim, the payment service's books, and patience."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import orjson

T = TypeVar("T")

LARGE = {"prompt": "Process my hospital bill of 3000USD for a broken leg."}
PATIENCE_SECONDS = 30


class Books:
    """What the payment service was asked to pay; under one idempotency key it pays once."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger
        ledger.touch()

    @property
    def paid(self) -> list[float]:
        """The amounts that were really paid."""
        entries = [orjson.loads(line) for line in self.ledger.read_bytes().splitlines()]
        return list({entry["key"]: entry["amount"] for entry in entries}.values())

    @property
    def asked(self) -> int:
        """How often it was asked to pay."""
        return len(self.ledger.read_bytes().splitlines())


def eventually(look: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """What `look` finds, as soon as it finds anything. AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"nothing in {seconds} s"
        time.sleep(0.02)
    return found
