# What one does with this project. Every target makes .venv if it is missing; nothing is installed outside it.

PYTHON ?= python3
KERNEL ?= trellis_fused
BACKEND ?= tvm
MINUTES ?= 9.5
GPU ?= nvidia-h200
GPU_PYTHON_VERSION ?= 3.12
VENV := .venv/bin
# The newest that the public build of vLLM for CPUs allows; the tests of trellis_ops.hf run with it too.
OLDER_TRANSFORMERS := 5.19.0
older_transformers := .venv/transformers-$(OLDER_TRANSFORMERS)
# Without those of compiled kernels, which no version of transformers sees.
with_older_transformers := $(filter-out %/test_decode.py,$(wildcard tests/trellis_ops/hf/test_*.py))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help tune train test test-thorough test-vllm fuzz bench scaling report gpu gpu-prepare gpu-check dashboard show lint clean clean-cache

# List the targets.
help:
	@awk '/^# /{text = substr($$0, 3)} /^[a-z-]+:/{sub(":.*", ""); printf "make %-13s %s\n", $$0, text}' Makefile
	@echo 'Variables, as in `make tune BUDGET=60s`: WORKLOAD, SPEC, BUDGET, CORES, STORAGE (tune); STORAGE (report, dashboard);'
	@echo '  DATA, FOLDER (train); KERNEL, BACKEND (show); MINUTES (gpu, fuzz); PYTHON (which Python .venv is made from); ARGS (more options for the command).'

# Find the fastest correct kernels for this machine.
tune: .venv/installed-tune
	@echo 'Tuning for this machine: forty seconds for each spec of the workload, then a study of slots. Interrupt it any time; run again, it goes on.'
	@$(VENV)/python -m tuner tune $(tune_options) $(ARGS)

# Train the reference model: make train DATA='text.txt folder' FOLDER=runs/mine; without DATA on this project.
train: .venv/installed-train
	@$(VENV)/python -m trellis_ops.lm.train $(if $(DATA),$(DATA),README.md CONTRIBUTING.md codegen trellis_ops) \
		--folder '$(if $(FOLDER),$(FOLDER),runs/this-project)' $(ARGS)

# Run the tests, those that need Triton's interpreter, which is chosen when Triton is imported, and an older transformers.
test: .venv/installed-test $(older_transformers)/installed
	@echo 'Testing, in three runs: 15 to 40 minutes on two cores.'
	@status=0; \
	$(undisturbed) $(VENV)/python -m pytest -n 2 --dist loadfile $(ARGS) || status=$$?; \
	$(undisturbed) TRITON_INTERPRET=1 $(VENV)/python -m pytest tests/interpreted -n 2 $(ARGS) || status=$$?; \
	$(undisturbed) TRELLIS_OPS_IMPLEMENTATION=eager PYTHONPATH=$(older_transformers) \
		$(VENV)/python -m pytest $(with_older_transformers) -n 2 --dist loadfile $(ARGS) || status=$$?; \
	exit $$status

# Run the tests, and the cases of tests/thorough/, which repeat with other sizes and rules what others show.
test-thorough:
	@$(MAKE) --no-print-directory test ARGS='--thorough $(ARGS)'

# Test the vLLM plugin in an environment of its own, .venv-vllm; skipped, with the reason, where it cannot be installed.
test-vllm:
	@if $(MAKE) --no-print-directory .venv-vllm/installed; then \
		$(undisturbed) OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=ERROR \
			.venv-vllm/bin/python -m pytest tests/vllm $(ARGS); \
	else echo 'The tests of the vLLM plugin are skipped.'; fi

# Compare random calls and kernels with float64, with fresh seeds, for an hour or MINUTES; what is found is kept as a script.
fuzz: .venv/installed-test
	@$(undisturbed) $(VENV)/python -m tests.fuzz --minutes $(if $(filter file,$(origin MINUTES)),60,$(MINUTES)) $(ARGS)

# Compare eager, torch.compile, the default schedule and the tuned winner.
bench: .venv/installed-test
	@echo 'Benchmarking: four to nine minutes.'
	@GOMP_SPINCOUNT=200 $(VENV)/python -m pytest tests/benchmarks -o addopts= $(ARGS)

# Measure how the cost grows with T, B x H, M and D; writes docs/scaling.md and docs/scaling.png.
scaling: .venv/installed-test
	@echo 'Measuring how the cost grows: two to three minutes.'
	@GOMP_SPINCOUNT=200 $(VENV)/python -m tests.benchmarks.studies.growth.scaling $(ARGS)

# Write report.html: the winners, and the searches behind them.
report: .venv/installed-tune
	@$(VENV)/python -m tuner report $(ARGS)

# Compile the GPU kernels without a GPU, and say what they need; fails where a default does not fit, or spills.
gpu-check: .venv/installed-tune
	@$(VENV)/python -m tuner gpu-check $(ARGS)

# On a machine with a GPU: check every kernel, tune, and compare, within MINUTES=9.5; brings home gpu-results/. Needs no .venv.
gpu:
	@said=$$($(PYTHON) -c 'import torch, triton' 2>&1) || { printf '%s\n' "$$said" | tail -n 1; \
		echo 'make gpu needs torch and triton in $(PYTHON); name another Python, as in: make gpu PYTHON=/opt/torch/bin/python'; exit 1; }
	@for package in $(gpu_packages); do \
		PYTHONPATH=.gpu-packages $(PYTHON) -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$$package'.replace('pyyaml', 'yaml')) is None)" || \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --find-links wheels --target .gpu-packages $$package || \
		{ echo "The package $$package is missing, and not in wheels/: run make gpu-prepare where there is a network."; exit 1; }; \
	done
	@TRITON_CACHE_DIR='$(CURDIR)/.gpu-cache' PYTHONPATH='$(CURDIR):$(CURDIR)/.gpu-packages' \
		$(PYTHON) -m tuner.gpu_run --minutes $(MINUTES) $(ARGS)

# Anywhere: compile and rank candidates for GPU=nvidia-h200, export TVM's kernels, and fetch the wheels that `make gpu` needs without a network.
gpu-prepare: .venv/installed-tune
	@$(VENV)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest wheels \
		--python-version $(GPU_PYTHON_VERSION) --platform manylinux2014_x86_64 $(gpu_packages)
	@TRITON_CACHE_DIR='$(CURDIR)/.gpu-cache' $(VENV)/python -m tuner tune --device $(GPU) --offline $(ARGS)
	@$(VENV)/python -m tuner gpu-export

# Look at the studies while they grow, with optuna-dashboard on http://127.0.0.1:8080.
dashboard: .venv/installed-dashboard
	@$(VENV)/python -m tuner dashboard $(ARGS)

# Print the generated source of a kernel: make show KERNEL=memory_update BACKEND=triton.
show: .venv/installed-tune
	@$(VENV)/python -m codegen show $(KERNEL) --backend $(BACKEND) $(ARGS)

# Check style and types.
lint: .venv/installed-lint
	@status=0; \
	$(VENV)/ruff check . || status=$$?; \
	$(VENV)/ruff format --check . || status=$$?; \
	$(VENV)/mypy || status=$$?; \
	exit $$status

# Remove .venv, .venv-vllm and all caches of this folder; tuned records and studies are kept.
clean:
	rm -rf .venv .venv-vllm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Remove generated sources and compiled kernels; tuned records and studies are kept.
clean-cache: .venv/installed-tune
	@$(VENV)/python -m codegen clean-cache

# What the GPU run imports that a machine with torch may lack.
gpu_packages = msgspec filelock platformdirs pyyaml

# By the environment: any user can read a command line, and the URL may hold a password.
ifneq ($(STORAGE),)
export TRELLIS_OPS_STORAGE = $(STORAGE)
endif

tune_options = $(if $(WORKLOAD),--workload '$(WORKLOAD)') $(if $(SPEC),--spec '$(SPEC)') \
	$(if $(BUDGET),--budget '$(BUDGET)') $(if $(CORES),--cores '$(CORES)')

# What its user has tuned or set must not decide whether a test passes.
undisturbed = env -u TRELLIS_OPS_IMPLEMENTATION -u TRELLIS_OPS_CHECK_VALUES \
	TRELLIS_OPS_TUNING_DB='$(CURDIR)/.pytest_cache/no-records'

.venv-vllm/installed: pyproject.toml constraints-vllm.txt
	@echo 'Installing vLLM for CPUs into .venv-vllm: some minutes and 3.7 GB the first time.'
	@run() { "$$@" > .venv-vllm-log 2>&1 || { tail -n 3 .venv-vllm-log; echo "This command failed: $$*"; exit 1; }; }; \
	run $(PYTHON) -m venv .venv-vllm; \
	run .venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-vllm.txt; \
	run .venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	run .venv-vllm/bin/python -c 'import vllm'; \
	rm .venv-vllm-log; touch $@

.venv/installed-%: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'Installing trellis-ops with its [$*] packages into .venv: two to five minutes the first time.'
	@$(VENV)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

$(older_transformers)/installed: .venv/installed-test
	@rm -rf $(@D)
	@$(VENV)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) transformers==$(OLDER_TRANSFORMERS)
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; (3, 10) <= sys.version_info < (3, 14) or sys.exit("Python 3.10 to 3.13 is needed, this is " + sys.version + "; name one as in: make PYTHON=python3.12 tune")'
	@echo 'Making .venv with $(PYTHON).'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
