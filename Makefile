# `make` lists the targets. Variables: PRESET, DATA and SET="a.b=1 c=2" (params, repro), SEEDS="0 1 2" and SET (compare), PYTHON.
$(if $(word 2,$(CURDIR)),$(error the path of this folder ($(CURDIR)) has a space, which make can't handle; move it to a path without one))

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

compare: setup ## PeCo, pixel codebook and random initialisation over SEEDS, in one table; SET="key=value …" for all of them
	$(if $(PRESET)$(DATA),$(error compare takes the params.yaml that stands; run `make params PRESET=… DATA=…` first, then `make compare`))
	@python -m pipelines.compare --seeds $(SEEDS) $(if $(SET),--set $(SET))

test: setup ## the whole test suite
	@python -m pytest -n 2

lint: setup ## ruff, mypy, and code dependencies in dvc.yaml
	@ruff check . && ruff format --check peco pipelines tests benchmarks && mypy && python -m pipelines.closure --check

deps: setup ## bring the code dependencies in dvc.yaml up to date with the imports
	@python -m pipelines.closure --write
