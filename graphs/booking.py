"""Saga: hotel, flight and car are booked together, or not at all.

The model only reads the request; what is booked, and undone, is decided here. Each reservation is a step, and
its undo is registered before it. When all are reserved, all are confirmed. If one fails for good (there is no
SUV in Miami), or if the run is cancelled, the undos run in reverse, each as a step: kill the worker in the
middle and the next one goes on with the undos that are left. An agency that is down only for now undoes
nothing: the run is tried again.

Try it:  perdure invoke booking -i '{"prompt": "Book a business trip to San Francisco from March 15 to 20, flying
             from New York: a hotel downtown and a rental car."}'
         perdure invoke booking -i '{"prompt": "Book a family trip to Miami from July 1 to 8, flying from Boston:
             a hotel by the beach and an SUV."}'
"""

from typing import Any, Literal
from uuid import uuid4

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy
from typing_extensions import TypedDict

from graphs.models import chat_model
from graphs.tools import travel
from perdure import TerminalError, saga, step

PARTS = ("hotel", "flight", "car")


class Input(TypedDict):
    """What the customer wants, in their own words."""

    prompt: str


class Output(TypedDict):
    """What has become of the trip."""

    answer: str
    status: Literal["booked", "undone", "nothing to book"]
    booked: dict[str, str]
    """The code of each booking; {} unless all of them are confirmed."""


class Booking(Input, Output):
    """The whole state of a trip."""


@step
async def understand(prompt: str) -> dict[str, Any]:
    reader = chat_model().with_structured_output(travel.Trip)
    trip = await reader.ainvoke([SystemMessage("You read what a customer wants to be booked."), HumanMessage(prompt)])
    return travel.Trip.model_validate(trip).model_dump()  # plain JSON for the journal


@step
async def new_reference() -> str:
    return f"trip-{uuid4().hex[:8]}"


@step
async def reserve(part: str, wish: str, city: str, dates: str, reference: str) -> str:
    return await travel.reserve(part, wish, city, dates, reference=reference, idempotency_key=step.idempotency_key())


@step
async def confirm(part: str, reference: str) -> None:
    await travel.confirm(part, reference=reference, idempotency_key=step.idempotency_key())


@step(retry=RetryPolicy(max_attempts=5))
async def cancel(part: str, reference: str) -> None:
    await travel.cancel(part, reference=reference, idempotency_key=step.idempotency_key())


async def book(state: Input) -> Output:
    trip = await understand(state["prompt"])
    wanted = [part for part in PARTS if trip[part]]
    if not wanted:
        return {"answer": "Which hotel, flight or car shall I book?", "status": "nothing to book", "booked": {}}
    reference = await new_reference()
    codes: dict[str, str] = {}
    try:
        async with saga() as together:
            for part in wanted:
                together.undo(cancel, part, reference)
                codes[part] = await reserve(part, trip[part], trip["city"], trip["dates"], reference)
            for part in wanted:
                await confirm(part, reference)
    except TerminalError as exc:
        undone = ", ".join(reversed(codes.values())) or "nothing had been reserved"
        outcome = f"Cancelled again: {undone}"
        if failed := [note for note in getattr(exc, "__notes__", []) if note.startswith("Its undo ")]:  # saga's
            outcome = f"Not everything could be cancelled, somebody has to look at {reference}: {'; '.join(failed)}"
        answer = f"Your trip to {trip['city']} is not booked: {exc.message}. {outcome}."
        return {"answer": answer, "status": "undone", "booked": {}}
    answer = f"Your trip to {trip['city']}, {trip['dates']}, is booked and confirmed: {', '.join(codes.values())}."
    return {"answer": answer, "status": "booked", "booked": codes}


builder = StateGraph(Booking, input_schema=Input, output_schema=Output)
builder.add_node(book)
builder.add_edge(START, "book")
graph = builder.compile()
