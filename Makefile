# make demo    the main job on real input, with its own set-up (under 4 minutes on 2 cores after the downloads)
# make check   lint, types, import contracts and the quick tests (under 3 minutes on 2 quiet cores)
# make test    lint, types, import contracts, all tests, with warnings as errors (some 25 minutes)
# make docs    the pages of docs/ and the API reference into build/docs, with warnings as errors
# make notebook    Jupyter with the notebooks
# make tpu     an environment of its own that compiles for TPUs and GPUs without one, and the tests that need it
#
# Another Python: make test PYTHON=python3.12 VENV=.venv312   (3.11 gets JAX 0.10, 3.12 and newer JAX 0.12)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs
NOTEBOOK_STAMP := $(VENV)/.notebook
TPU_VENV ?= .venv-tpu
TPU_STAMP := $(TPU_VENV)/.installed
DEMO_FLAGS ?=
NOTEBOOK_FLAGS ?=
PYTEST_FLAGS ?= -n 2 --dist worksteal

# The pins are CPU builds; elsewhere, JAX_PLATFORMS from the environment wins.
export JAX_PLATFORMS ?= cpu

# Tests start many processes, which read what Python has compiled of this code.
unexport PYTHONDONTWRITEBYTECODE

TYPES = $(BIN)/basedpyright --pythonpath $(BIN)/python

.PHONY: demo check test lint style docs notebook tpu venv assets clean

demo: assets
	$(BIN)/python -m experiments.demo $(DEMO_FLAGS)

check: SELECTED = -m "not slow"

# Looking at the types takes half a minute of one core: it is done beside the tests, and said after them.
check test: style
	$(TYPES) >$(VENV)/types.log 2>&1 & types=$$!; \
	  $(BIN)/python -m pytest $(PYTEST_FLAGS) $(SELECTED); tests=$$?; \
	  wait $$types; types=$$?; cat $(VENV)/types.log; [ $$tests -eq 0 ] && [ $$types -eq 0 ]

lint: style
	$(TYPES)

style: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=. $(BIN)/lint-imports

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebook: assets $(NOTEBOOK_STAMP)
	PYTHONPATH=$(CURDIR) $(BIN)/jupyter lab notebooks $(NOTEBOOK_FLAGS)

tpu: venv $(TPU_STAMP)
	ADAPT_TPU_PYTHON=$(TPU_VENV)/bin/python $(BIN)/python -m pytest tests/models/test_packed_attention_compiled.py tests/experiments/test_compile_check.py tests/cli/test_cluster.py -k "compile_check or compiled or tpu"

assets: venv
	$(BIN)/python -m adapt.cli.assets

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'error: Python 3.11 or newer is needed; name one with PYTHON=, as in: make test PYTHON=python3.12' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

$(NOTEBOOK_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebook]'
	@touch $@

$(TPU_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tpu-compile,gpu-compile]'
	@touch $@

clean:
	rm -rf $(VENV) $(TPU_VENV)
