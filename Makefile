# Two commands do everything on a fresh machine: `make demo` and `make test`. Both bootstrap uv themselves.
# A distribution builds its Python with what profiles tell, whoever builds one by hand mostly does not: the tests take a
# quarter longer by such a one, so that it comes second.
PYTHON ?= $(shell for each in /usr/bin/python3 python3; do $$each -c 'import ensurepip, sys, venv; \
	sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; done; echo $$each)
UV := .uv/bin/uv
RUN := $(UV) run --frozen --no-sync
BENCH := .bench/venv
AREAS := calls gateway telemetry memory resilience units saga events postgres
# Four workers, for half of the tests wait more than they work; a file's tests are in one of them.
PYTEST := pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder
LOOP ?= asyncio
SEED ?= 0
N ?= 100
MINUTES ?= 5
S ?= 60
EVENTS ?= 100000

# Images of containers often forbid Python to keep what it has compiled. Each of the four workers would compile all tests
# anew, 20 s of CPU each, and each process that a test starts what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test chromium pgbouncer coverage compiled lint types layers docs reference pictures sim soak nemesis tailing cascade restarts bench $(AREAS:%=bench-%) sync clean

help: ## Show what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: sync ## Run servo-works as processes, break it on purpose, audit its databases; ENGINE=postgres: two of each, on PostgreSQL and NATS; ENGINE=all: one of each
	@$(RUN) python -m synchromesh.examples.servo_works.demo $(if $(ENGINE),--engine $(ENGINE))

test: sync chromium pgbouncer ## Everything: ruff, layers, docs, two at a time, then one pytest run of four workers, mypy in it; LOOP=uvloop
	@$(MAKE) --no-print-directory -j 2 --output-sync=target compiled lint layers docs
	@SYNCHROMESH_TEST_LOOP=$(LOOP) $(RUN) $(PYTEST)

# Four workers that begin on a fresh checkout would compile all tests four times. What is wrong in them, the run says.
compiled: sync
	@$(RUN) pytest --collect-only -qq > /dev/null || true

# What the suite needs of Debian itself, installed where this may be done: a browser for the console, and PgBouncer. A fresh
# machine has no lists of packages, or old ones, which name what is no more. Two at a time would wait for one lock.
chromium: PROGRAM = chromium
pgbouncer: PROGRAM = /usr/sbin/pgbouncer
pgbouncer: chromium
chromium pgbouncer:
	@command -v $(PROGRAM) > /dev/null || { test "$$(id -u)" = 0 && apt-get -qq update > /dev/null && \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $@ > /dev/null; } || \
		{ echo "the suite needs $@; install it: apt-get update && apt-get install --yes $@"; exit 1; }

# Traced line by line the suite takes half as long again, so that it is not part of every run.
coverage: sync ## The suite with its coverage, of lines and branches
	@$(RUN) $(PYTEST) --cov --cov-report=term:skip-covered

lint: sync ## ruff: rules and format
	@$(RUN) ruff check src tests benchmarks scripts
	@$(RUN) ruff format --check src tests benchmarks scripts

types: sync ## mypy --strict
	@$(RUN) mypy

layers: sync ## import-linter: layers and the purity of machines
	@$(RUN) lint-imports --no-logo --no-cache

docs: sync ## Build the documentation, offline, into site/
	@$(RUN) zensical build --clean --strict

reference: sync ## Write docs/reference/ from docstrings and the schema of synchromesh.toml
	@$(RUN) python -m scripts.reference

pictures: sync ## Draw docs/pictures/; terminals from what was recorded
	@$(RUN) python -m scripts.pictures

sim: sync ## Simulate N universes from SEED; N=1 replays one exactly
	@$(RUN) python -m synchromesh.examples.servo_works.simulation --seed $(SEED) --count $(N)

soak: sync ## Kill, stop, fill and replace servo-works' processes under load for MINUTES
	@$(RUN) python -m scripts.soak --minutes $(MINUTES)

nemesis: sync ## Kill and stop servo-works' replicas, gateways, PostgreSQL and NATS under load for S seconds
	@$(RUN) python -m scripts.nemesis --seconds $(S)

tailing: sync ## Write EVENTS by 8 writers in 4 processes on PostgreSQL, which all read them meanwhile, and skip none
	@TAILED_EVENTS=$(EVENTS) $(RUN) pytest -q -p no:xdist tests/integration/test_postgres_tailing.py

cascade: sync ## Measure what one ill service does to its callers, in virtual time, from SEED
	@$(RUN) python -m benchmarks.cascade --seed $(SEED)

bench: $(AREAS:%=bench-%) ## Measure against peers, all areas; one: make bench-calls; QUICK=1: a smoke

restarts: $(BENCH)/.synced ## Count what httpx, aiohttp, undici, nginx lose while the gateway is reloaded, replaced, stopped: REQUESTS each
	@$(BENCH)/bin/python -m benchmarks.restarts

$(AREAS:%=bench-%): bench-%: $(BENCH)/.synced
	@$(BENCH)/bin/python -m benchmarks.$*

# Peers have an environment of their own, so that no test ever runs with them installed.
$(BENCH)/.synced: Makefile pyproject.toml uv.lock $(UV)
	@UV_PROJECT_ENVIRONMENT=$(BENCH) $(UV) sync --locked --quiet --no-default-groups --group bench --extra jwt --extra engines
	@touch $@

sync: .venv/.synced

.venv/.synced: pyproject.toml uv.lock $(UV)
	@test -e .venv || $(UV) venv --quiet --python $(PYTHON)
	@$(UV) sync --locked --offline --quiet 2>/dev/null || $(UV) sync --locked --quiet
	@touch $@

$(UV):
	@echo "setting up uv in .uv/ (once)"
	@$(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

clean: ## Remove everything that was made
	rm -rf .uv .venv .bench site .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
