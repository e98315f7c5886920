# Everything here works in a fresh clone: the first target that needs it makes .venv and installs into it.
# Override on the command line: make test TORCH=torch PYTHON=python3.12 WORKERS=8 PYTEST_ARGS='-k packing'

PYTHON ?= python3
# Installed first and by itself, so that no other package chooses the build of torch.
TORCH ?= torch==2.13.0
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=
TOUR_ARGS ?=
# Without modules that others import, and those that must be told of a run or of a corpus.
NOT_ALONE := __init__ common contenders continued finetune_trainer mini_card mini_sweep plain_bert tables train_options
BENCHMARKS ?= $(filter-out $(NOT_ALONE:%=benchmarks/%.py),$(wildcard benchmarks/*.py))

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help tour test check bench docs

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-6s %s\n", $$1, $$2 }'

tour: $(VENV)/with-train ## pretrain a tiny encoder on text of this machine and fill masks with it
	$(BIN)/modernbert tour $(TOUR_ARGS)

# A worker takes file after file in their order: by default those of few tests, the longest here, would come last.
test: $(VENV)/with-test ## run the tests (GPU tests are skipped where there is no GPU)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(VENV)/with-dev ## formatting, lint, types and the rules of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(VENV)/with-test ## run the benchmarks of this machine; results go to benchmarks/results
	set -e; for file in $(BENCHMARKS); do \
	  $(BIN)/python -m "benchmarks.$$(basename "$$file" .py)"; \
	done

docs: $(VENV)/with-docs ## bring the README's tables up to date and build the documentation into site/
	$(BIN)/python -m benchmarks.tables
	$(BIN)/zensical build --clean --strict

# One stamp for each set of extras; a change of pyproject.toml installs it again.
$(VENV)/with-%: $(VENV)/torch pyproject.toml
	$(PIP) --editable '.[$*]'
	@touch $@

$(VENV)/torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed:" \
	    "make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)'
	@touch $@
