# make setup | check | test | test-labs | demo | bench | lock
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
LABS ?= slurm kubernetes postgres
UV := $(shell sed -n 's/^\(uv==[0-9.]*\).*/\1/p' requirements.lock)

.PHONY: setup check format test test-labs demo bench docs lock clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (found $(PYTHON)); set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "No venv module. On Debian: apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/trainguard rules lint

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: setup
	$(BIN)/pytest -m "not lab" -n 2 --dist loadfile --no-loadscope-reorder --durations=15

test-labs: setup
	LABS="$(LABS)" tests/labs/run.sh

demo: setup
	$(BIN)/trainguard demo --yes

bench: setup
	$(BIN)/python -m benchmarks $(BENCH)

lock:
	uv pip compile pyproject.toml --extra all --group dev --python-version 3.11 --universal --no-header --no-annotate --generate-hashes -o requirements.lock

clean:
	rm -rf $(VENV) .work build dist *.egg-info
