# Two commands on a fresh machine with Python >= 3.11, make and git: `make search` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
USE := $(VENV)/.use
READY := $(VENV)/.ready

.PHONY: setup search test test-slow check bench clean

setup: $(READY)

# What a search needs; what tests and checks need comes with them.
$(USE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $(USE)

$(READY): $(USE)
	$(PIP) -e '.[dev]'
	touch $(READY)

search: $(USE)
	$(BIN)/nas search experiments/quickstart.yaml

test: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal

test-slow: $(READY)
	$(BIN)/pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python experiments/benchmarks/speed.py
	$(BIN)/nas bench proxy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
