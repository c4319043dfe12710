# Two commands matter: `make run` and `make test`. Both set everything up first.
#   TOUR=only: leave after the tour; no: skip it; yes: take it again.  PORT=7070
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOUR ?= first
PORT ?= 7070
ARGS ?=
# Hundreds of processes are started, and each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test check bench lock clean

run: $(VENV)/ready
	@scripts/run.sh "$(TOUR)" "$(PORT)" $(ARGS)

# Folder after folder, so that what takes long and waits (e2e) comes first and does not come last.
test: $(VENV)/ready-dev $(VENV)/ready-torch
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/test_tidy.py tests/unit/test_docs.py

bench: $(VENV)/ready-dev
	$(BIN)/python -m benchmarks.gateway
	$(BIN)/python -m benchmarks.checkpoint
	$(BIN)/python -m benchmarks.migration

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) scripts/setup.py $(VENV) requirements.lock
	@touch $@

$(VENV)/ready-dev: requirements-dev.lock pyproject.toml
	@$(PYTHON) scripts/setup.py $(VENV) requirements-dev.lock
	@touch $@ $(VENV)/ready

# For the tests that train with it. Where it cannot be had, the file is not made: try again.
$(VENV)/ready-torch: $(VENV)/ready-dev
	@$(BIN)/python scripts/setup_torch.py $(VENV) requirements-dev.lock

# Re-resolves both lock files; the second holds the first's versions.
lock:
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --extra llamacpp --group setup pyproject.toml \
	  -o requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --extra llamacpp --group setup --group dev \
	  -c requirements.lock pyproject.toml -o requirements-dev.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
