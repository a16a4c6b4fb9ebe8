# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
# The one door to this project: `make help` lists what it opens.

VENV ?= .venv
PYTHON ?= python3

RUN := $(VENV)/bin/python
# What needs a GPU runs where nothing can be installed: in the environment if there is one, else by
# a Python that already has torch, transformers, triton and pytest.
RUN_AS_IS = $(if $(and $(VENV),$(wildcard $(RUN))),$(RUN),$(PYTHON))
CORE_STAMP := $(VENV)/.modeling-mdm-core
DEV_STAMP := $(VENV)/.modeling-mdm-dev
APP_STAMP := $(VENV)/.modeling-mdm-app
DOCS_STAMP := $(VENV)/.modeling-mdm-docs

MATH_MODULES := $(addprefix modeling_mdm/, \
	diffusion.py likelihood.py score_entropy.py solvers.py scan_orders.py selection.py \
	ssd.py ssd_factored.py ssd_mamba.py matmul.py)

# Two test processes of one thread each use two cores better than one process of two threads.
# The tests of a file stay together, because they share what is costly to make.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

# An environment that already has everything needs neither an index nor an isolated build, so that
# is tried first; on a fresh machine it fails within seconds and the plain installation follows.
# What is installed is fixed by constraints.txt, so that no new release can break it.
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
define install
	@$(INSTALL) --no-index --no-build-isolation --editable "$(1)" >/dev/null 2>&1 || { \
		echo "installing $(1) into $(VENV): several minutes the first time"; \
		$(INSTALL) --editable "$(1)"; }
	@touch $@
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "VENV=path chooses the environment (now $(VENV)), PYTHON=path who makes it (now $(PYTHON))"

.PHONY: demo
demo: $(CORE_STAMP) ## write pictures and their captions with the shipped checkpoint, to outputs/
	$(RUN) examples/demo.py

.PHONY: check
check: lint types test ## all that CI runs: lint, types, test

.PHONY: lint
lint: $(DEV_STAMP) ## ruff, rules and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

.PHONY: types
types: $(DEV_STAMP) ## mypy, strict, on the modules of the mathematics
	$(RUN) -m mypy $(MATH_MODULES)

.PHONY: test
test: $(DEV_STAMP) ## the environment and all fast tests, under 5 minutes on two cores
	@$(RUN) tests/conformance/upstream.py || echo "so those of them that are fast are skipped"
	$(PYTEST) -m "not slow and not gpu"

.PHONY: test-latest
test-latest: $(DEV_STAMP) ## the tests that touch the libraries, with their newest releases, bounds or not
	$(RUN) tests/support/libraries.py latest

.PHONY: test-lowest
test-lowest: $(DEV_STAMP) ## the same with the oldest releases that setup.py allows
	$(RUN) tests/support/libraries.py lowest

.PHONY: canary
canary: $(DEV_STAMP) ## test-latest in 3 minutes, which reports and fails nothing: CI's look ahead
	@$(RUN) tests/support/libraries.py canary

.PHONY: lock
lock: | $(RUN) ## resolve constraints.txt anew: what demo, test and app install
	$(RUN) -m pip install --quiet --disable-pip-version-check packaging setuptools uv
	$(RUN) tests/support/libraries.py lock

.PHONY: slow
slow: $(DEV_STAMP) ## the tests that take minutes
	$(PYTEST) -m "slow and not gpu"

# Of the modules that tests/support/mutants.py knows, those whose survivors have each been read.
MUTATED := diffusion score_entropy solvers scan_orders selection matmul loss vae likelihood ssd \
	ssd_factored

.PHONY: mutants
mutants: $(DEV_STAMP) ## break the mathematics in small ways and see a test fail, in 40 minutes
	$(RUN) tests/support/mutants.py $(MUTATED)

.PHONY: app
app: $(APP_STAMP) ## a web page of the shipped checkpoint, on this machine's port 7860
	$(RUN) examples/app.py

.PHONY: test-app
test-app: $(DEV_STAMP) $(APP_STAMP) ## the web page in a headless Chromium (Debian: chromium-driver)
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/cli/test_app.py

.PHONY: docs
docs: $(DOCS_STAMP) ## the pages, into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

.PHONY: bench
bench: $(DEV_STAMP) ## speed and memory on the CPU: JSON, tables and plots in benchmarks/results/
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.run

.PHONY: bench-quick
bench-quick: $(DEV_STAMP) ## the same on fewer sizes, under 3 minutes
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.run --plan quick

.PHONY: bench-keep
bench-keep: $(DEV_STAMP) ## quality of the shipped checkpoint at keep 100, 75, 50, 25 %: DATA_DIR=folder
	for keep in 1.0 0.75 0.5 0.25; do \
		$(RUN) examples/evaluate.py --data_dir $(DATA_DIR) \
			--tasks text_to_image captioning --num_samples 500 --limit 1000 \
			--generation_options "{\"keep\": $$keep}" \
			--output benchmarks/results/fashion_keep_$$keep.json || exit 1; \
	done

# Scans and mixer are all that differs; six blocks of attention have as many parameters as twelve of
# Mamba-2.
TABLE_3 := scans-1234-12 scans-12-1 transformer
scans-1234-12 :=
scans-12-1 := --config_overrides 'image_scans=[1,2]' 'text_scans=[1]'
transformer := --config_overrides mixer=attention num_hidden_layers=6

.PHONY: table-3 $(addprefix table-3-,$(TABLE_3))
table-3: $(addprefix table-3-,$(TABLE_3)) ## Table 3 in small, an hour on two cores: DATA_DIR=folder

$(addprefix table-3-,$(TABLE_3)): table-3-%: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m torch.distributed.run --nproc_per_node 2 examples/train.py \
		examples/configs/fashion_mnist.yaml --data_dir $(DATA_DIR) --use_cpu true \
		--report_to none --eval_strategy no --max_steps 1500 --output_dir runs/table-3-$* \
		--resume_from_checkpoint last $($*)
	$(RUN) examples/evaluate.py --checkpoint runs/table-3-$* --data_dir $(DATA_DIR) \
		--num_samples 1000 --limit 2000 --guidance_scale 3.0 --generation_options \
		'{"joint_overlap": 0.25, "joint_guidance_scale": {"image": 3.0}, "guidance_scale": {"image": 3.0, "text": 1.5}}' \
		--output benchmarks/results/table_3_$*.json

.PHONY: table-3-digits
table-3-digits: $(DEV_STAMP) ## Table 3 on the digits, three seeds of each decoder, an hour or two
	$(RUN) examples/table_3_digits.py

.PHONY: scaling-law
scaling-law: $(DEV_STAMP) ## loss against weights and items, resumable hours: DATA_DIR=folder OPTIONS='--dry_run true'
	$(RUN) examples/scaling_law.py $(if $(DATA_DIR),--data_dir $(DATA_DIR)) $(OPTIONS)

.PHONY: gpu
gpu: ## on a CUDA machine its tests, kernels and targets in 8 minutes; elsewhere a dry run of them
	$(RUN_AS_IS) -m benchmarks.gpu

.PHONY: conformance
conformance: $(DEV_STAMP) ## all of transformers' own common tests on MDM, fetched once
	$(RUN) tests/conformance/upstream.py
	RUN_SLOW=1 $(PYTEST) tests/conformance -rs --timeout 1800

.PHONY: format
format: $(DEV_STAMP) ## let ruff rewrite the sources
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

.PHONY: clean
clean: ## remove what the tools leave behind; keeps the environment and outputs/
	rm -rf build dist site *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# Order-only on $(RUN): it is a link to a system file, whose date says nothing about this project.
$(CORE_STAMP): setup.py pyproject.toml constraints.txt Makefile | $(RUN)
	$(call install,.)

$(APP_STAMP): setup.py pyproject.toml constraints.txt Makefile | $(RUN)
	$(call install,.[app])
	@touch $(CORE_STAMP)

$(DOCS_STAMP): setup.py pyproject.toml constraints.txt Makefile | $(RUN)
	$(call install,.[docs])
	@touch $(CORE_STAMP)

$(DEV_STAMP): setup.py pyproject.toml constraints.txt Makefile | $(RUN)
	$(call install,.[dev])
	@touch $(CORE_STAMP) $(DOCS_STAMP)
