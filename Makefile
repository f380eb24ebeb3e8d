# make demo | test | test-slow | lint | install: each makes .venv first, with the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-slow lint format clean

install: .venv/installed

# --no-compile: compiling modules that are never imported would double the time.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/scalr demo --out demo

test: install
	$(BIN)/pytest

test-slow: install
	$(BIN)/pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build demo *.egg-info
