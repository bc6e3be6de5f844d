# Two commands for a fresh machine: `make demo` and `make test`; both set up `.venv` first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo compare test lint types coverage docs docs-figures package smoke release matrix clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python examples/poisson_cascade.py

compare: setup
	$(BIN)/python examples/poisson_comparison.py

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

docs: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	PYTHONPATH=scripts $(BIN)/zensical build --clean --strict

docs-figures: setup
	$(BIN)/python scripts/docs_figures.py

# Wheel and sdist in dist/; the wheel is built from the sdist, outside of this tree.
package: setup
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

# Both in fresh environments, on each Python that is there.
smoke: package
	scripts/smoke_test.sh

# A dry run; `scripts/release.sh --tag` tags.
release: setup
	scripts/release.sh

matrix:
	scripts/test_matrix.sh

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .matrix .cache dist site
