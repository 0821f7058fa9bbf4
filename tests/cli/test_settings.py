"""Settings: where a value comes from, and what is loaded into the environment for graph code."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from perdure.config import MODEL_KEYS, has_model_key, load_settings, point_at_simulator


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty directory, and an environment that is put back afterwards whatever is loaded into it."""
    names = {
        *MODEL_KEYS,
        "OPENAI_BASE_URL",
        "DATABASE_URL",
        "DATABASE_URI",
        "POSTGRES_URI",
        "PORT",
        "FROM_FILE",
    }
    names |= {name for name in os.environ if name.startswith("PERDURE_")} | {"PERDURE_MODEL", "PERDURE_SLOTS"}
    for name in names:
        monkeypatch.setenv(name, "")  # remembers what to restore
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_order_is_argument_environment_env_file_langgraph_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "langgraph.json").write_text('{"env": {"PERDURE_SLOTS": "1", "FROM_FILE": "yes"}}')
    assert load_settings().slots == 1
    assert os.environ["FROM_FILE"] == "yes"
    monkeypatch.delenv("PERDURE_SLOTS")
    (tmp_path / ".env").write_text("PERDURE_SLOTS=2\n")
    assert load_settings().slots == 2
    monkeypatch.setenv("PERDURE_SLOTS", "3")
    assert load_settings().slots == 3
    assert load_settings(slots=4).slots == 4
    assert load_settings(slots=None).slots == 3


def test_env_entry_may_be_a_file_next_to_langgraph_json(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "langgraph.json").write_text('{"env": "keys.env"}')
    (folder / "keys.env").write_text("OPENAI_API_KEY=sk-test\n")
    load_settings(config=folder / "langgraph.json")
    assert has_model_key()


def test_names_of_langgraphs_server_work_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URI", "postgresql://x/y")
    monkeypatch.setenv("N_JOBS_PER_WORKER", "7")
    monkeypatch.setenv("PORT", "8123")
    settings = load_settings()
    assert (settings.database_url, settings.slots, settings.port) == ("postgresql://x/y", 7, 8123)


def test_empty_variables_count_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("PERDURE_PORT", "")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    settings = load_settings()
    assert (settings.database_url, settings.port) == (None, 2024)
    assert not has_model_key()


def test_settings_cannot_be_changed_and_never_show_the_database_url() -> None:
    settings = load_settings(database_url="postgresql://me:hunter2@host/db")
    assert "hunter2" not in repr(settings)
    with pytest.raises(ValidationError):
        settings.slots = 5  # type: ignore[misc]


def test_simulator_is_found_by_clients_and_graphs() -> None:
    assert not has_model_key()
    point_at_simulator("http://127.0.0.1:1234")
    assert os.environ["OPENAI_BASE_URL"] == "http://127.0.0.1:1234/v1"
    assert os.environ["PERDURE_MODEL"].startswith("openai:")
    assert has_model_key()
