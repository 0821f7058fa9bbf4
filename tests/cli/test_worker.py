"""`perdure worker`: runs accepted by an API without slots are executed elsewhere, with a model of its own."""

from collections.abc import Callable

import httpx

from tests.conftest import Process

PROMPT = {"prompt": "What is the weather like in San Francisco?"}


def test_worker_executes_what_an_api_without_slots_accepts(
    server: Callable[..., Process], worker: Callable[..., Process]
) -> None:
    api = server(slots=0)
    process = worker()
    assert "simulated-1" in process.output
    answer = httpx.post(f"{api.url}/agents/weather/run", json=PROMPT, timeout=60)
    assert answer.status_code == 200, answer.text
    assert "San Francisco" in answer.json()["answer"]
    assert process.stop() == 0
    assert api.stop() == 0
