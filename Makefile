# Two commands on a fresh machine (Python 3.11+): `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Everything writes into $(VENV) and .mirage/; `make clean` removes both.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Many images set it; each of the many processes of a test would then compile all of our modules.
export PYTHONDONTWRITEBYTECODE :=
# A process of tests for every core, at most 8; tests that share a server stay in one (tests/conftest.py).
PYTEST   := $(BIN)/python -m pytest --durations=10
SPREAD   := $(PYTEST) --dist loadgroup -n logical --maxprocesses
PARALLEL := OMP_NUM_THREADS=1 $(SPREAD) 8
# What `make quick` leaves out: servers, clusters, training, whole networks, groups of processes.
LONG := $(addprefix tests/orchestrator/,bench cluster evaluation maintenance models promotion registry resilience restoration \
	tracking training) tests/jobs tests/mirage/test_distributed.py tests/shards/test_parallel.py tests/shards/test_readers.py

.PHONY: demo test test-slow quick check docs setup clean help mutants

help:
	@echo "make demo       set up, then run the main job on real photographs (no GPU, 3 to 6 minutes)"
	@echo "make test       set up, then style, types, imports and the tests"
	@echo "make test-slow  clusters, kills, servers, the main job (about 40 minutes)"
	@echo "make quick      the tests of all that needs no server, no cluster and no training (about 3 minutes)"
	@echo "make mutants    random changes in named modules, and which of them the tests notice (MUTANTS='--each 2 shards/cache.py')"
	@echo "make check      style, types and import rules alone"
	@echo "make docs       the documentation as HTML in .mirage/docs/site"
	@echo "make clean      remove .venv and .mirage"

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml constraints.txt scripts/setup scripts/debian-package
	@scripts/setup $(PYTHON) $(VENV)
	@touch $@

demo: setup
	@scripts/demo

check: setup
	@scripts/check

docs: setup
	@$(BIN)/python scripts/docs

quick: setup
	@$(PARALLEL) -m "not slow" $(addprefix --ignore=,$(LONG)) -x

test: setup check
	@$(PARALLEL) -m "not slow"

test-slow: setup
	@scripts/debian-package chromium "the page's tests will fail" chromium chromium-browser google-chrome
	@$(SPREAD) 2 --no-loadscope-reorder -m "slow and not cluster"
	@$(PYTEST) -m "slow and cluster" tests/orchestrator/cluster tests/slow

mutants: setup
	@$(BIN)/python scripts/mutants $(MUTANTS)

clean:
	rm -rf $(VENV) .mirage .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
