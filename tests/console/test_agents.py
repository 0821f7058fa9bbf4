"""Each agent has a page: its graph as a drawing and in words, its schemas, assistants, and requests that work."""

import shlex
from typing import Any

import httpx
import orjson
import pytest
from playwright.sync_api import expect

from perdure.console.outline import MAX_DEPTH, outline
from tests.console.conftest import WAIT_SECONDS, Open, axe, eventually

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror=window.hacked=1>"


def test_every_graph_has_a_card_that_leads_to_its_page(api: httpx.Client, open_page: Open) -> None:
    page = open_page("/console/agents")
    names = [one["agent"] for one in api.get("/agents").json()]
    assert page.locator(".agents h2 a").all_inner_texts() == names
    page.get_by_role("link", name="multi_agent", exact=True).click()
    expect(page.get_by_role("heading", name="multi_agent", level=1)).to_be_visible()


def test_the_cards_follow_what_happens(api: httpx.Client, open_page: Open) -> None:
    page = open_page("/console/agents")
    card = page.locator(".agents .card", has=page.get_by_role("link", name="human_approval", exact=True))
    before = card.locator(".badges").inner_text()
    claim = {"claim": {"amount": 5, "reason": "a plaster"}}

    def look() -> str:
        answer = api.post("/agents/human_approval/run", json=claim)
        assert answer.status_code == 202  # again: what ends before the page has connected is not announced to it
        return card.locator(".badges").inner_text()

    eventually(look, lambda text: text != before)


def test_the_graph_is_drawn_with_its_subgraph_which_folds(open_page: Open) -> None:
    page = open_page("/console/agents/multi_agent")
    graph = page.locator("agent-graph")
    expect(graph.locator('[data-node="adjuster:tools"]')).to_contain_text("check_fraud")
    expect(graph.locator(".group")).to_have_count(1)
    expect(graph.locator(".edge.conditional")).to_have_count(4)  # one of them from the model to itself
    expect(graph.locator(".edge:not(.conditional)")).to_have_count(5)
    sizes = graph.evaluate("one => [...one.querySelectorAll('.node > rect')].map(r => r.getBoundingClientRect().width)")
    assert min(sizes) > 5
    graph.get_by_role("button", name="Fold subgraphs").press("Enter")
    expect(graph.locator('[data-node="adjuster"]')).to_be_visible()
    expect(graph.locator('[data-node="adjuster:tools"]')).to_have_count(0)
    graph.get_by_role("button", name="Unfold subgraphs").press("Enter")
    expect(graph.locator('[data-node="adjuster:tools"]')).to_be_visible()


def test_the_graph_is_there_in_words(open_page: Open) -> None:
    page = open_page("/console/agents/multi_agent")
    page.locator("agent-graph summary", has_text="As a list").click()
    words = page.locator("agent-graph li")
    expect(words.filter(has_text="adjuster › model →")).to_contain_text("adjuster › tools (perhaps)")
    expect(words.filter(has_text="adjuster › tools, tools check_eligibility")).to_be_visible()


def test_nodes_of_the_drawing_can_be_lit(open_page: Open) -> None:
    page = open_page("/console/agents/multi_agent")
    graph = page.locator("agent-graph")
    node = graph.locator('[data-node="adjuster:model"]')
    expect(node).to_be_visible()
    graph.evaluate("one => one.highlight('adjuster:model', 'running')")
    expect(node).to_have_attribute("data-state", "running")
    expect(graph.locator('.group[data-node="adjuster"]')).to_have_attribute("data-state", "running")
    graph.evaluate("one => { one.dataset.lit = JSON.stringify({intake: 'done'}) }")
    expect(graph.locator('[data-node="intake"]')).to_have_attribute("data-state", "done")
    assert node.get_attribute("data-state") is None
    graph.evaluate("one => one.clear()")
    expect(graph.locator("[data-state]")).to_have_count(0)


@pytest.mark.parametrize("agent", ["weather", "parallel_tools", "coding_agent", "booking", "hand_off", "progress"])
def test_every_shape_of_graph_is_drawn_without_nodes_on_each_other(open_page: Open, agent: str) -> None:
    page = open_page(f"/console/agents/{agent}")
    expect(page.locator("agent-graph .node").first).to_be_visible()
    overlaps = page.evaluate(
        """() => {
            const boxes = [...document.querySelectorAll("agent-graph .node")].map((one) => one.getBoundingClientRect());
            return boxes.flatMap((a, n) => boxes.slice(n + 1).filter((b) =>
                a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)).length;
        }"""
    )
    assert overlaps == 0


def test_a_request_leads_into_the_playground_filled_in(open_page: Open) -> None:
    page = open_page("/console/agents/approval")
    page.get_by_role("link", name="Try it: request 2").click()
    page.wait_for_url("**/console/playground?agent=approval&example=1")
    expect(page.get_by_label("prompt")).to_have_value("Process my dental bill of 300USD for a filling.")


def test_the_curl_form_of_a_request_works(api: httpx.Client, open_page: Open) -> None:
    page = open_page("/console/agents/approval")
    page.locator(".example").nth(1).get_by_text("As curl").click()
    words = shlex.split(page.locator(".example").nth(1).locator("details pre").inner_text())
    assert words[:2] == ["curl", "-s"]
    assert words[-2] == "-d"
    assert words[2] == f"{str(api.base_url).rstrip('/')}/agents/approval/run"
    assert httpx.post(words[2], content=words[-1], timeout=WAIT_SECONDS).status_code == 200


def test_assistants_show_their_versions_and_hostile_names_as_text(api: httpx.Client, open_page: Open) -> None:
    made = api.post("/assistants", json={"graph_id": "racing", "name": HOSTILE, "config": {"tags": [HOSTILE]}}).json()
    patch = {"description": "x" * 400 + HOSTILE}
    assert api.patch(f"/assistants/{made['assistant_id']}", json=patch).json()["version"] == 2
    page = open_page("/console/agents/racing")
    row = page.locator(f"#assistant-{made['assistant_id']}")
    expect(row.locator("summary").first).to_contain_text("<script>window.hacked = 1</script>")
    row.locator("summary").first.click()
    expect(row.locator(".plain > li")).to_have_count(2)
    expect(row.locator(".plain > li").first).to_contain_text("current")
    assert page.evaluate("window.hacked") is None
    api.delete(f"/assistants/{made['assistant_id']}")


def test_an_unknown_agent_is_a_page_that_says_so(api: httpx.Client) -> None:
    answer = api.get("/console/agents/<script>")
    assert answer.status_code == 404
    assert "langgraph.json defines" in answer.text
    assert "<script>'" not in answer.text


@pytest.mark.parametrize("path", ["/console/agents", "/console/agents/multi_agent"])
@pytest.mark.parametrize("phone", [False, True])
def test_the_pages_are_accessible_and_fit(open_page: Open, path: str, phone: bool) -> None:
    page = open_page(path, phone=phone, dark=phone)
    if path.endswith("multi_agent"):
        expect(page.locator("agent-graph .node").first).to_be_visible()
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def fields(schema: dict[str, Any]) -> list[tuple[str, str, bool]]:
    return [(one["name"], one["type"], one["required"]) for one in outline(schema)]


def test_fields_are_told_by_name_and_type() -> None:
    schema = {
        "type": "object",
        "required": ["text"],
        "properties": {
            "text": {"type": "string"},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "kind": {"enum": ["a", "b"]},
            "names": {"type": "array", "items": {"type": "string"}},
            "claim": {"$ref": "#/$defs/Claim"},
            "messages": {
                "type": "array",
                "items": {"anyOf": [{"$ref": "#/$defs/HumanMessage"}, {"$ref": "#/$defs/AIMessage"}]},
            },
        },
        "$defs": {
            "Claim": {"title": "Claim", "type": "object", "properties": {"amount": {"type": "number"}}},
            "HumanMessage": {"type": "object"},
            "AIMessage": {"type": "object"},
        },
    }
    assert fields(schema) == [
        ("text", "string", True),
        ("limit", "integer or null", False),
        ("kind", "one of 'a', 'b'", False),
        ("names", "list of string", False),
        ("claim", "Claim", False),
        ("messages", "messages", False),
    ]
    assert outline(schema)[4]["fields"][0]["name"] == "amount"


@pytest.mark.parametrize(
    "schema",
    [None, 3, "x", [], {}, {"$ref": "#/$defs/None"}, {"$ref": "#/x/y"}, {"properties": 3}, {"properties": {"a": 3}}],
)
def test_a_schema_that_says_nothing_has_no_fields_or_any(schema: Any) -> None:
    assert all(one["type"] == "any" for one in outline(schema))


def test_a_schema_that_refers_to_itself_ends() -> None:
    node: dict[str, Any] = {"title": "Node", "type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    found = outline({"$ref": "#/$defs/Node", "$defs": {"Node": node}})
    depth = 0
    while found:
        depth, found = depth + 1, found[0]["fields"]
    assert depth == MAX_DEPTH
    assert len(orjson.dumps(outline({"$ref": "#", "$defs": {}}))) < 100
