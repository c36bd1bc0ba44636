# Metergate's everyday commands. `make` alone lists them.

SHELL       := /bin/bash
VENV        := .venv
BIN         := $(VENV)/bin
STAMP       := $(VENV)/.installed
# Set PYTHON=/path/to/python3 to choose; else the newest supported one that runs is taken.
PYTHON      ?=
CANDIDATES  := python3.13 python3.12 python3.11 python3.14 python3 python
# Arguments for `up` and for pytest: make up ARGS='--port 7000', make test-fast ARGS='-k quota'.
ARGS        ?=
# Tests are independent of each other, those with servers file by file. These wait more than they work.
WORKERS     ?= 2
SERVERS     ?= 3

# Where an environment forbids it, as many images do, every process compiles our code anew, half a second of a processor
# each time, and each process of the tests all tests, six seconds.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup up kafka tools test test-fast matrix soak guards fuzz audit loadtest lint format proto pages lock clean

help: ## List the commands
	@echo "Metergate: make COMMAND [ARGS='...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything installed (instant when nothing changed)

$(STAMP): pyproject.toml constraints.txt requirements.lock
	@set -eu; \
	runs='import sys; sys.exit(sys.version_info < (3, 11))'; \
	chosen=''; \
	for candidate in $(or $(PYTHON),$(CANDIDATES)); do \
	    if "$$candidate" -c "$$runs" >/dev/null 2>&1; then chosen=$$candidate; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	    found=$$($(or $(PYTHON),python3) --version 2>&1 || true); \
	    echo "make setup: Metergate needs Python 3.11 or newer; found: $${found:-none}." >&2; \
	    echo "Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	fi; \
	if ! "$$chosen" -c 'import venv, ensurepip' >/dev/null 2>&1; then \
	    echo "make setup: $$chosen lacks the venv module (Debian, Ubuntu: install python3-venv)." >&2; \
	    exit 1; \
	fi; \
	if [ -n "$(PYTHON)" ] || ! $(BIN)/python -c "$$runs" >/dev/null 2>&1; then \
	    echo "setup: $(VENV) with $$("$$chosen" --version)"; \
	    "$$chosen" -m venv --clear $(VENV); \
	fi; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1; \
	echo "setup: installing the locked packages"; \
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock; \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .; \
	$(BIN)/python -m pip check >$(VENV)/check.txt 2>&1 || { \
	    cat $(VENV)/check.txt >&2; \
	    echo "make setup: requirements.lock lags behind pyproject.toml: run make lock." >&2; \
	    exit 1; \
	}; \
	touch $@

# The trap lets Ctrl-C reach metergate while the shell stays to swallow its exit status 130.
up: $(STAMP) ## Start the gateway in this terminal; Ctrl-C ends it
	@trap : INT; $(BIN)/metergate up $(ARGS) || { status=$$?; [ $$status -eq 130 ] || exit $$status; }

# Into the user's cache; the tests that need a broker are skipped without it.
kafka: ## Fetch Apache Kafka for the tests (needs Maven, and Java 17 to run it)
	@set -eu; jars="$${XDG_CACHE_HOME:-$$HOME/.cache}/metergate/kafka"; \
	if cmp -s deploy/kafka/pom.xml "$$jars/pom.xml"; then exit 0; fi; \
	command -v mvn >/dev/null || { echo "make kafka: needs Maven (mvn) on the PATH." >&2; exit 1; }; \
	echo "kafka: fetching its jars into $$jars"; rm -rf "$$jars"; mkdir -p "$$jars"; \
	mvn --quiet --batch-mode -f deploy/kafka/pom.xml dependency:copy-dependencies \
	    -DoutputDirectory="$$jars"; \
	cp deploy/kafka/pom.xml "$$jars/pom.xml"

# Likewise. The sums of all sources are in go.sum.
tools: ## Build Helm and what else reads deploy/ for the tests (needs Go)
	@set -eu; bin="$${XDG_CACHE_HOME:-$$HOME/.cache}/metergate/tools"; \
	of="deploy/tools/go.sum deploy/tools/operator/main.go"; \
	if cat $$of | cmp -s - "$$bin/built-of"; then exit 0; fi; \
	command -v go >/dev/null || { echo "make tools: needs Go (go) on the PATH." >&2; exit 1; }; \
	echo "tools: building Helm, which takes a few minutes, into $$bin"; mkdir -p "$$bin"; \
	(cd deploy/tools && export GOTOOLCHAIN=auto && go build -o "$$bin/helm" helm.sh/helm/v3/cmd/helm \
	    && go build -o "$$bin/compose-spec" github.com/compose-spec/compose-go/v2/cmd \
	    && go build -o "$$bin/operator-check" ./operator); \
	cat $$of >"$$bin/built-of"

# Without a restart: a process that died by a test would run that test again, and its successor may wait for ever.
# The second run's summary closes the output. Exit status 5 there: no such tests (yet).
test: $(STAMP) ## Run every test
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --max-worker-restart=0 tests/property tests/unit $(ARGS)
	$(BIN)/pytest -n $(SERVERS) --dist loadfile --max-worker-restart=0 --ignore=tests/unit --ignore=tests/property tests $(ARGS) || [ $$? -eq 5 ]

# Half an hour. Needs Kafka's jars (make kafka) and PostgreSQL, as the tests do.
matrix: export METERGATE_KEEP_MATRIX = 1
matrix: $(STAMP) ## Kill every process before every step, cause every fault; write docs/guarantees.md
	$(BIN)/python -m tests.chaos.matrix crashes
	$(BIN)/pytest tests/chaos/test_faults.py $(ARGS)
	$(BIN)/python -m tests.chaos.matrix tables

# With Kafka and PostgreSQL where they are here, WAY=embedded without. The seed decides the order of the faults.
soak: $(STAMP) ## Mix all kinds of load, strike at random, add up: MINUTES=30 EVERY=20 SEED=1 WAY=kafka
	@$(BIN)/python -m tests.chaos.soak $(call asked,MINUTES,--minutes) $(call asked,EVERY,--every) \
	    $(call asked,SEED,--seed) $(call asked,WAY,--path) $(ARGS)

# Some ten minutes.
guards: $(STAMP) ## Take away each guard of docs/security.md, and see its test fail
	$(BIN)/python -m tests.guards.mutants $(ARGS)

# Beside .venv: what only looks is in no lock.
fuzz: $(STAMP) ## Let libFuzzer send requests to every method (SECONDS=60)
	@set -eu; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target "$$scratch" 'atheris==3.*'; \
	mkdir "$$scratch/found"; root=$$PWD; cd "$$scratch/found"; \
	PYTHONPATH="$$scratch:$$root" "$$root/$(BIN)/python" -m tests.fuzz.requests \
	    -max_total_time=$(if $(findstring command,$(origin SECONDS)),$(SECONDS),60) -timeout=30 -max_len=4096 \
	    || { cp -n "$$scratch"/found/crash-* "$$root" 2>/dev/null; exit 1; }

# Needs an index with PyPI's JSON interface; one that only has files fails here instead of passing unseen.
audit: ## Ask for known vulnerabilities of the locked packages
	@set -eu; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	python3 -m venv "$$scratch"; \
	"$$scratch/bin/python" -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9'; \
	"$$scratch/bin/pip-audit" --strict --disable-pip --require-hashes -r requirements.lock

test-fast: $(STAMP) ## Run the unit tests: no server, no network
	$(BIN)/pytest -n $(WORKERS) tests/unit $(ARGS)

# From the command line only: an environment often has a SECONDS or a USERS of its own.
asked = $(if $(findstring command,$(origin $(1))),$(2) '$($(1))')
loadtest: $(STAMP) ## Send load, check the sums: SCENARIO=steady RATE=200 SECONDS=30 (loadtests/README.md)
	@$(BIN)/python -m loadtests run $(SCENARIO) $(call asked,RATE,--rate) $(call asked,SECONDS,--seconds) \
	    $(call asked,CUSTOMERS,--customers) $(call asked,CONNECTIONS,--connections) \
	    $(call asked,GENERATORS,--generators) $(call asked,SPACING,--spacing) $(call asked,UP,--up) \
	    $(call asked,TOOL,--tool) $(call asked,USERS,--users) $(call asked,UI,--ui) \
	    $(call asked,FACTOR,--factor) $(call asked,BATCH,--batch) $(call asked,HOLD,--hold) $(call asked,TRACE,--trace) \
	    $(call asked,ENDPOINT,--endpoint) $(call asked,DATA_DIR,--data-dir) $(ARGS)

lint: $(STAMP) ## Check style, types, imports, protos, and that generated code is current
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/python proto/generate.py --check
	$(BIN)/python deploy/metrics_page.py --check
	$(BIN)/python deploy/grafana/generate.py --check

format: $(STAMP) ## Rewrite the code in the house style
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

proto: $(STAMP) ## Generate the protos' code in src/
	$(BIN)/python proto/generate.py

pages: $(STAMP) ## Generate docs/metrics.md and the dashboards in deploy/grafana
	$(BIN)/python deploy/metrics_page.py
	$(BIN)/python deploy/grafana/generate.py

# In an environment of its own: the present one may be what has to change.
lock: ## Write constraints.txt and requirements.lock (UPGRADE=1 moves every pin)
	@set -eu; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	python3.11 -m venv "$$scratch"; \
	"$$scratch/bin/python" -m pip install --quiet --disable-pip-version-check 'pip==26.*'; \
	"$$scratch/bin/python" deploy/lock.py $(if $(UPGRADE),--upgrade)

clean: ## Remove .venv, caches and builds; data folders stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests proto deploy loadtests -name __pycache__ -type d -prune -exec rm -rf {} +
