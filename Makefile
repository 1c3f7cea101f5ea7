# make demo | make test | make coverage | make lint | make docs | make wheel-check
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test coverage lint docs wheel-check clean

demo: $(VENV)/.installed
	$(BIN)/lumiglue sample --out demo.png

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# Lines and branches that the suite runs, and its slowest tests; fails below `fail_under` of pyproject.toml.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --cov --cov-report=term --durations=10

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
	$(BIN)/pip install --quiet --disable-pip-version-check "pip>=25.1"  # knows dependency groups

# torch first and by its exact version: elsewhere the resolver may pick a build with gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[sample]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[all]" --group dev
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) demo.png site
