"""Patterns that only want a text: their requests are known by the system prompt, and `chat` takes the others."""

import re

from perdure.simulator import ChatRequest, Reply

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}

POEM = """\
A poem about {subject}:
The lights went out, the process died,
yet every finished step was kept;
another worker, by its side,
went on from where the first one slept."""


def progress(request: ChatRequest) -> Reply | None:
    """graphs/progress.py: names the chapters of a report, then writes one after the other."""
    if request.tools or request.schema is not None or not request.system.startswith("You write a report on a topic"):
        return None
    topic, _, chapter = request.prompt.removeprefix("Topic: ").partition("\nChapter: ")
    if not chapter:
        return Reply(text="The problem\nThe idea\nHow it works\nWhat it costs")
    return Reply(text=f"{chapter}, with regard to {topic}: here stands what a model would have written.")


def scheduled(request: ChatRequest) -> Reply | None:
    """graphs/scheduled.py: says what to be reminded of."""
    if request.tools or request.schema is not None or not request.system.startswith("You write reminders:"):
        return None
    _, _, topic = request.prompt.partition("Remind me of: ")
    return Reply(text=f"A friendly reminder: it is time for {topic}.")


def racing(request: ChatRequest) -> Reply | None:
    """graphs/racing.py: a plan and then a long answer, or a short one."""
    about = re.search(r"\b(?:learn|about) ([^?.!]+)", request.prompt)
    subject = about[1].strip() if about else "this"
    if request.system.startswith("List the three aspects that matter most"):
        return Reply(text="Foundations\nPractice\nFeedback")
    if request.system.startswith("Think it through and answer thoroughly, aspect by aspect."):
        _, _, aspects = request.system.partition("The aspects:\n")
        parts = [f"{aspect}: plan a month for it, and write down what you find." for aspect in aspects.splitlines()]
        return Reply(text=f"On {subject}, thoroughly. {' '.join(parts)}")
    if request.system.startswith("Answer in one sentence, with what comes to mind first."):
        return Reply(text=f"On {subject}: start with a small project of your own and learn what it asks for.")
    return None


def chat(request: ChatRequest) -> Reply | None:
    """graphs/chat.py: writes a poem, and shortens what it said before, which shows that it remembers."""
    if request.tools or request.schema is not None:
        return None
    prompt = request.prompt.lower()
    if "shorten" in prompt:
        wanted = re.search(r"\b(\d+|one|two|three|four|five)\b", prompt)
        lines = (NUMBERS.get(wanted[1]) or int(wanted[1])) if wanted else 1
        shortened = "\n".join(request.previous_answer.splitlines()[:lines])
        return Reply(text=shortened or "There is nothing to shorten yet.")
    if "poem" in prompt:
        about = re.search(r"\babout ([^.?!]+)", request.prompt)
        return Reply(text=POEM.format(subject=about[1].strip() if about else "nothing at all"))
    return None


rules = [progress, scheduled, racing, chat]
