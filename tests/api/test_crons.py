"""Crons over HTTP: the client that people use against a real server, and what is refused."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import httpx
import psycopg
import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient
from langgraph_sdk.errors import NotFoundError
from starlette.testclient import TestClient

from tests.conftest import eventually

DAILY = "0 5 * * *"


@pytest.fixture
def sdk(live: str) -> Iterator[SyncLangGraphClient]:
    with get_sync_client(url=live, api_key=None) as client:
        yield client


def test_the_sdk_creates_finds_changes_and_deletes(sdk: SyncLangGraphClient) -> None:
    tag = {"tag": str(uuid4())}
    made: Any = sdk.crons.create("works", schedule=DAILY, input={"log": []}, metadata=tag, timezone=ZoneInfo("UTC"))
    assert UUID(made["cron_id"])
    assert (made["thread_id"], made["enabled"], made["on_run_completed"]) == (None, True, "delete")
    assert made["next_run_date"].endswith("T05:00:00.000000+00:00")
    assert made["payload"] == {
        "assistant_id": "works",
        "schedule": DAILY,
        "input": {"log": []},
        "metadata": tag,
        "timezone": "UTC",
        "config": {"configurable": {"cron_id": made["cron_id"]}},
    }
    assert sdk.crons.search(metadata=tag) == [made]
    assert sdk.crons.search(assistant_id="works", metadata=tag, enabled=False) == []
    assert sdk.crons.search(assistant_id="works", metadata=tag, select=["schedule"]) == [{"schedule": DAILY}]
    assert sdk.crons.count(metadata=tag) == sdk.crons.count(assistant_id=made["assistant_id"], metadata=tag) == 1
    end = datetime.now(UTC) + timedelta(days=30)
    changed: Any = sdk.crons.update(made["cron_id"], schedule="0 6 * * *", end_time=end, timezone="Europe/Berlin")
    assert changed["next_run_date"][11:16] in ("04:00", "05:00")
    assert datetime.fromisoformat(changed["end_time"]) == end
    assert sdk.crons.update(made["cron_id"], end_time=None)["end_time"] is None
    sdk.crons.delete(made["cron_id"])
    with pytest.raises(NotFoundError):
        sdk.crons.update(made["cron_id"], enabled=True)


def test_crons_of_a_thread(sdk: SyncLangGraphClient) -> None:
    thread = sdk.threads.create()["thread_id"]
    made: Any = sdk.crons.create_for_thread(thread, "works", schedule=DAILY, multitask_strategy="reject", enabled=False)
    assert (made["thread_id"], made["on_run_completed"], made["enabled"]) == (thread, None, False)
    assert made["payload"]["multitask_strategy"] == "reject"
    assert sdk.crons.search(thread_id=thread) == [made]
    sdk.threads.delete(thread)
    assert sdk.crons.search(thread_id=thread) == []
    with pytest.raises(NotFoundError):
        sdk.crons.create_for_thread(str(uuid4()), "works", schedule=DAILY)


def test_a_due_cron_runs_and_its_run_can_be_found(server: Any, dsn: str, config: Any) -> None:
    url = server(config=config).url
    with get_sync_client(url=url, api_key=None) as sdk, psycopg.connect(dsn, autocommit=True) as conn:
        thread = sdk.threads.create()["thread_id"]
        made: Any = sdk.crons.create_for_thread(thread, "works", schedule=DAILY, input={"log": ["in"]})
        conn.execute("UPDATE crons SET next_run_at = now()")
        eventually(lambda: [run["status"] for run in sdk.runs.list(thread)] == ["success"])
        [run] = sdk.runs.list(thread)
        assert run["metadata"]["cron_id"] == made["cron_id"]
        assert sdk.threads.get_state(thread)["values"] == {"log": ["in", "worked"]}
        cron = httpx.get(f"{url}/runs/crons/{made['cron_id']}", timeout=30).json()
        assert cron["next_run_date"] == made["next_run_date"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"schedule": "61 * * * *"}, "schedule: '61 * * * *' is no cron expression: Bad minute"),
        ({"schedule": "* * * * * *"}, "schedule: "),
        ({"schedule": ""}, "schedule: "),
        ({"schedule": 5}, "schedule: "),
        ({"timezone": "Mars/Olympus"}, "timezone: 'Mars/Olympus' is no IANA time zone"),
        ({"timezone": "../../etc/passwd"}, "timezone: "),
        ({"end_time": "tomorrow"}, "end_time: must be a date and time"),
        ({"end_time": 5}, "end_time: "),
        ({"end_time": "0001-01-01T00:00:00+14:00"}, "end_time: "),
        ({"end_time": "9999-12-31T23:59:59-14:00"}, "end_time: "),
        ({"enabled": "yes"}, "enabled: "),
        ({"on_run_completed": "burn"}, "on_run_completed: "),
        ({"multitask_strategy": "push"}, "multitask_strategy: "),
        ({"webhook": "/relative"}, "webhook: "),
    ],
)
def test_bad_input_names_the_field(client: TestClient, body: dict[str, Any], detail: str) -> None:
    answer = client.post("/runs/crons", json={"assistant_id": "echo", "schedule": DAILY, **body})
    assert (answer.status_code, answer.json()["detail"][: len(detail)]) == (422, detail)
    made = client.post("/runs/crons", json={"assistant_id": "echo", "schedule": DAILY}).json()
    url = f"/runs/crons/{made['cron_id']}"
    answer = client.patch(url, json=body)
    assert (answer.status_code, answer.json()["detail"][: len(detail)]) == (422, detail)
    assert client.get(url).json() == made


def test_unknown_things_are_404_and_malformed_ones_422(client: TestClient) -> None:
    unknown = str(uuid4())
    body = {"assistant_id": "echo", "schedule": DAILY}
    assert client.get(f"/runs/crons/{unknown}").json() == {"detail": f"Cron with ID {unknown} not found"}
    for method in ("GET", "PATCH", "DELETE"):
        assert client.request(method, f"/runs/crons/{unknown}", json={}).status_code == 404
        assert client.request(method, "/runs/crons/nope", json={}).status_code == 422
    for assistant in ("nobody", unknown):
        assert client.post("/runs/crons", json={**body, "assistant_id": assistant}).status_code == 404
    assert client.post(f"/threads/{unknown}/runs/crons", json=body).status_code == 404
    assert client.post("/threads/nope/runs/crons", json=body).status_code == 422
    assert client.post("/runs/crons", json={"schedule": DAILY}).json()["detail"] == "assistant_id: Field required"
    assert client.post("/runs/crons", json={"assistant_id": "echo"}).json()["detail"] == "schedule: Field required"
    both = {"context": {"a": 1}, "config": {"configurable": {"b": 1}}}
    assert client.post("/runs/crons", json={**body, **both}).status_code == 400


def test_times_without_a_zone_are_utc_and_null_is_absent(client: TestClient) -> None:
    body = {"assistant_id": "echo", "schedule": DAILY, "end_time": "2040-01-01T10:00:00", "timezone": None}
    made = client.post("/runs/crons", json=body).json()
    assert made["end_time"] == "2040-01-01T10:00:00.000000+00:00"
    changed = client.patch(f"/runs/crons/{made['cron_id']}", json={"schedule": None, "end_time": None}).json()
    assert (changed["schedule"], changed["end_time"]) == (DAILY, None)


def test_search_pages_without_any_filter(client: TestClient) -> None:
    for _ in range(3):
        client.post("/runs/crons", json={"assistant_id": "echo", "schedule": DAILY})
    first = client.post("/runs/crons/search", json={"limit": 2})
    assert (len(first.json()), first.headers["x-pagination-total"], first.headers["x-pagination-next"]) == (2, "3", "2")
    assert "now" not in first.json()[0]
    by_now = client.post("/runs/crons/search", json={"select": ["now"]}).json()
    assert datetime.fromisoformat(by_now[0]["now"])
    assert client.post("/runs/crons/count", json={}).json() == 3
    for body in ({"limit": 0}, {"limit": 1001}, {"sort_by": "payload"}, {"select": ["nope"]}, {"thread_id": "nope"}):
        assert client.post("/runs/crons/search", json=body).status_code == 422
