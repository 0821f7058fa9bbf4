"""`mailbox`: what others have sent to the thread while it works."""

from typing import Any

from perdure.durable.journal import here


async def mailbox() -> list[Any]:
    """The messages (JSON) sent to this thread since the last call of this word, oldest first; often none.

    Example:
        while not done:
            for message in await mailbox():
                messages.append(("human", message))
            answer = await ask(messages)

    Does not wait. Taking the messages and recording that they were taken is one transaction: none is lost and
    none comes twice, and a replay gives the same list. Outside of a perdure server it is always empty.
    """
    place = here()
    if place.journal is None:
        return []
    return await place.journal.receive(place.scope, place.visit)
