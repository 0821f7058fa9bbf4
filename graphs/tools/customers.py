"""The customers of the pattern `support`: one query, with parameters, by a role that may read and nothing else.

With SUPPORT_DATABASE_URL it asks that database, whose user should be such a role. Without it the table is made
in perdure's own database (`customers.sql`), which the step's transaction reaches; the query runs below a
savepoint that is always rolled back, read-only and in the role `perdure_support_reader`.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from typing_extensions import TypedDict

from graphs.tools import tables
from perdure import step

SCRIPT = Path(__file__).with_name("customers.sql").read_bytes()


class CustomerSettings(BaseSettings):
    """Environment: SUPPORT_DATABASE_URL. Read again at each call."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    support_database_url: SecretStr | None = None
    """PostgreSQL with the table support.customers; unset: perdure's own database, with made-up customers."""


class Customer(TypedDict):
    """A row of support.customers."""

    user_id: str
    name: str
    plan: str
    since: str


FIND = "SELECT user_id, name, plan, since::text FROM support.customers WHERE user_id = %(user_id)s"


async def find(user_id: str) -> Customer | None:
    """The customer of that id. Call it in a step."""
    async with _reading() as conn:
        return await (await conn.execute(FIND, {"user_id": user_id})).fetchone()


@asynccontextmanager
async def _reading() -> AsyncGenerator[AsyncConnection[Any]]:
    if url := CustomerSettings().support_database_url:
        async with await AsyncConnection.connect(url.get_secret_value(), row_factory=dict_row) as conn:
            await conn.set_read_only(True)
            yield conn
        return
    async with step.transaction() as conn:
        await tables.make(conn, "support.customers", SCRIPT)
        async with conn.transaction(force_rollback=True):  # takes back role and mode: the step has to be recorded
            await conn.execute("SET LOCAL transaction_read_only = on")
            await conn.execute("SET LOCAL ROLE perdure_support_reader")
            yield conn
