# make demo | make test | make test-demo | make lint
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-demo lint clean

demo: $(VENV)/.installed
	$(BIN)/lumiglue sample --out demo.png

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

# An environment of its own, as Gradio asks for an older Pillow than the rest is pinned to.
test-demo: .venv-demo/.installed
	.venv-demo/bin/python -m pytest tests/test_demo.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

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

.venv-demo/.installed: pyproject.toml constraints-demo.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/pip install --quiet -c constraints-demo.txt "$$(grep '^torch==' constraints-demo.txt)"
	.venv-demo/bin/pip install --quiet -c constraints-demo.txt -e ".[demo,test]"
	touch $@

clean:
	rm -rf $(VENV) .venv-demo demo.png
