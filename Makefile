# The verbs: demo, test, test-gpu, lint, docs, bench. Each sets up what it needs first, in .venv; nothing else has to be installed.
#   make demo                     train a small model, print its plan, its loss curve and a sample, swap its parts
#   make test                     every test, with the coverage of registry and specs
#   make test-gpu                 on a CUDA machine: what is there of the GPU packages, and a table of what ran
#   make bench                    compare speed with a hand-written model and other libraries; writes docs/benchmarks
#   make bench ARGS="--only t5"   a part of it: ARGS=--help tells which there are
#   make PYTHON=python3.12 test   with another Python (3.11 or newer; remove .venv first)

PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml contrib/*/pyproject.toml))

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu lint docs bench
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Transom needs Python 3.11 or newer; $(PYTHON) is older. Name another: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

# torch comes first and alone: the pinned version has a CPU build, and what follows is content with it.
.venv/installed: constraints.txt pyproject.toml $(PLUGINS:%=%/pyproject.toml) | $(BIN)/pip
	$(BIN)/python -m pip install --quiet "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e . $(PLUGINS:%=-e %) --group dev
	@touch $@

demo: .venv/installed
	$(BIN)/python examples/demo.py

# The tests run in two processes, of which one takes over what the other has not begun; their matrices are too small to gain
# from more threads.
test: export OMP_NUM_THREADS = 1
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=
	$(BIN)/coverage report --skip-covered --fail-under=90

# The packages for GPUs are nobody's dependency: install into .venv those that are to be tried.
test-gpu: .venv/installed
	$(BIN)/python -m pytest tests/gpu

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: .venv/installed docs/conf.py
	$(BIN)/python -m pip install --quiet --group docs
	$(BIN)/python -m sphinx -n -W --keep-going -b html docs docs/_build/html

# The libraries to compare with have an environment of their own, which also sees what .venv has: some of them install
# packages named `test` and `docs`, or older versions of what others need.
.venv-bench/installed: tests/benchmarks/peers.txt .venv/installed
	$(PYTHON) -m venv .venv-bench
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	  > "$$(.venv-bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
	.venv-bench/bin/python -m pip install --quiet -c constraints.txt -r tests/benchmarks/peers.txt \
	  || echo "Some libraries to compare with were not installed; the tables will say so."
	@touch $@

bench: .venv-bench/installed
	PYTHONPATH=tests .venv-bench/bin/python -m benchmarks $(ARGS)
