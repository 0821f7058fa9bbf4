from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, LiteralString
from uuid import uuid4

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from graphs.tools import customers
from perdure import TerminalError
from tests.conftest import ROOT, Launch, Process, eventually

ADA = "user_12345"
CRM = ROOT / "langgraph.crm.json"
PATIENCE_SECONDS = 30.0


@pytest.fixture
def crm(server: Launch, empty_dsn: str) -> Callable[..., Process]:
    """Start the second server, with a database of its own."""
    return lambda port=0: server(config=CRM, port=port, env={"DATABASE_URL": empty_dsn})


@pytest.fixture
def tickets(empty_dsn: str) -> Callable[[], list[tuple[str, str]]]:
    """The tickets of the second server."""

    def read() -> list[tuple[str, str]]:
        with psycopg.connect(empty_dsn) as conn:
            return conn.execute("SELECT user_id, title FROM crm.tickets ORDER BY number").fetchall()

    return read


class Customer:
    """Somebody who writes to support."""

    def __init__(self, process: Process, user_id: Any = ADA) -> None:
        self.http = httpx.Client(base_url=process.url, timeout=PATIENCE_SECONDS)
        self.user_id = user_id

    def says(self, message: str, verb: str = "run") -> httpx.Response:
        body = {"user_id": self.user_id, "message": message}
        return self.http.post(f"/agents/support/{ADA}/{verb}", json=body)

    @property
    def heard(self) -> list[str]:
        return [m["content"] for m in self.http.get(f"/agents/support/{ADA}/history").json() if m["type"] == "ai"]


@pytest.fixture
def customer() -> Iterator[Callable[..., Customer]]:
    made: list[Customer] = []

    def make(*arguments: Any) -> Customer:
        made.append(Customer(*arguments))
        return made[-1]

    yield make
    for each in made:
        each.http.close()


def test_support_without_a_crm(server: Launch, customer: Callable[..., Customer]) -> None:
    process = server()
    ada = customer(process)
    assert ada.says("On which plan am I?").json() == {"answer": "You are on the plan Pro."}
    # Whoever the message names: the customer is the one that the request names.
    assert ada.says("On which plan is user_67890?").json() == {"answer": "You are on the plan Pro."}
    assert ada.says("Please use the teleport tool").json() == {"answer": "Tool not found: teleport."}
    assert customer(process, "user_0").says("On which plan am I?").json()["answer"] == "This customer has no account."
    for wrong in ("", 5, None, "x" * 201):
        refused = customer(process, wrong).says("On which plan am I?")
        assert refused.status_code == 422
        assert "user_id must be a text" in refused.json()["detail"]


def test_ticket_is_opened_once_on_the_other_server(
    server: Launch, crm: Launch, tickets: Any, customer: Callable[..., Customer]
) -> None:
    ada = customer(server(env={"CRM_URL": crm().url}))
    assert ada.says("Create a ticket: the login fails").json() == {"answer": "Ticket T-1001 is open: the login fails."}
    early = ada.says("Create a ticket in the background: no invoice").json()
    assert early == {"answer": "It is on its way; the customer will be told its number here."}
    eventually(lambda: "Ticket T-1002 is open: no invoice" in ada.heard)
    refused = ada.says(f"Create a ticket: {'x' * 300}").json()["answer"]
    assert "could not be opened: Agent 'crm'" in refused
    assert "title must be a text of up to 200 characters" in refused
    assert tickets() == [(ADA, "the login fails"), (ADA, "no invoice")]


def test_ticket_waits_for_a_crm_that_is_down_through_a_crash(
    server: Launch, crm: Launch, tickets: Any, free_port: Callable[[], int], customer: Callable[..., Customer]
) -> None:
    port = free_port()
    env = {"CRM_URL": f"http://127.0.0.1:{port}"}
    process = server(env=env)
    ada = customer(process)
    sent = ada.says("Create a ticket: the login fails", "send").json()
    run = f"/threads/{sent['thread_id']}/runs/{sent['run_id']}"
    eventually(lambda: ada.http.get(run).json().get("suspended"))
    process.kill()
    crm(port)
    ada = customer(server(env=env))
    assert ada.http.get(f"{run}/join").json()["answer"] == "Ticket T-1001 is open: the login fails."
    assert tickets() == [(ADA, "the login fails")]
    history = ada.http.get(f"/agents/support/{ADA}/history").json()
    assert [message["type"] for message in history] == ["human", "ai", "tool", "ai"]


# -- the local tool


@pytest.fixture
async def conn(empty_dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(empty_dsn, autocommit=True, row_factory=dict_row) as conn:
        yield conn


@pytest.fixture
def in_step(monkeypatch: pytest.MonkeyPatch, conn: psycopg.AsyncConnection[Any]) -> None:
    """As in a step: `step.transaction()` gives a connection in a transaction."""

    @asynccontextmanager
    async def transaction() -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with conn.transaction():
            yield conn

    monkeypatch.setattr(customers, "step", SimpleNamespace(transaction=transaction))


async def test_account_is_found_by_exactly_this_id(in_step: None) -> None:
    found = await customers.find(ADA)
    assert found == {"user_id": ADA, "name": "Ada Example", "plan": "Pro", "since": "2023-04-01"}
    assert await customers.find("' OR true --") is None


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("UPDATE support.customers SET plan = 'Free'", psycopg.errors.ReadOnlySqlTransaction),
        ("SET LOCAL transaction_read_only = off", psycopg.errors.ActiveSqlTransaction),
        ("SELECT * FROM secrets", psycopg.errors.InsufficientPrivilege),
    ],
)
async def test_query_may_read_customers_and_nothing_else(
    in_step: None, conn: psycopg.AsyncConnection[Any], statement: LiteralString, error: type[Exception]
) -> None:
    await conn.execute("CREATE TABLE secrets ()")
    async with customers._reading():
        pass
    with pytest.raises(error):
        async with customers._reading() as reading:
            await reading.execute(statement)


async def test_transaction_goes_on_as_it_was(in_step: None, conn: psycopg.AsyncConnection[Any]) -> None:
    who = "SELECT current_user AS me, current_setting('transaction_read_only') AS read_only"
    async with conn.transaction():
        before = await (await conn.execute(who)).fetchone()
        await customers.find(ADA)
        assert await (await conn.execute(who)).fetchone() == before


async def test_another_database_is_asked_read_only(
    conn: psycopg.AsyncConnection[Any], empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await conn.execute(customers.SCRIPT, prepare=False)
    monkeypatch.setenv("SUPPORT_DATABASE_URL", empty_dsn)
    found = await customers.find(ADA)
    assert found
    assert found["plan"] == "Pro"
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        async with customers._reading() as reading:
            await reading.execute("DELETE FROM support.customers")


async def test_table_that_may_not_be_made_is_a_clear_error(in_step: None, conn: psycopg.AsyncConnection[Any]) -> None:
    name = f"nobody_{uuid4().hex}"
    await conn.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
    try:
        await conn.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(name)))
        with pytest.raises(TerminalError, match=r"Run graphs/tools/customers.sql once with psql"):
            await customers.find(ADA)
    finally:
        await conn.execute("RESET ROLE")
        await conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
