"""The books of an insurer, for the claim patterns: a policy, usual prices and earlier claims.

Made up, and the same at every call. A real insurer would ask its own systems here, over the network.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from graphs.claims import Claim

POLICY = {
    "holder": "Jane Doe",
    "valid_from": "2024-01-01",
    "valid_until": "2026-12-31",
    "covered": ["hospital", "orthopedic", "dental", "pharmacy"],
}
PRICES = {
    # category: what most bills of this kind come to, in USD, from and to
    "hospital": (500, 6000),
    "orthopedic": (1200, 4500),
    "dental": (60, 900),
    "pharmacy": (5, 150),
}
PAID = [
    {"date": "2024-03-14", "amount": 240, "reason": "two fillings", "placeOfService": "Smile Dental Clinic"},
    {"date": "2024-09-20", "amount": 1800, "reason": "physiotherapy", "placeOfService": "General Hospital"},
]


async def policy(claim: Claim) -> dict[str, Any]:
    """What the policy covers, and when."""
    return {"policy": POLICY}


async def prices(claim: Claim) -> dict[str, Any]:
    """The usual price of what is claimed; null where there are too few bills to tell."""
    usual = PRICES.get(claim.get("category", ""))
    return {"usual_price": {"from": usual[0], "to": usual[1]} if usual else None}


async def history(claim: Claim) -> dict[str, Any]:
    """Claims of the same policy that were paid before."""
    return {"paid_claims": PAID}


BOOKS: dict[str, Callable[[Claim], Awaitable[dict[str, Any]]]] = {
    "eligibility": policy,
    "rate_comparison": prices,
    "fraud": history,
}
"""What each specialist looks at."""
