# Each target makes the virtual environment it needs; a second run finds it ready.
#   make demo            classify two photographs
#   make test            the tests
#   make test-embed      compiled models: examples, real models, a browser; what needs a tool that is absent is skipped
#   make check           ruff, mypy, import direction, then the tests
#   make wheel           dist/*.whl with the kernels built for x86-64-v3, v4, aarch64 and (made on x86-64) amx inside (some minutes, once)
#   make demo PYTHON=python3.12    with another Python (3.10 or newer); VENV=... puts the environment elsewhere

PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
BIN := $(VENV)/bin

.PHONY: demo test test-embed check lint wheel clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready-run
	$(BIN)/minifer classify models/chelsea.png models/coffee.png

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

test-embed: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n $(JOBS) -m embed -rs tests/embed $(PYTEST_ARGS)

check: lint test

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

wheel: $(VENV)/.ready-run
	rm -rf build kernels/prebuilt
	$(BIN)/python -m minifer.codegen.build --target x86-64-v3 --out kernels/prebuilt
	$(BIN)/python -m minifer.codegen.build --target x86-64-v4 --out kernels/prebuilt
	case "$$(uname -m)" in x86_64|amd64) $(BIN)/python -m minifer.codegen.build --target x86-64-amx --out kernels/prebuilt;; esac
	$(BIN)/python -m minifer.codegen.build --target aarch64 --out kernels/prebuilt
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	ls -l dist

clean:
	rm -rf kernels/prebuilt $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The more an environment holds, the more stamps it carries: dev serves test, test serves run.
$(VENV)/.ready-run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.ready-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ $(VENV)/.ready-run

$(VENV)/.ready-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/.ready-test $(VENV)/.ready-run

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else 1)' || \
	    { echo "minifer needs Python 3.10 or newer: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo "$(PYTHON) has no working venv module (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
