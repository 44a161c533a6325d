# Two commands do everything on a machine that has Python (3.11 or newer, with venv) and make:
#
#   make quickstart     install into .venv, then run the whole loop on a tiny model
#   make test           install what the tests need as well, then run them
#
# Variables: PYTHON (which Python makes the environment), VENV (where it lies), ARGS (more arguments for the command
# behind the target: make quickstart ARGS=--resume, make test ARGS="-k reward"), NAME (which benchmark),
# TORCH_INDEX (where else to look for torch: https://download.pytorch.org/whl/cpu has the build without CUDA, which
# without this variable comes along on Linux, gigabytes of it, and is not needed for the quickstart).

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
ARGS ?=
NAME ?=
QUICK ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
PYTEST := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest
BENCHMARKS := $(if $(NAME),benchmarks/$(NAME).py,$(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))

# Stamps: an install is repeated only when the files that describe it have changed.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help quickstart install test test-slow lint format bench wheel

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(INSTALLED) ## install, then train and judge a tiny model on the Python code of this machine
	$(BIN)/searchr3 quickstart $(ARGS)

install: $(INSTALLED_DEV) ## the package in .venv, editable, with everything that development needs

test: $(INSTALLED_DEV) ## the quick tests, a file on each core
	$(PYTEST) --numprocesses auto --dist loadfile $(ARGS)

test-slow: $(INSTALLED_DEV) ## the tests that take minutes
	$(PYTEST) -m slow $(ARGS)

lint: $(INSTALLED_DEV) ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED_DEV) ## mend what style can mend by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# In full only one by name: all at once would renew results that were measured with data by others without.
ifeq ($(filter bench,$(MAKECMDGOALS))$(NAME)$(QUICK),bench)
$(error name one with NAME=..., its data with ARGS="..." as in benchmarks/RESULTS.md; QUICK=1 runs all in short)
endif
bench: $(INSTALLED_DEV) ## a benchmark: NAME=evidence ARGS="--packs DIR"; QUICK=1: short forms, no result is renewed
	@set -e; for file in $(BENCHMARKS); do \
	  output=$(if $(QUICK),runs/bench,benchmarks/results)/$$(basename $$file .py).json; \
	  mkdir -p $$(dirname $$output); \
	  echo "$$file -> $$output"; \
	  case $$file in */quickstart.py) picture="$(if $(QUICK),,--picture docs/quickstart.png)";; *) picture=;; esac; \
	  $(BIN)/python $$file $(if $(QUICK),--quick) --output $$output $$picture $(ARGS); \
	done
	$(if $(QUICK),,$(BIN)/python benchmarks/_result.py)

wheel: $(INSTALLED_DEV) ## dist/searchr3-*.whl
	$(BIN)/python -m build --wheel

# pip, not python, is the sign of a whole environment: where Debian's python3-venv is missing, only python is made.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: searchr3 needs Python 3.11 or newer and $(PYTHON) is not that; try make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and by itself, so that TORCH_INDEX is asked for nothing but torch and what torch needs.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing searchr3 into $(VENV): some minutes the first time, most of them for torch"
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) --editable .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo "Installing what the tests and development need as well"
	$(PIP) --editable '.[dev]'
	@touch $@
