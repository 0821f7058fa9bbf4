# A fresh machine needs Python 3.11 to 3.13 and make; everything else comes from PyPI into .venv and .uv.

PYTHON ?= python3
PORT ?= 2024
SLOTS ?= 16
# Test processes: tests wait more than they compute, so more than there are cores.
JOBS ?= 3
CRM_PORT ?= 2025

UV := .uv/bin/uv
BIN := .venv/bin
READY := .venv/.ready
NPM := tests/wire/js/node_modules/.package-lock.json

.DEFAULT_GOAL := help
.PHONY: help serve crm tour demo test crash screenshots fuzz bench check format test-deps clean

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

serve: $(READY)  ## API and worker on port 2024, with an embedded PostgreSQL
	@exec $(BIN)/perdure serve --port $(PORT) --slots $(SLOTS)

# A database of its own, whatever DATABASE_URL says: the workers of one database must serve the same graphs.
crm: $(READY)  ## A second server for the pattern support: the assistant crm, on port 2025
	@DATABASE_URL='$(CRM_DATABASE_URL)' DATABASE_URI= POSTGRES_URI= PERDURE_DATA_DIR=.perdure/crm \
		exec $(BIN)/perdure serve --config langgraph.crm.json --port $(CRM_PORT)

tour: $(READY)  ## Every example of every pattern against the running server, one line each
	@exec $(BIN)/perdure tour --url http://127.0.0.1:$(PORT) --needs-port $(CRM_PORT) $(ARGS)

demo: $(READY)  ## The story in a minute: agents, a person, kill -9 of a worker, an outage
	@exec $(BIN)/perdure demo $(ARGS)

test: $(READY)  ## All tests, JOBS=3 processes at a time
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

crash: $(READY)  ## Kill workers around every commit of every scenario; prints a table
	CRASH_ALL=1 $(BIN)/python -m pytest tests/crash tests/engine/test_model.py -s -q $(ARGS)

screenshots: $(READY) $(NPM)  ## The pictures of docs/console.md; needs Chromium
	SCREENSHOTS=docs/images/console $(BIN)/python -m pytest tests/console/test_screenshots.py -q $(ARGS)

fuzz: $(READY)  ## Thousands of requests generated from our OpenAPI description, others each time
	FUZZ_CASES=30 $(BIN)/python -m pytest tests/wire/test_openapi.py -q $(ARGS)

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

test-deps: $(READY) $(NPM)  ## What the tests need beyond the Python packages: npm packages, and a look for Chromium
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		echo "Chromium not found: tests/wire/test_browser.py will be skipped (Debian: apt-get install chromium)"

$(NPM): tests/wire/js/package-lock.json
	@command -v npm >/dev/null || { echo "npm not found: install Node.js 20 or newer"; exit 1; }
	cd $(@D)/.. && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

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
