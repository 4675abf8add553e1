# Two commands do everything: `make train` and `make test`. `make` alone lists the rest.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

# Left empty, set-up takes the first suitable Python that it finds on PATH.
PYTHON ?=
# The version that the suite is known to pass with. Any torch >= 2.11, CPU or CUDA, will do:
# name another one here (`make setup TORCH=torch==2.11.0`; pip's own PIP_INDEX_URL or
# PIP_FIND_LINKS choose where it comes from), or install it into .venv first: set-up keeps it.
TORCH ?= torch==2.13.0
TRAIN_ARGS ?=
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup train test package docs lint format typecheck clean FORCE

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: PYTHON, TORCH (set-up); TRAIN_ARGS (train); PYTEST_ARGS (test).'

setup: $(STAMP)  ## create .venv and install delaygrad into it (only when pyproject.toml changed)

train: setup  ## train DDG on the embedded digits: 2 stages in 2 processes, on the CPU
	$(BIN)/delaygrad train --runtime distributed --stages 2 $(TRAIN_ARGS)

test: lint typecheck  ## all checks: format, lint, types, spelling, tests and doctests
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

package: setup  ## build the wheel, and run README's example with the required packages alone
	$(BIN)/python .ci/package.py

docs: setup  ## build the site from docs/ into build/docs
	$(BIN)/python -c 'import furo, myst_parser' 2>/dev/null || $(BIN)/python -m pip install -e '.[docs]'
	$(BIN)/python -m sphinx --fail-on-warning --quiet docs build/docs
	@echo 'the site: build/docs/index.html'

lint: setup  ## check format, style and spelling
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m codespell_lib

typecheck: setup  ## check the types of src
	$(BIN)/python -m mypy

format: setup  ## rewrite the files as `lint` wants them
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:  ## remove .venv, caches and build leftovers; runs/ and data/ stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

# The stamp holds the folder it was made in: an installation copied or moved along with its
# checkout still points at the old one, and is made again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): FORCE
endif

$(STAMP): pyproject.toml
	@rm -f $@
	@$(create_venv)
	@$(install_torch) || { $(explain_failed_install); exit 1; }
	@$(BIN)/python -m pip install -e '.[dev]' || { $(explain_failed_install); exit 1; }
	@printf '%s\n' '$(CURDIR)' > $@

is_suitable := -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
candidates := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)

# Keeps a .venv that works; replaces one that does not (half-made, or its Python is gone).
define create_venv
if $(BIN)/python -m pip --version >/dev/null 2>&1 && $(BIN)/python $(is_suitable); then \
  echo "set-up: keeping $(VENV) with $$($(BIN)/python --version)"; \
  exit 0; \
fi; \
found=; \
for python in $(candidates); do \
  if "$$python" $(is_suitable) >/dev/null 2>&1; then found=$$python; break; fi; \
done; \
if [ -z "$$found" ]; then \
  echo 'set-up: no suitable Python. delaygrad needs Python 3.11 or newer with its venv module. Tried:' >&2; \
  for python in $(candidates); do \
    if ! command -v "$$python" >/dev/null 2>&1; then \
      echo "  $$python: not found" >&2; \
    elif "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
      echo "  $$python: has no venv or ensurepip module (on Debian and Ubuntu: the package python3-venv)" >&2; \
    else \
      echo "  $$python: $$("$$python" --version 2>&1 | tail -n 1), too old or broken" >&2; \
    fi; \
  done; \
  echo 'Install what is missing, or name another one: make setup PYTHON=path-to-python3' >&2; \
  exit 1; \
fi; \
echo "set-up: creating $(VENV) with $$("$$found" --version)"; \
"$$found" -m venv --clear $(VENV) || { \
  echo 'set-up: could not create $(VENV); see the message above. Is this folder writable, and is its disk not full?' >&2; \
  rm -rf $(VENV); exit 1; }
endef

# A torch that somebody put into .venv on purpose stays, unless TORCH asks for another one.
has_torch := -c 'import re, sys, torch; \
  sys.exit(tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 11))'
keep_torch := $(if $(filter file,$(origin TORCH)),$(BIN)/python $(has_torch) 2>/dev/null,false)
define install_torch
if $(keep_torch); then \
  echo 'set-up: keeping the torch in $(VENV)'; \
else \
  $(BIN)/python -m pip install '$(TORCH)'; \
fi
endef

# pip has just printed its own reason; this says what it usually means.
define explain_failed_install
echo >&2; \
echo "set-up failed: pip could not install everything (its reason is above). It needs a reachable package" \
  "registry (network, or a proxy or mirror in pip's own settings) and about 2 GB of free disk for the CPU" \
  "build of torch, 8 GB for a CUDA one; $$(df -Ph . | awk 'NR == 2 { print $$4 }') are free here. If only" \
  "'$(TORCH)' was not found, name one that your registry has: make setup TORCH='torch>=2.11'." \
  "Nothing is lost: run the same command again and set-up resumes." >&2
endef
