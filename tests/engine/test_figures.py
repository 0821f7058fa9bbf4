"""The numbers and lists of the console: what they count, in which order, and for whom."""

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from perdure.engine import diagnosis, finding
from perdure.engine.errors import InvalidInput
from perdure.engine.registry import Registry
from perdure.engine.views import figures, runlist, threadlist, workers


class State(TypedDict, total=False):
    text: str


def _node(given: State) -> State:
    if given["text"] == "fail":
        raise ValueError("it is Monday")
    return {"text": "done"}


_builder = StateGraph(State).add_node("node", _node).add_edge(START, "node").add_edge("node", END)
GRAPHS = {"default": _builder.compile(), "other": _builder.compile()}

MODEL_STEP = """
INSERT INTO steps (thread_id, scope, name, identity, n, call, run_id, status, attempts)
SELECT thread_id, 'node:1', 'model', '', 0, 0, run_id, 'done',
       jsonb_build_array(jsonb_build_object('seconds', 1, 'model', %(model)s::jsonb, 'started_at',
                         to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US+00:00')))
  FROM runs WHERE run_id = %(run_id)s
"""


async def ran(lab: Any, *texts: str, thread: UUID | None = None, **metadata: Any) -> list[dict[str, Any]]:
    """A run for each text, executed."""
    made = [await lab.enqueue(thread or await lab.thread(metadata=metadata), {"text": text}) for text in texts]
    await lab.work()
    return made


async def test_runs_of_the_window_are_counted_by_agent_and_outcome(lab: Any) -> None:
    await ran(lab, "ok", "ok", "ok", "fail")
    waiting = await lab.enqueue(await lab.thread(), {"text": ""})
    seen = await figures.overview(lab.engine)
    agent, other = seen["agents"]
    assert (agent["agent"], other["agent"]) == ("default", "other")
    assert agent["ended"] == {"success": 3, "error": 1, "timeout": 0, "interrupted": 0}
    assert agent["active"] == {"pending": 1, "running": 0, "suspended": 0, "paused": 0}
    assert agent["success_rate"] == 0.75
    assert 0 < agent["p50"] <= agent["p99"]
    assert (other["success_rate"], other["p50"]) == (None, None)
    assert {**agent, "agent": None} == {**seen["total"], "agent": None}
    assert sum(bucket["success"] for bucket in seen["buckets"]) == 3
    assert sum(bucket["error"] for bucket in seen["buckets"]) == 1
    assert (seen["queue"]["ready"], seen["queue"]["oldest_seconds"] >= 0) == ({"n": 1, "more": False}, True)
    assert not seen["cut"]
    await lab.execute(
        "UPDATE runs SET ended_at = ended_at - interval '3 hours' WHERE run_id <> %(id)s", id=waiting["run_id"]
    )
    assert (await figures.overview(lab.engine))["total"]["ended"]["success"] == 0
    assert (await figures.overview(lab.engine, hours=4))["total"]["ended"]["success"] == 3


async def test_buckets_cover_the_whole_window(lab: Any) -> None:
    for hours, width in ((1, 60), (24, 720), (24 * 30, 21600)):
        seen = await figures.overview(lab.engine, hours=hours)
        assert seen["bucket_seconds"] == width
        assert 60 <= len(seen["buckets"]) <= 121


async def test_tokens_and_costs_are_summed_by_model(lab: Any) -> None:
    (run, again) = await ran(lab, "ok", "ok")
    old = '{"calls": 1, "input_tokens": 5, "output_tokens": 5}'
    new = (
        '{"calls": 2, "input_tokens": 1000000, "output_tokens": 10, "first_token_seconds": 0.5,'
        ' "names": {"m": {"calls": 2, "input_tokens": 1000000, "output_tokens": 10}}}'
    )
    await lab.execute(MODEL_STEP, run_id=run["run_id"], model=new)
    registry = Registry({"prices": {"m": {"input": 2, "output": 0}}}, lab.engine.registry.graphs)
    engine = replace(lab.engine, registry=registry)
    agent = (await figures.overview(engine))["agents"][0]
    assert (agent["model_calls"], agent["input_tokens"], agent["output_tokens"]) == (2, 1000000, 10)
    assert (agent["cost"], agent["first_token_p50"]) == (2.0, 0.5)
    await lab.execute(MODEL_STEP, run_id=again["run_id"], model=old)
    seen = await figures.overview(engine)
    assert [model["name"] for model in seen["total"]["models"]] == ["m", "unnamed"]
    assert (seen["total"]["model_calls"], seen["total"]["cost"]) == (3, None)
    await lab.execute(
        "UPDATE steps SET attempts = jsonb_set(attempts, '{0,started_at}', '\"2020-01-01T00:00:00+00:00\"')"
    )
    assert (await figures.overview(engine))["total"]["model_calls"] == 0, "an attempt of long ago"


async def test_who_sees_a_part_gets_the_figures_of_that_part(lab: Any) -> None:
    await ran(lab, "ok", "ok", user="ann")
    await ran(lab, "ok", user="bob")
    seen = await figures.overview(lab.engine, within={"user": "bob"})
    assert seen["total"]["ended"]["success"] == 1
    assert (await runlist.count_runs(lab.engine, within={"user": "ann"}))["success"] == {"n": 2, "more": False}
    assert len((await runlist.find_runs(lab.engine, within={"user": "ann"}))["rows"]) == 2
    assert len((await threadlist.find_threads(lab.engine, within={"user": "bob"}))["rows"]) == 1


@pytest.mark.parametrize("thread", [False, True])
async def test_pages_of_runs_follow_each_other_newest_first(lab: Any, thread: bool) -> None:
    thread_id = await lab.thread()
    made = await ran(lab, *["ok", "fail", "ok"] * 5, thread=thread_id if thread else None)
    seen, cursor, pages = [], None, 0
    while True:
        page = await runlist.find_runs(lab.engine, limit=4, cursor=cursor, thread_id=thread_id if thread else None)
        seen += [row["run_id"] for row in page["rows"]]
        pages += 1
        if (cursor := page["cursor"]) is None:
            break
    assert seen == [run["run_id"] for run in reversed(made)]
    assert pages == 4
    wire = await finding.search(lab.engine, limit=100)
    assert [run["run_id"] for run in wire] == seen


async def test_runs_are_found_by_status_agent_error_thread_time_and_id(lab: Any) -> None:
    good, bad = await ran(lab, "ok", "fail")
    find = runlist.find_runs

    async def ids(**given: Any) -> list[UUID]:
        return [row["run_id"] for row in (await find(lab.engine, **given))["rows"]]

    assert await ids(status=["error", "timeout"]) == [bad["run_id"]]
    assert await ids(agent="default") == [bad["run_id"], good["run_id"]]
    assert await ids(agent="other") == []
    assert await ids(error="IS MONDAY") == [bad["run_id"]]
    assert await ids(error="100%_") == []
    assert await ids(thread_id=good["thread_id"]) == [good["run_id"]]
    assert await ids(thread_id=good["thread_id"], status=["error"]) == []
    assert await ids(since=bad["created_at"]) == [bad["run_id"]]
    assert await ids(until=bad["created_at"]) == [good["run_id"]]
    assert await ids(run_id_prefix=str(bad["run_id"])) == [bad["run_id"]]
    assert await ids(run_id_prefix=str(bad["run_id"]), status=["success"]) == []
    assert await ids(status=[]) == []
    (row,) = (await find(lab.engine, status=["error"]))["rows"]
    assert row["error"].startswith("ValueError: it is Monday")
    assert "kwargs" not in row
    for wrong in ({"cursor": "x"}, {"cursor": "1_99999999999999999999999"}, {"run_id_prefix": "xyz"}):
        with pytest.raises(InvalidInput):
            await find(lab.engine, **wrong)


async def test_a_page_that_found_little_says_from_where_to_look_further(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlist, "SCAN", 3)
    monkeypatch.setattr(runlist, "FEW_THREADS", 0)
    old, *_ = await ran(lab, "fail", user="ann")
    await ran(lab, *["ok"] * 7, user="bob")
    seen, cursor, pages = [], None, 0
    while True:
        page = await runlist.find_runs(lab.engine, cursor=cursor, within={"user": "ann"}, limit=5)
        seen += [row["run_id"] for row in page["rows"]]
        pages += 1
        assert page["partial"] == (page["cursor"] is not None)
        if (cursor := page["cursor"]) is None:
            break
    assert (seen, pages) == ([old["run_id"]], 3)


async def test_threads_are_found_by_status_metadata_agent_and_id_last_touched_first(lab: Any) -> None:
    made = await ran(lab, "ok", "fail", "ok", user="ann")
    await lab.thread(metadata={"user": "bob"})
    ids = [run["thread_id"] for run in made]

    async def found(**given: Any) -> list[UUID]:
        return [row["thread_id"] for row in (await threadlist.find_threads(lab.engine, **given))["rows"]]

    assert len(await found()) == 4
    assert set(await found(metadata={"user": "ann"})) == set(ids)
    assert await found(status="error") == [ids[1]]
    assert await found(status="error", metadata={"user": "bob"}) == []
    assert set(await found(agent="default")) == set(ids)
    assert await found(id_prefix=str(ids[2])[:13]) == [ids[2]]
    everything = await found()
    first = await threadlist.find_threads(lab.engine, limit=3)
    rest = await threadlist.find_threads(lab.engine, limit=3, cursor=first["cursor"])
    assert [row["thread_id"] for row in (*first["rows"], *rest["rows"])] == everything
    assert rest["cursor"] is None


@pytest.mark.parametrize("few", [0, 2000])
async def test_threads_of_many_and_of_few_are_the_same(lab: Any, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(threadlist, "FEW", few)
    monkeypatch.setattr(threadlist, "SCAN", 2)
    wanted = [await lab.thread(metadata={"user": "ann" if n % 3 == 0 else "bob"}) for n in range(9)][::3]
    seen, cursor = [], None
    while True:
        page = await threadlist.find_threads(lab.engine, metadata={"user": "ann"}, limit=2, cursor=cursor)
        seen += [row["thread_id"] for row in page["rows"]]
        if (cursor := page["cursor"]) is None:
            break
    assert seen == wanted[::-1]


async def test_workers_are_listed_with_their_runs_and_whether_they_live(lab: Any) -> None:
    run = await lab.enqueue(await lab.thread(metadata={"user": "ann"}), {"text": "ok"})
    await lab.claim_one()
    (worker,) = await workers.list_workers(lab.engine)
    assert (worker["alive"], worker["used"], worker["slots"]) == (False, 1, 1)
    assert [one["run_id"] for one in worker["runs"]] == [run["run_id"]]
    assert worker["lease_until"] == worker["runs"][0]["lease_until"]
    key = (await lab.one("SELECT lock_key FROM workers"))["lock_key"]
    async with lab.connection() as conn:
        await conn.execute("SELECT pg_advisory_lock(%(key)s)", {"key": key})
        assert (await workers.list_workers(lab.engine))[0]["alive"]
    assert (await workers.list_workers(lab.engine, within={"user": "bob"}))[0]["runs"] == []


@pytest.mark.parametrize("key", [2**61 + 5, 7, 2**32])
async def test_the_lock_of_a_worker_is_recognised_whatever_its_number(lab: Any, key: int) -> None:
    await lab.execute(
        "INSERT INTO workers (worker_id, lock_key, name, slots) VALUES (%(id)s, %(key)s, 'w', 1)", id=uuid4(), key=key
    )
    async with lab.connection() as conn:
        await conn.execute("SELECT pg_advisory_lock(%(key)s)", {"key": key})
        assert [worker["alive"] for worker in await workers.list_workers(lab.engine)] == [True]


async def test_the_diagnosis_says_what_to_do_and_names_no_connection(lab: Any) -> None:
    url = "postgresql://me:hunter2@db/x"
    engine = replace(lab.engine, settings=lab.engine.settings.model_copy(update={"database_url": url}))
    found = {check["name"]: check for check in await diagnosis.checks(engine)}
    assert (found["database"]["ok"], found["migrations"]["ok"], found["workers"]["ok"]) == (True, True, None)
    assert "perdure worker" in found["workers"]["fix"]
    assert "hunter2" not in str(found)
    await lab.enqueue(await lab.thread(), {"text": ""})
    await lab.claim_one()
    await lab.execute("UPDATE workers SET seen_at = now() - interval '1 hour'")
    await lab.execute("UPDATE runs SET status = 'paused'")
    await lab.execute("DELETE FROM perdure_migrations WHERE name = '0012_console.sql'")
    found = {check["name"]: check for check in await diagnosis.checks(engine)}
    assert (found["migrations"]["ok"], "0012" in found["migrations"]["detail"]) == (None, True)
    await lab.execute("INSERT INTO perdure_migrations (name, checksum) VALUES ('0012_console.sql', '')")
    found = {check["name"]: check for check in await diagnosis.checks(engine)}
    assert (found["workers"]["ok"], found["paused"]["ok"]) == (None, None)
