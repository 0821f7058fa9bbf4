"""Scheduled: an agent that works later, by the clock, after a pause, and that arranges its own next run.

Each of these times is a row, so it survives restarts: whoever is there when it comes does the work.

- later: start it with a delay;
- by the clock: a cron with a time zone (POST /runs/crons);
- after a pause: `pause_seconds`. Meanwhile the run is suspended and holds neither a slot nor memory;
- again and again: with `times` it sends itself to work, `every_seconds`, in the session `series`. The next run
  is arranged before the work begins, once, so a run that fails does not end the series. `times` ends it,
  and so does cancelling the run that is pending.

Try it:  perdure invoke scheduled --detach --delay 10s -i '{"topic": "the stand-up"}'
         perdure invoke scheduled -i '{"topic": "tea", "times": 3, "every_seconds": 5, "series": "daily"}'
"""

from datetime import UTC, datetime
from operator import add
from typing import Annotated, Any, NotRequired

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.channels import EphemeralValue
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from graphs.models import chat_model
from perdure import TerminalError, agent, sleep, step

MAX_TIMES = 100
"""Runs of one series, and with that its model calls."""
EVERY_SECONDS = 3600.0
SYSTEM = SystemMessage("You write reminders: one friendly sentence each.")


class Request(TypedDict):
    """What to be reminded of; `times` counts this run."""

    topic: str
    pause_seconds: NotRequired[float]
    times: NotRequired[int]
    every_seconds: NotRequired[float]
    series: NotRequired[str]


class Output(TypedDict):
    """`next_run` is the id of the run that this one has arranged, if any."""

    answer: str
    next_run: str | None


class Schedule(TypedDict, total=False):
    topic: Annotated[str, EphemeralValue]
    pause_seconds: Annotated[float, EphemeralValue]
    times: Annotated[int, EphemeralValue]
    every_seconds: Annotated[float, EphemeralValue]
    series: Annotated[str, EphemeralValue]
    answer: str
    next_run: str | None
    reminders: Annotated[list[str], add]


@step
async def remind(topic: str) -> str:
    """Reads the clock and asks the model; if that fails, the step tries again, and then the run does."""
    prompt = HumanMessage(f"It is {datetime.now(UTC):%H:%M} UTC. Remind me of: {topic}")
    return (await chat_model().ainvoke([SYSTEM, prompt])).text


async def work(state: Schedule) -> dict[str, Any]:
    """Runs again from its top after each wait; what it has arranged and done comes from the journal."""
    topic, times = state.get("topic"), state.get("times", 1)
    if not topic:
        raise TerminalError('The request names no "topic" to be reminded of')
    if times > MAX_TIMES:
        raise TerminalError(f"times is {times}, but a series has at most {MAX_TIMES} runs")
    next_run = None
    if times > 1:
        again = {name: state[name] for name in Request.__annotations__ if name in state} | {"times": times - 1}
        delay = state.get("every_seconds", EVERY_SECONDS)
        next_run = await agent.send("scheduled", again, key=state.get("series"), delay=delay)
    await sleep(state.get("pause_seconds", 0))
    reminder = await remind(topic)
    return {"answer": reminder, "next_run": next_run, "reminders": [reminder]}


builder = StateGraph(Schedule, input_schema=Request, output_schema=Output)
builder.add_node(work)
builder.add_edge(START, "work")
graph = builder.compile()
