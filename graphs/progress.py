"""Progress that anybody may watch: a report is written chapter by chapter, and each step of it is announced.

`emit` puts an event into the run's stream, which is a log: any number of readers follow it, each from where it
likes. One that was cut off, or whose API process died, comes back with the id of the last event that it has seen
(`Last-Event-ID`) and goes on behind it, at any replica. Who comes after the end reads all of it.

A killed worker costs the model call in flight. What is announced between its last checkpoint and its death is
announced once more, by the next attempt: an event says `done` of how many, so that does no harm.

Try it:  curl localhost:2024/agents/progress/job1/send -d '{"topic": "durable execution"}'
         curl -N localhost:2024/agents/progress/job1/stream -H 'Last-Event-ID: 0'
"""

from typing import Annotated, Any, Literal, NotRequired

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.channels import EphemeralValue
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from graphs.models import chat_model
from perdure import emit, sleep, step

MAX_CHAPTERS = 8
PAUSE_SECONDS = 0.3
SYSTEM = SystemMessage(
    "You write a report on a topic. If you are given the topic only, name four chapters, each on a line of its own "
    "and without numbers. If you are given a chapter as well, write this chapter in a few sentences."
)


class Job(TypedDict):
    """What to write about; `pause_seconds` between two chapters, to have something to watch."""

    topic: str
    pause_seconds: NotRequired[Annotated[float, EphemeralValue]]


class Output(TypedDict):
    answer: str


class Report(Job):
    pause: NotRequired[float]
    chapters: NotRequired[list[str]]
    written: NotRequired[list[str]]
    answer: NotRequired[str]


@step
async def ask(text: str) -> str:
    return (await chat_model().ainvoke([SYSTEM, HumanMessage(text)])).text


async def plan(state: Report) -> dict[str, Any]:
    lines = (await ask(f"Topic: {state['topic']}")).splitlines()
    chapters = [line.strip() for line in lines if line.strip()][:MAX_CHAPTERS]
    emit("progress", {"done": 0, "of": len(chapters), "says": f"I shall write: {', '.join(chapters)}"})
    return {"chapters": chapters, "written": [], "pause": state.get("pause_seconds", PAUSE_SECONDS)}


async def write(state: Report) -> dict[str, Any]:
    """One chapter. Each has a checkpoint of its own: a crash does not announce those before it again."""
    chapters, written = state.get("chapters", []), state.get("written", [])
    title = chapters[len(written)]
    text = await ask(f"Topic: {state['topic']}\nChapter: {title}")
    await sleep(state.get("pause", PAUSE_SECONDS))
    emit("progress", {"done": len(written) + 1, "of": len(chapters), "says": f"Written: {title}"})
    return {"written": [*written, f"## {title}\n{text}"]}


async def publish(state: Report) -> Output:
    return {"answer": "\n\n".join(state.get("written", []))}


def rest(state: Report) -> Literal["write", "publish"]:
    return "write" if len(state.get("written", [])) < len(state.get("chapters", [])) else "publish"


builder = StateGraph(Report, input_schema=Job, output_schema=Output)
builder.add_node(plan)
builder.add_node(write)
builder.add_node(publish)
builder.add_edge(START, "plan")
builder.add_conditional_edges("plan", rest)
builder.add_conditional_edges("write", rest)
builder.add_edge("publish", END)
graph = builder.compile()
