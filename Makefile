# Everything runs in .venv (the suites of many tasks in .venv-multitask) and needs no root rights. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MULTITASK := .venv-multitask

# These networks are small: more threads gain little, lose much on a busy machine, and make results depend on the cores.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help install install-multitask quickstart test test-slow test-multitask lint type format docs browser clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)$$/\1	\2/' | expand -t 20

install: $(STAMP)  ## create .venv with the package and its development tools

# The constraints hold for every installation: without the torch pin pip may fetch gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

# DMControl and Meta-World do not work with MuJoCo 4, so they get an environment of their own.
install-multitask: $(MULTITASK)/.installed  ## create .venv-multitask with the suites of many tasks

$(MULTITASK)/.installed: pyproject.toml constraints-multitask.txt
	test -x $(MULTITASK)/bin/python || $(PYTHON) -m venv $(MULTITASK)
	$(MULTITASK)/bin/python -m pip install -c constraints-multitask.txt -e '.[multitask,benchmark]' hypothesis pytest
	touch $@

quickstart: $(STAMP)  ## train on HalfCheetah for some minutes, print a table, record a video
	$(BIN)/python examples/quickstart.py

test: lint type  ## lint, type and the fast tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(STAMP)  ## tests that learn on real environments, minutes each
	$(BIN)/python -m pytest -m slow

test-multitask: $(MULTITASK)/.installed  ## step and draw all environments of the suites, minutes
	$(MULTITASK)/bin/python -m pytest -m slow tests/test_suites_slow.py

lint: $(STAMP)  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP)  ## check types
	$(BIN)/mypy

format: $(STAMP)  ## format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

browser:  ## install what pages with a policy need, and the tests of them, in node_modules
	npm install --no-save @mujoco/mujoco@3.14.0 onnxruntime-web@1.30.0

docs: $(VENV)/.installed-docs  ## build the documentation in site/, warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q docs site
	@echo "site/index.html"

# Into the same environment, because the API reference imports the package; not part of `make install`.
$(VENV)/.installed-docs: $(STAMP)
	$(BIN)/python -m pip install -c constraints.txt -e '.[docs]'
	touch $@

clean:  ## delete .venv, .venv-multitask, caches and what quickstart wrote
	rm -rf $(VENV) $(MULTITASK) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist quickstart site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
