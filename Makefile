# The daily commands. Everything that they install goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo browser test lint bench clean

setup: .setup-done

.setup-done: pins.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint pins.txt --editable '.[all,dev]'
	touch .setup-done

demo: setup
	$(BIN)/python examples/heart/demo.py $(if $(KEEP),--keep)

browser:
	tests/install_browser.sh

test: setup browser
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ROUNDS := $(BIN)/python -m benchmarks.rounds
BIG := --params 25000000 --rounds 5

bench: setup
	$(BIN)/python -m benchmarks.wire --json results/wire.json
	$(ROUNDS) --mode deployed --sites 2 --params 1000 --rounds 20 --json results/deployed-small.json
	$(ROUNDS) --mode deployed --sites 2 $(BIG) --json results/deployed-100mb.json
	$(ROUNDS) --mode deployed --sites 8 $(BIG) --json results/deployed-100mb-8-sites.json
	$(ROUNDS) --mode deployed --sites 2 --params 250000000 --rounds 4 --json results/deployed-1gb.json
	$(BIN)/python -m benchmarks.slow_line --json results/slow-line.json
	$(ROUNDS) --mode simulated --sites 8 --params 1000 --rounds 50 --json results/simulated-8.json
	$(ROUNDS) --mode simulated --sites 32 --params 1000 --rounds 50 --json results/simulated-32.json
	$(ROUNDS) --mode simulated --sites 1000 --sample 100 --params 1000 --rounds 50 --json results/simulated-1000.json
	$(ROUNDS) --mode simulated --sites 10000 --sample 100 --params 1000 --rounds 50 --json results/simulated-10000.json
	$(ROUNDS) --mode simulated --sites 4 $(BIG) --json results/simulated-100mb.json
	$(BIN)/python -m benchmarks.protocol --seeds 10000 --json results/protocol.json
	$(BIN)/python -m benchmarks.long_run --rounds 500 --params 5000000 --json results/long-run.json
	$(BIN)/python -m benchmarks.digits --sites 4 --rounds 20 --json results/digits.json
	$(BIN)/python -m benchmarks.heterogeneity --json results/heterogeneity.json --plot results
	$(BIN)/python -m benchmarks.reading --json results/reading.json
	$(BIN)/python -m benchmarks.statistics --sites 4 --json results/statistics.json
	$(BIN)/python -m benchmarks.statistics --deployed --json results/statistics-deployed.json
	$(BIN)/python -m benchmarks.statistics --rows 2500000 --source sqlite --json results/statistics-sqlite.json
	$(BIN)/python -m benchmarks.statistics --rows 2500000 --source postgresql --json results/statistics-postgresql.json
	$(BIN)/python -m benchmarks.classical --json results/classical.json
	$(BIN)/python -m benchmarks.chaos --minutes 10 --seed 1 --json results/chaos.json

clean:
	rm -rf .venv .setup-done build dist *.egg-info demo results
