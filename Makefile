# `make` lists the targets. Variables: PRESET, DATA, SET="a.b=1 c=2", SEEDS="0 1 2", PYTHON.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := $(CURDIR)/.venv
BIN    := $(VENV)/bin
SEEDS  ?= 0 1 2

export PATH := $(BIN):$(PATH)

.PHONY: help setup params repro test lint compare deps

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## create .venv from the pinned constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Setting up $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

params: setup ## write params.yaml: PRESET=… DATA=… SET="key=value …"
	@python -m pipelines.params $(if $(PRESET),--preset $(PRESET)) $(if $(DATA),--data '$(DATA)') $(SET)

repro: setup ## images to an evaluated backbone and a report; PRESET, DATA and SET as in `make params`
	@$(if $(PRESET)$(DATA)$(SET),python -m pipelines.params $(if $(PRESET),--preset $(PRESET)) $(if $(DATA),--data '$(DATA)') $(SET) &&) python -m pipelines.repro

compare: setup ## PeCo, pixel codebook and random initialisation over SEEDS, in one table
	@python -m pipelines.compare --seeds $(SEEDS)

test: setup ## the whole test suite
	@python -m pytest -n 2

lint: setup ## ruff, mypy, and code dependencies in dvc.yaml
	@ruff check . && ruff format --check peco pipelines tests benchmarks && mypy && python -m pipelines.closure --check

deps: setup ## bring the code dependencies in dvc.yaml up to date with the imports
	@python -m pipelines.closure --write
