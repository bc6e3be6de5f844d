# Two commands for a fresh machine: `make demo` and `make test`; both set up `.venv` first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint types coverage matrix clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python examples/poisson_cascade.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache

types: setup
	$(BIN)/mypy

test: setup lint types
	$(BIN)/python -m pytest -n 2 -q

coverage: setup
	$(BIN)/python -m pytest -n 2 -q --cov=opifex --cov-report=term-missing:skip-covered

matrix:
	scripts/test_matrix.sh

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .matrix
