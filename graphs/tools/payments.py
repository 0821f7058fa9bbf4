"""A payment service for the patterns: it moves no money and keeps its books in a file.

Like a real one it wants an idempotency key and pays once for it, however often it is asked.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import orjson
from pydantic_settings import BaseSettings, SettingsConfigDict


class PaymentSettings(BaseSettings):
    """Environment: PAYMENTS_LEDGER. Read again at each call."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    payments_ledger: Path | None = None
    """File that gets one JSON line for each request to pay; unset: none is kept."""


async def transfer(amount: float, purpose: str, *, idempotency_key: str) -> str:
    """Pay `amount` USD and return the receipt number; the same key gives the same receipt."""
    receipt = f"receipt-{hashlib.sha256(idempotency_key.encode()).hexdigest()[:10]}"
    if ledger := PaymentSettings().payments_ledger:
        entry = {"at": datetime.now(UTC), "key": idempotency_key, "amount": amount, "purpose": purpose}
        with ledger.open("ab") as books:
            books.write(orjson.dumps(entry | {"receipt": receipt}) + b"\n")
    return receipt
