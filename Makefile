# `make` lists the targets with their variables. PYTHON names another interpreter to make .venv with.
$(if $(word 2,$(CURDIR)),$(error the path of this folder ($(CURDIR)) has a space, which make can't handle; move it to a path without one))

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := $(CURDIR)/.venv
BIN    := $(VENV)/bin
SEEDS  ?= 0 1 2
# NAME of the command line only: some systems export the machine's own.
NAME_GIVEN := $(if $(filter command%,$(origin NAME)),$(NAME))

export PATH := $(BIN):$(PATH)

.PHONY: help setup params repro test test-extended lint compare ablation pipeline-compile pipeline-local pipeline-submit k8s-check

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## create .venv from the pinned constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Setting up $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

params: setup ## write params.yaml: PRESET=… DATA=… SET="key=value …"
	@python -m pipelines.params $(if $(PRESET),--preset $(PRESET)) $(if $(DATA),--data "$$DATA") $(SET)

repro: setup ## images to an evaluated backbone and a report; PRESET, DATA and SET as in `make params`
	@$(if $(PRESET)$(DATA)$(SET),python -m pipelines.params $(if $(PRESET),--preset $(PRESET)) $(if $(DATA),--data "$$DATA") $(SET) &&) python -m pipelines.repro

compare: setup ## PeCo, pixel codebook and random initialisation over SEEDS, one table per task; VARIANTS="peco pixel regression vqkd", SET="key=value …"
	$(if $(PRESET)$(DATA),$(error compare takes the params.yaml that stands; run `make params PRESET=… DATA=…` first, then `make compare`))
	@python -m pipelines.compare --seeds $(SEEDS) $(if $(VARIANTS),--variants $(VARIANTS)) $(if $(SET),--set $(SET))

ablation: setup ## a grid of experiments over SEEDS through DVC's queue: NAME=… (without: lists them), SET="key=value …", JOBS=1
	$(if $(PRESET)$(DATA),$(error ablation takes the params.yaml that stands; run `make params PRESET=… DATA=…` first, then `make ablation`))
	@python -m pipelines.ablation $(NAME_GIVEN) --seeds $(SEEDS) $(if $(SET),--set $(SET)) $(if $(JOBS),--jobs $(JOBS))

test: setup ## the whole test suite
	@python -m pytest -n 2

test-extended: setup ## what needs Prometheus: installs Debian's package `prometheus` where it is missing (as root), and tests with it
	@command -v promtool >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq prometheus >/dev/null; } || echo "prometheus is not installed; its tests are skipped"
	@python -m pytest tests/extended

lint: setup ## ruff, mypy and the import contracts
	@ruff check . && ruff format --check peco pipelines k8s tests benchmarks && mypy && lint-imports

pipeline-compile: setup ## the graph as a Kubeflow pipeline: OUT=pipeline.yaml; REV and SET as for pipeline-submit
	@python -m pipelines.submit compile $(if $(OUT),--out '$(OUT)') $(if $(REV),--rev '$(REV)') $(if $(SET),--set $(SET))

pipeline-local: setup ## run that pipeline on this machine, for the commit that is checked out; GIT=…, REMOTE=… instead of those under .work/pipeline, NAME=… of the experiment
	@python -m pipelines.local $(if $(GIT),--git '$(GIT)') $(if $(REMOTE),--remote '$(REMOTE)') $(if $(NAME_GIVEN),--name '$(NAME_GIVEN)')

pipeline-submit: setup ## send it to Kubeflow (KFP_HOST, KFP_NAMESPACE, KFP_TOKEN): REV, SET, SWEEP, SCHEDULE, WAIT=1, FORCE=1 (docs/cluster.md)
	@python -m pipelines.submit submit $(if $(REV),--rev '$(REV)') $(if $(SET),--set $(SET)) $(if $(SWEEP),--sweep $(SWEEP)) \
	  $(if $(SCHEDULE),--schedule '$(SCHEDULE)') $(if $(WAIT),--wait) $(if $(FORCE),--force)

k8s-check: setup ## render k8s/ and validate it, offline; PECO_TEST_SCHEMAS=… with the CRDs
	@python -m k8s.check
