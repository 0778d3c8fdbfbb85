# Needs python3 >= 3.11 and make; everything else is installed into .venv on the first call.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# A Ray of their own for the tests, open because it lives on this machine only and for minutes; small machines wait less.
# Threads of torch that wait do not spin: more processes than CPUs are at work.
TEST_ENV := env -u RAY_ADDRESS -u RAY_AUTH_TOKEN -u RAY_AUTH_TOKEN_PATH RAY_AUTH_MODE=disabled \
	RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_USAGE_STATS_ENABLED=0 RAY_DATA_PARQUET_FOOTER_NUM_ACTORS=1 OMP_WAIT_POLICY=PASSIVE

# What takes long is apart: see the markers in pyproject.toml.
APART := (system or long)
# Each run there starts a Ray of its own.
FAULTS := tests/test_chaos.py tests/test_several_nodes.py
# Of the system tests, those that take about as long as the others together.
JOBS := tests/test_jobs.py
# A second shared Ray, beside the first, takes these.
BESIDE := tests/stages/test_compare.py tests/stages/test_dynamics.py tests/stages/test_subset.py tests/test_formats.py \
	tests/test_pipeline.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-ray test-beside test-others test-system test-jobs test-system-others test-long chaos lint types wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with the pinned packages (about 7 GB of disk, the first time only)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"python3 >= 3.11 is needed, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "== setup: installing the pinned packages into $(VENV) (about 7 GB of disk, some minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## prune real digits to 30 %, train on all and on the kept, compare
	@echo "== demo: python jobs/demo.py"
	@$(RUN) jobs/demo.py

test: lint ## lint, types, doctests and tests
	@echo "== tests: pytest, those that need Ray (in two processes) beside the others and the doctests"
	@$(MAKE) --no-print-directory -j4 types test-ray test-beside test-others

test-ray: setup
	@$(TEST_ENV) $(RUN) -m pytest -m 'ray and not $(APART)' $(BESIDE:%=--ignore=%) --durations=10 --durations-min=5

test-beside: setup
	@$(TEST_ENV) $(RUN) -m pytest -q -m 'not $(APART)' $(BESIDE) --durations=5 --durations-min=5

test-others: setup
	@$(TEST_ENV) $(RUN) -m pytest -q -m 'not ray and not $(APART)' --doctest-modules razor_ray tests \
		$(BESIDE:%=--ignore=%) $(FAULTS:%=--ignore=%) --ignore=tests/faults
	@$(TEST_ENV) $(RUN) -m pytest -q -m 'not $(APART)' $(FAULTS)

test-system: setup ## what CI runs besides: jobs, also killed ones, a bucket, ISPL rounds, the alarm, the demo
	@echo "== system tests: pytest -m system, jobs beside the others"
	@$(MAKE) --no-print-directory -j2 test-jobs test-system-others

test-jobs: setup
	@$(TEST_ENV) $(RUN) -m pytest -q -m 'system and not long' $(JOBS) --durations=5

test-system-others: setup
	@$(TEST_ENV) $(RUN) -m pytest -q -m 'system and not long' $(JOBS:%=--ignore=%) --durations=5

test-long: setup ## before a release: runs that lose nodes, workers or a driver, or are asked to stop; every benchmark, tiny; the alarm on all of CIFAR-10
	@echo "== long tests: pytest -m long"
	@$(TEST_ENV) $(RUN) -m pytest -m long

chaos: setup ## runs that are killed at random points and begun again (up to an hour; make test has a short form)
	@echo "== chaos: pytest tests/chaos_long.py"
	@$(TEST_ENV) $(RUN) -m pytest -q -rP tests/chaos_long.py

lint: setup ## ruff, check and format
	@echo "== lint: ruff check, ruff format --check"
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

types: setup ## pyright
	@echo "== types: pyright"
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(RUN) -m pyright --pythonpath $(RUN)

wheel: setup ## dist/ as cluster.yaml mounts it: the package and its constraints
	@echo "== wheel: dist/"
	@rm -rf dist
	@$(RUN) -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist .
	@cp constraints.txt dist/
	@ls dist

clean: ## remove .venv, caches and what the demo wrote
	@echo "== clean: .venv, caches, dist, demo-run"
	@rm -rf $(VENV) dist build demo-run .pytest_cache .ruff_cache .hypothesis
	@find razor_ray jobs tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
