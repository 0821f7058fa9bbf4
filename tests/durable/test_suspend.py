"""Waiting leaves a node past whatever author code catches."""

import pytest

from perdure import agent
from perdure.durable.suspend import Suspend
from tests.durable.fakes import Bench


async def test_an_authors_except_exception_does_not_swallow_a_wait() -> None:
    caught: list[Exception] = []

    async def node() -> str:
        try:
            return await agent("child", {})
        except Exception as exc:
            caught.append(exc)
            return "gave up"

    with pytest.raises(Suspend):
        await Bench().run(node)
    assert not caught
