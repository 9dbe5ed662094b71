# Everything is installed into .venv; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help install demo test check interop torture bench scale format clean

help: ## What can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMP) ## Make .venv with spoolmta and its tools, in the locked versions

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: install ## Run the main job: drop 300 messages, deliver them through three VMTAs, show what came out
	$(BIN)/spoolmta demo

test: install ## All tests that need nothing but Python
	$(BIN)/python -m pytest -n 4 --dist loadfile -m 'not torture and not interop'

check: install ## Lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

interop: install ## Tests against Debian's postfix and swaks (skipped with a message where they are absent)
	$(BIN)/python -m pytest -m interop tests/interop

torture: install ## Long runs: crashes, and what delivery promises as a table
	$(BIN)/python -m pytest -m torture -s -o faulthandler_timeout=2400 tests

bench: install ## spoolmta and Postfix doing the same work (as root: on a filesystem of its own)
	$(BIN)/python scripts/bench.py

scale: install ## Memory, start and cost with a million messages and 10,000 VMTAs (a spool of 2 GB in /dev/shm)
	$(BIN)/python scripts/scale.py --dir /dev/shm

format: install ## Put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove what was installed and made here
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
