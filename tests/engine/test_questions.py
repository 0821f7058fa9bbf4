"""Lists of questions: what of a large one a list carries."""

import random
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from perdure.engine.views import questions

random.seed(7)
LONG = "".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=300_000))  # nothing that can be compressed
ASK = """
INSERT INTO interrupts (thread_id, checkpoint_id, task_id, n, checkpoint_ns, interrupt_id, run_id, graph_id,
                        assistant_id, token, question, answer, status)
VALUES (gen_random_uuid(), '', '', 0, '', '', gen_random_uuid(), 'agent', gen_random_uuid(), %s, %s, %s, 'answered')
"""


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        ({"question": "May I?", "action_requests": [{"name": "pay", "args": {"usd": 5}}]}, None),
        (None, None),
        (LONG, LONG[:1000]),
        ({"question": LONG, "deadline": None}, {"question": LONG[:1000]}),
        (
            {"action_requests": [{"name": "pay", "args": LONG}, {"name": LONG}, {"args": 1}]},
            {"action_requests": [{"name": "pay"}, {"name": LONG[:200]}], "text": None},
        ),
        ({"n": 1, "blank": "  ", "why": "because", "data": [LONG]}, {"action_requests": None, "text": "because"}),
        ([LONG], {"action_requests": None, "text": None}),
    ],
)
async def test_a_list_carries_the_words_of_a_large_question(lab, question: Any, shown: Any) -> None:
    async with lab.engine.pool.connection() as conn:
        await conn.execute("SET session_replication_role = replica")
        await conn.execute(ASK, ("token", Jsonb(question), Jsonb({"answer": LONG})))
        await conn.execute("RESET session_replication_role")
    (row,) = await questions.search(lab.engine, status="answered", brief=True)
    assert row["question"] == (question if shown is None else shown)
    assert "answer" not in row
    (row,) = await questions.search(lab.engine, status="answered")
    assert (row["question"], row["answer"]) == (question, {"answer": LONG})
