"""What replay does when it is not the same again: another order of the calls, another release of the graph."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from perdure.engine import defaults
from perdure.engine.registry import Registry
from tests.crash.changing import CITIES
from tests.crash.fleet import PATIENCE_SECONDS, Fleet


def _config(folder: Path, **graphs: str) -> Path:
    path = folder / f"{'-'.join(graphs.values())}.json"
    path.write_text(json.dumps({"graphs": {name: f"tests.crash.changing:{attr}" for name, attr in graphs.items()}}))
    return path


async def deploy(fleet: Fleet, **graphs: str) -> None:
    """The next workers, and the engine of the test, have these graphs."""
    fleet.config = _config(fleet.folder, **graphs)
    fleet.engine = replace(fleet.engine, registry=Registry.load(fleet.config))
    await defaults.ensure_defaults(fleet.engine)


async def rows_become(fleet: Fleet, statement: str, wanted: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(await fleet.rows(statement)) != wanted:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("order", ["2 1 0", "1 2 0"])
@pytest.mark.parametrize("finished", CITIES)
async def test_tools_that_are_called_in_another_order_get_their_own_results(
    fleet: Fleet, finished: str, order: str
) -> None:
    await deploy(fleet, tools="tools")
    others = [city for city in CITIES if city != finished]
    held = [fleet.hold(city) for city in others]
    fleet.env["ORDER"] = "0 1 2"
    doomed = fleet.worker()
    thread, run = await fleet.start("tools", input={"messages": []})
    await rows_become(fleet, "SELECT 1 FROM steps WHERE status = 'done'", 1)
    for city in others:
        await fleet.until(city)
    doomed.kill()
    for file in held:
        file.unlink()

    fleet.env["ORDER"] = order
    fleet.worker()
    messages = (await fleet.finish(thread, run))["messages"]
    results = {message.tool_call_id: message.content for message in messages}
    assert results == {f"call-{city}": f"weather of {city}" for city in CITIES}
    assert fleet.effects == {finished: 1, others[0]: 2, others[1]: 2}


@pytest.mark.parametrize("waits", ["ask", "sleep"])
async def test_a_waiting_run_goes_on_in_the_next_release_of_its_graph(fleet: Fleet, waits: str) -> None:
    """Steps that were finished are found, new ones are executed, a new node comes after."""
    await deploy(fleet, changing="first_release")
    old = fleet.worker(kill={"at": 1, "when": "after", "kind": "finish" if waits == "ask" else "suspend"})
    thread, run = await fleet.start("changing", input={"log": [waits]})
    await old.gone()

    await deploy(fleet, changing="second_release")
    fleet.worker()
    if waits == "ask":
        thread, run = await fleet.start("changing", thread, command={"resume": "slept"})
    assert (await fleet.finish(thread, run))["log"] == [
        *(waits, "did prepare", "audited wait", "did before", "slept"),
        *("did after, anew", "did close"),
    ]
    executed = dict(fleet.effects)
    assert (executed.pop("prepare"), executed.pop("before")) == (1, 1), "a finished step was executed again"
    assert executed.keys() == {"audit wait", "after, anew", "close"}
