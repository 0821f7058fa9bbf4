"""One example of an agent, played over HTTP: sent, its questions answered, its outcome awaited and summed up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, cast
from urllib.parse import quote

from perdure.cli.client import Client

PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.05
WORK = ("model", "tool", "step")
"""Kinds of entries of a timeline that are executions of code."""


@dataclass
class Played:
    """What has become of an example. `status` is that of `POST /agents/{agent}/run`, `expected` what it should be."""

    agent: str
    input: Any
    expected: int
    status: int = 0
    answer: Any = None
    thread_id: str | None = None
    runs: int = 0
    questions: int = 0
    model_calls: int = 0
    steps: int = 0
    seconds: float = 0.0
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None and self.status == self.expected

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def play(client: Client, agent: str, example: dict[str, Any]) -> Played:
    """Send the example and see it through, also where it asks a person, in a child run or not."""
    played = Played(agent, example["input"], example.get("status", 200))
    began = time.monotonic()
    path = f"/agents/{quote(agent, safe='')}" + (f"/{quote(example['key'], safe='')}" if "key" in example else "")
    sent = client.send("POST", f"{path}/send", example["input"])
    if sent.is_error:
        played.status, played.problem = sent.status_code, sent.text
    else:
        tree = Tree(client, sent.json()["thread_id"], sent.json()["run_id"])
        _see_through(client, tree, example, played, began + PATIENCE_SECONDS)
    played.seconds = time.monotonic() - began
    return played


@dataclass
class Tree:
    """The runs that have come of one: on its thread from it on, and the child runs of them all."""

    client: Client
    thread_id: str
    run_id: str
    _first: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self._first[self.thread_id] = self.run_id

    def runs(self, thread_id: str) -> list[dict[str, Any]]:
        """The runs of one of its threads that belong to it, newest first."""
        rows: list[dict[str, Any]] = self.client.json("GET", f"/threads/{thread_id}/runs", limit=100)
        first = next((row for row in rows if row["run_id"] == self._first[thread_id]), None)
        return [row for row in rows if first is None or row["created_at"] >= first["created_at"]]

    def walk(self) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Each run with its timeline. Children of other servers are theirs."""
        seen: set[str] = set()
        while ahead := [thread_id for thread_id in self._first if thread_id not in seen]:
            seen.add(ahead[0])
            for run in self.runs(ahead[0]):
                entries = self.client.json("GET", f"/threads/{ahead[0]}/runs/{run['run_id']}/steps", limit=1000)
                for child in (entry["child"] for entry in entries if entry["kind"] == "child"):
                    if not child.get("server"):
                        self._first.setdefault(child["thread_id"], child["run_id"])
                yield run, entries

    def threads(self) -> set[str]:
        """Where its runs are, as far as they have started."""
        return {run["thread_id"] for run, _ in self.walk()}


def _see_through(client: Client, tree: Tree, example: dict[str, Any], played: Played, deadline: float) -> None:
    played.thread_id, path = tree.thread_id, f"/threads/{tree.thread_id}"
    alone = bool(example.get("unanswered"))
    run_id = tree.run_id  # the run whose end is the outcome: the first one, or the one that took the last answer
    while True:
        run = tree.runs(tree.thread_id)[0] if alone else client.json("GET", f"{path}/runs/{run_id}")
        resumed = [] if alone else _answer(client, tree, example.get("answer", True))
        played.questions += len(resumed)
        run_id = next((row["run_id"] for row in resumed if row["thread_id"] == tree.thread_id), run_id)
        busy = run["status"] in ("pending", "running") or bool(resumed)
        if not busy and not (alone and client.json("GET", path)["status"] in ("busy", "interrupted")):
            break
        if time.monotonic() > deadline:
            shown = "suspended" if run.get("suspended") else run["status"]
            played.problem = f"run {run['run_id']} is still {shown} after {PATIENCE_SECONDS:g} s"
            break
        time.sleep(POLL_SECONDS)
    for _, entries in tree.walk():
        played.runs += 1
        played.steps += sum(entry["kind"] in WORK for entry in entries)
        calls = (attempt.get("model", {}).get("calls", 0) for entry in entries for attempt in entry["attempts"])
        played.model_calls += sum(calls)
    if played.problem is None:
        outcome: Any = client.json("GET", f"{path}/runs/{run['run_id']}/join")
        played.status, played.answer = _outcome(run, outcome)


def _answer(client: Client, tree: Tree, answer: Any) -> list[dict[str, Any]]:
    """Answer what the runs of this tree ask right now; the runs that go on with it."""
    asked: list[dict[str, Any]] = client.json("GET", "/interrupts", status="open", limit=1000)
    if not asked:
        return []
    threads = tree.threads()
    tokens = [question["token"] for question in asked if question["thread_id"] in threads]
    given = [client.send("POST", f"/interrupts/{token}/resolve", answer) for token in tokens]
    # 409: somebody else was quicker, or its time was over
    return [response.json() for response in given if response.status_code == 202]


def _outcome(run: dict[str, Any], values: Any) -> tuple[int, Any]:
    """The HTTP status that `run` would have answered with, and what."""
    found = _mapping(values)
    if error := found.get("__error__"):
        status: Any = error.get("status")
        text = f"{error.get('error')}: {error.get('message')}"
        return status if isinstance(status, int) and 400 <= status <= 599 else 422, text
    if run["status"] == "interrupted":
        return 409, "The run was cancelled"
    if "__interrupt__" in found:
        return 202, found["__interrupt__"]
    return 200, values


def _mapping(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
