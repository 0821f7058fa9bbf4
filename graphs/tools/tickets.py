"""The tickets of the pattern `crm`, in the database of the server that runs it; and where that server is."""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

from graphs.tools import tables
from perdure import step

SCRIPT = Path(__file__).with_name("tickets.sql").read_bytes()


class CrmSettings(BaseSettings):
    """Environment: CRM_URL. Read again at each call."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    crm_url: str = "http://127.0.0.1:2025"
    """The server of the assistant `crm`; `make crm` starts one there."""


OPEN = """
INSERT INTO crm.tickets (user_id, title, description)
VALUES (%(user_id)s, %(title)s, %(description)s)
RETURNING number
"""


async def open_ticket(user_id: str, title: str, description: str) -> str:
    """Open a ticket and return its number. Call it in a step: ticket and step commit together, so it is one."""
    async with step.transaction() as conn:
        await tables.make(conn, "crm.tickets", SCRIPT)
        values = {"user_id": user_id, "title": title, "description": description}
        row = await (await conn.execute(OPEN, values)).fetchone()
    return f"T-{row['number']}"
