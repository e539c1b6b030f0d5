# `make` or `make help` lists the targets. Each one installs first what it needs, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What pip is asked for as torch, before anything else, so that no other requirement chooses its build.
# On a GPU host TORCH=torch takes the newest; options may follow, e.g. TORCH="torch --index-url URL".
TORCH ?= torch==2.13.0
EXTRAS ?= dev
RUNS ?= 56
TASK ?= arithmetic
SEED ?= 0
# Two processes that share two cores, whatever the machine: the tests use one thread each.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

# pip would compile every file to bytecode, one after the other: a third of the time of an installation. Python does it at a
# file's first import; COMPILE does the rest on all cores, where what follows starts many processes.
PIP_INSTALL := $(BIN)/python -m pip install --no-compile -c requirements/constraints.txt
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

CORE_STAMP := $(VENV)/.core-installed
STAMP := $(VENV)/.installed
LMDEPLOY_STAMP := $(VENV)/.lmdeploy-installed

.DEFAULT_GOAL := help
.PHONY: help venv install test properties thorough torture test-lmdeploy test-gpu bench adapt bench-gpu gpu-1 gpu-2 gpu-3 study demo help-texts lint wheel clean force

help:  ## List the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

venv: install  ## The same as install

install: $(STAMP)  ## Make .venv with pinned dependencies (TORCH=torch==2.13.0, EXTRAS=dev, PYTHON=python3)

# TORCH or EXTRAS on the command line are obeyed even where .venv is up to date.
ifneq ($(filter command,$(origin TORCH) $(origin EXTRAS)),)
$(CORE_STAMP): force
endif

# The package alone, which is all that the demo needs. The import compiles what every command starts with, also where
# PYTHONDONTWRITEBYTECODE would have each start compile it anew.
$(CORE_STAMP): pyproject.toml setup.py requirements/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip || echo "pip is not renewed: an old one takes half a minute longer"
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) -e .
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "import dirl.cli.main, dirl.demo.run, dirl.modules, dirl.data.sft, dirl.data.rl"
	touch $@

$(STAMP): $(CORE_STAMP)
	$(PIP_INSTALL) -e '.[$(EXTRAS)]'
	$(COMPILE)
	touch $@

test: $(STAMP) $(VENV)/.extras-tried  ## Run the tests (PYTEST_ARGS="-n 2 --dist loadfile ...")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) --ignore tests/lmdeploy

# What needs a compiler, or much else: where it cannot be installed, their tests skip and say so.
$(VENV)/.extras-tried: $(STAMP)
	$(PIP_INSTALL) reasoning-gym || echo "no reasoning-gym: its tests will skip"
	$(PIP_INSTALL) peft || echo "no peft: the tests of LoRA will skip"
	$(PIP_INSTALL) lm-eval || echo "no lm-eval: its tests will skip"
	$(COMPILE)
	touch $@

properties: $(STAMP)  ## The property tests alone, 10,000 cases each (1,000 where a case takes long)
	HYPOTHESIS_PROFILE=long OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m property --ignore tests/lmdeploy

thorough: $(STAMP)  ## Further cases of what `make test` has one or two of, runs of every objective among them; ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m thorough --ignore tests/lmdeploy

torture: $(STAMP)  ## Kill runs at random moments, resume them, compare every bit; a quarter of an hour (RUNS=56, SEED=0)
	$(BIN)/python -m tests.torture --runs $(RUNS) --seed $(SEED)

test-lmdeploy: $(LMDEPLOY_STAMP)  ## Run the tests of LMDeploy's engine, on a CPU; installs it first
	OMP_NUM_THREADS=1 LMDEPLOY_ENABLE_CHECK_ENV=0 $(BIN)/python -m pytest $(PYTEST_ARGS) tests/lmdeploy

$(LMDEPLOY_STAMP): $(STAMP) requirements/lmdeploy.txt
	$(PIP_INSTALL) -r requirements/lmdeploy.txt
	$(PIP_INSTALL) --no-deps lmdeploy==0.18.0
	$(COMPILE)
	touch $@

test-gpu: $(LMDEPLOY_STAMP)  ## Run the tests that need a CUDA device (they skip without one)
	$(BIN)/python -m pytest tests/gpu

bench: $(STAMP)  ## Benchmarks on CPU, about 20 minutes: tables, and JSON in benchmarks/results
	for part in fill view_order engine peer scaling layouts push loading; do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$part || exit; done

study: $(STAMP)  ## Compare RL objectives at equal cost, hours; goes on where it stopped (STUDY_ARGS="--objectives DiPO TraceRL")
	$(BIN)/python -m benchmarks.study $(STUDY_ARGS)

adapt: $(STAMP)  ## An autoregressive toy made a block-diffusion model, against one from scratch; goes on where it stopped
	$(BIN)/python -m benchmarks.adapt

bench-gpu: $(LMDEPLOY_STAMP)  ## Benchmarks on a GPU, each part within 10 minutes
	for part in rates attention layouts; do $(BIN)/python -m benchmarks.gpu $$part || exit; done
	for model in sdar-1.7b sdar-4b sdar-8b; do $(BIN)/python -m benchmarks.gpu train --models $$model || exit; done
	for part in speed push step; do $(BIN)/python -m benchmarks.rollout_gpu $$part $(ROLLOUT_ARGS) || exit; done

# Nothing is installed for these: they are for hosts without a network, too, with the Python that has torch.
GPU_PYTHON ?= $(firstword $(wildcard $(BIN)/python) $(PYTHON))

gpu-1:  ## Half an hour of GPU, part 1, under 9 minutes: utilisation of training, attention, layouts (OUT=folder)
	PYTHONPATH="$$PYTHONPATH:src" $(GPU_PYTHON) -m benchmarks.half_hour 1 $(GPU_ARGS)

gpu-2:  ## Part 2, under 9 minutes: rollouts, pushes, sleep and an RL step with LMDeploy
	PYTHONPATH="$$PYTHONPATH:src" $(GPU_PYTHON) -m benchmarks.half_hour 2 $(GPU_ARGS)

gpu-3:  ## Part 3, under 9 minutes: the torch engine, other training set-ups, tests/gpu
	PYTHONPATH="$$PYTHONPATH:src" $(GPU_PYTHON) -m benchmarks.half_hour 3 $(GPU_ARGS)

demo: $(CORE_STAMP)  ## SFT, then DiPO, on a small task: TASK=arithmetic, countdown or sudoku; SEED=0
	$(BIN)/lightning run demo --task $(TASK) --seed $(SEED)

help-texts: $(STAMP)  ## Write the help texts of the commands anew, src/dirl/cli/help
	$(BIN)/python -m dirl.cli.help

lint: $(STAMP)  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(STAMP)  ## Build dist/dirl-*.whl
	rm -rf build
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## Remove .venv and everything built
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
