# `make demo` and `make test` work on a fresh clone: they create .venv and install into it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 2
WORKERS ?= 2

.PHONY: demo test lint types unit packaging gpu-bundle bench-search toolchain clean

demo: $(VENV)/.tune
	$(BIN)/python examples/demo.py --minutes $(MINUTES)

test: lint types unit packaging

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

# Those that time something run alone.
unit: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist=worksteal -m 'not measure' --ignore=tests/packaging
	$(BIN)/python -m pytest -q -m measure --ignore=tests/packaging

# Without `src` on the path, so that nothing of the checkout hides what was installed.
packaging: $(VENV)/.dev
	$(BIN)/python -m pytest -q -o pythonpath= tests/packaging

# What `python benchmarks/gpu/run.py` measures on a machine with a GPU and no compiler.
gpu-bundle: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu.prepare

# All search strategies and peers on all recorded spaces; stopped, it goes on where it was.
bench-search: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench-search]'
	$(BIN)/python -m benchmarks.search.run

# Editable: nothing is left in the checkout that a later build could pick up.
$(VENV)/.tune: pyproject.toml setup.py constraints.txt | toolchain
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[tune]'
	touch $@

$(VENV)/.dev: $(VENV)/.tune
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[tune,cuda,dev]'
	touch $@

toolchain:
	@command -v gcc >/dev/null && command -v g++ >/dev/null || \
		{ echo "gcc and g++ are needed, for example: apt-get install gcc g++" >&2; exit 1; }
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer with venv is needed; set PYTHON to one" >&2; exit 1; }

clean:
	rm -rf $(VENV) .demo .gpu-bundle .gpu-results .spaces .bench-search .learned-search .mypy_cache .pytest_cache .ruff_cache .hypothesis
