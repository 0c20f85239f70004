# The daily commands. Everything that they install goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint bench clean

setup: .setup-done

.setup-done: pins.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint pins.txt --editable '.[all,dev]'
	touch .setup-done

demo: setup
	$(BIN)/python examples/heart/demo.py $(if $(KEEP),--keep)

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.rounds --mode simulated --sites 8 --params 1000 --rounds 50 --json results/simulated-small.json
	$(BIN)/python -m benchmarks.rounds --mode simulated --sites 4 --params 25000000 --rounds 5 --json results/simulated-100mb.json
	$(BIN)/python -m benchmarks.rounds --mode deployed --sites 2 --params 1000 --rounds 20 --json results/deployed-small.json
	$(BIN)/python -m benchmarks.rounds --mode deployed --sites 2 --params 25000000 --rounds 5 --json results/deployed-100mb.json

clean:
	rm -rf .venv .setup-done build dist *.egg-info demo results
