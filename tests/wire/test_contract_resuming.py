"""The wire contract of answers: where `command.resume` goes when a client names a checkpoint, or edits first."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.conftest import eventually


def wait(http: httpx.Client, thread: str, graph: str, **body: Any) -> Any:
    answer = http.post(f"/threads/{thread}/runs/wait", json={"assistant_id": graph, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def resume(http: httpx.Client, thread: str, graph: str, value: Any, **body: Any) -> httpx.Response:
    command = {"resume": value}
    return http.post(f"/threads/{thread}/runs/wait", json={"assistant_id": graph, "command": command, **body})


def state(http: httpx.Client, thread: str) -> Any:
    return http.get(f"/threads/{thread}/state", params={"subgraphs": True}).json()


def forms(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Each way to say at which checkpoint a run begins."""
    named = {"checkpoint_id": checkpoint["checkpoint_id"]}
    return [named, {"checkpoint": checkpoint}, {"checkpoint": named}, {"config": {"configurable": named}}]


@pytest.mark.parametrize("form", range(4))
@pytest.mark.parametrize(("graph", "given"), [("asks", {"log": []}), ("nested", {"topic": "tea"})])
def test_an_answer_may_name_the_newest_checkpoint(
    http: httpx.Client, thread: str, graph: str, given: Any, form: int
) -> None:
    """As chat front ends and Studio send it: the answer counts, the question is not asked again."""
    wait(http, thread, graph, input=given)
    answered = resume(http, thread, graph, "yes", **forms(state(http, thread)["checkpoint"])[form]).json()
    assert answered["answer"] == "yes"
    assert "__interrupt__" not in answered
    assert http.get(f"/threads/{thread}").json()["status"] == "idle"


def test_an_answer_may_name_the_checkpoint_of_the_subgraph_that_asks(http: httpx.Client, thread: str) -> None:
    for whole in (True, False):
        wait(http, thread, "nested", input={"topic": "tea"})
        [task] = http.get(f"/threads/{thread}/state").json()["tasks"]
        [inner] = state(http, thread)["tasks"]
        checkpoint = inner["state"]["checkpoint"] if whole else task["checkpoint"]
        assert resume(http, thread, "nested", "yes", checkpoint=checkpoint).json()["answer"] == "yes"


def test_a_question_of_the_past_takes_no_answer_but_is_asked_again(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "asks", input={"log": []})
    past = state(http, thread)["checkpoint"]
    resume(http, thread, "asks", "first")
    for form in forms(past):
        late = resume(http, thread, "asks", "second", **form)
        assert late.status_code == 409
        assert past["checkpoint_id"] in late.json()["detail"]
    assert http.get(f"/threads/{thread}").json()["values"]["answer"] == "first"
    assert "__interrupt__" in wait(http, thread, "asks", input=None, checkpoint=past)
    assert resume(http, thread, "asks", "second").json()["answer"] == "second"


def test_a_state_edited_by_hand_takes_the_answer(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "asks", input={"log": []})
    http.post(f"/threads/{thread}/state", json={"values": {"topic": "edited"}})
    assert state(http, thread)["next"] == ["ask"]
    done = resume(http, thread, "asks", "yes").json()
    assert (done["topic"], done["answer"], done["log"]) == ("edited", "yes", ["before", "asked", "after"])
    assert resume(http, thread, "asks", "again").status_code == 409


def test_an_edited_subgraph_takes_the_answer(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "nested", input={"topic": "tea"})
    [task] = state(http, thread)["tasks"]
    inner = task["state"]["checkpoint"]
    http.post(f"/threads/{thread}/state", json={"values": {"topic": "edited"}, "checkpoint": inner})
    done = resume(http, thread, "nested", "yes").json()
    assert (done["topic"], done["answer"]) == ("edited", "yes")


def test_of_several_answers_to_an_edited_state_one_counts(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "asks", input={"log": []})
    http.post(f"/threads/{thread}/state", json={"values": {"topic": "edited"}})
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda n: resume(http, thread, "asks", n).status_code, range(4)))
    assert sorted(codes) == [200, 409, 409, 409]


def test_an_answer_waits_for_the_question_behind_a_stop(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "asks", input={"log": []}, interrupt_before=["ask"])
    assert resume(http, thread, "asks", "early").json()["answer"] == "early"


def test_a_copy_takes_answers_of_its_own(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "two", input={"log": []})
    copy = http.post(f"/threads/{thread}/copy").json()["thread_id"]
    first, second = (question["id"] for question in state(http, copy)["interrupts"])
    left = resume(http, copy, "two", {first: 1}).json()
    assert [question["id"] for question in left["__interrupt__"]] == [second]
    assert len(resume(http, copy, "two", {second: 2}).json()["log"]) == 2
    assert len(state(http, thread)["interrupts"]) == 2
    assert http.get(f"/threads/{thread}").json()["status"] == "interrupted"


def test_a_thread_that_waits_for_nothing_takes_no_answer(http: httpx.Client, thread: str) -> None:
    assert resume(http, thread, "asks", "yes").status_code == 409
    wait(http, thread, "fails", input={"log": []})
    assert state(http, thread)["next"] == ["boom"]
    assert resume(http, thread, "fails", "yes").status_code == 409
    other = http.post("/threads", json={}).json()["thread_id"]
    wait(http, other, "line", input={"log": []})
    assert resume(http, other, "line", "yes").status_code == 409


def test_a_run_begins_at_a_checkpoint_of_a_subgraph(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "nested", input={"topic": "tea"})
    [task] = http.get(f"/threads/{thread}/state").json()["tasks"]
    body = {"limit": 10, "checkpoint": task["checkpoint"]}
    inner = http.post(f"/threads/{thread}/history", json=body).json()
    resume(http, thread, "nested", "first")
    before_draft = next(found for found in inner if found["next"] == ["draft"])
    assert "__interrupt__" in wait(http, thread, "nested", input=None, checkpoint=before_draft["checkpoint"])
    assert resume(http, thread, "nested", "second").json()["answer"] == "second"


def test_a_question_is_open_again_when_the_input_that_superseded_it_is_rolled_back(
    http: httpx.Client, thread: str
) -> None:
    [question] = wait(http, thread, "asks", input={"log": []})["__interrupt__"]
    body = {"assistant_id": "slow", "input": {"seconds": 60}}
    run = http.post(f"/threads/{thread}/runs", json=body).json()["run_id"]
    eventually(lambda: state(http, thread)["metadata"]["run_id"], lambda found: found == run)
    assert resume(http, thread, "asks", "yes").status_code == 409
    http.post(f"/threads/{thread}/runs/{run}/cancel?wait=1&action=rollback")
    shown = http.get(f"/threads/{thread}").json()
    assert (shown["status"], shown["error"]["error"]) == ("interrupted", "UserRollback")
    assert resume(http, thread, "asks", {question["id"]: "yes"}).json()["answer"] == "yes"


def test_each_answer_after_an_edit_goes_to_its_own_question(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "thrice", input={"log": []})
    http.post(f"/threads/{thread}/state", json={"values": {"topic": "edited"}})
    for n in (1, 2):
        assert resume(http, thread, "thrice", n).json()["__interrupt__"][0]["value"] == n + 1
    assert resume(http, thread, "thrice", 3).json()["answer"] == [1, 2, 3]


def test_an_answer_after_an_edit_is_rolled_back_whole(http: httpx.Client, thread: str) -> None:
    wait(http, thread, "thrice", input={"log": [], "seconds": 60})
    http.post(f"/threads/{thread}/state", json={"values": {"topic": "edited"}})
    body = {"assistant_id": "thrice", "command": {"resume": "lost"}}
    run = http.post(f"/threads/{thread}/runs", json=body).json()["run_id"]
    eventually(lambda: http.get(f"/threads/{thread}/runs/{run}").json()["status"], lambda found: found == "running")
    http.post(f"/threads/{thread}/runs/{run}/cancel?wait=1&action=rollback")
    http.post(f"/threads/{thread}/state", json={"values": {"seconds": 0}})
    for n in (1, 2):
        resume(http, thread, "thrice", n)
    assert resume(http, thread, "thrice", 3).json()["answer"] == [1, 2, 3]
