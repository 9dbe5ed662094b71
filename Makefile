# Everything is installed into .venv; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
COMPILED := build/compiled
# Tests that replace functions which compiled code calls directly, and the tests of the sources.
NOT_COMPILED := tests/meta tests/crash/test_every_arrow.py tests/crash/test_handing_over.py \
	tests/crash/test_lost_hints.py tests/crash/test_reports_survive.py
TESTS := tests
BREAKS_PROMISES := tests/crash/test_power_cut.py::test_the_oracle_finds_what_a_broken_promise_loses
SOURCES := $(shell find spoolmta -name "*.py") etc/bounce.toml

.PHONY: help install compiled demo test test-compiled check interop torture bench scale format clean

help: ## What can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMP) ## Make .venv with spoolmta and its tools, in the locked versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

compiled: $(COMPILED)/.installed ## Make build/compiled with spoolmta as C extensions: a fifth less CPU (needs a C compiler, two minutes)

$(COMPILED)/.installed: pyproject.toml setup.py constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(COMPILED)
	rm -rf build/lib* build/temp* build/bdist*
	$(COMPILED)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'setuptools>=77' '.[dev]'
	SPOOLMTA_COMPILE=1 $(COMPILED)/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --force-reinstall --no-deps .
	@touch $@

demo: install ## Run the main job: drop 300 messages, deliver them through three VMTAs, show what came out
	$(BIN)/spoolmta demo

test: install ## All tests that need nothing but Python
	$(BIN)/python -m pytest -n 5 --dist loadfile -m 'not torture and not interop'

test-compiled: compiled ## The same tests on what `make compiled` has made
	rm -rf $(COMPILED)/tree && mkdir $(COMPILED)/tree
	cp -r tests scripts etc README.md pyproject.toml setup.py $(COMPILED)/tree
	cd $(COMPILED)/tree && ../bin/python -m pytest -n 5 --dist loadfile -m 'not torture and not interop' \
		$(addprefix --ignore ,$(NOT_COMPILED)) --deselect $(BREAKS_PROMISES) $(TESTS)

check: install ## Lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

interop: install ## Tests against Debian's postfix, swaks, OpenDKIM, ... (skipped with a message where they are absent)
	$(BIN)/python -m pytest -m interop tests/interop

torture: install ## Long runs: crashes, and what delivery promises as a table
	$(BIN)/python -m pytest -m torture -s -o faulthandler_timeout=2400 tests

bench: install compiled ## The speed table: spoolmta and Postfix doing the same work (as root: on a filesystem of its own)
	$(BIN)/python scripts/bench.py --spoolmta $(COMPILED)/bin/spoolmta

scale: compiled ## Memory, start and cost with a million messages and 10,000 VMTAs (a spool of 2 GB in /dev/shm)
	cd $(COMPILED) && bin/python ../../scripts/scale.py --dir /dev/shm

format: install ## Put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what was installed and made here
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
