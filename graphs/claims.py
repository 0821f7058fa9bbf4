"""An insurance claim, as the claim patterns pass it around: plain JSON, so it may stand in graph state."""

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


class Claim(TypedDict):
    """An insurance claim."""

    amount: Annotated[float, Field(gt=0, description="Claimed amount in USD")]
    reason: Annotated[str, Field(description="What happened")]
    category: NotRequired[Annotated[str, Field(description="Kind of bill: hospital, dental, …")]]
    date: NotRequired[Annotated[str, Field(description="Day of treatment, YYYY-MM-DD")]]
    placeOfService: NotRequired[Annotated[str, Field(description="Who treated the patient, and where")]]
