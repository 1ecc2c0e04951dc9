# make build | run | test | lint | bench | clean        (PYTHON=python3.12 make build chooses the interpreter)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SOURCE := $(shell find src -name '*.py')
ENGINE := $(wildcard src/pyhyve/vmm/soft/*.py src/pyhyve/vmm/soft/*.pxd)
RUN    ?= debian

.PHONY: build run test lint bench clean

build: $(VENV)/.built $(VENV)/.bytecode

# 0 to 3 are the ways in which a guest ends; 4 and more are errors.
run: build
	@$(BIN)/pyhyve run $(RUN) || [ $$? -lt 4 ]

test: build
	@echo "test: running the suite"
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed
	@echo "lint: ruff"
	@$(BIN)/ruff check src tests setup.py $(wildcard benchmarks examples)
	@echo "lint: mypy"
	@$(BIN)/mypy

bench: build
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f src/pyhyve/vmm/soft/*.c src/pyhyve/vmm/soft/*.so
	find src tests -name __pycache__ -prune -exec rm -rf {} +

# The environment, with pip in it.
$(VENV)/bin/pip:
	@echo "build: creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "build: pyhyve needs Python 3.11 or newer; $(PYTHON) is older (set PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	    || { echo "build: $(PYTHON) has no ensurepip: install python3-venv (on Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# What is needed to build, run, test and lint. pip speaks only where it fails.
$(VENV)/.tools: pyproject.toml $(VENV)/bin/pip
	@echo "build: installing the Python packages it needs (a minute on a first run)"
	@$(BIN)/python -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	    print("\n".join(p["build-system"]["requires"] + p["project"]["dependencies"] + p["project"]["optional-dependencies"]["dev"]))' \
	    > $(VENV)/requirements.txt
	@$(BIN)/pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt > $(VENV)/pip.log 2>&1 \
	    || { cat $(VENV)/pip.log >&2; echo "build: pip could not install the packages (above)" >&2; exit 1; }
	@touch $@

# The package itself, editable, with its commands. The engine is compiled apart, so that only what changed is.
$(VENV)/.installed: $(VENV)/.tools setup.py
	@echo "build: installing pyhyve into $(VENV)"
	@PYHYVE_SKIP_ENGINE=1 $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable . \
	    > $(VENV)/pip.log 2>&1 || { cat $(VENV)/pip.log >&2; echo "build: pip could not install pyhyve (above)" >&2; exit 1; }
	@touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(ENGINE)
	@echo "build: compiling the engine, as far as it changed (a minute on a first run)"
	@$(BIN)/python setup.py --quiet build_ext --inplace 2> $(VENV)/build.log \
	    || { cat $(VENV)/build.log >&2; exit 1; }
	@touch $@

# Byte code, written once: also where the environment keeps Python from writing it, a start costs half as much.
$(VENV)/.bytecode: $(VENV)/.installed $(SOURCE)
	@$(BIN)/python -m compileall -q src > /dev/null || true
	@touch $@
