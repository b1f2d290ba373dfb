# Set-up happens once, in .venv/; every other target needs nothing but it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PROFILE ?= tiny
PUBLISHED := $(CURDIR)/.venv-published
VLLM := $(CURDIR)/.venv-vllm
NEXT := $(CURDIR)/.venv-prefect-next

.PHONY: setup run smoke test test-slow next-prefect interop vllm bench gpu-check check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,dev]'
	touch $@

run: setup
	$(BIN)/crafter-pipeline run --profile $(PROFILE)

smoke: setup
	$(BIN)/crafter-pipeline run --profile smoke --fresh

test: setup
	$(BIN)/python -m pytest -q

test-slow: setup next-prefect
	$(BIN)/python -m pytest -q -m slow

# The newest Prefect that we know, beside the pinned one. It asks for a certifi that may not be published yet, hence
# without its dependencies; `whenever` is the one that the pinned Prefect does not bring.
next-prefect: $(NEXT)/.installed

$(NEXT)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(NEXT)
	$(NEXT)/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	$(NEXT)/bin/python -m pip install --quiet --no-deps prefect==3.9.1 'whenever>=0.10.5'
	touch $@

# The published client in a virtual environment of its own: its dependencies are not ours.
interop: setup $(PUBLISHED)/.installed
	SYNTH_AI_VENV=$(PUBLISHED) $(BIN)/python -m pytest -q -m interop

$(PUBLISHED)/.installed:
	$(PYTHON) -m venv $(PUBLISHED)
	$(PUBLISHED)/bin/python -m pip install --quiet synth-ai==0.2.17
	touch $@

# vLLM in a virtual environment of its own: it wants an older fastapi than Prefect does. For machines with CUDA.
vllm: $(VLLM)/.installed
	@echo "export VLLM_COMMAND=$(VLLM)/bin/vllm"

$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm==0.30.0
	touch $@

bench: setup
	$(BIN)/python -m benchmarks

gpu-check: setup
	$(BIN)/python -m benchmarks.gpu_check

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -x tests/crafter_pipeline tests/test_layout.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(PUBLISHED) $(VLLM) $(NEXT) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
