# What one does in a checkout of Quintet. `make` alone lists it.
SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Ansible insists on a locale of UTF-8, and messages are to be the same everywhere.
export LC_ALL := C.UTF-8
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Frames cut long lines, such as messages of errors.
export MOLECULE_COMMAND_BORDERS := false
export DEMO_HTTP_PORT ?= 8080
export DEMO_HTTPS_PORT ?= 8443
export DEMO_SUITE ?= trixie
export PYTHON
# The collections' and the tests' bytecode is to be kept, too (.venv has its own): a run of Ansible is hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

TOOLS := .venv/.ready
COLLECTIONS := collections/ansible_collections/.ready

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: venv ## Start a host with the whole site on http://127.0.0.1:8080 and https://127.0.0.1:8443 (DEMO_HTTP_PORT, DEMO_HTTPS_PORT, DEMO_SUITE=bookworm|trixie)
	@python tools/demo.py up

.PHONY: demo-down
demo-down: ## Remove the demo's host with all its data
	@$(PYTHON) tools/demo.py down

.PHONY: app
app: venv ## Run the sample app alone, on SQLite, at http://127.0.0.1:8000
	@cd sample_app && export DEBUG=1 && python manage.py migrate --verbosity 0 && python manage.py runserver 127.0.0.1:8000

.PHONY: venv
venv: $(TOOLS) $(COLLECTIONS) ## Install the tools into .venv and the collections into collections/

$(TOOLS): requirements-dev.txt $(wildcard sample_app/requirements*.txt) tools/venv.sh tools/templates.py
	@sh tools/venv.sh

$(COLLECTIONS): requirements.yml tools/requirements.yml tools/fetch_collections.py | $(TOOLS)
	@python tools/fetch_collections.py requirements.yml tools/requirements.yml

.PHONY: check
check: lint unit ## Run the fast checks: lint and unit tests

.PHONY: lint
lint: venv ## Run yamllint, ansible-lint, ruff and mypy
	$(call logged,yamllint --strict . && ansible-lint && ruff check . && ruff format --check . && sh tools/typecheck.sh)

.PHONY: unit
unit: venv ## Run the unit tests and the sample app's own
# The app's without bytecode beside its files, which scenarios copy meanwhile.
	$(call logged,(cd sample_app && PYTHONDONTWRITEBYTECODE=1 python manage.py test) && pytest)

# What these count and time, work beside them would change: beside the others their hosts are made, and nothing else.
ALONE := deploy overload
# What takes longest begins first, so that at the end no long one is left to run beside nothing.
LONG := cluster default faults roles tls secrets intruder
SCENARIOS := $(sort $(patsubst molecule/%/molecule.yml,%,$(wildcard molecule/*/molecule.yml)))
TOGETHER := $(filter $(SCENARIOS),$(LONG)) $(filter-out $(LONG) $(ALONE),$(SCENARIOS))
# How many at the same time: two keep two cores busy, and with three what is timed is late.
JOBS ?= 2

.PHONY: test
test: venv ## Run everything that must pass: every Molecule scenario, JOBS=2 at a time, and beside them unit tests and lint
	@mkdir -p .cache
	@rm -f .cache/*.failed
# The unit tests wait most of the time. Lint gets what the others leave of the processors: Linux shares them out by sessions, of which each
# worker of Ansible's is one, and within a session by how nice a process is.
	@setsid sh -c '$(MAKE) --no-print-directory unit; passed=$$?; echo 19 2>/dev/null >/proc/self/autogroup; \
	  nice -n 19 $(MAKE) --no-print-directory lint && exit $$passed' >.cache/beside.log 2>&1 & beside=$$!; \
	trap "kill -- -$$beside" INT TERM; \
	$(MAKE) --no-print-directory --output-sync --jobs $(JOBS) $(addprefix molecule-,$(TOGETHER)) $(addprefix hosts-,$(ALONE)) \
	  && $(MAKE) --no-print-directory $(addprefix verify-,$(ALONE)); passed=$$?; \
	wait $$beside || passed=1; \
	cat .cache/beside.log; \
	[ $$passed = 0 ] || { cat .cache/*.failed; exit 1; }
	@echo "make test: lint, unit tests, the sample app's tests and the Molecule scenarios $(SCENARIOS) all passed"

# $(call logged,COMMANDS): `test` says at its very end what failed, since what ran beside it goes on.
define logged
	@mkdir -p .cache
	@bash -o pipefail -c 'time { $(1); } 2>&1 | tee .cache/$@.log' \
	  || { { echo "==> What failed in $@ (all of it: .cache/$@.log)"; \
	         sed 's/\x1b\[[0-9;]*m//g' .cache/$@.log | grep -E -A 6 '^(fatal:|\[ERROR\]| *(FAILED|ERROR) tests/| *E  )' | tail -n 60; \
	         tail -n 5 .cache/$@.log; } >.cache/$@.failed; exit 1; }
endef

# One scenario: make molecule-roles.
$(addprefix molecule-,$(SCENARIOS)): molecule-%: venv
	$(call logged,molecule test --scenario-name $*)

# The same in two steps.
$(addprefix hosts-,$(ALONE)): hosts-%: venv
	$(call logged,molecule destroy --scenario-name $* && molecule converge --scenario-name $*)

$(addprefix verify-,$(ALONE)): verify-%: venv
	$(call logged,molecule verify --scenario-name $* && molecule destroy --scenario-name $*)

.PHONY: readmes
readmes: venv ## Write the tables of the roles' READMEs from their argument specs
	@python tools/role_readmes.py

.PHONY: build
build: venv ## Build the collection's artifact into build/
	ansible-galaxy collection build --force --output-path build

.PHONY: clean
clean: ## Remove what was built and cached, with .venv and the fetched collections
	rm -rf .venv .cache build .ansible .mypy_cache .pytest_cache .ruff_cache
	find collections/ansible_collections -mindepth 1 -maxdepth 1 ! -name quintet -exec rm -rf {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
