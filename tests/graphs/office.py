"""What the tests of the approval patterns share: a claim, and the payment service's books."""

from pathlib import Path

import orjson

LARGE = {"prompt": "Process my hospital bill of 3000USD for a broken leg."}


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
