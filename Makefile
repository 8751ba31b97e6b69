# `make` lists the targets with their variables. PYTHON is the interpreter that creates .venv.
$(if $(word 2,$(CURDIR)),$(error the path of this folder ($(CURDIR)) has a space, which make can't handle; move it to a path without one))

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := $(CURDIR)/.venv
BIN    := $(VENV)/bin
SEEDS  ?= 0 1 2
# NAME and GPU count only on the command line: some systems export one of their own.
NAME_GIVEN := $(if $(filter command%,$(origin NAME)),$(NAME))
GPU_GIVEN  := $(if $(filter command%,$(origin GPU)),$(GPU))

export PATH := $(BIN):$(PATH)

.PHONY: help setup params plan repro test test-extended fuzz chaos bench test-cluster test-kubeflow test-slurm lint compare ablation pipeline-compile pipeline-local pipeline-submit k8s-check cluster-check

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## create .venv with the versions in constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12" >&2; exit 2; }
	@echo "Setting up $(VENV) (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[workflow,heif,parquet,export,tracking,efficientnet,kubernetes,dev]'
	@touch $@

params: setup ## write params.yaml: PRESET=… DATA=… SET="key=value …"
	@python -m pipelines.params $(if $(PRESET),--preset $(PRESET)) $(if $(DATA),--data "$$DATA") $(SET)

repro: setup ## run the whole workflow, from images to a report: PRESET, DATA and SET as for params
	@$(if $(PRESET)$(DATA)$(SET),python -m pipelines.params $(if $(PRESET),--preset $(PRESET)) $(if $(DATA),--data "$$DATA") $(SET) &&) python -m pipelines.repro

compare: setup ## compare PeCo with its baselines over SEEDS: VARIANTS="peco pixel regression vqkd" SET="key=value …" JOBS=1 RECORDS=folder
	$(if $(PRESET)$(DATA),$(error compare takes the current params.yaml; run `make params PRESET=… DATA=…` first, then `make compare`))
	@python -m pipelines.compare --seeds $(SEEDS) $(if $(VARIANTS),--variants $(VARIANTS)) $(if $(SET),--set $(SET)) $(if $(JOBS),--jobs $(JOBS)) $(if $(RECORDS),--records '$(RECORDS)')

plan: setup ## print what `make repro` costs, stage by stage: images, steps, memory, disk, time: GPU=H100 for GPU hours
	@GOMP_SPINCOUNT=10000 python -m peco.plan $(if $(GPU_GIVEN),--gpu '$(GPU_GIVEN)')

ablation: setup ## run a grid of experiments over SEEDS: NAME=… (without NAME: list the grids) SET="key=value …" JOBS=1 RECORDS=folder
	$(if $(PRESET)$(DATA),$(error ablation takes the current params.yaml; run `make params PRESET=… DATA=…` first, then `make ablation`))
	@python -m pipelines.ablation $(NAME_GIVEN) --seeds $(SEEDS) $(if $(SET),--set $(SET)) $(if $(JOBS),--jobs $(JOBS)) $(if $(RECORDS),--records '$(RECORDS)')

test: setup ## run all tests
	@python -m pytest -n 2 --durations=20

test-extended: setup ## run the tests of the wheel, with Prometheus and Chromium, mutated inputs, kills and full disks; as root, install these two if they are missing
	@for pair in promtool:prometheus chromium:chromium; do command -v "$${pair%%:*}" >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq \
	  && apt-get install -y -qq --no-install-recommends "$${pair##*:}" >/dev/null; } || echo "$${pair##*:} is not installed; its tests are skipped"; done
	@python -m pytest tests/extended

fuzz: setup ## read seeded mutated inputs of all kinds: N=10000 SEED=0 ONLY=kind, or ONLY=kind:number for one of them
	@python -m tests.fuzz $(or $(N),1000) --seed $(or $(SEED),0) $(if $(ONLY),--only '$(ONLY)')

chaos: setup ## kill each stage of `smoke`, fill its disks, spoil its remote, and compare with an undisturbed run: SEED=0 KILLS=200
	@python -m tests.chaos --seed $(or $(SEED),0) --kills $(or $(KILLS),200)

bench: setup ## compare the speed of loader, steps and quantizer with other libraries, on an otherwise idle machine: ROUNDS=3
	@python -m benchmarks.loader --images 512 --rounds $(or $(ROUNDS),3)
	@for subject in mim_step tokenizer_step quantizer scaling; do echo; echo "# $$subject"; python -m benchmarks.$$subject --rounds $(or $(ROUNDS),3) || exit; done

test-cluster: setup ## test on the cluster of KUBECONFIG, with Volcano: PECO_IMAGE=… NS=peco-test STORAGE_CLASS=… ALL=1 DISPOSABLE=1
	@NS='$(NS)' STORAGE_CLASS='$(STORAGE_CLASS)' python -m pytest tests/cluster --durations=0 -m '$(if $(ALL),$(if $(DISPOSABLE),,not disposable),core)'

test-kubeflow: setup ## test on Kubeflow Pipelines at KFP_HOST, as for pipeline-submit
	@python -m pytest tests/kubeflow --durations=0

test-slurm: setup ## test on the Slurm of this machine: PECO_QUEUE=… URGENT=partition-that-preempts FOLDER=shared-folder ALL=1 DISPOSABLE=1
	@mkdir -p '$(or $(FOLDER),.work)'
	@URGENT='$(URGENT)' DISPOSABLE='$(DISPOSABLE)' python -m pytest tests/slurm --durations=0 $(if $(ALL),,-m core) --basetemp='$(abspath $(or $(FOLDER),.work))/test-slurm'

lint: setup ## run ruff, mypy and the import contracts
	@ruff check . && ruff format --check . && mypy && lint-imports

pipeline-compile: setup ## write the workflow as a Kubeflow pipeline: OUT=pipeline.yaml REV=… SET=…
	@python -m pipelines.submit compile $(if $(OUT),--out '$(OUT)') $(if $(REV),--rev '$(REV)') $(if $(SET),--set $(SET))

pipeline-local: setup ## run the Kubeflow pipeline of the current commit on this machine: GIT=… REMOTE=… NAME=…
	@python -m pipelines.local $(if $(GIT),--git '$(GIT)') $(if $(REMOTE),--remote '$(REMOTE)') $(if $(NAME_GIVEN),--name '$(NAME_GIVEN)')

pipeline-submit: setup ## submit the pipeline to Kubeflow at KFP_HOST: REV=… SET=… SWEEP=… SCHEDULE=… WAIT=1 FORCE=1
	@python -m pipelines.submit submit $(if $(REV),--rev '$(REV)') $(if $(SET),--set $(SET)) $(if $(SWEEP),--sweep $(SWEEP)) \
	  $(if $(SCHEDULE),--schedule '$(SCHEDULE)') $(if $(WAIT),--wait) $(if $(FORCE),--force)

k8s-check: setup ## render and validate the manifests in k8s/, offline: PECO_TEST_SCHEMAS=folder-of-CRDs
	@python -m k8s.check

cluster-check: setup ## check the cluster of KUBECONFIG before the first run: NS=namespace, with the variables of pipeline-submit
	@[ -n '$(NS)' ] || { echo "error: name the namespace of the runs: make cluster-check NS=…" >&2; exit 2; }
	@python -m k8s.cluster_check '$(NS)'
