# make demo   a lab of three XenoServers on this machine, a template, a deployment
# make test   lint, types, import contracts and all tests
# make unit   the tests that start neither servers nor guests: under a minute
# make bench  how long things take, and what a user would do otherwise: figures
# More: setup, lint, lock, clean.

BIN := .venv/bin
ARGS ?=
# Packages that templates are built from: fetched once for all test runs.
export XENOSHELL_TEST_CACHE_DIR ?= $(CURDIR)/.cache

.PHONY: demo test unit setup lint bench lock clean
.DEFAULT_GOAL := demo

demo: setup
	@$(BIN)/xenoshell demo $(ARGS)

test: lint
	@.ci/setup tests
	@$(BIN)/pytest $(ARGS)

unit:
	@.ci/setup tests
	@$(BIN)/pytest -q -m "not integration and not e2e" $(ARGS)

setup:
	@.ci/setup

lint: setup
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup
	@XENOSHELL_CACHE_DIR="$(XENOSHELL_TEST_CACHE_DIR)" $(BIN)/python -m tests.bench.deploy $(ARGS)

# requirements.lock from the pins in pyproject.toml, with the hash of every file that a package has.
lock: setup
	@set -e; tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	$(BIN)/python -m venv "$$tools"; \
	"$$tools/bin/pip" --disable-pip-version-check -q install pip-tools==7.6.2; \
	$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	print(*p["project"]["dependencies"], *p["dependency-groups"]["dev"], sep="\n")' >"$$tools/requirements.in"; \
	"$$tools/bin/pip-compile" -q --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
	-o requirements.lock "$$tools/requirements.in"

clean:
	@if [ -x $(BIN)/xenoshell ]; then $(BIN)/xenoshell lab down --yes && $(BIN)/xenoshell lab down --yes \
	--state-dir "$$($(BIN)/python -c 'from xenoshell.paths import paths; print(paths().demo)')"; fi
	rm -rf .cache .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
