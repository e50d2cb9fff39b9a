# make setup is the first step of all the others: a virtual environment with pinned packages in .venv
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
HOST ?= 127.0.0.1
PORT ?= 8000
.PHONY: setup serve demo test test-fast test-gpu build-ext lint grid bench bench-gpu charts clean

$(BIN)/.installed: pyproject.toml setup.py constraints.txt mini_infer/ops/native.cpp
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

setup: $(BIN)/.installed

serve: setup  ## the bundled model with the OpenAI API on 127.0.0.1:8000
	$(BIN)/mini-infer serve --host $(HOST) --port $(PORT)

demo: setup  ## a few prompts on the bundled model: text, tokens/s, memory ledger
	$(BIN)/python examples/demo.py

test: setup  ## everything that needs no GPU
	$(BIN)/python -m pytest -n 2 -m "not gpu"

test-fast: setup  ## under a minute, no weights
	$(BIN)/python -m pytest -n 2 -m "not gpu and not weights and not slow"

test-gpu:  ## on a machine with a CUDA GPU; runs from a plain checkout with the machine's own python
	PYTHONPATH=. $(GPU_PYTHON) -m pytest -m "gpu and not alone" -p no:cacheprovider -n 8 tests
	PYTHONPATH=. $(GPU_PYTHON) -m pytest -m "gpu and alone" -p no:cacheprovider tests

build-ext:  ## the CUDA kernels that are optional, compiled for the GPU that is here; needs nvcc; a plain checkout does
	PYTHONPATH=. $(GPU_PYTHON) -m mini_infer.ops.build_cuda

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/yamllint --strict deploy .github .yamllint
	$(BIN)/hadolint Dockerfile
	$(BIN)/kubernetes-validate --strict --quiet --no-warn deploy/kubernetes/base/*.yaml

grid: setup  ## the equivalence grid, written to docs/grid.md
	$(BIN)/python -m tests.grid --out docs/grid.md

bench: setup  ## the figures of docs/benchmarks.md, into benchmarks/results
	$(BIN)/python -m benchmarks.cpu_suite

bench-gpu:  ## the figures of a GPU, into benchmarks/results; runs from a plain checkout with the machine's own python
	PYTHONPATH=. $(GPU_PYTHON) -m benchmarks.gpu_suite

charts: setup  ## benchmarks/results as pictures in docs/charts
	$(BIN)/python -m benchmarks.charts

clean:
	rm -rf $(VENV) build dist *.egg-info
