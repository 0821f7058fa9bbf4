"""Racing: two ways to answer run at the same time; the first answer wins and the other way is cancelled.

The winner is recorded before the loser is cancelled. So whatever crashes later, a replay gives the same answer,
and the loser is never started again. A way that fails is out of the race; the run fails only if both do.

Try it:  perdure invoke racing -i '{"message": "What is the best approach to learn machine learning?"}'
"""

from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy
from typing_extensions import TypedDict

from graphs.models import chat_model
from perdure import race, step

PLAN = "List the three aspects that matter most for a thorough answer to the question, one per line. No answer yet."
THOROUGH = "Think it through and answer thoroughly, aspect by aspect. The aspects:\n{aspects}"
QUICK = "Answer in one sentence, with what comes to mind first."


class Question(TypedDict):
    message: str


class Answer(TypedDict):
    answer: str


class State(Question, Answer):
    pass


async def ask(instructions: str, question: str) -> str:
    return (await chat_model().ainvoke([("system", instructions), ("human", question)])).text


@step(retry=RetryPolicy(max_attempts=1))  # think_longer tries again
async def list_aspects(question: str) -> str:
    """A step inside of a step: a crash, or a failure of the next call, does not ask for it again."""
    return await ask(PLAN, question)


@step
async def think_longer(question: str) -> str:
    aspects = await list_aspects(question)
    return await ask(THOROUGH.format(aspects=aspects), question)


@step
async def respond_quickly(question: str) -> str:
    return await ask(QUICK, question)


async def first_answer(state: State) -> Answer:
    question = state["message"]
    return {"answer": await race(think_longer(question), respond_quickly(question))}


builder = StateGraph(State, input_schema=Question, output_schema=Answer)
builder.add_node(first_answer)
builder.add_edge(START, "first_answer")
graph = builder.compile()
