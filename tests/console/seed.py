"""What a console in use has to show: runs of many kinds, open questions, a failure, long names, hostile texts."""

from dataclasses import dataclass

import httpx

from tests.console.conftest import eventually

CLAIM = {"prompt": "Process my hospital bill of 3000USD for a broken leg."}
TRIP = (
    "Book a business trip to San Francisco from March 15 to 20, flying from New York: "
    "a hotel downtown and a rental car."
)
LONG = "a-very-long-name-that-nobody-should-use-but-somebody-does-" + "x" * 60
HOSTILE = "<script>alert('from a message')</script> & <b>bold</b>"


@dataclass(frozen=True)
class Seeded:
    """Ids to open pages with."""

    chat_thread: str
    booking_thread: str
    booking_run: str
    error_thread: str
    error_run: str
    token: str
    cron_id: str


def seed(api: httpx.Client) -> Seeded:
    """Fill an empty server; some 30 runs, a few seconds."""
    for message in ("make a poem about durable execution", "shorten it to 2 lines", HOSTILE):
        chat_thread, _ = _where(_ok(api.post("/agents/chat/session123/run", json={"message": message})))
    _ok(api.post(f"/agents/chat/{LONG}/run", json={"message": "a session with a long name"}))
    for city in ("San Francisco", "New York", "Boston"):
        _ok(api.post("/agents/weather/run", json={"prompt": f"What is the weather like in {city}?"}))
    denver = {"prompt": "What is the weather like in Denver?", "tool_attempts": 2}
    failed = api.post("/agents/fail_on_terminal/run", json=denver)
    assert failed.status_code == 424, failed.text
    error_thread, error_run = _where(failed)
    booked = _ok(api.post("/agents/booking/run", json={"prompt": TRIP}))
    booking_thread, booking_run = _where(booked)
    _ok(api.post("/agents/racing/run", json={"message": "What's the best approach to learn machine learning?"}))
    bill = {
        "date": "2024-10-01",
        "category": "orthopedic",
        "reason": "hospital bill for a broken leg",
        "amount": 3000,
        "placeOfService": "General Hospital",
    }
    _ok(api.post("/agents/parallel_agents/run", json=bill))
    for _ in range(3):
        assert api.post("/agents/approval/run", json=CLAIM).status_code == 202
    assert api.post("/agents/approval_with_timeout/run", json={**CLAIM, "within_seconds": 240}).status_code == 202
    first = eventually(lambda: api.get("/interrupts?status=open").json(), lambda found: len(found) >= 4)
    assert api.post(f"/interrupts/{first[-1]['token']}/resolve", json=True).status_code == 202
    for n in range(12):
        item = {
            "namespace": ["users", f"user_{n % 3}"],
            "key": f"preference-{n}",
            "value": {"likes": ["tea", "rust"][n % 2]},
        }
        assert api.put("/store/items", json=item).status_code == 204
    _ok(api.post("/agents/scheduled/send?delay=3600s", json={"topic": "the stand-up"}))
    cron = {"assistant_id": "weather", "schedule": "0 9 * * 1-5", "timezone": "Europe/Berlin"}
    made = _ok(api.post("/runs/crons", json={**cron, "input": {"prompt": "What is the weather like in Boston?"}}))
    return Seeded(
        chat_thread=chat_thread,
        booking_thread=booking_thread,
        booking_run=booking_run,
        error_thread=error_thread,
        error_run=error_run,
        token=first[0]["token"],
        cron_id=made.json()["cron_id"],
    )


def _ok(answer: httpx.Response) -> httpx.Response:
    assert answer.status_code < 300, answer.text
    return answer


def _where(answer: httpx.Response) -> tuple[str, str]:
    """Thread and run of a call by key or by agent."""
    _, _, thread, _, run = answer.headers["content-location"].split("/")[:5]
    return thread, run
