# A fresh machine needs Python 3.11 to 3.13 and make; everything else comes from PyPI into .venv and .uv.

PYTHON ?= python3
PORT ?= 2024
SLOTS ?= 16

UV := .uv/bin/uv
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help serve demo test crash bench check format test-deps clean

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

serve: $(READY)  ## API and worker on port 2024, with an embedded PostgreSQL
	@exec $(BIN)/perdure serve --port $(PORT) --slots $(SLOTS)

demo: $(READY)  ## The story in a minute: agents, a person, kill -9 of a worker, an outage
	@exec $(BIN)/perdure demo $(ARGS)

test: $(READY)  ## All tests
	$(BIN)/python -m pytest $(ARGS)

crash: $(READY)  ## Kill workers around every commit of every scenario; prints a table
	CRASH_ALL=1 $(BIN)/python -m pytest tests/crash tests/engine/test_model.py -s -q $(ARGS)

bench: $(READY)  ## Measure server, checkpointer and growth, small numbers; see bench/README.md
	$(BIN)/python -m bench --n 60 --json bench/results/server.json
	$(BIN)/python -m bench.saver --runs 48 --rounds 3 --json bench/results/saver.json
	$(BIN)/python -m bench.messages --json bench/results/messages.json

check: $(READY)  ## Format, lint, types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright

format: $(READY)  ## Format and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

test-deps: $(READY)  ## What the tests need beyond the Python packages

clean:  ## Remove what make created; data in .perdure stays
	rm -rf .venv .uv .pytest_cache .ruff_cache dist build

# uv lives in an environment of its own: a sync removes from .venv what the lock file does not name.
$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8'

# --python: the one that is there, never a download.
$(READY): pyproject.toml uv.lock | $(UV)
	UV_PROJECT_ENVIRONMENT=.venv $(UV) sync --frozen --quiet --no-python-downloads --python $(PYTHON)
	@touch $@
