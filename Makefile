# Set-up happens once, in .venv/; every other target needs nothing but it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PROFILE ?= tiny
PUBLISHED := $(CURDIR)/.venv-published
PUBLISHED_OLD := $(CURDIR)/.venv-published-0.2.16
VLLM := $(CURDIR)/.venv-vllm
NEXT := $(CURDIR)/.venv-prefect-next

.PHONY: setup run smoke test test-slow next-prefect interop vllm bench gpu-check check format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,baseline,dev]'
	touch $@

run: setup
	$(BIN)/crafter-pipeline run --profile $(PROFILE)

smoke: setup
	$(BIN)/crafter-pipeline run --profile smoke --fresh

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

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

# The published client, in the two versions that matter, in virtual environments of its own: its dependencies are not
# ours. PASS or FAIL per line at the end.
interop: setup $(PUBLISHED)/.installed $(PUBLISHED_OLD)/.installed
	SYNTH_AI_VENV=$(PUBLISHED) SYNTH_AI_OLD_VENV=$(PUBLISHED_OLD) $(BIN)/python -m pytest -q -m interop -n 2 --dist loadfile tests/interop

$(PUBLISHED)/.installed: VERSION := 0.2.17
$(PUBLISHED_OLD)/.installed: VERSION := 0.2.16
$(PUBLISHED)/.installed $(PUBLISHED_OLD)/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet synth-ai==$(VERSION)
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
	rm -rf $(VENV) $(PUBLISHED) $(PUBLISHED_OLD) $(VLLM) $(NEXT) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
