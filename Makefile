# Every target does its own set-up: a machine with python3 (3.11 or newer, with venv) and make is enough.
# Versions and hashes stand in requirements/*.txt; the second run of a target installs nothing.

PYTHON ?= python3
ARGS ?=
SEEDS ?= 20000
ROUNDS ?= 50
STEPS ?= 200000

BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
LOCK := .venv/lock/bin/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-annotate \
	--no-header --no-emit-options --no-emit-index-url --no-emit-trusted-host --no-emit-find-links
export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help demo test check bench serve simulate crash lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: .venv/demo ## the gateway, a fake provider and the official SDKs, then the report
	$(BIN)/tollkeeper demo $(ARGS)

test: .venv/dev .venv/redis ## all tests; ARGS="-k name" narrows them
	$(BIN)/pytest $(ARGS)

check: .venv/dev .venv/redis ## style, types, the import contract and the house rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/test_tidy.py

bench: .venv/demo .venv/bench .venv/redis ## measure the gateway beside nginx on this machine
	$(BIN)/python -m benchmarks $(ARGS)

serve: .venv/demo ## run the gateway; ARGS="--port 4141"
	$(BIN)/tollkeeper serve $(ARGS)

simulate: .venv/dev ## the seeded simulation at length; SEEDS=100000
	$(BIN)/pytest tests/simulation --seeds $(SEEDS) $(ARGS)

crash: .venv/dev .venv/redis ## kill gateways and Redis in every way, and Redis beside the model; ROUNDS=500
	$(BIN)/pytest tests/crash tests/property/test_redis_machine.py --rounds $(ROUNDS) --steps $(STEPS) $(ARGS)

lock: .venv/lock/bin/pip-compile ## resolve pyproject.toml again into requirements/*.txt
	$(PYTHON) requirements/wanted.py demo | $(LOCK) --upgrade --output-file requirements/demo.txt -
	$(PYTHON) requirements/wanted.py demo test check \
		| $(LOCK) --upgrade --constraint requirements/demo.txt --output-file requirements/dev.txt -

clean: ## remove what the targets made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("Tollkeeper needs Python 3.11 or newer; name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

# The project comes last and alone: its build backend is in the lock, so nothing is fetched without a hash.
.venv/demo: requirements/demo.txt pyproject.toml | $(BIN)/pip
	$(PIP) install --require-hashes --only-binary :all: -r requirements/demo.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: requirements/dev.txt pyproject.toml | $(BIN)/pip
	$(PIP) install --require-hashes --only-binary :all: -r requirements/dev.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch .venv/demo $@

.venv/bench: | $(BIN)/pip
	@if ! { command -v nginx && command -v wrk; } >/dev/null; then \
		if [ "$$(id -u)" != 0 ]; then echo "make bench needs nginx and wrk: sudo apt-get install nginx wrk" >&2; exit 1; fi; \
		apt-get update && apt-get install --yes --no-install-recommends nginx wrk; \
	fi
	@touch $@

# A redis-server for the tests to start; without one they skip, and fail where CI=true. redis-tools and not redis-server: that
# one also installs a service, which would start now and at each boot. Its redis-check-rdb is the server's binary, which
# goes by the name that it is called by; Debian's /usr/bin/redis-server is a link to it as well.
.venv/redis: | $(BIN)/pip
	@if ! { command -v redis-server || command -v valkey-server; } >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update && apt-get install --yes --no-install-recommends redis-tools \
			&& ln -sf "$$(command -v redis-check-rdb)" $(BIN)/redis-server; \
	fi; \
	if command -v redis-server || command -v valkey-server || [ -x $(BIN)/redis-server ]; then touch $@; \
	else echo "No redis-server: what needs one is skipped. On Debian: sudo apt-get install redis-server" >&2; fi >/dev/null

.venv/lock/bin/pip-compile: | $(BIN)/pip
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/pip --disable-pip-version-check --quiet install 'pip-tools>=7.6,<8'
